"""Time the sampler; write results/sampler_speed.csv. Every figure is a ratio within this run.

    OMP_NUM_THREADS=2 python experiments/sampler_speed.py [--model xl] [--device cpu]
        [--figures guided batched ...] [--repeats 3]

A row has the `seconds` of one side, those of the other `beside` it, and their `ratio`. The sides
are timed in turn, so a ratio means something on a busy machine too; the seconds do only on an idle
one. Rows that are in the table are not measured again, so a run may be stopped, and `--figures`
measures some of:

guided       two images in four steps, two of them guided / the same without guidance; `inside` is
             the share of the guided run that passes in the guidance
plain        the same guided run / images one by one, each plane from an eigendecomposition of the
             D x D covariance of its neighbors; `difference` is between the finished latents
pipeline     `ManifoldGDPipeline` without guidance / `DiTPipeline`, images and all
batched      four images in one batch / one after the other, guided
batch        a guided run of n images, for each image / of one image
latent       a guided run of two images / the unguided one, by the side of a latent
neighbors    one call of the guidance / one of the network, by the neighbors of a plane
candidates   the same, by the number of real latents around a prototype
matmul       operations a second in a call of the network / in one product of matrices of its size
networks     a call of the network in bfloat16, or compiled / in float32
decoding     decoding with the VAE's channels last / as they were
scaling      `distill` on the digits, for each image / 10 classes of 10 images; `memory` in MB is
             the peak of its process

The network has the size of DiT-XL/2 and random weights: 4 GB, 8 GB for `networks`, and by a rough
count three quarters of an hour on two cores. `--model tiny` shows in a minute that all of it runs,
and nothing else. On a GPU the table is sampler_speed_cuda.csv. The page `speed` reads the table.
"""
import argparse
import copy
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from guidance_speed import suffix, timed
from ledger import RESULTS, Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone
from manifoldgd.backbones.latents import decode
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import NoGuidance, Step
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.networks import prepare_networks
from manifoldgd.sampling.pipeline import ManifoldGDPipeline, classifier_free

KEY = ("model", "figure", "setting", "repeat")
COLUMNS = ("commit", "device", "threads", "load", "torch", "command")

IMAGES, STEPS, GUIDED = 2, 4, .5  # of the runs that are compared; the guided share of the steps
SCALE = 4.  # of the classifier-free guidance
STRENGTH, NEIGHBORS, TANGENT_DIM, CANDIDATES = .1, 12, 3, 300
EVERYWHERE = 1e6  # a radius that no candidate is outside of
CLASSES = 1000

BATCHES = (1, 2, 4, 8)
NEIGHBOR_COUNTS = (6, 12, 24, 48)
CANDIDATE_COUNTS = (100, 300, 1000)
SCALINGS = ((2, 10), (5, 10), (10, 10), (10, 100))  # classes, images of each
SCALING_STEPS = 10

MODELS = {
    "xl": {
        "network": {"num_attention_heads": 16, "attention_head_dim": 72, "num_layers": 28},
        "vae": {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
        "sides": (16, 32, 64),  # of latents; the second is that of the other figures
    },
    "tiny": {
        "network": {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2},
        "vae": {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4},
        "sides": (4, 8, 16),
    },
}


def new_network(model: str, side: int) -> DiTTransformer2DModel:
    "Build a denoiser with random weights."
    sizes = MODELS[model]["network"]
    return DiTTransformer2DModel(
        in_channels=4,
        out_channels=8,
        patch_size=2,
        sample_size=side,
        num_embeds_ada_norm=CLASSES,
        **sizes,
    ).eval()


def new_vae(model: str) -> AutoencoderKL:
    "Build a VAE with random weights."
    sizes = MODELS[model]["vae"]
    levels = len(sizes["block_out_channels"])
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=4,
        **sizes,
    ).eval()


def new_scheduler() -> DDIMScheduler:
    "Build a sampler without noise, so that two ways to the same samples can be compared."
    return DDIMScheduler(clip_sample=False, timestep_spacing="trailing")


@dataclass
class Images:
    "What some images are made from."

    noise: torch.Tensor  # (n, 4, side, side)
    labels: torch.Tensor  # (n,)
    clouds: torch.Tensor  # (n, candidates, D) the real latents around each prototype
    prototypes: torch.Tensor  # (n, D)

    def guidance(self, n_neighbors: int = NEIGHBORS, stop: float = GUIDED) -> ManifoldGuidance:
        "Guide each image by the plane through its nearest candidates."
        found = [find_candidates(p, z, n_points=len(z))
                 for p, z in zip(self.prototypes, self.clouds)]
        return ManifoldGuidance(
            self.prototypes,
            stack_candidates(found),
            strength=STRENGTH,
            stop=stop,
            n_neighbors=n_neighbors,
            tangent_dim=TANGENT_DIM,
            radius=EVERYWHERE,
        )

    def one(self, k: int) -> "Images":
        "The image of number k alone."
        part = slice(k, k + 1)
        return Images(*(x[part] for x in vars(self).values()))


class Bench:
    "The networks that are timed, and what they are timed with."

    def __init__(self, model: str, device: torch.device):
        self.model, self.device = model, device
        self.sides = MODELS[model]["sides"]
        self.side = self.sides[1]
        torch.manual_seed(0)

    @cached_property
    def network(self) -> DiTTransformer2DModel:
        "The denoiser of most figures, called once before it is timed."
        network = new_network(self.model, self.side).to(self.device)
        self.call(1, network)
        return network

    @cached_property
    def vae(self) -> AutoencoderKL:
        "Its VAE, called once too."
        vae = new_vae(self.model).to(self.device)
        decode(vae, self.images(1).noise)
        return vae

    def build(self):
        "Build both, before anything is timed."
        return self.network, self.vae

    def images(self, n: int, side: int = None, candidates: int = CANDIDATES) -> Images:
        "Draw what n images are made from."
        side = side or self.side
        own = torch.Generator().manual_seed(n)
        noise = torch.randn(n, 4, side, side, generator=own)
        clouds = torch.randn(n, candidates, 4 * side**2, generator=own)
        labels = torch.arange(n)
        drawn = (noise, labels, clouds, clouds.mean(1))
        return Images(*(x.to(self.device) for x in drawn))

    def run(self, images: Images, guidance=None, network=None) -> torch.Tensor:
        "Sample images with this package."
        model = classifier_free(network or self.network, images.labels, SCALE)
        guidance = guidance or NoGuidance()
        return sample(model, images.noise, new_scheduler(), guidance, STEPS)[0]

    def call(self, n: int, network=None) -> torch.Tensor:
        "Call a network once, as a step of n images does."
        network, images = network or self.network, self.images(n)
        model = classifier_free(network, images.labels, SCALE)
        with torch.no_grad():
            return model(images.noise, torch.tensor(500, device=self.device))[0]

    def timed(self, function, times: int = 1) -> tuple:  # result, seconds of a call
        "Time a function."
        return timed(function, self.device, times)


def compared(seconds: float, beside: float, **more) -> dict:
    "The values of a row."
    return {"seconds": seconds, "beside": beside, "ratio": seconds / beside} | more


# Against an eigendecomposition


def plain_noise(noise_pred, x, alpha_cumprod: float, prototype, cloud) -> torch.Tensor:
    "Guide the predicted noise of one image by Eq. 4, with a D x D covariance."
    sigma = math.sqrt(1 - alpha_cumprod)
    x0 = ((x - sigma * noise_pred) / math.sqrt(alpha_cumprod)).flatten()
    nearest = cloud[(cloud - x0).norm(dim=1).argsort()[:NEIGHBORS]]
    _, vectors = torch.linalg.eigh(torch.cov(nearest.T))
    basis = vectors[:, -TANGENT_DIM:]
    g = basis @ (basis.T @ (prototype - x0))
    return noise_pred - sigma * STRENGTH * g.reshape(noise_pred.shape)


@torch.no_grad()
def plain_sample(bench: Bench, images: Images) -> torch.Tensor:
    "Sample one image, as the formulas say it."
    scheduler, x = new_scheduler(), images.noise
    scheduler.set_timesteps(STEPS)
    labels = torch.tensor([images.labels.item(), CLASSES], device=bench.device)
    for i, t in enumerate(scheduler.timesteps):
        times = t.to(bench.device).expand(2)
        output = bench.network(torch.cat([x, x]), timestep=times, class_labels=labels).sample
        conditional, null = output[:, :4].split(1)
        noise_pred = null + SCALE * (conditional - null)
        if i < GUIDED * STEPS:
            a = scheduler.alphas_cumprod[t].item()
            noise_pred = plain_noise(noise_pred, x, a, images.prototypes[0], images.clouds[0])
        x = scheduler.step(noise_pred, t, x).prev_sample
    return x


def measure_plain(bench: Bench, setting: str) -> dict:
    "Compare the guided run with the plain sampler."
    images = bench.images(IMAGES)
    guidance = images.guidance()
    ours, seconds = bench.timed(lambda: bench.run(images, guidance))

    def one_by_one():
        return torch.cat([plain_sample(bench, images.one(k)) for k in range(IMAGES)])

    theirs, beside = bench.timed(one_by_one)
    difference = (ours - theirs).norm() / theirs.norm()
    return compared(seconds, beside, difference=difference.item())


# The other figures


class Watched:
    "A guidance that notes the seconds it takes."

    def __init__(self, guidance: ManifoldGuidance, bench: Bench):
        self.guidance, self.bench, self.seconds = guidance, bench, 0.

    def __getattr__(self, name: str):
        return getattr(self.guidance, name)

    def vector(self, step: Step, record: dict = None) -> torch.Tensor:
        "Ask the guidance, and count its seconds."
        g, seconds = self.bench.timed(lambda: self.guidance.vector(step, record))
        self.seconds += seconds
        return g


def measure_guided(bench: Bench, setting: str) -> dict:
    "Compare a guided run with an unguided one."
    images = bench.images(IMAGES)
    watched = Watched(images.guidance(), bench)
    _, seconds = bench.timed(lambda: bench.run(images, watched))
    _, beside = bench.timed(lambda: bench.run(images))
    return compared(seconds, beside, inside=watched.seconds / seconds)


def measure_pipeline(bench: Bench, setting: str) -> dict:
    "Compare the pipeline with diffusers' own, from labels to images."
    parts = {"vae": bench.vae, "transformer": bench.network, "scheduler": new_scheduler()}
    settings = {"num_inference_steps": STEPS, "guidance_scale": SCALE, "output_type": "np"}
    seconds = []
    for cls in (ManifoldGDPipeline, DiTPipeline):
        pipe = cls(**parts)
        pipe.set_progress_bar_config(disable=True)
        settings["generator"] = torch.Generator().manual_seed(0)
        seconds.append(bench.timed(partial(pipe, list(range(IMAGES)), **settings))[1])
    return compared(*seconds)


def measure_batched(bench: Bench, setting: str) -> dict:
    "Compare a batch with the same images one after the other."
    images = bench.images(4)
    guidance = images.guidance()
    alone = [(images.one(k), images.one(k).guidance()) for k in range(4)]
    _, seconds = bench.timed(lambda: bench.run(images, guidance))
    _, beside = bench.timed(lambda: [bench.run(*one) for one in alone])
    return compared(seconds, beside)


def measure_batch(bench: Bench, setting: str) -> dict:
    "Compare an image of a batch with one alone."
    n = int(setting.split()[1])
    images = bench.images(n)
    one = images.one(0)
    guidance, alone = images.guidance(), one.guidance()
    _, seconds = bench.timed(lambda: bench.run(images, guidance))
    _, beside = bench.timed(lambda: bench.run(one, alone))
    return compared(seconds / n, beside)


def measure_latent(bench: Bench, setting: str) -> dict:
    "Compare a guided run with an unguided one, on latents of a size."
    side = int(setting.split()[1])
    torch.manual_seed(0)
    network = new_network(bench.model, side).to(bench.device)
    images = bench.images(IMAGES, side)
    bench.run(images.one(0), network=network)  # the first run takes longer
    watched = Watched(images.guidance(), bench)
    _, seconds = bench.timed(lambda: bench.run(images, watched, network))
    _, beside = bench.timed(lambda: bench.run(images, network=network))
    return compared(seconds, beside, inside=watched.seconds / seconds)


def measure_call(bench: Bench, images: Images, guidance: ManifoldGuidance) -> dict:
    "Compare one call of a guidance with one of the network."
    x = images.noise.flatten(1)
    step = Step(x, x, x, .5, 0, STEPS)
    guidance.vector(step)  # moves what it needs
    _, seconds = bench.timed(lambda: guidance.vector(step), 5)
    _, beside = bench.timed(lambda: bench.call(IMAGES))
    return compared(seconds, beside)


def measure_neighbors(bench: Bench, setting: str) -> dict:
    "Compare a guidance of K neighbors with the network."
    images = bench.images(IMAGES)
    return measure_call(bench, images, images.guidance(int(setting.split()[1])))


def measure_candidates(bench: Bench, setting: str) -> dict:
    "Compare a guidance among so many candidates with the network."
    images = bench.images(IMAGES, candidates=int(setting.split()[1]))
    return measure_call(bench, images, images.guidance())


def measure_matmul(bench: Bench, setting: str) -> dict:
    "Compare the operations a second of the network with those of one product of matrices."
    n = int(setting.split()[1])
    with FlopCounterMode(display=False) as counter:
        bench.call(n)
    _, seconds = bench.timed(lambda: bench.call(n))
    width = bench.network.inner_dim
    rows = 2 * n * (bench.side // 2)**2  # both halves, and the tokens of an image
    a = torch.randn(rows, width, device=bench.device)
    b = torch.randn(width, 4 * width, device=bench.device)
    torch.mm(a, b)
    _, product = bench.timed(lambda: torch.mm(a, b), 20)
    beside = product / (2 * rows * width * 4 * width)  # seconds of an operation
    own = seconds / counter.get_total_flops()
    return {"seconds": seconds, "beside": product, "ratio": beside / own}


def measure_networks(bench: Bench, setting: str) -> dict:
    "Compare a denoiser that was prepared with the one that was not."
    options = {"compile": True} if setting == "compile" else {"dtype": setting}
    own = Backbone(bench.vae, copy.deepcopy(bench.network), new_scheduler(), {})
    prepare_networks(own, **options)
    bench.call(IMAGES, own.transformer)
    _, seconds = bench.timed(lambda: bench.call(IMAGES, own.transformer))
    _, beside = bench.timed(lambda: bench.call(IMAGES))
    return compared(seconds, beside)


def measure_decoding(bench: Bench, setting: str) -> dict:
    "Compare a VAE whose channels are last with the one that was not changed."
    own = Backbone(copy.deepcopy(bench.vae), bench.network, new_scheduler(), {})
    prepare_networks(own, channels_last=True)
    latents = bench.images(IMAGES).noise
    decode(own.vae, latents)
    _, seconds = bench.timed(lambda: decode(own.vae, latents))
    _, beside = bench.timed(lambda: decode(bench.vae, latents))
    return compared(seconds, beside)


DISTIL = """
import resource, sys, time
from manifoldgd import DistillConfig, distill
classes, ipc, steps, out = sys.argv[1:]
config = DistillConfig(
    classes=classes, ipc=int(ipc), num_inference_steps=int(steps), out=out)
began = time.perf_counter()
distill(config, progress=False)
print(time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def distil_apart(classes: int, ipc: int, cache: str) -> tuple:  # seconds of an image, MB
    "Distil some digits in a process of their own."
    with tempfile.TemporaryDirectory() as folder:
        names = ",".join(map(str, range(classes)))
        command = [sys.executable, "-W", "ignore", "-c", DISTIL, names, str(ipc)]
        done = subprocess.run(
            [*command, str(SCALING_STEPS), f"{folder}/run"],
            env=os.environ | {"MANIFOLDGD_CACHE": cache},
            check=True,
            capture_output=True,
            text=True,
        )
    seconds, memory = map(float, done.stdout.split()[-2:])
    return seconds / (classes * ipc), memory


def measure_scaling(bench: Bench, setting: str) -> dict:
    "Compare the time of an image, and the memory, in runs of several sizes."
    classes, ipc = map(int, setting.split()[::2])
    with tempfile.TemporaryDirectory() as cache:
        distil_apart(10, 1, cache)  # encodes the digits
        seconds, memory = distil_apart(classes, ipc, cache)
        beside, usual = distil_apart(10, 10, cache)
    return compared(seconds, beside, memory=memory, more_memory=memory - usual)


# All of them


def each(word: str, numbers) -> tuple:
    "Name a setting for each number, in words that a table keeps as text."
    return tuple(f"{word} {number}" for number in numbers)


@dataclass(frozen=True)
class Figure:
    "What is measured under one name."

    measure: object  # (bench, setting) -> values of a row
    settings: tuple  # what varies; none: the side of a latent, which the model decides
    repeats: int = sys.maxsize  # at most


FIGURES = {
    "guided": Figure(measure_guided, (f"{IMAGES} images",)),
    "plain": Figure(measure_plain, (f"{IMAGES} images",), 1),
    "pipeline": Figure(measure_pipeline, (f"{IMAGES} images",)),
    "batched": Figure(measure_batched, ("4 images",)),
    "batch": Figure(measure_batch, each("batch", BATCHES), 1),
    "latent": Figure(measure_latent, (), 1),
    "neighbors": Figure(measure_neighbors, each("K", NEIGHBOR_COUNTS)),
    "candidates": Figure(measure_candidates, each("n", CANDIDATE_COUNTS)),
    "matmul": Figure(measure_matmul, each("batch", BATCHES)),
    "networks": Figure(measure_networks, ("bfloat16", "compile")),
    "decoding": Figure(measure_decoding, ("channels last",)),
    "scaling": Figure(measure_scaling, tuple(f"{c} x {ipc}" for c, ipc in SCALINGS), 1),
}


def list_missing(args: argparse.Namespace, bench: Bench, ledger: Ledger) -> list:
    "List the rows that are asked for and not in the table."
    rows = []
    for name in args.figures:
        figure = FIGURES[name]
        for setting in figure.settings or each("side", bench.sides):
            for repeat in range(min(args.repeats, figure.repeats)):
                rows.append(dict(zip(KEY, (args.model, name, setting, repeat))))
    return [row for row in rows if row not in ledger]


def describe_device(device: torch.device) -> dict:
    "Say where a row comes from."
    facts = provenance(*COLUMNS)
    if device.type == "cuda":
        facts["device"] = torch.cuda.get_device_name(device)
    return facts


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "sampler_speed")
    parser.set_defaults(out=None)  # by the device
    parser.add_argument("--model", choices=tuple(MODELS), default="xl", help="size of the networks")
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--figures", nargs="+", choices=list(FIGURES), default=list(FIGURES))
    parser.add_argument("--repeats", type=int, default=3, help="of a figure, at most")
    return parser.parse_args()


def main():
    "Measure what is missing in the table."
    args = parse()
    warnings.filterwarnings("ignore", "At step")  # of strengths: random networks know no good one
    path = args.out or RESULTS / f"sampler_speed{suffix(args.device)}.csv"
    ledger, bench = Ledger(path, KEY, "%.6g"), Bench(args.model, args.device)
    for row in tqdm(list_missing(args, bench, ledger), desc="rows"):
        if row["figure"] != "scaling":  # it has its own networks, in other processes
            bench.build()
        began = time.perf_counter()
        values = FIGURES[row["figure"]].measure(bench, row["setting"])
        values["took"] = time.perf_counter() - began  # seconds of the whole measurement
        ledger.add(row | values | describe_device(args.device))


if __name__ == "__main__":
    main()
