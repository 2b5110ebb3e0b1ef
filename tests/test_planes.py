"""Planes without neighbors, profiles and windows: against closed forms, and through a whole run."""
import math

import pandas as pd
import pytest
import torch
from conftest import ROOT
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.backbones.predictions import level_at, prediction_of
from manifoldgd.config.presets import DistillConfig, guidance_settings, resolve
from manifoldgd.core import draw_noise, image_generator
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.geometry.neighborhood import Candidates
from manifoldgd.guidance.guidance import Guidance, Step, Window, log_snr, within_class_variance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.guidance.planes import ClassPlanes, ModelPlanes, class_spectrum
from manifoldgd.sampling.exact import exact_denoiser
from manifoldgd.sampling.loop import ask_with_jacobian, sample
from manifoldgd.sampling.pipeline import classifier_free
from manifoldgd.sampling.saving import load_guidance, save_guidance
from manifoldgd.sampling.schedulers import make_scheduler
from manifoldgd.sampling.trace import trace_table

SCHEDULES = {
    "noise": DDIMScheduler(clip_sample=False),
    "v": DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
    "velocity": FlowMatchEulerDiscreteScheduler(),
}


def randn(*shape, seed=0):
    "Standard normal numbers in float64."
    own = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=own, dtype=torch.float64)


def levels_of(schedule, t):
    "The factors alpha and sigma of a timestep."
    abar, scale = level_at(schedule, t)
    return scale * math.sqrt(abar), scale * math.sqrt(1 - abar)


def plane_of(model, x, schedule, t):
    "The model's plane at x, and abar."
    level = levels_of(schedule, t)
    ask = (torch.tensor(float(t)), prediction_of(schedule), level)
    _, vjp = ask_with_jacobian(model, x, *ask)
    abar = float(level_at(schedule, t)[0])
    scale = level[0] / math.sqrt(abar)
    step = Step(x, x, x, abar, 0, 50, scale=scale, vjp=vjp)
    return ModelPlanes()(step, 1.)[0], abar


# The model's plane, with exact denoisers

@pytest.mark.parametrize("predicts", SCHEDULES)
@pytest.mark.parametrize("t", (50, 400, 900))
def test_gaussian_whatever_is_predicted(predicts, t):
    "Of data N(m, s^2) the filter is abar s^2 / (abar s^2 + 1 - abar)."
    schedule, m = SCHEDULES[predicts], randn(5, 8, seed=1)
    model = exact_denoiser(schedule, randn(1, 8), .25)
    plane, abar = plane_of(model, randn(5, 8, seed=2), schedule, t)
    expected = abar * .25 / (abar * .25 + 1 - abar) * m
    torch.testing.assert_close(plane.tangent(m), expected, rtol=1e-6, atol=1e-6)


def test_modes_that_are_far_apart():
    "Half way between modes at -1 and 1 with s = .1 and abar = .9 the eigenvalue is 7.7."
    abar = SCHEDULES["noise"].alphas_cumprod
    t = int((abar - .9).abs().argmin())
    means = torch.tensor([[-1.], [1.]], dtype=torch.float64)
    model = exact_denoiser(SCHEDULES["noise"], means, .01)
    ones = torch.ones(1, 1, dtype=torch.float64)
    plane, a = plane_of(model, torch.zeros(1, 1, dtype=torch.float64), SCHEDULES["noise"], t)
    width = a * .01 + 1 - a
    variance = .01 * (1 - a) / width + ((1 - a) / width) ** 2  # within and between, at x = 0
    assert plane.unclipped(ones).item() == pytest.approx(a / (1 - a) * variance, rel=1e-6)
    assert plane.unclipped(ones).item() == pytest.approx(7.7, abs=.2)
    assert plane.tangent(ones).item() == pytest.approx(1.)


def test_points_on_a_plane_give_that_plane():
    "Many points of a flat cloud: nothing is left across it, whatever the noise."
    span = torch.linalg.qr(randn(10, 2)).Q.T
    model = exact_denoiser(SCHEDULES["noise"], randn(2000, 2, seed=1) @ span)
    x, m = randn(4, 2, seed=2) @ span, randn(4, 10, seed=3)
    for t in (100, 500, 900):
        plane, _ = plane_of(model, x, SCHEDULES["noise"], t)
        g = plane.tangent(m)
        torch.testing.assert_close(g, g @ span.T @ span, rtol=0, atol=1e-6)


def test_a_curve_gives_its_tangent():
    "A circle of points with little noise: along the tangent all is kept, across it little."
    angle = torch.linspace(0, 2 * math.pi, 4001, dtype=torch.float64)[:-1]
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    model, schedule = exact_denoiser(SCHEDULES["noise"], circle), SCHEDULES["noise"]
    t = 20
    x = levels_of(schedule, t)[0] * circle[:1]
    kept = []
    for vector in ([[0., 1.]], [[1., 0.]]):
        plane, _ = plane_of(model, x, schedule, t)
        kept.append(plane.unclipped(torch.tensor(vector, dtype=torch.float64)).norm().item())
    assert kept[0] == pytest.approx(1, abs=.02)
    assert kept[1] < .02


def test_a_mixture_by_the_law_of_total_covariance():
    schedule, means = SCHEDULES["noise"], randn(3, 4)
    x, m, t, s2 = randn(2, 4, seed=1), randn(2, 4, seed=2), 400, .3
    plane, a = plane_of(exact_denoiser(schedule, means, s2), x, schedule, t)
    width = a * s2 + 1 - a
    squares = torch.cdist(x, math.sqrt(a) * means).square()
    r = torch.softmax(-squares / (2 * width), 1)
    inside = means + math.sqrt(a) * s2 / width * (x[:, None] - math.sqrt(a) * means)
    off = inside - (r[..., None] * inside).sum(1, keepdim=True)
    between = torch.einsum("nk,nki,nkj->nij", r, off, off)
    covariance = between + s2 * (1 - a) / width * torch.eye(4)
    expected = a / (1 - a) * torch.einsum("nij,nj->ni", covariance, m)
    torch.testing.assert_close(plane.unclipped(m), expected, rtol=1e-6, atol=1e-8)


# The plane of a class

@pytest.mark.parametrize("n", (5, 40))
def test_a_class_filters_by_its_covariance(n):
    points, m = randn(n, 12) * torch.linspace(3, .1, 12), randn(4, 12, seed=1)
    step = Step(m, m, m, .2, 0, 50)
    filters, _ = ClassPlanes([class_spectrum(points)], [0] * 4)(step, 0.)
    sigma = torch.cov(points.T, correction=0)
    wiener = .2 * sigma @ torch.linalg.inv(.2 * sigma + .8 * torch.eye(12))
    torch.testing.assert_close(filters.tangent(m), m @ wiener, rtol=1e-6, atol=1e-9)
    trace = filters.weights.square().sum(1)
    torch.testing.assert_close(trace, (wiener @ wiener).trace().expand(4))


@pytest.mark.parametrize("precision", (torch.float32, torch.float64))
@pytest.mark.parametrize("n", (4, 30))
def test_images_that_are_there_twice_make_no_directions(n, precision):
    "In both precisions, with fewer points than dimensions and more: the same filter as without."
    points, m = randn(n, 16).to(precision), randn(2, 16, seed=1).to(precision)
    kept = []
    for latents in (points, points.repeat(3, 1)):
        filters, _ = ClassPlanes([class_spectrum(latents)], [0, 0])(Step(m, m, m, .5, 0, 9), 0.)
        kept.append(filters.tangent(m))
    torch.testing.assert_close(*kept, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", (torch.float32, torch.float64))
def test_a_class_of_copies_and_of_one_keep_nothing(precision):
    for points in (randn(1, 6).expand(9, 6).to(precision), randn(1, 6).to(precision)):
        m = randn(2, 6).to(precision)
        filters, _ = ClassPlanes([class_spectrum(points)], [0, 0])(Step(m, m, m, .5, 0, 9), 0.)
        assert filters.tangent(m).abs().max() < 1e-12


def test_samples_of_a_batch_are_filtered_by_their_own_class():
    spectra = [class_spectrum(randn(n, 6, seed=n)) for n in (4, 20)]
    m, which = randn(5, 6), [1, 0, 1, 1, 0]
    together = ClassPlanes(spectra, which)(Step(m, m, m, .5, 0, 9), 0.)[0]
    for b, k in enumerate(which):
        one = m[b:b + 1]
        alone = ClassPlanes([spectra[k]], [0])(Step(one, one, one, .5, 0, 9), 0.)[0]
        torch.testing.assert_close(together.tangent(m)[b:b + 1], alone.tangent(one))
        torch.testing.assert_close(together.distance(m)[b:b + 1], alone.distance(one))


# Through the sampler

@pytest.mark.parametrize("predicts", SCHEDULES)
def test_class_and_model_guide_alike_on_normal_data(predicts):
    "The whole chain, on data whose class covariance is exactly that of the denoiser."
    span = torch.linalg.qr(randn(6, 6)).Q
    points = torch.cat([span, -span]) * math.sqrt(6) * .5  # covariance .25 I about 0
    candidates = Candidates(points.expand(3, 12, 6), torch.zeros(3, 12), torch.ones(3))
    schedule, start, targets = SCHEDULES[predicts], randn(3, 6), randn(3, 6, seed=1)
    model = exact_denoiser(schedule, torch.zeros(1, 6), .25)
    ends = []
    for planes in ("class", "model"):
        guide = ManifoldGuidance(targets, candidates, planes=planes, strength=.3, stop=1.)
        ends.append(sample(model, start, schedule, guide, 10)[0])
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-6)
    assert (ends[0] - sample(model, start, schedule, num_inference_steps=10)[0]).norm() > .01


def tiny_run(planes, steps=6, scale=4.):
    "Three guided samples of a tiny network, and their trace."
    tiny = tiny_backbone()
    noise = draw_noise(tiny.latent_shape, [image_generator(0, "owl", k) for k in range(3)])
    dim = noise[0].numel()
    candidates = Candidates(randn(3, 20, dim).float(), torch.ones(3, 20), torch.ones(3))
    targets = randn(3, dim, seed=1).float()
    guide = ManifoldGuidance(targets, candidates, planes=planes)
    model = classifier_free(tiny.transformer, torch.tensor([0, 1, 2]), scale)
    x, records = sample(model, noise, make_scheduler("ddim", tiny), guide, steps, trace=True)
    return x, trace_table(records)


@pytest.mark.filterwarnings("ignore:At step")
@pytest.mark.parametrize("planes", ("neighbors", "class", "model"))
def test_every_kind_runs_and_leaves_a_trace(planes):
    x, table = tiny_run(planes)
    assert x.isfinite().all()
    assert {"mode", "kept", "coefficient"} <= set(table)
    assert ("unclipped" in table) == (planes == "model")
    assert (table.kept <= 1 + 1e-4).all()


@pytest.mark.filterwarnings("ignore:At step")
def test_only_the_conditional_half_of_a_guided_step_has_a_graph(monkeypatch):
    "One call per unguided step; with the Jacobian two, the conditional first and alone in a graph."
    seen = []
    tiny = tiny_backbone()
    forward = type(tiny.transformer).forward

    def watched(self, x, *args, **kwargs):
        seen.append((len(x), torch.is_grad_enabled() and x.requires_grad))
        return forward(self, x, *args, **kwargs)

    monkeypatch.setattr(type(tiny.transformer), "forward", watched)
    tiny_run("model", steps=4)
    assert seen == [(3, True), (3, False)] * 2 + [(6, False)] * 2
    seen.clear()
    tiny_run("model", steps=4, scale=1.)
    assert seen == [(3, True)] * 2 + [(3, False)] * 2


def test_the_jacobian_is_that_of_the_conditional_prediction():
    "Against finite differences of the conditional clean sample, summed with a weight."
    tiny = tiny_backbone()
    tiny.transformer.double()
    schedule, labels, t = make_scheduler("ddim", tiny), torch.tensor([1, 2]), torch.tensor(600)
    x, v = randn(2, *tiny.latent_shape), randn(2, *tiny.latent_shape, seed=1)
    alpha, sigma = levels_of(schedule, 600)

    def clean(x):
        with torch.no_grad():
            noise = tiny.transformer(x, timestep=t.expand(2), class_labels=labels).sample
        return (x - sigma * noise) / alpha

    model = classifier_free(tiny.transformer, labels, 4.)
    _, vjp = ask_with_jacobian(model, x, t, prediction_of(schedule), (alpha, sigma))
    found, u, h = vjp(v.flatten(1)), randn(2, *tiny.latent_shape, seed=2), 1e-5
    slope = (clean(x + h * u) - clean(x - h * u)) / (2 * h)
    inner = (slope * v).flatten(1).sum(1)
    torch.testing.assert_close((found * u.flatten(1)).sum(1), inner, rtol=1e-6, atol=1e-8)


# Profiles and windows

def test_the_coefficient_is_what_moves_the_clean_sample():
    "By the trace, against (sigma^2 / alpha) strength x profile from the schedule."
    schedule = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    model, start = exact_denoiser(schedule, torch.zeros(1, 4), .25), randn(2, 4)
    for profile in ("constant", "snr"):
        guide = ModeGuidance(randn(2, 4), strength=.2, profile=profile, variance=.25, stop=1.)
        _, records = sample(model, start, schedule, guide, 8, trace=True)
        for record in records:
            a = schedule.alphas_cumprod[record["t"]].item()
            gain = a * .25 / (a * .25 + 1 - a) if profile == "snr" else 1
            expected = (1 - a) / math.sqrt(a) * .2 * gain
            assert record["coefficient"] == pytest.approx(expected, rel=1e-5)


def test_the_coefficient_of_the_mean_rule_is_that_of_an_equal_push():
    tiny = tiny_backbone()
    ddpm = make_scheduler("ddpm", tiny)
    step = Step(None, None, None, .3, 0, 50, .4, score_move=.2, step_noise=.5)
    strength = Guidance(strength=.1, apply="mean").coefficient(step) / (.7 / math.sqrt(.3))
    assert strength * step.score_move == pytest.approx(.1 * step.step_noise)
    assert ddpm.config.prediction_type == "epsilon"


def test_the_snr_profile_forgets_the_prototype_under_noise():
    "Its coefficient is small at both ends, where the constant one is not."
    guide = ModeGuidance(randn(1, 4), strength=1., profile="snr", variance=.25)
    ends = [guide.coefficient(Step(None, None, None, a, 0, 50)) for a in (1e-5, .3, 1 - 1e-5)]
    assert ends[0] < .01 < ends[1] > .01 > ends[2]


def test_a_window_in_log_snr_guides_the_same_noise_on_every_path():
    "The guided levels of a diffusion and of a flow, read in the traces."
    for predicts, schedule in SCHEDULES.items():
        model = exact_denoiser(schedule, torch.zeros(1, 4), .25)
        guide = ModeGuidance(randn(1, 4), stop=1., log_snr_start=-2., log_snr_stop=1.)
        _, records = sample(model, randn(1, 4), schedule, guide, 40, trace=True)
        guided = {record["t"] for record in records}
        inside = {int(t) for t in schedule.timesteps
                  if -2 <= log_snr(float(level_at(schedule, t)[0])) < 1}
        assert guided == inside, predicts
        assert guided


def test_log_snr_and_windows_at_the_ends():
    assert [log_snr(level) for level in (0., .5, 1.)] == [-math.inf, 0., math.inf]
    assert Window(log_snr_start=0.).holds(math.inf)
    assert not Window(log_snr_stop=0.).holds(0.)


def test_variance_within_classes_is_the_pooled_one():
    classes = [randn(n, 3, 2, seed=n) + 10 * n for n in (2, 5, 1)]
    squares = sum(z.var(0).sum().item() * (len(z) - 1) for z in classes if len(z) > 1)
    assert within_class_variance(classes) == pytest.approx(squares / (5 * 6))
    assert within_class_variance([randn(1, 4)]) == 0


# Settings, and a run

def test_settings_of_neighbors_are_read_by_no_other_planes():
    with pytest.raises(InputError, match="`ridge` not to be given with `planes='model'`"):
        resolve(DistillConfig(planes="model", ridge=1.))
    with pytest.raises(InputError, match="`planes` not to be given with `guidance='mode'`"):
        resolve(DistillConfig(preset="mgd", planes="class"))
    with pytest.raises(InputError, match="`log_snr_start` to be at most `log_snr_stop`"):
        resolve(DistillConfig(log_snr_start=1., log_snr_stop=0.))
    by_class = guidance_settings(resolve(DistillConfig(planes="class")))
    assert {"planes", "projection", "strength"} <= set(by_class)
    assert not {"n_neighbors", "ridge", "noise", "n_points"} & set(by_class)


def test_what_planes_cannot_do_without():
    with pytest.raises(InputError, match="`variance` with `profile='snr'`"):
        ModeGuidance(randn(1, 4), profile="snr")
    candidates = Candidates(randn(1, 5, 4), torch.zeros(1, 5), torch.ones(1))
    with pytest.raises(InputError, match="`setting` to be one of"):
        ManifoldGuidance(randn(1, 4), candidates, planes="class", n_neighbors=3)
    with pytest.raises(InputError, match="`planes` to be one of neighbors, class, model"):
        ManifoldGuidance(randn(1, 4), candidates, planes="tangent")


@pytest.mark.parametrize("planes", ("class", "model"))
def test_a_guidance_comes_back_from_its_folder(planes, tmp_path):
    candidates = Candidates(randn(2, 9, 4), torch.zeros(2, 9), torch.ones(2))
    guide = ManifoldGuidance(randn(2, 4), candidates, planes=planes, profile="snr", variance=.3,
                             kernel="imq", log_snr_start=-3.)
    save_guidance(guide, tmp_path)
    loaded, x = load_guidance(tmp_path), randn(2, 4, seed=3)
    step = Step(x, x, x, .4, 3, 50, vjp=lambda v: .5 * v)
    torch.testing.assert_close(loaded.vector(step), guide.vector(step), rtol=0, atol=0)
    assert loaded.strength_at(step) == guide.strength_at(step)
    assert [loaded.active(0, 9, level) for level in (-4., 0.)] == [False, True]


@pytest.mark.parametrize("planes", ("class", "model"))
def test_a_run_with_each_kind(planes, tmp_path):
    "The digits, by the command's own settings; the trace says what was done."
    config = DistillConfig(classes="3,7", ipc=1, planes=planes, profile="snr", strength=3.,
                           stop=1., log_snr_start=-4., num_inference_steps=8, trace=True,
                           out=str(tmp_path / "run"))
    run = distill(config)
    table = pd.read_csv(tmp_path / "run" / "trace.csv")
    assert len(list((tmp_path / "run" / "images").rglob("*.png"))) == 2
    assert (table.coefficient > 0).all()
    assert 0 < len(table) < 16, run


def test_a_sample_is_moved_to_the_given_distance(monkeypatch):
    "Straight toward its prototype; one that is nearer stays where it is."
    monkeypatch.syspath_prepend(ROOT / "experiments")
    from controls import moved_toward

    latents, prototypes = randn(3, 2, 2), randn(3, 4, seed=1)
    before = latents.flatten(1) - prototypes
    length = before.norm(dim=1)
    moved = moved_toward(latents, prototypes, length.median()).flatten(1) - prototypes
    torch.testing.assert_close(moved.norm(dim=1), length.clamp(max=length.median()))
    torch.testing.assert_close(torch.cosine_similarity(moved, before), torch.ones(3).double())
    torch.testing.assert_close(moved_toward(latents, prototypes, 1e6), latents)


def test_settings_of_the_search_are_valid_and_depend_on_their_number_alone(monkeypatch):
    "As many for every preset; each resolves; strengths lie in the space of their profile."
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import tuning

    for preset in tuning.SPACES:
        drawn = [tuning.setting_of(preset, n) for n in range(60)]
        assert drawn == [tuning.setting_of(preset, n) for n in range(60)]
        assert len({str(settings) for settings in drawn}) > (20 if preset == "dit" else 55)
        for settings in drawn:
            config = resolve(DistillConfig(preset=preset, **settings))
            assert config.scheduler == "ddpm"
            if config.guidance != "none":
                low, high = tuning.STRENGTHS[config.profile]
                assert low <= config.strength <= high


def test_the_best_of_the_first_settings(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "experiments")
    import tuning

    runs = [f"runs/tuning/mgd{n}-ipc{ipc}-seed1000" for n in range(3) for ipc in (1, 10)]
    rows = pd.DataFrame({"run": runs, "top1_last": [50., 90., 70., 80., 40., 60.]})
    means = tuning.best_so_far(rows)
    assert means.top1_last.tolist() == [70., 75., 50.]
    assert means.best.tolist() == [70., 75., 75.]
