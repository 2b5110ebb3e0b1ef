"""Pretrain on photographs for an hour, and judge what came of it; write results/own_backbone.csv.

    python experiments/own_backbone.py --data DIR [--minutes 60] [--model runs/own_data/model]

DIR holds train/<class>/ and val/<class>/ with photographs, here ten classes of Tiny-ImageNet at 64
pixels. A backbone that stands in the folder of `--model` is judged as it is; an unfinished one is
finished first, by the ordinary `pretrain`. The judge is that of `pretraining.judge`, trained on all
of train/; its figures are those of val/. The finished latents are compared by sampler: `ddim-cut`
starts where abar is at least 1e-3, on the same schedule cut there. The default guidance scale is 4;
`ddim@2` is DDIM at a scale of 2. `load` is how many processes
wanted a core when the figure was taken. The table is resumed.
"""
import argparse
import itertools
import json
from pathlib import Path

import torch

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone
from manifoldgd.backbones.latents import decode, encode
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.data.images import ImageData
from manifoldgd.data.sources import load_data
from manifoldgd.pretraining.judge import (
    judge_backbone,
    recognized,
    sample_latents,
    sampled_labels,
    train_judge,
)
from manifoldgd.pretraining.training import pretrain

SEED = 0
SIZE = 64  # height and width of the images
SAMPLES = 100  # of each sampler
LEAST = 1e-3  # abar at which a cut schedule starts
SCALES = (4, 2, 1)  # of the classifier-free guidance; 4 is the default, and not written


class Notes:
    "The figures of a backbone, written down as they are measured."

    def __init__(self, out: Path, backbone: Backbone):
        self.ledger = Ledger(out, key=("figure", "fingerprint"), float_format="%.5g")
        self.fingerprint = backbone.fingerprint()[:12]

    def has(self, figure: str) -> bool:
        "Whether a figure of this backbone stands there already."
        return {"figure": figure, "fingerprint": self.fingerprint} in self.ledger

    def add(
        self,
        figure: str,  # its name
        value: float,
        n: int,  # images that it was measured on
    ):
        "Write a figure down, and show it."
        row = {"figure": figure, "value": value, "n": n, "fingerprint": self.fingerprint}
        self.ledger.add(row | provenance("commit", "device", "load", "torch", "command"))
        print(f"{figure}: {value:.5g} (n = {n})")


def note_plan(notes: Notes, model: Path):
    "Write down what was trained, as its folder says."
    plan = json.loads((model / "training" / "config.json").read_text())["plan"]
    n = 0
    for name in ("minutes", "vae_steps", "views", "hidden_size", "num_layers", "dit_steps"):
        if not notes.has(name):
            notes.add(name, plan["settings"][name], n)
    for name, seconds in plan["seconds"].items():
        if not notes.has(f"planned_{name}_minutes"):
            notes.add(f"planned_{name}_minutes", seconds / 60, n)


def note_quality(notes: Notes, backbone: Backbone, judge, test: ImageData):
    "Judge the backbone by images that nothing was trained on."
    if notes.has("spread"):
        return
    images = test.images(size=SIZE)
    quality = judge_backbone(backbone, judge, images, test.labels, held_out=True, seed=SEED)
    n_real, n_samples = quality.n_real, quality.n_samples
    notes.add("vae_error", quality.error, n_real)
    notes.add("recognized_real", quality.real, n_real)
    notes.add("recognized_decoded", quality.decoded, n_real)
    notes.add("recognized_samples", quality.samples, n_samples)
    notes.add("spread", quality.spread, n_samples)


def cut_schedule(backbone: Backbone) -> Backbone:
    "Leave out the steps of the noise schedule where hardly anything of the image is left."
    schedule = backbone.scheduler
    n = int((schedule.alphas_cumprod >= LEAST).sum())
    betas = schedule.betas[:n].tolist()
    shorter = type(schedule).from_config(
        schedule.config, trained_betas=betas, num_train_timesteps=n
    )
    return Backbone(backbone.vae, backbone.transformer, shorter, backbone.id2label)


def note_samplers(notes: Notes, backbone: Backbone, judge, test: ImageData):
    "Compare samplers by the spread of their finished latents, and by the judge."
    images = test.images(size=SIZE)
    real = torch.cat([encode(backbone.vae, part) for part in images.split(64)]).std().item()
    wanted = sampled_labels(backbone.null_label, SAMPLES)
    whole, cut = backbone, cut_schedule(backbone)
    models = {"ddpm": whole, "ddim": whole, "dpm++": whole, "ddim-cut": cut, "ddpm-cut": cut}
    for scale, (sampler, model) in itertools.product(SCALES, models.items()):
        name = sampler if scale == SCALES[0] else f"{sampler}@{scale}"
        if notes.has(f"spread_{name}"):
            continue
        scheduler = sampler.removesuffix("-cut")
        latents = sample_latents(model, wanted, SEED, scale, scheduler)
        decoded = decode(backbone.vae, latents)
        share = recognized(judge, decoded, torch.tensor(wanted))
        notes.add(f"recognized_{name}", share, SAMPLES)
        notes.add(f"spread_{name}", latents.std().item() / real, SAMPLES)


def pretrained(args: argparse.Namespace) -> Backbone:
    "Open the backbone; train it first, or finish it, if it is not there."
    model = Path(args.model)
    if not (model / "model_index.json").exists():
        pretrain(
            PretrainConfig(
                data=args.data,
                out=args.model,
                image_size=SIZE,
                minutes=args.minutes,
            )
        )
    return load_backbone(args.model)


def main():
    "Pretrain, then judge."
    parser = new_parser(__doc__, "own_backbone")
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--minutes", type=float, default=60., help="for the pretraining")
    parser.add_argument("--model", default="runs/own_data/model", help="folder of the backbone")
    args = parser.parse_args()
    backbone = pretrained(args)
    notes = Notes(args.out, backbone)
    note_plan(notes, Path(args.model))
    train = load_data(args.data)
    test = load_data(args.data, "test")
    judge = train_judge(train.images(size=SIZE), train.labels, len(train.classes), SEED)
    note_quality(notes, backbone, judge, test)
    note_samplers(notes, backbone, judge, test)


if __name__ == "__main__":
    main()
