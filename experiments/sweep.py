"""Compare settings of a distillation on the digits: what the sweeps in this folder share.

Settings are chosen on the validation split: 1 and 10 images per class, 3 distillation seeds,
2 trainings each.
"""
import itertools
from pathlib import Path

from ledger import new_parser
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

IPCS = (1, 10)
SEEDS = (0, 1, 2)
TRAININGS = 2


def distill_all(folder: Path, arms: dict) -> tuple:  # the folders of the runs
    "Make a run of every arm, number of images and seed; an arm has a name and settings."
    folders = []
    for (name, settings), ipc, seed in itertools.product(arms.items(), IPCS, SEEDS):
        out = str(folder / f"{name}-ipc{ipc}-seed{seed}")
        folders.append(str(distill(DistillConfig(ipc=ipc, seed=seed, out=out, **settings))))
    return tuple(folders)


def compare(description: str, stem: str, arms: dict, baseline: bool = False):
    "Sample, evaluate on the validation split, and print the summary, beside the first arm."
    parser = new_parser(description, stem)
    parser.add_argument("--runs", type=Path, default=Path("runs") / stem)
    args = parser.parse_args()
    runs = distill_all(args.runs, arms)
    config = EvaluateConfig(runs, split="validation", seeds=TRAININGS, out=str(args.out))
    print(format_summary(summarize(evaluate(config), runs[0] if baseline else None)))
