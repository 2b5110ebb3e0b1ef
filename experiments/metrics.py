"""Measure the demonstration's runs at 10 images per class with every metric, and write results/metrics.csv.

    python tools/measure_metrics.py [--runs runs/demo]

The runs are those of `make demo`, five presets and 3 distillation seeds; what is missing is distilled. Features are those of a student of the real images,
and the latents. One row per run, metric and features, each beside its floor: 20 draws of 100 real images against the others.
"""
import argparse
from pathlib import Path

from manifoldgd.config.commands import MetricsConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.measurement import format_metrics, measure_runs

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--runs", type=Path, default=Path("runs/demo"), help="folder of the runs")
parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "metrics.csv")
args = parser.parse_args()

PRESETS = ("random", "decoded", "dit", "mgd", "manifoldgd")
configs = [DistillConfig(preset=preset, ipc=10, seed=seed, out=str(args.runs / f"{preset}-ipc10-seed{seed}")) for seed in range(3) for preset in PRESETS]
folders = tuple(str(distill(config)) for config in configs)
for features in ("student", "latents"): print(format_metrics(measure_runs(MetricsConfig(folders, features, draws=20, out=str(args.out)))))
