"""Influence-guided diffusion: gradients in closed form, its push, its units, and its classifier."""
import json
import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_distillation import contents, lab  # noqa: F401

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.distillation.makers import SampledImages, sample_jobs
from manifoldgd.distillation.units import Job
from manifoldgd.guidance.guidance import Step
from manifoldgd.references import influence
from manifoldgd.references.influence import (
    METHOD,
    InfluenceGuidance,
    clean_predictor,
    deviation_gradient,
    igd_push,
    influence_gradient,
    influence_loss,
    open_decoder,
    real_gradient,
    weight_gradient,
)

FAST = {"preset": "igd", "gradient_images": 4}


@pytest.fixture(autouse=True)
def small_classifier(monkeypatch):
    "Train a narrow classifier for three epochs."
    usual = influence.classifier_protocol
    monkeypatch.setattr(influence, "MOMENTS", (0, 1, 2, 3))
    monkeypatch.setattr(influence, "classifier_protocol",
                        lambda *inputs: replace(usual(*inputs), width=4))


@pytest.fixture
def generator():
    "Random numbers of a seed."
    return torch.Generator().manual_seed(0)


@pytest.fixture
def student(generator):
    "A small network with weights at two moments, in float64."
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3), torch.nn.GroupNorm(2, 2), torch.nn.ReLU(inplace=True),
        torch.nn.Flatten(), torch.nn.Linear(8, 3)).double()
    shapes = {name: p.shape for name, p in network.named_parameters()}
    moments = [{name: torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
                for name, shape in shapes.items()} for _ in range(2)]
    return network, moments


def images(n, generator):
    "Random images in float64."
    return torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)


def test_the_real_gradient_is_the_mean_over_images(student, generator, monkeypatch):
    "Whatever the parts are that it is computed in."
    network, moments = student
    some = images(7, generator)
    each = torch.stack([weight_gradient(network, moments[0], x[None], 1) for x in some])
    for part in (2, 3, 50):
        monkeypatch.setattr(influence, "PART", part)
        mean = real_gradient(network, moments[0], some, 1)
        torch.testing.assert_close(mean, each.mean(0))


def test_the_loss_is_the_mean_of_one_minus_cosine(student, generator):
    network, moments = student
    real = [torch.randn(sum(w.numel() for w in moments[0].values()), generator=generator,
                        dtype=torch.float64) for _ in moments]
    image = images(1, generator)
    expected = 0.
    for weights, wanted in zip(moments, real):
        own = weight_gradient(network, weights, image, 2).numpy()
        wanted = wanted.numpy()
        lengths = math.sqrt((own @ own) * (wanted @ wanted))
        expected += (1 - own @ wanted / lengths) / 2
    assert influence_loss(network, moments, real, image, 2).item() == pytest.approx(expected)


def test_the_gradient_runs_through_predictor_decoder_and_student(student, generator):
    "Against finite differences of the whole chain."
    network, moments = student
    real = [weight_gradient(network, weights, images(5, generator), 0) for weights in moments]
    mix = torch.randn(16, 16, generator=generator, dtype=torch.float64)

    def predict(x_t):
        return (x_t.flatten() @ mix).reshape(x_t.shape).tanh()

    def loss_of(image):
        return influence_loss(network, moments, real, image, 0)

    x_t = images(1, generator)
    loss, gradient = influence_gradient(predict, torch.sin, loss_of, x_t)
    assert loss.item() == pytest.approx(loss_of(predict(x_t).sin()).item())
    steps = 1e-6 * torch.eye(16, dtype=torch.float64).reshape(16, 1, 1, 4, 4)
    ends = [[loss_of(predict(x_t + sign * s).sin()).item() for s in steps] for sign in (1, -1)]
    slopes = torch.tensor(ends, dtype=torch.float64).diff(dim=0)[0] / -2e-6
    torch.testing.assert_close(gradient.flatten(), slopes, rtol=1e-6, atol=1e-8)
    assert not x_t.requires_grad


def test_the_nearest_is_the_most_alike_whatever_its_length():
    memory = torch.tensor([[100., 0.], [0., .01], [-1., -1.]])
    highest, gradient = deviation_gradient(torch.tensor([[3., 4.]]), memory)
    assert highest.item() == pytest.approx(.8)
    # ((0, 1) - .8 (.6, .8)) / 5
    torch.testing.assert_close(gradient, torch.tensor([[-.096, .072]]))


def test_the_push_by_hand():
    step = Step(x=torch.tensor([[3., 4.]]), x0=torch.zeros(1, 2),
                noise_pred=torch.tensor([[6., 8.]]), alpha_cumprod=.64, index=0, count=50)
    along, away = torch.tensor([[0., 7.]]), torch.tensor([[-.096, .072]])
    push = igd_push(step, along, away, influence=.5, deviation=.1)
    # .5 * .6 * 10 = 3 down the second axis; .1 * 25 = 2.5 times the way back
    torch.testing.assert_close(push, torch.tensor([[.24, -3. - .18]]))
    assert not igd_push(step, 0 * along, 0 * away, .5, .1).any()


def test_the_first_image_of_a_class_has_nothing_to_deviate_from(generator):
    x = torch.randn(1, 16, generator=generator)
    step = Step(x, x, x, .5, 0, 50)

    def push(memory):
        guide = InfluenceGuidance(
            lambda x, step: x, torch.nn.Identity(), lambda image: image.square().sum(),
            (1, 4, 4), memory, influence=0., deviation=.01)
        record = {}
        return guide.vector(step, record), record["likeness"].item()

    first, likeness = push(torch.zeros(0, 16))
    assert not first.any() and likeness == 0
    later, likeness = push(torch.randn(3, 16, generator=generator))
    assert later.any() and likeness != 0


def test_the_predictor_is_that_of_the_sampler():
    "The clean sample that the loop has in mind is the one that is differentiated."
    backbone = tiny_backbone()
    config = resolve(DistillConfig(preset="igd", num_inference_steps=6, ipc=1))
    predict = clean_predictor(backbone, config, 1)
    seen = []

    def compare(index, t, x, x0):
        if index < 3:
            seen.append(x0)

    job = Job(1, 0, "1")
    latents = []

    class Watched(SampledImages):
        def guidance(self, jobs):
            guide = InfluenceGuidance(
                lambda x, step: latents.append(predict(x, step)) or x, torch.nn.Identity(),
                lambda image: image.sum(), backbone.latent_shape, torch.zeros(0, 256),
                influence=0., start=0., stop=.5)
            return guide

    sample_jobs(Watched(config, [], backbone, [0, 1, 2]), [job], compare)
    for own, loops in zip(latents, seen, strict=True):
        torch.testing.assert_close(own.detach(), loops)


def test_the_decoder_has_no_edge():
    vae = tiny_backbone().vae
    latents = (20 * torch.ones(1, 4, 8, 8)).requires_grad_()
    image = open_decoder(vae)(latents)
    gradient, = torch.autograd.grad(image.sum(), latents)
    assert gradient.any()
    same = vae.decode(latents / vae.config.scaling_factor).sample
    torch.testing.assert_close(image, same)


def test_a_unit_is_a_class():
    jobs = [Job(c, k, folder) for c, folder in enumerate("abc") for k in range(3)]
    units = METHOD.cut(jobs, 2)
    assert [unit.number for unit in units] == [0, 1, 2]
    assert [{job.folder for job in unit.jobs} for unit in units] == [{"a"}, {"b"}, {"c"}]
    assert [job for unit in units for job in unit.jobs] == jobs


def test_a_run_resumes_by_class_and_shares_its_classifier(lab, monkeypatch):  # noqa: F811
    folder, run = lab
    made = run("run", trace=True, start=.25, stop=.75, **FAST)
    before = contents(made)
    kept, = (folder / "cache" / "igd").glob("*.safetensors")
    time = kept.stat().st_mtime_ns
    trace = pd.read_csv(made / "trace.csv")
    assert sorted(set(trace["step"])) == [1, 2]
    assert len(trace) == 6 * 2
    first = trace["image"].str.endswith("00000.png")
    assert (trace["likeness"][first] == 0).all() and (trace["likeness"][~first] != 0).all()

    (made / "units" / "00001.json").unlink()
    (made / "images" / "1" / "00001.png").unlink()
    assert contents(run("run", trace=True, start=.25, stop=.75, **FAST)) == before
    run("more", ipc=3, **FAST)
    assert kept.stat().st_mtime_ns == time
    assert json.loads((made / "manifest.json").read_text())["finished"]


def test_an_image_does_not_depend_on_later_ones(lab):  # noqa: F811
    _, run = lab
    two, three = (contents(run(f"{ipc}", ipc=ipc, **FAST) / "images") for ipc in (2, 3))
    assert len(two) == 6 and two.items() <= three.items()


def test_without_pushes_it_is_the_plain_model(lab):  # noqa: F811
    "One image at a time, with the same channels under classifier-free guidance."
    _, run = lab
    off = run("off", influence=0., deviation=0., **FAST)
    plain = run("plain", preset="dit", cfg_channels=3, batch_size=1)
    assert contents(off / "images") == contents(plain / "images")
    assert contents(run("on", **FAST) / "images") != contents(plain / "images")


def test_the_classifier_begins_untrained_and_moves(lab):  # noqa: F811
    folder, run = lab
    run("run", **FAST)
    kept, = (folder / "cache" / "igd").glob("*.safetensors")
    weights = load_file(kept)
    names = {name.partition("/")[2] for name in weights}
    assert len(weights) == len(names) * 4
    name = next(iter(names))
    stages = [weights[f"{k}/{name}"] for k in range(4)]
    assert all(not torch.equal(a, b) for a, b in zip(stages, stages[1:]))
