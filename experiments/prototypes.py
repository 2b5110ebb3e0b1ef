"""Measure what the choice of prototypes is worth to a student, on the digits' validation split, and write results/prototypes.csv.

    python tools/measure_prototypes.py [--images decode|sample] [--ipc 10] [--seeds 3] [--trainings 2]

One row per training. `decode` turns the prototypes into images; `sample` guides the diffusion model by them, with the settings of the preset `manifoldgd`.
`space` is what was clustered: the latents, or fewer numbers. `depth` is the mean depth at which the level-wise choice really started. The accuracy of each
class (`by_class`, percent) is there to be read beside the class separation of page 21: is the best `start_depth` larger where classes overlap?
"""
import argparse
import json
import os
import platform
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from manifoldgd.backbones.backbone import load_backbone, match_labels
from manifoldgd.backbones.latents import latent_bank
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import git_commit, image_generator, replacing
from manifoldgd.data.sources import digits_data
from manifoldgd.distillation.distill import Studio, plan
from manifoldgd.prototypes.levels import METHODS, pool_latents, principal_axes, select_prototypes
from manifoldgd.students.training import top1, train_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--images", choices=("decode", "sample"), default="decode")
parser.add_argument("--ipc", type=int, default=10)
parser.add_argument("--seeds", type=int, default=3, help="choices of prototypes")
parser.add_argument("--trainings", type=int, default=2, help="trainings on each")
parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "prototypes.csv")
args = parser.parse_args()

SPACES = {"latents": None, "2x2 averages": pool_latents, "16 components": lambda z: z.flatten(1) @ principal_axes(z.flatten(1), 16).T}
CHOICES = [("levels", depth, "latents") for depth in range(6)] + [(method, None, "latents") for method in METHODS if method != "levels"]
CHOICES += [(method, 2 if method == "levels" else None, space) for method in ("levels", "leaves", "kmeans") for space in list(SPACES)[1:]]

train, validation, backbone, protocol = digits_data("train"), digits_data("validation"), load_backbone("digits"), PROTOCOLS["digits-quick"]
bank, real = latent_bank(backbone, train), train.images(channels=1)
mean_std = real.mean((0, 2, 3)), real.std((0, 2, 3))
test_images, labels = validation.images(channels=1), torch.arange(10).repeat_interleave(args.ipc)
settings = {"images": args.images, "ipc": args.ipc, "protocol": "digits-quick", "split": "validation", "backbone": backbone.fingerprint(), "commit": git_commit(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__,
            "command": f"python tools/measure_prototypes.py --images {args.images} --ipc {args.ipc} --seeds {args.seeds} --trainings {args.trainings}"}
rows = []


def choose(method, start_depth, space, seed):
    reduce = SPACES[space]
    return [select_prototypes(z, args.ipc, method, start_depth=start_depth, generator=image_generator(seed, info.folder, 0, "prototypes"), name=info.folder,
                              features=reduce(z) if reduce else None) for info, z in zip(train.classes, map(bank.of_class, range(10)))]


for (method, start_depth, space), seed in tqdm([(choice, seed) for choice in CHOICES for seed in range(args.seeds)]):
    chosen = choose(method, start_depth, space, seed)
    config = resolve(DistillConfig(preset="manifoldgd" if args.images == "sample" else "decoded", ipc=args.ipc, seed=seed))
    images = Studio(config, train, backbone, match_labels(train.classes, backbone), bank, chosen).make(plan(Path(), train, args.ipc))
    for training in range(args.trainings):
        student = train_student(images, labels, protocol, 10, args.ipc, training, mean_std).eval()
        by_class = [top1(student, test_images[validation.labels == c], torch.full((len(validation.of_class(c)),), c)) for c in range(10)]
        used = [p.start_depth for p in chosen]
        rows.append({"method": method, "start_depth": start_depth, "depth": sum(used) / 10 if method == "levels" else None, "space": space,
                     "seed": seed, "training_seed": training, "top1": top1(student, test_images, validation.labels), "by_class": json.dumps([round(v, 2) for v in by_class])} | settings)
    with replacing(args.out) as temporary: pd.DataFrame(rows).to_csv(temporary, index=False)
