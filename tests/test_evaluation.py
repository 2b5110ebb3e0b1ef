"""Bad input of the evaluation chapter: tables, runs that cannot be judged, rows that cannot be
compared."""

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import SLOW
from PIL import Image

from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.config.settings import to_dict
from manifoldgd.core import to_pil
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.runs import image_hashes, read_run
from manifoldgd.errors import InputError
from manifoldgd.evaluation import accuracy
from manifoldgd.evaluation.comparison import summarize
from manifoldgd.evaluation.sets import set_of_run
from manifoldgd.evaluation.tables import add_rows, read_table
from manifoldgd.students.cost import Pace, measure_pace

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


def test_a_row_must_have_every_column(tmp_path):
    path = tmp_path / "pears.csv"
    with pytest.raises(KeyError, match="seed"):
        add_rows(path, pd.DataFrame([{"run": "a"}]), ["run", "seed"], None)
    assert not path.exists()


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
    manifest["images"] = image_hashes(out, manifest)
    (out / "manifest.json").write_text(json.dumps(manifest))
    return str(out)


def seal(run):
    "Write the hashes of a run's images into its manifest anew."
    manifest = json.loads((Path(run) / "manifest.json").read_text())
    manifest["images"] = image_hashes(Path(run), manifest)
    (Path(run) / "manifest.json").write_text(json.dumps(manifest))
    return run


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


@pytest.fixture
def done(monkeypatch, tmp_path, capsys):
    "Evaluate without training anything: the rows, and what is printed."

    def train_and_test(training, device, best, on_look, on_step):
        return {"top1_last": 50.0, "top1_best": float("nan"), "seconds": 1.0}

    def done(*runs, **settings):
        out = str(tmp_path / "results.csv")
        config = EvaluateConfig(runs, **{"out": out, "device": "cpu"} | settings)
        rows = accuracy.evaluate(config)
        return rows, "".join(capsys.readouterr())

    monkeypatch.setattr(accuracy, "train_and_test", train_and_test)
    return done


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"protocol": "best"}, "`protocol` to be one of hard.*soft-label-32, but got 'best'"),
        ({"seeds": 0}, "`seeds` to be between 1 and 1000, but got 0"),
        ({"workers": 0}, "`workers` to be between 1 and 1024, but got 0"),
        ({"data": "nowhere"}, "nowhere"),
        ({"baseline": "nowhere"}, "Expected nowhere to be a set: a run, a folder of class"),
        ({"device": "tpu"}, "`device`"),
    ],
)
def test_wrong_settings(evaluate, run, settings, message):
    with pytest.raises(InputError, match=message):
        evaluate(run, **settings)


def list_trainings(*runs, **settings):
    "The trainings of an evaluation."
    return accuracy.list_trainings(EvaluateConfig(runs, **settings))


def test_no_runs(evaluate):
    with pytest.raises(InputError, match="at least one set, but got none"):
        evaluate()


def test_other_classes(evaluate, run, tmp_path):
    data = make_data(tmp_path / "small", "01")
    with pytest.raises(InputError, match="run, but they differ in 2, 3, 4, 5, 6, 7, 8, 9"):
        evaluate(run, data=data)


def test_two_datasets(evaluate, run, tmp_path):
    other = make_run(tmp_path / "other", data=make_data(tmp_path / "small", "01"))
    with pytest.raises(InputError, match="sets of one dataset, but got sets of .*small, digits"):
        evaluate(run, other, protocol="plain-32")


def resize(run, size, mode="L"):
    "Replace the images of a run by blank ones of another size."
    for path in Path(run).glob("images/*/*.png"):
        Image.new(mode, size).save(path)
    return seal(run)


@pytest.mark.parametrize(
    "sizes, protocol, line",
    [
        (((32, 32), (500, 375)), "hard-label-32", "(32 pixels in {0}); those of {1} have 375"),
        (((500, 375), (32, 32)), "hard-label-32", "(32 pixels in {1}); those of {0} have 375"),
        (((65, 80), (64, 64)), "hard-label-64", "(64 pixels in {1}); those of {0} have 65"),
        (((70, 70), (500, 375)), "hard-label-256", "hard-label-256, the default for these data"),
        (((33, 33), (64, 64)), "hard-label-64", "hard-label-64, the default for these data"),
    ],
)
def test_runs_of_two_sizes_have_one_protocol(done, tmp_path, sizes, protocol, line):
    "Made by a backbone or copied from photographs: the smallest images decide, and a line says so."
    data = make_data(tmp_path / "photos", "0123456789")
    runs = [make_run(tmp_path / name, data=data, seed=i) for i, name in enumerate("ab")]
    for run, size in zip(runs, sizes):
        resize(run, size)
    rows, printed = done(*runs)
    assert rows.protocol.unique().tolist() == [protocol]
    assert line.format(*runs) in printed
    assert len(rows) == 4


def test_the_baseline_has_a_say_in_the_protocol(done, tmp_path):
    data = make_data(tmp_path / "photos", "0123456789")
    large = resize(make_run(tmp_path / "large", data=data, seed=1), (80, 80))
    small = make_run(tmp_path / "small", data=data)
    rows, _ = done(large, baseline=small)
    assert rows.protocol.unique().tolist() == ["hard-label-32"]


def test_one_gray_photograph_makes_no_gray_student(run, tmp_path):
    "Among colored images the first may be gray: students see colors all the same."
    data = make_data(tmp_path / "photos", "0123456789")
    colored = resize(make_run(tmp_path / "colored", data=data), (32, 32), "RGB")
    Image.new("L", (32, 32)).save(Path(colored) / "images/0/00000.png")
    seal(colored)
    gray = make_run(tmp_path / "gray", data=data, seed=1)
    trainings = accuracy.list_trainings(EvaluateConfig((gray, colored), seeds=1))
    assert [t.bench.images.shape[1] for t in trainings] == [3, 3]
    trainings = accuracy.list_trainings(EvaluateConfig((gray,), seeds=1))
    assert trainings[0].bench.images.shape[1] == 1


def test_runs_of_some_classes_are_tested_on_these(tmp_path):
    config = DistillConfig(preset="random", ipc=1, classes="3,8", out=str(tmp_path / "run"))
    run = str(distill(config, progress=False))
    training = accuracy.list_trainings(EvaluateConfig((run,), seeds=1))[0]
    assert set(training.bench.classes) == {"3", "8"}
    assert training.protocol.name == "ConvNet-3"


def test_photographs_under_the_colors_of_imagenet_are_not_measured(monkeypatch, run):
    "A look at a million training images would be a look for nothing."
    monkeypatch.setattr(accuracy, "mean_and_std", lambda *_: pytest.fail("they were measured"))
    training = accuracy.list_trainings(EvaluateConfig((run,), protocol="hard-label-256"))[0]
    assert training.bench.mean_std is None


def test_two_runs_that_agree_in_settings_and_seed(evaluate, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    with pytest.raises(InputError, match="run and .*copy agree in all of them. Leave one out"):
        evaluate(run, str(copy))


def test_a_run_named_twice_counts_once(run):
    config = EvaluateConfig((run, f"{run}/"), baseline=run, seeds=2)
    assert [training.seed for training in accuracy.list_trainings(config)] == [0, 1]


def test_photographs_under_the_protocol_of_the_demonstration(evaluate, tmp_path):
    colored = make_run(tmp_path / "colored", channels=3)
    message = "is in color. Choose another `--protocol`, such as hard-label-32"
    with pytest.raises(InputError, match=message):
        evaluate(colored, protocol="digits-quick")
    assert accuracy.choose_protocol([set_of_run(read_run(colored))], "plain-32") == ("plain-32", 3)


# What an evaluation costs


@pytest.fixture
def pace(monkeypatch):
    "A machine that trains an image in 1 ms and tests one in .1 ms."
    asked = []

    def measure_pace(work, device, budget):
        asked.append((work, budget))
        return Pace(1e-3, 1e-4)

    monkeypatch.setattr(accuracy, "measure_pace", measure_pace)
    return asked


def test_the_cost_is_said_before_it_begins(done, pace, run, tmp_path):
    "1000 epochs of 10 images at 1 ms, one look at 450 at .1 ms: 10 s; six in pairs: half a minute."
    other = make_run(tmp_path / "other", seed=1)
    settings = {"protocol": "hard-label-32", "seeds": 3, "workers": 2}
    _, printed = done(run, other, **settings)
    assert "Students to train: 6" in printed
    assert "6 x ConvNet-3: 1000 epochs of 10 images of 32 x 32 pixels, one look at 450" in printed
    assert "2 at a time, each with about 0.1 GB of memory: about 30 s in all." in printed
    assert len(pace) == 2  # both threads measured, at once
    _, printed = done(run, other, **settings)
    assert "Students to train" not in printed  # all rows are there


def test_looks_are_counted(done, pace, run):
    "1000 epochs of 10 images, and 101 looks at 450: 10 s and 4.5 s."
    _, printed = done(run, protocol="hard-label-32", seeds=1, best=True, workers=1)
    assert "101 looks at 450 test images" in printed
    assert "about 15 s in all." in printed


def test_several_kinds_share_the_time_for_measuring(done, pace, run):
    students = ("ConvNet-3", "ConvNet-4")
    done(run, protocol="hard-label-32", students=students, workers=1)
    assert [work.protocol.name for work, _ in pace] == list(students)
    assert sum(budget for _, budget in pace) == pytest.approx(accuracy.BUDGET)


def test_a_short_evaluation_is_not_measured(done, pace, run):
    _, printed = done(run, seeds=1)  # under digits-quick: some seconds
    assert not pace
    assert "One at a time, each with about 0.1 GB of memory." in printed


def test_nothing_is_said_or_measured_without_progress(done, pace, run, capsys, tmp_path):
    config = EvaluateConfig((run,), protocol="hard-label-32", out=str(tmp_path / "own.csv"))
    accuracy.evaluate(config, progress=False)
    assert capsys.readouterr() == ("", "")
    assert not pace


def test_the_cost_is_not_among_the_results(done, pace, run, capsys, tmp_path):
    config = EvaluateConfig((run,), out=str(tmp_path / "own.csv"), device="cpu")
    accuracy.evaluate(config)
    out, err = capsys.readouterr()
    assert out == "The protocol is digits-quick, the default for these data.\n"
    assert err.startswith("Students to train: 2\n  2 x ConvNet-3: 200 epochs of 10 images")


@pytest.mark.parametrize(
    "size, protocol, suggested",
    [
        ((500, 375), None, "hard-label-64-quick"),
        ((32, 32), "hard-label-256", "hard-label-32-quick"),
    ],
)
def test_a_protocol_that_suits_a_cpu(done, pace, tmp_path, size, protocol, suggested):
    data = make_data(tmp_path / "photos", "0123456789")
    run = resize(make_run(tmp_path / "run", data=data), size, "RGB")
    _, printed = done(run, protocol=protocol)
    assert f"`--protocol {suggested}` fits these images and needs 1/" in printed
    _, printed = done(run, protocol="hard-label-64")
    assert "fits these images" not in printed


def test_workers_are_as_many_as_fit_into_the_memory(monkeypatch, run):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    each = .86e9  # about, of a student under hard-label-256 at IPC 1
    trainings = list_trainings(run, protocol="hard-label-256", seeds=20)
    works = [accuracy.work_of(training, False) for training in trainings]
    cpu = torch.device("cpu")
    assert accuracy.choose_workers(works, cpu, free=int(40 * each)) == 8
    assert accuracy.choose_workers(works, cpu, free=int(4 * each)) == 3
    with pytest.warns(UserWarning, match="need about 0.9 GB of memory, and 0.7 GB are free"):
        assert accuracy.choose_workers(works, cpu, free=int(.8 * each)) == 1
    with pytest.warns(UserWarning, match="need about 3.4 GB .* fewer `--workers` or another"):
        assert accuracy.choose_workers(works, cpu, 4, free=int(3 * each)) == 4
    assert accuracy.choose_workers(works[:2], cpu, free=int(40 * each)) == 2


def test_an_evaluation_that_does_not_fit_begins_alone(monkeypatch, done, pace, run):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr(accuracy, "free_memory", lambda: 2 * 10 ** 8)
    _, printed = done(run, protocol="hard-label-32", seeds=4)
    assert "One at a time" in printed


@pytest.mark.skipif(not SLOW, reason="trains for some seconds")
def test_an_estimate_is_within_a_factor_of_two(run):
    "In CPU time, which other processes do not change."
    protocol = replace(PROTOCOLS["hard-label-32"], epochs=((None, 30),))
    with patch.dict(PROTOCOLS, {"short": protocol}):
        training = list_trainings(run, protocol="short", seeds=1)[0]
    cpu = torch.device("cpu")
    work = accuracy.work_of(training, False)
    with accuracy.student_pool(cpu, 1) as (pool, _):
        pace = pool.submit(measure_pace, work, cpu, 2.0, time.process_time).result()
        before = time.process_time()
        pool.submit(accuracy.train_and_test, training, cpu).result()
        took = time.process_time() - before
    assert took / 2 < accuracy.total_seconds([work], {accuracy.kind_of(work): pace}, 1) < took * 2


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

    def train_and_test(training, device, best, on_look, on_step):
        started.append(training.seed)
        deadline = time.monotonic() + 60
        while training.seed == 2 and len(accuracy.read_rows(table)) < 2:
            assert time.monotonic() < deadline
        if training.seed == 2:
            raise MemoryError
        while training.seed > 2:
            assert time.monotonic() < deadline
            on_step()
        return {"top1_last": 50.0, "top1_best": float("nan"), "seconds": 1.0}

    monkeypatch.setattr(accuracy, "train_and_test", train_and_test)
    config = EvaluateConfig((run,), seeds=50, out=str(table), device="cpu", workers=1)
    with pytest.raises(MemoryError):
        accuracy.evaluate(config, progress=False)
    assert started in ([0, 1, 2], [0, 1, 2, 3])
    assert accuracy.read_rows(table).training_seed.tolist() == [0, 1]


@pytest.mark.parametrize("stop_at, steps", [(None, 11), (2, 2), (5, 5)])
def test_a_training_can_be_ended_before_any_step(run, stop_at, steps):
    "Three steps of training, then eight batches of the 450 test images."
    protocol = replace(PROTOCOLS["hard-label-32"], epochs=((None, 3),), width=4)
    with patch.dict(PROTOCOLS, {"short": protocol}):
        training = list_trainings(run, protocol="short", seeds=1)[0]
    asked = []

    def on_step():
        asked.append(1)
        if len(asked) == stop_at:
            raise InterruptedError

    with pytest.raises(InterruptedError) if stop_at else nullcontext():
        accuracy.train_and_test(training, torch.device("cpu"), on_step=on_step)
    assert len(asked) == steps


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
    message = "`baseline` to be one of the sets in the table, but got 'runs/dit'"
    with pytest.raises(InputError, match=message):
        summarize(rows, baseline="runs/dit")


def test_two_groups_of_the_baseline(rows):
    other = pd.DataFrame([invent("random", group="random, other settings")])
    message = "at IPC 10, but found 2 with the preset 'random'. Name a set with `--baseline`"
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
