"""Train a DiT to predict noise, v and velocity, and judge each; write results/prediction.csv.

    python experiments/prediction.py --data DIR --vae MODEL --steps N

DIR holds train/<class>/ and val/<class>/ with photographs, here ten classes of Tiny-ImageNet at 64
pixels, and MODEL is a backbone that `manifoldgd pretrain` made of train/: its VAE makes the latents
of all three trainings, and its DiT's sizes, batches and learning rate are theirs. The trainings
have the same latents, steps, network, first weights and seed; they are compared at equal steps
instead of equal minutes because a step costs the same for all three. `core_minutes` is the CPU
time that was spent, on however many cores. A checkpoint at half of the steps is judged as well.

The judge is that of `pretraining.judge`, trained on all of train/. `recognized` is the share of
samples that it takes for what they should be. FID and MMD are measured in its features, between
samples and the images of train/; FID of so few images is far too large (that of 200 real ones was
36), MMD is without bias. Columns ending in `_floor` have the same of as many images of val/, those
in `_decoded` of these images after they were encoded and decoded. One row per (prediction, steps,
sampler, scale), with 50 steps of the sampler. A row that stands is not made again, and trainings
are resumed. On an idle core, a step takes about .5 s and a row of 200 samples a minute; with two
threads a step took .33 s.
"""
import argparse
import dataclasses
import itertools
import json
import time
from pathlib import Path

import torch

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone
from manifoldgd.backbones.latents import CROPS, decode, encode
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.core import image_generator, replacing
from manifoldgd.data.sources import load_data
from manifoldgd.evaluation.measurement import penultimate
from manifoldgd.evaluation.metrics import (
    frechet_distance,
    median_square_distance,
    mmd,
    moments,
)
from manifoldgd.pretraining.budget import average_decay, enough_views
from manifoldgd.pretraining.judge import (
    at_judges_size,
    recognized,
    sample_latents,
    sampled_labels,
    split_held_out,
    train_judge,
)
from manifoldgd.pretraining.paths import noise_schedule
from manifoldgd.pretraining.training import encode_views, train_dit, untrained, with_tuples
from manifoldgd.sampling.pipeline import ManifoldGDPipeline

KEY = ("prediction", "steps", "of_steps", "sampler", "scale")
SAMPLERS = {  # prediction -> a stochastic sampler where there is one, and a deterministic one
    "noise": ("ddpm", "ddim"),
    "v": ("ddpm", "ddim"),
    "velocity": ("flow-euler",),
}
SCALES = (1., 2., 4.)  # of the classifier-free guidance
SAMPLES = 200  # of each row, all classes together
SEED = 0
CHECKPOINTS = 10  # of each training


def settings_for(
    args: argparse.Namespace,
    prediction: str,
) -> PretrainConfig:
    "Take over the settings of the backbone whose VAE is used, but for what is compared."
    plan = json.loads((Path(args.vae) / "training" / "config.json").read_text())["plan"]
    config = with_tuples(PretrainConfig(**plan["settings"] | {"data": args.data, "out": "-"}))
    n_images = len(split_held_out(load_data(args.data).labels, config.held_out)[0])
    config = dataclasses.replace(config, dit_steps=args.steps)
    changed = {
        "out": str(args.runs / prediction),
        "vae": args.vae,
        "prediction": prediction,
        "views": enough_views(config, n_images, seconds=1e9, each=1.),
        "every": args.steps // CHECKPOINTS,
        "ema_decay": average_decay(args.steps // 2),  # half way, too, the beginning is forgotten
        "seed": SEED,
        "minutes": None,
        "device": "cpu",
    }
    return dataclasses.replace(config, **changed)


def shared_latents(
    args: argparse.Namespace,
    config: PretrainConfig,
) -> tuple:  # latents of all views, their labels, the VAE, label -> class folder
    "Encode the training images once, in the views that all trainings draw from."
    data = load_data(args.data)
    kept, _ = split_held_out(data.labels, config.held_out)
    vae, _ = untrained(config, len(data.classes))
    path = args.runs / "latents.pt"
    if not path.exists():
        shape = (config.image_size, config.channels, CROPS["DiTTransformer2DModel"])
        latents = encode_views(config, data.images(kept, *shape), vae)
        with replacing(path) as temporary:
            torch.save({"latents": latents, "scale": vae.config.scaling_factor}, temporary)
    found = torch.load(path, weights_only=True)
    vae.register_to_config(scaling_factor=found["scale"])
    names = {i: c.folder for i, c in enumerate(data.classes)}
    return found["latents"], data.labels[kept].repeat(config.views), vae, names


class Clock:
    "The CPU time of a training, added up over its runs."

    def __init__(self, path: Path):
        self.path = path
        self.last = time.process_time()

    def note(self, step: int):
        "Add the time since the last note, and write it down for a step."
        notes = self.read()
        spent = max(notes.values(), default=0.) + time.process_time() - self.last
        self.last = time.process_time()
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(notes | {step: spent}))

    def read(self) -> dict:  # step -> seconds
        "Read what was noted."
        if not self.path.exists():
            return {}
        return {int(step): value for step, value in json.loads(self.path.read_text()).items()}


def train(
    args: argparse.Namespace,
    prediction: str,
    shared: tuple,  # as `shared_latents` makes it
):
    "Train for one prediction; keep whole backbones at half of the steps and at the end."
    config = settings_for(args, prediction)
    out = Path(config.out)
    if (out / str(args.steps) / "model_index.json").exists():
        return
    latents, labels, vae, names = shared
    scheduler = noise_schedule(prediction)
    clock = Clock(out / "seconds.json")

    def keep(dit, step):
        clock.note(step)
        if step in (args.steps // 2, args.steps):
            pipe = ManifoldGDPipeline(vae, dit, scheduler, names)
            pipe.save_pretrained(out / str(step), safe_serialization=True)

    _, dit = untrained(config, len(names))
    train_dit(config, latents, labels, dit, scheduler, out, keep)


class Yardstick:
    "What samples are compared with."

    def __init__(
        self,
        judge: torch.nn.Module,  # names the class of an image
        images: torch.Tensor,  # (N, C, H, W) real images in [-1, 1]
    ):
        self.judge = judge
        self.real = self.features(images)
        self.moments = moments([self.real])
        self.gamma = 1 / median_square_distance(self.real)  # of MMD's kernel, for all rows

    def features(self, images: torch.Tensor) -> torch.Tensor:  # (N, C, H, W) -> (N, F)
        "Look at images as the judge does before it decides."
        network = penultimate(self.judge)
        with torch.no_grad():
            return torch.cat([network(part) for part in at_judges_size(images).split(64)])

    def measure(
        self,
        images: torch.Tensor,  # (N, C, H, W) in [-1, 1]
        labels: torch.Tensor,  # (N,) what they should be
        suffix: str = "",  # of the names
    ) -> dict:  # name -> value
        "Measure samples, or real images as if they were samples."
        features = self.features(images)
        return {
            f"recognized{suffix}": recognized(self.judge, images, labels),
            f"fid{suffix}": frechet_distance(self.moments, moments([features])),
            f"mmd{suffix}": mmd(self.real, features, self.gamma),
        }


def new_yardstick(
    args: argparse.Namespace,
    config: PretrainConfig,
    vae: torch.nn.Module,
) -> tuple:  # a `Yardstick`; what real test images reach by it, name -> value
    "Train the judge, and measure real images as samples are measured."
    train, test = load_data(args.data), load_data(args.data, "test")
    images = train.images(size=config.image_size)
    judge = train_judge(images, train.labels, len(train.classes), SEED)
    yardstick = Yardstick(judge, images)
    order = torch.randperm(len(test), generator=image_generator(SEED, "floor", 0))
    few = order[:args.samples]
    images, labels = test.images(few, config.image_size), test.labels[few]
    decoded = torch.cat([decode(vae, encode(vae, part)) for part in images.split(64)])
    floor = yardstick.measure(images, labels, "_floor")
    return yardstick, floor | yardstick.measure(decoded, labels, "_decoded")


def figures(
    args: argparse.Namespace,
    backbone: Backbone,
    row: dict,  # the key of a row
    yardstick: Yardstick,
    real: float,  # standard deviation of the real latents
) -> dict:  # name -> value
    "Sample, and judge the samples."
    wanted = sampled_labels(backbone.null_label, args.samples)
    latents = sample_latents(backbone, wanted, SEED, row["scale"], row["sampler"])
    images = torch.cat([decode(backbone.vae, part) for part in latents.split(64)])
    found = yardstick.measure(images, torch.tensor(wanted))
    return {"samples": len(wanted)} | found | {"spread": latents.std().item() / real}


def rows_of(
    args: argparse.Namespace,
    prediction: str,
) -> list:  # the keys of its rows
    "List what is measured of a prediction."
    points = (args.steps // 2, args.steps)
    found = itertools.product(points, SAMPLERS[prediction], SCALES)
    values = [(prediction, step, args.steps, sampler, scale) for step, sampler, scale in found]
    return [dict(zip(KEY, value)) for value in values]


def main():
    "Train, then judge."
    parser = new_parser(__doc__, "prediction")
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--vae", required=True, help="folder of a backbone made by `pretrain`")
    parser.add_argument("--steps", type=int, required=True, help="of each training; a multiple "
                        f"of {CHECKPOINTS}")
    parser.add_argument("--runs", type=Path, default=Path("runs/prediction"), help="folder of the "
                        "trainings")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="of each row")
    args = parser.parse_args()
    if args.steps % CHECKPOINTS or args.steps < CHECKPOINTS:
        parser.error(f"expected --steps to be a multiple of {CHECKPOINTS}, but got {args.steps}")
    args.runs = args.runs / str(args.steps)
    ledger = Ledger(args.out, KEY, float_format="%.5g")
    config = settings_for(args, "noise")
    args.runs.mkdir(parents=True, exist_ok=True)
    shared = shared_latents(args, config)
    for prediction in SAMPLERS:
        train(args, prediction, shared)
    yardstick, floors = new_yardstick(args, config, shared[2])
    for row in itertools.chain(*(rows_of(args, prediction) for prediction in SAMPLERS)):
        if row in ledger:
            continue
        out = args.runs / row["prediction"]
        backbone = load_backbone(str(out / str(row["steps"])))
        measured = figures(args, backbone, row, yardstick, shared[0].std().item())
        minutes = Clock(out / "seconds.json").read()[row["steps"]] / 60
        row |= {"core_minutes": minutes} | measured | floors | {"seed": SEED}
        row |= {"fingerprint": backbone.fingerprint()[:12]}
        ledger.add(row | provenance("commit", "device", "threads", "load", "torch", "command"))
        print(row)


if __name__ == "__main__":
    main()
