"""MinMaxDiff: its terms by hand, its training after a stop, and what is kept of it."""
import copy
import dataclasses
import os
import shutil
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import SLOW
from safetensors.torch import load
from test_distillation import contents, lab  # noqa: F401

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.errors import InputError
from manifoldgd.references import minimax
from manifoldgd.references.minimax import (
    Memories,
    Tuned,
    average_decay,
    expect_labels,
    fine_tune,
    memory_terms,
    minimax_loss,
    noise_batch,
    tuned_names,
)
from manifoldgd.sharing.card import card_settings, describe_making
from manifoldgd.sharing.origin import is_read


def cosine(a, b):
    "The cosine of two vectors, in float64."
    a, b = a.numpy().astype(float), b.numpy().astype(float)
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def test_terms_are_those_of_the_equations():
    "Every pair by itself, in float64, for memories of different sizes."
    generator = torch.Generator().manual_seed(0)
    classes = torch.tensor([2, 0, 2, 1, 2])
    predicted = torch.randn(5, 7, generator=generator)
    real, earlier = Memories(3, 4, 7), Memories(3, 4, 7)
    for c, (m, n) in enumerate([(3, 1), (0, 0), (2, 4)]):
        real.remember(c, torch.randn(m, 7, generator=generator))
        earlier.remember(c, torch.randn(n, 7, generator=generator))

    lowest, highest = [], []
    for c in (0, 2):
        own = [x for x, k in zip(predicted, classes) if k == c]
        lowest.append(min(cosine(x, m) for x in own for m in real.of_class(c)))
        highest.append(max(cosine(x, m) for x in own for m in earlier.of_class(c)))
    terms = memory_terms(predicted, classes, real, earlier)
    assert terms[0].item() == pytest.approx(sum(1 - low for low in lowest) / 3, abs=1e-6)
    assert terms[1].item() == pytest.approx(sum(highest) / 3, abs=1e-6)


def test_a_memory_keeps_the_newest():
    memory = Memories(1, 4, 1)
    for start, stop in ((0, 3), (3, 4), (4, 10), (10, 11)):
        memory.remember(0, torch.arange(float(start), stop)[:, None])
        kept = sorted(memory.of_class(0).flatten().tolist())
        assert kept == list(range(max(0, stop - 4), stop))


def test_what_is_remembered_has_no_gradient():
    memory = Memories(1, 2, 3)
    x = torch.ones(1, 3, requires_grad=True)
    memory.remember(0, 2 * x)
    assert not memory.of_class(0).requires_grad


@pytest.fixture
def setting():
    "A tiny backbone with a learned variance, and latents of three classes."
    backbone = tiny_backbone(learned_variance=True)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(24, *backbone.latent_shape, generator=generator)
    return backbone, latents, torch.arange(24) % 3


def settings(**changes):
    "Settings of a short fine-tuning."
    return resolve(DistillConfig(preset="minimax", tune_epochs=4, memory=5, **changes))


def test_a_batch_is_compared_with_earlier_ones_only(setting):
    "The first loss has no terms, the second one those of the first batch."
    backbone, latents, classes = setting
    model = Tuned(backbone.denoiser, 3, 64, latents[0].numel())
    losses = []
    for seed in (0, 1):
        for weights in ((0., 0.), (1., 1.)):
            generator = torch.Generator().manual_seed(seed)
            batch = noise_batch(latents[:8], classes[:8], backbone, generator)
            trial = copy.deepcopy(model)
            inputs = (trial, batch, classes[:8], backbone.prediction)
            losses.append(minimax_loss(*inputs, *weights).item())
        model = trial
    assert losses[0] == losses[1]
    assert losses[3] != losses[2]
    assert model.real.count.tolist() == [6, 6, 4]
    last = model.real.latents[0, 3:6]  # of the second batch, after three of the first
    torch.testing.assert_close(last, latents[:8][classes[:8] == 0].flatten(1))


def test_gradients_reach_what_is_tuned_and_nothing_else(setting):
    backbone, latents, classes = setting
    model = Tuned(backbone.denoiser, 3, 64, latents[0].numel()).train()
    for seed in (0, 1):
        batch = noise_batch(latents, classes, backbone, torch.Generator().manual_seed(seed))
        loss = minimax_loss(model, batch, classes, backbone.prediction)
    loss.backward()
    moved = {n for n, p in model.denoiser.named_parameters() if p.grad is not None}
    assert moved == set(tuned_names(model.denoiser))
    variance = model.denoiser.proj_out_2.bias.grad.reshape(4, 8)[:, 4:]  # patches of 2 x 2
    assert not variance.any()
    assert not any(p.grad is not None for p in backbone.denoiser.parameters())


@pytest.mark.parametrize("kind", ["noise", "v", "velocity"])
def test_the_clean_sample_is_found_whatever_the_network_predicts(kind):
    "A network that is right has the real latent in mind, so what is remembered is that."
    backbone = tiny_backbone(prediction=kind)
    latents = torch.randn(6, *backbone.latent_shape, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(6, dtype=torch.long)
    batch = noise_batch(latents, classes, backbone, torch.Generator().manual_seed(1))
    right = {
        "noise": batch.noise,
        "v": batch.alpha * batch.noise - batch.sigma * batch.clean,
        "velocity": batch.noise - batch.clean,
    }[kind]
    model = Tuned(backbone.denoiser, 1, 64, latents[0].numel())
    monkey = torch.nn.Module()
    monkey.forward = lambda *_, **told: SimpleNamespace(sample=right)
    model.denoiser = monkey
    assert minimax_loss(model, batch, classes, backbone.prediction).item() < 1e-9
    own, wanted = model.earlier.latents[0, :6], latents.flatten(1)
    tolerance = 1e-3 / batch.alpha.min().item()
    torch.testing.assert_close(own, wanted, rtol=0, atol=tolerance)


def test_a_fine_tuning_that_was_stopped_ends_with_the_same_weights(setting, tmp_path, monkeypatch):
    "The memories are part of the checkpoint: without them the terms would be others."
    backbone, latents, classes = setting
    rest = (backbone, latents, classes, [0, 1, 2])
    whole = fine_tune(*rest, settings(), tmp_path / "whole").state_dict()

    calls = []

    def stopped(*inputs):
        calls.append(1)
        if len(calls) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return minimax_loss(*inputs)

    monkeypatch.setattr(minimax, "minimax_loss", stopped)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(*rest, settings(), tmp_path / "stopped")
    resumed = fine_tune(*rest, settings(), tmp_path / "stopped").state_dict()
    assert len(calls) == 12  # 4 epochs of 3 batches, none twice
    for name in whole:
        assert torch.equal(resumed[name], whole[name]), name
    first = backbone.denoiser.state_dict()
    changed = {name for name in whole if not torch.equal(whole[name], first[name])}
    assert changed and changed <= set(tuned_names(backbone.denoiser))


@pytest.mark.parametrize("steps", [1, 100, 12_000])
def test_the_average_keeps_the_share_of_the_papers(steps):
    kept = average_decay(steps) ** steps
    assert kept == pytest.approx(np.exp(12_000 * np.log(.9999)))


def test_a_card_says_what_was_trained_and_what_was_read():
    words = {"minimax": "fine-tuned on the real images", "igd": "classifier that was trained"}
    for preset, word in words.items():
        config = resolve(DistillConfig(preset=preset))
        told, told_of = describe_making(config), set(card_settings(config))
        assert word in told and "Nothing was trained" not in told
        read = {f.name for f in dataclasses.fields(config)
                if preset in (f.metadata["read_by"] or ())}
        assert read | {"reference"} <= told_of
        assert not told_of & {"strength", "n_neighbors"}
        fields = {f.name: f for f in dataclasses.fields(config)}
        assert all(is_read(fields[name], config) for name in read)
    assert "reference" not in card_settings(resolve(DistillConfig(preset="mgd")))


def test_a_run_fine_tunes_once_for_its_seed_and_leaves_the_backbone(lab):  # noqa: F811
    folder, run = lab
    backbone = contents(folder / "backbone")
    run("one", preset="minimax", tune_epochs=1, ipc=1)
    kept = list((folder / "cache" / "minimax").rglob("*.safetensors"))
    before = [path.stat().st_mtime_ns for path in kept]
    two = run("two", preset="minimax", tune_epochs=1)
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert sorted(p.name for p in kept[0].parent.iterdir()) == [
        "denoiser.lock", "denoiser.safetensors"]
    assert contents(two / "images") != contents(run("plain", preset="dit") / "images")
    run("other", preset="minimax", tune_epochs=1, seed=1)
    assert len(list((folder / "cache" / "minimax").rglob("*.safetensors"))) == 2
    assert contents(folder / "backbone") == backbone


def test_kept_weights_that_were_damaged_are_made_again(lab):  # noqa: F811
    folder, run = lab
    made = contents(run("run", preset="minimax", tune_epochs=1) / "images")
    path, = (folder / "cache" / "minimax").rglob("*.safetensors")
    content = path.read_bytes()
    whole = load(content)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (folder / "run" / "units" / "00000.json").unlink()
    assert contents(run("run", preset="minimax", tune_epochs=1) / "images") == made
    mended = load(path.read_bytes())
    assert all(torch.equal(mended[name], whole[name]) for name in whole)


def test_a_backbone_of_another_kind_is_refused():
    prompted = SimpleNamespace(name="sd")
    with pytest.raises(InputError, match="with class labels, such as a DiT, .* 'sd' has none"):
        expect_labels(prompted)


@pytest.mark.skipif(not SLOW, reason="two processes start")
def test_workers_make_the_same_run(lab):  # noqa: F811
    folder, run = lab
    alone = run("alone", preset="minimax", tune_epochs=1, batch_size=3)
    images = contents(alone / "images")
    shutil.rmtree(folder / "cache" / "minimax")  # a worker has to fine-tune too
    shared = run("shared", preset="minimax", tune_epochs=1, batch_size=3, workers=2)
    assert contents(shared / "images") == images
