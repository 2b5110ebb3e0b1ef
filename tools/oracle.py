"""Freeze what a restructuring must not change, and compare with it later.

    python tools/oracle.py freeze FILE      write the hashes of this code's results
    python tools/oracle.py compare FILE     make them again, and say which differ

Images of every preset on the digits (1 and 4 per class, seed 0), two runs under other samplers, the traces, the weights of one
tiny pretraining, and the rows of one evaluation and one measurement without their seconds and commit. SHA-256 of floats holds on
one machine with one set of libraries only; what is worth keeping beyond this change is a test with a tolerance.
"""
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PRESETS = ("manifoldgd", "paper", "released", "mgd", "dit", "decoded", "random")
OTHERS = {
    "euler-laplace": ["--scheduler", "euler", "--kernel", "laplace", "--noise", "shared"],
    "dpm-annealed": ["--scheduler", "dpm++", "--projection", "annealed", "--adaptive", "True", "--ridge", "0.1"],
    "nearest": ["--preset", "decoded", "--images", "real"],
    "medoid": ["--prototypes", "kmeans", "--prototype-kind", "medoid", "--annealing", "cosine"],
}
UNSTABLE = {"seconds", "commit"}


def command(folder, *arguments):
    "Run the command line from a folder, on one thread."
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "MANIFOLDGD_CACHE": str(Path(folder) / "cache"),
    }
    program = [sys.executable, "-c", "import sys; from manifoldgd.cli import main; sys.exit(main())"]
    done = subprocess.run([*program, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments))}:\n{done.stderr}")


def hash_file(path):
    "SHA-256 of a file."
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def hash_run(folder):
    "Hash the images of a run in the order of their names, and its tables."
    images = sorted(Path(folder, "images").rglob("*.png"))
    listed = json.dumps([[p.relative_to(folder).as_posix(), hash_file(p)] for p in images])
    found = {"images": hashlib.sha256(listed.encode()).hexdigest()}
    for name in ("trace.csv", "metadata.jsonl", "gallery.png"):
        if Path(folder, name).exists():
            found[name] = hash_file(Path(folder, name))
    return found


def stable_rows(path):
    "The rows of a table, in an order of their own, without what may differ."
    with open(path, newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in UNSTABLE} for row in csv.DictReader(file)]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def results():
    "Make everything, and return its hashes."
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for preset in PRESETS:
            for ipc in (1, 4):
                trace = ["--trace"] if preset in ("manifoldgd", "paper", "released", "mgd") else []
                out = folder / f"{preset}-ipc{ipc}"
                command(folder, "distill", "--preset", preset, "--ipc", ipc, "--device", "cpu", "--out", out.name, *trace)
                found[out.name] = hash_run(out)
        for name, settings in OTHERS.items():
            command(folder, "distill", "--ipc", 2, "--device", "cpu", "--out", name, "--trace", *settings)
            found[name] = hash_run(folder / name)
        pretrain = ["pretrain", "--data", "digits", "--out", "model", "--vae-steps", 3, "--dit-steps", 3]
        command(folder, *pretrain, "--hidden-size", 32, "--num-layers", 1, "--device", "cpu", "--every", 2)
        for part in ("vae", "transformer"):
            found[f"pretrained {part}"] = hash_file(folder / "model" / part / "diffusion_pytorch_model.safetensors")
        runs = ["manifoldgd-ipc1", "random-ipc1"]
        command(folder, "evaluate", *runs, "--seeds", 1, "--device", "cpu")
        found["results.csv"] = stable_rows(folder / "results.csv")
        command(folder, "metrics", *runs, "--draws", 2, "--device", "cpu")
        found["metrics.csv"] = stable_rows(folder / "metrics.csv")
    return found


def main(task, path):
    "Freeze or compare."
    found = results()
    if task == "freeze":
        Path(path).write_text(json.dumps(found, indent=1))
        return
    frozen = json.loads(Path(path).read_text())
    differing = [name for name in frozen if frozen[name] != found.get(name)]
    for name in differing:
        print(f"{name}\n  frozen: {frozen[name]}\n  now:    {found.get(name)}")
    print(f"{len(frozen) - len(differing)} passed, {len(differing)} failed")
    sys.exit(bool(differing))


if __name__ == "__main__":
    main(*sys.argv[1:])
