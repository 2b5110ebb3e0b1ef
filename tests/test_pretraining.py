"""Pretraining on bad input, and pretraining that is stopped."""
import dataclasses

import pytest
import torch
from PIL import Image

from manifoldgd.backbones.backbone import load_backbone
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.data.sources import load_data
from manifoldgd.errors import InputError
from manifoldgd.pretraining import training
from manifoldgd.pretraining.training import check_settings, model_card, prepare, pretrain


def make_squares(folder, n=3):
    "A folder of two classes of colored squares."
    for name, tint in (("reddish", 200), ("bluish", 20)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (tint, 40 * i, 220 - tint)).save(folder / name / f"{i}.png")


@pytest.fixture
def config(tmp_path):
    "The settings of a minute training on squares."
    make_squares(tmp_path / "data")
    return PretrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "model"),
        image_size=8,
        channels=3,
        vae_widths=(8, 16),
        vae_steps=3,
        vae_batch_size=4,
        hidden_size=32,
        num_layers=1,
        dit_steps=4,
        dit_batch_size=8,
        every=2,
        device="cpu",
    )


# Settings


@pytest.mark.parametrize(
    "setting, value, message",
    [
        ("vae_steps", 0, "`vae_steps` to be at least 1, but got 0"),
        ("vae_batch_size", -4, "`vae_batch_size` to be at least 1, but got -4"),
        ("dit_steps", 0, "`dit_steps` to be at least 1, but got 0"),
        ("dit_batch_size", 0, "`dit_batch_size` to be at least 1, but got 0"),
        ("num_layers", 0, "`num_layers` to be at least 1, but got 0"),
        ("every", 0, "`every` to be at least 1, but got 0"),
        ("image_size", 0, "`image_size` to be at least 1, but got 0"),
        ("image_size", 10, "`image_size` to be a multiple of 4, but got 10"),
        ("hidden_size", 0, "`hidden_size` to be at least 1, but got 0"),
        ("hidden_size", 40, "`hidden_size` to be a multiple of 32, but got 40"),
        ("vae_widths", (), r"`vae_widths` to be multiples of 8, but got \(\)"),
        ("vae_widths", (10, 20), r"`vae_widths` to be multiples of 8, but got \(10, 20\)"),
        ("vae_widths", (0, 8), r"`vae_widths` to be multiples of 8, but got \(0, 8\)"),
    ],
)
def test_a_setting_that_cannot_work_is_named_before_anything_is_made(
    config, tmp_path, setting, value, message
):
    wrong = dataclasses.replace(config, **{setting: value})
    with pytest.raises(InputError, match=message):
        pretrain(wrong, progress=False)
    assert not (tmp_path / "model").exists()


def test_one_image_is_not_enough(config):
    data = load_data(config.data)
    data.labels = data.labels[:1]
    with pytest.raises(InputError, match="at least two training images, but got 1"):
        check_settings(config, data)


# The folder


@pytest.fixture
def start(config, tmp_path):
    "Prepare the folder for settings that differ from the fixture's."

    def start(**changes):
        changed = dataclasses.replace(config, **changes)
        out = tmp_path / "model"
        prepare(out, out / "training", changed, load_data(changed.data))

    return start


def test_what_may_change_on_the_way(start, tmp_path):
    start()
    make_squares(tmp_path / "elsewhere" / "data")
    moved = str(tmp_path / "elsewhere" / "data")
    start(every=7, device="auto", data=moved)


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"num_layers": 2}, "num_layers"),
        ({"seed": 1, "dit_steps": 9}, "seed, dit_steps"),
    ],
)
def test_another_training_in_the_folder_is_refused(start, changes, names):
    start()
    with pytest.raises(InputError, match=f"differs in {names}. Choose another `--out`"):
        start(**changes)


def test_other_images_are_another_training(start, tmp_path):
    start()
    make_squares(tmp_path / "more", n=4)
    with pytest.raises(InputError, match="differs in fingerprint"):
        start(data=str(tmp_path / "more"))


def test_a_folder_with_other_files_is_left_alone(start, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files. Choose another `--out`"):
        start()
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(start, tmp_path):
    (tmp_path / "model").write_text("years of work")
    with pytest.raises(InputError, match="to be a folder, but it is a file"):
        start()


# A training that is stopped


class Stopped(Exception):
    "The process ends here."


def stop_at(monkeypatch, name):
    "Let a function of the module fail when it is called."

    def stop(*args, **kwargs):
        raise Stopped

    monkeypatch.setattr(training, name, stop)


@pytest.mark.parametrize("place", ["encode_views", "sample_grid", "write_card"])
def test_stopped_pretraining_ends_with_the_same_weights(config, monkeypatch, tmp_path, place):
    "After the VAE, at the first checkpoint of the DiT, and just before the end."
    whole = load_backbone(str(pretrain(config, progress=False)))
    again = dataclasses.replace(config, out=str(tmp_path / "again"))
    with monkeypatch.context() as patch:
        stop_at(patch, place)
        with pytest.raises(Stopped):
            pretrain(again, progress=False)
    assert not (tmp_path / "again" / "README.md").exists()
    resumed = load_backbone(str(pretrain(again, progress=False)))
    assert resumed.fingerprint() == whole.fingerprint()


def test_pretraining_leaves_the_global_generator_alone(config):
    before = torch.random.get_rng_state()
    pretrain(config, progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)


# The model card


def test_model_card_names_at_most_twenty_classes(config):
    data = load_data(config.data)
    data.classes = [data.classes[0]] * 21
    text = model_card(config, data, {"error": "0.1"}, licence="None.")
    assert "6 training images of 21 classes (bluish, " in text
    assert text.count("bluish") == 20
    assert "bluish, ...), 8x8 pixels, 3 channel(s)" in text
    assert "| `num_layers` | 1 |\n" in text
    assert "| error | 0.1 |\n" in text
    assert "**Licence.** None.\n" in text
    assert "`out`" not in text
