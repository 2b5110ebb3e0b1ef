"""Pixels: bilinear crops as torchvision makes them, files that are believed only when whole."""
from dataclasses import replace
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.data import pixels
from manifoldgd.data.classes import ImageClass
from manifoldgd.data.images import (
    RESIZINGS,
    ArrayImages,
    FolderImages,
    bilinear_crop,
    mean_and_std,
    resize_and_crop,
    select_classes,
)
from manifoldgd.data.pixels import Pixels, kept_pixels, pixels_of
from manifoldgd.errors import InputError
from manifoldgd.students.training import IMAGENET, top1, train_student

CPU = "cpu"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))


def some_data(n=9, size=40, channels=3):
    shape = (n, size, size + 7, channels)[:3 + (channels == 3)]
    arrays = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    classes = [ImageClass("a", "a"), ImageClass("b", "b"), ImageClass("c", "c")]
    return ArrayImages(arrays, [i % 3 for i in range(n)], classes, "noise")


# width, height, size; then width and height after `Resize`, and left and top of `CenterCrop`, from
# int(size * long / short) and int(round((long - size) / 2.)) with Python's rounding, by hand
TORCHVISION = [
    ((500, 375, 224), (298, 224), (37, 0)),
    ((375, 500, 224), (224, 298), (0, 37)),
    ((333, 500, 224), (224, 336), (0, 56)),
    ((256, 256, 224), (224, 224), (0, 0)),
    ((227, 224, 224), (227, 224), (2, 0)),  # 1.5 becomes 2
    ((225, 224, 224), (225, 224), (0, 0)),  # .5 becomes 0
    ((229, 224, 224), (229, 224), (2, 0)),  # 2.5 becomes 2
    ((640, 427, 224), (335, 224), (56, 0)),  # 335.7 is cut off, 55.5 becomes 56
    ((7, 5, 32), (44, 32), (6, 0)),  # 44.8 is cut off
]


@pytest.mark.parametrize("given, resized, corner", TORCHVISION)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_bilinear_crop_is_torchvisions(given, resized, corner, mode):
    width, height, size = given
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    whole = image.resize(resized, Image.Resampling.BILINEAR)
    left, top = corner
    expected = np.asarray(whole)[top:top + size, left:left + size]
    found = bilinear_crop(image, size)
    assert found.mode == mode
    assert np.array_equal(np.asarray(found), expected)


def test_an_image_of_the_size_is_left_alone():
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert bilinear_crop(image, 4) is image


def test_only_protocols_for_photographs_resize_bilinearly():
    named = {name: protocol.resize for name, protocol in PROTOCOLS.items()}
    assert set(named.values()) <= set(RESIZINGS)
    small = [name for name in named if name.endswith(("-32", "-64", "-quick"))]
    assert {named[name] for name in small} == {"bicubic"}
    assert named["hard-label-256"] == "bilinear"


def test_mean_and_std_are_those_of_the_resized_images():
    data = some_data()
    images = data.images(size=8, crop=bilinear_crop)
    mean, std = mean_and_std(data, 8, 3, bilinear_crop)
    assert torch.allclose(mean, images.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(std, images.std((0, 2, 3), correction=0), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", RESIZINGS.values())
def test_pixels_are_the_images_to_the_last_bit(monkeypatch, channels, crop):
    data = some_data(channels=channels)
    images = data.images(size=16, channels=channels, crop=crop)
    in_memory = pixels_of(data, 16, channels, crop)
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    in_file = pixels_of(data, 16, channels, crop, workers=3)
    assert torch.is_tensor(in_memory.store) and not torch.is_tensor(in_file.store)
    for found in (in_memory, in_file):
        assert torch.equal(found[:], images)
        assert torch.equal(found.to(CPU)[torch.tensor([[8, 0], [3, 3]])],
                           images[torch.tensor([[8, 0], [3, 3]])])
        assert [len(part) for part in found.split(4)] == [4, 4, 1]
        assert found[2:2].shape == (0, channels, 16, 16)


@pytest.mark.parametrize("damage", [
    lambda raw: raw[:-1],
    lambda raw: raw + b"\0",
    lambda raw: b"",
    lambda raw: bytes(len(raw)),
    lambda raw: bytes([raw[0] ^ 1]) + raw[1:],
    lambda raw: raw[:-1] + bytes([raw[-1] ^ 128]),
])
def test_a_damaged_file_is_made_again(damage):
    data = some_data()
    path = kept_pixels(data, (9, 3, 8, 8), resize_and_crop, 1).path
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    kept_pixels(data, (9, 3, 8, 8), resize_and_crop, 1)
    assert path.read_bytes() == whole


def test_a_file_for_each_order_of_the_images(tmp_path):
    for name, color in (("a", "red"), ("b", "blue")):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), color).save(tmp_path / "data" / name / "1.png")
    data = FolderImages(tmp_path / "data")
    swapped = select_classes(data, [1, 0])
    mirrored = FolderImages(tmp_path / "data", found={"b": ["b/1.png"], "a": ["a/1.png"]})
    for each in (data, swapped, mirrored):
        found = Pixels(kept_pixels(each, (2, 3, 8, 8), resize_and_crop, 1))
        assert torch.equal(found[:], each.images(size=8))


def test_many_who_want_the_same_pixels_decode_them_once(monkeypatch):
    data = some_data()
    seen = []
    real = ArrayImages.open
    monkeypatch.setattr(ArrayImages, "open", lambda self, i: seen.append(i) or real(self, i))
    arguments = (data, (9, 3, 8, 8), resize_and_crop, 1)
    workers = [Thread(target=kept_pixels, args=arguments) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(seen) == list(range(9))


def test_a_disk_without_room_is_noticed_before_the_work(monkeypatch):
    monkeypatch.setattr(ArrayImages, "open", lambda self, i: pytest.fail("it was decoded"))
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(InputError, match="Expected room for 0.0 GB of pixels in .*pixels, but"):
        kept_pixels(some_data(), (9, 3, 8, 8), resize_and_crop, 1)


@pytest.mark.parametrize("name, student", [
    ("hard-label-256", "ConvNet"),
    ("hard-label-32", "ConvNet"),
    ("plain-32", "ConvNet"),
])
@pytest.mark.parametrize("limit", [0, 2 ** 30])
def test_a_training_on_pixels_is_the_training_on_images(monkeypatch, name, student, limit):
    monkeypatch.setattr(pixels, "IN_MEMORY", limit)
    data = some_data()
    protocol = replace(PROTOCOLS[name], student=student, depth=2, width=4, image_size=32,
                       epochs=((None, 2),), batch_size=4)
    crop = RESIZINGS[protocol.resize]
    streamed = pixels_of(data, 32, 3, crop)
    settings = (data.labels, protocol, 3, 3, 0, IMAGENET)
    students = [train_student(images, *settings)
                for images in (data.images(size=32, crop=crop), streamed)]
    weights = [torch.cat([p.flatten() for p in s.parameters()]) for s in students]
    assert torch.equal(*weights)
    assert top1(students[0], streamed, data.labels) == top1(
        students[0], streamed[:], data.labels)
