"""The loop and the pipeline refuse what does not fit, and name the samples that are lost."""
import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.errors import InputError
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import NoGuidance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.sampling.exact import exact_denoiser
from manifoldgd.sampling.loop import NotFinite, sample
from manifoldgd.sampling.pipeline import ManifoldGDPipeline, classifier_free
from manifoldgd.sampling.schedulers import SCHEDULERS, make_scheduler

DDIM = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
NOISE = torch.randn(5, 1, generator=torch.Generator().manual_seed(0))
EXACT = exact_denoiser(DDIM, torch.ones(1, 1), .25)


@pytest.mark.parametrize("eps_model, guidance, steps, words", [
    (EXACT, ModeGuidance(torch.ones(5, 2)), 50, "prototypes of 1 numbers, as the samples have"),
    (EXACT, ModeGuidance(torch.ones(4, 1)), 50, "one prototype per sample, but got 4 for 5"),
    (EXACT, ModeGuidance(torch.ones(5, 1), apply="mean"), 50, "DDPMScheduler"),
    (EXACT, ModeGuidance(torch.ones(5, 1)), 0, "`num_inference_steps` to be at least 1"),
    (lambda x, t: x.expand(5, 3), ModeGuidance(torch.ones(5, 1)), 50, "(5, 1), but got (5, 3)"),
])
def test_what_does_not_fit(eps_model, guidance, steps, words):
    with pytest.raises(ValueError) as error:
        sample(eps_model, NOISE, DDIM, guidance, steps)
    assert words in str(error.value)


def test_a_learned_variance_that_the_model_does_not_give():
    scheduler = DDPMScheduler(clip_sample=False, variance_type="learned_range")
    with pytest.raises(InputError, match="noise and a learned variance"):
        sample(EXACT, NOISE, scheduler)


def test_a_strength_that_is_no_number():
    guide = ModeGuidance(torch.ones(5, 1))
    guide.strength = math.nan
    with pytest.raises(NotFinite, match="5 of 5 are not") as error:
        sample(EXACT, NOISE, DDIM, guide)
    assert error.value.samples == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def pipe():
    tiny = tiny_backbone()
    names = {0: "cat", 1: "dog", 2: "owl"}
    made = ManifoldGDPipeline(tiny.vae, tiny.transformer, make_scheduler("ddim", tiny), names)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("labels, settings, words", [
    (["fox"], {}, "numbers or names of the model's classes, but got 'fox'"),
    ([3], {}, "between 0 and 2, but got \\[3\\]"),
    ([-1], {}, "between 0 and 2, but got \\[-1\\]"),
    ([0], {"generator": [torch.Generator()] * 2}, "2 generators for 1 labels"),
    ([0, 1], {"guidance": ModeGuidance(torch.ones(3, 4, 8, 8))}, "but got 3 for 2 samples"),
])
def test_what_the_pipeline_refuses(pipe, labels, settings, words):
    with pytest.raises(InputError, match=words):
        pipe(labels, num_inference_steps=2, **settings)


# What a step waits for: on the device `meta` tensors have no values, and reading one is an error.

LATENTS = torch.randn(2, 20, 4, 8, 8, generator=torch.Generator().manual_seed(0))
FOUND = stack_candidates([find_candidates(z.mean(0), z) for z in LATENTS])
GUIDANCES = {
    "none": NoGuidance(),
    "mode": ModeGuidance(LATENTS.mean(1), stop=1.),
    "mode with a kernel": ModeGuidance(LATENTS.mean(1), FOUND.spread, kernel="imq", stop=1.),
    "manifold": ManifoldGuidance(LATENTS.mean(1), FOUND, stop=1., tangent_dim=3),
}


class LastStep(Exception):
    "Raised after the last step, before the one look at the samples that the loop takes."


@pytest.fixture(scope="module")
def far_away():
    "A backbone whose denoiser has no values."
    tiny = tiny_backbone(learned_variance=True)
    tiny.transformer.to("meta")
    return tiny


@pytest.mark.parametrize("guidance", GUIDANCES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_step_reads_a_sample(name, guidance, far_away):
    labels = torch.tensor([0, 1], device="meta")
    model = classifier_free(far_away.transformer, labels, cfg_stop=.5)
    own = [torch.Generator().manual_seed(k) for k in range(2)]

    def stop(i, t, x, x0):
        assert x.device.type == x0.device.type == "meta"
        if i == 3:
            raise LastStep

    noise, scheduler = torch.zeros(2, 4, 8, 8, device="meta"), make_scheduler(name, far_away)
    with pytest.raises(LastStep):
        sample(model, noise, scheduler, GUIDANCES[guidance], 4, own, stop)


def test_a_step_that_reads_a_sample_is_noticed(far_away):
    class Reading(ModeGuidance):
        def vector(self, step, record=None):
            return super().vector(step) * float(step.x0.norm())

    model = classifier_free(far_away.transformer, torch.tensor([0, 1], device="meta"))
    noise = torch.zeros(2, 4, 8, 8, device="meta")
    with pytest.raises(RuntimeError, match="meta"):
        sample(model, noise, DDIM, Reading(LATENTS.mean(1)), 4)
