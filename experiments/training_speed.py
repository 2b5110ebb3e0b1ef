"""Measure where the time of training students goes; write results/training_speed.csv.

    python experiments/training_speed.py

Each row is a ratio of two times of one process on one core of a CPU (CPU time, the shortest of
several repeats): the gain from keeping freed memory, from bfloat16 and from another memory layout;
the share of an epoch that is not the network (views, mixing, order, bookkeeping); the time of
kornia's views of photographs in units of ours; and the gain from training several students as one
batched model (`torch.func.vmap`). Some minutes. The page of `students.training` reads the table.
"""
import os
import platform
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from ledger import Ledger, new_parser, provenance
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import keep_memory
from manifoldgd.students.networks import ConvNet
from manifoldgd.students.training import STUDENTS, train_student
from manifoldgd.students.views import color_jitter, random_flip, random_resized_crop

TOGETHER = 4  # students in one batched model


class Notes:
    "The rows of the table, shown as they are measured."

    def __init__(self, out: Path):
        self.ledger = Ledger(out)
        self.origin = provenance("command", "machine", "torch", "commit")
        self.origin["machine"] = f"{platform.machine()} cpu, 1 of {os.cpu_count()} cores"

    def add(self, what: str, numerator: float, denominator: float, note: str):
        "Write the ratio of two times down."
        row = {
            "what": what,
            "ratio": round(numerator / denominator, 4),
            "numerator_s": round(numerator, 5),
            "denominator_s": round(denominator, 5),
            "note": note,
        }
        self.ledger.add(row | self.origin)
        print(f"{what}: {row['ratio']}  ({note})")


def best(function, repeats: int = 5) -> float:  # seconds
    "The shortest CPU time of several calls, after one that does not count."
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times[1:])


def pass_through(network: nn.Module, images: torch.Tensor, labels: torch.Tensor):
    "Go forward and backward once, in batches of 64."
    for x, y in zip(images.split(64), labels.split(64)):
        F.cross_entropy(network(x), y).backward()


def measure_operations(notes: Notes, images: torch.Tensor, labels: torch.Tensor):
    "Compare ways of running the same network on the same images."
    network = ConvNet()
    one_pass = partial(pass_through, network, images, labels)
    returned = best(one_pass)
    keep_memory()
    kept = best(one_pass)
    what = "ConvNet-3 of width 128, forward and backward on 100 images of 32 x 32"
    notes.add("memory", returned, kept, f"{what}: freed memory returned to the system / kept")
    with torch.autocast("cpu", torch.bfloat16):
        bfloat16 = best(one_pass)
    notes.add("bfloat16", kept, bfloat16, "the same: float32 / bfloat16 forward pass")
    network.to(memory_format=torch.channels_last)
    images = images.contiguous(memory_format=torch.channels_last)
    channels_last = best(partial(pass_through, network, images, labels))
    note = "the same: PyTorch's usual memory layout / channels last"
    notes.add("channels last", kept, channels_last, note)


class Nothing(nn.Module):
    "A student of 10 parameters: what an epoch costs without the network."

    def __init__(self, *args):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.logits.expand(len(x), 10)


def measure_share(notes: Notes, name: str, images: torch.Tensor, labels: torch.Tensor):
    "Measure the share of a protocol's epoch that is not the network."
    mean_std = (torch.zeros(3), torch.ones(3))

    def time_of(protocol):
        return best(partial(train_student, images, labels, protocol, 10, 10, 0, mean_std), 3)

    whole = time_of(replace(PROTOCOLS[name], epochs=((None, 4),)))
    empty = time_of(replace(PROTOCOLS[name], epochs=((None, 100),), student="Nothing")) / 25
    note = "4 epochs of 100 images of 32 x 32: without / with the network, ConvNet-3 of width 128"
    notes.add(f"share, {name}", empty, whole, note)


def measure_views(notes: Notes, batch: torch.Tensor, generator: torch.Generator):
    "Compare kornia's views of photographs with ours, if kornia is installed."
    try:
        import kornia
        import kornia.augmentation as K
    except ImportError:
        print("kornia is not installed: no comparison with it")
        return
    unit = (batch + 1) / 2
    pairs = {
        "crop": (
            K.RandomResizedCrop((224, 224), scale=(.5, 1.), ratio=(3 / 4, 4 / 3), p=1.),
            partial(random_resized_crop, batch, generator, .5),
        ),
        "flip": (K.RandomHorizontalFlip(p=.5), partial(random_flip, batch, generator)),
        "colors": (
            K.ColorJitter(.4, .4, .4, 0., p=1.),
            partial(color_jitter, batch, generator, .4),
        ),
    }
    note = f"64 photographs of 224 x 224: kornia {kornia.__version__} / this package"
    times = {}
    for name, (theirs, ours) in pairs.items():
        times[name] = (best(partial(theirs, unit), 3), best(ours, 3))
    for name, pair in times.items():
        notes.add(f"kornia, {name}", *pair, note)
    notes.add("kornia, all", *map(sum, zip(*times.values())), "the three together")


def measure_together(notes: Notes, x: torch.Tensor, y: torch.Tensor):
    "Compare the gradients of several students one after another and in one batched model."
    networks = [ConvNet() for _ in range(TOGETHER)]
    parameters, buffers = stack_module_state(networks)

    def loss(parameters, buffers, x, y):
        return F.cross_entropy(functional_call(networks[0], (parameters, buffers), (x,)), y)

    for layer in networks[0]:
        if isinstance(layer, nn.ReLU):
            layer.inplace = False
    together = vmap(grad(loss), in_dims=(0, 0, None, None))

    def one_by_one():
        for network in networks:
            F.cross_entropy(network(x), y).backward()

    times = (best(one_by_one, 3), best(partial(together, parameters, buffers, x, y), 3))
    note = f"gradients of {TOGETHER} ConvNet-3 of width 128 on 64 images: one after another / "
    notes.add("batched students", *times, note + "in one batched model (vmap)")


def main():
    "Measure operations, views and batching on one thread."
    args = new_parser(__doc__, "training_speed").parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    STUDENTS["Nothing"] = Nothing
    notes = Notes(args.out)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(100, 3, 32, 32, generator=generator) * 2 - 1
    labels = torch.arange(100) % 10
    measure_operations(notes, images, labels)
    for name in ("hard-label-32", "plain-32"):
        measure_share(notes, name, images, labels)
    batch = torch.rand(64, 3, 224, 224, generator=generator) * 2 - 1
    measure_views(notes, batch, generator)
    measure_together(notes, images[:64], labels[:64])


if __name__ == "__main__":
    main()
