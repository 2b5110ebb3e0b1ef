"""Train students on real CIFAR-10 images drawn at random; write results/cifar10.csv.

    python experiments/cifar10.py --data DIR [--workers 1]

A check of this package's students against the literature, read by the page `cifar10`. DIR holds
train/<class>/ and test/<class>/ with 32 x 32 images. One row per training, by the ordinary
`evaluate`; a command that was stopped goes on where it stopped. On one core a training takes about
3 minutes at 10 images per class and 12 at 50.
"""
from ledger import new_parser
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation.distill import distill
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.evaluation.comparison import format_summary, summarize

ROWS = [  # protocol, images per class, draws of the images
    ("plain-32", 10, 5),
    ("plain-32", 50, 3),
    ("hard-label-32-quick", 10, 5),
    ("hard-label-32-quick", 50, 3),
]


def draw_images(data: str, ipc: int, seeds: int) -> tuple:  # the folders of the runs
    "Copy real images drawn at random, once for each seed."
    folders = []
    for seed in range(seeds):
        out = f"runs/cifar10-random-ipc{ipc}-seed{seed}"
        config = DistillConfig(data=data, preset="random", ipc=ipc, seed=seed, out=out)
        folders.append(str(distill(config)))
    return tuple(folders)


def main():
    "Draw, train and test, one protocol and number of images after the other."
    parser = new_parser(__doc__, "cifar10")
    parser.add_argument("--data", required=True, help="folder with train/ and test/")
    parser.add_argument(
        "--workers",
        type=int,
        help="trainings side by side, one core each (default: one per core)",
    )
    args = parser.parse_args()
    options = {"seeds": 1, "out": str(args.out), "workers": args.workers}
    for protocol, ipc, seeds in ROWS:
        runs = draw_images(args.data, ipc, seeds)
        rows = evaluate(EvaluateConfig(runs, protocol=protocol, **options))
        print(format_summary(summarize(rows)))


if __name__ == "__main__":
    main()
