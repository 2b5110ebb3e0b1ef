"""Measure what the choice of prototypes is worth to a student; write results/prototypes.csv.

    python experiments/prototypes.py [--images decode|sample] [--ipc 10] [--seeds 3] [--trainings 2]

On the digits, judged on the validation split. One row per training. `decode` turns the prototypes
into images; `sample` guides the diffusion model by them, with the settings of the preset
`manifoldgd`. `space` is what was clustered: the latents, or fewer numbers. `depth` is the mean
depth at which the level-wise choice really started. The accuracy of each class (`by_class`,
percent) is there to be read beside `class_separation`: is the best `start_depth` larger where
classes overlap? With the defaults 132 trainings of about 6 seconds each; the command begins the
table anew. The page `prototypes` reads it.
"""
import argparse
import itertools
import json
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone, match_labels
from manifoldgd.backbones.latents import LatentBank, decode, latent_bank
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import image_generator
from manifoldgd.data.images import ImageData
from manifoldgd.data.sources import digits_data
from manifoldgd.distillation.makers import make_maker, points_of
from manifoldgd.distillation.units import plan
from manifoldgd.prototypes.selection import METHODS, pool_latents, principal_axes, select_prototypes
from manifoldgd.students.training import top1, train_student


def leading_components(latents: torch.Tensor) -> torch.Tensor:
    "See latents by their 16 leading principal components."
    points = latents.flatten(1)
    return points @ principal_axes(points, 16).T


PROTOCOL = "digits-quick"
SPACES = {"latents": None, "2x2 averages": pool_latents, "16 components": leading_components}


@dataclass
class Digits:
    "What every row needs of the data."
    train: ImageData
    validation: ImageData
    backbone: Backbone
    bank: LatentBank  # of the real training images
    mean_std: tuple  # of the real training images
    test_images: torch.Tensor  # of the validation split


def load_digits() -> Digits:
    "Load the digits, their backbone and their latents."
    train = digits_data("train")
    validation = digits_data("validation")
    backbone = load_backbone("digits")
    bank = latent_bank(backbone, train)
    real = train.images(channels=1)
    mean_std = (real.mean((0, 2, 3)), real.std((0, 2, 3)))
    test_images = validation.images(channels=1)
    return Digits(train, validation, backbone, bank, mean_std, test_images)


def list_choices() -> list:  # of (method, start_depth, space)
    "List what is compared: depths, methods, and three methods in fewer dimensions."
    choices = [("levels", depth, "latents") for depth in range(6)]
    choices += [(method, None, "latents") for method in METHODS if method != "levels"]
    for method, space in itertools.product(("levels", "leaves", "kmeans"), list(SPACES)[1:]):
        choices.append((method, 2 if method == "levels" else None, space))
    return choices


def choose(
    digits: Digits,
    choice: tuple,  # method, start_depth, space
    ipc: int,
    seed: int,
) -> list:  # the `Prototypes` of each class
    "Choose the prototypes of every class."
    method, start_depth, space = choice
    reduce = SPACES[space]
    chosen = []
    for c, info in enumerate(digits.train.classes):
        latents = digits.bank.of_class(c)
        chosen.append(select_prototypes(
            latents,
            ipc,
            method,
            start_depth=start_depth,
            generator=image_generator(seed, info.folder, 0, "prototypes"),
            name=info.folder,
            features=reduce(latents) if reduce else None,
        ))
    return chosen


def make_images(
    digits: Digits,
    chosen: list,  # the `Prototypes` of each class
    images: str,  # "decode" or "sample"
    ipc: int,
    seed: int,
) -> torch.Tensor:  # (10 * ipc, 1, 32, 32), by class
    "Decode the prototypes, or guide the diffusion model by them."
    preset = "manifoldgd" if images == "sample" else "decoded"
    config = resolve(DistillConfig(preset=preset, ipc=ipc, seed=seed))
    labels = match_labels(digits.train.classes, digits.backbone)
    jobs = plan(digits.train.classes, ipc)
    latents = points_of(chosen, jobs).reshape(-1, *digits.backbone.latent_shape)
    if images == "sample":
        maker = make_maker(
            config, digits.train, digits.backbone, labels, digits.bank, chosen)
        latents, _ = maker.sample(jobs)
    return decode(digits.backbone.vae, latents).cpu()


def test_by_class(student: torch.nn.Module, digits: Digits) -> list:  # percent
    "Measure the accuracy on each class."
    accuracies = []
    for c in range(10):
        images = digits.test_images[digits.validation.labels == c]
        accuracies.append(round(top1(student, images, torch.full((len(images),), c)), 2))
    return accuracies


def train_and_test(
    digits: Digits,
    images: torch.Tensor,
    ipc: int,
    training: int,  # its seed
) -> dict:  # the accuracies
    "Train a student on the images and test it."
    labels = torch.arange(10).repeat_interleave(ipc)
    protocol = PROTOCOLS[PROTOCOL]
    student = train_student(images, labels, protocol, 10, ipc, training, digits.mean_std).eval()
    return {
        "top1": top1(student, digits.test_images, digits.validation.labels),
        "by_class": json.dumps(test_by_class(student, digits)),
    }


def describe(choice: tuple, chosen: list, seed: int, training: int) -> dict:
    "Fill in the columns that tell what was chosen."
    method, start_depth, space = choice
    used = [prototypes.start_depth for prototypes in chosen]
    return {
        "method": method,
        "start_depth": start_depth,
        "depth": sum(used) / 10 if method == "levels" else None,
        "space": space,
        "seed": seed,
        "training_seed": training,
    }


def settings_of(args: argparse.Namespace, backbone: Backbone) -> dict:
    "Fill in the columns that all rows share."
    settings = {
        "images": args.images,
        "ipc": args.ipc,
        "protocol": PROTOCOL,
        "split": "validation",
        "backbone": backbone.fingerprint(),
    }
    return settings | provenance("commit", "machine", "torch", "command")


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "prototypes")
    parser.add_argument("--images", choices=("decode", "sample"), default="decode")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3, help="choices of prototypes")
    parser.add_argument("--trainings", type=int, default=2, help="trainings on each")
    return parser.parse_args()


def main():
    "Choose, make the images, train and test, for every choice and seed."
    args = parse()
    digits = load_digits()
    settings = settings_of(args, digits.backbone)
    ledger = Ledger(args.out)
    for choice, seed in tqdm(list(itertools.product(list_choices(), range(args.seeds)))):
        chosen = choose(digits, choice, args.ipc, seed)
        images = make_images(digits, chosen, args.images, args.ipc, seed)
        for training in range(args.trainings):
            row = describe(choice, chosen, seed, training)
            row |= train_and_test(digits, images, args.ipc, training)
            ledger.add(row | settings)


if __name__ == "__main__":
    main()
