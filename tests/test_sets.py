"""Sets that are judged: what they come as, which class is which, and what is refused."""

import json
import os
from dataclasses import replace

import pandas as pd
import pytest
import torch
from PIL import Image

from manifoldgd.config.commands import EvaluateConfig, MetricsConfig
from manifoldgd.core import packaged
from manifoldgd.data.classes import imagenet_labels
from manifoldgd.data.images import FolderImages
from manifoldgd.data.sources import load_data
from manifoldgd.errors import InputError
from manifoldgd.evaluation import accuracy
from manifoldgd.evaluation.comparison import format_summary, summarize
from manifoldgd.evaluation.measurement import measure_runs
from manifoldgd.evaluation.sets import (
    IMAGENET_COLORS,
    UNKNOWN,
    TensorImages,
    ddranking_datasets,
    open_sets,
    to_pixels,
    training_images,
)

NAMES = ("ape", "bee", "cat", "dog", "eel", "fox")


def pictures(c, n, seed=0):
    "Draw images (n, 3, 32, 32) in [0, 1] of a class: its pattern, with noise."
    pattern = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1000 + c))
    noise = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(100 * seed + c))
    return (pattern + .1 * noise).clamp(0, 1)


def save(folder, images):
    "Write images (n, 3, H, W) in [0, 1] into a class folder."
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        array = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / f"{i}.png")


def make_set(folder, names, seed=1, n=2):
    "Write a set: the folder of each name has images of the class of its place."
    for c, name in enumerate(names):
        save(folder / name, pictures(c, n, seed))
    return str(folder)


def make_data(folder, names):
    "Write real images: eight of each class to train on, two to test."
    make_set(folder / "train", names, seed=2, n=8)
    make_set(folder / "test", names, seed=3, n=2)
    return str(folder)


@pytest.fixture
def data(tmp_path):
    return make_data(tmp_path / "data", NAMES)


def save_tensors(folder, images, labels):
    "Write the two files of DD-Ranking."
    folder.mkdir(parents=True)
    torch.save(images, folder / "images.pt")
    torch.save(labels, folder / "labels.pt")
    return str(folder)


# Which class is which


def test_named_folders_are_matched_by_name_in_any_order(data, tmp_path):
    for c in (3, 0, 1, 2, 4, 5):
        save(tmp_path / "set" / NAMES[c].upper() / "x", pictures(c, 2))
        (tmp_path / "set" / NAMES[c].upper()).rename(tmp_path / "set" / NAMES[c])
    judged, = open_sets([str(tmp_path / "set")], (), data)
    assert [c.folder for c in judged.data.classes] == list(NAMES)
    assert (judged.name, judged.seed, judged.ipc) == ("set", UNKNOWN, 2)
    assert "12 images of 6 classes, 2 of each, matched by name" in judged.notes[0]
    assert judged.notes[1].startswith("12 of 12 images are nearest to the mean of their class")


def test_numbers_mean_places_and_are_looked_at(data, tmp_path):
    right = make_set(tmp_path / "right", [f"{c:05}" for c in range(6)])
    judged, = open_sets([right], (), data)
    assert [c.folder for c in judged.data.classes] == list(NAMES)
    assert "matched by number, in the order of the data" in judged.notes[0]
    assert "their order fits" in judged.notes[1]


def test_permuted_numbers_are_found_and_named(data, tmp_path):
    order = [1, 2, 0, 3, 4, 5]  # folder 00001 has apes, 00002 bees, 00000 cats
    wrong = make_set(tmp_path / "wrong", [f"{k:05}" for k in order])
    with pytest.raises(InputError) as error:
        open_sets([wrong], (), data)
    said = str(error.value)
    for pair in ("00000 like cat", "00001 like ape", "00002 like bee"):
        assert pair in said
    assert "like dog" not in said and "Name its classes in their order with `--label-order`" in said
    mended, = open_sets([wrong], (), data, "cat,ape,bee,dog,eel,fox")
    assert "their order fits" in mended.notes[1]
    assert [c.folder for c in mended.data.classes] == ["cat", "ape", "bee", "dog", "eel", "fox"]


def test_named_folders_with_the_images_of_others_are_a_warning(data, tmp_path):
    wrong = make_set(tmp_path / "wrong", ("bee", "ape", "cat", "dog", "eel", "fox"))
    with pytest.warns(UserWarning, match="label ape like bee, bee like ape"):
        judged, = open_sets([wrong], (), data)
    assert judged.notes[1] == "The images do not look like their classes."


def test_images_of_nothing_are_no_reason_to_propose_an_order(data, tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        save(tmp_path / "noise" / name, torch.rand(3, 3, 32, 32, generator=generator))
    judged, = open_sets([str(tmp_path / "noise")], (), data)
    assert "no order of the labels fits" in judged.notes[1]


def test_too_few_real_images_check_nothing(tmp_path):
    data = make_set(tmp_path / "few", NAMES, n=3)
    judged, = open_sets([make_set(tmp_path / "set", NAMES)], (), data)
    assert judged.notes[1].startswith("Whether the labels fit is not checked")


def test_a_check_that_would_notice_nothing_says_so(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for name in NAMES:
        save(tmp_path / "data" / name, torch.rand(8, 3, 32, 32, generator=generator))
    judged, = open_sets([make_set(tmp_path / "set", NAMES)], (), str(tmp_path / "data"))
    assert judged.notes[1].startswith("Whether the labels fit cannot be told from the images")


@pytest.mark.parametrize(
    "folders, order, message",
    [
        (("ape", "owl"), None, "to be among those of data .ape, bee.*, but owl is not"),
        (("0", "7"), None, "labels of set to be numbers below 6, .* but got 7"),
        (("0", "1"), "ape,owl", "`label_order` to name classes of data .* but 'owl' is none"),
        (("0", "1"), "ape,ape", "each once, but one is named twice"),
        (("0", "00"), None, "every class to have a folder of its own"),
    ],
)
def test_classes_that_cannot_be_matched(data, tmp_path, folders, order, message):
    path = make_set(tmp_path / "set", folders)
    with pytest.raises(InputError, match=message):
        open_sets([path], (), data, order)


def test_some_of_the_classes_and_unequal_counts(data, tmp_path):
    for name, n in (("fox", 1), ("bee", 4)):
        save(tmp_path / "set" / name, pictures(NAMES.index(name), n))
    judged, = open_sets([str(tmp_path / "set")], (), data)
    assert judged.ipc == 3  # five images of two classes
    assert "5 images of 2 classes, 1 to 4 of each" in judged.notes[0]
    assert "students are tested on these 2" in judged.notes[0]
    tests = load_data(judged.source, "test")
    assert [c.folder for c in tests.classes] == ["bee", "fox"]


# Tensors


def woof():
    "The folders of ImageWoof: in DD-Ranking's order, and sorted."
    order = ddranking_datasets()["ImageWoof"]["folders"]
    return order, sorted(order)


def test_tensors_of_imagewoof_are_in_the_order_of_ddranking(tmp_path):
    theirs, own = woof()
    assert theirs != own
    data = make_data(tmp_path / "woof", own)
    facts = ddranking_datasets()["ImageWoof"]
    mean, std = (torch.tensor(facts[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    images = torch.cat([pictures(own.index(folder), 2) for folder in theirs])
    labels = torch.arange(10).repeat_interleave(2)
    right = save_tensors(tmp_path / "right", (images - mean) / std, labels)
    judged, = open_sets([right], (), data)
    assert [c.folder for c in judged.data.classes] == theirs
    assert "in the order of DD-Ranking" in judged.notes[0]
    found = judged.data.images(size=32)
    assert torch.allclose((found + 1) / 2, images, atol=1e-6)

    in_order = torch.cat([pictures(c, 2) for c in range(10)])
    wrong = save_tensors(tmp_path / "wrong", (in_order - mean) / std, labels)
    with pytest.raises(InputError, match="they look like the order of the data. Name its"):
        open_sets([wrong], (), data)
    mended, = open_sets([wrong], (), data, ",".join(own))
    assert [c.folder for c in mended.data.classes] == own


def test_colors_of_the_field():
    "The numbers of ImageNet, and what a table in the package says of CIFAR-10."
    assert IMAGENET_COLORS == {"mean": [.485, .456, .406], "std": [.229, .224, .225]}
    assert set(json.loads(packaged("tables", "ddranking.json").read_text())) == set(
        ddranking_datasets()
    )
    black = (0 - torch.tensor(IMAGENET_COLORS["mean"])) / torch.tensor(IMAGENET_COLORS["std"])
    colors = tuple(map(torch.tensor, IMAGENET_COLORS.values()))
    assert to_pixels(black.reshape(1, 3, 1, 1), colors).abs().max() < 1e-6
    assert all(folder in imagenet_labels() for folder in woof()[0])


ONE = torch.zeros(1, dtype=torch.long)


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (torch.zeros(1, 4, 8, 8), ONE, r"the shape \(n, 3, H, W\), but got \(1, 4, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), ONE, r"but got \(0, 3, 8, 8\)"),
        (torch.full((1, 3, 8, 8), float("nan")), ONE, "finite numbers, but some are not"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1), "1 whole numbers, .* but got torch.float32"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(2, dtype=torch.long), r"but got .*\(2,\)"),
        (torch.zeros(1, 3, 8, 8), -ONE - 1, "whole numbers"),
        ([1, 2], ONE, "images.pt to hold a tensor, but got a list"),
    ],
)
def test_files_that_are_no_images_and_labels(data, tmp_path, images, labels, message):
    path = save_tensors(tmp_path / "set", images, labels)
    with pytest.raises(InputError, match=message):
        open_sets([path], (), data)


class Bomb:
    "What runs a command when it is unpickled."

    def __reduce__(self):
        return os.mkdir, ("burst",)


def test_nothing_is_run_that_lies_in_a_file(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_tensors(tmp_path / "set", Bomb(), ONE)
    with pytest.raises(InputError, match="could not be read as one"):
        open_sets([path], (), data)
    assert not (tmp_path / "burst").exists()


@pytest.mark.parametrize("content", [b"", b"no tensor"])
def test_damaged_files(data, tmp_path, content):
    path = save_tensors(tmp_path / "set", torch.zeros(1, 3, 8, 8), ONE)
    (tmp_path / "set" / "labels.pt").write_bytes(content)
    with pytest.raises(InputError, match="labels.pt to hold a tensor"):
        open_sets([path], (), data)


def test_pixels_beyond_white_reach_the_student():
    pixels = torch.tensor([-.5, 1.5]).reshape(2, 1, 1, 1).expand(2, 3, 8, 8).contiguous()
    images = TensorImages(pixels, torch.tensor([0, 1]), "beyond")
    seen = training_images(images, 8, 3)
    assert seen.amin((1, 2, 3)).tolist() == [-2, 2]
    smaller = training_images(images, 4, 3)[:]
    assert smaller.amin((1, 2, 3)).tolist() == [-1, 1]


# All sets of a command


def test_names_and_data(data, tmp_path):
    one, two = (make_set(tmp_path / name, NAMES, seed) for seed, name in enumerate("ab"))
    judged = open_sets([one, two, one + "/"], ("first", "second"), data)
    assert [j.name for j in judged] == ["first", "second"]
    assert judged[0].group != judged[1].group
    with pytest.raises(InputError, match="a `name` for each of the 2 sets .* but got 1"):
        open_sets([one, two], ("first",), data)
    with pytest.raises(InputError, match="no run names them. Name them with `--data`"):
        open_sets([one])
    with pytest.raises(InputError, match="that no preset has, but got 'mgd'"):
        open_sets([one], ("mgd",), data)


def test_a_dataset_of_the_hub_is_a_set(data, tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [], "label": []}
    for c in range(6):
        save(tmp_path / "images" / str(c), pictures(c, 1))
        rows["image"].append(str(tmp_path / "images" / str(c) / "0.png"))
        rows["label"].append(c)
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list(NAMES))
    )
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / "hub" / "train.parquet")
    judged, = open_sets([f"hf:{tmp_path / 'hub'}"], ("theirs",), data)
    assert (judged.name, judged.ipc, len(judged.data)) == ("theirs", 1, 6)
    assert judged.notes[1].startswith("6 of 6 images")


@pytest.fixture
def trained(monkeypatch, tmp_path):
    "Evaluate without training anything: a student is right for 50 % and its number."

    def train_and_test(training, device, best, on_look, on_step):
        return {"top1_last": 50. + training.seed, "top1_best": float("nan"), "seconds": 1.}

    monkeypatch.setattr(accuracy, "train_and_test", train_and_test)

    def trained(*sets, **settings):
        settings = {"out": str(tmp_path / "results.csv"), "device": "cpu", "workers": 1} | settings
        return accuracy.evaluate(EvaluateConfig(sets, **settings), progress=False)

    return trained


def test_a_foreign_set_beside_all_real_images(trained, data, tmp_path, capsys):
    theirs = make_set(tmp_path / "theirs", NAMES)
    settings = {"data": data, "name": ("theirs", "whole"), "baseline": theirs}
    rows = trained(theirs, data, **settings)
    assert rows.preset.tolist() == ["theirs", "whole"] * 2
    assert rows.ipc.tolist() == [2, 8] * 2
    assert rows.generation_seed.tolist() == [UNKNOWN] * 4
    assert "matched by name" in capsys.readouterr().out
    summary = summarize(rows, theirs)
    assert summary.generation_seeds.tolist() == [0, 0]
    assert summary.interval[0] == pytest.approx(12.706 * .5 ** .5 / 2 ** .5, rel=1e-3)
    assert "? (2)" in format_summary(summary)
    renamed = trained(theirs, **settings | {"name": ("new",), "baseline": None})
    assert renamed.preset.tolist() == ["new"] * 2
    assert len(accuracy.read_rows(tmp_path / "results.csv")) == 4  # found, not trained again


def test_the_same_images_under_two_names(trained, data, tmp_path):
    one, two = (make_set(tmp_path / name, NAMES) for name in "ab")
    with pytest.raises(InputError, match="a and .*b agree in all of them. Leave one out"):
        trained(one, two, data=data)


def test_metrics_of_a_foreign_set_at_its_own_size(data, tmp_path, capsys):
    "Sets of 32 pixels are seen at 32, whatever the real images have."
    big = tmp_path / "big" / "train"
    for path in FolderImages(f"{data}/train").paths:
        (big / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((96, 96)).save(big / path.parent.name / path.name)
    theirs = make_set(tmp_path / "theirs", NAMES)
    sizes = []

    def network(images):
        sizes.append(tuple(images.shape[1:]))
        return torch.nn.functional.avg_pool2d(images, 8).flatten(1)

    out = str(tmp_path / "metrics.csv")
    config = MetricsConfig((theirs,), data=str(tmp_path / "big"), draws=2, out=out, device="cpu")
    rows = measure_runs(config, network, progress=False)
    assert set(sizes) == {(3, 32, 32)}
    assert set(rows.preset) == {"theirs"} and set(rows.seed) == {UNKNOWN}
    assert set(rows.n_syn) == {12}
    assert "All images are seen at 32 x 32 pixels; the sets have 32." in capsys.readouterr().out
    again = measure_runs(replace(config, name=("other",)), network, progress=False)
    pd.testing.assert_series_equal(again.value, rows.value)
