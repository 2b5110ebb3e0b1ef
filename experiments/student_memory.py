"""Measure the memory of photographs for students; write results/student_memory.csv.

    python experiments/student_memory.py

JPEGs of 256 x 256 pixels are drawn, opened as a dataset and brought to 224 pixels, as the protocol
`hard-label-256` does it. `test`: they are test images, and a narrow network looks at all of them
once. `train`: they are the images of a distilled set, and a narrow network is trained on them for
an epoch. Each row is a process of its own: by how much its memory grew at most, beside the size of
the images as floating-point numbers. 2,000 files stand for all images, each behind several names.
What stands in the table is not measured again. About ten minutes of one core, and 8 GB of disk,
which are given back.
"""
import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ledger import Ledger, new_parser, provenance
from manifoldgd.config.protocols import PROTOCOLS, adapt
from manifoldgd.core import keep_memory, used_memory
from manifoldgd.data.images import FolderImages, bilinear_crop
from manifoldgd.data.pixels import pixels_of
from manifoldgd.students.training import make_student, top1, train_student

SIZE = 224
FILES = 2_000  # that are really drawn
CASES = [  # use, classes, images per class
    ("test", 10, 50),
    ("test", 10, 500),
    ("test", 100, 100),
    ("test", 100, 500),
    ("train", 10, 10),
    ("train", 100, 50),
]


def peak_memory() -> int:  # bytes
    "Read the most memory that this process has had."
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return 1024 * int(peak.split()[1])


def draw_photographs(folder: Path, classes: int, ipc: int):
    "Draw smooth pictures with some noise; from the 2,001st on they are links to the first."
    rng = np.random.default_rng(0)
    first = []
    for i in range(classes * ipc):
        path = folder / f"{i // ipc:03d}" / f"{i % ipc:05d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if i >= FILES:
            os.link(first[i % FILES], path)
            continue
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = np.asarray(Image.fromarray(coarse).resize((256, 256))).astype(int)
        picture += rng.integers(-16, 17, picture.shape)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        first.append(path)


def narrow(epochs: int):  # -> a protocol
    "Take a network that needs little memory itself."
    protocol = adapt(PROTOCOLS["hard-label-256"], 10, 3, "ConvNet-6")
    return replace(protocol, width=4, epochs=((None, epochs),))


def use_images(use: str, data, ipc: int):
    "Test a network on all images, or train one for an epoch."
    pixels = pixels_of(data, SIZE, 3, bilinear_crop, workers=1)
    n = len(data.classes)
    if use == "test":
        student = make_student(narrow(1), n, 3, seed=0)
        return top1(student, pixels, data.labels)
    zero = (torch.zeros(3), torch.ones(3))
    return train_student(pixels, data.labels, narrow(1), n, ipc, 0, zero)


def measure(use: str, folder: str, ipc: int) -> dict:  # a part of a row
    "Use the images in this process, and see how much memory it took."
    torch.set_num_threads(1)
    keep_memory()
    os.environ["MANIFOLDGD_CACHE"] = str(Path(folder) / "cache")
    warm = torch.zeros(4, 3, SIZE, SIZE)
    train_student(warm, torch.zeros(4).long(), narrow(1), 1, 1, 0, (warm[0, :, 0, 0],) * 2)
    before = used_memory(Path("/"))
    start = time.process_time()
    data = FolderImages(Path(folder) / "images")
    use_images(use, data, ipc)
    return {
        "images": len(data),
        "gb_as_floats": round(4 * 3 * SIZE ** 2 * len(data) / 1e9, 2),
        "gb": round((peak_memory() - before) / 1e9, 3),
        "seconds": round(time.process_time() - start, 1),
    }


def main():
    "Measure every case in a fresh process, which its files do not outlive."
    args = new_parser(__doc__, "student_memory").parse_args()
    table = Ledger(args.out, ("use", "classes", "ipc"))
    facts = provenance("command", "machine", "load", "torch", "commit")
    context = multiprocessing.get_context("spawn")
    for use, classes, ipc in CASES:
        if (use, classes, ipc) in table.done:
            continue
        with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, context) as pool:
            images = Path(folder) / "images"
            images.mkdir()
            draw_photographs(images, classes, ipc)
            row = pool.submit(measure, use, folder, ipc).result()
        row = {"use": use, "classes": classes, "ipc": ipc} | row
        print(row)
        table.add(row | facts)


if __name__ == "__main__":
    main()
