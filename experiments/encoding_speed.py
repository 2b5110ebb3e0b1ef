"""Measure the encoding of real images and what is kept of it; write results/encoding_speed.csv.

    OMP_NUM_THREADS=1 python experiments/encoding_speed.py [--only speed memory start] [--work DIR]

The images are JPEG files of 344 x 256 pixels, noise with the spectrum of photographs. Everything is
measured in processes of its own, with VAEs of random weights. The seconds mean something on an idle
machine only (15 minutes; 1 GB in a temporary folder, or in DIR for the next time).

"speed": 128 images in 4 classes, encoded one at a time in a plain loop, and by `latent_bank` with a
thread for each core; three rounds in turn, of which the medians are taken. `ratio` is of wall time,
`cpu_ratio` of the time that cores were busy. `two_cores` says how much more two busy threads get
done than one while this is measured: 2 on an idle machine, about 1 on one that is busy.
"memory": peak memory while 1,000 and 10,000 images, 100 in a class, are encoded, with that of the
imports, and the growth since then. "size": bytes of a shard for each latent, over all classes.
"start": seconds from the call of `distill` to its first network call for 50,000 images in 10
classes with latents of 4 x 8 x 8: the first time, and the second in a new process, which finds
fingerprints, latents and prototypes in the cache. Imports are not counted.

The page `backbones.latents` reads the table.
"""
import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel
from PIL import Image

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import Backbone
from manifoldgd.backbones.latents import encode, latent_bank
from manifoldgd.config.presets import DistillConfig
from manifoldgd.data.images import FolderImages
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.makers import SampledImages
from manifoldgd.sampling.pipeline import ManifoldGDPipeline

VAES = {"tiny": (8, 8, 8, 8), "small": (16, 32, 32, 32)}  # channels of the levels
ROUNDS = 3
IMAGES = (4, 32)  # classes and images of each, to measure the speed
CLASS_SIZE = 100  # images of each class, to measure memory
COUNTS = (1_000, 10_000)
STUBS = (10, 5_000)  # classes and images of each, to measure the start
HOUR_AGO = time.time() - 3600


# Images and networks

def photographs(n: int):  # an iterator of (256, 344, 3) uint8
    "Draw images with the spectrum of photographs: 20 of them, shifted at random."
    generator = np.random.default_rng(0)
    ky = np.fft.fftfreq(256)[:, None]
    k = np.sqrt(np.fft.rfftfreq(344)[None] ** 2 + ky**2)
    k[0, 0] = 1
    bases = []
    for _ in range(20):
        spectrum = np.fft.rfft2(generator.standard_normal((256, 344, 3)), axes=(0, 1))
        pixels = np.fft.irfft2(spectrum / k[..., None] ** 1.2, s=(256, 344), axes=(0, 1))
        pixels = (pixels - pixels.mean()) / pixels.std() * 50 + 128
        bases.append(pixels.clip(0, 255).astype(np.uint8))
    for i in range(n):
        yield np.roll(bases[i % 20], tuple(generator.integers(0, 256, 2)), axis=(0, 1))


def stubs(n: int):  # an iterator of (32, 32, 3) uint8
    "Draw small images."
    generator = np.random.default_rng(0)
    for _ in range(n):
        yield np.kron(generator.integers(0, 256, (8, 8, 3)), np.ones((4, 4, 1))).astype(np.uint8)


def write_images(folder: Path, classes: int, each: int, draw, ending: str):
    "Write a folder of class folders, unless it is there; the files are an hour old."
    if folder.exists():
        return
    for i, pixels in enumerate(draw(classes * each)):
        path = folder / f"{i % classes:03}" / f"{i:05}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)
        os.utime(path, (HOUR_AGO, HOUR_AGO))


def new_backbone(widths: tuple, latent_size: int, classes: int) -> Backbone:
    "Build a backbone with random weights, always the same."
    n = len(widths)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n,
        latent_channels=4,
        norm_num_groups=4,
    )
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        sample_size=latent_size,
        num_embeds_ada_norm=classes,
        norm_num_groups=1,
    )
    names = {c: f"{c:03}" for c in range(classes)}
    scheduler = DDPMScheduler(clip_sample=False)
    return Backbone(vae.eval(), transformer.eval(), scheduler, names, "random")


# What is measured, each in a process of its own

def used(function) -> dict:
    "Measure the seconds that a function takes, and those that cores are busy."
    start, busy = time.perf_counter(), time.process_time()
    function()
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - busy}


def encode_one_at_a_time(folder: Path, vae: str) -> dict:
    "Encode images in a plain loop."
    data, backbone = FolderImages(folder), new_backbone(VAES[vae], 32, IMAGES[0])

    def loop(numbers):
        for i in numbers:
            encode(backbone.vae, data.images([i], 256))

    loop(range(8))
    return used(lambda: loop(range(len(data))))


def encode_side_by_side(folder: Path, vae: str) -> dict:
    "Encode images with a thread for each core, into an empty cache."
    data, backbone = FolderImages(folder), new_backbone(VAES[vae], 32, IMAGES[0])
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MANIFOLDGD_CACHE"] = cache
        latent_bank(backbone, data.keep(range(16)), progress=False)
        return used(lambda: latent_bank(backbone, data, progress=False))


def count_memory(folder: Path, vae: str) -> dict:
    "Measure the peak memory of encoding, and the bytes of a latent."
    data, backbone = FolderImages(folder), new_backbone((4, 4, 4, 4), 32, 100)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MANIFOLDGD_CACHE"] = cache
        bank = latent_bank(backbone, data, progress=False)
        stored = sum(shard.path.stat().st_size for shard in bank.shards)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak": peak / 1024, "before": before / 1024, "bytes": stored / len(data)}


class FirstCall(Exception):
    "The network is about to be called for the first time."


def start_run(folder: Path, cache: str) -> dict:
    "Measure the seconds until the network is called."
    os.environ["MANIFOLDGD_CACHE"] = cache
    config = DistillConfig(
        data=str(folder),
        backbone=f"{cache}/backbone",
        out=tempfile.mkdtemp(),
        device="cpu",
    )

    def stop(*args):
        raise FirstCall

    def until_first_call():
        try:
            distill(config, progress=False)
        except FirstCall:
            return

    with patch.object(SampledImages, "sample", stop):
        return used(until_first_call)


MEASURES = {f.__name__: f for f in (encode_one_at_a_time, encode_side_by_side, count_memory,
                                    start_run)}


def measured(name: str, *args, threads: int = 1) -> dict:
    "Call one of the functions above in a new process."
    command = [sys.executable, __file__, "--measure", name, *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def hash_for(seconds: float) -> int:  # blocks
    "Keep a core busy."
    block, end, blocks = bytes(2**16), time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        hashlib.sha256(block)
        blocks += 1
    return blocks


def two_cores() -> float:
    "Measure how much more two busy threads get done than one."
    with ThreadPoolExecutor(2) as pool:
        one = hash_for(1)
        return sum(pool.map(hash_for, [1, 1])) / one


# The table

class Notes:
    "The rows of the table, shown as they are measured."

    def __init__(self, out: Path):
        self.ledger = Ledger(out, key=("what", "how"))
        self.origin = provenance("command", "machine", "torch", "commit")

    def add(self, what: str, how: str, **values):
        "Write a row, if it is not there."
        row = {"what": what, "how": how} | values | {"load": provenance("load")["load"]}
        if row not in self.ledger:
            self.ledger.add(row | self.origin)
        print(*row.items())


def measure_speed(notes: Notes, work: Path):
    "Compare one image at a time with a thread for each core."
    folder = work / "photographs"
    write_images(folder, *IMAGES, photographs, ".jpg")
    for vae in VAES:
        for threads in (1, 2):
            rounds = []
            for _ in range(ROUNDS):
                loop = measured("encode_one_at_a_time", folder, vae, threads=threads)
                bank = measured("encode_side_by_side", folder, vae)
                rounds.append((loop, bank, two_cores()))
            loops, banks, control = zip(*rounds)
            middle = {
                (name, key): statistics.median(one[key] for one in several)
                for name, several in (("loop", loops), ("bank", banks)) for key in loops[0]
            }
            how = f"VAE of widths {VAES[vae]}, the loop with {threads} of torch's threads"
            notes.add(
                "speed",
                how,
                n=IMAGES[0] * IMAGES[1],
                ratio=round(middle["loop", "seconds"] / middle["bank", "seconds"], 3),
                cpu_ratio=round(middle["loop", "cpu"] / middle["bank", "cpu"], 3),
                two_cores=round(statistics.median(control), 2),
                loop_ms=round(middle["loop", "seconds"] * 1e3 / IMAGES[0] / IMAGES[1], 2),
                bank_ms=round(middle["bank", "seconds"] * 1e3 / IMAGES[0] / IMAGES[1], 2),
            )


def measure_memory(notes: Notes, work: Path):
    "Measure peak memory for two sizes of a dataset, and the bytes of a latent."
    for n in COUNTS:
        folder = work / f"{n} photographs"
        write_images(folder, n // CLASS_SIZE, CLASS_SIZE, photographs, ".jpg")
        found = measured("count_memory", folder, "tiny")
        notes.add(
            "memory",
            f"{n} images",
            n=n,
            peak_mb=round(found["peak"], 1),
            imports_mb=round(found["before"], 1),
            growth_mb=round(found["peak"] - found["before"], 1),
        )
        notes.add("size", f"latents of 4 x 32 x 32, {n} images", n=n, bytes=found["bytes"])


def measure_start(notes: Notes, work: Path):
    "Measure the time before sampling, the first time and the second."
    folder, cache = work / "stubs", work / "cache"
    write_images(folder, *STUBS, stubs, ".png")
    small = new_backbone((8, 8, 8), 8, STUBS[0])
    pipe = ManifoldGDPipeline(small.vae, small.transformer, small.scheduler, small.id2label)
    pipe.save_pretrained(cache / "backbone")
    for path in (cache / "backbone").rglob("*.*"):
        os.utime(path, (HOUR_AGO, HOUR_AGO))
    for how in ("first run", "second run"):
        found = measured("start_run", folder, cache, threads=2)
        notes.add(
            "start",
            how,
            n=STUBS[0] * STUBS[1],
            seconds=round(found["seconds"], 2),
            cpu_seconds=round(found["cpu"], 2),
        )


PARTS = {"speed": measure_speed, "memory": measure_memory, "start": measure_start}


def main():
    parser = new_parser(__doc__, "encoding_speed")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--work", type=Path, help="folder that keeps the images")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if args.measure:
        name, folder, *rest = args.measure
        print(json.dumps(MEASURES[name](Path(folder), *rest)))
        return
    notes = Notes(args.out)
    with tempfile.TemporaryDirectory() as work:
        for name in args.only:
            PARTS[name](notes, args.work or Path(work))


if __name__ == "__main__":
    main()
