"""The trace refuses what has no shift or no picture, and draws only what its guidance knows."""
import math
import subprocess
import sys

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from conftest import ROOT
from diffusers import DDIMScheduler

from manifoldgd.errors import InputError
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.sampling.exact import exact_denoiser
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.trace import PANELS, expected_shift, plot_trace, trace_table

DDIM = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")


def mode_trace():
    "The trace of two samples under mode guidance."
    guide = ModeGuidance(torch.full((2, 1), 2.))
    noise = torch.randn(2, 1, generator=torch.Generator().manual_seed(0))
    eps_model = exact_denoiser(DDIM, torch.ones(1, 1), .25)
    return sample(eps_model, noise, DDIM, guide, 10, trace=True)[1]


@pytest.mark.parametrize("variance", [-1., math.nan, math.inf])
def test_a_variance_that_is_none(variance):
    with pytest.raises(InputError, match="`variance` to be at least 0, but got"):
        expected_shift(DDIM, variance=variance)


def test_a_guidance_that_does_not_fit_the_scheduler():
    with pytest.raises(ValueError, match="DDPMScheduler"):
        expected_shift(DDIM, apply="mean")


def test_an_empty_trace():
    assert trace_table([]).empty
    with pytest.raises(InputError, match="trace of guided samples, but got an empty one"):
        plot_trace(pd.DataFrame())


def test_names_of_samples_stand_in_every_step():
    trace = mode_trace()
    assert trace_table(trace, ["a", "b"]).image.tolist() == ["a", "b"] * 5
    assert trace_table(trace).image.tolist() == [0, 1] * 5


def test_a_trace_without_planes_is_drawn_without_them():
    fig = plot_trace(trace_table(mode_trace()))
    titles = [ax.get_title() for ax in fig.axes]
    plt.close(fig)
    assert titles == [PANELS[name] for name in ("mode", "x0", "push_to_noise")]


def test_a_single_column_is_drawn():
    fig = plot_trace(pd.DataFrame({"step": [0, 0, 1, 1], "image": [0, 1, 0, 1], "x0": 4 * [1.]}))
    assert [ax.get_title() for ax in fig.axes] == [PANELS["x0"]]
    plt.close(fig)


def test_a_table_is_made_without_the_drawing_library():
    code = "import sys, manifoldgd.sampling.trace; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert "manifoldgd.sampling.trace" in loaded, done.stderr
    assert "matplotlib.pyplot" not in loaded
