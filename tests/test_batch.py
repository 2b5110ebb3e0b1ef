"""The batch that fits is found before the first image, and belongs to the run from then on."""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.distillation import batch
from manifoldgd.distillation.distill import distill, open_session
from manifoldgd.errors import Failure, InputError


@pytest.mark.parametrize("error, is_memory", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), True),
    (MemoryError(), True),
    (RuntimeError("CUDA error: device-side assert triggered"), False),
    (ValueError("Expected more."), False),
])
def test_which_errors_are_of_memory(error, is_memory):
    assert batch.is_out_of_memory(error) is is_memory


def failing_above(room, seen, error=torch.OutOfMemoryError):
    "An attempt that fails as a GPU of so much room does."
    def attempt(n):
        seen.append(n)
        if n > room:
            raise error(f"no room for {n}")

    return attempt


def test_another_error_is_passed_on():
    seen = []
    with pytest.raises(KeyError):
        batch.largest_that_fits(8, failing_above(2, seen, KeyError))
    assert seen == [8]


@pytest.mark.parametrize("room", [1, 2, 3, 15, 16, 40])
def test_what_is_found_fits_and_twice_as_much_does_not(room):
    found = batch.largest_that_fits(40, failing_above(room, []))
    assert found <= room
    assert found == 40 or 2 * found + 1 > room


def test_no_room_for_one_is_a_failure():
    with pytest.raises(Failure, match="memory for a single image"):
        batch.largest_that_fits(1, failing_above(0, []))


class OnGPU(SimpleNamespace):
    "What is asked of a backbone, on a device that is not here."

    device = torch.device("cuda")

    def to(self, device):
        self.moved = device


@pytest.mark.parametrize("changes, most", [
    ({}, 100), ({"ipc": 50}, 256), ({"workers": 4}, 25), ({"workers": 3}, 34)])
def test_on_a_gpu_it_is_at_most_a_share_of_the_run(monkeypatch, changes, most):
    seen, tried = [], failing_above(30, [])
    monkeypatch.setattr(batch, "pick_device", torch.device)
    monkeypatch.setattr(batch, "prepare_networks", lambda *_: None)
    monkeypatch.setattr(
        batch, "try_batch", lambda config, backbone, condition, n: seen.append(n) or tried(n))
    config = resolve(DistillConfig(batch_size="auto", device="cuda", **changes))
    found = batch.fitting_batch_size(config, OnGPU(), list(range(10)))
    assert seen[0] == most
    assert 15 < found <= 30 or found == most


SMALL = DistillConfig(
    ipc=3, classes="3,7", num_inference_steps=2, device="cpu", batch_size="auto")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of its own."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))


def files_of(folder):
    "Every file of a run but its manifest, and the batch size in that."
    files = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*")
             if p.is_file() and p.name != "manifest.json"}
    config = json.loads((folder / "manifest.json").read_text())["config"]
    return {name: data for name, data in files.items() if name.parts[0] != "units"}, config


def test_a_run_keeps_the_batch_that_it_began_with(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(batch, "images_in_memory", lambda *_: 4)
    first = distill(replace(SMALL, out=str(tmp_path / "auto")), progress=False)
    files, config = files_of(first)
    assert config["batch_size"] == 4
    assert len(list((first / "units").glob("*.json"))) == 2
    plain = replace(SMALL, out=str(tmp_path / "plain"), batch_size=4)
    assert files_of(distill(plain, progress=False))[0] == files

    (first / "units" / "00001.json").unlink()  # and now there is less memory
    monkeypatch.setattr(batch, "images_in_memory", lambda *_: 1)
    session = open_session(resolve(replace(SMALL, out=str(first))), 1)
    assert (session.config.batch_size, len(session.missing())) == (4, 1)
    assert files_of(distill(replace(SMALL, out=str(first)), progress=False))[0] == files
    with pytest.raises(InputError, match="differs in batch_size"):
        distill(replace(SMALL, out=str(first), batch_size=3), progress=False)


def test_images_that_are_not_sampled_are_made_by_the_default(tmp_path, cache):
    config = DistillConfig(
        preset="random", ipc=1, classes="3,7", batch_size="auto", out=str(tmp_path / "random"))
    _, stored = files_of(distill(config, progress=False))
    assert stored["batch_size"] == 50


@pytest.mark.parametrize("planes", ["neighbors", "model"])
def test_the_attempt_does_what_a_step_does(planes, monkeypatch):
    "A call of the denoiser with both halves, an eighth more images, and a gradient if need be."
    tiny, seen = tiny_backbone(), []
    predict = tiny.predict

    def watched(x, t, condition):
        seen.append((len(x), x.requires_grad))
        return predict(x, t, condition)

    monkeypatch.setattr(tiny, "predict", watched)
    config = resolve(DistillConfig(planes=planes, guidance_scale=4., device="cpu"))
    batch.try_batch(config, tiny, 0, 8)
    assert seen == [(18, planes == "model")]
