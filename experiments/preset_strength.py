"""Compare strengths of the guided presets; write results/preset_strength.csv.

    python experiments/preset_strength.py [--runs runs/preset_strength]

`manifoldgd` (score rule) and `mgd` (mean rule) on the digits with the sampler of all presets,
judged on the validation split: 1 and 10 images per class, 3 distillation seeds, 2 trainings each,
beside the plain model. Both presets get the same number of strengths. It takes about as long as
two `make demo` on two cores; a command that was stopped goes on where it stopped.
"""
import itertools
from pathlib import Path

from ledger import new_parser
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

STRENGTHS = {
    "dit": (0.,),
    "mgd": (.03, .1, .2),
    "manifoldgd": (.1, .3, 1.),
}
IPCS = (1, 10)
SEEDS = (0, 1, 2)
TRAININGS = 2


def distill_all(folder: Path) -> tuple:  # the folders of the runs
    "Sample the digits with every preset, strength, number of images and seed."
    folders = []
    arms = [(preset, strength) for preset in STRENGTHS for strength in STRENGTHS[preset]]
    for (preset, strength), ipc, seed in itertools.product(arms, IPCS, SEEDS):
        out = str(folder / f"{preset}{strength:g}-ipc{ipc}-seed{seed}")
        config = DistillConfig(preset=preset, ipc=ipc, seed=seed, strength=strength, out=out)
        folders.append(str(distill(config)))
    return tuple(folders)


def main():
    "Sample, evaluate on the validation split, and print the summary."
    parser = new_parser(__doc__, "preset_strength")
    parser.add_argument("--runs", type=Path, default=Path("runs/preset_strength"))
    args = parser.parse_args()
    runs = distill_all(args.runs)
    config = EvaluateConfig(runs, split="validation", seeds=TRAININGS, out=str(args.out))
    print(format_summary(summarize(evaluate(config), runs[0])))


if __name__ == "__main__":
    main()
