"""Time the guidance beside a network of DiT-XL/2's size, and the projection beside an eigendecomposition; write results/guidance_speed.csv.

    OMP_NUM_THREADS=1 python tools/measure_guidance_speed.py [--device cpu] [--batch 4] [--steps 5]

"call": inside one run of `sample`, every network call (classifier-free guidance: two passes a sample, random weights) is followed by one call of every guidance,
each with its own candidates, which are cold in the cache. The first step warms up and is not kept. "projection": `fit_tangent` and `tangent` in turn with
`torch.linalg.eigh` of the covariance, in float64; `difference` is the largest between the two projectors on unit vectors. The two sides of a row are timed one
after the other, so their ratio means something on a busy machine too; the seconds do only on an idle one (about 5 minutes, 5 GB).
On a GPU the rows "synchronizations" count how often `sample` waits for it in one step more, unguided and guided; the file is guidance_speed_cuda.csv.
"""
import argparse
import os
import platform
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from tqdm import tqdm

from manifoldgd.core import git_commit, replacing
from manifoldgd.geometry.neighborhood import NOISES, find_candidates, stack_candidates
from manifoldgd.geometry.tangent import fit_tangent
from manifoldgd.guidance.guidance import NoGuidance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import classifier_free

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", type=torch.device, default="cpu")
parser.add_argument("--batch", type=int, default=4, help="samples; the network sees twice as many")
parser.add_argument("--steps", type=int, default=5, help="timed steps, after one that warms up; also the number of eigendecompositions, at most 3")
args = parser.parse_args()

SHAPE, CANDIDATES, PROJECTIONS = (4, 32, 32), 300, 20
DEVICE = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else f"CPU, {platform.machine()}, {os.cpu_count()} cores"
OUT = Path(__file__).parents[1] / "results" / f"guidance_speed{'' if args.device.type == 'cpu' else '_' + args.device.type}.csv"
SETTINGS = {"batch": args.batch, "candidates": CANDIDATES, "commit": git_commit(), "device": DEVICE, "threads": torch.get_num_threads(), "load": round(os.getloadavg()[0], 1),
            "torch": torch.__version__, "command": f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python tools/measure_guidance_speed.py --device {args.device.type} --batch {args.batch} --steps {args.steps}"}
rows = []


def timed(function, times=1):
    "Call a function, and measure the seconds of a call."
    def now():
        if args.device.type == "cuda": torch.cuda.synchronize(args.device)
        return time.perf_counter()
    start = now()
    for _ in range(times): result = function()
    return result, (now() - start) / times


def note(what, **values):
    rows.append({"what": what} | values | SETTINGS)
    with replacing(OUT) as temporary: pd.DataFrame(rows).to_csv(temporary, index=False)


def make_guidance(noise, n_neighbors):
    generators = [torch.Generator().manual_seed(b) for b in range(args.batch)]
    latents = [torch.randn(CANDIDATES, *SHAPE, generator=g).to(args.device) for g in generators]
    candidates = stack_candidates([find_candidates(z.mean(0), z) for z in latents])
    return ManifoldGuidance(torch.stack([z.mean(0) for z in latents]), candidates, stop=1., n_neighbors=n_neighbors, noise=noise, generator=generators)


class Timers(NoGuidance):
    "Time several guidances at every step and follow none; the network is timed by `network`."

    def __init__(self, guidances, eps_model):
        super().__init__()
        self.guidances, self.eps_model, self.index = guidances, eps_model, 0

    def active(self, index, count): return True

    def network(self, x, t):
        output, self.seconds = timed(lambda: self.eps_model(x, t))
        return output

    def vector(self, step, record=None):
        for (noise, n_neighbors), guidance in self.guidances.items():
            g, seconds = timed(lambda: guidance.vector(step))
            if step.index: note("call", noise=noise, n_neighbors=n_neighbors, repeat=step.index, seconds=seconds, beside=self.seconds)
        return torch.zeros_like(g)


torch.manual_seed(0)
transformer = DiTTransformer2DModel(num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=28, sample_size=32, patch_size=2, num_embeds_ada_norm=1000).eval().to(args.device)
SETTINGS["parameters"] = sum(p.numel() for p in transformer.parameters())
scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
eps_model = classifier_free(transformer, torch.arange(args.batch, device=args.device))
latents = torch.randn(args.batch, *SHAPE).to(args.device)
guidances = {(noise, k): make_guidance(noise, k) for k in (12, 32) for noise in NOISES}
timers = Timers(guidances, eps_model)
with tqdm(total=args.steps + 1, desc="steps") as bar: sample(timers.network, latents, scheduler, timers, args.steps + 1, callback=lambda *_: bar.update())

if args.device.type == "cuda":
    def waits(guidance, steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            sample(eps_model, latents, scheduler, guidance, steps)
            torch.cuda.set_sync_debug_mode("default")
        return sum("called a synchronizing" in str(w.message) for w in caught)
    for (noise, k), guidance in {("unguided", 0): NoGuidance()} | guidances.items(): note("synchronizations", noise=noise, n_neighbors=k, count=waits(guidance, 4) - waits(guidance, 3))

del transformer, eps_model, timers
for repeat in tqdm(range(min(args.steps, 3)), desc="projections"):
    generator = torch.Generator().manual_seed(repeat)
    patch, vectors = (torch.randn(12, 4096, generator=generator, dtype=torch.float64).to(args.device) for _ in range(2))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    covariance = torch.cov(patch.T)
    fit_tangent(patch, 8).tangent(vectors[0])  # the first call loads libraries
    _, seconds = timed(lambda: fit_tangent(patch, 8).tangent(vectors[0]), PROJECTIONS)
    (_, basis), beside = timed(lambda: torch.linalg.eigh(covariance))
    basis, vectors = basis[:, -8:].T, torch.cat([vectors, basis[:, -8:].T])  # of largest variance; the projector must keep them
    plane = fit_tangent(patch, 8)
    difference = torch.stack([plane.tangent(v) - v @ basis.T @ basis for v in vectors]).norm(dim=1).max().item()
    note("projection", n_neighbors=12, repeat=repeat, seconds=seconds, beside=beside, difference=difference)
