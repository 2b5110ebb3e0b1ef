"""How networks compute: types, memory layout, and a compiler that changes nothing else."""
from functools import partialmethod

import pytest
import torch

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.distillation.makers import make_maker
from manifoldgd.sampling.networks import prepare_networks

LABELS = {"timestep": torch.tensor([500, 500]), "class_labels": torch.tensor([0, 1])}
X = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def predict(backbone):
    with torch.no_grad():
        x = X.to(backbone.transformer.dtype)
        return backbone.transformer(x, **LABELS).sample.float()


def test_nothing_is_changed_by_default():
    tiny = tiny_backbone()
    before = tiny.fingerprint()
    assert prepare_networks(tiny) is tiny
    assert tiny.fingerprint() == before
    assert tiny.transformer.dtype == tiny.vae.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_type_is_that_of_the_denoiser_alone(dtype):
    tiny = tiny_backbone()
    exact = predict(tiny)
    prepare_networks(tiny, str(dtype).removeprefix("torch."))
    assert tiny.transformer.dtype == dtype
    assert tiny.vae.dtype == torch.float32
    difference = (predict(tiny) - exact).norm() / exact.norm()
    assert 0 < difference < .02


def test_the_layout_is_that_of_the_vae():
    tiny = tiny_backbone()
    prepare_networks(tiny, channels_last=True)
    weight = tiny.vae.decoder.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_a_compiled_denoiser_predicts_the_same(monkeypatch):
    "The code is traced, but run as it is: to translate it takes minutes and a C++ compiler."
    traced = partialmethod(torch.nn.Module.compile, backend="eager")
    monkeypatch.setattr(torch.nn.Module, "compile", traced)
    tiny = tiny_backbone()
    exact, names = predict(tiny), list(tiny.transformer.state_dict())
    prepare_networks(tiny, compile=True)
    assert tiny.transformer._compiled_call_impl is not None
    torch.testing.assert_close(predict(tiny), exact)
    assert list(tiny.transformer.state_dict()) == names, "Expected to be saved as before."


def test_a_run_asks_for_it():
    tiny = tiny_backbone()
    config = resolve(DistillConfig(preset="dit", dtype="bfloat16", channels_last=True))
    data = type("Data", (), {"classes": ()})
    maker = make_maker(config, data, tiny, [])
    assert maker.backbone.transformer.dtype == torch.bfloat16
