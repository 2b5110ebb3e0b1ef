"""Train students for real and compare with the estimates; write results/training_cost.csv.

    python experiments/training_cost.py

Each row is a training of a few epochs on images of noise with a test of 128 images, on one core of
a CPU and in a process of its own: by how much the memory of the process grew at most, the CPU time
that the training took, and what `students.cost` estimates for both. About five minutes, and 10 GB
for the largest. The page of `students.cost` reads the table.
"""
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from ledger import Ledger, new_parser, provenance
from manifoldgd.config.protocols import PROTOCOLS, adapt
from manifoldgd.core import keep_memory, used_memory
from manifoldgd.students.cost import duration, measure_pace, training_memory, workload
from manifoldgd.students.training import top1, train_student

CLASSES = 10
N_TEST = 128
CASES = [  # protocol, student, channels, images per class, epochs
    ("digits-quick", "ConvNet-3", 1, 1, 200),
    ("digits-quick", "ConvNet-3", 1, 10, 50),
    ("hard-label-32", "ConvNet-3", 3, 10, 6),
    ("hard-label-32", "ResNet-18", 3, 10, 2),
    ("hard-label-64", "ConvNet-4", 3, 1, 20),
    ("hard-label-64", "ConvNet-4", 3, 10, 2),
    ("hard-label-64", "ConvNet-4", 3, 50, 1),
    ("hard-label-256", "ResNetAP-10", 3, 1, 4),
    ("hard-label-256", "ResNetAP-10", 3, 10, 1),
    ("hard-label-256", "ConvNet-6", 3, 10, 1),
    ("hard-label-256", "ResNet-18", 3, 10, 1),
]


def peak_memory() -> int:  # bytes
    "Read the most memory that this process has had."
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(peak.split()[1])


def train(protocol, channels: int, ipc: int):
    "Train a student on noise and test it."
    size = protocol.image_size
    images = torch.rand(CLASSES * ipc, channels, size, size) * 2 - 1
    labels = torch.arange(len(images)) % CLASSES
    mean_std = (torch.zeros(channels), torch.ones(channels))
    student = train_student(images, labels, protocol, CLASSES, ipc, 0, mean_std)
    test = torch.zeros(N_TEST, channels, size, size)
    top1(student, test, torch.zeros(N_TEST, dtype=torch.long))


def measure(name: str, student: str, channels: int, ipc: int, epochs: int) -> dict:  # a row
    "Train once, then estimate."
    torch.set_num_threads(1)
    keep_memory()
    adapted = adapt(PROTOCOLS[name], CLASSES, channels, student)
    protocol = replace(adapted, epochs=((None, epochs),), best=False)
    train(replace(protocol, width=4, epochs=((None, 1),)), channels, 1)  # what torch loads once
    before = used_memory(Path("/"))
    start = time.process_time()
    train(protocol, channels, ipc)
    seconds = time.process_time() - start
    grown = peak_memory() - before
    work = workload(protocol, CLASSES, channels, ipc, N_TEST)
    pace = measure_pace(work, torch.device("cpu"), clock=time.process_time)
    return {
        "protocol": name,
        "student": student,
        "ipc": ipc,
        "epochs": epochs,
        "gb_estimated": round(training_memory(work) / 1e9, 3),
        "gb": round(grown / 1e9, 3),
        "s_estimated": round(duration(work, pace), 2),
        "s": round(seconds, 2),
    }


def main():
    "Measure every case in a fresh process."
    args = new_parser(__doc__, "training_cost").parse_args()
    table = Ledger(args.out)
    facts = provenance("command", "machine", "load", "torch", "commit")
    context = multiprocessing.get_context("spawn")
    for case in CASES:
        with ProcessPoolExecutor(1, context) as pool:
            row = pool.submit(measure, *case).result()
        print(row)
        table.add(row | facts)


if __name__ == "__main__":
    main()
