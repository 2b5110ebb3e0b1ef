"""Time guided sampling of every family of backbones; write results/family_cost.csv.

    OMP_NUM_THREADS=2 python experiments/family_cost.py [--model full] [--device cpu]
        [--families dit sit sd sd-v ldm] [--steps 3] [--repeats 3]

Two images in a few steps, all of them guided by the plane of 12 of 300 candidates, with
classifier-free guidance. A row has the `seconds` of the run, those `inside` the guidance, and the
`share` of the second in the first: that is what a guidance costs, and it means something on a busy
machine too. `beside` is the same run without a guidance, from the same noise.

The networks have random weights and the sizes of DiT-XL/2 and SiT-XL/2 (256 pixels), of Stable
Diffusion 1.5 (512 pixels; once for noise, once for v) and of LDM's cin256: up to 4 GB, and by a
rough count three minutes a family and repeat on two cores. `--model tiny` shows in seconds that all
of it runs, and nothing else. Rows that are in the table are not measured again. On a GPU the table
is family_cost_cuda.csv.
"""
import time

import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel

from guidance_speed import suffix, timed
from ledger import RESULTS, Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, tiny_schedule, tiny_vae
from manifoldgd.backbones.ldm import LDM, ClassEmbedder, ldm_schedule, tiny_vq
from manifoldgd.backbones.stable_diffusion import StableDiffusion, tiny_stable_diffusion
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import NoGuidance, Window
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.sampling.loop import sample
from manifoldgd.sampling.pipeline import NoiseModel
from manifoldgd.sampling.schedulers import make_scheduler

KEY = ("family", "model", "steps", "repeat")
COLUMNS = ("commit", "device", "threads", "load", "torch", "command")
IMAGES, CANDIDATES, NEIGHBORS = 2, 300, 12
UNETS = {  # what the published networks set, beside the defaults of diffusers
    "sd": {"sample_size": 64, "cross_attention_dim": 768},
    "ldm": {
        "sample_size": 64,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (192, 384, 576, 960),
        "down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 3),
        "up_block_types": (*("CrossAttnUpBlock2D",) * 3, "UpBlock2D"),
        "cross_attention_dim": 512,
        "attention_head_dim": 1,
    },
}
TINY = {
    "sample_size": 8,
    "block_out_channels": (32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "cross_attention_dim": 16,
}


def new_dit(full: bool, prediction: str) -> Backbone:
    "Build a DiT or a SiT of random weights."
    small = {} if full else {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "sample_size": 8,
    }
    network = DiTTransformer2DModel(out_channels=8, norm_num_groups=1, **small)
    schedule = tiny_schedule(learned_variance=True, prediction=prediction)
    return Backbone(tiny_vae(3), network.eval(), schedule, {}, prediction)


def new_unet(full: bool, family: str) -> UNet2DConditionModel:
    "Build a UNet of random weights."
    settings = dict(UNETS[family])
    if not full:
        settings |= TINY
    return UNet2DConditionModel(**settings).eval()


def new_backbone(family: str, full: bool):
    "Build a backbone of random weights."
    if family in ("dit", "sit"):
        return new_dit(full, "noise" if family == "dit" else "velocity")
    if family == "ldm":
        unet = new_unet(full, "ldm")
        embedder = ClassEmbedder(1000, unet.config.cross_attention_dim)
        return LDM(tiny_vq(), unet, embedder, ldm_schedule(), {}, "ldm")
    prediction = "epsilon" if family == "sd" else "v_prediction"
    schedule = tiny_stable_diffusion(prediction=prediction).scheduler
    return StableDiffusion(tiny_vae(3), new_unet(full, "sd"), schedule, [], name=family)


def condition_of(backbone, family: str, device: torch.device) -> dict:
    "What the denoiser is told: labels, or states of a prompt of 77 tokens."
    if family.startswith("sd"):
        width = backbone.unet.config.cross_attention_dim
        return {"states": torch.randn(2 * IMAGES, 77, width, device=device)}
    told, nothing = backbone.condition([1] * IMAGES), backbone.unconditional(IMAGES)
    return {name: torch.cat([told[name], nothing[name]]) for name in told}


class TimedGuidance(ManifoldGuidance):
    "A guidance that adds up the seconds of its vectors."

    seconds, device = 0., torch.device("cpu")

    def vector(self, step, record=None):
        result, seconds = timed(lambda: super(TimedGuidance, self).vector(step, record),
                                self.device)
        self.seconds += seconds
        return result


def new_guidance(shape: tuple, device: torch.device) -> TimedGuidance:
    "Guide each image by the plane through its nearest candidates."
    clouds = torch.randn(IMAGES, CANDIDATES, *shape, generator=torch.Generator().manual_seed(1))
    found = [find_candidates(z.mean(0), z, n_points=len(z)) for z in clouds]
    guidance = TimedGuidance(
        clouds.mean(1),
        stack_candidates(found),
        start=0.,
        stop=1.,
        strength=.01,
        n_neighbors=NEIGHBORS,
        tangent_dim=NEIGHBORS - 1,
        radius=1e3,
    )
    guidance.device = device
    return guidance


def measure(backbone, family: str, steps: int, device: torch.device) -> dict:
    "Time a guided run and the same without a guidance."
    model = NoiseModel(
        backbone.predict, condition_of(backbone, family, device), 4., "all", Window(0., 1.))
    own = torch.Generator().manual_seed(0)
    noise = torch.randn(IMAGES, *backbone.latent_shape, generator=own).to(device)
    sampler = make_scheduler("flow-euler" if family == "sit" else "ddim", backbone)
    guidance = new_guidance(backbone.latent_shape, device)

    def run(chosen):
        return sample(model, noise, sampler, chosen, steps)

    _, beside = timed(lambda: run(NoGuidance()), device)
    _, seconds = timed(lambda: run(guidance), device)
    return {
        "seconds": seconds,
        "inside": guidance.seconds,
        "share": guidance.seconds / seconds,
        "beside": beside,
    }


def main():
    "Measure what is asked for."
    families = ("dit", "sit", "sd", "sd-v", "ldm")
    parser = new_parser(__doc__, "family_cost")
    parser.add_argument("--model", choices=("full", "tiny"), default="full", help="the sizes")
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
    parser.add_argument("--families", nargs="+", choices=families, default=families)
    parser.add_argument("--steps", type=int, default=3, help="of the sampler")
    parser.add_argument("--repeats", type=int, default=3, help="rows of a family")
    args = parser.parse_args()
    if args.out == RESULTS / "family_cost.csv":
        args.out = RESULTS / f"family_cost{suffix(args.device)}.csv"
    ledger, start = Ledger(args.out, KEY, "%.6g"), time.perf_counter()
    for family in args.families:
        torch.manual_seed(0)
        backbone = None
        for repeat in range(args.repeats):
            row = {"family": family, "model": args.model, "steps": args.steps, "repeat": repeat}
            if row in ledger:
                continue
            if backbone is None:
                backbone = new_backbone(family, args.model == "full").to(args.device)
                measure(backbone, family, 1, args.device)  # once, to warm up
            found = measure(backbone, family, args.steps, args.device)
            ledger.add(row | found | provenance(*COLUMNS))
            print(f"{family}, {repeat}: {found['share']:.2%} of {found['seconds']:.1f} s, "
                  f"{time.perf_counter() - start:.0f} s so far")


if __name__ == "__main__":
    main()
