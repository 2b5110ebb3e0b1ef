"""What the data pages refuse, and the odd image files that they read."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldgd.data import images
from manifoldgd.data.classes import ImageClass
from manifoldgd.data.images import (
    ENDINGS,
    ArrayImages,
    FolderImages,
    decode_image,
    flatten_image,
    mean_and_std,
    resize_and_crop,
)
from manifoldgd.data.sources import digits_data, load_data
from manifoldgd.errors import InputError


def save_images(folder, files, color="green"):
    "Save an image of one color under each of the names."
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), color).save(folder / file)
    return folder


def encoded(image, kind="png", **options):
    "The bytes of an image as a file."
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="nowhere to be a folder with one folder of images"):
        FolderImages(tmp_path / "nowhere")


def test_a_folder_without_class_folders_is_refused(tmp_path):
    save_images(tmp_path, ["a.png"])
    (tmp_path / ".cache").mkdir()
    with pytest.raises(InputError, match="but found no class folder there"):
        FolderImages(tmp_path)


@pytest.mark.parametrize("file", [
    "notes.txt",
    ".hidden.png",
    ".thumbnails/a.png",
    "more/.thumbnails/a.png",
    "folder.png/readme.md",
])
def test_a_class_folder_without_images_is_refused(tmp_path, file):
    save_images(tmp_path, ["dog/a.png"])
    (tmp_path / "cat" / file).parent.mkdir(parents=True)
    (tmp_path / "cat" / file).write_text("not an image")
    with pytest.raises(InputError, match="Expected images .* in the class folder .*cat, but"):
        FolderImages(tmp_path)


def test_every_ending_is_named_and_read(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(InputError) as caught:
        FolderImages(tmp_path)
    assert all(ending in str(caught.value) for ending in ENDINGS)

    files = [f"cat/{i}{ending}" for i, ending in enumerate(sorted(ENDINGS))]
    data = FolderImages(save_images(tmp_path, files, color="white"))
    assert data.files == files
    assert data.images(size=8).min() == 1


@pytest.mark.parametrize("ending", sorted(ENDINGS))
@pytest.mark.parametrize("share", [0, .02, .5])
def test_a_damaged_image_is_named(tmp_path, ending, share):
    file = tmp_path / "cat" / f"a{ending}"
    file.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(InputError, match=rf"cat/a\{ending} to be an image, but .* Remove or"):
        FolderImages(tmp_path).images()


def test_the_message_on_a_damaged_image_is_the_same_every_time(tmp_path):
    data = FolderImages(save_images(tmp_path, ["cat/a.png"]))
    data.paths[0].write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        data.images()
    reason = "it could not be read (its format is not known). Remove or replace it."
    assert str(caught.value) == f"Expected {data.paths[0]} to be an image, but {reason}"


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.png").symlink_to("nowhere")
    data = FolderImages(tmp_path)
    for read in (data.fingerprint, data.images):
        with pytest.raises(InputError, match=r"a\.png to be an image, but it could not be read"):
            read()


@pytest.mark.parametrize("limit", ["PIXELS", "SIDE"])
def test_an_image_of_absurd_size_is_named(tmp_path, monkeypatch, limit):
    data = FolderImages(save_images(tmp_path, ["cat/a.png"]))
    monkeypatch.setattr(images, limit, 11)
    with pytest.raises(InputError, match=r"a\.png to be an image, but .*it has 12 x 10 pixels"):
        data.images()


def test_a_dataset_below_a_hidden_folder_is_found(tmp_path):
    root = save_images(tmp_path / ".cache" / "fruit", ["apple/a.png"])
    assert FolderImages(root).files == ["apple/a.png"]


def test_labels_follow_the_sorted_folders(tmp_path):
    save_images(tmp_path, ["b/1.png", "b/2.png", "a/3.png", "c_d/4.png"])
    data = FolderImages(tmp_path, "mine")
    assert data.files == ["a/3.png", "b/1.png", "b/2.png", "c_d/4.png"]
    assert data.labels.tolist() == [0, 1, 1, 2]
    assert data.labels.dtype == torch.int64
    assert data.classes[2] == ImageClass("c_d", "c d")
    assert data.name == "mine"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation):
    stored = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    exif = stored.getexif()
    exif[0x0112] = orientation
    read = np.asarray(decode_image(encoded(stored, exif=exif)))
    rows, columns = np.mgrid[:3, :4]
    # EXIF: which edges of the picture the first row and the first column of the file are.
    target = {
        1: (rows, columns),
        2: (rows, 3 - columns),
        3: (2 - rows, 3 - columns),
        4: (2 - rows, columns),
        5: (columns, rows),
        6: (columns, 2 - rows),
        7: (3 - columns, 2 - rows),
        8: (3 - columns, rows),
    }[orientation]
    assert read.shape == ((3, 4) if orientation < 5 else (4, 3))
    assert (read[target] == np.asarray(stored)).all()


@pytest.mark.parametrize("mode, value, gray", [
    ("1", 1, 255),
    ("L", 7, 7),
    ("LA", (0, 0), 255),
    ("LA", (0, 255), 0),
    ("RGBA", (0, 0, 0, 255), 0),
    ("RGBA", (90, 0, 0, 0), 255),
    ("CMYK", (0, 0, 0, 255), 0),
    ("I;16", 65535, 255),
    ("I;16", 128, 0),
    ("I;16", 129, 1),
    ("I", 70000, 255),
])
def test_every_mode_becomes_8_bits_on_white(mode, value, gray):
    flat = flatten_image(Image.new(mode, (2, 2), value))
    assert flat.mode in ("L", "RGB")
    assert (np.asarray(flat) == gray).all()


def test_the_clear_color_of_a_palette_becomes_white():
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putdata([0, 1])
    read = decode_image(encoded(picture, transparency=1))
    assert [read.getpixel((x, 0)) for x in (0, 1)] == [(255, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("size", [(100, 7), (7, 100), (33, 32), (32, 33), (1, 1)])
def test_every_shape_is_brought_to_size(size):
    resized = resize_and_crop(Image.new("RGB", size, "red"), 32)
    assert resized.size == (32, 32)
    assert (np.asarray(resized) == [255, 0, 0]).all()


def test_images_are_read_in_the_order_asked_for():
    arrays = np.arange(5, dtype=np.uint8).reshape(5, 1, 1) * np.ones((1, 4, 4), np.uint8)
    data = ArrayImages(arrays, [0] * 5, [ImageClass("a", "a")], "five")
    read = data.images(torch.tensor([3, 1, 1]), size=4, channels=1)
    assert ((read[:, 0, 0, 0] + 1) * 127.5).round().tolist() == [3, 1, 1]


def test_mean_and_std_of_a_folder(tmp_path):
    save_images(tmp_path, ["a/1.png", "b/2.png"], color="black")
    save_images(tmp_path, ["b/3.png", "b/4.png"], color=(255, 255, 0))
    mean, std = mean_and_std(FolderImages(tmp_path), size=8, channels=3)
    assert torch.allclose(mean, torch.tensor([0., 0., -1.]))
    assert torch.allclose(std, torch.tensor([1., 1., 1e-6]), atol=1e-7)


def test_an_unknown_dataset_is_refused(tmp_path):
    with pytest.raises(InputError, match='to be "digits", a folder .* no folder \'no/such\''):
        load_data("no/such")
    file = tmp_path / "images.zip"
    file.write_text("a file")
    with pytest.raises(InputError, match="there is no folder"):
        load_data(str(file))


@pytest.mark.parametrize("split, wanted", [
    ("validation", "val or validation or valid"),
    ("test", "test or testing or val or validation or valid"),
])
def test_a_missing_split_is_refused(tmp_path, split, wanted):
    save_images(tmp_path, ["train/a/1.png"])
    message = f"Expected a folder {wanted} in .* for the {split} split, but found none"
    with pytest.raises(InputError, match=message):
        load_data(str(tmp_path), split)


@pytest.mark.parametrize("folders, split, opened", [
    (["train", "val", "test"], "test", "test"),
    (["train", "val", "validation"], "test", "val"),
    (["train", "validation"], "validation", "validation"),
    (["train", "validation"], "test", "validation"),
    (["train", "test"], "train", "train"),
])
def test_a_split_is_found_by_the_name_of_its_folder(tmp_path, folders, split, opened):
    for folder in folders:
        save_images(tmp_path, [f"{folder}/a/{folder}.png"])
    assert load_data(str(tmp_path), split).files == [f"a/{opened}.png"]


def test_a_folder_in_the_home_is_found(tmp_path, monkeypatch):
    save_images(tmp_path, ["fruit/apple/a.png"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_data("~/fruit").name == "fruit"


def test_the_fingerprints_of_the_digits_are_known():
    prints = {split: digits_data(split).fingerprint() for split in ("train", "test")}
    assert prints == {
        "train": "726a8602ac742eb654f18ef7f5d04bd80361802e2fded54968bfc1e7eb9c74eb",
        "test": "b441d8af09da8b0f5531dea942da0ee1094cf81dbf6d7cd2eaf38064ce26712c",
    }
