"""Freeze what a restructuring must not change, and compare with it later.

    python tools/oracle.py freeze FILE      write the hashes of this code's results
    python tools/oracle.py compare FILE     make them again, and say which differ

Images of every preset on the digits (1 and 4 per class, seed 0), runs under other samplers and
settings, the traces, the weights of one tiny pretraining, and the rows of one evaluation and one
measurement without their seconds and commit. SHA-256 of floats holds on one machine with one set
of libraries only; what is worth keeping beyond a change is a test with a tolerance.
"""
import csv
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TRACED = ("manifoldgd", "paper", "released", "mgd")
PRESETS = (*TRACED, "dit", "decoded", "random")
OTHERS = {
    "euler-laplace": "--scheduler euler --kernel laplace --noise shared",
    "dpm-annealed": "--scheduler dpm++ --projection annealed --adaptive True --ridge 0.1",
    "nearest": "--preset decoded --images real",
    "medoid": "--prototypes kmeans --prototype-kind medoid --annealing cosine",
}
PRETRAIN = "--data digits --out model --vae-steps 3 --dit-steps 3 --every 2"
TINY = "--hidden-size 32 --num-layers 1"
UNSTABLE = {"seconds", "commit"}


def command(folder, *arguments):
    "Run the command line from a folder, on one thread."
    arguments = [*map(str, arguments), "--device", "cpu"]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TQDM_DISABLE": "1",
        "MANIFOLDGD_CACHE": str(folder / "cache"),
    }
    program = "import sys; from manifoldgd.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}:\n{done.stderr}")


def hash_file(path):
    "SHA-256 of a file."
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hash_run(folder):
    "Hash the images of a run in the order of their names, and its tables."
    images = sorted((folder / "images").rglob("*.png"))
    listed = json.dumps([[p.relative_to(folder).as_posix(), hash_file(p)] for p in images])
    found = {"images": hashlib.sha256(listed.encode()).hexdigest()}
    for name in ("trace.csv", "metadata.jsonl", "gallery.png"):
        if (folder / name).exists():
            found[name] = hash_file(folder / name)
    return found


def stable_values(row):
    "A row of a table as text, without what may differ."
    return json.dumps({k: v for k, v in row.items() if k not in UNSTABLE}, sort_keys=True)


def stable_rows(path):
    "The rows of a table, in an order of their own."
    with open(path, newline="") as file:
        return sorted(map(stable_values, csv.DictReader(file)))


def runs_of_presets(folder):
    "Distil with every preset."
    for preset in PRESETS:
        trace = ["--trace"] if preset in TRACED else []
        for ipc in (1, 4):
            out = f"{preset}-ipc{ipc}"
            command(folder, "distill", "--preset", preset, "--ipc", ipc, "--out", out, *trace)
            yield out, hash_run(folder / out)


def runs_of_settings(folder):
    "Distil with other samplers and settings."
    for out, settings in OTHERS.items():
        command(folder, "distill", "--ipc", 2, "--out", out, "--trace", *settings.split())
        yield out, hash_run(folder / out)


def weights(folder):
    "Train a tiny backbone for three steps."
    command(folder, "pretrain", *PRETRAIN.split(), *TINY.split())
    for part in ("vae", "transformer"):
        path = folder / "model" / part / "diffusion_pytorch_model.safetensors"
        yield f"pretrained {part}", hash_file(path)


def tables(folder):
    "Evaluate and measure two of the runs."
    runs = ["manifoldgd-ipc1", "random-ipc1"]
    command(folder, "evaluate", *runs, "--seeds", 1)
    yield "results.csv", stable_rows(folder / "results.csv")
    command(folder, "metrics", *runs, "--draws", 2)
    yield "metrics.csv", stable_rows(folder / "metrics.csv")


def results():
    "Make everything, and return its hashes."
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in (runs_of_presets, runs_of_settings, weights, tables):
            found.update(part(Path(folder)))
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
