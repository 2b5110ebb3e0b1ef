"""In a step of the sampler nothing waits for the device but the factorization of the planes.

Seen is what is computed from samples, prototypes and candidates. What a scheduler of diffusers
makes anew on the device is not: UniPC solves a system of two equations there at every step.
"""
from collections import Counter

import pytest
import torch

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import NoGuidance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import classifier_free
from manifoldgd.sampling.schedulers import SCHEDULERS, make_scheduler

B, SHAPE, STEPS, GUIDED = 3, (4, 8, 8), 4, 2
WAITS = {  # where the processor has to know a number that a GPU has computed
    "__bool__", "__float__", "__index__", "__int__", "argwhere", "cpu", "equal", "item",
    "linalg_eigh", "linalg_svd", "linalg_svdvals", "masked_select", "nonzero", "numpy", "tolist",
    "unique",
}


class OnDevice(torch.Tensor):
    "A tensor that stands for one on a GPU: so is all that is computed from it."

    counts = Counter()

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        name = function.__name__
        to_cpu = name == "to" and "cpu" in map(str, arguments[1:])
        if name in WAITS or to_cpu:
            cls.counts[name] += 1
        return super().__torch_function__(function, types, arguments, options or {})


def on_device(x):
    "Put a tensor where its use is counted."
    return x.as_subclass(OnDevice)


@pytest.fixture(scope="module")
def tiny():
    "A backbone."
    return tiny_backbone()


def new_guidance(kind):
    "A guidance by random latents on the device."
    latents = torch.randn(B, 40, *SHAPE, generator=torch.Generator().manual_seed(0))
    points = latents.mean(1)
    found = stack_candidates([find_candidates(p, z) for p, z in zip(points, latents)])
    if kind == "none":
        return NoGuidance()
    if kind == "mode":
        return ModeGuidance(on_device(points), on_device(found.spread), stop=GUIDED / STEPS)
    guidance = ManifoldGuidance(
        on_device(points), found, stop=GUIDED / STEPS, noise="predicted", tangent_dim=3)
    candidates = guidance.planes.candidates
    for name, value in vars(candidates).items():
        setattr(candidates, name, on_device(value))
    return guidance


def waits(backbone, scheduler, kind, steps):
    "Count how often a run waits for the device, by the names of functions."
    OnDevice.counts.clear()
    noise = torch.randn(B, *SHAPE, generator=torch.Generator().manual_seed(1))
    model = classifier_free(backbone.transformer, torch.tensor([0, 1, 2]), 2.)
    own = [torch.Generator().manual_seed(b) for b in range(B)]
    sample(model, on_device(noise), make_scheduler(scheduler, backbone), new_guidance(kind), steps,
           own)
    return Counter(OnDevice.counts)


@pytest.mark.filterwarnings("ignore:At step")  # of strengths: random networks know no good one
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("kind, guided", [("none", {}), ("mode", {}),
                                          ("manifold", {"linalg_eigh": 1})])
def test_a_step_waits_for_the_planes_alone(tiny, scheduler, kind, guided):
    "Twice as many steps: what comes more is of the steps, half of which are guided."
    more = waits(tiny, scheduler, kind, 2 * STEPS) - waits(tiny, scheduler, kind, STEPS)
    assert more == Counter({name: GUIDED * times for name, times in guided.items()})


@pytest.mark.filterwarnings("ignore:At step")
def test_the_end_of_a_chain_waits(tiny):
    "The counting works: whether all samples are finite is asked once, and how far they went."
    counts = waits(tiny, "ddim", "mode", STEPS)
    assert counts["__bool__"] == 1
    assert sum(counts.values()) <= 4
