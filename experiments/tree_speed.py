"""Time the tree against scikit-learn's BisectingKMeans and write results/tree_speed.csv.

    OMP_NUM_THREADS=2 python tools/measure_tree_speed.py

The points are 30 groups of equal width in D dimensions (what: "groups") or have no structure at all (what: "noise"). Both programs cluster the same points one
after the other, with the same number of starts, so that their ratio means something on a busy machine too; the seconds do only on an idle one (about 5 minutes).
"""
import os
import platform
import time
from pathlib import Path

import pandas as pd
import sklearn
import torch
from sklearn.cluster import BisectingKMeans
from tqdm import tqdm

from manifoldgd.backbones.latents import LatentBank
from manifoldgd.core import git_commit, replacing
from manifoldgd.data.classes import ImageClass
from manifoldgd.prototypes.levels import class_prototypes
from manifoldgd.prototypes.tree import bisect_tree

LEAVES, N_INIT, SEEDS = 50, 10, 3
OUT = Path(__file__).parents[1] / "results" / "tree_speed.csv"
SETTINGS = {"commit": git_commit(), "device": f"CPU, {platform.machine()}, {os.cpu_count()} cores", "threads": torch.get_num_threads(), "torch": torch.__version__,
            "scikit-learn": sklearn.__version__, "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python tools/measure_tree_speed.py"}
rows = []


def make_points(what, n, dim, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, dim, generator=generator)
    return points if what == "noise" else .7 * points + .5 * torch.randn(30, dim, generator=generator)[torch.randint(30, (n,), generator=generator)]


def ours(points, seed):
    tree = bisect_tree(points, LEAVES, N_INIT, torch.Generator().manual_seed(seed))
    return sum(tree.nodes[i].inertia for i in tree.leaves)


def sklearns(points, seed):
    return BisectingKMeans(LEAVES, init="k-means++", n_init=N_INIT, bisecting_strategy="biggest_inertia", random_state=seed).fit(points.numpy()).inertia_


def note(program, what, n, dim, seed, classes, workers, function):
    start = time.perf_counter()
    inertia = function()
    rows.append({"program": program, "what": what, "n": n, "dim": dim, "leaves": LEAVES, "n_init": N_INIT, "seed": seed, "classes": classes, "workers": workers,
                 "seconds": round(time.perf_counter() - start, 4), "inertia": inertia} | SETTINGS)
    with replacing(OUT) as temporary: pd.DataFrame(rows).to_csv(temporary, index=False)


for fit in (ours, sklearns): fit(make_points("groups", 200, 64, 0), 0)  # the first call loads libraries
sizes = [("groups", 1300, 4096), ("noise", 1300, 4096)] + [("groups", n, 256) for n in (1000, 5000, 10000, 20000, 50000)]
for what, n, dim in tqdm(sizes, desc="sizes"):
    for seed in range(SEEDS):
        points = make_points(what, n, dim, seed)
        for program, fit in (("manifoldgd", ours), ("scikit-learn", sklearns)): note(program, what, n, dim, seed, 1, 1, lambda: fit(points, seed))

classes = [ImageClass(str(c), str(c)) for c in range(8)]
bank = LatentBank(make_points("groups", 8 * 1300, 4096, 0), torch.arange(8).repeat_interleave(1300))
for seed in range(SEEDS):
    for workers in (1, 2):
        note("manifoldgd", "groups", 1300, 4096, seed, 8, workers, lambda: class_prototypes(bank, classes, LEAVES, seed=seed, progress=False, workers=workers) and None)
