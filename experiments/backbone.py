"""Measure the embedded backbone; write results/backbone.csv and the backbone's model card.

    python experiments/backbone.py

How well the VAE restores test images, and which share of unguided samples (DDIM, 50 steps, 100 of
each class) a judge recognizes as their class, for several scales of the classifier-free guidance.
The judge is a ConvNet-3 of width 64 trained on the real train split. The scale itself is chosen by
experiments/guidance_scale.py on the validation split; nothing is tuned here. Some minutes on two
cores. The page of `pretraining.training` reads the table.
"""
import dataclasses
import platform
import sys
from pathlib import Path

import torch

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone, load_backbone
from manifoldgd.backbones.latents import decode, encode
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.config.presets import GUIDANCE_SCALES
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import image_generator, packaged, replacing
from manifoldgd.data.images import ImageData
from manifoldgd.data.sources import load_data
from manifoldgd.pretraining.budget import with_defaults
from manifoldgd.pretraining.training import model_card
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sampling.schedulers import make_scheduler
from manifoldgd.students.training import top1, train_student

SEED = 0
SAMPLES = 100  # of each class
SCALES = (1., 2., 4.)  # and the one in use
EPOCHS = 60  # of the judge
LICENCE = (
    "Weights: Apache-2.0. Data: *Optical Recognition of Handwritten Digits*, E. Alpaydin and "
    "C. Kaynak, UCI Machine Learning Repository, 1998, CC BY 4.0, as shipped with scikit-learn."
)


class Notes:
    "The figures of a backbone, written down as they are measured."

    def __init__(self, out: Path, backbone: Backbone):
        self.ledger = Ledger(out)
        self.origin = {"seed": SEED, "fingerprint": backbone.fingerprint()}
        self.origin |= provenance("commit", "machine", "torch", "command")
        self.origin["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"

    def add(
        self,
        figure: str,  # its name
        value: float,
        n: int,  # images that it was measured on
    ):
        "Write a figure down, and show it."
        self.ledger.add({"figure": figure, "value": round(value, 5), "n": n} | self.origin)
        print(f"{figure}: {value:.5g} (n = {n})", file=sys.stderr)


def train_judge(train: ImageData) -> torch.nn.Module:
    "Train a ConvNet-3 of width 64 on the real images."
    images = train.images(channels=1)
    epochs = ((None, EPOCHS),)
    protocol = dataclasses.replace(PROTOCOLS["digits-quick"], width=64, epochs=epochs, cutmix=0.)
    mean_std = (images.mean((0, 2, 3)), images.std((0, 2, 3)))
    options = {"ipc": len(train) // 10, "seed": SEED, "mean_std": mean_std, "progress": True}
    return train_student(images, train.labels, protocol, 10, **options).eval()


def sample_digits(pipe: ManifoldGDPipeline, labels: torch.Tensor, scale: float) -> torch.Tensor:
    "Sample a latent for every label without guidance, 100 at a time."
    latents = []
    for start in range(0, len(labels), 100):
        part = labels[start:start + 100].tolist()
        generators = [image_generator(SEED, f"{y}", i, "judge") for i, y in enumerate(part, start)]
        out = pipe(part, guidance_scale=scale, generator=generators, output_type="latent")
        latents.append(out.images)
    return torch.cat(latents)


def note_recognized(notes: Notes, backbone: Backbone, judge: torch.nn.Module):
    "Measure which share of the samples the judge takes for their class, at every scale."
    parts = (backbone.vae, backbone.transformer, make_scheduler("ddim", backbone))
    pipe = ManifoldGDPipeline(*parts, backbone.id2label)
    labels = torch.arange(10).repeat_interleave(SAMPLES)
    default = GUIDANCE_SCALES["digits"]
    for scale in sorted({*SCALES, default}):
        images = decode(backbone.vae, sample_digits(pipe, labels, scale))
        share = top1(judge, images, labels)
        notes.add(f"recognized_at_scale_{scale:g}", share, len(labels))
        if scale == default:
            notes.add("recognized_at_default", share, len(labels))


def write_card(path: Path, train: ImageData, rows: list):
    "Write the model card, with the figures that were measured."
    figures = {}
    for row in rows:
        figures[f"{row['figure']} (n = {row['n']}, seed {row['seed']})"] = row["value"]
    config = with_defaults(PretrainConfig(data="digits", out="-", channels=1))
    with replacing(path) as temporary:
        temporary.write_text(model_card(config, train, figures, LICENCE), encoding="utf8")


def main():
    "Measure the VAE, the judge and the samples."
    parser = new_parser(__doc__, "backbone")
    card = packaged("weights", "digits", "README.md")
    parser.add_argument("--card", type=Path, default=card, help="the model card")
    args = parser.parse_args()

    backbone = load_backbone("digits")
    train = load_data("digits")
    test = load_data("digits", "test")
    images = test.images(channels=1)
    notes = Notes(args.out, backbone)
    restored = decode(backbone.vae, encode(backbone.vae, images))
    notes.add("vae_test_mse", (restored - images).pow(2).mean().item(), len(test))
    judge = train_judge(train)
    notes.add("judge_test_top1", top1(judge, images, test.labels), len(test))
    note_recognized(notes, backbone, judge)
    write_card(args.card, train, notes.ledger.rows)


if __name__ == "__main__":
    main()
