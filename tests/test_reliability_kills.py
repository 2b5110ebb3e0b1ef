"""Runs, tables, backbones and exports whose process is killed at a write, and at every write.

After each kill the same command is given again. What it leaves must be, to the byte, what a
command leaves that nobody disturbed.
"""
import json
import os

import numpy as np
import pandas as pd
import pytest
from conftest import SLOW
from PIL import Image
from reliability import Writes, command, files_of, killed_at, on_full_disk

from manifoldgd.config.commands import PretrainConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation import accuracy
from manifoldgd.evaluation.tables import add_rows, read_table
from manifoldgd.pretraining.training import pretrain

slow = pytest.mark.skipif(not SLOW, reason="slow: SLOW=1")
RANDOM = DistillConfig(preset="random", ipc=2, batch_size=3, classes="3,7", out="run")
GUIDED = DistillConfig(
    ipc=2, batch_size=2, classes="3,7", out="run", trace=True, num_inference_steps=3, device="cpu",
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    "A cache of this file's own."
    before = os.environ.get("MANIFOLDGD_CACHE")
    os.environ["MANIFOLDGD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("MANIFOLDGD_CACHE")
    if before is not None:
        os.environ["MANIFOLDGD_CACHE"] = before


def check_every_kill(tmp_path, monkeypatch, work, left, step=1):
    "Kill a work at every write, or at some, repeat it, and compare what it has left."
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    with Writes().watched() as writes:
        work()
    whole = left()
    assert whole
    for moment in range(0, writes.seen, step):
        (tmp_path / str(moment)).mkdir()
        monkeypatch.chdir(tmp_path / str(moment))
        killed_at(moment, work)
        work()
        assert left() == whole, f"killed at moment {moment} of {writes.seen}"
    return writes.seen


def run_files():
    "The files of the run in this folder."
    return files_of("run")


def test_a_run_of_real_images_resumes_after_every_kill(tmp_path, monkeypatch):
    moments = check_every_kill(tmp_path, monkeypatch, lambda: distill(RANDOM, False), run_files)
    assert moments >= 2 * (1 + 4 + 2 + 3)  # manifest, images, units, and what finishes a run


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=slow)])
def test_a_guided_run_resumes_after_every_kill(tmp_path, monkeypatch, step):
    distill(GUIDED.__class__(**vars(GUIDED) | {"out": str(tmp_path / "warm")}), False)
    check_every_kill(tmp_path, monkeypatch, lambda: distill(GUIDED, False), run_files, step)
    traces = pd.read_csv("run/trace.csv").image.unique()
    folders = [name.split("/")[-2] for name in traces if "/" in str(name)]
    assert folders == sorted(folders)


def test_a_run_resumes_where_the_cache_was_killed_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLDGD_CACHE", "cache")
    check_every_kill(tmp_path, monkeypatch, lambda: distill(GUIDED, False), run_files, step=9)


def fake_training(training, *rest):
    "The result of a training, without the training."
    result = 50. + training.seed + len(training.judged.place)
    return {"top1_last": result, "top1_best": float("nan"), "seconds": 1.}


def test_an_evaluation_goes_on_after_every_kill(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distill(RANDOM, False)
    monkeypatch.setattr(accuracy, "train_and_test", fake_training)
    config = accuracy.EvaluateConfig((str(tmp_path / "run"),), seeds=3, workers=1)

    def table():
        rows = pd.read_csv("results.csv", dtype=str).drop(columns="run")
        return rows.sort_values("training_seed").to_csv(index=False)

    moments = check_every_kill(
        tmp_path, monkeypatch, lambda: accuracy.evaluate(config, False), table)
    assert moments == 6


@pytest.mark.parametrize("name", ["imagefolder", pytest.param("parquet", marks=slow)])
def test_an_export_is_whole_after_every_kill(tmp_path, monkeypatch, name):
    pytest.importorskip("pyarrow") if name == "parquet" else None
    monkeypatch.chdir(tmp_path)
    distill(RANDOM, False)
    arguments = ("export", tmp_path / "run", "--format", name, "--to", "export")

    def export():
        assert command(*arguments).status == 0

    assert check_every_kill(tmp_path, monkeypatch, export, lambda: files_of("export")) >= 2


# Pretraining


@pytest.fixture
def small(tmp_path):
    "The settings of a training of seconds, on four images."
    for folder in ("a", "b"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for i in range(2):
            pixels = np.full((16, 16), 100 * i + 20, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"{i}.png")
    return PretrainConfig(
        data=str(tmp_path / "data"),
        out="model",
        image_size=16,
        vae_widths=(8, 16),
        vae_steps=2,
        vae_batch_size=2,
        views=1,
        hidden_size=32,
        num_layers=1,
        dit_steps=2,
        dit_batch_size=2,
        every=2,
        device="cpu",
    )


def model_files():
    "The files of the backbone in this folder, but not the times that its plan expected."
    files = files_of("model")
    return {name: data for name, data in files.items() if name != "training/config.json"}


@slow
def test_a_pretraining_resumes_after_every_kill(tmp_path, monkeypatch, small):
    check_every_kill(tmp_path, monkeypatch, lambda: pretrain(small, False), model_files)


@pytest.mark.parametrize("moment", [0, 1])
def test_a_pretraining_begins_again_after_its_first_write(tmp_path, monkeypatch, small, moment):
    from manifoldgd.pretraining.training import load_data, prepare

    data = load_data(small.data)

    def begin():
        return prepare(tmp_path / "model", small, data, "cpu")

    killed_at(moment, begin)
    full, _ = begin()
    assert full.vae_steps == 2
    assert json.loads((tmp_path / "model/training/config.json").read_text())["plan"]


# Several processes


def test_two_processes_share_one_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    distill(RANDOM, False)
    whole = files_of("run")
    (tmp_path / "shared").mkdir()
    monkeypatch.chdir(tmp_path / "shared")
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            status = 1
            try:
                status = distill(RANDOM, False) and 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert files_of("run") == whole


COLUMNS = {"run": str, "seed": int, "top1": float}


def read(path):
    "Read the table of these tests."
    return read_table(path, COLUMNS, (), "tests")


def test_eight_writers_of_fifty_rows_lose_none(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("remark,run,seed,top1\nkeep me,first,0,1.50\n")
    os.chmod(path, 0o640)

    def write(writer):
        for seed in range(50):
            row = {"run": f"run {writer}", "seed": seed, "top1": writer + seed / 64}
            add_rows(path, pd.DataFrame([row]), ["run", "seed"], read)

    children = []
    for writer in range(8):
        child = os.fork()
        if not child:
            status = 1
            try:
                write(writer)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == 8 * [0]
    rows = read(path)
    assert len(rows) == 401
    assert len(rows.drop_duplicates(["run", "seed"])) == 401
    assert path.read_text().splitlines()[1] == "keep me,first,0,1.50"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_writer_that_is_killed_leaves_the_lock_to_others(tmp_path):
    path = tmp_path / "results.csv"
    row = pd.DataFrame([{"run": "a", "seed": 0, "top1": 1.}])

    def work():
        add_rows(path, row, ["run", "seed"], read)

    for moment in (0, 1):
        killed_at(moment, work)
    work()
    assert len(read(path)) == 1


# A disk that is full


@pytest.mark.parametrize("size", [0, 100, 400, 1500])
def test_a_full_disk_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch, size):
    monkeypatch.chdir(tmp_path)
    distill(RANDOM, False)
    whole = files_of("run")
    (tmp_path / "full").mkdir()
    monkeypatch.chdir(tmp_path / "full")
    arguments = ("distill", "--preset", "random", "--ipc", 2, "--batch-size", 3,
                 "--classes", "3,7", "--out", "run")

    def limited():
        done = command(*arguments)
        one = len(done.lines) == 1 and "Traceback" not in done.error
        return done.status if one and "the same command goes on" in done.lines[0] else 99

    assert on_full_disk(limited, size) == 1
    assert command(*arguments).status == 0
    assert files_of("run") == whole


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path, monkeypatch, small):
    monkeypatch.chdir(tmp_path)
    arguments = ("pretrain", "--data", small.data, "--out", "model", "--image-size", 16,
                 "--vae-widths", 8, 16, "--vae-steps", 2, "--vae-batch-size", 2, "--device", "cpu",
                 "--hidden-size", 32, "--num-layers", 1, "--dit-batch-size", 2)

    def limited():
        done = command(*arguments)
        one = len(done.lines) == 1 and "Traceback" not in done.error
        return done.status if one and "the same command goes on" in done.lines[0] else 99

    assert on_full_disk(limited, 20_000) == 1
