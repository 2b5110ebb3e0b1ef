"""What a training takes: the memory of a real one, and what the system says of its own."""
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from manifoldgd.config.protocols import PROTOCOLS, adapt
from manifoldgd.core import free_memory
from manifoldgd.students.cost import (
    arithmetic,
    how_many_fit,
    kept_features,
    measure_pace,
    side_by_side,
    training_memory,
    workload,
)

on_linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="it has no /proc")

PEAK = """
import torch
from pathlib import Path
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import keep_memory, used_memory
from manifoldgd.students.training import top1, train_student
from dataclasses import replace

def train(protocol, n):
    images = torch.rand(n, 3, 64, 64)
    own = torch.zeros(3), torch.ones(3)
    student = train_student(images, torch.arange(n) % 2, protocol, 2, 1, 0, own)
    top1(student, torch.zeros(n, 3, 64, 64), torch.zeros(n))

torch.set_num_threads(1)
keep_memory()
protocol = replace(PROTOCOLS["hard-label-64"], epochs=((None, 2),))
train(replace(protocol, width=4), 2)
before = used_memory(Path("/"))
train(protocol, 20)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
print(1024 * peak - before)
"""


@on_linux
def test_the_memory_of_a_real_training():
    "Twenty images of 64 pixels, seen from outside: by how much the process grew at most."
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    work = workload(PROTOCOLS["hard-label-64"], 2, 3, ipc=10, n_test=20)
    assert work.n_images == 20
    assert training_memory(work) / 1.7 < int(done.stdout) < 1.7 * training_memory(work)


def test_the_largest_features_of_each_network():
    "The first convolution has the most: its channels at the size of the images."
    for name, student, channels in [
        ("hard-label-32", "ConvNet-3", 128),
        ("hard-label-64", "ConvNet-4", 128),
        ("hard-label-256", "ConvNet-6", 128),
        ("hard-label-256", "ResNetAP-10", 64),
    ]:
        protocol = adapt(PROTOCOLS[name], 10, 3, student)
        work = workload(protocol, 10, 3, ipc=1, n_test=1)
        assert max(kept_features(work, 2)) == 2 * 4 * channels * protocol.image_size ** 2


def test_counting_draws_no_random_numbers_and_needs_no_memory():
    state = torch.random.get_rng_state()
    work = workload(adapt(PROTOCOLS["hard-label-256"], 10, 3), 10, 3, ipc=50, n_test=10 ** 6)
    assert training_memory(work) > 5e9
    assert arithmetic(work) > 1e15
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_pace_is_measured_on_as_many_images_as_there_is_time_for(monkeypatch):
    "Steps of 1, 4, 16 and then all images of a batch, here on a clock that counts them."
    work = workload(PROTOCOLS["hard-label-32"], 10, 3, ipc=10, n_test=100)
    seen = []
    ticks = [0]

    def timed_steps(work, n, device, clock):
        seen.append(n)
        ticks[0] += 3 * n
        return None, n

    monkeypatch.setattr("manifoldgd.students.cost.timed_steps", timed_steps)
    monkeypatch.setattr("manifoldgd.students.cost.time_test", lambda student, work, n, *_: n / 4)
    for budget, steps in [(1000, [1, 4, 16, 64]), (100, [1, 4, 16]), (10, [1]), (0, [1])]:
        seen.clear()
        ticks[0] = 0
        pace = measure_pace(work, torch.device("cpu"), budget, lambda: ticks[0])
        assert seen == steps
        assert (pace.train, pace.test) == (1, .25)
        assert ticks[0] <= max(budget, 3)


def test_the_steps_are_real_and_leave_no_trace():
    state = torch.random.get_rng_state()
    protocol = replace(PROTOCOLS["hard-label-32"], width=4)
    pace = measure_pace(workload(protocol, 3, 1, ipc=2, n_test=10), torch.device("cpu"), 1.)
    assert 0 < pace.test < pace.train < 10
    assert torch.equal(torch.random.get_rng_state(), state)


MEMINFO = "MemTotal:       32000000 kB\nMemFree:  100 kB\nMemAvailable:   12000000 kB\n"


@pytest.mark.parametrize("limits, free", [
    ({}, 12000000 * 1024),
    ({"sys/fs/cgroup/memory.max": "max"}, 12000000 * 1024),
    ({"sys/fs/cgroup/memory.max": "5000000000"}, 5 * 10 ** 9 - 1000 * 4096),
    ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 12000000 * 1024),
    ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000000"}, 4 * 10 ** 9 - 1000 * 4096),
    ({"sys/fs/cgroup/memory.max": "1000"}, 0),
])
def test_the_memory_that_a_machine_or_a_container_has_left(tmp_path, monkeypatch, limits, free):
    files = {"proc/meminfo": MEMINFO, "proc/self/statm": "9000 1000 300 1 0 400 0\n"} | limits
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr("os.sysconf", {"SC_PAGE_SIZE": 4096}.get)
    assert free_memory(tmp_path) == free


def test_the_memory_of_a_system_without_proc(tmp_path, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10 ** 6}
    monkeypatch.setattr("os.sysconf", sizes.get)
    assert free_memory(tmp_path) == 4096 * 10 ** 6
    monkeypatch.delattr("os.sysconf")
    assert free_memory(tmp_path) is None


@on_linux
def test_this_machine_has_memory():
    assert 10 ** 7 < free_memory() < 10 ** 14


def test_no_more_trainings_than_fit():
    for cores in (1, 2, 16):
        for each in (10 ** 8, 10 ** 9):
            for free in (0, 10 ** 8, 10 ** 9, 10 ** 10, 10 ** 12):
                workers = how_many_fit(cores, each, free)
                assert 1 <= workers <= cores
                assert workers * each <= .8 * free or workers == 1
                assert workers == cores or (workers + 1) * each > .8 * free


def test_places_are_taken_in_order():
    assert side_by_side([5, 1, 1, 1, 5], 2) == 8  # the long one comes last
    assert side_by_side([5, 5, 1, 1, 1], 2) == 7
    assert side_by_side([3], 8) == 3
    assert side_by_side([], 2) == 0
