"""Models of noise, v and velocity: guided by hand on a Gaussian, opened, sampled, refused."""
import json
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from manifoldgd.backbones.backbone import load_backbone, tiny_backbone
from manifoldgd.backbones.families import open_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.core import to_pil
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.guidance.guidance import Guidance, NoGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.sampling.exact import exact_denoiser
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sampling.schedulers import make_scheduler

MEAN, VARIANCE, TARGET, STRENGTH, STEPS = 1., .25, 2., .05, 10
KINDS = ("noise", "v", "velocity")


# Guided and unguided chains on the Gaussian N(1, .25), worked out by hand in float64


def clean_by_hand(x, alpha, sigma, strength):
    "The clean sample that the Gaussian lets one expect, moved by (sigma^2 / alpha) strength m."
    gain = alpha * VARIANCE / (alpha ** 2 * VARIANCE + sigma ** 2)
    x0 = MEAN + gain * (x - alpha * MEAN)
    return x0 + (sigma ** 2 / alpha * strength * (TARGET - x0) if strength else 0)


def deterministic_by_hand(x, levels, guided):
    "x' = alpha' x0 + sigma' eps: DDIM, and Euler's method on a straight path."
    for i, ((alpha, sigma), (next_alpha, next_sigma)) in enumerate(zip(levels, levels[1:])):
        if alpha:
            x0 = clean_by_hand(x, alpha, sigma, STRENGTH if i in guided else 0)
        else:  # nothing but noise: the mean of the data, and no guidance
            x0 = torch.full_like(x, MEAN)
        x = next_alpha * x0 + next_sigma * (x - alpha * x0) / sigma
    return x


def ddpm_by_hand(x, levels, guided, noises):
    "The posterior by precision weighting, with the noises that the steps drew."
    for i, ((alpha, sigma), (next_alpha, next_sigma)) in enumerate(zip(levels, levels[1:])):
        x0 = clean_by_hand(x, alpha, sigma, STRENGTH if i in guided else 0)
        if not next_sigma:
            return x0
        ratio, left = alpha / next_alpha, sigma ** 2 - (alpha / next_alpha * next_sigma) ** 2
        precision = ratio ** 2 / left + 1 / next_sigma ** 2
        mean = (ratio * x / left + next_alpha * x0 / next_sigma ** 2) / precision
        x = mean + noises[i] / math.sqrt(precision)
    return x


def levels_of(abar, times):
    "The factors of signal and noise at some timesteps, and of the finished sample."
    return [(math.sqrt(abar[t]), math.sqrt(1 - abar[t])) for t in times] + [(1., 0.)]


def start():
    "Five samples of noise."
    generator = torch.Generator().manual_seed(0)
    return torch.randn(5, 1, generator=generator, dtype=torch.float64)


def ours(scheduler, guidance, generator=None):
    "The samples of the loop."
    model = exact_denoiser(scheduler, torch.full((1, 1), MEAN, dtype=torch.float64), VARIANCE)
    return sample(model, start(), scheduler, guidance, STEPS, generator)[0]


def guide(begin, end):
    "Mode guidance toward the target, in a window of steps."
    target = torch.full((5, 1), TARGET, dtype=torch.float64)
    return ModeGuidance(target, strength=STRENGTH, start=begin / STEPS, stop=end / STEPS)


WINDOWS = [(0, 0), (0, STEPS), (3, 8)]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddim_by_hand(kind, window):
    scheduler = DDIMScheduler(
        clip_sample=False, timestep_spacing="trailing", prediction_type=kind)
    levels = levels_of(scheduler.alphas_cumprod.double(), range(999, 0, -1000 // STEPS))
    expected = deterministic_by_hand(start(), levels, range(*window))
    torch.testing.assert_close(ours(scheduler, guide(*window)), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_ddpm_by_hand(kind, window):
    scheduler = DDPMScheduler(
        clip_sample=False, timestep_spacing="linspace", prediction_type=kind)
    times = [round(k * 999 / (STEPS - 1)) for k in range(STEPS)][::-1]
    own = torch.Generator().manual_seed(1)
    noises = [torch.randn(5, 1, generator=own, dtype=torch.float64) for _ in range(STEPS - 1)]
    levels = levels_of(scheduler.alphas_cumprod.double(), times)
    expected = ddpm_by_hand(start(), levels, range(*window), noises)
    found = ours(scheduler, guide(*window), torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("shift", [1., 3.])
def test_a_flow_by_hand(shift, window):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    straight = [1 - i / STEPS for i in range(STEPS + 1)]
    sigmas = [shift * s / (1 + (shift - 1) * s) for s in straight]
    levels = [(1 - s, s) for s in sigmas]
    expected = deterministic_by_hand(start(), levels, range(*window))
    torch.testing.assert_close(ours(scheduler, guide(*window)), expected, rtol=0, atol=1e-6)


def test_a_flow_finds_its_gaussian():
    "A Gaussian's sample stays as many deviations from the mean as it was: the exact end."
    scheduler = FlowMatchEulerDiscreteScheduler()
    model = exact_denoiser(scheduler, torch.full((1, 1), MEAN, dtype=torch.float64), VARIANCE)
    errors = []
    for steps in (50, 100, 200):
        x, _ = sample(model, start(), scheduler, NoGuidance(), steps)
        errors.append((x - (MEAN + math.sqrt(VARIANCE) * start())).abs().max().item())
    assert errors[0] < .05
    assert errors[1] / errors[0] == pytest.approx(.5, abs=.1)  # Euler: an error of first order
    assert errors[2] / errors[1] == pytest.approx(.5, abs=.1)


class Watching(Guidance):
    "A guidance that does nothing and keeps what it sees."

    def __init__(self):
        super().__init__(strength=1., start=0., stop=1.)
        self.steps = []

    def vector(self, step, record=None):
        self.steps.append(step)
        return torch.zeros_like(step.x)


@pytest.mark.parametrize("scheduler, alpha_of", [
    (DDIMScheduler(clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction"),
     lambda sigma: math.sqrt(1 - sigma ** 2)),
    (FlowMatchEulerDiscreteScheduler(), lambda sigma: 1 - sigma),
])
def test_what_a_guidance_sees(scheduler, alpha_of):
    watching = Watching()
    ours(scheduler, watching)
    assert len(watching.steps) >= STEPS - 1
    for step in watching.steps:
        assert step.alpha == pytest.approx(alpha_of(step.sigma), abs=1e-9)
        mixed = step.alpha * step.x0 + step.sigma * step.noise_pred
        torch.testing.assert_close(step.x, mixed, rtol=0, atol=1e-9)
        gain = step.alpha * VARIANCE / (step.alpha ** 2 * VARIANCE + step.sigma ** 2)
        expected = MEAN + gain * (step.x - step.alpha * MEAN)
        torch.testing.assert_close(step.x0, expected, rtol=0, atol=1e-6)


def test_the_push_of_a_flow_is_what_the_next_sample_moves():
    "The trace says how far a guidance moved the next sample."
    scheduler, seen = FlowMatchEulerDiscreteScheduler(), {}
    model = exact_denoiser(scheduler, torch.full((1, 1), MEAN, dtype=torch.float64), VARIANCE)
    for name, guidance in (("plain", NoGuidance()), ("guided", guide(4, 5))):
        after = []
        _, trace = sample(model, start(), scheduler, guidance, STEPS, trace=True,
                          callback=lambda i, t, x, x0, after=after: after.append(x.clone()))
        seen[name] = after
    moved = (seen["guided"][4] - seen["plain"][4]).abs().flatten()
    torch.testing.assert_close(trace[0]["push"], moved, rtol=1e-5, atol=1e-7)
    # By hand: from sigma .6 to .5, u' = u - .6 / .4 strength m, so x' moves by .1 * 1.5 strength m.
    torch.testing.assert_close(moved, .15 * STRENGTH * trace[0]["mode"], rtol=1e-5, atol=1e-7)


def test_the_noisy_mode_vector_of_a_flow_is_a_score():
    "(alpha c - x) / sigma^2 moves the clean sample to c - x / alpha, at strength 1."
    step = seen_step(FlowMatchEulerDiscreteScheduler())
    guidance = ModeGuidance(torch.full((5, 1), TARGET, dtype=torch.float64), space="xt")
    expected = (step.alpha * TARGET - step.x) / step.sigma ** 2
    torch.testing.assert_close(guidance.vector(step), expected)


def seen_step(scheduler):
    "A step of a chain."
    watching = Watching()
    ours(scheduler, watching)
    return watching.steps[3]


def test_no_signal_no_guidance():
    "Zero terminal SNR: v says something at the first step, and guidance begins at the second."
    scheduler = DDIMScheduler(
        clip_sample=False,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )
    watching = Watching()
    ours(scheduler, watching)
    assert [step.index for step in watching.steps] == list(range(1, STEPS))


# Folders, as `pretrain` writes them


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "A tiny backbone of each prediction, as a folder that the pipeline saved."
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny = tiny_backbone(prediction=kind)
        pipe = ManifoldGDPipeline(tiny.vae, tiny.transformer, tiny.scheduler, tiny.id2label)
        pipe.save_pretrained(folder / kind)
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "Two classes of random images."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    for name in ("0", "1"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i, image in enumerate(to_pil(torch.rand(14, 3, 16, 16, generator=generator) * 2 - 1)):
            image.save(tmp_path / "photos" / name / f"{i:02}.png")
    return tmp_path / "photos"


def settings(photos, model, **more):
    "Of a small run."
    return DistillConfig(**{
        "data": str(photos),
        "backbone": str(model),
        "ipc": 2,
        "num_inference_steps": 4,
        "device": "cpu",
        "out": str(photos.parent / "run"),
    } | more)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_opens_as_what_it_predicts(models, kind):
    backbone = open_backbone(str(models / kind))
    assert backbone.prediction.name == kind
    assert backbone.fingerprint() == tiny_backbone(prediction=kind).fingerprint()


@pytest.mark.filterwarnings("ignore:At step", "ignore:The finished latents")
@pytest.mark.parametrize("kind, sampler", zip(KINDS, ("ddpm", "ddpm", "flow-euler")))
def test_a_run_is_guided(models, photos, kind, sampler):
    run = distill(settings(photos, models / kind, trace=True), progress=False)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["config"]["scheduler"] == sampler
    assert len(list(run.rglob("images/*/*.png"))) == 4
    rows = (run / "trace.csv").read_text().splitlines()[1:]
    steps = {int(row.split(",")[1]) for row in rows}
    assert steps == ({0, 1} if kind != "velocity" else {1})


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_and_the_run_sample_alike(models, kind):
    "From the folder alone, and with the sampler that a run takes."
    backbone = load_backbone(str(models / kind))
    name = "flow-euler" if kind == "velocity" else "ddpm"
    loaded = ManifoldGDPipeline.from_pretrained(models / kind)
    made = make_scheduler(name, backbone)
    again = ManifoldGDPipeline(backbone.vae, backbone.transformer, made, backbone.id2label)
    loaded.scheduler = type(made).from_config(loaded.scheduler.config, timestep_spacing="linspace")
    images = []
    for pipe in (loaded, again):
        pipe.set_progress_bar_config(disable=True)
        own = [torch.Generator().manual_seed(k) for k in range(2)]
        images.append(pipe([0, 1], generator=own, num_inference_steps=4, output_type="latent")[0])
    torch.testing.assert_close(*images)


# What does not fit


@pytest.mark.parametrize("preset", ["mgd", "released"])
def test_presets_of_the_mean_rule_are_refused_on_flows(models, photos, preset):
    with pytest.raises(InputError, match=f"but `preset='{preset}'` moves the mean") as error:
        resolve(settings(photos, models / "velocity", preset=preset))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", ["manifoldgd", "paper", "dit", "decoded", "random"])
def test_the_other_presets_take_the_sampler_of_the_flow(models, photos, preset):
    assert resolve(settings(photos, models / "velocity", preset=preset)).scheduler == "flow-euler"
    assert resolve(settings(photos, models / "noise", preset=preset)).scheduler == "ddpm"


@pytest.mark.parametrize("kind, sampler, words", [
    ("velocity", "ddim", "to be 'flow-euler' with the flow model"),
    ("noise", "flow-euler", "ddim, dpm\\+\\+, unipc, euler with a backbone that predicts noise"),
    ("v", "flow-euler", "euler with a backbone that predicts v, but got 'flow-euler'"),
])
def test_a_sampler_of_the_other_kind_is_refused(models, photos, kind, sampler, words):
    with pytest.raises(InputError, match=words) as error:
        distill(settings(photos, models / kind, scheduler=sampler), progress=False)
    assert "\n" not in str(error.value)
    assert not (photos.parent / "run").exists()


def test_a_sampler_that_no_setting_knows(models):
    with pytest.raises(InputError, match="one of flow-euler, but got 'heun'"):
        make_scheduler("heun", load_backbone(str(models / "velocity")))
