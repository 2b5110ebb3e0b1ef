"""The presets that follow a source: whole chains beside its formulas, written out by hand.

The sources are the sampling code of MGD and of the paper. Both are built on DiT's diffusion: 50 of
1,000 steps, a learned variance, and a classifier-free guidance on three of four channels.
"""
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from manifoldgd.backbones.predictions import prediction_of
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.distillation.makers import make_guidance
from manifoldgd.guidance import released
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import combine, noise_model
from manifoldgd.sampling.schedulers import make_scheduler

STEPS = 50
SCALE = 4.
SHAPE = (4, 3, 3)
FACTORS = [2., 1.7132, 1.4785, 1.2862, 1.1289, 1.]  # of the radius, to four digits
LABEL, NULL = 1., 0.


ABAR = np.cumprod(1 - np.linspace(1e-4, .02, 1000))


def network(x, t, label):
    "The exact denoiser of a Gaussian around each class and channel, with a made-up variance."
    channel = torch.arange(1., x.shape[1] + 1).reshape(-1, 1, 1).to(x)
    mean = .3 * channel * (label + .2)
    a = ABAR[t]
    noise = math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / (.5 * a + 1 - a)
    return noise, torch.sin(3 * x + label)


def backbone_of(channels):
    "A backbone that is the network above, with DiT's schedule."
    def predict(x, t, condition):
        return network(x, int(t), condition["label"].to(x).reshape(-1, 1, 1, 1))

    def condition(labels):
        return {"label": torch.tensor(labels)}

    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=.02, beta_schedule="linear")
    return SimpleNamespace(
        predict=predict,
        condition=condition,
        unconditional=lambda n: condition([NULL] * n),
        scheduler=scheduler,
        learned_variance=True,
        prediction=prediction_of(scheduler),
        latent_shape=(channels, 3, 3),
    )


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def starts(shape):
    return torch.randn(2, *shape, generator=seeded(0))


def ours(preset, shape, prototypes, **settings):
    "The chain as a run makes it."
    config = resolve(DistillConfig(preset=preset, guidance_scale=SCALE, **settings))
    backbone = backbone_of(shape[0])
    clouds = [seeded(100 + i) for i in range(2)]
    guidance = make_guidance(config, prototypes, clouds, lambda: SimpleNamespace(spread=None))
    model = noise_model(backbone, [LABEL] * 2, config.guidance_scale, config.cfg_channels)
    own = [seeded(10 + i) for i in range(2)]
    scheduler = make_scheduler(config.scheduler, backbone)
    latents, _ = sample(model, starts(shape), scheduler, guidance, STEPS, own)
    return latents


def by_hand(shape, push, scaled=3):
    "The sources' chain in float64: `push` adds to the mean while t > 25, in 24 of 50 steps."
    kept = [round(k * 999 / 49) for k in range(STEPS)]
    abar = ABAR[kept]
    beta = 1 - abar / np.append(1., abar[:-1])
    before = np.append(1., abar[:-1])
    x = starts(shape).double()
    draws = [seeded(10 + i) for i in range(2)]
    guided = []
    for t in reversed(range(STEPS)):
        told, v = network(x, kept[t], LABEL)
        nothing, _ = network(x, kept[t], NULL)
        noise = told.clone()
        noise[:, :scaled] = nothing[:, :scaled] + SCALE * (told - nothing)[:, :scaled]
        x0 = x / math.sqrt(abar[t]) - math.sqrt(1 / abar[t] - 1) * noise
        mean = beta[t] * math.sqrt(before[t]) / (1 - abar[t]) * x0
        mean += (1 - before[t]) * math.sqrt(1 - beta[t]) / (1 - abar[t]) * x
        if t:
            posterior = beta[t] * (1 - before[t]) / (1 - abar[t])
            f = (v + 1) / 2
            deviation = torch.exp(.5 * (f * math.log(beta[t]) + (1 - f) * math.log(posterior)))
        if t > 25:
            mean += push(x, x0, deviation, abar[t], t)
            guided.append(t)
        if t:
            drawn = torch.stack([torch.randn(shape, generator=g) for g in draws])
            mean += deviation * drawn
        x = mean
    assert len(guided) == 24
    return x


@pytest.fixture
def prototypes():
    return torch.randn(2, math.prod(SHAPE), generator=seeded(7))


def mode_push(prototypes, shape=SHAPE):
    "MGD: a tenth of the way to the prototype, by the deviation of the step."
    center = prototypes.double().reshape(2, *shape)

    def push(x, x0, deviation, abar, t):
        return .1 * deviation * (center - x0)

    return push


def test_mgd_is_its_source_to_the_last_step(prototypes):
    expected = by_hand(SHAPE, mode_push(prototypes))
    found = ours("mgd", SHAPE, prototypes)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_what_makes_up_the_parity_of_mgd_matters(prototypes):
    expected = by_hand(SHAPE, mode_push(prototypes))
    for other in ({"stop": .5}, {"cfg_channels": "all"}, {"strength": .11}):
        found = ours("mgd", SHAPE, prototypes, **other)
        assert (found - expected).abs().max() > 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_latents_of_up_to_three_channels_are_guided_whole(channels):
    shape = (channels, 3, 3)
    prototypes = torch.randn(2, math.prod(shape), generator=seeded(7))
    expected = by_hand(shape, mode_push(prototypes, shape), scaled=channels)
    found = ours("mgd", shape, prototypes)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(found, ours("mgd", shape, prototypes, cfg_channels="all"))


def test_the_fourth_channel_keeps_the_noise_of_the_class():
    told, nothing = torch.randn(2, 1, 4, 2, 2, generator=seeded(0))
    found = combine(told, nothing, 4., 3)
    assert torch.equal(found[:, 3], told[:, 3])
    assert torch.allclose(found[:, :3], (4 * told - 3 * nothing)[:, :3], atol=1e-5)


def released_push(prototypes):
    "The paper's code: the mode push, and a pull to the plane of a synthetic cloud."
    clouds = [seeded(100 + i) for i in range(2)]
    mode = mode_push(prototypes)

    def pull(x, center, radius, abar, cloud):
        directions = torch.randn(300, len(x), generator=cloud).double()
        directions /= directions.norm(dim=1, keepdim=True)
        drawn = torch.rand(150, generator=cloud).double() * radius
        radii = torch.cat([torch.linspace(.1, radius, 150).double(), drawn])
        radii, order = radii.sort()
        points = center + radii[:, None] * directions[order]
        noise = torch.randn(300, len(x), generator=cloud).double()
        points = math.sqrt(abar) * points + math.sqrt(1 - abar) * noise
        distances = (points - x).norm(dim=1)
        near = points[distances.topk(12, largest=False).indices]
        mean = near.mean(0)
        covariance = (near - mean).T @ (near - mean) / 11 + 1e-5 * torch.eye(len(x))
        axes = torch.linalg.eigh(covariance).eigenvectors[:, -3:]
        normal = (x - mean) - axes @ (axes.T @ (x - mean))
        return -.1 * torch.tanh(distances.min() / .1) * normal / normal.norm()

    def push(x, x0, deviation, abar, t):
        p = max(0., (t - 44) / 5)  # 5 warm steps after the first
        radius = .1 * (1 + (math.exp(p) - 1) / (math.e - 1))
        pulls = [pull(x[i].flatten(), prototypes[i].double(), radius, abar, clouds[i])
                 for i in range(2)]
        return mode(x, x0, deviation, abar, t) + torch.stack(pulls).reshape(x.shape)

    return push


def test_released_is_its_source_to_the_last_step(prototypes):
    expected = by_hand(SHAPE, released_push(prototypes))
    found = ours("released", SHAPE, prototypes)
    assert (found - expected).abs().max() < 1e-3 * expected.abs().max()
    without = by_hand(SHAPE, mode_push(prototypes))
    assert (without - expected).abs().max() > 1e-2


def test_released_shrinks_its_cloud_over_six_steps(monkeypatch, prototypes):
    radii = []
    real = released.sphere_candidates

    def watched(prototypes, radius, *rest):
        radii.append(radius)
        return real(prototypes, radius, *rest)

    monkeypatch.setattr(released, "sphere_candidates", watched)
    ours("released", SHAPE, prototypes)
    assert len(radii) == 24
    assert [radius / .1 for radius in radii] == pytest.approx(FACTORS + 18 * [1.], abs=1e-4)
