"""Sampling that begins at a noised prototype, and D4M, which is made with it."""
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.runs import read_run
from manifoldgd.errors import InputError
from manifoldgd.prototypes.selection import select_prototypes
from manifoldgd.sampling.exact import exact_denoiser
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sampling.schedulers import SCHEDULERS, make_scheduler

TINY = tiny_backbone()
MEAN, VARIANCE = 1., .25  # of the Gaussian that all chains below are on
NOISE = torch.randn(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
START = torch.full((50, 1), 3., dtype=torch.float64)
ABAR = torch.cumprod(1 - torch.linspace(1e-4, .02, 1000, dtype=torch.float64), 0)


def chain(name, steps=50, **settings):
    "Sample the Gaussian with one of the samplers."
    scheduler = make_scheduler(name, TINY)
    exact = exact_denoiser(scheduler, torch.full((1, 1), MEAN), VARIANCE)
    own = torch.Generator().manual_seed(1)
    return sample(exact, NOISE, scheduler, num_inference_steps=steps, generator=own, **settings)[0]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_pure_noise_is_what_it_was(name):
    "The whole chain, written out, is the default."
    scheduler = make_scheduler(name, TINY)
    exact = exact_denoiser(scheduler, torch.full((1, 1), MEAN), VARIANCE)
    scheduler.set_timesteps(50)
    own = {"generator": torch.Generator().manual_seed(1)}
    own = own if name in ("ddpm", "ddim", "dpm++", "euler") else {}
    x = NOISE * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        noise_pred = exact(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(noise_pred, t, x, **own).prev_sample
    assert torch.equal(chain(name), x)
    assert torch.equal(chain(name, begin=1.), x)


@pytest.mark.parametrize("begin", [.7, .3])
@pytest.mark.parametrize("name", ["ddim", "dpm++", "unipc", "euler"])
def test_what_is_kept_on_the_way(name, begin):
    """On a Gaussian (x - sqrt(abar) m) / sqrt(v) stays as it is on the way without noise.

    So the end follows from the start in closed form, up to the error of the solver."""
    a = ABAR[range(999, 0, -5)[200 - round(200 * begin)]].item()
    x_t = math.sqrt(a) * START + math.sqrt(1 - a) * NOISE
    kept = (x_t - math.sqrt(a) * MEAN) / math.sqrt(a * VARIANCE + 1 - a)
    wanted = MEAN + math.sqrt(VARIANCE) * kept
    found = chain(name, 200, begin=begin, clean=START)
    assert (found - wanted).abs().max() < .05, "Expected no more than the solver's error."


@pytest.mark.parametrize("name", SCHEDULERS)
def test_without_a_step_nothing_changes(name):
    assert torch.equal(chain(name, begin=0., clean=START), START)
    moved = [(chain(name, begin=b, clean=START) - START).abs().mean() for b in (.1, .3, .6)]
    assert moved == sorted(moved), "Expected more steps to lead farther away."


@pytest.mark.parametrize("settings, words", [
    ({"begin": .5}, "`clean` of shape \\(50, 1\\) with `begin=0.5`, but got None"),
    ({"begin": .5, "clean": START[:4]}, "but got \\(4, 1\\)"),
    ({"clean": START}, "`clean` of shape None with `begin=1`"),
    ({"begin": 1.5, "clean": START}, "`begin` to be between 0 and 1"),
])
def test_a_start_that_does_not_fit(settings, words):
    with pytest.raises(InputError, match=words):
        chain("ddim", **settings)


@pytest.mark.parametrize("settings, words", [
    ({"preset": "decoded", "begin": .5}, "`begin` to be 1.0 with `images='decode'`"),
    ({"preset": "herding", "begin": .5}, "`begin` to be 1.0 with `images='real'`"),
    ({"preset": "dit", "begin": .5}, "`prototypes` to be chosen for `begin=0.5`"),
    ({"preset": "d4m", "begin": 2.}, "`begin` to be between 0 and 1"),
])
def test_settings_that_cannot_be_used(settings, words):
    with pytest.raises(InputError, match=words):
        resolve(DistillConfig(**settings))


def images_of(run):
    "The images of a run, in the order of their names."
    return [np.asarray(Image.open(path)) for path in sorted(run.glob("images/*/*.png"))]


def test_a_run_from_no_step_is_the_decoded_prototypes(tmp_path):
    ends = {"prototypes": "levels", "ipc": 2, "classes": "3,8"}
    begun = distill(DistillConfig(preset="d4m", begin=0., out=str(tmp_path / "a"), **ends), False)
    decoded = distill(DistillConfig(preset="decoded", out=str(tmp_path / "b"), **ends), False)
    for one, other in zip(images_of(begun), images_of(decoded), strict=True):
        assert np.array_equal(one, other)


def test_the_preset_stands_in_the_manifest(tmp_path):
    config = DistillConfig(preset="d4m", ipc=1, num_inference_steps=10, out=str(tmp_path / "run"))
    run = distill(config, False)
    stored = json.loads((run / "manifest.json").read_text())["config"]
    assert (stored["begin"], stored["prototypes"]) == (.7, "minibatch-kmeans")
    assert (stored["guidance"], stored["images"]) == ("none", "sample")
    assert read_run(run).config.begin == .7
    assert len(images_of(run)) == 10


def test_mini_batches_find_what_lies_apart():
    middles = torch.tensor([[0., 0.], [90., 0.], [0., 90.]]).repeat_interleave(40, 0)
    x = middles + torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    found = select_prototypes(x, 3, "minibatch-kmeans").points
    true = torch.stack([x[40 * k:40 * k + 40].mean(0) for k in range(3)])
    assert torch.cdist(true, found).min(1).values.max() < 1e-4


# Real images by herding and k-center

@pytest.mark.parametrize("preset", ["herding", "kcenter"])
def test_chosen_images_are_copied_as_they_are(preset, tmp_path):
    "They keep their size, like those of `random`; each is the one that its source names."
    tiny = tiny_backbone()
    parts = (tiny.vae, tiny.transformer, tiny.scheduler, {0: "cat", 1: "dog", 2: "owl"})
    ManifoldGDPipeline(*parts).save_pretrained(tmp_path / "backbone")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 6, 20, 30), dtype=np.uint8)
    for c, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(6):
            Image.fromarray(pixels[c, k]).save(tmp_path / "data" / name / f"{k}.png")
    config = DistillConfig(data=str(tmp_path / "data"), preset=preset, ipc=3, classes="cat,dog",
                           backbone=str(tmp_path / "backbone"), out=str(tmp_path / "run"))
    run = distill(config, False)
    lines = [json.loads(line) for line in (run / "metadata.jsonl").read_text().splitlines()]
    assert len({line["source"] for line in lines}) == 6, "Expected no image twice."
    for line in lines:
        copy = Image.open(run / line["file_name"])
        original = Image.open(tmp_path / "data" / line["source"])
        assert copy.size == (30, 20)
        assert np.array_equal(np.asarray(copy.convert("L")), np.asarray(original))
