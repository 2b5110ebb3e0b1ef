"""Time the tree against scikit-learn's BisectingKMeans; write results/tree_speed.csv.

    OMP_NUM_THREADS=2 python experiments/tree_speed.py

The points are 30 groups of equal width in D dimensions (what: "groups") or have no structure at
all (what: "noise"). Both programs cluster the same points one after the other, with the same number
of starts, so that their ratio means something on a busy machine too; the seconds do only on an idle
one (about 5 minutes). The page `speed` reads the table.
"""
import time

import sklearn
import torch
from sklearn.cluster import BisectingKMeans
from tqdm import tqdm

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.latents import LatentBank
from manifoldgd.data.classes import ImageClass
from manifoldgd.prototypes.selection import class_prototypes
from manifoldgd.prototypes.tree import bisect_tree

LEAVES = 50
N_INIT = 10  # starts of every split
SEEDS = 3
SIZES = [  # what, points, dimensions
    ("groups", 1300, 4096),
    ("noise", 1300, 4096),
    ("groups", 1000, 256),
    ("groups", 5000, 256),
    ("groups", 10000, 256),
    ("groups", 20000, 256),
    ("groups", 50000, 256),
]
CLASSES = 8
CLASS_SIZE = (1300, 4096)  # points and dimensions of a class


def make_points(what: str, n: int, dim: int, seed: int) -> torch.Tensor:  # (n, dim)
    "Draw points with or without groups."
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n, dim, generator=generator)
    if what == "noise":
        return points
    centers = torch.randn(30, dim, generator=generator)
    return .7 * points + .5 * centers[torch.randint(30, (n,), generator=generator)]


def ours(points: torch.Tensor, seed: int) -> float:  # the inertia of the leaves
    "Cluster by `bisect_tree`."
    tree = bisect_tree(points, LEAVES, N_INIT, torch.Generator().manual_seed(seed))
    return sum(tree.nodes[i].inertia for i in tree.leaves)


def sklearns(points: torch.Tensor, seed: int) -> float:  # the inertia of the clusters
    "Cluster by scikit-learn."
    program = BisectingKMeans(
        LEAVES,
        init="k-means++",
        n_init=N_INIT,
        bisecting_strategy="biggest_inertia",
        random_state=seed,
    )
    return program.fit(points.numpy()).inertia_


PROGRAMS = {"manifoldgd": ours, "scikit-learn": sklearns}


def side_by_side(points: torch.Tensor, seed: int, workers: int):
    "Choose the prototypes of all classes with several threads."
    classes = [ImageClass(str(c), str(c)) for c in range(CLASSES)]
    bank = LatentBank(points, torch.arange(CLASSES).repeat_interleave(CLASS_SIZE[0]))
    class_prototypes(bank, classes, LEAVES, seed=seed, progress=False, workers=workers)


class Clock:
    "Times one call after the other, and writes each down."

    def __init__(self, ledger: Ledger):
        self.ledger = ledger
        self.origin = provenance("commit", "device", "threads", "torch")
        self.origin |= {"scikit-learn": sklearn.__version__} | provenance("command")

    def time(
        self,
        row: dict,  # what is known before the call
        function,  # returns the inertia, or None
        *args,  # that it is called with
    ):
        "Call a function and note its seconds and what it returns."
        start = time.perf_counter()
        inertia = function(*args)
        seconds = round(time.perf_counter() - start, 4)
        self.ledger.add(row | {"seconds": seconds, "inertia": inertia} | self.origin)


def describe(program: str, what: str, n: int, dim: int, seed: int) -> dict:
    "Fill in the columns that are known before the call."
    return {
        "program": program,
        "what": what,
        "n": n,
        "dim": dim,
        "leaves": LEAVES,
        "n_init": N_INIT,
        "seed": seed,
    }


def time_programs(clock: Clock):
    "Time both programs on the same points, one after the other."
    for fit in PROGRAMS.values():
        fit(make_points("groups", 200, 64, 0), 0)  # the first call loads libraries
    for what, n, dim in tqdm(SIZES, desc="sizes"):
        for seed in range(SEEDS):
            points = make_points(what, n, dim, seed)
            for program, fit in PROGRAMS.items():
                row = describe(program, what, n, dim, seed) | {"classes": 1, "workers": 1}
                clock.time(row, fit, points, seed)


def time_classes(clock: Clock):
    "Time the classes of a dataset with one thread and with two."
    n, dim = CLASS_SIZE
    points = make_points("groups", CLASSES * n, dim, 0)
    for seed in range(SEEDS):
        for workers in (1, 2):
            row = describe("manifoldgd", "groups", n, dim, seed)
            row |= {"classes": CLASSES, "workers": workers}
            clock.time(row, side_by_side, points, seed, workers)


def main():
    "Time the trees of one class, then those of several."
    clock = Clock(Ledger(new_parser(__doc__, "tree_speed").parse_args().out))
    time_programs(clock)
    time_classes(clock)


if __name__ == "__main__":
    main()
