"""Bad input to the sampling chapter: schedulers that are unknown, or that would spoil samples."""
import pytest
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.errors import InputError
from manifoldgd.sampling.schedulers import SCHEDULERS, check_scheduler, make_scheduler


@pytest.mark.parametrize("name", ["pndm", "DDIM", "", None])
def test_an_unknown_sampler_is_refused(name):
    with pytest.raises(InputError, match="one of ddpm, ddim, dpm.*, unipc, euler, but got"):
        make_scheduler(name, tiny_backbone())


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_what_is_made_here_is_accepted(name, learned):
    check_scheduler(make_scheduler(name, tiny_backbone(learned_variance=learned)))


FITTING = {"clip_sample": False}


@pytest.mark.parametrize("scheduler, words", [
    (FlowMatchEulerDiscreteScheduler(stochastic_sampling=True), "has `stochastic_sampling`"),
    (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "has `invert_sigmas`"),
    (FlowMatchHeunDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler for a flow, but got"),
    (EulerDiscreteScheduler(prediction_type="sample"), "EulerDiscreteScheduler .sample."),
    (DDIMScheduler(), "the DDIMScheduler has one of them on: it would cut every latent"),
    (DDPMScheduler(), "the DDPMScheduler has one of them on"),
    (DDPMScheduler(thresholding=True, **FITTING), "the DDPMScheduler has one of them on"),
    (DDPMScheduler(variance_type="learned", **FITTING), 'or "learned_range", but got "learned"'),
    (
        DPMSolverMultistepScheduler(variance_type="learned_range"),
        "but the DPMSolverMultistepScheduler has 'learned_range': .* three channels",
    ),
])
@pytest.mark.parametrize("apply", ["score", "mean"])
def test_a_scheduler_that_spoils_samples_is_refused(scheduler, words, apply):
    with pytest.raises(InputError, match=words):
        check_scheduler(scheduler, apply)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "ddpm"])
def test_the_rule_mean_is_for_ddpm(name):
    scheduler = make_scheduler(name, tiny_backbone())
    check_scheduler(scheduler, "score")
    with pytest.raises(InputError, match=f'`apply="mean"`, but got {type(scheduler).__name__}'):
        check_scheduler(scheduler, "mean")


def test_the_rule_mean_fits_ddpm():
    check_scheduler(make_scheduler("ddpm", tiny_backbone()), "mean")


def test_a_learned_variance_is_left_to_schedulers_that_do_not_know_it():
    "DDIM takes no `variance_type`, so a saved one does no harm."
    config = tiny_backbone(learned_variance=True).scheduler.config
    check_scheduler(DDIMScheduler.from_config(config, **FITTING))
