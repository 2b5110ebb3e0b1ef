"""Measure what a strength of guidance is worth to a student; write results/strength.csv.

    python experiments/strength.py [--ipc 1 5] [--schedulers ddim ddpm] [--stops 0.5 1] [--arms ...]

On the digits, judged on the validation split. One row per training; rows that stand in the table
are not measured again, so a run that was stopped goes on. The whole sweep takes hours. The arms are
`none`, `mode`, `manifold` with planes of 4, 8, 16 and "auto" dimensions (12 neighbors; 24 for 16
dimensions), and three controls for d = 8: `rescaled`, the mode vector at the length of its tangent
part, at every step and for every sample; `random plane`, one of the same dimension for each image;
and `other class`, the plane of the next class's real latents. All apply their vector by the score
rule.

`push` is how far the guidance moved an image, summed over the steps (`sampling.trace`); `ratio` is
the largest push over the step noise; `kept` is the share of the mode vector along the plane;
`off_manifold` is the distance of the finished latent from the plane of its nearest real latents;
`div` is the metric of that name (`evaluation.metrics`). A strength whose samples are no numbers has
empty results. The page `strength` reads the table.
"""
import argparse
import itertools
import warnings
from dataclasses import dataclass

import pandas as pd
import torch
from controls import RandomPlanes, Rescaled
from tqdm import tqdm

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone, match_labels
from manifoldgd.backbones.latents import LatentBank, decode, latent_bank
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import draw_noise, from_pil, image_generator, to_pil
from manifoldgd.data.images import ImageData
from manifoldgd.data.sources import digits_data
from manifoldgd.evaluation.metrics import diversity, off_manifold
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import NoGuidance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.prototypes.selection import class_prototypes
from manifoldgd.sampling.loop import NotFinite, sample
from manifoldgd.sampling.pipeline import classifier_free
from manifoldgd.sampling.schedulers import make_scheduler
from manifoldgd.sampling.trace import trace_table
from manifoldgd.students.training import top1, train_student

PROTOCOL = "digits-quick"
STEPS = 50


# The arms

@dataclass(frozen=True)
class Arm:
    "One line of the sweep."
    strengths: tuple
    tangent_dim: object = None  # of the planes: a number, "auto", or None where there are none
    n_neighbors: int = 12  # that span a plane


WEAK = (.01, .03, .06, .1, .3)
STRONG = (.03, .1, .3, 1., 3.)  # a projected vector is shorter
ARMS = {
    "none": Arm((0.,)),
    "mode": Arm(WEAK),
    "manifold 8": Arm(STRONG, 8),
    "rescaled": Arm(STRONG, 8),
    "random plane": Arm(STRONG, 8),
    "other class": Arm(STRONG, 8),
    "manifold 4": Arm(STRONG, 4),
    "manifold 16": Arm(STRONG, 16, n_neighbors=24),
    "manifold auto": Arm(STRONG, "auto"),
}
HARDER = 3  # DDPM forgets: its strengths are this many times larger
FEW = (0., .1, .3, 1.)  # of the strengths, where the sweep is not complete
FEW_OF_MODE = (.03, .1, .3)


# The sweep

@dataclass(frozen=True)
class Cell:
    "One guidance, sampled in one way: the images of all its seeds are made together."
    arm: str
    scheduler: str
    stop: float
    ipc: int
    strength: float  # as it is applied

    @property
    def complete(self) -> bool:
        "Whether it belongs to the setting with all strengths."
        return (self.scheduler, self.stop) == ("ddim", .5)

    @property
    def priority(self) -> int:
        "What tells most comes first: DDIM, the first half, one image per class."
        later = (self.scheduler == "ddpm") + (self.stop == 1)
        return later + 2 * (self.ipc > 1 and not self.complete)


KEY = ("arm", "scheduler", "stop", "ipc", "strength", "seed", "training_seed")


def list_cells(args: argparse.Namespace) -> list:  # of `Cell`
    "List the sweep, in the order in which it is measured."
    cells = []
    settings = itertools.product(args.stops, args.schedulers, args.ipc, args.arms or ARMS)
    for stop, scheduler, ipc, arm in settings:
        if arm == "none" and stop != args.stops[0]:
            continue  # without guidance the stop means nothing
        factor = HARDER if scheduler == "ddpm" else 1
        few = FEW_OF_MODE if arm == "mode" else FEW
        for strength in ARMS[arm].strengths:
            cell = Cell(arm, scheduler, stop, ipc, round(strength * factor, 6))
            if cell.complete or strength in few:
                cells.append(cell)
    return sorted(cells, key=lambda cell: cell.priority)


# The data

@dataclass
class Digits:
    "What every cell needs of the data."
    train: ImageData
    validation: ImageData
    backbone: Backbone
    labels: list  # the backbone's label of each class
    bank: LatentBank  # of the real training images
    mean_std: tuple  # of the real training images
    test_images: torch.Tensor  # of the validation split
    guidance_scale: float  # of the classifier-free guidance

    def real_latents(self) -> tuple:  # (N, ...) latents and their classes, by class
        "Gather the real latents of all classes."
        parts = [self.bank.of_class(c) for c in range(10)]
        counts = torch.tensor([len(part) for part in parts])
        return torch.cat(parts), torch.arange(10).repeat_interleave(counts)


def load_digits() -> Digits:
    "Load the digits, their backbone and their latents."
    train = digits_data("train")
    validation = digits_data("validation")
    backbone = load_backbone("digits")
    real = train.images(channels=1)
    return Digits(
        train,
        validation,
        backbone,
        match_labels(train.classes, backbone),
        latent_bank(backbone, train),
        (real.mean((0, 2, 3)), real.std((0, 2, 3))),
        validation.images(channels=1),
        resolve(DistillConfig()).guidance_scale,
    )


# The images

@dataclass
class Batch:
    "The images of all generation seeds at one number of images per class."
    jobs: list  # (seed, class, number of the image in its class)
    points: torch.Tensor  # (n, D) their prototypes
    candidates: list  # their `Candidates`

    @property
    def seeds(self) -> torch.Tensor:
        "The generation seed of each image."
        return torch.tensor([seed for seed, _, _ in self.jobs])

    @property
    def classes(self) -> torch.Tensor:
        "The class of each image."
        return torch.tensor([c for _, c, _ in self.jobs])

    def candidates_of_next_class(self) -> list:
        "Give each image the candidates of the same place in the next class."
        place = {job: i for i, job in enumerate(self.jobs)}
        return [self.candidates[place[seed, (c + 1) % 10, k]] for seed, c, k in self.jobs]


def new_batch(digits: Digits, ipc: int, seeds: int) -> Batch:
    "Choose the prototypes of all seeds, and find the real latents around them."
    chosen = []
    for seed in range(seeds):
        settings = (ipc, "levels", "centroid", 2, seed)
        classes = digits.train.classes
        chosen.append(class_prototypes(digits.bank, classes, *settings, progress=False))
    jobs = list(itertools.product(range(seeds), range(10), range(ipc)))
    points, candidates = [], []
    for seed, c, k in jobs:
        prototypes = chosen[seed][c]
        point = torch.as_tensor(prototypes.points[k]).float()
        points.append(point)
        candidates.append(find_candidates(point, digits.bank.of_class(c), prototypes.members[k]))
    return Batch(jobs, torch.stack(points), candidates)


def generators_of(digits: Digits, batch: Batch, use: str = "") -> list:
    "Make the generators of the images."
    generators = []
    for seed, c, k in batch.jobs:
        generators.append(image_generator(seed, digits.train.classes[c].folder, k, use))
    return generators


def new_guidance(digits: Digits, batch: Batch, cell: Cell):
    "Make the guidance of an arm."
    window = {"strength": cell.strength, "stop": cell.stop}
    if cell.arm == "none":
        return NoGuidance()
    if cell.arm == "mode":
        return ModeGuidance(batch.points, **window)
    arm = ARMS[cell.arm]
    other = cell.arm == "other class"
    candidates = batch.candidates_of_next_class() if other else batch.candidates
    kind = Rescaled if cell.arm == "rescaled" else ManifoldGuidance
    own = generators_of(digits, batch, "plane")
    guide = kind(
        batch.points,
        stack_candidates(candidates),
        tangent_dim=arm.tangent_dim,
        n_neighbors=arm.n_neighbors,
        **window,
    )
    if cell.arm == "random plane":
        guide.planes = RandomPlanes(guide.planes.dims, own)
    return guide


def make_images(digits: Digits, batch: Batch, cell: Cell) -> tuple:  # latents, images, trace
    "Sample the images of all seeds, as 8-bit images would be read, and trace the guidance."
    backbone = digits.backbone
    generators = generators_of(digits, batch)
    labels = torch.tensor([digits.labels[c] for c in batch.classes])
    latents, trace = sample(
        classifier_free(backbone.transformer, labels, digits.guidance_scale),
        draw_noise(backbone.latent_shape, generators),
        make_scheduler(cell.scheduler, backbone),
        new_guidance(digits, batch, cell),
        STEPS,
        generators,
        trace=True,
    )
    images = []
    for part in latents.split(50):
        images += [from_pil(image, 1) for image in to_pil(decode(backbone.vae, part))]
    return latents, torch.stack(images), trace_table(trace)


# The measurement

def measure_images(digits: Digits, latents: torch.Tensor, classes: torch.Tensor) -> dict:
    "Measure how far the latents of one seed are off the manifold, and how varied they are."
    distances = off_manifold(latents, classes, *digits.real_latents())
    return {
        "off_manifold": distances.mean().item(),
        "div": diversity(latents.flatten(1), classes),
    }


def measure_trace(trace: pd.DataFrame) -> dict:  # the trace of one seed; empty without guidance
    "Sum up what the guidance did."
    if not len(trace):
        return {"push": 0., "ratio": 0.}
    kept = trace.get("kept", pd.Series([1.]))  # the mode vector is kept whole
    return {
        "push": trace.groupby("image").push.sum().mean(),
        "ratio": trace.push_to_noise.replace(float("inf"), 0).max(),
        "kept": kept.mean(),
    }


def train_and_test(
    digits: Digits,
    images: torch.Tensor,
    classes: torch.Tensor,
    cell: Cell,
    seeds: tuple,  # of the generation, and of the training
) -> float:  # percent
    "Train a student on the images of one seed and test it."
    seed, training = seeds
    own = image_generator(seed, "training", training).initial_seed()
    protocol = PROTOCOLS[PROTOCOL]
    student = train_student(images, classes, protocol, 10, cell.ipc, own, digits.mean_std)
    return round(top1(student, digits.test_images, digits.validation.labels), 4)


def rows_of(digits: Digits, batch: Batch, cell: Cell, missing: list):
    "Make the images of a cell, and yield a row for every training that is missing."
    try:
        latents, images, trace = make_images(digits, batch, cell)
    except NotFinite:  # the strength was too large: the rows say so by having no results
        yield from missing
        return
    for row in missing:
        seed, training = row["seed"], row["training_seed"]
        mine = batch.seeds == seed
        classes = batch.classes[mine]
        of_seed = trace[mine.numpy()[trace.image]] if len(trace) else trace
        accuracy = train_and_test(digits, images[mine], classes, cell, (seed, training))
        results = {"top1": accuracy}
        results |= measure_images(digits, latents[mine], classes)
        yield row | results | measure_trace(of_seed)


def list_missing(
    cell: Cell,
    args: argparse.Namespace,
    ledger: Ledger,
) -> list:  # of rows without results
    "List the trainings of a cell that do not stand in the table."
    missing = []
    for seed, training in itertools.product(range(args.seeds), range(args.trainings)):
        row = {"arm": cell.arm, "scheduler": cell.scheduler, "stop": cell.stop, "ipc": cell.ipc}
        row |= {"strength": cell.strength, "seed": seed, "training_seed": training}
        if row not in ledger:
            missing.append(row)
    return missing


def settings_of(digits: Digits) -> dict:
    "Fill in the columns that all rows share."
    settings = {
        "protocol": PROTOCOL,
        "split": "validation",
        "n_test": len(digits.validation),
        "guidance_scale": digits.guidance_scale,
        "backbone": digits.backbone.fingerprint()[:12],
    }
    return settings | provenance("commit", "machine", "torch", "command")


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "strength")
    parser.add_argument("--ipc", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--schedulers", nargs="+", default=["ddim", "ddpm"])
    parser.add_argument("--stops", type=float, nargs="+", default=[.5, 1.])
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="only these (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="generations")
    parser.add_argument("--trainings", type=int, default=2, help="trainings on each")
    return parser.parse_args()


def main():
    "Measure every cell of the sweep, or what is missing of it."
    args = parse()
    digits = load_digits()
    settings = settings_of(digits)
    batches = {ipc: new_batch(digits, ipc, args.seeds) for ipc in args.ipc}
    ledger = Ledger(args.out, KEY, float_format="%.6g")
    warnings.simplefilter("ignore", UserWarning)  # some strengths are meant to go too far
    for cell in tqdm(list_cells(args)):
        missing = list_missing(cell, args, ledger)
        if missing:
            for row in rows_of(digits, batches[cell.ipc], cell, missing):
                ledger.add(row | settings)


if __name__ == "__main__":
    main()
