"""Exports, read back by the libraries they are for; what is refused; what a hub would be sent."""
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from manifoldgd.cli import main
from manifoldgd.config.commands import ExportConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError
from manifoldgd.sharing import export
from manifoldgd.sharing.card import dataset_card, public_name
from manifoldgd.sharing.export import export_run
from manifoldgd.sharing.formats import FORMATS, check_export, open_run, tensor_settings

# ImageWoof: its WordNet ids and the labels that DD-Ranking gives them (its list in ImageNet's
# numbers is 193, 182, 258, 162, 155, 167, 159, 273, 207, 229).
WOOF = {
    "n02086240": 4,
    "n02087394": 6,
    "n02088364": 3,
    "n02089973": 5,
    "n02093754": 1,
    "n02096294": 0,
    "n02099601": 8,
    "n02105641": 9,
    "n02111889": 2,
    "n02115641": 7,
}
COLORS = {wnid: (20 * i, 255 - 20 * i, 7 * i) for i, wnid in enumerate(WOOF)}
SORTED = {wnid: y for y, wnid in enumerate(sorted(WOOF))}
ON_HUB = ["huggingface", "parquet", "webdataset"]


def color_folders(root, colors, n=2):
    "Write class folders whose images are of one color each."
    for folder, color in colors.items():
        (root / folder).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (40 + i, 40), color).save(root / folder / f"{i}.png")


def make_run(folder, colors):
    "Distil class folders of one color each, by copying real images."
    color_folders(folder / "data" / "train", colors)
    config = DistillConfig(
        data=str(folder / "data"), preset="random", ipc=2, out=str(folder / "run"))
    return distill(config, progress=False)


@pytest.fixture(scope="module")
def woof(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("woof"), COLORS)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "run"
    return distill(DistillConfig(preset="random", ipc=2, out=str(out)), progress=False)


@pytest.fixture(autouse=True)
def quiet_library(tmp_path, monkeypatch):
    "Keep the cache of `datasets` out of the user's home, and what `main` changes out of others."
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf-cache"))
    datasets.disable_progress_bars()


def to_folder(run, name, folder, **settings):
    "Export a run, and return the folder."
    return export_run(ExportConfig(str(run), name, str(folder), **settings)).folder


def read_usage(name, folder):
    "Execute the two lines that a format tells its readers to write."
    known = {"torch": torch}
    exec(FORMATS[name].usage.replace("DIR", str(folder)), known)
    return known["data"]


def color_of(image):
    return image.convert("RGB").getpixel((5, 5))


# Read back by the library, or by the layout that is documented


@pytest.mark.parametrize("name", ["huggingface", "parquet"])
def test_load_dataset_finds_images_and_named_labels(woof, tmp_path, name):
    data = read_usage(name, to_folder(woof, name, tmp_path / "set"))
    assert isinstance(data.features["image"], datasets.Image)
    assert isinstance(data.features["label"], datasets.ClassLabel)
    assert len(data) == 20
    for row in data:
        wnid = data.features["label"].int2str(row["label"])
        assert row["label"] == SORTED[wnid]
        assert color_of(row["image"]) == COLORS[wnid]
        assert row["class_folder"] == wnid and row["preset"] == "random"


@pytest.mark.parametrize("builder, name, part", [
    ("imagefolder", "huggingface", ""),
    ("imagefolder", "huggingface", "images"),
    ("parquet", "parquet", "data"),
])
def test_builders_find_the_same(woof, tmp_path, builder, name, part):
    folder = to_folder(woof, name, tmp_path / "set")
    data = datasets.load_dataset(builder, data_dir=str(folder / part), split="train")
    assert data.features["label"].names == sorted(WOOF)
    assert [color_of(image) for image in data["image"]] == [
        COLORS[data.features["label"].int2str(label)] for label in data["label"]]


def test_webdataset(woof, tmp_path):
    folder = to_folder(woof, "webdataset", tmp_path / "set")
    colors = {SORTED[wnid]: color for wnid, color in COLORS.items()}
    with tarfile.open(folder / "data" / "train-00000.tar") as archive:
        members = {member.name: archive.extractfile(member).read() for member in archive}
        assert not any(member.mtime for member in archive), "the same run gives the same bytes"
    stems = [name.partition(".")[0] for name in members]
    assert len(stems) == 60 and stems[::3] == stems[1::3] == stems[2::3], "a sample is in one place"
    assert [int(stem[:5]) for stem in stems[:30:3]] == list(range(10)), "classes are interleaved"
    for stem in stems[::3]:
        label = int(members[f"{stem}.cls"])
        assert color_of(Image.open(io.BytesIO(members[f"{stem}.png"]))) == colors[label]
        assert SORTED[json.loads(members[f"{stem}.json"])["class_folder"]] == label
    data = datasets.load_dataset(str(folder), split="train")
    assert [color_of(image) for image in data["png"]] == [colors[y] for y in data["cls"]]


def test_imagefolder_by_the_rule_of_torchvision(woof, tmp_path):
    "`find_classes` sorts the names of the folders."
    folder = to_folder(woof, "imagefolder", tmp_path / "set")
    classes = sorted(entry.name for entry in os.scandir(folder / "images") if entry.is_dir())
    assert classes == sorted(WOOF)
    for wnid in classes:
        found = sorted(os.listdir(folder / "images" / wnid))
        assert found == ["00000.png", "00001.png"]
        assert {color_of(Image.open(folder / "images" / wnid / f)) for f in found} == {COLORS[wnid]}


@pytest.mark.parametrize("name, labels", [("ddranking-images", WOOF), ("rded", SORTED)])
def test_numbered_folders(woof, tmp_path, name, labels):
    "RDED looks for the label in five digits; torchvision, for DD-Ranking, sorts the same names."
    folder = to_folder(woof, name, tmp_path / "set") / "images"
    assert sorted(os.listdir(folder)) == [str(c).zfill(5) for c in range(10)]
    for wnid, label in labels.items():
        paths = list((folder / f"{label:05}").iterdir())
        assert len(paths) == 2
        assert {color_of(Image.open(path)) for path in paths} == {COLORS[wnid]}


def test_ddranking_tensors(woof, tmp_path):
    folder = to_folder(woof, "ddranking", tmp_path / "set")
    images, labels, lr = [
        torch.load(folder / f"{n}.pt", weights_only=True) for n in ("images", "labels", "lr")]
    assert images.shape == (20, 3, 128, 128) and images.dtype == torch.float32
    assert labels.dtype == torch.int64 and labels.tolist() == sorted(2 * list(range(10)))
    assert lr.item() == pytest.approx(.01)
    mean, std = np.array([.485, .456, .406]), np.array([.229, .224, .225])
    for wnid, label in WOOF.items():
        expected = (np.array(COLORS[wnid]) / 255 - mean) / std
        assert images[2 * label, :, 64, 64].numpy() == pytest.approx(expected, abs=1e-5)


def test_ddranking_tensors_of_gray_images(digits, tmp_path):
    "Three equal channels, normalized by the real training images, which the run knows."
    folder = to_folder(digits, "ddranking", tmp_path / "set", size=16)
    images = torch.load(folder / "images.pt", weights_only=True)
    assert images.shape == (20, 3, 16, 16)
    assert torch.equal(images[:, 0], images[:, 1]) and torch.equal(images[:, 0], images[:, 2])
    colors = json.loads((folder / "export.json").read_text())["tensors"]
    raw = Image.open(digits / "images" / "3" / "00001.png").resize((16, 16), Image.BICUBIC)
    expected = (np.array(raw) / 255 - colors["mean"][0]) / colors["std"][0]
    assert images[7, 0].numpy() == pytest.approx(expected, abs=1e-5)


def test_ddranking_knows_cifar10_by_its_classes(tmp_path):
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    run = make_run(tmp_path, {name: (9 * i, 40, 200) for i, name in enumerate(names)})
    settings = tensor_settings(open_run(run))
    assert settings == {
        "size": 32, "mean": [.4914, .4822, .4465], "std": [.2023, .1994, .2010]}


def test_other_wordnet_ids_are_normalized_as_imagenet(tmp_path):
    run = make_run(tmp_path, {"n02124075": (1, 2, 3), "n02123394": (3, 2, 1)})
    settings = tensor_settings(open_run(run))
    assert settings == {"size": 40, "mean": [.485, .456, .406], "std": [.229, .224, .225]}


def test_usage_is_code():
    for form in FORMATS.values():
        compile(form.usage, "usage", "exec")
        assert 2 <= len(form.usage.strip().splitlines()) <= 3  # short enough for a card


# Orders of labels


def reorder(run, out, order):
    "Copy a run as if the dataset had numbered its classes in another order."
    shutil.copytree(run, out)
    manifest = json.loads((out / "manifest.json").read_text())
    classes = sorted(manifest["classes"], key=lambda c: order.index(c["folder"]))
    manifest["classes"] = [c | {"id": i} for i, c in enumerate(classes)]
    (out / "manifest.json").write_text(json.dumps(manifest))
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    lines = [line | {"label": order.index(line["class_folder"])} for line in lines]
    (out / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return out


@pytest.mark.parametrize("name", FORMATS)
def test_a_dataset_with_an_order_of_its_own(woof, tmp_path, name):
    "As on a hub whose classes are not sorted: who can say the order says the dataset's."
    order = sorted(WOOF, reverse=True)
    folder = to_folder(reorder(woof, tmp_path / "run", order), name, tmp_path / "set")
    labels = json.loads((folder / "export.json").read_text())["label_order"]
    assert labels == {
        "imagefolder": sorted(WOOF),
        "rded": sorted(WOOF),
        "ddranking": sorted(WOOF, key=WOOF.get),
        "ddranking-images": sorted(WOOF, key=WOOF.get),
    }.get(name, order)
    if name == "parquet":
        data = read_usage(name, folder)
        assert data.features["label"].names == order
        assert color_of(data[0]["image"]) == COLORS[order[0]]


def test_metadata_and_manifest_must_agree(woof, tmp_path):
    run = reorder(woof, tmp_path / "run", sorted(WOOF, reverse=True))
    shutil.copy(woof / "metadata.jsonl", run)
    with pytest.raises(InputError, match="the label of images/n02086240/00000.png .* to be 9"):
        open_run(run)


def swap_folders(images):
    "Exchange two class folders."
    first, second, *_ = sorted(path for path in images.iterdir() if path.is_dir())
    first.rename(images / "aside")
    second.rename(first)
    (images / "aside").rename(second)


def edit_table(path, change):
    "Change the rows of a Parquet file, or the names in its schema."
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"huggingface"])
    rows = change(table.to_pylist(), note["info"]["features"]["label"]["names"])
    schema = table.schema.with_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table.from_pylist(rows, schema=schema), path)


def shift_labels(rows, names):
    return [row | {"label": (row["label"] + 1) % 10} for row in rows]


def shift_names(rows, names):
    names.append(names.pop(0))
    return rows


def shift_tar(path):
    "Give every sample of a tar file the next label."
    with tarfile.open(path) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(path, "w") as archive:
        for name, raw in members:
            raw = str((int(raw) + 1) % 10).encode() if name.endswith(".cls") else raw
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))


def roll(path):
    "Move every row of a tensor by one class."
    torch.save(torch.load(path, weights_only=True).roll(2, 0), path)


@pytest.mark.parametrize("name, part, permute", [
    ("imagefolder", "images", swap_folders),
    ("ddranking-images", "images", swap_folders),
    ("rded", "images", swap_folders),
    ("huggingface", "images/metadata.parquet", lambda p: edit_table(p, shift_labels)),
    ("huggingface", "images/metadata.parquet", lambda p: edit_table(p, shift_names)),
    ("parquet", "data/train-00000-of-00001.parquet", lambda p: edit_table(p, shift_labels)),
    ("parquet", "data/train-00000-of-00001.parquet", lambda p: edit_table(p, shift_names)),
    ("webdataset", "data/train-00000.tar", shift_tar),
    ("ddranking", "images.pt", roll),
    ("ddranking", "labels.pt", roll),
])
def test_permuted_classes_are_found(woof, tmp_path, name, part, permute):
    folder = to_folder(woof, name, tmp_path / "set")
    distilled = open_run(woof)
    settings = tensor_settings(distilled) if name == "ddranking" else {}
    check_export(folder, distilled, name, **settings)
    permute(folder / part)
    with pytest.raises(InputError, match="Expected an image of class n0.* to have the label"):
        check_export(folder, distilled, name, **settings)
    with pytest.raises(InputError, match="Remove .* and export again"):
        to_folder(woof, name, folder)


def test_a_writer_that_permutes_classes_leaves_no_folder(woof, tmp_path, monkeypatch):
    form = FORMATS["rded"]

    def write(images, order, folder):
        form.write(images, order[::-1], folder)

    monkeypatch.setitem(FORMATS, "rded", replace(form, write=write))
    with pytest.raises(InputError, match="to have the label 0, but a reader sees the label 9"):
        to_folder(woof, "rded", tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, part", [
    ("parquet", "data/train-00000-of-00001.parquet"),
    ("huggingface", "images/metadata.parquet"),
    ("webdataset", "data/train-00000.tar"),
    ("ddranking", "images.pt"),
    ("imagefolder", "images/n02086240/00000.png"),
])
@pytest.mark.parametrize("damage", ["removed", "cut"])
def test_a_damaged_export_is_named(woof, tmp_path, name, part, damage):
    path = to_folder(woof, name, tmp_path / "set") / part
    raw = path.read_bytes()
    path.unlink()
    if damage == "cut":
        path.write_bytes(raw[:len(raw) // 2])
    with pytest.raises(InputError, match="again"):
        to_folder(woof, name, tmp_path / "set")


# What is refused


def test_an_unfinished_run_is_refused(woof, tmp_path):
    run = shutil.copytree(woof, tmp_path / "run")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"finished": False}))
    with pytest.raises(InputError, match="Expected a finished run"):
        to_folder(run, "imagefolder", tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_the_same_export_is_kept_and_another_is_refused(woof, tmp_path):
    folder = to_folder(woof, "parquet", tmp_path / "set")
    (folder / "README.md").write_text("my own words")
    to_folder(woof, "parquet", folder)
    assert (folder / "README.md").read_text() == "my own words"
    with pytest.raises(InputError, match="the export there differs in license"):
        to_folder(woof, "parquet", folder, license="mit")
    with pytest.raises(InputError, match="the export there differs in format"):
        to_folder(woof, "rded", folder)


@pytest.mark.parametrize("content", ["thesis.txt", "export.json"])
def test_a_folder_with_other_files_is_left_alone(woof, tmp_path, content):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / content).write_text("years of work")
    with pytest.raises(InputError, match="but it holds other files"):
        to_folder(woof, "rded", tmp_path / "set")
    assert (tmp_path / "set" / content).read_text() == "years of work"
    assert [p.name for p in tmp_path.iterdir() if p.name != "hf-cache"] == ["set"]


def test_an_empty_folder_is_used(woof, tmp_path):
    (tmp_path / "set").mkdir()
    assert len(list(to_folder(woof, "rded", tmp_path / "set").rglob("*.png"))) == 20


@pytest.mark.parametrize("to", ["file", "file/set"])
def test_a_file_is_no_folder(woof, tmp_path, to):
    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="file to be a folder, but it is a file"):
        to_folder(woof, "rded", tmp_path / to)


def test_nothing_goes_among_the_images_of_a_run(woof, tmp_path):
    run = shutil.copytree(woof, tmp_path / "run")
    with pytest.raises(InputError, match="only images belong there"):
        to_folder(run, "rded", run / "images" / "rded")
    assert len(list(to_folder(run, "rded", run / "rded").rglob("*.png"))) == 20
    open_run(run)


@pytest.mark.parametrize("settings, words", [
    ({"format": "zip"}, "`format` to be one of imagefolder, huggingface"),
    ({"size": 0, "format": "ddranking"}, "`size` to be between 1 and 4096, but got 0"),
    ({"size": 64, "format": "rded"}, "`size` to be given with the format ddranking only"),
    ({"data": "x", "format": "parquet"}, "`data` to be given with the format ddranking only"),
    ({"license": "mit", "format": "rded"}, "`license` to be given with the format huggingface or"),
    ({"push_to_hub": "a/b", "format": "rded"}, "`push_to_hub` to be given with the format"),
    ({"push_to_hub": "../b", "format": "parquet"}, "such as owner/name, but got '../b'"),
])
def test_settings_that_do_not_go_together(woof, tmp_path, settings, words):
    with pytest.raises(InputError) as error:
        export_run(ExportConfig(**{"run": str(woof), "to": str(tmp_path / "set")} | settings))
    assert words in str(error.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("name", ["huggingface", "parquet"])
def test_a_missing_extra_is_one_clear_line(woof, tmp_path, monkeypatch, name):
    for module in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="Install it with `pip install 'datasets>=4'`") as error:
        to_folder(woof, name, tmp_path / "set")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "set").exists()
    assert to_folder(woof, "webdataset", tmp_path / "tar").exists(), "the others need no extra"


def test_many_files(woof, tmp_path, monkeypatch):
    "More images than one file takes."
    monkeypatch.setattr("manifoldgd.sharing.formats.PER_FILE", 6)
    monkeypatch.setattr("manifoldgd.sharing.formats.PER_GROUP", 4)
    for name, files in (("parquet", "*-of-00004.parquet"), ("webdataset", "train-*.tar")):
        folder = to_folder(woof, name, tmp_path / name)
        assert len(list((folder / "data").glob(files))) == 4
        assert len(datasets.load_dataset(str(folder), split="train")) == 20


# The card


def test_card_is_read_by_the_hub_library(woof, tmp_path):
    folder = to_folder(woof, "huggingface", tmp_path / "set", license="cc-by-nc-4.0")
    card = huggingface_hub.DatasetCard.load(folder / "README.md")
    assert card.data.license == "cc-by-nc-4.0"
    assert card.data.task_categories == ["image-classification"]
    assert card.data.size_categories == ["n<1K"]
    for words in ("2602.23295", "roy2026manifoldgd", "non-commercial research", "Intended use",
                  "copy of a real image", "![The images"):
        assert words in card.text, words
    assert Image.open(folder / "preview.png").height > 400


def test_card_tells_no_path_and_no_more_than_is_known(woof):
    distilled = open_run(woof)
    config = replace(
        distilled.run.config, data=str(Path.home() / "secret" / "photos"), images="sample",
        prototypes="levels", guidance="manifold", backbone="facebook/DiT-XL-2-256")
    classes = [c | {"folder": f"c{i}", "wnid": ""} for i, c in enumerate(distilled.classes)]
    own = replace(distilled, run=replace(distilled.run, config=config),
                  manifest=distilled.manifest | {"classes": classes})
    text = dataset_card(own, FORMATS["parquet"])
    assert "secret" not in text and str(woof.parent) not in text
    assert yaml.safe_load(text.split("---\n")[1])["license"] == "unknown"
    assert "(`photos`): their terms are not known" in text
    assert "CC BY-NC 4.0: not for commercial use" in text
    assert "| `strength` |" in text


@pytest.mark.parametrize("spec, name", [
    ("facebook/DiT-XL-2-256", "facebook/DiT-XL-2-256"),
    ("imagenette:in1k", "imagenette:in1k"),
    ("hf:uoft-cs/cifar10", "hf:uoft-cs/cifar10"),
    ("~/a/b", "b"),
    ("../a/b/", "b"),
])
def test_public_name(spec, name):
    assert public_name(spec) == name


def test_a_class_called_test_is_no_split(tmp_path):
    run = make_run(tmp_path, {"test": (200, 0, 0), "train": (0, 200, 0), "val": (0, 0, 200)})
    for name in ("huggingface", "parquet"):
        data = datasets.load_dataset(str(to_folder(run, name, tmp_path / name)))
        assert {split: len(rows) for split, rows in data.items()} == {"train": 6}
        assert data["train"].features["label"].names == ["test", "train", "val"]


# The hub, with its client replaced


class Hub:
    "A client that takes notes; on its hub there are the datasets that it is given."

    def __init__(self, **there):
        self.there, self.calls = there, []

    def __call__(self):  # takes the place of the class
        return self

    def repo_info(self, name, repo_type, timeout):
        self.calls.append("info")
        assert repo_type == "dataset" and timeout <= 10
        if name not in self.there:
            response = SimpleNamespace(headers={}, request=None)
            raise huggingface_hub.errors.RepositoryNotFoundError("no such", response=response)
        private, files = self.there[name]
        siblings = [SimpleNamespace(rfilename=file) for file in files]
        return SimpleNamespace(private=private, siblings=siblings)

    def create_repo(self, name, repo_type, private, exist_ok):
        assert repo_type == "dataset" and exist_ok
        self.calls.append(("create", name, private))

    def upload_folder(self, repo_id, folder_path, repo_type, commit_message):
        assert repo_type == "dataset"
        files = {p.relative_to(folder_path).as_posix() for p in Path(folder_path).rglob("*.*")}
        self.calls.append(("upload", repo_id, files))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(export, "HfApi", hub)
    return hub


@pytest.fixture
def terminal(monkeypatch):
    "A terminal at which nobody has answered yet."
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))

    def answer(text):
        monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or text)

    asked = []
    answer.asked = asked
    return answer


def push(run, folder, name="parquet", **settings):
    return export_run(ExportConfig(
        str(run), name, str(folder), **{"push_to_hub": "me/set"} | settings))


@pytest.mark.parametrize("name", ON_HUB)
@pytest.mark.parametrize("public", [False, True])
def test_push(woof, tmp_path, hub, name, public):
    exported = push(woof, tmp_path / "set", name, yes=True, public=public)
    assert exported.url == "https://huggingface.co/datasets/me/set"
    info, create, (_, repo, files) = hub.calls
    assert info == "info" and create == ("create", "me/set", not public) and repo == "me/set"
    assert {"README.md", "preview.png", "export.json"} < files
    assert 'load_dataset("me/set"' in (tmp_path / "set" / "README.md").read_text()


@pytest.mark.parametrize("answer, sent", [
    ("y", True), ("YES ", True), ("n", False), ("", False), ("yes please", False)])
def test_push_asks(woof, tmp_path, hub, terminal, answer, sent):
    terminal(answer)
    assert bool(push(woof, tmp_path / "set").url) == sent
    assert bool(hub.calls) == sent, "nothing is sent before the answer"
    question, = terminal.asked
    assert "datasets/me/set" in question and "private" in question and "files" in question


def test_push_says_public_loudly(woof, tmp_path, hub, terminal):
    terminal("n")
    push(woof, tmp_path / "set", public=True)
    assert "as a PUBLIC dataset" in terminal.asked[0]


def test_push_without_a_terminal(woof, tmp_path, hub, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    with pytest.raises(InputError, match="`--yes` sends without asking"):
        push(woof, tmp_path / "set")
    assert not hub.calls and not (tmp_path / "set").exists()


@pytest.mark.parametrize("private, files, settings, words", [
    (False, [], {}, "to be private, but it is public"),
    (True, [], {"public": True}, "to be public, but it is private"),
    (True, ["images/old.png"], {}, "it holds other files, such as images/old.png"),
])
def test_a_dataset_that_is_there_already(woof, tmp_path, hub, private, files, settings, words):
    hub.there["me/set"] = (private, files)
    with pytest.raises(InputError, match=words):
        push(woof, tmp_path / "set", yes=True, **settings)
    assert hub.calls == ["info"]


def test_an_export_is_sent_again(woof, tmp_path, hub):
    hub.there["me/set"] = (True, [".gitattributes", "README.md", "export.json"])
    assert push(woof, tmp_path / "set", yes=True).url


def refusal(response=SimpleNamespace(headers={}, request=None)):
    return huggingface_hub.errors.HfHubHTTPError("403 Forbidden\nmore", response=response)


@pytest.mark.parametrize("error, words", [
    (ConnectionError("Name or service not known"), r"could not be reached \(Name or service"),
    (TimeoutError(), r"could not be reached \(TimeoutError\)"),
    (refusal(), r"refused \(403 Forbidden\). Log in"),
    (huggingface_hub.errors.LocalTokenNotFoundError("no token"), r"refused \(no token\). Log in"),
])
@pytest.mark.parametrize("step", ["repo_info", "create_repo", "upload_folder"])
def test_a_hub_that_fails_is_one_clear_line(woof, tmp_path, hub, monkeypatch, step, error, words):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(hub, step, fail)
    with pytest.raises(InputError, match=words) as raised:
        push(woof, tmp_path / "set", yes=True)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "set" / "export.json").exists(), "the export itself is kept"


# The command


def test_command(woof, tmp_path, capsys):
    assert main(["export", str(woof), "--format", "rded", "--to", str(tmp_path / "set")]) == 0
    said = capsys.readouterr().out
    assert f"The export is in {tmp_path}/set." in said
    assert "    from validation.utils import ImageFolder" in said
    assert main(["export", str(woof), "--format", "rded", "--to", str(woof)]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("manifoldgd: Expected") and "Choose another `--to`" in line


def test_command_that_does_not_send(woof, tmp_path, capsys, hub, terminal):
    terminal("no")
    push_it = ["--format", "parquet", "--to", str(tmp_path / "set"), "--push-to-hub", "me/set"]
    assert main(["export", str(woof), *push_it]) == 0
    assert "Nothing was sent." in capsys.readouterr().out
    terminal("yes")
    assert main(["export", str(woof), *push_it]) == 0
    assert "It was sent to https://huggingface.co/datasets/me/set." in capsys.readouterr().out


def test_command_and_a_hub_out_of_reach(woof, tmp_path):
    "In a process of its own, with the real client switched off."
    code = "import sys; from manifoldgd.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["export", woof, "--format", "webdataset", "--to", tmp_path / "set",
                 "--push-to-hub", "me/set", "--yes"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2
    line, = done.stderr.splitlines()
    assert "could not be reached" in line
    assert (tmp_path / "set" / "README.md").exists()
