"""Measure where the time of training students goes, on one core of a CPU, and write results/training_speed.csv.

    python tools/profile_training.py

Each row is a ratio of two times of one process (CPU time, the shortest of several repeats): the gain from keeping freed memory, from bfloat16 and from
another memory layout; the share of an epoch that is not the network (views, mixing, order, bookkeeping); the time of kornia's views of photographs in
units of ours; and the gain from training several students as one batched model (`torch.func.vmap`).
"""
import os
import platform
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from manifoldgd import students
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import git_commit, replacing
from manifoldgd.evaluation.accuracy import keep_memory
from manifoldgd.students.networks import ConvNet
from manifoldgd.students.photographs import color_jitter, random_resized_crop
from manifoldgd.students.views import random_flip

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
rows = []


def best(function, repeats=5):
    "The shortest CPU time of several calls, after one that does not count."
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times[1:])


def note(what, numerator, denominator, note):
    rows.append({"what": what, "ratio": round(numerator / denominator, 4), "numerator_s": round(numerator, 5), "denominator_s": round(denominator, 5), "note": note,
                 "command": "python tools/profile_training.py", "machine": f"{platform.machine()} cpu, 1 of {os.cpu_count()} cores", "torch": torch.__version__, "commit": git_commit()})
    print(f"{what}: {rows[-1]['ratio']}  ({note})")


class Nothing(nn.Module):
    "A student of 10 parameters: what an epoch costs without the network."
    def __init__(self, *args):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10))

    def forward(self, x): return self.logits.expand(len(x), 10)


images, labels = torch.rand(100, 3, 32, 32, generator=generator) * 2 - 1, torch.arange(100) % 10
mean_std = (torch.zeros(3), torch.ones(3))
step_model = ConvNet()


def step():
    for part in (slice(0, 64), slice(64, 100)): F.cross_entropy(step_model(images[part]), labels[part]).backward()


returned = best(step)
keep_memory()
kept = best(step)
note("memory", returned, kept, "ConvNet-3 of width 128, forward and backward on 100 images of 32 x 32: freed memory returned to the system / kept")

with torch.autocast("cpu", torch.bfloat16): note("bfloat16", kept, best(step), "the same: float32 / bfloat16 forward pass")
step_model, images = step_model.to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
note("channels last", kept, best(step), "the same: PyTorch's usual memory layout / channels last")
images = images.contiguous()

for name in ("hard-label-32", "plain-32"):
    protocol = replace(PROTOCOLS[name], epochs=((None, 4),))
    def train(): students.train_student(images, labels, protocol, 10, 10, 0, mean_std)
    whole = best(train, 3)
    students.STUDENTS["Nothing"] = Nothing
    protocol = replace(protocol, student="Nothing", epochs=((None, 100),))
    note(f"share, {name}", best(train, 3) / 25, whole, "4 epochs of 100 images of 32 x 32: without / with the network, ConvNet-3 of width 128")

batch = torch.rand(64, 3, 224, 224, generator=generator) * 2 - 1
ours = {"crop": lambda: random_resized_crop(batch, generator, .5), "flip": lambda: random_flip(batch, generator), "colors": lambda: color_jitter(batch, generator, .4)}
try: import kornia.augmentation as K
except ImportError: print("kornia is not installed: no comparison with it")
else:
    unit = (batch + 1) / 2
    theirs = {"crop": K.RandomResizedCrop((224, 224), scale=(.5, 1.), ratio=(3 / 4, 4 / 3), p=1.), "flip": K.RandomHorizontalFlip(p=.5), "colors": K.ColorJitter(.4, .4, .4, 0., p=1.)}
    times = {name: (best(lambda: theirs[name](unit), 3), best(ours[name], 3)) for name in ours}
    for name, pair in times.items(): note(f"kornia, {name}", *pair, f"64 photographs of 224 x 224: kornia {K.__dict__.get('__version__') or __import__('kornia').__version__} / this package")
    note("kornia, all", *map(sum, zip(*times.values())), "the three together")

k = 4
nets = [ConvNet() for _ in range(k)]
parameters, buffers = stack_module_state(nets)
def loss(parameters, buffers, x, y): return F.cross_entropy(functional_call(nets[0], (parameters, buffers), (x,)), y)


for layer in nets[0]:
    if isinstance(layer, nn.ReLU): layer.inplace = False
together = vmap(grad(loss), in_dims=(0, 0, None, None))
x, y = images[:64], labels[:64]
def one_by_one():
    for net in nets: F.cross_entropy(net(x), y).backward()


note("batched students", best(one_by_one, 3), best(lambda: together(parameters, buffers, x, y), 3), f"gradients of {k} ConvNet-3 of width 128 on 64 images: one after another / in one batched model (vmap)")

with replacing(Path(__file__).parents[1] / "results" / "training_speed.csv") as temporary: pd.DataFrame(rows).to_csv(temporary, index=False)
