"""A report is whole and safe, shows what is there, says what is not, and replaces nothing else."""
import base64
import dataclasses
import io
import json
import re
import shlex
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.backbones.licences import UNKNOWN, find_licence
from manifoldgd.cli import main, parse
from manifoldgd.config.commands import MetricsConfig, ReportConfig
from manifoldgd.config.presets import DistillConfig, resolve, same_run
from manifoldgd.core import to_pil
from manifoldgd.data.sources import source_of
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.runs import image_hashes, read_run
from manifoldgd.errors import InputError
from manifoldgd.evaluation.accuracy import COLUMNS as RESULTS
from manifoldgd.evaluation.measurement import measure_runs
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sharing.origin import distill_command
from manifoldgd.sharing.report import write_reports

VOID = {"meta", "link", "img", "br"}
LOST = "no nearest real images, no trees and no coverage"
pytestmark = pytest.mark.filterwarnings("ignore:Expected")  # the reasons of what is missing


class Page(HTMLParser):
    "What stands in a page, and that every tag is closed where it was opened."

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words = [], [], {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open:
            self.words.setdefault(self.open[-1], []).append(text.strip())

    def all(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]

    def pictures(self, real):
        "The images of the runs, or the real ones beside them."
        own = [image for image in self.all("img") if ("real" in image.get("class", "")) == real]
        raw = [base64.b64decode(image["src"].partition("base64,")[2]) for image in own]
        return [Image.open(io.BytesIO(picture)) for picture in raw]

    @property
    def notes(self):
        return " ".join(self.words.get("li", [])[:9])


def save_images(folder, n, size, seed=0):
    "Write random images into a class folder."
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    for i, image in enumerate(to_pil(torch.rand(n, 3, *size, generator=generator) * 2 - 1)):
        image.save(folder / f"{i:02}.png")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Three small classes, a tiny backbone, and a function that distils with changed settings."
    folder = tmp_path_factory.mktemp("lab")
    for c in range(3):
        save_images(folder / "data" / str(c), 5, (16, 16), seed=c)
    backbone = tiny_backbone()
    parts = (backbone.vae, backbone.transformer, backbone.scheduler, backbone.id2label)
    ManifoldGDPipeline(*parts).save_pretrained(folder / "backbone")
    base = DistillConfig(data=str(folder / "data"), backbone=str(folder / "backbone"), ipc=2,
                         num_inference_steps=4, device="cpu")

    def run(name, **changes):
        config = dataclasses.replace(base, out=str(folder / name), **changes)
        return distill(config, progress=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANIFOLDGD_CACHE", str(folder / "cache"))
        patch.chdir(folder)  # where no results.csv and no metrics.csv are
        yield folder, run


@pytest.fixture(scope="module")
def guided(lab):
    _, run = lab
    return run("guided", trace=True)


@pytest.fixture(scope="module")
def others(lab):
    _, run = lab
    return [run("decoded", preset="decoded"), run("random", preset="random"),
            run("other seed", seed=1)]


@pytest.fixture
def copy(guided, tmp_path):
    "The guided run without its trace, to be damaged."
    ignored = shutil.ignore_patterns("trace.csv", "report.html")
    shutil.copytree(guided, tmp_path / "copy", ignore=ignored)
    return tmp_path / "copy"


def report(*runs, **options):
    "Write a report, and read it."
    config = ReportConfig(tuple(map(str, runs)), device="cpu", **options)
    return Page(write_reports(config, progress=False)[0].read_text())


@pytest.fixture(scope="module")
def pages(guided, others, tmp_path_factory):
    "A report of one run, and one of several."
    out = tmp_path_factory.mktemp("pages") / "all.html"
    return {"one": report(guided), "several": report(guided, *others, out=str(out))}


@pytest.fixture(params=["one", "several"])
def page(request, pages):
    return pages[request.param]


# What every report is

def test_nothing_is_fetched_and_nothing_runs(page):
    refers = [a[name] for _, a in page.tags for name in ("src", "href") if name in a]
    assert refers and all(address.startswith(("data:", "#")) for address in refers)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "object", "form"})
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    style = " ".join(page.words["style"])
    assert "url(" not in style and "@import" not in style
    [policy] = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policy.startswith("default-src 'none'")


def test_who_cannot_see_is_told(page):
    assert page.all("html") == [{"lang": "en"}]
    assert all(image["alt"] for image in page.all("img"))
    assert all(drawing["aria-label"] for drawing in page.all("svg"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(next_ <= level + 1 for level, next_ in zip(levels, levels[1:]))


def test_places_in_the_page(page):
    names = [a["id"] for _, a in page.tags if "id" in a]
    assert len(set(names)) == len(names)
    wanted = {a["href"][1:] for a in page.all("a")}
    wanted |= {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert wanted <= set(names)


def test_every_image_is_in_it(guided, pages):
    stored = [Image.open(path) for path in sorted((guided / "images").rglob("*.png"))]
    shown = pages["one"].pictures(real=False)[:6]
    assert [image.tobytes() for image in shown] == [image.tobytes() for image in stored]
    assert len(pages["one"].pictures(real=True)) == 6
    assert len(pages["several"].pictures(real=True)) == 18  # random images have no prototypes


def test_runs_that_share_their_trees(pages):
    assert len(pages["one"].all("svg")) == 3
    assert len(pages["several"].all("svg")) == 6  # guided and decoded share, the other seed differs
    assert "manifoldgd, seed 0" in pages["several"].words["h4"]


def test_the_same_bytes_again(guided, lab):
    folder, _ = lab
    config = ReportConfig((str(guided),), device="cpu")
    first, second = (write_reports(config, progress=False)[0].read_text() for _ in range(2))
    assert first == second
    assert str(folder) not in first, "Expected no path of this machine in a report."


def test_the_report_is_no_part_of_the_run(guided):
    report(guided)
    assert (guided / "report.html").exists()
    assert len(read_run(guided).data) == 6


def test_copies_of_real_images_are_their_own_nearest(lab):
    _, run = lab
    page = report(run("nearest", preset="decoded", images="real"))
    own, real = page.pictures(real=False), page.pictures(real=True)
    assert len(own) == 6
    assert [image.tobytes() for image in own] == [image.tobytes() for image in real]


# What it cannot show

def test_data_that_moved(copy, lab, tmp_path):
    folder, _ = lab
    shutil.copytree(folder / "data", tmp_path / "moved")
    (folder / "data").rename(folder / "gone")
    try:
        page = report(copy)
        found = report(copy, data=str(tmp_path / "moved"))
    finally:
        (folder / "gone").rename(folder / "data")
    assert "could not be opened" in page.notes and LOST in page.notes
    assert str(folder) not in page.notes
    assert len(page.pictures(real=False)) == 6 and not page.pictures(real=True)
    assert "depth 1" in page.words["span"], "Expected the depths that the run wrote down."
    assert any("the depth of its node there" in words for words in page.words["p"])
    assert not found.words.get("li", [""])[0].startswith("manifoldgd:")
    assert len(found.pictures(real=True)) == 6


def test_other_data_are_not_taken_for_those_of_the_run(copy, lab, tmp_path):
    folder, _ = lab
    shutil.copytree(folder / "data", tmp_path / "more")
    Image.new("RGB", (16, 16)).save(tmp_path / "more" / "0" / "new.png")
    page = report(copy, data=str(tmp_path / "more"))
    assert "changed since the run was made" in page.notes
    assert not page.pictures(real=True) and not page.all("svg")


def test_a_backbone_that_is_gone(copy):
    page = report(copy, backbone="no/such/backbone/here")
    assert "The backbone no/such/backbone/here could not be opened" in page.notes
    assert not page.pictures(real=True) and not page.all("svg")


def test_prototypes_of_another_version(copy):
    lines = (copy / "metadata.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    first["node"] += 1
    (copy / "metadata.jsonl").write_text("\n".join([json.dumps(first), *lines[1:]]))
    page = report(copy)
    assert "not those of the run" in page.notes
    assert not page.pictures(real=True) and not page.all("svg")


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"label": 0}'])
def test_metadata_that_are_lost(copy, content):
    (copy / "metadata.jsonl").unlink()
    if content is not None:
        (copy / "metadata.jsonl").write_text(content)
    page = report(copy)
    assert "metadata.jsonl of the run could not be read" in page.notes
    assert not any("depth" in words for words in page.words["span"])


@pytest.mark.parametrize("content", ["", "image,step\n", "a,b\n1,2\n", "image,step,mode\na,0,b\n"])
def test_a_trace_that_cannot_be_drawn(copy, content):
    (copy / "trace.csv").write_text(content)
    page = report(copy)
    assert "trace.csv holds no guidance" in page.notes
    assert "Trace" not in page.words["h2"]


def test_a_run_without_guidance_and_with_a_trace(lab):
    _, run = lab
    page = report(run("plain", preset="dit", trace=True))
    assert "Trace" not in page.words["h2"]
    assert not page.all("svg")


@pytest.mark.parametrize("name", ["results", "metrics"])
def test_a_table_that_is_something_else(copy, tmp_path, name):
    (tmp_path / "thesis.csv").write_text("years,of,work\n")
    page = report(copy, **{name: str(tmp_path / "thesis.csv")})
    assert ".../thesis.csv could not be read" in page.notes
    with pytest.raises(InputError, match=f"`{name}` to be a table, but there is no file nowhere"):
        report(copy, **{name: "nowhere.csv"})


def test_damaged_images_are_counted(copy):
    assert "damaged images left out" not in report(copy).words["th"]
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["skipped"] = [{"file": "0/cut.png", "reason": "image file is truncated"}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "damaged images left out" in report(copy).words["th"]


# Names that are not harmless

def test_names_are_escaped(lab, tmp_path):
    names = ["a <b>bold claim", 'she said "no" & left', "<script>alert(1)"]
    for i, name in enumerate(names):
        save_images(tmp_path / "data" / name, 3, (16, 16), seed=i)
    config = DistillConfig(data=str(tmp_path / "data"), preset="random", ipc=1,
                           out=str(tmp_path / "<i>run"))
    page = report(distill(config, progress=False))
    assert sorted(page.words["h3"][:3]) == sorted(f"Class {name}" for name in names)
    assert not page.all("b") and not page.all("i") and not page.all("script")
    assert any(names[1] in image["alt"] for image in page.all("img"))


# Large ones

def test_classes_of_imagenet_bring_its_terms(lab, tmp_path):
    save_images(tmp_path / "data" / "n01440764", 2, (16, 16))
    config = DistillConfig(data=str(tmp_path / "data"), preset="random", ipc=1,
                           out=str(tmp_path / "run"))
    page = report(distill(config, progress=False))
    assert any("non-commercial research" in words for words in page.words["p"])
    assert not any(UNKNOWN in words for words in page.words["p"])


def test_photographs_are_shrunk_and_counted(lab, tmp_path):
    save_images(tmp_path / "data" / "one", 12, (200, 260))
    config = DistillConfig(data=str(tmp_path / "data"), preset="random", ipc=12,
                           out=str(tmp_path / "run"))
    page = report(distill(config, progress=False))
    shown = page.pictures(real=False)
    assert [image.size for image in shown] == [(128, 98)] * 10
    assert {image.format for image in shown} == {"JPEG"}
    assert "The first 10 of 12 images" in " ".join(page.words["p"])


def test_many_classes(lab, tmp_path):
    for i in range(23):
        save_images(tmp_path / "data" / f"{i:02}", 1, (16, 16), seed=i)
    config = DistillConfig(data=str(tmp_path / "data"), preset="random", ipc=1,
                           out=str(tmp_path / "run"))
    page = report(distill(config, progress=False))
    assert "Class 19" in page.words["h3"] and "Class 20" not in page.words["h3"]
    assert "first 20 of 23 classes" in " ".join(page.words["p"])


def test_the_digits_stay_below_three_megabytes(tmp_path):
    config = DistillConfig(preset="decoded", out=str(tmp_path / "run"), device="cpu")
    run = distill(config, progress=False)
    [path] = write_reports(ReportConfig((str(run),), device="cpu"), progress=False)
    assert path.stat().st_size < 3_000_000
    assert len(Page(path.read_text()).pictures(real=True)) == 100


# What was asked, and where it comes from

@pytest.mark.parametrize("settings", [
    {},
    {"preset": "paper", "ipc": 1, "seed": 7},
    {"preset": "dit", "guidance_scale": 1.5, "cfg_channels": 3},
    {"strength": -.5, "adaptive": True, "tangent_dim": 4, "projection": "annealed"},
    {"preset": "released", "anneal_steps": 7},
    {"prototypes": "kmeans", "start_depth": 3, "batch_size": 7, "trace": True},
    {"data": "my photos", "backbone": "facebook/DiT-XL-2-256", "preset": "random"},
    {"data": "hf:owner/name:small", "image_column": "img", "label_column": "y", "strict": True},
    {"data": "photos", "named": "imagenette:in1k", "classes": "tench, English springer"},
])
def test_the_command_makes_the_same_run(settings):
    config = resolve(DistillConfig(**settings))
    program, *arguments = shlex.split(distill_command(config))
    again = resolve(parse(arguments))
    assert program == "manifoldgd" and same_run(config, again) == []
    assert source_of(again) == source_of(config)
    assert (again.backbone, again.trace) == (config.backbone, config.trace)


@pytest.mark.parametrize("text, licence", [
    ("---\nlicense: mit\n---\n", "by its README: mit"),
    ("# A\n\n**Licence.** Weights: *Apache-2.0*.\n", "by its README: Weights: Apache-2.0."),
    ("# A\n\n### LICENSE\nYours.\n", "by its README: Yours."),
    ("The license: see below.\n", UNKNOWN),
    ("", UNKNOWN),
])
def test_licences(tmp_path, text, licence):
    (tmp_path / "README.md").write_text(text)
    assert find_licence(str(tmp_path), None) == licence


# What was measured

def pixels(images):
    return images.flatten(1)


def test_metrics_stand_beside_the_floor(copy, tmp_path):
    table = str(tmp_path / "metrics.csv")
    config = MetricsConfig((str(copy),), draws=2, out=table, device="cpu")
    rows = measure_runs(config, network=pixels, progress=False).set_index("metric")
    page = report(copy, metrics=table)
    cells = page.words["td"]
    assert f"{rows.value['l2']:.3f}" in cells or f"{rows.value['l2']:.2f}" in cells
    floors = [float(cell.split(" ± ")[0]) for cell in cells if " ± " in cell]
    assert any(abs(floor - rows.floor_mean["rep"]) < 6e-4 for floor in floors)
    assert "rep_released" in page.words["dt"]

    first = next((copy / "images").rglob("*.png"))
    Image.new("RGB", (16, 16)).save(first)  # the images are not those that were measured
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["images"] = image_hashes(copy, manifest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "rep_released" not in report(copy, metrics=table).words["dt"]


def result(run, **changes):
    "A row of results."
    row = {name: kind(0) for name, kind in RESULTS.items()} | {
        "run": "runs/a",
        "preset": "manifoldgd",
        "ipc": 2,
        "student": "ConvNet-3",
        "protocol": "plain-32",
        "split": "test",
        "n_test": 100,
        "group": run.group,
        "images_fingerprint": run.fingerprint[:12],
        "settings": "{}",
    }
    return row | changes


def test_accuracies_of_the_images_and_of_their_group(copy, tmp_path):
    run = read_run(copy)
    rows = [
        result(run, top1_last=50., training_seed=0),
        result(run, top1_last=52., training_seed=1),
        result(run, top1_last=61., generation_seed=1, images_fingerprint="0123456789ab"),
        result(run, top1_last=99., group="another group"),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    cells = report(copy, results=str(tmp_path / "results.csv")).words["td"]
    assert "51.0 (2)" in cells  # these images
    assert any(cell.startswith("56.0 ±") for cell in cells)  # over the two seeds of the group
    assert "2 (3)" in cells and not any("99" in cell for cell in cells)


def test_accuracies_that_cannot_stand_in_one_table(copy, tmp_path):
    run = read_run(copy)
    rows = [result(run, top1_last=50.), result(run, images_fingerprint="0123456789ab")]
    pd.DataFrame(rows).to_csv(tmp_path / "results.csv", index=False)
    page = report(copy, results=str(tmp_path / "results.csv"))
    assert "accuracies cannot be compared" in page.notes


# What is refused, and what is never replaced

def unfinish(run):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps(manifest | {"finished": False}))


def test_an_unfinished_run_is_refused_in_one_line(copy, guided, capsys):
    unfinish(copy)
    (guided / "report.html").unlink(missing_ok=True)
    assert main(["report", str(guided), str(copy)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("manifoldgd: Expected a finished run")
    assert not (copy / "report.html").exists() and not (guided / "report.html").exists()


def test_without_out_each_run_has_its_own(guided, copy, capsys):
    assert main(["report", str(guided), str(copy), str(guided)]) == 0
    assert capsys.readouterr().out.count("report.html") == 2
    for run in (guided, copy):
        assert len(Page((run / "report.html").read_text()).all("svg")) == 3


def test_other_files_stay(guided, tmp_path):
    thesis = tmp_path / "thesis.html"
    thesis.write_text("years of work")
    with pytest.raises(InputError, match="it is another file"):
        report(guided, out=str(thesis))
    with pytest.raises(InputError, match="is a folder"):
        report(guided, out=str(tmp_path))
    assert thesis.read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.html"]


def test_an_earlier_report_is_replaced(guided, others, tmp_path):
    out = tmp_path / "new folder" / "report.html"
    report(guided, out=str(out))
    before = out.read_text()
    report(*others[:2], out=str(out))
    assert out.read_text() != before
    assert [path.name for path in Path(out).parent.iterdir()] == ["report.html"]


def test_no_runs():
    with pytest.raises(InputError, match="at least one run"):
        write_reports(ReportConfig(()))
