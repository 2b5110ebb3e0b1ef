"""The demonstration of `make demo`: distil the embedded digits with five presets, train students on each, print and save the table.

1 and 10 images per class, 3 distillation seeds, 2 trainings for each. A demonstration that was stopped goes on where it stopped.
"""
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import replacing
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, plot_summary, summarize

PRESETS, IPCS, SEEDS, TRAININGS = ("random", "decoded", "dit", "mgd", "manifoldgd"), (1, 10), (0, 1, 2), 2


def save(figure, path: Path):
    "Write a picture, whole or not at all."
    with replacing(path) as temporary: figure.savefig(temporary, dpi=100, format="png")


def galleries(out: Path):  # -> a figure of matplotlib
    "Put the galleries of the first seed side by side."
    figure, axes = plt.subplots(len(IPCS), len(PRESETS), figsize=(3 * len(PRESETS), 3.4 * len(IPCS)), squeeze=False)
    for row, ipc in zip(axes, IPCS):
        for ax, preset in zip(row, PRESETS):
            ax.imshow(Image.open(out / f"{preset}-ipc{ipc}-seed{SEEDS[0]}" / "gallery.png"), cmap="gray", interpolation="nearest")
            ax.set_title(f"{preset}, IPC {ipc}"), ax.axis("off")
    figure.tight_layout()
    return figure


def main(out: Path):
    started = time.time()
    configs = [DistillConfig(preset=preset, ipc=ipc, seed=seed, out=str(out / f"{preset}-ipc{ipc}-seed{seed}")) for ipc in IPCS for seed in SEEDS for preset in PRESETS]
    folders = [str(distill(config)) for config in configs]
    rows = evaluate(EvaluateConfig(runs=tuple(folders), seeds=TRAININGS, out=str(out / "results.csv")))
    summary = summarize(rows)
    text = format_summary(summary)
    with replacing(out / "table.txt") as temporary: temporary.write_text(text + "\n")
    save(plot_summary(summary), out / "accuracy.png")
    save(galleries(out), out / "galleries.png")
    print(f"\n{text}\n\nIn {out}/: table.txt, results.csv (one row per training), accuracy.png, galleries.png, and a folder for each run. {time.time() - started:.0f} s.")


if __name__ == "__main__": main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
