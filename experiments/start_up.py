"""Measure where `manifoldgd distill` on the digits spends its time; write results/start_up.csv.

    OMP_NUM_THREADS=1 python experiments/start_up.py [--beside CHECKOUT] [--repeats 3]

"part": one run of ten images of each digit, in a process of its own, cut into its parts: `share` is
that of the whole run. In the first run of a repeat the cache is empty, in the second it is not.
"whole": the same command here and by the code of another checkout (`--beside`), in turn and each in
a process of its own; `ratio` is of their seconds, and `same` says whether the images are equal.

All seconds are of the processor, in this process and its threads, so a busy machine changes them
less than those of a clock, which stand beside as `wall`. A repeat takes a minute, and two with a
checkout. The page `speed` reads the table.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from ledger import Ledger, new_parser, provenance

COLUMNS = ("commit", "device", "threads", "load", "torch", "command")
ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from manifoldgd.cli import main; sys.exit(main())"
PARTS = """
import functools, json, sys, time

def timed(home, name, part, clock=time.process_time):
    "Note the seconds of a function under the name of a part."
    function = getattr(home, name)
    @functools.wraps(function)
    def watched(*arguments, **options):
        began = clock()
        try:
            return function(*arguments, **options)
        finally:
            seconds[part] = seconds.get(part, 0.) + clock() - began
    setattr(home, name, watched)

seconds = {}
from manifoldgd.backbones.imports import import_little
import_little()
from diffusers import DiTTransformer2DModel
from manifoldgd.config.presets import DistillConfig
from manifoldgd.distillation import distill, makers
seconds["imports"] = time.process_time()
timed(distill, "open_inputs", "data and backbone")
timed(distill, "class_fingerprints", "fingerprints")
timed(distill, "latent_bank", "latents")
timed(distill, "cached_prototypes", "prototypes")
timed(makers, "guidance_of", "guidance, once")
timed(makers, "sample", "sampling")
timed(DiTTransformer2DModel, "forward", "network")
timed(makers, "decode", "decoding")
timed(distill, "save_unit", "saving", time.thread_time)
timed(distill, "finish", "finishing")
ipc, steps, out = sys.argv[1:]
config = DistillConfig(ipc=int(ipc), num_inference_steps=int(steps), out=out, device="cpu")
distill.distill(config, progress=False)
seconds["sampling"] -= seconds["network"]
seconds["whole"] = time.process_time()
print(json.dumps(seconds))
"""


def run_apart(
    code: str,  # of Python
    arguments: list,  # of the process
    cache: str,  # folder
    checkout: Path = ROOT,  # whose code runs
) -> tuple:  # what it printed last; seconds of the processor; of the clock
    "Run code in a process of its own."
    environment = os.environ | {
        "MANIFOLDGD_CACHE": cache,
        "PYTHONPATH": str(checkout),
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(  # in the checkout: Python looks there first
        command, cwd=checkout, env=environment, check=True, capture_output=True, text=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.stdout.strip().splitlines()[-1], spent, wall


def measure_parts(args: argparse.Namespace, place: Path, cache: str) -> list:  # of rows
    "Measure the parts of a run, and what is left over."
    said, _, wall = run_apart(PARTS, [args.ipc, args.steps, place], cache)
    seconds = json.loads(said)
    whole = seconds.pop("whole")
    seconds["rest"] = whole - sum(seconds.values())
    return [{"setting": part, "seconds": value, "share": value / whole, "wall": wall}
            for part, value in seconds.items()]


def images_of(folder: Path) -> dict:  # name -> bytes
    "Read the images of a run."
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*.png")}


def measure_whole(args: argparse.Namespace, place: Path, cache: str) -> dict:  # a row
    "Compare the command with that of another checkout."
    spent, walls, images = [], [], []
    for name, checkout in (("here", ROOT), ("beside", args.beside.resolve())):
        out = place / name
        arguments = ["distill", "--ipc", args.ipc, "--out", out, "--device", "cpu",
                     "--num-inference-steps", args.steps]
        _, seconds, wall = run_apart(COMMAND, arguments, cache, checkout)
        spent.append(seconds)
        walls.append(wall)
        images.append(images_of(out))
    return {
        "setting": "command",
        "seconds": spent[0],
        "beside": spent[1],
        "ratio": spent[0] / spent[1],
        "wall": walls[0],
        "wall_beside": walls[1],
        "same": images[0] == images[1],
    }


def measure(args: argparse.Namespace, repeat: int) -> list:  # of rows
    "Measure everything once, first with an empty cache."
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cache = f"{folder}/cache"
        for state in ("empty", "filled"):
            place = Path(folder, state)
            for row in measure_parts(args, place / "parts", cache):
                rows.append({"what": "part", "cache": state, "repeat": repeat} | row)
        if args.beside:
            whole = measure_whole(args, Path(folder), cache)
            rows.append({"what": "whole", "cache": "filled", "repeat": repeat} | whole)
    return rows


def parse() -> argparse.Namespace:
    "Read the command line."
    parser = new_parser(__doc__, "start_up")
    parser.add_argument("--beside", type=Path, help="another checkout, such as a git worktree")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ipc", type=int, default=10, help="images of each digit")
    parser.add_argument("--steps", type=int, default=50, help="of the sampler")
    return parser.parse_args()


def main():
    "Measure, and write a row for each part."
    args = parse()
    ledger, facts = Ledger(args.out, float_format="%.6g"), provenance(*COLUMNS)
    for repeat in tqdm(range(args.repeats), desc="repeats"):
        for row in measure(args, repeat):
            ledger.add(row | facts)


if __name__ == "__main__":
    main()
