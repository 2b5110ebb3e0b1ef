"""Measure what a strength of guidance is worth to a student, on the digits' validation split, and write results/strength.csv.

    python tools/measure_strength.py [--ipc 1 5] [--schedulers ddim ddpm] [--stops 0.5 1] [--seeds 3] [--trainings 2]

One row per training; rows that stand in the table are not measured again, so a run that was stopped goes on. The arms are `none`, `mode`, `manifold` with
planes of 4, 8, 16 and "auto" dimensions (12 neighbors; 24 for 16 dimensions), and three controls for d = 8: `rescaled`, the mode vector at the length of its
tangent part, at every step and for every sample; `random plane`, one of the same dimension for each image; and `other class`, the plane of the next class's
real latents. All apply their vector by the score rule. `push` is how far the guidance moved an image, summed over the steps (page 42); `ratio` is the largest
push over the noise of its step; `off_manifold` is the distance of the finished latent from the plane of its nearest real latents; `div` as on page 52.
"""
import argparse
import itertools
import os
import platform
import warnings
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from manifoldgd.backbones.backbone import load_backbone, match_labels
from manifoldgd.backbones.latents import decode, latent_bank
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import draw_noise, from_pil, git_commit, image_generator, replacing, to_pil
from manifoldgd.data.sources import digits_data
from manifoldgd.evaluation.metrics import diversity, off_manifold
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.geometry.tangent import TangentSpace
from manifoldgd.guidance.guidance import NoGuidance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.prototypes.levels import class_prototypes
from manifoldgd.sampling.loop import NotFinite, sample
from manifoldgd.sampling.pipeline import classifier_free
from manifoldgd.sampling.schedulers import make_scheduler
from manifoldgd.sampling.trace import trace_table
from manifoldgd.students.training import top1, train_student

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--ipc", type=int, nargs="+", default=[1, 5])
parser.add_argument("--schedulers", nargs="+", default=["ddim", "ddpm"])
parser.add_argument("--stops", type=float, nargs="+", default=[.5, 1.])
parser.add_argument("--arms", nargs="+", help="only these (default: all)")
parser.add_argument("--seeds", type=int, default=3, help="generations")
parser.add_argument("--trainings", type=int, default=2, help="trainings on each")
parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "strength.csv")
args = parser.parse_args()

WEAK, STRONG = (.01, .03, .06, .1, .3), (.03, .1, .3, 1., 3.)  # a projected vector is shorter
FEWER = (.03, .1, .3, 1.)  # of these, where the sweep is not DDIM in the first half: it takes hours
ARMS = {"none": (None, 12, (0.,)), "mode": (None, 12, WEAK), "manifold 8": (8, 12, STRONG), "rescaled": (8, 12, STRONG), "random plane": (8, 12, STRONG),
        "other class": (8, 12, STRONG), "manifold 4": (4, 12, STRONG), "manifold 16": (16, 24, STRONG), "manifold auto": ("auto", 12, STRONG)}
HARDER = 3  # DDPM forgets: its strengths are this many times larger


class Rescaled(ManifoldGuidance):
    "The mode vector, at the length of its tangent part."
    def vector(self, step, record=None):
        m, tangent = self.mode_vector(step), super().vector(step, record)
        return m * tangent.norm(dim=1, keepdim=True) / m.norm(dim=1, keepdim=True).clamp(min=1e-12)


class RandomPlane(ManifoldGuidance):
    "The mode vector, projected on a random plane that is each image's own."
    def plane(self, step):
        if not hasattr(self, "fixed"):
            shape = (step.x0.shape[1], int(self.tangent_dim.max()))
            basis = torch.stack([torch.linalg.qr(draw_noise(shape, [g])[0]).Q.T for g in self.generator])
            self.fixed = TangentSpace(torch.zeros_like(step.x0), basis, torch.ones(basis.shape[:2]))
        return self.fixed, step.x0


train, validation, backbone, protocol = digits_data("train"), digits_data("validation"), load_backbone("digits"), PROTOCOLS["digits-quick"]
labels_of, bank, real = match_labels(train.classes, backbone), latent_bank(backbone, train), train.images(channels=1)
mean_std, test_images = (real.mean((0, 2, 3)), real.std((0, 2, 3))), validation.images(channels=1)
bank_points, bank_labels = torch.cat([bank.of_class(c) for c in range(10)]), torch.cat([torch.full((len(bank.of_class(c)),), c) for c in range(10)])
settings = {"protocol": "digits-quick", "split": "validation", "n_test": len(validation), "guidance_scale": resolve(DistillConfig()).guidance_scale, "backbone": backbone.fingerprint()[:12],
            "commit": git_commit(), "machine": f"{platform.machine()}, {os.cpu_count()} cores", "torch": torch.__version__, "command": "python tools/measure_strength.py"}


def batch_of(ipc):
    "The images of all generation seeds, as (seed, class, k), and their prototypes and candidates."
    chosen = [class_prototypes(bank, train.classes, ipc, "levels", "centroid", 2, seed, progress=False) for seed in range(args.seeds)]
    jobs = list(itertools.product(range(args.seeds), range(10), range(ipc)))
    points = torch.stack([torch.as_tensor(chosen[s][c].points[k]).float() for s, c, k in jobs])
    return jobs, points, [find_candidates(p, bank.of_class(c), chosen[s][c].members[k]) for p, (s, c, k) in zip(points, jobs)]


def guidance_of(arm, strength, stop, jobs, points, candidates):
    tangent_dim, n_neighbors, _ = ARMS[arm]
    window = {"strength": strength, "stop": stop}
    if arm == "none": return NoGuidance()
    if arm == "mode": return ModeGuidance(points, **window)
    if arm == "other class":  # the candidates of the same place in the next class
        place = {job: i for i, job in enumerate(jobs)}
        candidates = [candidates[place[s, (c + 1) % 10, k]] for s, c, k in jobs]
    kind = {"rescaled": Rescaled, "random plane": RandomPlane}.get(arm, ManifoldGuidance)
    own = [image_generator(s, train.classes[c].folder, k, "plane") for s, c, k in jobs]
    return kind(points, stack_candidates(candidates), tangent_dim=tangent_dim, n_neighbors=n_neighbors, generator=own, **window)


def make(scheduler, guidance, jobs):
    "The latents and images of all seeds, and what the guidance did."
    generators = [image_generator(s, train.classes[c].folder, k) for s, c, k in jobs]
    eps_model = classifier_free(backbone.transformer, torch.tensor([labels_of[c] for _, c, _ in jobs]), settings["guidance_scale"])
    latents, trace = sample(eps_model, draw_noise(backbone.latent_shape, generators), make_scheduler(scheduler, backbone), guidance, 50, generators, trace=True)
    images = torch.stack([from_pil(image, 1) for part in latents.split(50) for image in to_pil(decode(backbone.vae, part))])
    return latents, images, trace_table(trace)


KEY, rows = ["arm", "scheduler", "stop", "ipc", "strength", "seed", "training_seed"], []
if args.out.exists(): rows = pd.read_csv(args.out).to_dict("records")
done = {tuple(row[name] for name in KEY) for row in rows}
cells = [(stop, scheduler, ipc, arm, strength * (HARDER if scheduler == "ddpm" else 1)) for stop, scheduler, ipc in itertools.product(args.stops, args.schedulers, args.ipc)
         for arm in args.arms or ARMS for strength in ARMS[arm][2]
         if not (arm == "none" and stop != args.stops[0]) and ((scheduler, stop) == ("ddim", .5) or strength in (FEWER[:3] if arm == "mode" else (0., *FEWER[1:])))]
cells.sort(key=lambda cell: (cell[1] == "ddpm") + (cell[0] == 1) + 2 * (cell[2] > 1) * ((cell[1], cell[0]) != ("ddim", .5)))  # what tells most comes first
warnings.simplefilter("ignore", UserWarning)  # strengths are meant to go too far here; the table holds the ratio
batches = {ipc: batch_of(ipc) for ipc in args.ipc}

for stop, scheduler, ipc, arm, strength in tqdm(cells):
    strength, wanted = round(strength, 6), list(itertools.product(range(args.seeds), range(args.trainings)))
    missing = [(s, t) for s, t in wanted if (arm, scheduler, stop, ipc, strength, s, t) not in done]
    if not missing: continue
    jobs, points, candidates = batches[ipc]
    seeds, classes = torch.tensor([s for s, _, _ in jobs]), torch.tensor([c for _, c, _ in jobs])
    try: latents, images, trace = make(scheduler, guidance_of(arm, strength, stop, jobs, points, candidates), jobs)
    except NotFinite: latents, images, trace = None, None, pd.DataFrame()
    for s, t in missing:
        row = dict(zip(KEY, (arm, scheduler, stop, ipc, strength, s, t)))
        if images is not None:
            mine = seeds == s
            off, of_seed = off_manifold(latents[mine], classes[mine], bank_points, bank_labels), trace[mine.numpy()[trace.image]] if len(trace) else trace
            seed = image_generator(s, "training", t).initial_seed()
            student = train_student(images[mine], classes[mine], protocol, 10, ipc, seed, mean_std)
            row |= {"top1": round(top1(student, test_images, validation.labels), 4), "off_manifold": off.mean().item(), "div": diversity(latents[mine].flatten(1), classes[mine])}
            row |= {"push": of_seed.groupby("image").push.sum().mean(), "ratio": of_seed.push_to_noise.replace(float("inf"), 0).max(), "kept": of_seed.get("kept", pd.Series([1.])).mean()} if len(trace) else {"push": 0., "ratio": 0.}
        rows.append(row | settings)
    args.out.parent.mkdir(exist_ok=True)
    with replacing(args.out) as temporary: pd.DataFrame(rows).to_csv(temporary, index=False, float_format="%.6g")
