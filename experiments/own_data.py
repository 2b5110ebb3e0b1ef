"""Distil photographs with a backbone of our own, method by method; write results/own_data.csv.

    python experiments/own_data.py --data DIR [--model runs/own_data/model] [--seeds 5]
        [--presets random dit mgd manifoldgd]

DIR holds train/<class>/ and val/<class>/ with photographs, here ten classes of Tiny-ImageNet at 64
pixels, and the backbone is that of experiments/own_backbone.py, which is run first. Ten images per
class, DDPM in 50 steps and a guidance scale of 4 for all diffusion presets, protocol
`hard-label-64-quick` with one training for each seed of the images. Nothing was tuned. One row per
training, by the ordinary `evaluate`; seed after seed, so that a table that was stopped can be read.
"""
from pathlib import Path

from ledger import new_parser
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

PRESETS = ("random", "dit", "mgd", "manifoldgd")
PROTOCOL = "hard-label-64-quick"
IPC = 10


def distilled(
    data: str, model: str, presets: list, seed: int
) -> tuple:  # the folders of the runs
    "Distil by every method with one seed; finished runs are left as they are."
    folders = []
    for preset in presets:
        out = Path(model).parent / f"{preset}-ipc{IPC}-seed{seed}"
        config = DistillConfig(
            data=data, backbone=model, preset=preset, ipc=IPC, seed=seed, out=str(out)
        )
        folders.append(str(distill(config)))
    return tuple(folders)


def main():
    "Distil, train and test, seed after seed."
    parser = new_parser(__doc__, "own_data")
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--model", default="runs/own_data/model", help="folder of the backbone")
    parser.add_argument("--presets", nargs="+", default=PRESETS, choices=PRESETS)
    parser.add_argument("--seeds", type=int, default=5, help="of the images")
    parser.add_argument("--workers", type=int, help="trainings side by side, one core each")
    args = parser.parse_args()
    options = {"seeds": 1, "out": str(args.out), "workers": args.workers, "protocol": PROTOCOL}
    runs = ()
    for seed in range(args.seeds):
        runs += distilled(args.data, args.model, args.presets, seed)
        rows = evaluate(EvaluateConfig(runs, **options))
        print(format_summary(summarize(rows)))


if __name__ == "__main__":
    main()
