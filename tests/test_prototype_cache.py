"""Prototypes that are kept: when they are chosen again, and what damage does."""
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from manifoldgd.backbones.latents import Shard, ShardedBank
from manifoldgd.data.classes import ImageClass
from manifoldgd.prototypes import cache as page
from manifoldgd.prototypes.cache import Choice, cached_prototypes, load_prototypes, prototype_file
from manifoldgd.prototypes.selection import class_prototypes

CLASSES = [ImageClass(name, name) for name in ("cat", "dog", "owl")]
CHOICE = Choice(ipc=4, method="levels", kind="centroid", start_depth=2, seed=0)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own for each test."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bank(tmp_path):
    "Random latents of three classes."
    labels, shards = torch.arange(3).repeat_interleave(20), []
    for c in range(3):
        shard = Shard(tmp_path / f"{c}.safetensors", f"key {c}", (20, 4, 2, 2))
        shard.write(torch.randn(shard.shape, generator=torch.Generator().manual_seed(c)))
        shards.append(shard)
    return ShardedBank(shards, labels)


@pytest.fixture
def chosen(monkeypatch):
    "The class folders whose prototypes are chosen."
    folders = []

    def choose(bank, classes, *args, **kwargs):
        folders.extend(info.folder for info in classes)
        return class_prototypes(bank, classes, *args, **kwargs)

    monkeypatch.setattr(page, "class_prototypes", choose)
    return folders


def quiet(bank, classes=CLASSES, choice=CHOICE, **options):
    "The prototypes of some classes, without a progress bar."
    return cached_prototypes(bank, classes, choice, progress=False, **options)


def is_same(one, other):
    "Tell whether prototypes are the same."
    members = zip(one.members, other.members)
    return torch.equal(one.points, other.points) and all(torch.equal(a, b) for a, b in members) \
        and (one.node, one.depth, one.start_depth) == (other.node, other.depth, other.start_depth)


@pytest.mark.parametrize("workers", [1, 2, None])
def test_they_are_chosen_once(bank, chosen, workers):
    directly = class_prototypes(bank, CLASSES, 4, progress=False)
    first, second = (quiet(bank, workers=workers) for _ in range(2))
    assert chosen == ["cat", "dog", "owl"]
    assert all(map(is_same, first, directly))
    assert all(map(is_same, second, directly))


@pytest.mark.parametrize("change", [
    {"ipc": 5}, {"method": "leaves"}, {"kind": "medoid"}, {"start_depth": None}, {"seed": 1},
])
def test_another_choice_is_made_anew(bank, chosen, change):
    quiet(bank)
    quiet(bank, choice=replace(CHOICE, **change))
    assert chosen == ["cat", "dog", "owl"] * 2


def test_other_latents_are_chosen_from_anew(bank, chosen):
    quiet(bank)
    bank.shards[1] = replace(bank.shards[1], key="another key")
    bank.shards[1].write(torch.randn(bank.shards[1].shape))
    quiet(bank)
    assert chosen == ["cat", "dog", "owl", "dog"]


def test_another_program_chooses_anew(bank, chosen, monkeypatch):
    quiet(bank)
    monkeypatch.setattr(page, "program", lambda: ["a later version"])
    quiet(bank)
    assert len(chosen) == 6


def test_classes_in_another_order_are_found(bank, chosen):
    first = quiet(bank)
    turned = ShardedBank(bank.shards[::-1], 2 - bank.labels)
    second = quiet(turned, CLASSES[::-1])
    assert chosen == ["cat", "dog", "owl"]
    assert all(map(is_same, second, first[::-1]))


@pytest.mark.parametrize("how", ["cut short", "empty", "other key", "no key", "a tensor less"])
def test_a_damaged_or_foreign_file_is_made_again(bank, chosen, how):
    first = quiet(bank)
    key = CHOICE.key("key 1", "dog")
    path = prototype_file("dog", key)
    tensors, facts = load_file(path), {"key": key, "method": "levels"}
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "a tensor less":
        tensors.pop("node")
        save_file(tensors, path, facts)
    else:
        save_file(tensors, path, {"key": "another"} if how == "other key" else None)
    assert load_prototypes(path, key) is None
    assert all(map(is_same, quiet(bank), first))
    assert chosen == ["cat", "dog", "owl", "dog"]


def test_a_stop_keeps_what_was_chosen(bank, monkeypatch):
    calls = []

    def choose(part, classes, *args, **kwargs):
        calls.append([info.folder for info in classes])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return class_prototypes(part, classes, *args, **kwargs)

    monkeypatch.setattr(page, "class_prototypes", choose)
    with pytest.raises(KeyboardInterrupt):
        quiet(bank, workers=1)
    quiet(bank, workers=1)
    assert calls == [["cat", "dog"], ["owl"], ["owl"]]
