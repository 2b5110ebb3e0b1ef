"""Time the guidance beside a network of DiT-XL/2's size; write results/guidance_speed.csv.

    OMP_NUM_THREADS=1 python experiments/guidance_speed.py [--device cpu] [--batch 4] [--steps 5]

"call": inside one run of `sample`, every network call (classifier-free guidance: two passes a
sample, random weights) is followed by one call of every guidance, each with its own candidates,
which are cold in the cache. The first step warms up and is not kept. "projection": `fit_tangent`
and `tangent` in turn with `torch.linalg.eigh` of the covariance, in float64; `difference` is the
largest between the two projectors on unit vectors. The two sides of a row are timed one after the
other, so their ratio means something on a busy machine too; the seconds do only on an idle one
(about 5 minutes, 5 GB). The page `speed` reads the table.

On a GPU the rows "synchronizations" count how often `sample` waits for it in one step more,
unguided and guided; the file is guidance_speed_cuda.csv.
"""
import argparse
import itertools
import time
import warnings
from functools import partial

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from tqdm import tqdm

from ledger import RESULTS, Ledger, new_parser, provenance
from manifoldgd.geometry.neighborhood import NOISES, find_candidates, stack_candidates
from manifoldgd.geometry.tangent import fit_tangent
from manifoldgd.guidance.guidance import NoGuidance
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import classifier_free

SHAPE = (4, 32, 32)  # of a latent
CANDIDATES = 300  # of each sample
NEIGHBORS = (12, 32)
PROJECTIONS = 20  # calls that one timing of a projection is the mean of
TANGENT_DIM = 8


class Notes:
    "The rows of the table, each with its settings."

    def __init__(self, args: argparse.Namespace):
        self.ledger = Ledger(args.out or RESULTS / f"guidance_speed{suffix(args.device)}.csv")
        self.settings = {"batch": args.batch, "candidates": CANDIDATES}
        columns = ("commit", "device", "threads", "load", "torch", "command")
        self.settings |= provenance(*columns)
        if args.device.type == "cuda":
            self.settings["device"] = torch.cuda.get_device_name(args.device)

    def add(self, what: str, **values):
        "Write a row."
        self.ledger.add({"what": what} | values | self.settings)


def suffix(device: torch.device) -> str:
    "Keep the tables of other devices apart."
    return "" if device.type == "cpu" else f"_{device.type}"


def timed(
    function,  # without arguments
    device: torch.device,  # that is waited for
    times: int = 1,  # calls
) -> tuple:  # what the last call returned, and the seconds of a call
    "Call a function, and measure the seconds of a call."
    def now():
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    for _ in range(times):
        result = function()
    return result, (now() - start) / times


def new_network(device: torch.device) -> DiTTransformer2DModel:
    "Build a network of DiT-XL/2's size with random weights."
    network = DiTTransformer2DModel(
        num_attention_heads=16,
        attention_head_dim=72,
        in_channels=4,
        out_channels=8,
        num_layers=28,
        sample_size=32,
        patch_size=2,
        num_embeds_ada_norm=1000,
    )
    return network.eval().to(device)


def new_guidance(
    noise: str,  # how its patch is noised
    n_neighbors: int,
    batch: int,
    device: torch.device,
) -> ManifoldGuidance:  # on through all steps
    "Make a guidance of random candidates, with their means as prototypes."
    generators = [torch.Generator().manual_seed(b) for b in range(batch)]
    latents = [torch.randn(CANDIDATES, *SHAPE, generator=g).to(device) for g in generators]
    means = [z.mean(0) for z in latents]
    candidates = [find_candidates(mean, z) for mean, z in zip(means, latents)]
    return ManifoldGuidance(
        torch.stack(means),
        stack_candidates(candidates),
        stop=1.,
        n_neighbors=n_neighbors,
        noise=noise,
        generator=generators,
    )


class Timers(NoGuidance):
    "Times several guidances at every step and follows none; `network` times the network."

    def __init__(self, guidances: dict, eps_model, notes: Notes, device: torch.device):
        super().__init__()
        self.guidances = guidances
        self.eps_model = eps_model
        self.notes = notes
        self.device = device

    def active(self, index: int, count: int, level: float = None) -> bool:
        "Be called at every step."
        return True

    def network(self, x, t):
        "Call the noise model, and remember its seconds."
        output, self.seconds = timed(partial(self.eps_model, x, t), self.device)
        return output

    def vector(self, step, record: dict = None) -> torch.Tensor:
        "Time every guidance beside the network in this step, and move nothing."
        for (noise, n_neighbors), guidance in self.guidances.items():
            g, seconds = timed(partial(guidance.vector, step), self.device)
            row = {"noise": noise, "n_neighbors": n_neighbors, "repeat": step.index}
            if step.index:  # the first step warms up
                self.notes.add("call", **row, seconds=seconds, beside=self.seconds)
        return torch.zeros_like(g)


def time_calls(
    timers: Timers,
    latents: torch.Tensor,
    scheduler,
    steps: int,  # that are kept
):
    "Time the guidances inside one run of `sample`."
    with tqdm(total=steps + 1, desc="steps") as bar:
        def after_step(*_):
            bar.update()

        sample(timers.network, latents, scheduler, timers, steps + 1, callback=after_step)


def count_waits(eps_model, latents: torch.Tensor, scheduler, guidance, steps: int) -> int:
    "Count how often `sample` waits for the GPU."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        sample(eps_model, latents, scheduler, guidance, steps)
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(w.message) for w in caught)


def note_waits(notes: Notes, guidances: dict, *run):
    "Count the waits in one step more, unguided and by every guidance."
    for (noise, k), guidance in ({("unguided", 0): NoGuidance()} | guidances).items():
        count = count_waits(*run, guidance, 4) - count_waits(*run, guidance, 3)
        notes.add("synchronizations", noise=noise, n_neighbors=k, count=count)


def largest_difference(patch: torch.Tensor, basis: torch.Tensor, vectors: torch.Tensor) -> float:
    "Compare the projections of unit vectors, among them the eigenvectors, which must be kept."
    plane = fit_tangent(patch, TANGENT_DIM)
    differences = []
    for v in torch.cat([vectors, basis]):
        differences.append(plane.tangent(v) - v @ basis.T @ basis)
    return torch.stack(differences).norm(dim=1).max().item()


def time_projection(notes: Notes, repeat: int, device: torch.device):
    "Time the projection on the plane of a random patch, beside `eigh` of its covariance."
    generator = torch.Generator().manual_seed(repeat)
    draw = {"generator": generator, "dtype": torch.float64}
    patch = torch.randn(12, 4096, **draw).to(device)
    vectors = torch.nn.functional.normalize(torch.randn(12, 4096, **draw).to(device), dim=1)
    covariance = torch.cov(patch.T)

    def project():
        return fit_tangent(patch, TANGENT_DIM).tangent(vectors[0])

    project()  # the first call loads libraries
    _, seconds = timed(project, device, PROJECTIONS)
    (_, basis), beside = timed(partial(torch.linalg.eigh, covariance), device)
    basis = basis[:, -TANGENT_DIM:].T  # of largest variance
    row = {"n_neighbors": 12, "repeat": repeat, "seconds": seconds, "beside": beside}
    notes.add("projection", **row, difference=largest_difference(patch, basis, vectors))


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "guidance_speed")
    parser.set_defaults(out=None)  # by the device
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument(
        "--batch",
        type=int,
        default=4,
        help="samples; the network sees twice as many",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=5,
        help="timed steps, after one that warms up; also the number of eigh, at most 3",
    )
    return parser.parse_args()


def main():
    "Time the guidances in a run, then the projections."
    args = parse()
    notes = Notes(args)
    torch.manual_seed(0)
    network = new_network(args.device)
    notes.settings["parameters"] = sum(p.numel() for p in network.parameters())
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    eps_model = classifier_free(network, torch.arange(args.batch, device=args.device))
    latents = torch.randn(args.batch, *SHAPE).to(args.device)
    guidances = {}
    for k, noise in itertools.product(NEIGHBORS, NOISES):
        guidances[noise, k] = new_guidance(noise, k, args.batch, args.device)
    timers = Timers(guidances, eps_model, notes, args.device)
    time_calls(timers, latents, scheduler, args.steps)
    if args.device.type == "cuda":
        note_waits(notes, guidances, eps_model, latents, scheduler)
    for repeat in tqdm(range(min(args.steps, 3)), desc="projections"):
        time_projection(notes, repeat, args.device)


if __name__ == "__main__":
    main()
