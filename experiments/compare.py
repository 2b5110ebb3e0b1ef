"""Compare all presets and references on the digits under one protocol; write results/compare.csv.

    python experiments/compare.py [--methods random dit ...] [--ipc 1 10] [--seeds N]
                                  [--runs runs/compare]

One training on each of 10 distillation seeds at 1 image per class and 5 at 10 (`--seeds` takes the
first N of them), and two on `whole`, all real training images, which has 0 as its IPC and -1 as its
seed; protocol hard-label-32-quick, the last epoch, the test split. One row per training. The run of
seed 0 is made by a process of its own with an empty cache: `seconds` is its time from the start to
the finished run, `cpu_seconds` that of all its threads, and `memory` its peak in MB, libraries and
all; what a method needs beyond them is the difference to the row of `random`. The other seeds share
a cache, and have no cost.

`trains` is what a method fits, `classifier` whether it needs one that was trained on the real data,
`real` what it looks at of the real data while images are made. `settings` are those that differ
from the preset: distribution matching takes 50 steps with 32 real images instead of 1000 with 256,
which would be hours a run. There is no row of LDM: no LDM backbone is in this project.

`make compare` runs it; a row that stands in the table is not made again, and a run that was stopped
goes on. With the defaults 195 runs and 197 trainings, a few hours on two cores.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ledger import Ledger, new_parser, provenance
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate

PROTOCOL = "hard-label-32-quick"
SEEDS = {1: 10, 10: 5}  # images per class -> distillation seeds
WHOLE, TRAININGS = "whole", 2
DIGITS = "digits"
KEY = ("method", "ipc", "seed", "training_seed")
FACTS = ("commit", "machine", "threads", "load", "torch", "command")
NEEDS = {  # method -> what it fits, whether a classifier is needed, the real data while it makes
    "random": ("", False, "images"),
    "herding": ("", False, "images"),
    "kcenter": ("", False, "images"),
    "decoded": ("", False, "prototypes"),
    "dit": ("", False, ""),
    "mgd": ("", False, "prototypes"),
    "d4m": ("", False, "prototypes"),
    "released": ("", False, "prototypes"),
    "paper": ("", False, "latents"),
    "manifoldgd": ("", False, "latents"),
    "minimax": ("denoiser", False, ""),
    "igd": ("classifier", True, "images"),
    "latent-dm": ("latents", False, "images"),
    WHOLE: ("", False, "images"),
}
CHEAPER = {"latent-dm": {"match_steps": 50, "match_images": 32}}
START = "from manifoldgd.cli import main; raise SystemExit(main())"


@dataclass(frozen=True)
class Cell:
    "The trainings that are compared with others at one number of images."
    method: str
    ipc: int
    count: int  # seeds

    def key(self, seed: int) -> dict:
        "What tells a row from another; the whole set has training seeds alone."
        whole = self.method == WHOLE
        own, training = (-1, seed) if whole else (seed, 0)
        return {"method": self.method, "ipc": self.ipc, "seed": own, "training_seed": training}

    def config(self, seed: int, runs: Path) -> DistillConfig:
        "The settings of a run."
        out = str(runs / f"{self.method}-ipc{self.ipc}-seed{seed}")
        settings = CHEAPER.get(self.method, {})
        return DistillConfig(preset=self.method, ipc=self.ipc, seed=seed, out=out, device="cpu",
                             **settings)


def list_cells(methods: list, ipcs: list, most: int = None) -> list:  # of `Cell`
    "List what is compared, with at most so many seeds."
    made = [method for method in methods if method != WHOLE]
    cells = [Cell(method, ipc, SEEDS[ipc]) for ipc in ipcs for method in made]
    if WHOLE in methods:
        cells.append(Cell(WHOLE, 0, TRAININGS))
    return [Cell(c.method, c.ipc, min(c.count, most or c.count)) for c in cells]


def command_of(config: DistillConfig) -> list:
    "Write a run as the command that makes it."
    words = {name: value for name, value in vars(config).items()
             if value != getattr(DistillConfig(), name)}
    options = [word for name, value in words.items()
               for word in (f"--{name.replace('_', '-')}", str(value))]
    return [sys.executable, "-c", START, "distill", *options]


def make_and_measure(config: DistillConfig) -> dict:  # columns of its cost
    "Make a run in a process of its own, with an empty cache, or look up what it took."
    cost, cache = Path(config.out) / "cost.json", Path(f"{config.out}-cache")
    if cost.exists():
        return json.loads(cost.read_text())
    for begun in (Path(config.out), cache):  # by a run that was stopped
        shutil.rmtree(begun, ignore_errors=True)
    own = os.environ | {"MANIFOLDGD_CACHE": str(cache), "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command_of(config), env=own)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"The run {config.out} failed.")
    measured = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "memory": round(usage.ru_maxrss / 1024),
    }
    cost.write_text(json.dumps(measured))
    shutil.rmtree(cache)
    return measured


def trained(sets: tuple, trainings: int, folder: Path) -> list:  # of rows of `evaluate`
    "Train students on sets, and judge them on the test split."
    config = EvaluateConfig(
        sets, protocol=PROTOCOL, split="test", seeds=trainings, data=DIGITS, device="cpu",
        name=(WHOLE,) if sets == (DIGITS,) else (), workers=os.cpu_count(),
        out=str(folder / "accuracy.csv"))
    return evaluate(config).to_dict("records")


def rows_of(cell: Cell, runs: Path) -> list:
    "Make what a cell lacks, and measure it."
    trains, classifier, real = NEEDS[cell.method]
    shared = {
        "settings": json.dumps(CHEAPER.get(cell.method, {})),
        "trains": trains,
        "classifier": classifier,
        "real": real,
        "protocol": PROTOCOL,
        "split": "test",
    }
    costs = [{}] * cell.count
    if cell.method == WHOLE:
        found = trained((DIGITS,), cell.count, runs)
    else:
        configs = [cell.config(seed, runs) for seed in range(cell.count)]
        costs[0] = make_and_measure(configs[0])
        for config in configs[1:]:
            distill(config)
        found = trained(tuple(config.out for config in configs), 1, runs)
    found.sort(key=lambda row: (row["generation_seed"], row["training_seed"]))
    none = dict.fromkeys(("seconds", "cpu_seconds", "memory"))
    rows = []
    for seed, (row, cost) in enumerate(zip(found, costs, strict=True)):
        result = {
            "top1": row["top1_last"],
            "student": row["student"],
            "n_test": row["n_test"],
            "training_seconds": row["seconds"],
        }
        rows.append(cell.key(seed) | result | none | cost | shared)
    return rows


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "compare")
    parser.add_argument("--methods", nargs="+", choices=list(NEEDS), default=list(NEEDS))
    parser.add_argument("--ipc", nargs="+", type=int, choices=list(SEEDS), default=list(SEEDS))
    parser.add_argument("--seeds", type=int, help="at most so many seeds of each")
    parser.add_argument("--runs", type=Path, default=Path("runs/compare"), help="their folder")
    return parser.parse_args()


def main():
    "Measure the cells that are not in the table."
    args = parse()
    ledger = Ledger(args.out, KEY)
    cells = [cell for cell in list_cells(args.methods, args.ipc, args.seeds)
             if not all(cell.key(seed) in ledger for seed in range(cell.count))]
    for cell in tqdm(cells, desc="methods"):
        for row in rows_of(cell, args.runs):
            if row not in ledger:
                ledger.add(row | provenance(*FACTS))


if __name__ == "__main__":
    main()
