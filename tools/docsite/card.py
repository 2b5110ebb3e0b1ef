"""Draw `nbs/assets/card.png`, the picture that a link to the site is shown with."""
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

PAPER, CURVE, ACROSS, ALONG = "#14383f", "#9fd3da", "#e8837b", "#7bd88f"
WORDS = """A labelled image dataset,
distilled into a few images per class,
without training anything."""


def curve(t):
    "Points of the bent curve that stands for the data."
    height = np.sqrt(np.clip(1 - (1 - t) ** 2, 0, 1))
    return np.stack([.56 + .4 * t, .22 + .52 * height], -1)


def arrow(ax, start, end, color):
    "An arrow between two points."
    style = {"arrowstyle": "-|>", "color": color, "lw": 3, "mutation_scale": 22}
    ax.annotate("", end, start, arrowprops=style)


def draw():
    "Draw data along a curve, and the two ways from a sample to its prototype."
    figure = plt.figure(figsize=(12, 6.3), dpi=100, facecolor=PAPER)
    ax = figure.add_axes([0, 0, 1, 1])
    ax.set(xlim=(0, 1), ylim=(0, 1))
    ax.set_axis_off()
    noise = np.random.default_rng(0).normal(0, .009, (160, 2))
    ax.scatter(*(curve(np.linspace(.01, 1, 160)) + noise).T, s=22, color=CURVE, lw=0, alpha=.7)
    for t in (.05, .22, .45):
        start, prototype, after = curve(np.array([t, .97, t + .16]))
        arrow(ax, start, start + .4 * (prototype - start), ACROSS)
        arrow(ax, start, after, ALONG)
    ax.plot(*curve(np.array(.97)), "*", color="white", ms=26)
    ax.text(.06, .66, "manifoldgd", color="white", fontsize=46, weight="bold")
    ax.text(.06, .36, WORDS, color=CURVE, fontsize=20, linespacing=1.5)
    return figure


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[2] / "nbs" / "assets" / "card.png"
    draw().savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
