"""Galleries: files that can be sent, and names that fit, whatever they are."""
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFont

from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.runs import LARGEST, break_lines, gallery, gallery_png, name_column


def noise(n, size, seed=0):
    "Pictures that no format can make smaller."
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def test_a_file_is_never_larger_than_four_megabytes():
    "400 pictures of noise would be a file of 20 MB."
    data = gallery_png(noise(400, 128), 20, [f"class {c}" for c in range(20)])
    assert LARGEST / 2 < len(data) <= LARGEST <= 4 * 10 ** 6
    picture = Image.open(io.BytesIO(data))
    assert picture.width > picture.height  # the names are beside the pictures


def test_small_pictures_are_shown_as_they_are():
    pictures = noise(6, 32)
    picture = np.asarray(gallery(pictures, 3, ["one", "two"]))
    assert len(picture) == 2 * 33 - 1
    assert (picture[-32:, -32:] == np.asarray(pictures[5])).all()
    assert (picture[:32, -98:-66] == np.asarray(pictures[0])).all()


def test_tiny_pictures_are_enlarged_until_a_name_fits():
    picture = gallery(noise(2, 8), 1, ["one", "two"])
    assert picture.height == 2 * 17 - 1


@pytest.mark.parametrize("name", ["x" * 500, "word " * 100, "金魚", "", "  ", "n01440764"])
@pytest.mark.parametrize("height", [16, 32, 256])
def test_any_name_fits_beside_its_row(name, height):
    column = np.asarray(name_column([name, "dog"], height))
    assert column.shape[0] == 2 * (height + 1) - 1
    assert column.shape[1] <= max(100, height) + max(12, height // 8) + 2
    assert (column[:, 0] == 255).all()  # nothing is cut off at the left
    assert column[height + 1:].min() < 128  # the dog is there


def test_every_word_of_a_name_is_written_if_there_is_room():
    font = ImageFont.load_default(12)
    lines = break_lines("a garbage truck or dustcart", font, 60, 9)
    assert " ".join(lines) == "a garbage truck or dustcart"
    assert all(font.getlength(line) <= 60 for line in lines)


def test_the_gallery_of_a_run_has_a_named_row_for_each_class(tmp_path):
    out = distill(
        DistillConfig(preset="random", ipc=2, classes="3,8", out=str(tmp_path / "run")),
        progress=False,
    )
    folders = [c["folder"] for c in json.loads((out / "manifest.json").read_text())["classes"]]
    assert folders == ["3", "8"]
    picture = np.asarray(Image.open(out / "gallery.png"))
    shown = [np.asarray(Image.open(out / f"images/{c}/00001.png")) for c in folders]
    assert (picture[:32, -32:] == shown[0]).all()
    assert (picture[-32:, -32:] == shown[1]).all()
    names = picture[:, :-65]
    assert max(names[:32].min(), names[-32:].min()) < 128  # each row has its name
    assert (names[:32] != names[-32:]).any()
