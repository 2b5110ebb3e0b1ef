"""Measure engines, the dry run and the plan of a large run; write results/engine.csv.

    OMP_NUM_THREADS=1 python experiments/engine.py [--only FIGURE ...]

Every figure is a row that is not measured again; delete it to repeat it. Every run is made in a
process of its own from the embedded digits, with one of torch's threads for each worker, and timed
from the call of `distill`: imports of the command are not counted, those of its workers are. The
seconds mean something on an idle machine with two cores only; `two_cores` says how much more two
busy threads got done than one, before and after. Ray is needed: pip install 'manifoldgd[ray]'.

"workers": the same run by one process, by two local workers and by two of Ray (8 minutes).
"overhead": one process against Ray with one worker, for a run of ten seconds and for one unit.
"estimate": what `dry_run` says before anything is in the cache, against what the run then takes.
"node": a cluster of two simulated machines, and the same with one of them lost in the middle.
"kills": 20 workers of a local engine killed with SIGKILL at random moments.
"plan": ImageNet-1K in numbers: 1,000 classes, 50,000 images in 1,000 units, 1.28 million files that
exist as names only; seconds of each part that is not reading, encoding or sampling, and memory.

`identical` compares all files of a run with those of one process, but for the manifest's settings.
The page of this name among the experiments reads the table.
"""
import hashlib
import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from encoding_speed import two_cores
from PIL import Image

from ledger import Ledger, new_parser, provenance
from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.backbones.latents import name_shards
from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.core import Remembered, cache_folder, sealed
from manifoldgd.data.images import FolderImages, class_fingerprints
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.estimate import dry_run
from manifoldgd.distillation.runs import (
    RunFolder,
    finish,
    is_complete,
    new_manifest,
    read_run,
    record_digest,
)
from manifoldgd.distillation.units import cut, plan

LONG = {"ipc": 40, "batch_size": 20, "num_inference_steps": 400}  # 20 units
MIDDLE = {"ipc": 40, "batch_size": 20, "num_inference_steps": 150}
TEN_SECONDS = {"ipc": 20, "batch_size": 20, "num_inference_steps": 50}
ONE_UNIT = {"ipc": 2, "batch_size": 20, "num_inference_steps": 50}
KILLS = 20
STORE = 80_000_000  # bytes of Ray's object store on a simulated machine
HOUR_AGO = time.time_ns() - 3600 * 10**9
CLASSES, FILES, IPC, UNIT, STEPS = 1_000, 1_281, 50, 50, 25  # ImageNet-1K, in numbers


def settings(out: Path, **changes) -> DistillConfig:
    "Describe a run of the digits with a trace."
    return DistillConfig(out=str(out), device="cpu", trace=True, **changes)


def contents(folder: Path) -> dict:
    "Read every file of a run; of the manifest, what is not about where and how."
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    for name in ("out", "workers", "engine"):
        manifest["config"].pop(name)
    return files | {"manifest": manifest}


def timed(function) -> float:  # seconds
    "Time a call."
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# What is measured, each in a process of its own

def make_run(out: str, changes: str) -> dict:
    "Make a run."
    config = settings(Path(out), **json.loads(changes))
    return {"seconds": timed(lambda: distill(config, progress=False))}


def estimate_run(out: str, changes: str) -> dict:
    "Estimate a run, and then make it."
    config = settings(Path(out), **json.loads(changes))
    outlook = dry_run(config)
    taken = timed(lambda: distill(config, progress=False))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    places = (Path(out), cache_folder())
    wrote = sum(p.stat().st_size for place in places for p in place.rglob("*") if p.is_file())
    return {
        "seconds": taken,
        "estimate": outlook.total,
        "memory_mb": peak,
        "memory_estimate_mb": outlook.memory / 1e6,
        "disk_mb": wrote / 1e6,
        "disk_estimate_mb": outlook.disk / 1e6,
    }


def run_in_cluster(out: str, changes: str, lose: str) -> dict:
    "Make a run on two simulated machines; take one away in the middle if wanted."
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=STORE) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    config = settings(Path(out), engine="ray", workers=2, **json.loads(changes))
    units = config.ipc * 10 // config.batch_size

    def lose_one():
        while len(list(Path(out, "units").glob("*.json"))) < units // 2:
            time.sleep(.05)
        cluster.remove_node(nodes[0], allow_graceful=False)

    if lose == "lose":
        threading.Thread(target=lose_one, daemon=True).start()
    seconds = timed(lambda: distill(config, progress=False))
    ray.shutdown()
    cluster.shutdown()
    return {"seconds": seconds}


def kill_workers(out: str, changes: str) -> dict:
    "Make a run with two workers, of which one is killed again and again."
    config = settings(Path(out), workers=2, **json.loads(changes))
    moments, kills, done = random.Random(0), [], threading.Event()

    def kill():
        seen = 0
        while len(kills) < KILLS and not done.is_set():
            there = len(list(Path(out, "units").glob("*.json")))
            workers = multiprocessing.active_children()
            if there > seen and workers:
                seen = there
                time.sleep(moments.uniform(0, 2))
                moments.choice(workers).kill()
                kills.append(there)
            time.sleep(.01)

    killer = threading.Thread(target=kill)
    killer.start()
    seconds = timed(lambda: distill(config, progress=False))
    done.set()
    killer.join()
    return {"seconds": seconds, "n": len(kills)}


# ImageNet-1K in numbers

class Stubs(FolderImages):
    "Files that exist as names, with a size and a time."

    def facts(self, c: int) -> list:
        "What the system would say of the files of a class."
        return [[self.files[i], 110_000, HOUR_AGO] for i in self.of_class(c).tolist()]


def stub_data() -> Stubs:
    "Name the files of all classes."
    folders = [f"n{c:08}" for c in range(CLASSES)]
    found = {name: [f"{name}/{name}_{i}.JPEG" for i in range(FILES)] for name in folders}
    return Stubs("/stubs", "stubs", found)


def remember(data: Stubs):
    "Put fingerprints of all classes where those of an earlier run would be."
    known = Remembered("hashes", data.name, data.place)
    known.path.parent.mkdir(parents=True, exist_ok=True)
    folders = [info.folder for info in data.classes]
    known.path.write_text(json.dumps(
        {name: sealed(name, data.stamp(c), f"{c:064}") for c, name in enumerate(folders)}))


def write_shards(shards: list):
    "Write latents of all classes."
    for shard in shards:
        shard.write(torch.zeros(shard.shape))


def trace_of(unit) -> str:
    "Write the trace of a unit as its maker would."
    columns = "image,step,t,abar,tangent,normal,x0,push,push_to_noise"
    numbers = ",".join(["0.12345"] * 6)
    rows = [f"{job.name},{step},{step},{numbers}" for job in unit.jobs for step in range(STEPS)]
    return "\n".join([columns, *rows]) + "\n"


def write_units(run: RunFolder, units: list):
    "Write the records of all units, and images that are one and the same file."
    stub = run.path / "stub.png"
    run.path.mkdir(parents=True)
    (run.path / "units").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(stub)
    digest = hashlib.sha256(stub.read_bytes()).hexdigest()
    for unit in units:
        for job in unit.jobs:
            path = run.path / job.name
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(stub, path)
        lines = [{"file_name": job.name, "label": job.c, "wnid": job.folder, "prototype": job.k,
                  "class_name": job.folder, "class_folder": job.folder, "node": 1, "depth": 2,
                  "seed": 0, "preset": "manifoldgd"} for job in unit.jobs]
        record = {
            "images": {job.name: digest for job in unit.jobs},
            "lines": lines,
            "trace": trace_of(unit),
            "moments": [1000, 0., 1000.],
        }
        record["digest"] = record_digest(record)
        (run.path / unit.name).write_text(json.dumps(record))
    stub.unlink()


def plan_imagenet(out: str) -> dict:
    "Time what a run of ImageNet-1K does beside reading, encoding and sampling."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    parts, run, busy = {}, RunFolder(Path(out)), 0.
    config = resolve(DistillConfig(ipc=IPC, batch_size=UNIT, out=out))

    def count(name, function):
        nonlocal busy
        start, cpu = time.perf_counter(), time.process_time()
        result = function()
        parts[f"{name}_s"] = round(time.perf_counter() - start, 2)
        busy += time.process_time() - cpu
        return result

    def begin():
        data = stub_data()
        units = cut(plan(data.classes, IPC), UNIT)
        rest = (data, list(range(CLASSES)), ("data", "backbone"))
        return data, units, new_manifest(config, *rest)

    data, units, manifest = count("plan", begin)

    remember(data)
    prints = count("fingerprints", lambda: class_fingerprints(data))
    shards = name_shards(tiny_backbone(), data, prints)
    write_shards(shards)
    count("latents", lambda: [shard.is_whole() for shard in shards])
    write_units(run, units)
    count("units", lambda: [is_complete(run, unit) for unit in units])
    count("finish", lambda: finish(run, units, manifest))
    count("read", lambda: read_run(run.path))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    whole = {"seconds": sum(parts.values()), "cpu_s": busy}
    return parts | whole | {"memory_mb": peak, "imports_mb": before}


MEASURES = {f.__name__: f for f in (make_run, estimate_run, run_in_cluster, kill_workers,
                                    plan_imagenet)}


def measured(name: str, out: Path, *args) -> dict:
    "Call one of the functions above in a new process with an empty cache."
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TQDM_DISABLE": "1",
            "MANIFOLDGD_CACHE": cache,
        }
        command = [sys.executable, __file__, "--measure", name, str(out), *args]
        done = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# The table

class Notes:
    "The rows of the table, shown as they are measured."

    def __init__(self, out: Path):
        self.ledger = Ledger(out, key=("what", "how"), float_format="%.4g")
        self.origin = provenance("command", "machine", "torch", "commit")

    def add(self, what: str, how: str, measure):
        "Measure a row and write it, if it is not there."
        key = {"what": what, "how": how}
        if key in self.ledger:
            return
        before = two_cores()
        values = measure()
        control = {"two_cores": round(min(before, two_cores()), 2)}
        self.ledger.add(key | values | control | self.origin)
        print(*(key | values | control).items())


def measure_workers(notes: Notes, work: Path):
    "Compare two workers with one."
    def one():
        return measured("make_run", work / "one", json.dumps(LONG))

    def two(engine):
        def measure():
            if not (work / "one").exists():
                one()
            out = work / f"two-{engine}"
            more = LONG | {"engine": engine, "workers": 2}
            found = measured("make_run", out, json.dumps(more))
            return found | {"identical": contents(out) == contents(work / "one")}

        return measure

    notes.add("workers", "one process", one)
    notes.add("workers", "two local workers", two("local"))
    notes.add("workers", "two workers of Ray", two("ray"))


def measure_overhead(notes: Notes, work: Path):
    "Compare one process with Ray's one worker on short runs."
    for name, changes in (("ten seconds", TEN_SECONDS), ("one unit", ONE_UNIT)):
        for engine in ("local", "ray"):
            out = work / f"{name}-{engine}"
            more = json.dumps(changes | {"engine": engine, "workers": 1})
            notes.add("overhead", f"{name}, {engine}",
                      lambda out=out, more=more: measured("make_run", out, more))


def measure_estimate(notes: Notes, work: Path):
    "Compare an estimate with what a run takes."
    cases = {
        "one process": MIDDLE,
        "two local workers": MIDDLE | {"workers": 2},
        "one process, decoded": {"preset": "decoded", "ipc": 40},
    }
    for name, changes in cases.items():
        more, out = json.dumps(changes), work / f"estimate-{name}"
        notes.add("estimate", name,
                  lambda out=out, more=more: measured("estimate_run", out, more))


def measure_node(notes: Notes, work: Path):
    "Say what the loss of a machine costs."
    for how in ("keep", "lose"):
        out = work / f"cluster-{how}"

        def measure(how=how, out=out):
            found = measured("run_in_cluster", out, json.dumps(MIDDLE), how)
            if how == "lose":
                found["identical"] = contents(out) == contents(work / "cluster-keep")
            return found

        notes.add("node", "both machines stay" if how == "keep" else "one is lost", measure)


def measure_kills(notes: Notes, work: Path):
    "Kill workers, and compare with a run that nobody disturbed."
    def measure():
        changes = MIDDLE | {"batch_size": 10}
        measured("make_run", work / "undisturbed", json.dumps(changes))
        found = measured("kill_workers", work / "disturbed", json.dumps(changes))
        same = contents(work / "disturbed") == contents(work / "undisturbed")
        return found | {"identical": same}

    notes.add("kills", "SIGKILL of a worker at random moments", measure)


def measure_plan(notes: Notes, work: Path):
    "Time the plan of a large run."
    notes.add("plan", "ImageNet-1K in numbers",
              lambda: measured("plan_imagenet", work / "imagenet"))


FIGURES = {
    "workers": measure_workers,
    "overhead": measure_overhead,
    "estimate": measure_estimate,
    "node": measure_node,
    "kills": measure_kills,
    "plan": measure_plan,
}


def main():
    "Measure all figures, or some of them."
    if sys.argv[1:2] == ["--measure"]:
        name, *args = sys.argv[2:]
        print(json.dumps(MEASURES[name](*args)))
        return
    parser = new_parser(__doc__, "engine")
    parser.add_argument("--only", nargs="+", choices=FIGURES, default=list(FIGURES))
    args = parser.parse_args()
    notes = Notes(args.out)
    for name in args.only:
        with tempfile.TemporaryDirectory() as work:
            FIGURES[name](notes, Path(work))


if __name__ == "__main__":
    main()
