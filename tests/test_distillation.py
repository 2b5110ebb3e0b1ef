"""A run is never mixed with another, never taken over, and not begun if it cannot be finished."""
import dataclasses
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import to_pil
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.estimate import dry_run
from manifoldgd.distillation.makers import DecodedImages, ReferenceMethod
from manifoldgd.distillation.runs import read_run
from manifoldgd.distillation.units import Unit
from manifoldgd.errors import InputError
from manifoldgd.prototypes.levels import Prototypes
from manifoldgd.sampling.pipeline import ManifoldGDPipeline


def save_backbone(backbone, folder):
    "Write a backbone in diffusers layout."
    parts = (backbone.vae, backbone.transformer, backbone.scheduler, backbone.id2label)
    ManifoldGDPipeline(*parts).save_pretrained(folder)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    "Three small classes, a tiny backbone, and a function that distils with changed settings."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    for c in range(3):
        (tmp_path / "data" / str(c)).mkdir(parents=True)
        images = to_pil(torch.rand(5, 3, 16, 16, generator=generator) * 2 - 1)
        for i, image in enumerate(images):
            image.save(tmp_path / "data" / str(c) / f"{i:02}.png")
    save_backbone(tiny_backbone(), tmp_path / "backbone")
    base = DistillConfig(data=str(tmp_path / "data"), backbone=str(tmp_path / "backbone"), ipc=2,
                         num_inference_steps=4, device="cpu")

    def run(name, **changes):
        config = dataclasses.replace(base, out=str(tmp_path / name), **changes)
        return distill(config, progress=False)

    return tmp_path, run


def contents(folder):
    "Every file of a folder and its bytes."
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("changes, words", [
    ({"strength": .3}, "differs in strength"),
    ({"preset": "random"}, "differs in preset, images"),
    ({"seed": 1}, "differs in seed"),
    ({"ipc": 3}, "differs in ipc"),
])
def test_another_run_in_the_same_folder(lab, changes, words):
    folder, run = lab
    before = contents(run("run"))
    with pytest.raises(InputError, match=words):
        run("run", **changes)
    assert contents(folder / "run") == before


def test_a_run_that_was_begun_before_a_setting_existed(lab):
    _, run = lab
    made = run("run")
    path = made / "manifest.json"
    manifest = json.loads(path.read_text())
    group = read_run(made).group
    for name in ("reference", "memory"):
        del manifest["config"][name]
    path.write_text(json.dumps(manifest))
    assert read_run(made).group == group
    assert run("run") == made


def test_a_folder_with_other_files_is_not_taken_over(lab):
    folder, run = lab
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        run("taken")
    with pytest.raises(InputError, match="but it is a file"):
        run("taken/thesis.txt")
    assert [p.name for p in (folder / "taken").iterdir()] == ["thesis.txt"]


def test_an_unreadable_image_leaves_nothing_behind(lab):
    folder, run = lab
    whole = contents(run("whole") / "images")
    broken = folder / "data" / "2" / "00.png"
    saved = broken.read_bytes()
    broken.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"1 of 15 training images of data cannot .*: 2/00.png"):
        run("mended", strict=True)
    broken.write_bytes(saved)
    assert contents(run("mended", strict=True) / "images") == whole


def test_a_damaged_image_is_left_out_and_listed(lab):
    folder, run = lab
    broken = folder / "data" / "2" / "00.png"
    saved = broken.read_bytes()
    broken.write_bytes(saved[:60])
    with pytest.warns(UserWarning, match="1 of 15 training images of data cannot be read"):
        made = contents(run("skipping") / "images")
    manifest = json.loads((folder / "skipping" / "manifest.json").read_text())
    assert [entry["file"] for entry in manifest["skipped"]] == ["2/00.png"]
    assert manifest["skipped"][0]["reason"]

    broken.unlink()
    assert contents(run("without") / "images") == made
    manifest = json.loads((folder / "without" / "manifest.json").read_text())
    assert manifest["skipped"] == []
    broken.write_bytes(saved)


def test_where_the_data_stand_does_not_matter(lab):
    folder, run = lab
    moved = shutil.copytree(folder / "data", folder / "moved")
    before = contents(run("run"))
    run("run", data=str(moved))
    assert contents(folder / "run") == before


@pytest.mark.parametrize("changes, words", [
    ({"ipc": 6}, r"fewer in 0 \(5\), 1 \(5\), 2 \(5\)\. Lower .* with `--classes`"),
    ({"num_inference_steps": 0}, "`num_inference_steps` to be between 1 and 1000"),
])
def test_what_cannot_be_done_is_not_begun(lab, changes, words):
    folder, run = lab
    with pytest.raises(InputError, match=words):
        run("run", **changes)
    assert not (folder / "run").exists()


def test_a_network_that_overflows(lab):
    folder, run = lab
    wild = tiny_backbone()
    wild.transformer.proj_out_2.bias.data.fill_(3e38)  # finite, and its steps are not
    save_backbone(wild, folder / "overflowing")
    with pytest.raises(InputError, match="Class '0', image 0"):
        run("wild", backbone=str(folder / "overflowing"))


def test_random_photographs_keep_their_size_and_need_no_backbone(lab):
    folder, run = lab
    for i in range(5):
        Image.new("RGB", (40, 30 + i), (9 * i, 99, 0)).save(folder / "data/2" / f"{i:02}.png")
    out = run("copies", preset="random", backbone="no/such/backbone")
    lines = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    for line in lines:
        copy = np.asarray(Image.open(out / line["file_name"]))
        assert (copy == np.asarray(Image.open(folder / "data" / line["source"]))).all()
    assert {Image.open(p).size[0] for p in out.rglob("images/*/*.png")} == {16, 40}


@pytest.mark.parametrize("damage, words", [
    (lambda run: (run / "manifest.json").unlink(), "it has no manifest.json"),
    (lambda run: (run / "manifest.json").write_text("{"), "could not be understood"),
    (lambda run: (run / "manifest.json").write_text('{"config": {}}'), "could not be understood"),
    (lambda run: shutil.copy(run / "images/1/00000.png", run / "images/1/7.png"), "1/7.png was"),
    (lambda run: (run / "images/1/00000.png").unlink(), "images/1/00000.png is missing"),
    (lambda run: (run / "images/1").rename(run / "images/one"), "1/00000.png is missing"),
])
def test_a_run_that_is_not_whole_is_not_read(lab, damage, words):
    _, run = lab
    out = run("run")
    damage(out)
    with pytest.raises(InputError, match=words):
        read_run(out)


def test_an_unfinished_run_is_not_read(lab):
    _, run = lab
    out = run("run")
    manifest = (out / "manifest.json").read_text()
    stopped = manifest.replace('"finished": true', '"finished": false')
    (out / "manifest.json").write_text(stopped)
    with pytest.raises(InputError, match="Expected a finished run"):
        read_run(out)


class FirstLatents(ReferenceMethod):
    "A reference for these tests: it keeps the first real latents of a class and decodes them."

    reads_latents = True

    def __init__(self):
        self.kept, self.times = None, 0

    def cut(self, jobs, size):
        folders = sorted({job.folder for job in jobs})
        parts = [tuple(job for job in jobs if job.folder == folder) for folder in folders]
        return [Unit(number, part) for number, part in enumerate(parts)]

    def is_prepared(self, materials):
        return self.kept is not None

    def prepare(self, materials, progress=False):
        if not self.is_prepared(materials):
            classes = range(len(materials.data.classes))
            self.kept = [materials.bank.of_class(c).flatten(1) for c in classes]
            self.times += 1

    def maker(self, materials):
        unknown = [None] * materials.config.ipc
        prototypes = [Prototypes(kept, unknown, unknown, [], "first") for kept in self.kept]
        return DecodedImages(materials.backbone, prototypes)


@pytest.fixture
def first_latents(monkeypatch):
    "Put a reference in the place of `minimax`."
    page = type(sys)("manifoldgd.references.minimax")
    page.METHOD = FirstLatents()
    monkeypatch.setitem(sys.modules, page.__name__, page)
    return page.METHOD


def test_a_reference_cuts_the_plan_prepares_once_and_makes_the_images(lab, first_latents):
    folder, run = lab
    made = run("run", preset="minimax", batch_size=5)
    units = sorted(path.name for path in (made / "units").glob("*.json"))
    assert units == ["00000.json", "00001.json", "00002.json"]  # the plan has two of five images
    assert json.loads((made / "manifest.json").read_text())["config"]["reference"] == "minimax"
    before = contents(made)
    (made / "units" / "00001.json").unlink()
    assert contents(run("run", preset="minimax", batch_size=5)) == before
    assert first_latents.times == 1
    assert contents(made / "images") != contents(run("plain", preset="dit") / "images")


def test_a_run_that_is_whole_asks_its_reference_for_nothing(lab, first_latents):
    _, run = lab
    before = contents(run("run", preset="minimax"))
    first_latents.kept = None
    assert contents(run("run", preset="minimax")) == before
    assert first_latents.times == 1


def test_a_reference_has_no_dry_run(lab, first_latents):
    _, run = lab
    with pytest.raises(InputError, match="without a reference for a dry run, but got 'minimax'"):
        dry_run(DistillConfig(preset="minimax"))
