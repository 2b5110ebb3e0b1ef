"""Measure the demonstration's runs with every metric; write results/metrics.csv.

    python experiments/metrics.py [--runs runs/demo]

The runs are those of `make demo` at 10 images per class, five presets and 3 distillation seeds;
what is missing is distilled. Features are those of a student of the real images, and the latents.
One row per run, metric and features, each beside its floor: 20 draws of 100 real images against
the others. The page of `evaluation.measurement` reads the table. Some minutes on two cores.
"""
import itertools
from pathlib import Path

from ledger import new_parser
from manifoldgd.config.commands import MetricsConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.measurement import format_metrics, measure_runs

PRESETS = ("random", "decoded", "dit", "mgd", "manifoldgd")
SEEDS = (0, 1, 2)
IPC = 10
DRAWS = 20


def distill_all(folder: Path) -> tuple:  # the folders of the runs
    "Distil what is missing of the demonstration's runs."
    folders = []
    for seed, preset in itertools.product(SEEDS, PRESETS):
        out = str(folder / f"{preset}-ipc{IPC}-seed{seed}")
        folders.append(str(distill(DistillConfig(preset=preset, ipc=IPC, seed=seed, out=out))))
    return tuple(folders)


def main():
    "Measure the runs by the features of a student and by the latents."
    parser = new_parser(__doc__, "metrics")
    parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder of the runs")
    args = parser.parse_args()
    runs = distill_all(args.runs)
    for features in ("student", "latents"):
        rows = measure_runs(MetricsConfig(runs, features, draws=DRAWS, out=str(args.out)))
        print(format_metrics(rows))


if __name__ == "__main__":
    main()
