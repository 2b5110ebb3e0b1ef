"""How long work speaks, how it is shared out over cores, and what is remembered of files."""
import io
import os
import sys
import threading
import time

import pytest
import torch
from tqdm.auto import tqdm

from manifoldgd import core
from manifoldgd.core import (
    ProgressLines,
    Remembered,
    in_order,
    in_words,
    is_settled,
    one_core_each,
    progress_bar,
    progress_line,
)


class Clock:
    "A clock that is moved by hand."

    def __init__(self):
        self.now = 1000.

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    "What people look at."

    def isatty(self):
        return True


@pytest.fixture
def heard(monkeypatch):
    "Let progress be heard, in this process and no terminal."
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


@pytest.mark.parametrize("seconds, words", [
    (0, "0 s"), (.4, "0 s"), (59.4, "59 s"), (59.5, "1 min 0 s"), (100, "1 min 40 s"),
    (3599.6, "1 h 0 min"), (90_000, "25 h 0 min"),
])
def test_times_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize("done, total, seconds, initial, line", [
    (0, 100, 31, 0, "read: 0 of 100 files, 0 files/s, unknown left"),
    (50, 100, 100, 0, "read: 50 of 100 files, 0.5 files/s, 1 min 40 s left"),
    (100, 100, 10, 0, "read: 100 of 100 files, 10 files/s, 0 s left"),
    (1_000, 3_000, 0, 0, "read: 1,000 of 3,000 files, 1,000,000,000,000 files/s, 0 s left"),
    (60, 70, 10, 50, "read: 60 of 70 files, 1 files/s, 10 s left"),
    (1_234_567, None, 100, 0, "read: 1,234,567 files, 12,346 files/s"),
])
def test_lines(done, total, seconds, initial, line):
    assert progress_line("read", done, total, "files", seconds, initial) == line


def test_a_line_every_half_minute(capsys):
    clock = Clock()
    lines = ProgressLines(total=100, desc="read", unit="files", clock=clock)
    for second in range(100):
        clock.now = 1001. + second
        lines.update()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "read: 30 of 100 files, 1 files/s, 1 min 10 s left",
        "read: 60 of 100 files, 1 files/s, 40 s left",
        "read: 90 of 100 files, 1 files/s, 10 s left",
    ]


def test_slow_steps_are_told_one_by_one(capsys):
    clock = Clock()
    for _ in ProgressLines(range(3), 3, "train", "students", clock=clock):
        clock.now += 60
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_short_work_is_silent(capsys, heard):
    assert list(progress_bar(range(5), "read")) == list(range(5))
    with progress_bar(3, "read") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_a_note_stands_at_the_end(capsys):
    clock = Clock()
    lines = ProgressLines(total=10, desc="train", unit="steps", clock=clock)
    lines.set_postfix(loss="0.25")
    clock.now += 40
    lines.update(4)
    expected = "train: 4 of 10 steps, 0.1 steps/s, 1 min 0 s left, loss 0.25\n"
    assert capsys.readouterr().err == expected


def test_a_bar_on_a_terminal(monkeypatch, heard):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress_bar(10, "read", "files", initial=2) as bar:
        bar.update(8)
    assert isinstance(bar, tqdm)
    assert (bar.n, bar.total) == (10, 10)
    assert "read: 100%" in sys.stderr.getvalue()


def test_lines_where_there_is_no_terminal(heard, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    bar = progress_bar(iter(range(10)), "read", total=10, initial=3)
    assert isinstance(bar, ProgressLines)
    assert list(bar) == list(range(10))
    assert bar.n == 13


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
@pytest.mark.parametrize("disabled, show", [("1", True), (None, False), ("0", False)])
def test_silence(monkeypatch, stream, disabled, show):
    monkeypatch.setattr(sys, "stderr", stream())
    monkeypatch.setattr(ProgressLines, "every", 0.)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if disabled is not None:
        monkeypatch.setenv("TQDM_DISABLE", disabled)
    assert list(progress_bar(range(4), "read", show=show)) == [0, 1, 2, 3]
    with progress_bar(4, "read", show=show) as bar:
        bar.update(4)
        bar.set_postfix(loss=1)
    assert sys.stderr.getvalue() == ""


def test_an_error_passes_through(heard):
    with pytest.raises(KeyError):
        with progress_bar(4, "read"):
            raise KeyError


# Cores

def test_results_come_in_order():
    def late(i):
        time.sleep(.02 if i == 0 else 0)
        return i

    with one_core_each(3) as pool:
        assert list(in_order(pool, late, range(10), ahead=4)) == list(range(10))


def test_memory_does_not_grow_with_the_number_of_items():
    begun = []
    with one_core_each(2) as pool:
        results = in_order(pool, begun.append, range(100), ahead=3)
        next(results)
        time.sleep(.05)
        assert len(begun) <= 4


def test_what_has_not_begun_is_dropped():
    begun, gate = [], threading.Event()

    def wait(i):
        begun.append(i)
        gate.wait(1)
        if i == 0:
            raise ValueError("of the first")

    with pytest.raises(ValueError, match="of the first"):
        with one_core_each(1) as pool:
            results = in_order(pool, wait, range(9), ahead=5)
            gate.set()
            next(results)
    assert len(begun) < 9
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_torch_has_its_threads_again(error):
    before = torch.get_num_threads()
    try:
        with one_core_each(2) as pool:
            assert pool.submit(torch.get_num_threads).result() == 1
            if error:
                raise error
    except RuntimeError:
        pass
    assert torch.get_num_threads() == before


# What is remembered

@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of its own."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_two_processes_keep_both_values(cache):
    one, other = (Remembered("hashes", "cats", "/cats") for _ in range(2))
    one.put("a", "stamp", 1)
    other.put("b", "stamp", 2)
    again = Remembered("hashes", "cats", "/cats")
    assert (again.get("a", "stamp"), again.get("b", "stamp")) == (1, 2)


def test_data_of_one_name_in_two_places_are_kept_apart(cache):
    Remembered("hashes", "cats", "/cats").put("a", "stamp", 1)
    assert Remembered("hashes", "cats", "/more/cats").get("a", "stamp") is None
    assert Remembered("damage", "cats", "/cats").get("a", "stamp") is None


def test_a_new_stamp_takes_the_place_of_the_old(cache):
    table = Remembered("hashes", "cats", "/cats")
    table.put("a", "monday", 1)
    table.put("a", "tuesday", 2)
    assert (table.get("a", "monday"), table.get("a", "tuesday")) == (None, 2)
    assert len(list(cache.iterdir())) == 1


def test_a_cache_that_cannot_be_written(cache):
    cache.write_text("a file where the folder should be")
    table = Remembered("hashes", "cats", "/cats")
    table.put("a", "monday", 1)
    assert table.get("a", "monday") == 1
    assert Remembered("hashes", "cats", "/cats").get("a", "monday") is None


def test_settled():
    now = time.time_ns()
    assert is_settled([])
    assert is_settled([0, now - 3 * 10**9])
    assert not is_settled([0, now - 10**9])
    assert not is_settled([now + 10**12])  # a clock that is ahead


def test_there_is_a_core_for_each_thread():
    with one_core_each() as pool:
        assert pool._max_workers == os.cpu_count()
    assert core.one_core_each is one_core_each
