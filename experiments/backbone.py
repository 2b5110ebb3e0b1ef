"""Measure the embedded backbone; write results/backbone.csv and the backbone's model card.

A judge, a ConvNet-3 of width 64 trained on the real train split, says which share of unguided samples it recognizes as their class, for several scales of the
classifier-free guidance. The scale itself is chosen by tools/choose_guidance_scale.py on the validation split; nothing is tuned here.
"""
import dataclasses
import platform
import sys
from pathlib import Path

import pandas as pd
import torch

from manifoldgd.backbones.backbone import load_backbone
from manifoldgd.backbones.latents import decode, encode
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.config.presets import DEFAULT_GUIDANCE_SCALE, GUIDANCE_SCALES
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.core import git_commit, image_generator, packaged, replacing
from manifoldgd.data.sources import load_data
from manifoldgd.pretraining.training import model_card
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sampling.schedulers import make_scheduler
from manifoldgd.students.training import top1, train_student

SEED, SAMPLES = 0, 100  # of each class
backbone, train, test = load_backbone("digits"), load_data("digits"), load_data("digits", "test")
default = GUIDANCE_SCALES.get("digits", DEFAULT_GUIDANCE_SCALE)
rows = []


def note(figure, value, n):
    rows.append({"figure": figure, "value": round(value, 5), "n": n, "seed": SEED, "fingerprint": backbone.fingerprint(), "commit": git_commit(),
                 "machine": f"{platform.machine()}, {torch.get_num_threads()} threads", "torch": torch.__version__, "command": "python tools/measure_backbone.py"})
    print(f"{figure}: {value:.5g} (n = {n})", file=sys.stderr)


images, test_images = train.images(channels=1), test.images(channels=1)
note("vae_test_mse", (decode(backbone.vae, encode(backbone.vae, test_images)) - test_images).pow(2).mean().item(), len(test))
mean_std = images.mean((0, 2, 3)), images.std((0, 2, 3))
protocol = dataclasses.replace(PROTOCOLS["digits-quick"], width=64, epochs=((None, 60),), cutmix=0.)
judge = train_student(images, train.labels, protocol, 10, ipc=len(train) // 10, seed=SEED, mean_std=mean_std, progress=True).eval()
note("judge_test_top1", top1(judge, test_images, test.labels), len(test))

pipe = ManifoldGDPipeline(backbone.vae, backbone.transformer, make_scheduler("ddim", backbone), backbone.id2label)
labels = torch.arange(10).repeat_interleave(SAMPLES)
for scale in sorted({1., 2., 4., default}):
    latents = [pipe(part.tolist(), guidance_scale=scale, generator=[image_generator(SEED, f"{y}", i, "judge") for i, y in enumerate(part.tolist(), 100 * k)], output_type="latent").images
               for k, part in enumerate(labels.split(100))]
    share = top1(judge, decode(backbone.vae, torch.cat(latents)), labels)
    note(f"recognized_at_scale_{scale:g}", share, len(labels))
    if scale == default: note("recognized_at_default", share, len(labels))

with replacing(Path(__file__).parents[1] / "results" / "backbone.csv") as temporary: pd.DataFrame(rows).to_csv(temporary, index=False)

licence = ("Weights: Apache-2.0. Data: *Optical Recognition of Handwritten Digits*, E. Alpaydin and C. Kaynak, UCI Machine Learning Repository, 1998, "
           "CC BY 4.0, as shipped with scikit-learn.")
figures = {f"{row['figure']} (n = {row['n']}, seed {row['seed']})": row["value"] for row in rows}
with replacing(packaged("weights", "digits", "README.md")) as temporary:
    temporary.write_text(model_card(PretrainConfig(data="digits", out="-", channels=1), train, figures, licence), encoding="utf8")
