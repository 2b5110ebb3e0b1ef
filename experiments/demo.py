"""The demonstration of `make demo`: distil the embedded digits five ways, train students on each.

    python experiments/demo.py [FOLDER]

1 and 10 images per class, 3 distillation seeds, 2 trainings for each; about 4 minutes on two idle
cores. What is made stands in FOLDER (default: runs/demo); the table of the project's own run is
kept as results/demo.csv. A demonstration that was stopped goes on where it stopped.
"""
import argparse
import itertools
import time
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from manifoldgd.config.commands import EvaluateConfig, ReportConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import replacing
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, plot_summary, summarize
from manifoldgd.sharing.report import write_reports

PRESETS = ("random", "decoded", "dit", "mgd", "manifoldgd")
IPCS = (1, 10)
SEEDS = (0, 1, 2)
TRAININGS = 2


def run_folder(out: Path, preset: str, ipc: int, seed: int) -> Path:
    "Name the folder of one run."
    return out / f"{preset}-ipc{ipc}-seed{seed}"


def distill_all(out: Path) -> list:  # the folders of the runs
    "Distil the digits with every preset, number of images and seed."
    folders = []
    for ipc, seed, preset in itertools.product(IPCS, SEEDS, PRESETS):
        folder = str(run_folder(out, preset, ipc, seed))
        config = DistillConfig(preset=preset, ipc=ipc, seed=seed, out=folder)
        folders.append(str(distill(config)))
    return folders


def save(figure, path: Path):
    "Write a picture, whole or not at all."
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=100, format="png")


def galleries(out: Path):  # -> a figure of matplotlib
    "Put the galleries of the first seed side by side."
    size = (3 * len(PRESETS), 3.4 * len(IPCS))
    figure, axes = plt.subplots(len(IPCS), len(PRESETS), figsize=size, squeeze=False)
    for ax, (ipc, preset) in zip(axes.flat, itertools.product(IPCS, PRESETS)):
        gallery = run_folder(out, preset, ipc, SEEDS[0]) / "gallery.png"
        ax.imshow(Image.open(gallery), cmap="gray", interpolation="nearest")
        ax.set_title(f"{preset}, IPC {ipc}")
        ax.axis("off")
    figure.tight_layout()
    return figure


def write_summary(rows: pd.DataFrame, out: Path) -> str:  # the table, for people
    "Write the table and the pictures."
    summary = summarize(rows)
    text = format_summary(summary)
    with replacing(out / "table.txt") as temporary:
        temporary.write_text(text + "\n")
    save(plot_summary(summary), out / "accuracy.png")
    save(galleries(out), out / "galleries.png")
    return text


def report(out: Path) -> Path:  # of the file
    "Show the runs of the first seed side by side, at the largest number of images."
    runs = tuple(str(run_folder(out, preset, max(IPCS), SEEDS[0])) for preset in PRESETS)
    [path] = write_reports(ReportConfig(
        runs, out=str(out / "report.html"), results=str(out / "results.csv")))
    return path


def main(
    out: Path,  # folder of the demonstration
):
    "Distil, evaluate, and print and save the table."
    matplotlib.use("Agg")  # also on a machine without a screen
    started = time.time()
    folders = distill_all(out)
    table = str(out / "results.csv")
    rows = evaluate(EvaluateConfig(sets=tuple(folders), seeds=TRAININGS, out=table))
    text = write_summary(rows, out)
    page = report(out)
    print(f"\n{text}\n")
    print(f"In {out}/: table.txt, results.csv (one row per training), accuracy.png, galleries.png,")
    print(f"and a folder for each run. {time.time() - started:.0f} s.")
    print(f"The images side by side, with what is known of them: {page} (open it in a browser).")


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("out", type=Path, nargs="?", default=Path("runs/demo"), metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse().out)
