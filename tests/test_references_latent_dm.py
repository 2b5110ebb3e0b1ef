"""Distribution matching in latents: views, steps and units against what they should be."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.references.latent_dm import (
    KINDS,
    cover,
    draw_step,
    loss_of_latents,
    match_class,
    matching_loss,
    random_network,
    recolor,
    shared_view,
)
from manifoldgd.sampling.pipeline import ManifoldGDPipeline

PIXELS = torch.arange(2 * 3 * 8 * 8).reshape(2, 3, 8, 8).float() / 200 - 1


def test_only_means_count():
    "Two images whose features have the mean of the real ones are a perfect set."
    real = torch.tensor([[0., 1.], [4., 3.], [2., 8.]])
    assert matching_loss(real, torch.tensor([[1., 4.], [3., 4.]])) == 0
    assert matching_loss(real, torch.tensor([[2., 1.]])) == 9


def test_colors_by_hand():
    images = torch.tensor([.1, .3, .5]).reshape(1, 3, 1, 1)
    lighter = recolor(images, torch.tensor([.9, .5, .5]))
    assert torch.allclose(lighter, images + .4)
    gray = recolor(images, torch.tensor([.5, 0., .5]))
    assert torch.allclose(gray, torch.full_like(images, .3))
    strong = recolor(images, torch.tensor([.5, .5, 1.]))
    assert torch.allclose(strong.flatten(), torch.tensor([0., .3, .6]), atol=1e-6)


@pytest.mark.parametrize("place, rows, columns", [
    ((.5, .5, 0.), range(2, 6), range(2, 6)),
    ((0., .99, 0.), range(0, 2), range(5, 8)),
])
def test_the_covered_square_by_hand(place, rows, columns):
    covered = (cover(PIXELS, torch.tensor(place)) == 0) & (PIXELS != 0)
    wanted = torch.zeros(8, 8, dtype=torch.bool)
    wanted[rows.start:rows.stop, columns.start:columns.stop] = True
    assert (covered == wanted & (PIXELS != 0)).all()


def test_shifts_and_mirrors_by_hand():
    shifted = shared_view(PIXELS, "crop", torch.tensor([1., .5, 0.]))  # an eighth: one pixel
    assert torch.allclose(shifted[..., 1:], PIXELS[..., :-1], atol=1e-5)
    assert torch.allclose(shifted[..., 0], torch.tensor(-1.), atol=1e-5)
    assert torch.equal(shared_view(PIXELS, "flip", torch.tensor([.4, 0., 0.])), PIXELS.flip(3))
    assert torch.equal(shared_view(PIXELS, "flip", torch.tensor([.6, 0., 0.])), PIXELS)


def test_a_network_depends_on_seed_and_step_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = random_network(0, 7, 3, 8)(PIXELS)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(random_network(0, 7, 3, 8)(PIXELS), first)
    assert not torch.equal(random_network(1, 7, 3, 8)(PIXELS), first)


def test_draws_of_a_class():
    config = resolve(DistillConfig(preset="latent-dm", match_images=5))
    chosen, (kind, amounts) = draw_step(config, "cat", 3, 20)
    again, _ = draw_step(config, "cat", 3, 20)
    other, _ = draw_step(config, "dog", 3, 20)
    assert chosen.tolist() == again.tolist() != other.tolist()
    assert len(set(chosen.tolist())) == 5
    assert kind in KINDS and amounts.shape == (3,)
    assert len(draw_step(config, "cat", 3, 2)[0]) == 2, "Expected no image twice."
    kinds = [draw_step(config, "cat", step, 2)[1][0] for step in range(60)]
    assert set(kinds) == set(KINDS)


def test_three_steps_with_momentum():
    "z' = z - rate m with m = m / 2 + gradient, written out."
    tiny = tiny_backbone()
    config = resolve(DistillConfig(preset="latent-dm", match_steps=3, match_rate=.02))
    size = tiny.image_size
    generator = torch.Generator().manual_seed(0)
    real = torch.randint(256, (6, 3, size, size), generator=generator, dtype=torch.uint8)
    start = torch.randn(2, *tiny.latent_shape, generator=generator)
    z, m = start.clone(), torch.zeros_like(start)
    for step in range(3):
        chosen, view = draw_step(config, "cat", step, 6)
        network = random_network(0, step, 3, size)
        z.requires_grad_()
        loss = loss_of_latents(z, real[chosen] / 127.5 - 1, tiny.vae, network, view)
        (gradient,) = torch.autograd.grad(loss, z)
        m = m / 2 + gradient
        z = z.detach() - .02 * m
    found = match_class(config, tiny, start, real, "cat")
    assert torch.allclose(found, z, atol=1e-5)
    assert not torch.allclose(found, start, atol=1e-3)


@pytest.mark.parametrize("settings, words", [
    ({"preset": "dit", "match_steps": 5}, "`match_steps` not to be given with `reference='none'`"),
    ({"preset": "latent-dm", "tune_epochs": 5}, "`tune_epochs` not to be given"),
    ({"preset": "latent-dm", "images": "sample"}, "`images` to be 'decode'"),
    ({"preset": "latent-dm", "prototypes": "none"}, "`prototypes` to be chosen"),
    ({"preset": "latent-dm", "match_images": 0}, "`match_images` to be at least 1"),
])
def test_settings_that_cannot_be_used(settings, words):
    with pytest.raises(InputError, match=words):
        resolve(DistillConfig(**settings))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Two small classes, and a tiny backbone that knows them."
    folder = tmp_path_factory.mktemp("lab")
    tiny = tiny_backbone()
    parts = (tiny.vae, tiny.transformer, tiny.scheduler, {0: "cat", 1: "dog", 2: "owl"})
    ManifoldGDPipeline(*parts).save_pretrained(folder / "backbone")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 6, 16, 16, 3), dtype=np.uint8)
    for c, name in enumerate(("cat", "dog")):
        (folder / "data" / name).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(pixels[c, k]).save(folder / "data" / name / f"{k}.png")

    def run(name, **settings):
        config = DistillConfig(
            data=str(folder / "data"), backbone=str(folder / "backbone"), preset="latent-dm",
            ipc=2, device="cpu", out=str(folder / name), **settings)
        return distill(config, progress=False)

    return run


def images_of(run):
    "Path inside the run -> bytes."
    return {str(p.relative_to(run)): p.read_bytes() for p in run.glob("images/*/*.png")}


def test_a_class_does_not_depend_on_the_others(lab):
    both = images_of(lab("both", match_steps=3))
    alone = images_of(lab("alone", match_steps=3, classes="dog"))
    assert len(both) == 4 and len(alone) == 2
    for name, content in alone.items():
        assert both[name] == content


def test_a_unit_is_a_class_however_small_the_batch(lab):
    run = lab("small", match_steps=3, batch_size=1)
    units = sorted((run / "units").glob("*.json"))
    jobs = [sorted(json.loads(path.read_text())["images"]) for path in units]
    assert [[name.split("/")[1] for name in names] for names in jobs] == [["cat"] * 2, ["dog"] * 2]
    assert images_of(run) == images_of(lab("both", match_steps=3))


def test_the_manifest_says_how(lab):
    manifest = json.loads((lab("both", match_steps=3) / "manifest.json").read_text())
    config = manifest["config"]
    assert (config["reference"], config["match_steps"]) == ("latent-dm", 3)
    assert (config["prototypes"], config["images"]) == ("random", "decode")
    assert manifest["latents_spread"] > 0
