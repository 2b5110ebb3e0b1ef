"""The installed command, from outside.

A whole distillation, a process that is killed, and bad input.
"""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

COMMAND = str(Path(sys.executable).parent / "manifoldgd")
SAMPLING = ["--num-inference-steps", "5", "--device", "cpu", "--batch-size", "1"]
DISTILL = ["distill", "--ipc", "1", *SAMPLING]
RANDOM_RUN = "runs/digits-random-ipc1-seed0"


@pytest.fixture
def environment(tmp_path):
    "The environment of a process that shares nothing with this one."
    changed = {
        "MANIFOLDGD_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "NO_COLOR": "1",
    }
    return os.environ | changed


@pytest.fixture
def run(tmp_path, environment):
    "The command, run in a folder of its own."

    def run(*arguments):
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )

    return run


def images(out):
    "The images of a run, as bytes by their path."
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*.png"))}


def is_finished(out):
    "What the manifest of a run says."
    return json.loads((out / "manifest.json").read_text())["finished"]


# A process that is killed


def kill_after_three_images(out, environment):
    "Start a distillation, and kill it while it samples."
    process = subprocess.Popen(
        [COMMAND, *DISTILL, "--out", str(out)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.time() + 120
    while len(list((out / "images").rglob("*.png"))) < 3:
        if process.poll() is not None or time.time() > deadline:
            break
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_run_resumes_with_the_same_images(run, environment, tmp_path):
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    assert run(*DISTILL, "--out", whole).returncode == 0
    kill_after_three_images(killed, environment)
    assert 3 <= len(images(killed)) < 10, "the process was to be killed in the middle"
    assert not is_finished(killed)
    assert run(*DISTILL, "--out", killed).returncode == 0
    assert images(killed) == images(whole)
    assert is_finished(killed)
    strays = list(killed.rglob("*.tmp"))
    assert len(strays) <= 1, "the kill may leave one temporary file, the resumed run none"


# Whole commands


def test_distill_and_evaluate(run, tmp_path):
    done = run(*DISTILL, "--preset", "random")
    assert done.returncode == 0, done.stderr
    assert RANDOM_RUN in done.stdout
    done = run("evaluate", RANDOM_RUN, "--seeds", 1)
    assert done.returncode == 0, done.stderr
    assert "random" in done.stdout
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 2


def test_metrics_of_real_images(run, tmp_path):
    "A run that has no backbone: no latents, so no distance off the manifold."
    assert run(*DISTILL, "--preset", "random").returncode == 0
    done = run("metrics", RANDOM_RUN, "--draws", 2)
    assert done.returncode == 0, done.stderr
    assert "real images" in done.stdout
    assert "student ConvNet-3" in done.stdout
    table = pd.read_csv(tmp_path / "metrics.csv")
    assert not table.metric.duplicated().any()
    assert {"fid", "kid", "mmd", "rep", "div", "coverage"} <= set(table.metric)
    done = run("metrics", RANDOM_RUN, "--draws", 2, "--features", "latents")
    assert done.returncode == 2
    assert "`--backbone`" in done.stderr
    assert "Traceback" not in done.stderr


def make_photographs(folder):
    "Three JPEGs of each of two classes for training and for testing, no two of one size."
    for split in ("train", "test"):
        for name, color in (("red", (200, 40, 30)), ("blue", (20, 30, 220))):
            (folder / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40 + i, 33), color).save(folder / split / name / f"{i}.jpg")


def test_random_photographs_need_no_backbone(run, tmp_path):
    "Any folder of JPEGs, whatever their sizes, and a student trained on two of them."
    make_photographs(tmp_path / "photos")
    done = run("distill", "--data", "photos", "--preset", "random", "--ipc", 1)
    assert done.returncode == 0, done.stderr
    out = "runs/photos-random-ipc1-seed0"
    sizes = {Image.open(path).size for path in (tmp_path / out / "images").rglob("*.png")}
    assert sizes
    assert sizes <= {(40, 33), (41, 33), (42, 33)}
    done = run("evaluate", out, "--protocol", "plain-32", "--seeds", 1)
    assert done.returncode == 0, done.stderr
    assert "of 32 x 32 pixels" in done.stdout
    done = run("evaluate", out, "--protocol", "digits-quick")
    assert done.returncode == 2
    assert "such as hard-label-64" in done.stderr


# Bad input


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["distill", "--ipc", "500"], ["`ipc`", "500"]),
        (["distill", "--data", "nowhere"], ["nowhere"]),
        (["distill", "--backbone", "./nowhere"], ["nowhere"]),
        (["distill", "--preset", "best"], ["best"]),
        (["distill", "--out", "taken"], ["taken", "--out"]),
        (["evaluate", "taken"], ["taken"]),
        (["metrics", "taken"], ["taken"]),
    ],
)
def test_bad_input_is_one_clear_line(run, tmp_path, arguments, words):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years of work")
    done = run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(word in done.stderr for word in words), done.stderr
    lines = done.stderr.splitlines()
    ours = [line for line in lines if line.startswith("manifoldgd:")]
    assert len(ours or lines) == 1, done.stderr
    assert {path.name for path in tmp_path.iterdir()} - {"cache"} == {"taken"}
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n cut off"])
def test_unreadable_image_is_named(run, tmp_path, content):
    for name in ("0", "1"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (32, 32), 9).save(tmp_path / "data" / name / "a.png")
    (tmp_path / "data" / "1" / "b.png").write_bytes(content)
    done = run("distill", "--data", "data", "--ipc", "1", "--out", "out", "--strict")
    assert done.returncode == 2
    assert "b.png" in done.stderr
    assert "Traceback" not in done.stderr
