"""Where images come from: layouts of folders, the hub, named datasets, names, damaged files."""
import inspect
import json
import shutil
import socket
import sys
import threading
import time
import warnings
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from manifoldgd.backbones.backbone import load_backbone, tiny_backbone
from manifoldgd.config.commands import EvaluateConfig, MetricsConfig, PretrainConfig
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.data import hub, sources
from manifoldgd.data.classes import (
    ClassMap,
    ImageClass,
    choose_classes,
    imagenet_labels,
    imagenet_names,
    read_names,
)
from manifoldgd.data.hub import ask_hub, folder_name, load_splits
from manifoldgd.data.images import ArrayImages, class_of_folder
from manifoldgd.data.layouts import open_folder
from manifoldgd.data.named import (
    DATASETS,
    check_named,
    class_lists,
    find_named,
    key_of,
    named_classes,
    seen_in_training,
    warn_of_overlap,
)
from manifoldgd.data.sources import Source, load_data, named_of, source_of
from manifoldgd.distillation.distill import check_ipc, distill, open_inputs, warn_of_imbalance
from manifoldgd.errors import InputError, did_you_mean, shortened
from manifoldgd.evaluation.accuracy import list_trainings
from manifoldgd.evaluation.measurement import open_measured


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    "Caches of its own for each test."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    "The library `datasets`, without its progress bars and with a cache of its own."
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
    return library


def save(folder, *files, color="green"):
    "Save a small image under each of the names."
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), color).save(folder / file)
    return folder


def classes_of(*folders):
    "A class for each folder, called like it."
    return [ImageClass(folder, folder) for folder in folders]


def in_memory(counts, name="heap"):
    "Images of one pixel, so many of each class."
    pixels = np.zeros((sum(counts.values()), 1, 1), dtype=np.uint8)
    labels = np.repeat(range(len(counts)), list(counts.values()))
    return ArrayImages(pixels, labels, [class_of_folder(folder) for folder in counts], name)


# Words


@pytest.mark.parametrize("items, text", [
    ([], ""),
    ("ab", "a, b"),
    ("abcde", "a, b, c, d, e"),
    ("abcdef", "a, b, c, d, e, ..."),
])
def test_a_long_list_ends_in_an_ellipsis(items, text):
    assert shortened(items) == text


def test_near_words_are_offered_whatever_their_capitals():
    assert did_you_mean("ZEBRa", ["zebra", "horse"]) == "Did you mean 'zebra'?"
    assert did_you_mean("tench", []) == ""


# Classes


@pytest.mark.parametrize("classes, words", [
    (classes_of("a", "b", "a"), "a folder of its own, but several have a"),
    (classes_of("Cat", "cat"), "a folder of its own, but several have cat"),
    ([ImageClass("a", "a", wnid="n01440764"), ImageClass("n01440764", "b")], "an ImageNet id"),
    ([ImageClass(x, x, evaluator_id=3) for x in "ab"], "an evaluator's id of its own"),
])
def test_a_class_map_with_a_mistake_cannot_be_made(classes, words):
    with pytest.raises(InputError, match=words):
        ClassMap(classes)


def test_a_class_map_survives_json():
    classes = ClassMap(classes_of("a", "n01440764")).with_conditions([7, None])
    rows = classes.rows()
    assert json.loads(json.dumps(rows)) == rows
    assert [row["label"] for row in rows] == [7, None]
    assert [row["wnid"] for row in rows] == ["", "n01440764"]
    assert not any("evaluator_id" in row for row in rows)


def test_classes_are_chosen_by_folder_name_synonym_or_id_in_the_datas_order():
    classes = [class_of_folder(folder) for folder in ("n01440764", "n01443537", "golf_ball")]
    by_name, by_synonym = ["golf ball", "tench"], ["golf_ball", "Tinca tinca"]
    for wanted in (by_name, by_synonym, ["golf ball", "n01440764"]):
        assert choose_classes(ClassMap(classes), wanted) == [0, 2]


def test_a_folder_goes_before_a_name_that_another_class_shares():
    classes = ClassMap([ImageClass("crane", "crane"), ImageClass("n03126707", "crane")])
    assert choose_classes(classes, ["crane"]) == [0]
    wnids = ClassMap(class_of_folder(wnid) for wnid in ("n02012849", "n03126707"))
    assert choose_classes(wnids, ["n03126707"]) == [1]
    with pytest.raises(InputError, match=r"may be 0 \(crane, n02012849\) or 1 \(crane, n03126707"):
        choose_classes(wnids, ["crane"])


def test_unknown_classes_are_named_with_the_nearest():
    with pytest.raises(InputError, match=r"\(cat, dog\), but 'dgo', 'owl' is none. Did .* 'dog'"):
        choose_classes(ClassMap(classes_of("cat", "dog")), ["cat", "dgo", "owl"])


def test_names_are_read_from_a_list_a_text_or_a_file(tmp_path):
    file = tmp_path / "names.txt"
    file.write_text("# two classes\n\ntench, Tinca tinca\n golf ball \n")
    assert read_names(str(file)) == ["tench, Tinca tinca", "golf ball"]
    assert read_names("tench, golf ball,") == ["tench", "golf ball"]
    assert read_names(("a", "b")) == ["a", "b"]
    assert read_names(None) is None
    with pytest.raises(InputError, match="to name classes, but got ' , '"):
        read_names(" , ")


# Layouts


@pytest.mark.parametrize("files, split, found", [
    (["a/1.png", "b/2.png"], "train", ["a/1.png", "b/2.png"]),
    (["train/a/1.png", "val/a/2.png"], "train", ["a/1.png"]),
    (["training/a/1.png", "testing/a/2.png"], "test", ["a/2.png"]),
    (["Train/a/1.png", "Test/a/2.png"], "test", ["a/2.png"]),
    (["train/a/1.png", "valid/a/2.png"], "validation", ["a/2.png"]),
    (["train/a/1.png", "valid/a/2.png", "test/3.png"], "test", ["a/2.png"]),
    (["train/a/1.png", "val/a/2.png", "test/images/3.png"], "test", ["a/2.png"]),
    (["train/a/images/1.JPEG", "train/b/images/2.JPEG"], "train",
     ["a/images/1.JPEG", "b/images/2.JPEG"]),
    (["train/a/1.png", "train/.cache/2.png", "__MACOSX/train/a/._1.png"], "train", ["a/1.png"]),
    (["a/1.png", "a/@eaDir/1.jpg", "__MACOSX/a/1.png", "b/2.png"], "train",
     ["a/1.png", "b/2.png"]),
])
def test_layouts_that_are_understood(tmp_path, files, split, found):
    save(tmp_path / "data", *files)
    (tmp_path / "data" / ".DS_Store").write_text("junk")
    data = open_folder(tmp_path / "data", split)
    assert data.files == found
    assert data.name == "data"
    assert (data.images(size=4)[:, 1] > -.1).all()  # green, wherever they lie


@pytest.mark.parametrize("files, split, words", [
    (["set/train/a/1.png", "set/val/a/2.png"], "train", r"Name that one: .*data/set\."),
    (["set/a/1.png", "set/b/2.png", "__MACOSX/set/1.png"], "train", r"Name that one: .*data/set\."),
    (["x/y/train/a/1.png"], "train", r"Name that one: .*data/x/y\."),
    (["val/a/1.png", "test/a/2.png"], "train", "a folder train in .* beside test and val"),
    (["cat/1.png", "val/cat/2.png"], "train", "val has the name of a split, and images lie in cat"),
    (["test/1.png", "cat/2.png"], "train", "test has the name of a split, and images lie in cat"),
    (["test/1.png", "val/2.png"], "train", "a folder train in .* beside test and val"),
    (["cat/1.png", "train/2.png"], "train", "train has the name of a split, and .* in cat"),
    (["cat/1.png", "train/a/2.png"], "train", "train has the name of a split, and .* in cat"),
    (["cat/1.png", "train/2.png"], "test", "train has the name of a split, and .* in cat"),
    (["train/a/1.png", "val/ILSVRC2012_val_00001.JPEG"], "test", "in .*data/val, but found none"),
    (["train/1.png"], "train", "in .*data/train, but found none. If train is a class"),
    (["1.png"], "train", "in .*data, but found none"),
    (["train/a/1.png"], "test", "test or testing or val .* for the test split, but found none"),
])
def test_layouts_that_are_refused(tmp_path, files, split, words):
    save(tmp_path / "data", *files)
    with pytest.raises(InputError, match=words):
        open_folder(tmp_path / "data", split)


@pytest.fixture
def tiny(tmp_path):
    "Two classes of Tiny-ImageNet in its own layout."
    root = save(tmp_path / "tiny", "train/n01443537/images/n01443537_0.JPEG",
                "train/n07747607/images/n07747607_0.JPEG", "val/images/val_0.JPEG",
                "val/images/val_1.JPEG", "val/images/val_2.JPEG", "test/images/test_0.JPEG")
    rows = ["val_0.JPEG\tn07747607\t0\t0\t9\t9", "val_1.JPEG\tn01443537\t0\t0\t9\t9",
            "val_2.JPEG\tn07747607\t0\t0\t9\t9"]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    (root / "train" / "n01443537" / "n01443537_boxes.txt").write_text("n01443537_0.JPEG\t0")
    return root


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_table_of_tiny_imagenet_is_read(tiny, split):
    data = load_data(str(tiny), split)
    assert data.files == ["images/val_1.JPEG", "images/val_0.JPEG", "images/val_2.JPEG"]
    assert data.labels.tolist() == [0, 1, 1]
    assert data.classes == load_data(str(tiny)).classes
    assert load_data(str(tiny), split, classes="orange").labels.tolist() == [0, 0]


def test_a_file_that_the_table_lists_and_is_not_there_is_named(tiny):
    (tiny / "val/images/val_1.JPEG").unlink()
    with pytest.raises(InputError, match=r"annotations.txt lists, but images/val_1.JPEG is not"):
        load_data(str(tiny), "test")


def test_classes_that_are_left_out_are_not_looked_into(tmp_path):
    save(tmp_path / "data", "cat/1.png", "dog/2.png")
    (tmp_path / "data" / "unsure").mkdir()
    with pytest.raises(InputError, match="class folder .*unsure, but found none"):
        load_data(str(tmp_path / "data"))
    data = load_data(str(tmp_path / "data"), classes="dog,cat")
    assert data.files == ["cat/1.png", "dog/2.png"]
    assert data.labels.tolist() == [0, 1]


def test_a_subset_has_the_fingerprint_of_a_folder_of_just_these_classes(tmp_path):
    save(tmp_path / "all", "cat/1.png", "dog/2.png", "owl/3.png")
    shutil.copytree(tmp_path / "all", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "dog")
    subset = load_data(str(tmp_path / "all"), classes="owl,cat")
    assert subset.fingerprint() == load_data(str(tmp_path / "two")).fingerprint()


def test_images_are_in_the_order_of_their_paths(tmp_path):
    names = ["b.png", "a/2.png", "a.b/1.png", "a-1.png", "B.png", "a/1.png"]
    save(tmp_path / "cat", *names)
    data = open_folder(tmp_path)
    assert data.paths == sorted(data.paths)
    assert data.files == [p.relative_to(tmp_path).as_posix() for p in data.paths]


# Damaged files


def test_a_class_without_a_whole_image_is_named(tmp_path):
    save(tmp_path / "data", "cat/1.png", "dog/2.png")
    (tmp_path / "data" / "dog" / "2.png").write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 2 training images of data cannot be read"):
        with pytest.raises(InputError, match="every class in data, but dog has none. .*--classes"):
            load_data(str(tmp_path / "data"))


@pytest.mark.parametrize("ending", [".png", ".jpg", ".bmp", ".webp", ".gif", ".tiff"])
@pytest.mark.parametrize("share", [0, .02, .5, .9])
def test_a_cut_file_of_any_kind_is_left_out(tmp_path, ending, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    save(tmp_path / "data", f"cat/0{ending}", f"dog/0{ending}")
    file = tmp_path / "data" / "cat" / f"1{ending}"
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:int(share * len(whole))])
    with pytest.warns(UserWarning, match=f"cat/1{ending}"):
        data = load_data(str(tmp_path / "data"))
    assert data.files == [f"cat/0{ending}", f"dog/0{ending}"]
    assert [name for name, _ in data.skipped] == [f"cat/1{ending}"]


def test_a_mended_file_is_read_again(tmp_path):
    save(tmp_path / "data", "cat/1.png", "cat/2.png")
    mended = tmp_path / "data" / "cat" / "2.png"
    whole = mended.read_bytes()
    mended.write_bytes(whole[:30])
    with pytest.warns(UserWarning, match="cat/2.png"):
        assert len(load_data(str(tmp_path / "data"))) == 1
    mended.write_bytes(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = load_data(str(tmp_path / "data"))
    assert len(data) == 2
    assert data.skipped == ()


def test_a_record_that_is_damaged_itself_is_no_obstacle(tmp_path):
    save(tmp_path / "data", "cat/1.png")
    load_data(str(tmp_path / "data"))
    for record in (tmp_path / "cache").glob("*"):
        record.write_text("{")
    assert len(load_data(str(tmp_path / "data"))) == 1


def test_a_damaged_test_image_is_an_error_and_never_left_out(tmp_path):
    save(tmp_path / "data", "train/cat/1.png", "test/cat/2.png", "test/cat/3.png")
    (tmp_path / "data" / "test" / "cat" / "3.png").write_bytes(b"cut")
    data = load_data(str(tmp_path / "data"), "test")
    assert len(data) == 2
    with pytest.raises(InputError, match="test/cat/3.png to be an image"):
        data.images(size=4)


# The hub


def make_rows(datasets, labels, names=None, column="label", image="image"):
    "Rows of images, the k-th of gray value 10 k."
    pictures = [Image.new("L", (4, 4), 10 * k) for k in range(len(labels))]
    kind = datasets.ClassLabel(names=names) if names else datasets.Value(
        "string" if isinstance(labels[0], str) else "int64")
    features = datasets.Features({image: datasets.Image(), column: kind})
    return datasets.Dataset.from_dict({image: pictures, column: labels}, features=features)


def save_rows(rows, folder, split="train"):
    "Save rows as Parquet."
    folder.mkdir(exist_ok=True)
    rows.to_parquet(folder / f"{split}-00000.parquet")
    return folder


def grays(data):
    "The gray value of each image."
    return ((data.images(size=4, channels=1)[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()


def test_a_folder_of_images_opens_through_datasets(datasets, tmp_path):
    save(tmp_path / "data", "train/cat/1.png", "train/dog/2.png")
    save(tmp_path / "data", "test/dog/3.png", "test/cat/4.png")
    train = load_data(f"hf:{tmp_path / 'data'}")
    assert [c.folder for c in train.classes] == ["cat", "dog"]
    assert train.labels.tolist() == [0, 1]
    assert train.images(size=4).shape == (2, 3, 4, 4)
    assert sorted(load_data(f"hf:{tmp_path / 'data'}", "test").labels.tolist()) == [0, 1]


def test_labels_follow_the_feature_and_not_the_order_of_the_rows(datasets, tmp_path):
    rows = make_rows(datasets, [2, 0, 1, 0], names=["zebra", "ant", "cat"])
    data = load_data(f"hf:{save_rows(rows, tmp_path / 'zoo')}")
    assert [c.folder for c in data.classes] == ["zebra", "ant", "cat"]
    assert data.labels.tolist() == [2, 0, 1, 0]
    assert grays(data) == [0, 10, 20, 30]
    chosen = load_data(f"hf:{tmp_path / 'zoo'}", classes="cat,zebra")
    assert [c.folder for c in chosen.classes] == ["zebra", "cat"]
    assert chosen.labels.tolist() == [1, 0, 0]
    assert grays(chosen) == [0, 10, 30]


def test_columns_are_named_where_types_do_not_tell(datasets, tmp_path):
    rows = make_rows(datasets, ["wolf", "fox", "wolf"], column="animal", image="photo")
    folder = save_rows(rows, tmp_path / "zoo")
    with pytest.raises(InputError, match="of type ClassLabel among photo, animal, but none is"):
        load_data(f"hf:{folder}")
    data = load_data(f"hf:{folder}", label_column="animal")
    assert [c.folder for c in data.classes] == ["fox", "wolf"]
    assert data.labels.tolist() == [1, 0, 1]
    with pytest.raises(InputError, match="`image_column` to be one of .* Did you mean 'photo'?"):
        load_data(f"hf:{folder}", label_column="animal", image_column="foto")


def test_two_columns_of_labels_need_a_choice(datasets, tmp_path):
    rows = make_rows(datasets, [0, 1], names=["cat", "dog"], column="fine")
    rows = rows.add_column("coarse", [0, 0])
    rows = rows.cast_column("coarse", datasets.ClassLabel(names=["pet"]))
    folder = save_rows(rows, tmp_path / "zoo")
    with pytest.raises(InputError, match="but fine, coarse are. Name it with `--label-column`"):
        load_data(f"hf:{folder}")
    assert len(load_data(f"hf:{folder}", label_column="coarse").classes) == 1


def test_columns_are_for_the_hub_only(tmp_path):
    save(tmp_path / "data", "cat/1.png")
    with pytest.raises(InputError, match="`label_column` to be given with a dataset of the hub"):
        load_data(str(tmp_path / "data"), label_column="label")


def test_a_test_split_without_labels_is_passed_over(datasets, tmp_path):
    folder = tmp_path / "zoo"
    save_rows(make_rows(datasets, [0, 1], names=["cat", "dog"]), folder)
    save_rows(make_rows(datasets, [1, 0, 1], names=["cat", "dog"]), folder, "validation")
    save_rows(make_rows(datasets, [-1, -1], names=["cat", "dog"]), folder, "test")
    assert load_data(f"hf:{folder}", "test").labels.tolist() == [1, 0, 1]


def test_rows_without_a_label_are_left_out(datasets, tmp_path):
    folder = save_rows(make_rows(datasets, [0, -1, 1], names=["cat", "dog"]), tmp_path / "zoo")
    data = load_data(f"hf:{folder}")
    assert data.labels.tolist() == [0, 1]
    assert grays(data) == [0, 20]


def test_a_split_that_is_not_there_is_told(datasets, tmp_path):
    folder = save_rows(make_rows(datasets, [0], names=["cat"]), tmp_path / "zoo")
    with pytest.raises(InputError, match="split test or testing or val .* but it has train"):
        load_data(f"hf:{folder}", "test")


def test_a_class_without_rows_is_named(datasets, tmp_path):
    folder = save_rows(make_rows(datasets, [0, 0], names=["cat", "dog"]), tmp_path / "zoo")
    with pytest.raises(InputError, match="every class in zoo, but dog has none"):
        load_data(f"hf:{folder}")
    assert len(load_data(f"hf:{folder}", classes="cat")) == 2


def test_a_damaged_row_is_left_out_of_training_and_named(datasets, tmp_path):
    rows = make_rows(datasets, [0, 1, 1], names=["cat", "dog"])
    table = rows.cast_column("image", datasets.Image(decode=False)).to_list()
    table[2]["image"]["bytes"] = table[2]["image"]["bytes"][:40]
    broken = datasets.Dataset.from_list(table, features=rows.features)
    folder = save_rows(broken, tmp_path / "zoo")
    save_rows(broken, folder, "test")
    with pytest.warns(UserWarning, match="1 of 3 training images of zoo cannot be read"):
        data = load_data(f"hf:{folder}")
    assert grays(data) == [0, 10]
    assert [row for row, _ in data.skipped] == ["2"]
    with pytest.raises(InputError, match="image 2 of hf:.*zoo, split test to be an image"):
        load_data(f"hf:{folder}", "test").images(size=4)


def test_the_same_rows_have_the_same_stamp_and_others_another(datasets, tmp_path):
    folder = save_rows(make_rows(datasets, [0, 1, 1], names=["cat", "dog"]), tmp_path / "zoo")
    data, again = load_data(f"hf:{folder}"), load_data(f"hf:{folder}")
    assert data.stamp(1) == again.stamp(1)
    assert data.stamp(1) != data.stamp(0)
    assert data.keep([0, 1]).stamp(1) != data.keep([0, 2]).stamp(1)
    assert data.keep([0, 1]).fingerprint() != data.keep([0, 2]).fingerprint()


@pytest.mark.parametrize("name, folder", [
    ("tench, Tinca tinca", "tench"),
    ("T-shirt/top", "T-shirt_top"),
    ("..", "class"),
    ("Schäferhund", "Schäferhund"),
    (" a  b ", "a__b"),
    ("n01440764", "n01440764"),
])
def test_a_class_of_the_hub_gets_a_folder(name, folder):
    assert folder_name(name) == folder


def test_a_missing_extra_is_one_line_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install "datasets>=4"') as caught:
        load_data("hf:uoft-cs/cifar10")
    assert "\n" not in str(caught.value)


def test_a_script_is_refused_with_a_copy_where_one_is_known(datasets, monkeypatch):
    def refuse(name, config):
        raise RuntimeError(f"Dataset scripts are no longer supported, but found {name}.py")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(hub, "ask_hub", lambda name: "")
    with pytest.raises(InputError, match="is a script, .* hf:johnowhitaker/imagenette2-320"):
        load_data("hf:frgfm/imagenette:320px")
    with pytest.raises(InputError, match="is a script, .* a copy in Parquet"):
        load_data("hf:some/script")


def test_a_real_script_is_recognised(datasets, tmp_path):
    save(tmp_path / "zoo", "train/cat/1.png")
    (tmp_path / "zoo" / "zoo.py").write_text("raise SystemExit")
    with pytest.raises(InputError, match="zoo to hold data, but it is a script"):
        load_data(f"hf:{tmp_path / 'zoo'}")


def test_a_gated_dataset_says_where_to_ask(datasets, monkeypatch):
    def refuse(name, config):
        raise ValueError(f"Dataset '{name}' is a gated dataset on the Hub.\nYou must log in.")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(hub, "ask_hub", lambda name: "")
    with pytest.raises(InputError, match="huggingface.co/datasets/ILSVRC/imagenet-1k, then log"):
        load_data("hf:ILSVRC/imagenet-1k")


@pytest.mark.parametrize("folder", ["empty", "saved"])
def test_what_datasets_cannot_load_is_one_line(datasets, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    make_rows(datasets, [0], names=["cat"]).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="to be a dataset that `datasets` can load") as caught:
        load_data(f"hf:{tmp_path / folder}")
    assert "\n" not in str(caught.value)


class Hub(BaseHTTPRequestHandler):
    "Answer like the hub, for two datasets of which it has one."

    def do_GET(self):
        known = self.path.startswith("/api/datasets/owner/zoo")
        body = b'{"id": "owner/zoo", "sha": "0"}' if known else b'{"error": "no such dataset"}'
        self.send_response(200 if known else 401)
        if not known:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        "Say nothing."


@pytest.fixture
def served(monkeypatch):
    "A hub on this machine."
    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    yield
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent(monkeypatch):
    "A hub that takes the question and never answers."
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        yield


def test_the_hub_knows_a_name_or_does_not(served):
    assert ask_hub("owner/zoo") == ""
    with pytest.raises(InputError, match="owner/ark to be a dataset on the Hugging Face hub, but"):
        ask_hub("owner/ark")


def test_a_name_that_no_hub_allows_is_refused():
    with pytest.raises(InputError, match="to be a dataset on the Hugging Face hub"):
        ask_hub("two/many/parts")


def test_a_silent_hub_is_not_waited_for(silent):
    started = time.monotonic()
    assert ask_hub("owner/zoo", seconds=.3) == "no answer within 0.3 s"
    assert time.monotonic() - started < 5
    assert inspect.signature(ask_hub).parameters["seconds"].default <= 6


def test_an_unreachable_hub_is_said_to_be(datasets, silent, monkeypatch):
    monkeypatch.setattr(hub, "ask_hub", partial(ask_hub, seconds=.3))
    started = time.monotonic()
    with pytest.raises(InputError, match=r"unreachable \(no answer within 0.3 s\), and there is"):
        load_data("hf:owner/zoo")
    assert time.monotonic() - started < 5


def test_a_cached_copy_works_without_the_hub(datasets, silent, tmp_path, monkeypatch):
    folder = save_rows(make_rows(datasets, [0, 1], names=["cat", "dog"]), tmp_path / "zoo")
    load_splits(str(folder))
    made = next((tmp_path / "hf").rglob("dataset_info.json")).parent
    cached = tmp_path / "hf" / "owner___zoo" / "default" / "0.0.0" / "0"
    shutil.copytree(made, cached)
    for file in cached.glob("*.arrow"):
        file.rename(cached / file.name.replace(file.name.split("-")[0], "zoo"))
    info = json.loads((cached / "dataset_info.json").read_text())
    info |= {"config_name": "default", "dataset_name": "zoo"}
    (cached / "dataset_info.json").write_text(json.dumps(info))

    monkeypatch.setattr(hub, "ask_hub", partial(ask_hub, seconds=.3))
    data = load_data("hf:owner/zoo")
    assert [c.folder for c in data.classes] == ["cat", "dog"]
    assert not datasets.config.HF_HUB_OFFLINE  # as it was before


# Named datasets


@pytest.mark.parametrize("name, classes, train, test", [
    ("imagenette:fastai", 10, 9469, 3925),
    ("imagenette:in1k", 10, 12894, 500),
    ("imagewoof:fastai", 10, 9025, 3929),
    ("imagewoof:in1k", 10, 12454, 500),
    ("imagenet100", 100, None, None),
    ("imagenet1k", 1000, 1281167, 50000),
    ("cifar10", 10, 50000, 10000),
    ("tiny-imagenet", 200, 100000, 10000),
])
def test_the_table_says_what_the_papers_say(name, classes, train, test):
    named = DATASETS[name]
    assert (len(named_classes(named)), named.train, named.test) == (classes, train, test)
    folders = [c.folder for c in named_classes(named)]
    assert folders == sorted(folders)


def test_every_class_of_the_lists_is_one_of_imagenet():
    lists = class_lists()["classes"]
    for name in ("imagenette", "imagewoof", "imagenet100", "tiny-imagenet"):
        assert set(lists[name]) <= set(imagenet_labels())


def test_the_evaluators_orders_are_those_of_their_code():
    labels = imagenet_labels()
    orders = {name: [labels[wnid] for wnid in wnids]
              for name, wnids in class_lists()["evaluator_order"].items()}
    assert orders == {
        "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
        "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    }


def test_the_hubs_names_of_tiny_imagenet_lead_to_its_classes():
    renamed = class_lists()["hub_names"]["tiny-imagenet"]
    tiny = set(class_lists()["classes"]["tiny-imagenet"])
    assert len(renamed) == len(set(renamed.values())) == 18
    assert set(renamed.values()) <= tiny
    assert not set(renamed) & tiny


def test_every_name_of_imagenets_hub_copies_leads_to_its_class():
    "They list ImageNet's names in its order, with a 2 behind the second crane."
    named = find_named("imagenet1k")
    names = {wnid: "crane2" if wnid == "n03126707" else name
             for wnid, name in imagenet_names().items()}
    assert [key_of(name, named) for name in names.values()] == list(names)


def test_a_folder_is_checked_class_by_class():
    counts = dict.fromkeys([c.folder for c in named_classes(find_named("imagenette"))], 3)
    lost = {folder: n for folder, n in counts.items() if folder != "n03888257"}
    with pytest.raises(InputError, match=r"found no n03888257 \(parachute\). Get it with"):
        check_named(in_memory(lost), find_named("imagenette"), "train")


def test_classes_may_be_called_by_name_but_only_once():
    counts = dict.fromkeys([c.folder for c in named_classes(find_named("imagenette"))], 3)
    counts["tench"] = counts.pop("n01440764")
    named = replace(find_named("imagenette"), train=30)
    data = check_named(in_memory(counts), named, "train")
    assert data.classes[0].folder == "n01440764"
    assert len(data.of_class(0)) == 3
    with pytest.raises(InputError, match="once in heap, but n01440764 is there more than once"):
        check_named(in_memory(counts | {"n01440764": 1}), named, "train")


def test_a_wrong_count_says_whose_it_is():
    woof = [c.folder for c in named_classes(find_named("imagewoof"))]
    data = in_memory(dict(zip(woof, [903] * 5 + [902] * 5)))
    assert len(data) == 9025
    assert len(check_named(data, find_named("imagewoof:fastai"), "train")) == 9025
    with pytest.raises(InputError, match="12,454 train images .* 9,025. .* imagewoof:fastai has"):
        check_named(data, find_named("imagewoof:in1k"), "train")
    with pytest.raises(InputError, match="500 test images of imagewoof:in1k in heap, but found"):
        check_named(data, find_named("imagewoof:in1k"), "test")


def test_all_of_imagenet_serves_for_a_subset(tmp_path, monkeypatch):
    wnids = [c.folder for c in named_classes(find_named("imagenette"))]
    save(tmp_path / "imagenet", *(f"train/{wnid}/1.png" for wnid in [*wnids, "n01443537"]))
    (tmp_path / "imagenet" / "train" / "n01484850").mkdir()  # a class that is not even looked into
    monkeypatch.setitem(DATASETS, "imagenette:in1k", replace(find_named("imagenette"), train=10))
    data = load_data(str(tmp_path / "imagenet"), named="imagenette:in1k")
    assert [c.folder for c in data.classes] == wnids
    assert data.classes[0].evaluator_id == 0
    two = load_data(str(tmp_path / "imagenet"), named="imagenette", classes="tench,golf ball")
    assert two.files == ["n01440764/1.png", "n03445777/1.png"]


def test_a_named_dataset_is_had_from_the_hub_by_name_and_never_by_number(datasets, monkeypatch):
    names = [c.folder for c in named_classes(find_named("cifar10"))][::-1]
    splits = {"train": make_rows(datasets, list(range(10)), names=names, image="img"),
              "test": make_rows(datasets, [3, 9] * 5, names=names, image="img")}
    asked = []
    monkeypatch.setattr(hub, "load_splits", lambda *name: asked.append(name) or splits)
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], train=10, test=10))
    data = load_data("cifar10")
    assert asked == [("uoft-cs/cifar10", "")]
    assert [c.folder for c in data.classes] == sorted(names)
    assert data.name == "cifar10"
    shown = {data.classes[y].folder: gray for y, gray in zip(data.labels, grays(data))}
    assert shown == {name: 10 * number for number, name in enumerate(names)}
    with pytest.raises(InputError, match="images of every class in cifar10, but automobile, bird"):
        load_data("cifar10", "test")


def test_the_hubs_imagenet_is_cut_to_a_subset(datasets, monkeypatch):
    wanted = {"n01440764": "tench, Tinca tinca", "n03445777": "golf ball"}
    names = ["golf ball", "crane2", "tench, Tinca tinca", "crane"]
    rows = make_rows(datasets, [0, 1, 2, 3, 0], names=names)
    splits = dict.fromkeys(("train", "val", "test"), rows)
    monkeypatch.setattr(hub, "load_splits", lambda *name: splits)
    lists = class_lists()
    lists = lists | {"classes": lists["classes"] | {"imagenette": list(wanted)},
                     "evaluator_order": {"imagenette": list(wanted)[::-1]}}
    monkeypatch.setattr("manifoldgd.data.named.class_lists", lambda: lists)
    monkeypatch.setitem(DATASETS, "imagenette:in1k", replace(find_named("imagenette"), train=3))
    data = load_data("imagenette:in1k")
    assert [c.folder for c in data.classes] == list(wanted)
    assert [c.evaluator_id for c in data.classes] == [1, 0]
    assert data.labels.tolist() == [1, 0, 1]
    assert grays(data) == [0, 20, 40]
    assert data.name == "imagenette-in1k"


def test_a_named_dataset_that_the_hub_has_not_says_what_to_do():
    with pytest.raises(InputError, match="imagewoof2-320.tgz .* DIR --named imagewoof:fastai`"):
        load_data("imagewoof:fastai")


def test_an_existing_folder_goes_before_a_name(tmp_path, monkeypatch):
    save(tmp_path / "cifar10", "cat/1.png")
    monkeypatch.chdir(tmp_path)
    assert load_data("cifar10").files == ["cat/1.png"]
    assert named_of(Source("cifar10")) is None
    assert named_of(Source("tiny-imagenet")).train == 100000


@pytest.mark.parametrize("name, near", [
    ("imagenette:fastia", "Did you mean 'imagenette:fastai'"),
    ("cifar", "Did you mean 'cifar10'"),
])
def test_an_unknown_name_is_compared_with_those_known(tmp_path, name, near):
    save(tmp_path / "data", "cat/1.png")
    with pytest.raises(InputError, match=f"`named` to be one of .* but got '{name}'. {near}"):
        load_data(str(tmp_path / "data"), named=name)
    with pytest.raises(InputError, match=f"there is no folder '{name}'. {near}"):
        load_data(name)


@pytest.mark.parametrize("name, seen", [
    ("imagenette:fastai", 3425),
    ("imagewoof:fastai", 3429),
    ("imagenette:in1k", 0),
    ("imagenet1k", 0),
    ("imagenet100", 0),
    ("cifar10", 0),
])
def test_test_images_that_a_backbone_of_imagenet_has_seen(name, seen):
    assert seen_in_training(DATASETS[name]) == seen
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_overlap(DATASETS[name], 1000)
    assert len(caught) == (seen > 0)


# Settings and runs


def test_the_source_is_read_off_any_configuration():
    config = resolve(DistillConfig(data="DIR", named="cifar10", classes="cat,dog", strict=True))
    assert source_of(config) == Source("DIR", "cifar10", "cat,dog", strict=True)
    pretraining = PretrainConfig("DIR", "m", label_column="y")
    assert source_of(pretraining) == Source("DIR", label_column="y")
    assert source_of(SimpleNamespace(data="digits")) == Source("digits")


def test_a_finished_run_knows_its_classes_without_the_file_that_named_them():
    config = SimpleNamespace(data="DIR", classes="gone.txt")
    pets = ("cat", "dog")
    assert source_of(config, "elsewhere", list(pets)) == Source("elsewhere", classes=pets)
    whole = SimpleNamespace(data="DIR", classes=None)
    assert source_of(whole, folders=["cat"]) == Source("DIR")


@pytest.mark.parametrize("data, name", [
    ("digits", "digits"),
    ("hf:uoft-cs/cifar10", "cifar10"),
    ("hf:uoft-cs/cifar10:plain_text", "cifar10-plain_text"),
    ("imagenette:fastai", "imagenette-fastai"),
    ("photos/clothes/", "clothes"),
])
def test_a_run_folder_is_called_by_its_data(data, name):
    assert resolve(DistillConfig(data=data)).out == f"runs/{name}-manifoldgd-ipc10-seed0"


def test_small_classes_are_all_named():
    data = in_memory({"cat": 40, "dog": 45, "misc": 5, "owl": 50, "unsure": 3})
    with pytest.raises(InputError, match=r"least 10 .* in misc \(5\), unsure \(3\). .*--classes"):
        check_ipc(resolve(DistillConfig(ipc=10)), data)
    check_ipc(resolve(DistillConfig(ipc=10, preset="dit")), data)
    with pytest.warns(UserWarning, match=r"one has 40 images, .* in misc \(5\), unsure \(3\)"):
        warn_of_imbalance(data)


def test_balanced_classes_are_not_remarked_on():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_imbalance(load_data("digits"))
        warn_of_imbalance(in_memory({"cat": 10, "dog": 20}))


def test_the_class_map_travels_with_the_data():
    inputs = open_inputs(resolve(DistillConfig(classes="8,3")))
    assert [c.folder for c in inputs.data.classes] == ["3", "8"]
    assert [c.condition for c in inputs.data.classes] == inputs.labels == [3, 8]


def random_run(tmp_path, data, **changes):
    "A run of one real image per class."
    config = DistillConfig(data=data, preset="random", ipc=1, out=str(tmp_path / "run"), **changes)
    return str(distill(config, progress=False))


def test_a_run_of_a_few_classes_is_judged_and_measured_on_these(tmp_path):
    files = [f"{split}/{c}/1.png" for split in ("train", "test") for c in ("cat", "dog", "owl")]
    save(tmp_path / "data", *files)
    listed = tmp_path / "names.txt"
    listed.write_text("owl\ncat\n")
    run = random_run(tmp_path, str(tmp_path / "data"), classes=str(listed))
    listed.unlink()  # the run knows its classes without it
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert [row["folder"] for row in manifest["classes"]] == ["cat", "owl"]
    assert manifest["skipped"] == []
    training, = list_trainings(EvaluateConfig((run,), protocol="plain-32", seeds=1))
    assert training.bench.classes == ["cat", "owl"]
    _, real, places = open_measured(MetricsConfig((run,)))
    assert real.files == ["cat/1.png", "owl/1.png"]
    assert places[0].tolist() == [0, 1]


def test_a_run_of_a_hub_dataset_is_judged_on_its_own_test_split(datasets, tmp_path):
    names = ["cat, Felis", "dog"]
    folder = save_rows(make_rows(datasets, [0, 1], names=names, column="fine"), tmp_path / "zoo")
    save_rows(make_rows(datasets, [1, 0, 1], names=names, column="fine"), folder, "test")
    run = random_run(tmp_path, f"hf:{folder}", label_column="fine")
    assert sorted(p.name for p in (tmp_path / "run" / "images").iterdir()) == ["cat", "dog"]
    training, = list_trainings(EvaluateConfig((run,), protocol="plain-32", seeds=1))
    assert training.bench.classes == ["dog", "cat", "dog"]
    assert training.bench.name == "zoo"


def test_a_damaged_test_image_stops_an_evaluation(tmp_path):
    for split in ("train", "test"):
        save(tmp_path / "data", f"{split}/cat/1.png", f"{split}/dog/1.png")
    run = random_run(tmp_path, str(tmp_path / "data"))
    (tmp_path / "data" / "test" / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match="test/dog/1.png to be an image"):
        list_trainings(EvaluateConfig((run,), protocol="plain-32", seeds=1))


def test_a_backbone_is_warned_of_test_images_it_was_trained_on(tmp_path, monkeypatch):
    wnids = [c.folder for c in named_classes(find_named("imagenette"))]
    save(tmp_path / "data", *(f"train/{wnid}/1.png" for wnid in wnids))
    fastai = replace(DATASETS["imagenette:fastai"], train=10)
    monkeypatch.setitem(DATASETS, "imagenette:fastai", fastai)
    imagenet = tiny_backbone(n_classes=1000)
    monkeypatch.setattr("manifoldgd.distillation.distill.open_backbone", lambda *_: imagenet)
    config = resolve(DistillConfig(data=str(tmp_path / "data"), named="imagenette:fastai"))
    with pytest.warns(UserWarning, match="At least 3,425 of the 3,925 test images of imagenette"):
        inputs = open_inputs(config)
    assert inputs.labels == [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
    assert [c.evaluator_id for c in inputs.data.classes] == list(range(10))


def test_a_backbone_of_an_unreachable_hub_is_said_to_be_out_of_reach(silent, monkeypatch):
    brief = partial(ask_hub, seconds=.3)
    monkeypatch.setattr("manifoldgd.backbones.backbone.ask_hub", brief)
    started = time.monotonic()
    with pytest.raises(InputError, match="could not be loaded: the hub is unreachable .* cache"):
        load_backbone("owner/name")
    assert time.monotonic() - started < 20  # libraries are loaded meanwhile


def test_a_backbone_that_the_hub_has_not_is_told(served):
    with pytest.raises(InputError, match="owner/name to be a model on the Hugging Face hub"):
        load_backbone("owner/name")


def test_the_digits_are_those_of_scikit_learn_wherever_it_keeps_them(monkeypatch, tmp_path):
    found = sources.read_digits()
    elsewhere = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(sources, "find_spec", lambda name: elsewhere)
    for ours, theirs in zip(found, sources.read_digits()):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
