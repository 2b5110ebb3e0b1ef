"""Bad input of the evaluation chapter: tables, runs that cannot be judged, rows that cannot be
compared."""

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.settings import to_dict
from manifoldgd.core import to_pil
from manifoldgd.distillation.runs import read_run
from manifoldgd.errors import InputError
from manifoldgd.evaluation import accuracy
from manifoldgd.evaluation.comparison import summarize
from manifoldgd.evaluation.tables import put_row, read_table

COLUMNS = {"run": str, "seed": int, "top1": float}


# Tables


def test_a_folder_is_not_a_table(tmp_path):
    with pytest.raises(InputError, match="to be a table of pears, but it is a folder"):
        read_table(tmp_path, COLUMNS, (), "pears")


@pytest.mark.parametrize(
    "text",
    [
        "name,price\npears,3\n",  # other columns
        "run,seed,top1\na,one,70\n",  # not a number
        "run,seed,top1\na,1,\n",  # a gap where none may be
        "",
    ],
)
def test_other_files_are_refused_and_left_alone(tmp_path, text):
    path = tmp_path / "other.csv"
    path.write_text(text)
    message = "to be a table of pears, but it could not be read .*Choose another `--out`"
    with pytest.raises(InputError, match=message):
        read_table(path, COLUMNS, (), "pears")
    assert path.read_text() == text


def test_a_row_must_have_every_column():
    rows = read_table("nowhere.csv", COLUMNS, (), "pears")
    with pytest.raises(KeyError, match="top1"):
        put_row(rows, {"run": "a", "seed": 1}, ["run", "seed"])


# Evaluation


def make_run(out, seed=0, data="digits", channels=1):
    "Write the folder of a finished run: ten classes, one blank image each."
    config = resolve(DistillConfig(data=data, preset="random", seed=seed, ipc=1, out=str(out)))
    classes = []
    for c in range(10):
        folder = out / "images" / str(c)
        folder.mkdir(parents=True)
        to_pil(torch.zeros(1, channels, 32, 32))[0].save(folder / "00000.png")
        classes.append({"id": c, "folder": str(c), "name": str(c)})
    manifest = {
        "config": to_dict(config),
        "classes": classes,
        "data_fingerprint": f"of {data}",
        "backbone_fingerprint": "none",
        "finished": True,
    }
    (out / "manifest.json").write_text(json.dumps(manifest))
    return str(out)


def make_data(root, classes, size=32):
    "Write a dataset: one blank image for each class and split."
    for split in ("train", "test"):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            to_pil(torch.zeros(1, 1, size, size))[0].save(folder / "0.png")
    return str(root)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def evaluate(monkeypatch, tmp_path):
    "Evaluate, where training anything is a failure: mistakes must be found before."

    def train_student(*args, **settings):
        pytest.fail("a student was trained")

    monkeypatch.setattr(accuracy, "train_student", train_student)

    def evaluate(*runs, **settings):
        out = str(tmp_path / "results.csv")
        config = EvaluateConfig(runs, **{"out": out, "device": "cpu"} | settings)
        return accuracy.evaluate(config, progress=False)

    return evaluate


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"protocol": "best"}, "`protocol` to be one of hard.*plain-32, digits-quick, but got 'b"),
        ({"seeds": 0}, "`seeds` to be at least 1, but got 0"),
        ({"workers": 0}, "`workers` to be at least 1, but got 0"),
        ({"data": "nowhere"}, "nowhere"),
        ({"baseline": "nowhere"}, "nowhere to be the folder of a run"),
        ({"device": "tpu"}, "`device`"),
    ],
)
def test_wrong_settings(evaluate, run, settings, message):
    with pytest.raises(InputError, match=message):
        evaluate(run, **settings)


def test_no_runs(evaluate):
    with pytest.raises(InputError, match="at least one run, but got none"):
        evaluate()


def test_other_classes(evaluate, run, tmp_path):
    data = make_data(tmp_path / "small", "01")
    with pytest.raises(InputError, match="run, but they differ in 2, 3, 4, 5, 6, 7, 8, 9"):
        evaluate(run, data=data)


def test_two_datasets(evaluate, run, tmp_path):
    other = make_run(tmp_path / "other", data=make_data(tmp_path / "small", "01"))
    with pytest.raises(InputError, match="runs of one dataset, but got runs of .*small, digits"):
        evaluate(run, other, protocol="plain-32")


def test_two_protocols(evaluate, tmp_path):
    "The images of one run are small, those of the other large."
    data = make_data(tmp_path / "photos", "0123456789")
    small = make_run(tmp_path / "small", data=data)
    large = make_run(tmp_path / "large", data=data, seed=1)
    for path in Path(large).glob("images/*/*.png"):
        to_pil(torch.zeros(1, 1, 65, 65))[0].save(path)
    message = "the data suggest hard-label-256 and hard-label-32. Choose one with `--protocol`"
    with pytest.raises(InputError, match=message):
        evaluate(small, large)


def test_two_runs_that_agree_in_settings_and_seed(evaluate, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(InputError, match="run and .*copy agree in both. Leave one out"):
        evaluate(run, str(copy))


def test_a_run_named_twice_counts_once(run):
    config = EvaluateConfig((run, f"{run}/"), baseline=run, seeds=2)
    assert [training.seed for training in accuracy.list_trainings(config)] == [0, 1]


def test_photographs_under_the_protocol_of_the_demonstration(evaluate, tmp_path):
    colored = make_run(tmp_path / "colored", channels=3)
    message = "is in color. Choose another `--protocol`, such as hard-label-32"
    with pytest.raises(InputError, match=message):
        evaluate(colored, protocol="digits-quick")
    assert accuracy.choose_protocol(read_run(colored), "plain-32") == ("plain-32", 3)


def test_another_table_is_left_alone(evaluate, run, tmp_path):
    notes = tmp_path / "notes.csv"
    notes.write_text("name,price\npears,3\n")
    with pytest.raises(InputError, match="to be a table of results"):
        evaluate(run, out=str(notes))
    assert notes.read_text() == "name,price\npears,3\n"


def test_a_training_that_fails_ends_the_evaluation(monkeypatch, run, tmp_path):
    "The rows of trainings that have ended stay; one under way stops; no other starts."
    table = tmp_path / "results.csv"
    started = []

    def train_and_test(training, device, best, on_look):
        started.append(training.seed)
        deadline = time.monotonic() + 60
        while training.seed == 2 and len(accuracy.read_rows(table)) < 2:
            assert time.monotonic() < deadline
        if training.seed == 2:
            raise MemoryError
        while training.seed > 2:
            assert time.monotonic() < deadline
            on_look()
        return {"top1_last": 50.0, "top1_best": float("nan"), "seconds": 1.0}

    monkeypatch.setattr(accuracy, "train_and_test", train_and_test)
    config = EvaluateConfig((run,), seeds=50, out=str(table), device="cpu", workers=1)
    with pytest.raises(MemoryError):
        accuracy.evaluate(config, progress=False)
    assert started in ([0, 1, 2], [0, 1, 2, 3])
    assert accuracy.read_rows(table).training_seed.tolist() == [0, 1]


# Comparison


def invent(preset, **other):
    "A row of results."
    row = {
        "run": f"runs/{preset}",
        "data": "digits",
        "preset": preset,
        "scheduler": "",
        "ipc": 10,
        "student": "ConvNet-3",
        "protocol": "lesson",
        "split": "test",
        "n_test": 450,
        "test_fingerprint": "t",
        "settings": "{}",
        "group": preset,
        "generation_seed": 0,
        "training_seed": 0,
        "top1_last": 50.0,
        "top1_best": np.nan,
    }
    return row | other


@pytest.fixture
def rows():
    return pd.DataFrame([invent("random"), invent("mgd")])


@pytest.mark.parametrize(
    "name, value",
    [("protocol", "other"), ("test_fingerprint", "other"), ("data", "cats"), ("settings", "{1}")],
)
def test_rows_of_two_kinds(rows, name, value):
    odd = pd.DataFrame([invent("dit", **{name: value})])
    with pytest.raises(InputError, match=f"results of one {name} to compare, but got .*, "):
        summarize(pd.concat([rows, odd]))


def test_a_baseline_that_is_not_there(rows):
    message = "`baseline` to be one of the runs in the table, but got 'runs/dit'"
    with pytest.raises(InputError, match=message):
        summarize(rows, baseline="runs/dit")


def test_two_groups_of_the_baseline(rows):
    other = pd.DataFrame([invent("random", group="random, other settings")])
    message = "at IPC 10, but found 2 with the preset 'random'. Name a run with `--baseline`"
    with pytest.raises(InputError, match=message):
        summarize(pd.concat([rows, other]))


def test_two_results_of_one_training(rows):
    again = pd.DataFrame([invent("mgd", images_fingerprint="new")])
    with pytest.raises(InputError, match="got two for runs/mgd. Were its images made anew"):
        summarize(pd.concat([rows, again]))


def test_students_have_their_own_rules(rows):
    "Two students may differ in settings; within one they may not."
    deeper = rows.assign(student="ConvNet-6", settings='{"image_size": 224}')
    summary = summarize(pd.concat([rows, deeper]))
    assert summary.student.tolist() == ["ConvNet-3"] * 2 + ["ConvNet-6"] * 2
