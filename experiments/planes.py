"""Measure what planes keep of the mode vector, and whether they agree; write results/planes.csv.

    python experiments/planes.py [--tiny-data DIR --tiny-model DIR] [--out FILE]

On the embedded digits, and with the two options on ten classes of Tiny-ImageNet at 64 pixels with a
backbone of our own (experiments/own_backbone.py). Nothing is guided: the noisy samples x_t are
those of unguided trajectories (DDPM, 50 steps, the guidance scale of the backbone), four for each
class, toward prototypes chosen level by level. Every plane is laid at the same sample and asked
about the same mode vector, so what differs is the plane alone.

One row for each number: `figure` says what was measured, `planes` which planes, `vary` and `at`
which setting had which value (all others as by default), `value` is the mean over samples, `error`
its standard error over them, and `floor` what planes of the same weights but random directions
give. Two kinds of planes are controls: `any latents` goes through twelve latents of the class drawn
at random, near or not, and `other class` through the twelve nearest ones of the next class. Rows
that stand in the table are not measured again.

    kept        |P m| / |m|; the floor of d directions of D is sqrt(d/D)
    agreement   cosine of the vectors of two kinds of planes (`planes` and `at`)
    halves      overlap tr(P Q) / |P| |Q| of the planes from two halves of a class
    jacobian    cosine of J^T m and J m (finite differences) of the model
    points      effective number of latents, 1 / sum w^2, in the empirical posterior of the class
    cost        CPU seconds of a guided step over those of an unguided one (both halves of the
                classifier-free guidance), all samples in one batch; the median of five

Takes about 5 minutes on one core. The page `planes` reads the table.
"""
import argparse
import math
import time
from dataclasses import dataclass, field

import torch

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone, match_labels
from manifoldgd.backbones.latents import latent_bank
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.core import draw_noise, image_generator
from manifoldgd.data.images import ImageData
from manifoldgd.data.sources import digits_data, load_data
from manifoldgd.geometry.neighborhood import find_candidates, nearest_neighbors, stack_candidates
from manifoldgd.geometry.tangent import fit_tangent
from manifoldgd.guidance.guidance import Guidance, NoGuidance, Step
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.guidance.planes import ClassPlanes, ModelPlane, class_spectrum
from manifoldgd.prototypes.selection import class_prototypes
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import NoiseModel, noise_model
from manifoldgd.sampling.schedulers import make_scheduler

STEPS, IPC, SEED = 50, 4, 0
CLOSELY = (10, 25, 35)  # the steps at which settings are varied: t = 795, 489 and 285 of 999
KEY = ("data", "figure", "planes", "t", "vary", "at")
SHOWN = (0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 49)
DEFAULT = {"K": 12, "d": 11, "n": 300}
VARIED = {
    "K": (6, 12, 24, 48, 96),  # d = K - 1: all directions that the neighbors span
    "d": (1, 2, 4, 8, 11),
    "n": (50, 100, 200, 500),
    "D": (32, 64, 128, 256, 512, 1024),  # of the latent's numbers, chosen at random
    "class size": (25, 50, 100, 200, 500),
}


# The data

@dataclass
class Setting:
    "A dataset with its backbone, and the samples whose planes are measured."

    name: str
    backbone: Backbone
    data: ImageData
    classes: list = field(default_factory=list)  # latents (n, D) of each class
    jobs: list = field(default_factory=list)  # (class, number) of each sample
    points: torch.Tensor = None  # (B, D) prototypes
    members: list = field(default_factory=list)  # of each prototype's node
    depths: list = field(default_factory=list)  # of each prototype's node

    @property
    def which(self) -> list:
        "The class of each sample."
        return [c for c, _ in self.jobs]


def prepare(setting: Setting) -> Setting:
    "Encode the data and choose prototypes."
    bank = latent_bank(setting.backbone, setting.data, workers=1)
    count = len(setting.data.classes)
    setting.classes = [bank.of_class(c).flatten(1) for c in range(count)]
    chosen = class_prototypes(bank, setting.data.classes, IPC, progress=False, workers=1)
    setting.jobs = [(c, k) for c in range(count) for k in range(IPC)]
    points = [torch.as_tensor(chosen[c].points[k]).float() for c, k in setting.jobs]
    setting.points = torch.stack(points)
    setting.members = [chosen[c].members[k] for c, k in setting.jobs]
    setting.depths = [chosen[c].depth[k] for c, k in setting.jobs]
    return setting


def candidates_of(setting: Setting, n: int, classes: list = None):
    "Find the latents around every prototype; the members of its node first."
    found = []
    for (c, _), point, members in zip(setting.jobs, setting.points, setting.members):
        latents = (classes or setting.classes)[c]
        found.append(find_candidates(point, latents, None if classes else members, n))
    return stack_candidates(found)


# Planes at a step

def spectra_of(candidates) -> list:  # of B `Spectrum`
    "Decompose the covariance of the candidates of each sample, without their padding."
    pairs = zip(candidates.points, candidates.count)
    return [class_spectrum(points[:n]) for points, n in pairs]


@dataclass
class Matrix:
    "Soft projectors of B samples by their directions and weights."

    basis: list  # of (r, D)
    weights: list  # of (r,)

    def tangent(self, v: torch.Tensor) -> torch.Tensor:  # (B, D)
        "Project a vector of each sample."
        rows = zip(v, self.basis, self.weights)
        return torch.stack([(basis @ one * w) @ basis for one, basis, w in rows])

    def floor(self) -> torch.Tensor:  # (B,)
        "What random directions with these weights keep of a vector."
        dim = self.basis[0].shape[1]
        return torch.stack([(w.square().sum() / dim).sqrt() for w in self.weights])


def neighbor_planes(step: Step, candidates, k: int, d) -> Matrix:
    "Planes through the K nearest of the predicted clean samples; the radius shuts nobody out."
    neighbors, there = nearest_neighbors(step.x0, candidates, k)
    most = (there.sum(1) - 1).clamp(min=0)
    plane = fit_tangent(neighbors, torch.minimum(torch.full_like(most, d), most), there=there)
    return Matrix(list(plane.basis), list(plane.weights))


def filter_planes(step: Step, spectra: list, which: list) -> Matrix:
    "Wiener filters by covariances."
    of_each = [spectra[k] for k in which]
    return Matrix([one.directions for one in of_each],
                  [one.weights(step.alpha_cumprod) for one in of_each])


def overlap(a: Matrix, b: Matrix) -> tuple:  # (B,) of the planes, and of random ones
    "How alike two soft projectors are: 1 for the same, and what chance gives."
    found, floors = [], []
    for u, w, v, z in zip(a.basis, a.weights, b.basis, b.weights):
        sizes = w.square().sum().sqrt() * z.square().sum().sqrt()
        both = ((u @ v.T).square() * w[:, None] * z).sum()
        found.append(both / sizes)
        floors.append(w.sum() * z.sum() / u.shape[1] / sizes)
    return torch.stack(found), torch.stack(floors)


# What is measured

class Measure(Guidance):
    "Measures at the steps of an unguided trajectory, and moves nothing."

    needs_jacobian = True

    def __init__(self, setting: Setting, model: NoiseModel, scheduler, ledger, facts: dict):
        super().__init__(strength=1., stop=1.)
        self.setting, self.model, self.scheduler = setting, model, scheduler
        self.ledger, self.facts = ledger, facts
        self.generator = torch.Generator().manual_seed(SEED)
        self.spectra = [class_spectrum(points) for points in setting.classes]
        self.around = {n: candidates_of(setting, n) for n in (100, DEFAULT["n"])}
        self.near = {n: spectra_of(found) for n, found in self.around.items()}
        nodes = zip(setting.which, setting.members)
        self.nodes = [class_spectrum(setting.classes[c][m]) for c, m in nodes]

    def vector(self, step: Step, record: dict = None) -> torch.Tensor:
        "Measure a step."
        if step.index in SHOWN:
            self.t = int(self.scheduler.timesteps[step.index])
            m = self.setting.points - step.x0
            self.measure_kinds(step, m)
            self.measure_posterior(step)
            if step.index in CLOSELY and not self.has("halves", "class"):
                self.measure_settings(step, m)
                self.measure_halves(step)
        return torch.zeros_like(step.x0)

    def has(self, figure: str, planes: str, vary: str = "-", at: str = "-") -> bool:
        "Whether a row stands in the table."
        row = {"figure": figure, "planes": planes, "t": self.t, "vary": vary, "at": at}
        return self.facts | row in self.ledger

    def note(self, figure: str, planes: str, values, floor=None, vary: str = "-", at="-"):
        "Add a row: the mean over samples, its standard error, and the mean of the floor."
        values = torch.as_tensor(values, dtype=torch.float64)
        error = values.std().item() / math.sqrt(max(1, len(values))) if len(values) > 1 else 0.
        floor = math.nan if floor is None else floor.double().mean().item()
        row = {"figure": figure, "planes": planes, "t": self.t, "vary": vary, "at": str(at)}
        found = {"value": values.mean().item(), "error": error, "floor": floor}
        if self.facts | row not in self.ledger:
            self.ledger.add(self.facts | row | found | {"samples": len(values)} | self.ends)

    def kept(self, planes: str, plane: Matrix, m: torch.Tensor, vary: str = "-", at="-"):
        "Note the share of the mode vectors that planes keep."
        share = plane.tangent(m).norm(dim=1) / m.norm(dim=1)
        self.note("kept", planes, share, plane.floor(), vary, at)

    def measure_kinds(self, step: Step, m: torch.Tensor):
        "Compare neighbors, covariances and the model at the same samples."
        each = list(range(len(m)))
        kinds = {
            "neighbors": neighbor_planes(step, self.around[DEFAULT["n"]], 12, 11),
            "any latents": self.through(step, self.setting.which, near=False),
            "other class": self.through(step, self.next_classes, near=True),
            "class": filter_planes(step, self.spectra, self.setting.which),
            "nearest 300": filter_planes(step, self.near[DEFAULT["n"]], each),
            "nearest 100": filter_planes(step, self.near[100], each),
            "node": filter_planes(step, self.nodes, each),
        }
        vectors = {}
        for name, plane in kinds.items():
            self.kept(name, plane, m)
            vectors[name] = plane.tangent(m)
        model = ModelPlane(step.vjp, step.alpha)
        vectors["model"] = model.unclipped(m)
        self.note("kept", "model", vectors["model"].norm(dim=1) / m.norm(dim=1))
        vectors["mode"] = m
        for name, g in vectors.items():
            for other in ("model", "class"):
                cosine = torch.cosine_similarity(g, vectors[other])
                self.note("agreement", name, cosine, at=other)
        forward = step.alpha * self.jacobian_times(step, m)
        self.note("jacobian", "model", torch.cosine_similarity(forward, vectors["model"]))
        self.by_depth(kinds, m)

    @property
    def next_classes(self) -> list:
        "The class after that of each sample."
        return [(c + 1) % len(self.setting.classes) for c in self.setting.which]

    def through(self, step: Step, which: list, near: bool) -> Matrix:
        "Planes through twelve latents of some class: the nearest, or any."
        patches = []
        for x0, c in zip(step.x0, which):
            latents = self.setting.classes[c]
            order = (latents - x0).norm(dim=1).argsort() if near else \
                torch.randperm(len(latents), generator=self.generator)
            patches.append(latents[order[:12]])
        plane = fit_tangent(torch.stack(patches), 11)
        return Matrix(list(plane.basis), list(plane.weights))

    def by_depth(self, kinds: dict, m: torch.Tensor):
        "Note the shares of the prototypes of each depth of the tree."
        depths = torch.tensor(self.setting.depths).clamp(max=3)
        for depth in depths.unique().tolist():
            mine = depths == depth
            for name in ("neighbors", "class"):
                share = kinds[name].tangent(m).norm(dim=1) / m.norm(dim=1)
                floor = kinds[name].floor()[mine]
                self.note("kept", name, share[mine], floor, "depth", depth)

    def jacobian_times(self, step: Step, m: torch.Tensor) -> torch.Tensor:  # (B, D)
        "Multiply the Jacobian of the conditional clean sample, by a finite difference."
        shape, h = (-1, *self.setting.backbone.latent_shape), 1e-2
        t, ends = self.scheduler.timesteps[step.index], []
        for sign in (1, -1):
            x = (step.x + sign * h * m / m.norm(dim=1, keepdim=True)).reshape(shape)
            _, own = self.model.with_conditional(x, t)
            ends.append(step.prediction.clean(x, own, step.alpha, step.sigma).flatten(1))
        return (ends[0] - ends[1]) / (2 * h)

    def measure_posterior(self, step: Step):
        "Count the latents that the empirical posterior of the class is made of."
        counts = []
        for x, c in zip(step.x, self.setting.which):
            squares = (x - step.alpha * self.setting.classes[c]).square().sum(1)
            weights = torch.softmax(-squares.double() / (2 * step.sigma ** 2), 0)
            counts.append(1 / weights.square().sum())
        self.note("points", "posterior", counts)

    def measure_settings(self, step: Step, m: torch.Tensor):
        "Vary one setting at a time."
        around, largest = self.around[DEFAULT["n"]], max(map(len, self.setting.classes))
        for k in VARIED["K"]:
            if k < largest:
                plane = neighbor_planes(step, around, k, k - 1)
                self.kept("neighbors", plane, m, "K", k)
        for d in VARIED["d"]:
            self.kept("neighbors", neighbor_planes(step, around, 12, d), m, "d", d)
        for n in VARIED["n"]:
            if n <= largest:
                plane = neighbor_planes(step, candidates_of(self.setting, n), 12, 11)
                self.kept("neighbors", plane, m, "n", n)
        self.vary_dimension(step, m)
        self.vary_class_size(step, m, largest)

    def vary_dimension(self, step: Step, m: torch.Tensor):
        "Look at some numbers of the latents only."
        whole = m.shape[1]
        for dim in VARIED["D"]:
            if dim > whole:
                continue
            some = torch.randperm(whole, generator=self.generator)[:dim]
            classes = [points[:, some] for points in self.setting.classes]
            around = [find_candidates(p[some], classes[c], n_points=DEFAULT["n"])
                      for p, c in zip(self.setting.points, self.setting.which)]
            part = Step(None, step.x0[:, some], None, step.alpha_cumprod, 0, STEPS)
            plane = neighbor_planes(part, stack_candidates(around), 12, 11)
            self.kept("neighbors", plane, m[:, some], "D", dim)
            spectra = [class_spectrum(points) for points in classes]
            plane = filter_planes(part, spectra, self.setting.which)
            self.kept("class", plane, m[:, some], "D", dim)

    def some_of(self, points: torch.Tensor, n: int) -> torch.Tensor:
        "Draw some latents of a class."
        return points[torch.randperm(len(points), generator=self.generator)[:n]]

    def vary_class_size(self, step: Step, m: torch.Tensor, largest: int):
        "Look at some latents of each class only."
        for n in VARIED["class size"]:
            if n > largest:
                continue
            classes = [self.some_of(points, n) for points in self.setting.classes]
            around = candidates_of(self.setting, DEFAULT["n"], classes)
            self.kept("neighbors", neighbor_planes(step, around, 12, 11), m, "class size", n)
            spectra = [class_spectrum(points) for points in classes]
            plane = filter_planes(step, spectra, self.setting.which)
            self.kept("class", plane, m, "class size", n)

    def measure_halves(self, step: Step):
        "Compare the planes of two halves of every class."
        halves = [self.some_of(points, len(points)) for points in self.setting.classes]
        two = [[points[side::2] for points in halves] for side in (0, 1)]
        around = [candidates_of(self.setting, DEFAULT["n"], half) for half in two]
        for k in VARIED["K"]:
            if k < len(two[1][0]):
                planes = [neighbor_planes(step, one, k, k - 1) for one in around]
                self.note("halves", "neighbors", *overlap(*planes), "K", k)
        for d in VARIED["d"]:
            planes = [neighbor_planes(step, one, 12, d) for one in around]
            self.note("halves", "neighbors", *overlap(*planes), "d", d)
        spectra = [[class_spectrum(points) for points in half] for half in two]
        planes = [filter_planes(step, one, self.setting.which) for one in spectra]
        self.note("halves", "class", *overlap(*planes))


def seconds_of(model: NoiseModel, noise: torch.Tensor, scheduler, guidance) -> float:
    "Sample five steps, and read the processor's clock, which other programs do not move."
    begin = time.process_time()
    sample(model, noise, scheduler, guidance, 5)
    return time.process_time() - begin


def measure_cost(watch: Measure, noise: torch.Tensor):
    "Compare steps of each kind of guidance with unguided ones, side by side."
    watch.t = -1
    if watch.has("cost", "model"):
        return
    setting, every = watch.setting, {"strength": 1e-3, "stop": 1.}
    around = watch.around[DEFAULT["n"]]
    planes = {
        "neighbors": "neighbors",
        "class": ClassPlanes(watch.spectra, setting.which),
        "model": "model",
    }
    guides = {"mode": ModeGuidance(setting.points, **every)}
    for name, made in planes.items():
        guides[name] = ManifoldGuidance(setting.points, around, planes=made, **every)
    scheduler, ratios = make_scheduler("ddim", setting.backbone), {name: [] for name in guides}
    for _ in range(6):  # the first warms up
        plain = seconds_of(watch.model, noise, scheduler, NoGuidance())
        for name, guide in guides.items():
            guided = seconds_of(watch.model, noise, scheduler, guide)
            ratios[name].append(guided / plain)
    for name, found in ratios.items():
        middle = sorted(found[1:])[2]
        watch.note("cost", name, [middle])


def measure(setting: Setting, ledger: Ledger, ends: dict):
    "Run the unguided trajectories of a dataset, and measure on the way."
    backbone, jobs = setting.backbone, setting.jobs
    labels = match_labels(setting.data.classes, backbone)
    scale = resolve(DistillConfig(backbone=backbone.name)).guidance_scale
    model = noise_model(backbone, [labels[c] for c, _ in jobs], scale)
    scheduler = make_scheduler("ddpm", backbone)
    folders = [setting.data.classes[c].folder for c, _ in jobs]
    own = [image_generator(SEED, folder, k) for folder, (_, k) in zip(folders, jobs)]
    facts = {
        "data": setting.name,
        "dimensions": setting.points.shape[1],
        "images": min(map(len, setting.classes)),
        "guidance_scale": scale,
        "backbone": backbone.fingerprint()[:12],
    }
    watch = Measure(setting, model, scheduler, ledger, facts)
    watch.ends = ends
    noise = draw_noise(backbone.latent_shape, own)
    sample(model, noise, scheduler, watch, STEPS, own)
    measure_cost(watch, noise)


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "planes")
    parser.add_argument("--tiny-data", help="folder with train/ of ten classes of Tiny-ImageNet")
    parser.add_argument("--tiny-model", help="folder of its backbone")
    return parser.parse_args()


def main():
    "Measure on the digits, and on Tiny-ImageNet if it is there."
    args = parse()
    ends = provenance("commit", "machine", "torch", "command")
    ledger = Ledger(args.out, KEY, float_format="%.6g")
    settings = [Setting("digits", load_backbone("digits"), digits_data("train"))]
    if args.tiny_data:
        backbone = load_backbone(args.tiny_model)
        settings.append(Setting("tiny-imagenet-10", backbone, load_data(args.tiny_data)))
    for setting in settings:
        measure(prepare(setting), ledger, ends)


if __name__ == "__main__":
    main()
