"""Train students on real CIFAR-10 images drawn at random, and write results/cifar10.csv: a check of this package's students against the literature.

    python tools/measure_cifar10.py --data DIR [--workers 1]

DIR holds train/<class>/ and test/<class>/ with 32 x 32 images. One row per training, by the ordinary `evaluate`; a command that was stopped goes on where it
stopped. On one core a training takes about 3 minutes at 10 images per class and 12 at 50.
"""
import argparse
from pathlib import Path

from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

ROWS = [("plain-32", 10, 5), ("plain-32", 50, 3), ("hard-label-32-quick", 10, 5), ("hard-label-32-quick", 50, 3)]  # protocol, IPC, draws of the images

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", required=True, help="folder with train/ and test/")
parser.add_argument("--workers", type=int, help="trainings side by side, one core each (default: one per core)")
parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "cifar10.csv")
args = parser.parse_args()

for protocol, ipc, seeds in ROWS:
    configs = [DistillConfig(data=args.data, preset="random", ipc=ipc, seed=seed, out=f"runs/cifar10-random-ipc{ipc}-seed{seed}") for seed in range(seeds)]
    runs = tuple(str(distill(config)) for config in configs)
    print(format_summary(summarize(evaluate(EvaluateConfig(runs, protocol=protocol, seeds=1, out=str(args.out), workers=args.workers)))))
