"""Compare scales of the classifier-free guidance; write results/guidance_scale.csv.

    python experiments/guidance_scale.py [--runs runs/guidance_scale]

The plain model (`dit`) on the digits, judged on the validation split: 1 and 10 images per class,
3 distillation seeds, 2 trainings each. The scale with the best mean is what `GUIDANCE_SCALES` in
`config.presets` says. It takes about as long as `make demo`, some minutes on two cores; a command
that was stopped goes on where it stopped.
"""
import itertools
from pathlib import Path

from ledger import new_parser
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

SCALES = (1., 1.5, 2., 4.)
IPCS = (1, 10)
SEEDS = (0, 1, 2)
TRAININGS = 2


def distill_all(folder: Path) -> tuple:  # the folders of the runs
    "Sample the digits with every scale, number of images and seed."
    folders = []
    for scale, ipc, seed in itertools.product(SCALES, IPCS, SEEDS):
        out = str(folder / f"scale{scale:g}-ipc{ipc}-seed{seed}")
        config = DistillConfig(preset="dit", ipc=ipc, seed=seed, guidance_scale=scale, out=out)
        folders.append(str(distill(config)))
    return tuple(folders)


def main():
    "Sample, evaluate on the validation split, and print the summary."
    parser = new_parser(__doc__, "guidance_scale")
    parser.add_argument("--runs", type=Path, default=Path("runs/guidance_scale"))
    args = parser.parse_args()
    runs = distill_all(args.runs)
    config = EvaluateConfig(runs, split="validation", seeds=TRAININGS, out=str(args.out))
    print(format_summary(summarize(evaluate(config))))


if __name__ == "__main__":
    main()
