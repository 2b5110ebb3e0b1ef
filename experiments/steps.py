"""Compare samplers with fewer steps on the digits; write results/steps.csv.

    OMP_NUM_THREADS=1 python experiments/steps.py [--presets dit] [--runs runs/steps]

DPM-Solver++ and UniPC with 10, 15, 20 and 25 steps and DDIM with 25, beside DDIM and DDPM with 50:
1 and 10 images per class, 5 distillation seeds, 2 trainings each on the validation split, and the
metrics by the features of a student. One row per run. `top1` is the mean over its trainings;
`seconds` are those of 50 images in one batch, unguided, those of DDPM with 50 steps `beside` them,
timed in turn, and `ratio` is that of the two. Rows that are in the table are not measured again.

The preset `dit` has no guidance, so only the samplers differ; a strength of guidance does not carry
over from one sampler to another. By the cost of other tables 110 runs and 220 trainings take about
two hours on one core.
"""
import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

from guidance_speed import timed
from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone
from manifoldgd.config.commands import EvaluateConfig, MetricsConfig
from manifoldgd.config.presets import GUIDANCE_SCALES, PRESETS, DistillConfig
from manifoldgd.core import draw_noise, image_generator
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.measurement import measure_runs
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import classifier_free
from manifoldgd.sampling.schedulers import make_scheduler

KEY = ("preset", "scheduler", "steps", "ipc", "seed")
FACTS = ("commit", "machine", "threads", "load", "torch", "command")
CHEAP = (10, 15, 20, 25)
SAMPLERS = (
    *product(("dpm++", "unipc"), CHEAP),
    ("ddim", 25),
    ("ddim", 50),
    ("ddpm", 50),
)
IPCS = (1, 10)
SEEDS = (0, 1, 2, 3, 4)
TRAININGS = 2
TIMED = 50  # images


@dataclass(frozen=True)
class Cell:
    "The runs that differ in nothing but the seed."

    preset: str
    scheduler: str
    steps: int
    ipc: int

    def keys(self) -> list:
        "The keys of its rows, one for each seed."
        return [vars(self) | {"seed": seed} for seed in SEEDS]

    def config(self, folder: Path, seed: int) -> DistillConfig:
        "Describe the run of a seed."
        name = f"{self.preset}-{self.scheduler}{self.steps}-ipc{self.ipc}-seed{seed}"
        return DistillConfig(
            preset=self.preset,
            scheduler=self.scheduler,
            num_inference_steps=self.steps,
            ipc=self.ipc,
            seed=seed,
            out=str(folder / name),
        )


def list_cells(presets: list) -> list:
    "List what is compared."
    return [Cell(preset, *sampler, ipc)
            for preset, sampler, ipc in product(presets, SAMPLERS, IPCS)]


def time_sampling(digits: Backbone, scheduler: str, steps: int) -> float:  # seconds
    "Time the sampling of a batch of digits."
    labels = torch.arange(TIMED) % digits.null_label
    own = [image_generator(0, "timed", k) for k in range(TIMED)]
    noise = draw_noise(digits.latent_shape, own)
    model = classifier_free(digits.transformer, labels, GUIDANCE_SCALES["digits"])
    settings = {"num_inference_steps": steps, "generator": own}
    sampler = make_scheduler(scheduler, digits)
    return timed(lambda: sample(model, noise, sampler, **settings), torch.device("cpu"))[1]


def accuracies(runs: tuple, folder: Path) -> dict:  # run -> mean over its trainings
    "Train students on runs, and judge them on the validation split."
    out = str(folder / "accuracy.csv")
    rows = evaluate(EvaluateConfig(runs, split="validation", seeds=TRAININGS, out=out))
    return rows.groupby("run").top1_last.mean().to_dict()


def metrics(runs: tuple, folder: Path) -> dict:  # run -> name -> value
    "Measure runs by the features of a student."
    rows = measure_runs(MetricsConfig(runs, out=str(folder / "metrics.csv")))
    return rows.pivot(index="run", columns="metric", values="value").to_dict("index")


def measure_cell(cell: Cell, folder: Path, digits: Backbone) -> list:  # of rows
    "Make the runs of a cell, and measure them."
    runs = tuple(str(distill(cell.config(folder, seed))) for seed in SEEDS)
    top1, measured = accuracies(runs, folder), metrics(runs, folder)
    rows = []
    for key, run in zip(cell.keys(), runs):
        seconds = time_sampling(digits, cell.scheduler, cell.steps)
        beside = time_sampling(digits, "ddpm", 50)
        times = {"seconds": seconds, "beside": beside, "ratio": seconds / beside}
        rows.append(key | {"top1": top1[run]} | measured[run] | times)
    return rows


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "steps")
    parser.add_argument("--presets", nargs="+", choices=list(PRESETS), default=["dit"])
    parser.add_argument("--runs", type=Path, default=Path("runs/steps"), help="folder of the runs")
    return parser.parse_args()


def main():
    "Measure the cells that are not in the table."
    args = parse()
    ledger, digits = Ledger(args.out, KEY, "%.6g"), load_backbone("digits")
    cells = [cell for cell in list_cells(args.presets)
             if not all(key in ledger for key in cell.keys())]
    for cell in tqdm(cells, desc="samplers"):
        for row in measure_cell(cell, args.runs, digits):
            if row not in ledger:
                ledger.add(row | provenance(*FACTS))


if __name__ == "__main__":
    main()
