"""Wherever units are made, and whoever is killed meanwhile, the run has the same bytes."""
import dataclasses
import json
import math
import multiprocessing
import os
import random
import sys
import threading
import time

import pytest
import torch
from conftest import SLOW

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.cli import main
from manifoldgd.config.commands import EvaluateConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import to_pil
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.engine import PATIENCE, Engine, Lost, open_engine
from manifoldgd.distillation.estimate import dry_run
from manifoldgd.distillation.makers import SampledImages
from manifoldgd.distillation.units import Moments
from manifoldgd.errors import Failure, InputError
from manifoldgd.evaluation.accuracy import evaluate
from manifoldgd.sampling.pipeline import ManifoldGDPipeline

KILLS = 20 if SLOW else 3
CLASSES, IPC = 3, 4 + 10 * SLOW
HOUR_AGO = time.time() - 3600


class Lab:
    "A folder with data, a backbone and runs."

    def __init__(self, folder):
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        for c in range(CLASSES):
            (folder / "data" / str(c)).mkdir(parents=True)
            images = to_pil(torch.rand(IPC + 2, 3, 16, 16, generator=generator) * 2 - 1)
            for i, image in enumerate(images):
                path = folder / "data" / str(c) / f"{i:02}.png"
                image.save(path)
                os.utime(path, (HOUR_AGO, HOUR_AGO))  # old enough for its hash to be kept
        self.save_backbone(tiny_backbone(), "backbone")
        self.base = DistillConfig(
            data=str(folder / "data"),
            backbone=str(folder / "backbone"),
            ipc=IPC,
            num_inference_steps=40,
            batch_size=1,
            trace=True,
            device="cpu",
        )

    def save_backbone(self, backbone, name):
        "Write a backbone in diffusers layout."
        parts = (backbone.vae, backbone.transformer, backbone.scheduler, backbone.id2label)
        ManifoldGDPipeline(*parts).save_pretrained(self.folder / name)

    def config(self, name, **changes):
        "The settings of a run, some of them changed."
        return dataclasses.replace(self.base, out=str(self.folder / name), **changes)

    def run(self, name, **changes):
        "Make a run."
        return distill(self.config(name, **changes), progress=False)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    "A lab with a run that was made by one process without a stop."
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANIFOLDGD_CACHE", str(folder / "cache"))
        lab = Lab(folder)
        with torch_on_one_thread():
            lab.whole = contents(lab.run("whole"))
    return lab


@pytest.fixture
def lab(shared, monkeypatch):
    "The lab, with its cache."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(shared.folder / "cache"))
    with torch_on_one_thread():
        yield shared


class torch_on_one_thread:
    "The number of threads that two workers on two cores have."

    def __enter__(self):
        self.before = torch.get_num_threads()
        torch.set_num_threads(1)

    def __exit__(self, *exception):
        torch.set_num_threads(self.before)


def contents(folder):
    "Every file of a run and its bytes; of the manifest, what is not about where and how."
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    manifest = json.loads(files.pop("manifest.json"))
    for name in ("out", "workers", "engine"):
        manifest["config"].pop(name)
    return files | {"manifest": manifest}


# Sharing out, without processes

class FakeEngine(Engine):
    "Workers that are numbers, of which some are lost."

    def __init__(self, workers, lose):
        super().__init__(workers)
        self.lose = lose  # (worker, item) -> whether the worker is lost at it
        self.hired = 0
        self.most = 0

    def new_worker(self):
        self.hired += 1
        return self.hired, ("new", self.hired)

    def send(self, worker, function, item):
        return worker, function, item

    def wait(self, tickets):
        self.most = max(self.most, len(tickets))
        return tickets[0]

    def answer(self, ticket):
        if ticket[0] == "new":
            return None, None
        worker, function, item = ticket
        if self.lose(worker, item):
            raise Lost
        return function(item), None

    def close(self):
        self.idle, self.busy = [], {}


def test_every_item_is_done_once_and_no_more_than_fit_are_under_way():
    engine = FakeEngine(3, lambda worker, item: False)
    assert sorted(engine.map(str, range(50))) == [(i, str(i)) for i in range(50)]
    assert (engine.hired, engine.most) == (3, 3)
    assert list(engine.map(str, [])) == []


def test_the_item_of_a_lost_worker_is_given_to_another():
    engine = FakeEngine(2, lambda worker, item: worker in (1, 2) and item == 1)
    assert sorted(engine.map(str, range(4))) == [(i, str(i)) for i in range(4)]
    assert engine.hired > 2


def test_an_item_that_costs_too_many_workers_is_given_up():
    engine = FakeEngine(2, lambda worker, item: item == 1)
    with pytest.raises(Failure, match=f"{PATIENCE} workers ended without a word at item 1"):
        list(engine.map(str, range(4)))


@pytest.mark.parametrize("spec", ["spark", "local:8", "", "Ray"])
def test_an_engine_that_is_none(spec):
    with pytest.raises(InputError, match="`engine` to be one of local, ray"):
        open_engine(spec)


def test_without_ray_the_command_that_brings_it_is_named(lab, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"Install it with `pip install 'manifoldgd\[ray\]'`"):
        lab.run("no-ray", engine="ray")
    assert not (lab.folder / "no-ray").exists()


# Threads

def test_a_run_keeps_the_threads_it_began_with(lab, monkeypatch):
    seen, make = [], SampledImages.make

    def watched(self, *args):
        seen.append(torch.get_num_threads())
        if len(seen) == 2:
            raise KeyboardInterrupt
        return make(self, *args)

    monkeypatch.setattr(SampledImages, "make", watched)
    with pytest.raises(KeyboardInterrupt):
        lab.run("threads")
    torch.set_num_threads(2)
    out = lab.run("threads")
    assert set(seen) == {1}
    assert torch.get_num_threads() == 2
    assert contents(out) == lab.whole


# Processes

def kill_workers(count, run, stopped, kills):
    "Kill a worker at a random moment after each unit that is made, and note when."
    moments = random.Random(0)
    seen = 0
    while len(kills) < count and not stopped.is_set():
        there = len(list((run / "units").glob("*.json")))
        workers = multiprocessing.active_children()
        if there > seen and workers:
            seen = there
            time.sleep(moments.uniform(0, .2))
            moments.choice(workers).kill()
            kills.append(there)
        time.sleep(.005)


def test_workers_that_are_killed_change_nothing(lab, monkeypatch):
    # Chance may hit the same unit again and again.
    monkeypatch.setattr("manifoldgd.distillation.engine.PATIENCE", KILLS + 1)
    out, stopped, kills = lab.folder / "killed-workers", threading.Event(), []
    killer = threading.Thread(target=kill_workers, args=(KILLS, out, stopped, kills))
    killer.start()
    try:
        lab.run("killed-workers", workers=2)
    finally:
        stopped.set()
        killer.join()
    assert kills
    assert contents(out) == lab.whole


def test_an_error_in_a_worker_is_one_line(lab):
    wild = tiny_backbone()
    wild.transformer.proj_out_2.bias.data.fill_(3e38)  # finite, and its steps are not
    lab.save_backbone(wild, "overflowing")
    backbone = str(lab.folder / "overflowing")
    with pytest.raises(InputError, match=r"Class '\d', image \d") as caught:
        lab.run("wild", backbone=backbone, workers=2)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    manifest = json.loads((lab.folder / "wild" / "manifest.json").read_text())
    assert manifest["finished"] is False


def test_a_command_that_is_killed_at_random_moments(lab):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["manifoldgd.distillation.distill"])
    moments, config = random.Random(1), lab.config("killed")
    for _ in range(KILLS):
        process = context.Process(target=distill, args=(config, False))
        process.start()
        process.join(moments.uniform(.2, 2))
        process.kill()
        process.join()
    assert contents(distill(config, progress=False)) == lab.whole


# A cluster

@pytest.fixture
def cluster():
    "Two machines of one core, as Ray simulates them."
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'manifoldgd[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 80_000_000}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.nodes = [
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def remove_node(cluster, run):
    "Take a machine away when some units are there."
    while len(list((run / "units").glob("*.json"))) < 2:
        time.sleep(.01)
    cluster.remove_node(cluster.nodes[0], allow_graceful=False)


@pytest.mark.skipif(not SLOW, reason="a cluster takes a minute: SLOW=1")
def test_a_machine_that_is_lost_changes_nothing(lab, cluster, monkeypatch):
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(lab.folder / "new cache"))
    out = lab.folder / "cluster"
    remover = threading.Thread(target=remove_node, args=(cluster, out))
    remover.start()
    lab.run("cluster", engine="ray", workers=2)
    remover.join()
    assert contents(out) == lab.whole

    run = lab.run("digits", data="digits", preset="random", ipc=1, batch_size=50)
    rows = []
    for engine in ("local", "ray"):
        table = str(lab.folder / f"{engine}.csv")
        config = EvaluateConfig((str(run),), out=table, engine=engine, seeds=1, device="cpu")
        rows.append(evaluate(config, progress=False).iloc[0].to_dict())
    assert rows[0] | {"seconds": 0} == pytest.approx(rows[1] | {"seconds": 0}, nan_ok=True)



# A dry run

def test_a_dry_run_makes_nothing_and_says_what_is_there(lab, capsys):
    before = sorted(p for p in lab.folder.rglob("*") if p.suffix != ".json")
    arguments = ["distill", "--dry-run", "--data", str(lab.folder / "data"), "--backbone",
                 str(lab.folder / "backbone"), "--ipc", str(IPC), "--out", str(lab.folder / "dry"),
                 "--num-inference-steps", "40", "--batch-size", "5", "--device", "cpu"]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    images, units = CLASSES * IPC, math.ceil(CLASSES * IPC / 5)
    assert f"{images} images of 3 classes, in {units} units of at most 5" in told
    assert "latents: 3 classes in the cache, 0 to encode" in told
    assert f"units: 0 there, {units} to make" in told
    assert told.endswith("Nothing was made.\n")
    assert sorted(p for p in lab.folder.rglob("*") if p.suffix != ".json") == before


def test_a_dry_run_of_a_finished_run_has_nothing_to_do(lab):
    outlook = dry_run(lab.config("whole"))
    assert outlook.session.missing() == []
    assert outlook.seconds["images"] == 0
    assert "latents" not in outlook.seconds


def test_a_dry_run_finds_the_mistakes_of_a_run(lab):
    with pytest.raises(InputError, match="fewer in 0"):
        dry_run(lab.config("large", ipc=IPC + 3))
    with pytest.raises(InputError, match="Expected `dry_run` to be False"):
        lab.run("dry", dry_run=True)


# The spread of the real latents

def test_the_spread_of_a_bank_is_measured_once(lab, monkeypatch):
    spread = json.loads((lab.folder / "whole" / "manifest.json").read_text())["real_spread"]
    calls, of = [], Moments.of
    monkeypatch.setattr(Moments, "of", lambda x: calls.append(len(x)) or of(x))
    out = lab.run("seed", seed=1)
    assert json.loads((out / "manifest.json").read_text())["real_spread"] == spread
    assert calls == [1] * CLASSES * IPC  # of the finished units, not of the bank
