"""What `core` refuses, and what it leaves behind when it is stopped."""
import os
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldgd import core
from manifoldgd.core import (
    draw_noise,
    from_pil,
    git_commit,
    image_generator,
    image_grid,
    pick_device,
    replacing,
    to_pil,
    to_points,
)
from manifoldgd.errors import InputError


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "mps:7"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(InputError, match=f"Expected `device` to be .* but got '{device}': "):
        pick_device(device)


def test_a_refused_device_is_told_in_one_line():
    with pytest.raises(InputError) as caught:
        pick_device("gpu")
    assert "\n" not in str(caught.value)


def test_auto_takes_a_device_that_works():
    assert torch.ones(2, device=pick_device()).sum().item() == 2


def test_points_of_latents_with_no_axis_and_with_one():
    assert to_points(torch.zeros(3)).shape == (3, 1)
    assert to_points(torch.zeros(2, 5)).shape == (2, 5)


def test_generators_of_folders_beyond_ascii_differ():
    names = ["löwe", "lowe", "狮子"]
    assert len({image_generator(0, name, 0).initial_seed() for name in names}) == 3


def test_noise_in_float64_is_the_noise_in_float32():
    single = draw_noise((4, 2), [image_generator(0, "dog", 0)])
    double = draw_noise((4, 2), [image_generator(0, "dog", 0)], dtype=torch.float64)
    assert double.dtype == torch.float64
    assert torch.equal(single.double(), double)


def test_a_generator_goes_on_where_it_stopped():
    generator = image_generator(0, "dog", 0)
    first = draw_noise((4,), [generator])
    second = draw_noise((4,), [generator])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (3, "RGB")])
def test_images_have_the_mode_of_their_channels(channels, mode):
    images = to_pil(torch.zeros(2, channels, 4, 6))
    assert [image.mode for image in images] == [mode, mode]
    assert [image.size for image in images] == [(6, 4), (6, 4)]


def test_a_color_image_becomes_gray_and_a_gray_one_color():
    color = Image.new("RGB", (3, 2), (255, 0, 0))
    gray = from_pil(color, channels=1)
    assert gray.shape == (1, 2, 3)
    assert torch.allclose(gray, torch.full((1, 2, 3), 76 / 127.5 - 1))
    assert from_pil(Image.new("L", (3, 2), 255)).eq(1).all()


def test_a_grid_puts_each_image_in_its_place():
    grays = torch.linspace(-1, 1, 6).reshape(6, 1, 1, 1).expand(6, 1, 2, 3)
    picture = np.asarray(image_grid(grays, columns=4, margin=2))
    assert picture.shape == (2 + 2 + 2, 4 * 3 + 3 * 2)
    assert picture[0, ::5].tolist() == [0, 51, 102, 153]
    assert picture[4, [0, 5]].tolist() == [204, 255]
    assert (picture[4:, 10:] == 255).all()
    assert (picture[2:4] == 255).all()


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_file_is_whole_or_absent(tmp_path, stop):
    path = tmp_path / "run" / "manifest.json"
    with pytest.raises(stop):
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise stop
    assert list(path.parent.iterdir()) == []


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["table.csv"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    "A git checkout with one commit, in the place of the package."

    def git(*command):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *who, *command]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    package = tmp_path / "package"
    package.mkdir()
    (package / "module.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "First")
    monkeypatch.setattr(core, "packaged", lambda: package)
    return git


def test_the_commit_is_the_last_that_touched_the_package(checkout, tmp_path):
    first = checkout("rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("beside the package")
    assert git_commit() == first
    checkout("add", ".")
    checkout("commit", "-q", "-m", "Notes")
    assert checkout("rev-parse", "HEAD") != first
    assert git_commit() == first


def test_a_changed_package_is_marked(checkout, tmp_path):
    first = checkout("rev-parse", "HEAD")
    (tmp_path / "package" / "module.py").write_text("x = 2\n")
    assert git_commit() == first + "+"


def test_there_is_no_commit_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(core, "packaged", lambda: tmp_path)
    assert git_commit() == ""


def test_there_is_no_commit_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_commit() == ""
