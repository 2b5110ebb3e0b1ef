"""Backbones, caches, manifests, records and checkpoints that are not what they should be.

What a user is told is one line and an exit status of 2; what is ours is mended without a word
that matters. Commands run in this process, without the parser of the command line.
"""
import json
import math
import os
import shutil
import threading
import time
from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DModel
from PIL import Image
from safetensors.torch import load, load_file, save_file

from manifoldgd import cli
from manifoldgd.backbones import latents as latents_page
from manifoldgd.backbones.backbone import load_backbone, tiny_backbone, tiny_dit
from manifoldgd.backbones.latents import latent_bank
from manifoldgd.config.commands import EvaluateConfig, ExportConfig, MetricsConfig, ReportConfig
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import Remembered, to_pil
from manifoldgd.data import hub
from manifoldgd.data.images import FolderImages, class_fingerprints
from manifoldgd.distillation import distill as distill_page
from manifoldgd.distillation.distill import distill
from manifoldgd.distillation.runs import RunFolder, read_run, record_digest
from manifoldgd.errors import InputError
from manifoldgd.evaluation.measurement import feature_student
from manifoldgd.pretraining.loop import before, read_checkpoint, train_steps
from manifoldgd.sampling.pipeline import ManifoldGDPipeline

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# Small things that all tests work with


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "Three classes of five small images, a tiny backbone and a finished run, never changed."
    folder = tmp_path_factory.mktemp("lab")
    generator = torch.Generator().manual_seed(0)
    for c in "012":
        (folder / "data" / c).mkdir(parents=True)
        images = to_pil(torch.rand(5, 3, 16, 16, generator=generator) * 2 - 1)
        for i, image in enumerate(images):
            image.save(folder / "data" / c / f"{i}.png")
    tiny = tiny_backbone()
    parts = (tiny.vae, tiny.transformer, tiny.scheduler, tiny.id2label)
    ManifoldGDPipeline(*parts).save_pretrained(folder / "backbone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANIFOLDGD_CACHE", str(folder / "cache"))
        distill(settings(folder, out=str(folder / "run")), progress=False)
    return folder


def settings(lab, **changes):
    "The settings of a run that takes a moment, in two units."
    base = DistillConfig(data=str(lab / "data"), backbone=str(lab / "backbone"), ipc=2,
                         batch_size=4, num_inference_steps=2, device="cpu")
    return replace(base, **changes)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    "A cache of its own."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def backbone(lab, tmp_path, cache):
    "A copy of the tiny backbone, to be spoiled."
    return shutil.copytree(lab / "backbone", tmp_path / "backbone")


@pytest.fixture
def run(lab, tmp_path, monkeypatch):
    "A copy of the finished run, to be spoiled, and the cache that it came from."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(lab / "cache"))
    return shutil.copytree(lab / "run", tmp_path / "run")


@pytest.fixture
def command(monkeypatch, capsys):
    "A function that runs a command: its exit status, and what it wrote to stderr."
    monkeypatch.setattr(cli, "parse", lambda config: config)

    def call(config):
        capsys.readouterr()
        start = time.process_time()  # of this process: other work on the machine does not count
        status = cli.main(config)
        assert time.process_time() - start < 5
        return status, capsys.readouterr().err

    return call


def expect_one_line(told, words):
    "Check that a command refused in one line that holds some words."
    status, said = told
    assert status == 2, said
    assert said.count("\n") == 1 and said.startswith("manifoldgd: Expected"), said
    assert words in said and "Traceback" not in said


def contents(folder):
    "Every file of a folder and its bytes."
    return {p.relative_to(folder).as_posix(): p.read_bytes()
            for p in folder.rglob("*") if p.is_file()}


def change_json(path, **changes):
    "Change entries of a file of JSON; None in the place of a file of its own takes one away."
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "GONE"}))


# Backbones: what is loaded is what runs


def configured(part, **changes):
    "A damage: settings of a part that are others."
    file = "scheduler_config.json" if part == "scheduler" else "config.json"
    return lambda folder: change_json(folder / part / file, **changes)


def indexed(**changes):
    "A damage: entries of model_index.json that are others."
    return lambda folder: change_json(folder / "model_index.json", **changes)


def written(file, content):
    "A damage: a file that holds something else."

    def damage(folder):
        (folder / file).write_bytes(content)

    return damage


def weights_of(folder, part):
    "The file with the weights of a part."
    return folder / part / "diffusion_pytorch_model.safetensors"


def tensors(part, change):
    "A damage: tensors that are changed by a function."

    def damage(folder):
        path = weights_of(folder, part)
        held = load_file(path)
        change(held)
        save_file(held, path, {"format": "pt"})

    return damage


def put(name, value):
    "A change of tensors: one of them gets a value."
    return lambda held: held.update({name: value(held[name]) if name in held else value(None)})


def lose(name):
    "A change of tensors: one of them is gone."
    return lambda held: held.pop(name)


def zero_all(held):
    "A change of tensors: all of them are zero."
    held.update({name: torch.zeros_like(value) for name, value in held.items()})


def cut(file):
    "A damage: a file that lost its second half."

    def damage(folder):
        os.truncate(folder / file, (folder / file).stat().st_size // 2)

    return damage


def unet(folder):
    "A damage: a whole UNet in the place of the transformer."
    shutil.rmtree(folder / "transformer")
    net = UNet2DModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 8),
                      layers_per_block=1, norm_num_groups=4,
                      down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    net.save_pretrained(folder / "transformer")


def more_classes(folder):
    "A damage: the transformer of another model, with more classes."
    tiny_dit(7, False).save_pretrained(folder / "transformer")


def wide_vae(folder):
    "A damage: a VAE whose latents have eight channels."
    config = dict(tiny_backbone().vae.config) | {"latent_channels": 8}
    vae = type(tiny_backbone().vae).from_config(config)
    vae.save_pretrained(folder / "vae")


def shards(folder):
    "A damage: an index that promises a tensor which no file holds."
    path = weights_of(folder, "transformer")
    held = load_file(path)
    index = {"metadata": {}, "weight_map": dict.fromkeys(held, "part.safetensors")}
    held.pop("proj_out_1.weight")
    save_file(held, path.with_name("part.safetensors"), {"format": "pt"})
    path.with_name(f"{path.name}.index.json").write_text(json.dumps(index))
    path.unlink()


def pipe(file):
    "A damage: a named pipe in the place of a file; to open it would wait for ever."

    def damage(folder):
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return damage


def as_folder(file):
    "A damage: a folder in the place of a file."

    def damage(folder):
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


DIT, VAE = "transformer", "vae"
CONV, HEAD = "encoder.conv_in.bias", "proj_out_2.bias"
FLOW, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
NESTED = b"[" * 100_000
BACKBONES = {
    "Heun's flow": (configured("scheduler", _class_name=HEUN), f"DDPMScheduler, but got {HEUN}"),
    "flow in the index": (indexed(scheduler=["diffusers", FLOW]), f"model_index.json names {FLOW}"),
    "flow sigmas": (configured("scheduler", use_flow_sigmas=True), "`use_flow_sigmas`"),
    "sample": (configured("scheduler", prediction_type="sample"), "says sample"),
    "no such schedule": (configured("scheduler", beta_schedule="steep"), "steep is not impl"),
    "zero terminal SNR": (configured("scheduler", rescale_betas_zero_snr=True), "above 0, but"),
    "betas of 2": (configured("scheduler", beta_end=2.), "Expected the signal in the schedule"),
    "betas of text": (configured("scheduler", beta_end="small"), "could not be loaded"),
    "NaN for a beta": (configured("scheduler", beta_start=math.nan), "Expected the signal"),
    "no steps": (configured("scheduler", num_train_timesteps=0), "`num_train_timesteps` of"),
    "one step": (configured("scheduler", num_train_timesteps=1), "`num_inference_steps` to be"),
    "a billion steps": (configured("scheduler", num_train_timesteps=10**9), "between 1 and 100000"),
    "no scheduler class": (configured("scheduler", _class_name="GONE"), "but got None"),
    "UNet as transformer": (unet, "DiTTransformer2DModel, but got UNet2DModel"),
    "text transformer": (configured(DIT, _class_name="PixArtTransformer2DModel"), "but got PixArt"),
    "other norm": (configured(DIT, norm_type="ada_norm_single"), "`norm_type` ada_norm_zero"),
    "VQ as VAE": (configured(VAE, _class_name="VQModel"), "AutoencoderKL, but got VQModel"),
    "scaling 0": (configured(VAE, scaling_factor=0), "above 0, but got 0"),
    "scaling below 0": (configured(VAE, scaling_factor=-1.), "above 0, but got -1.0"),
    "scaling NaN": (configured(VAE, scaling_factor=math.nan), "above 0, but got nan"),
    "scaling infinite": (configured(VAE, scaling_factor=math.inf), "above 0, but got inf"),
    "scaling text": (configured(VAE, scaling_factor="large"), "above 0, but got 'large'"),
    "scaling null": (configured(VAE, scaling_factor=None), "above 0, but got None"),
    "shifted by text": (configured(VAE, shift_factor="far"), "finite number, but got 'far'"),
    "standardized": (configured(VAE, latents_mean=[0., 1., 2., 3.]), "has `latents_mean`"),
    "VAE of 8 channels": (wide_vae, "latents of 8 channels, as its VAE makes them, but it takes 4"),
    "images of 4 channels": (configured(VAE, in_channels=4, out_channels=4), "1 or 3 channels"),
    "gray in, color out": (configured(VAE, in_channels=1), "takes 1 and gives 3"),
    "VAE without levels": (configured(VAE, block_out_channels=[]), "`block_out_channels` of vae"),
    "VAE of text": (configured(VAE, block_out_channels="wide"), "`block_out_channels` of vae"),
    "odd noise": (configured(DIT, out_channels=5), "noise or 8 with a variance, but it gives 5"),
    "odd patches": (configured(DIT, sample_size=9), "a multiple of `patch_size` 2, but got 9"),
    "size of text": (configured(DIT, sample_size="8"), "`sample_size` of transformer"),
    "a million layers": (configured(DIT, num_layers=10**6), "between 1 and 256, but got 1000000"),
    "half a layer": (configured(DIT, num_layers=1.5), "`num_layers` of transformer"),
    "no classes": (configured(DIT, num_embeds_ada_norm=None), "`num_embeds_ada_norm` of"),
    "other heads": (configured(DIT, num_attention_heads=4), "has the shape"),
    "a layer more": (configured(DIT, num_layers=3), "tensors are missing, such as transformer_bl"),
    "a layer less": (configured(DIT, num_layers=1), "tensors are unexpected, such as transformer_"),
    "odd activation": (configured(DIT, activation_fn="loud"), "could not be loaded"),
    "seven classes": (more_classes, "to name the labels 0 to 6, but it names 3 from 0 to 2"),
    "seven, unnamed": (configured(DIT, num_embeds_ada_norm=7), "to name the labels 0 to 6"),
    "label 3 of 3": (indexed(id2label={"0": "0", "1": "1", "3": "2"}), "names 3 from 0 to 3"),
    "a label of text": (indexed(id2label={"a": "0"}), "to name the labels 0 to 2, but got"),
    "labels in a list": (indexed(id2label=["0", "1", "2"]), "to name the labels 0 to 2, but got"),
    "a pipeline in a list": (indexed(_class_name=["a"], transformer=[7]), "but got 7"),
    "a name of number": (indexed(id2label={"0": "0", "1": "1", "2": 2}), "one of the names is 2"),
    "a missing tensor": (tensors(DIT, lose(HEAD)), "1 tensors are missing, such as proj_out_2"),
    "a missing tensor of the VAE": (tensors(VAE, lose(CONV)), "missing, such as encoder.conv_in"),
    "an added tensor": (tensors(DIT, put("lora", lambda _: torch.ones(2))), "such as lora"),
    "another shape": (tensors(VAE, put(CONV, lambda x: x[:4].clone())), "the shape (4,), not (8"),
    "NaN": (tensors(DIT, put(HEAD, lambda x: x * math.nan)), "proj_out_2.bias in transformer of"),
    "infinity": (tensors(VAE, put(CONV, lambda x: x + math.inf)), "holds inf"),
    "all zero": (tensors(DIT, zero_all), "all of transformer of the backbone"),
    "an incomplete shard": (shards, "missing, such as proj_out_1.weight"),
    "half the weights": (cut("vae/diffusion_pytorch_model.safetensors"), "could not be loaded"),
    "no bytes": (written("vae/diffusion_pytorch_model.safetensors", b""), "could not be loaded"),
    "words": (written("vae/diffusion_pytorch_model.safetensors", b"words " * 99), "be loaded"),
    "half a config": (cut("vae/config.json"), "could not be loaded"),
    "half an index": (cut("model_index.json"), "could not be loaded"),
    "a config in a list": (written("transformer/config.json", b"[]"), "Expected"),
    "an index in a list": (written("model_index.json", b"[]"), "Expected"),
    "a nested config": (written("transformer/config.json", NESTED), "could not be loaded"),
    "bytes": (written("scheduler/scheduler_config.json", bytes(range(256))), "could not be loaded"),
    "a pipe": (pipe("transformer/config.json"), "config.json is neither"),
    "a pipe of weights": (pipe("vae/diffusion_pytorch_model.safetensors"), "is neither"),
    "a folder of weights": (as_folder("vae/diffusion_pytorch_model.safetensors"), "be loaded"),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_that_is_not_what_it_seems(lab, backbone, cache, command, tmp_path, name):
    damage, words = BACKBONES[name]
    damage(backbone)
    config = settings(lab, backbone=str(backbone), out=str(tmp_path / "new"))
    expect_one_line(command(config), words)
    assert not (cache / "latents").exists(), "Expected nothing to be encoded."
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", [
    configured("scheduler", _class_name="EulerDiscreteScheduler"),
    configured(DIT, _class_name="Transformer2DModel", cross_attention_dim=None),
    configured(DIT, out_channels=None),
    configured(VAE, shift_factor=0.),
    configured(VAE, shift_factor=.1159),
    indexed(id2label="GONE", vae="GONE"),
])
def test_what_is_only_unusual_is_loaded(lab, backbone, change):
    change(backbone)
    assert load_backbone(str(backbone)).fingerprint()


def test_a_backbone_without_a_seed_is_the_same_every_time(lab):
    assert len({load_backbone(str(lab / "backbone")).fingerprint() for _ in range(2)}) == 1


# The hub is asked only for what a command names


@pytest.fixture
def asked(monkeypatch):
    "The names that the hub is asked for."
    names = []

    class Api:
        def repo_info(self, name, **_):
            names.append(name)
            raise ConnectionError("out of reach")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return names


@pytest.mark.parametrize("named, asks", [(None, []), ("owner/name", ["owner/name"])])
def test_metrics_ask_for_no_backbone_of_a_manifest(run, command, asked, tmp_path, named, asks):
    manifest = json.loads((run / "manifest.json").read_text())
    change_json(run / "manifest.json", config=manifest["config"] | {"backbone": "owner/name"})
    config = MetricsConfig((str(run),), backbone=named, out=str(tmp_path / "t.csv"), device="cpu")
    expect_one_line(command(config), "the hub is unreachable (")
    assert asked == asks


@pytest.mark.parametrize("kind", [EvaluateConfig, MetricsConfig])
def test_the_data_of_a_manifest_are_not_asked_for(run, command, asked, tmp_path, kind):
    manifest = json.loads((run / "manifest.json").read_text())
    change_json(run / "manifest.json", config=manifest["config"] | {"data": "hf:owner/name"})
    config = kind((str(run),), out=str(tmp_path / "t.csv"), device="cpu")
    expect_one_line(command(config), "only for what the command itself names")
    assert asked == []


def test_a_folder_of_stable_diffusion_is_checked_too(lab, tmp_path, cache, command):
    from manifoldgd.backbones.stable_diffusion import tiny_stable_diffusion

    tiny = tiny_stable_diffusion()
    folder = tmp_path / "sd"
    tiny.vae.save_pretrained(folder / "vae")
    tiny.unet.save_pretrained(folder / "unet")
    tiny.scheduler.save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    for damage, words in [
        (configured(VAE, scaling_factor=0), "above 0, but got 0"),
        (configured(VAE, scaling_factor=.5, layers_per_block=10**6), "`layers_per_block` of vae"),
        (pipe("vae/config.json"), "is neither"),
    ]:
        damage(folder)
        config = settings(lab, backbone=str(folder), out=str(tmp_path / "new"))
        expect_one_line(command(config), words)


def test_a_question_within_a_question():
    with hub.asking_hub(False), hub.asking_hub(True):
        assert hub.ASKING.get()
    assert hub.ASKING.get()


def test_metrics_refuse_a_backbone_that_changed(lab, run, backbone, command, tmp_path):
    manifest = json.loads((run / "manifest.json").read_text())
    change_json(run / "manifest.json", config=manifest["config"] | {"backbone": str(backbone)})
    tensors(DIT, put(HEAD, lambda x: x + 1))(backbone)
    config = MetricsConfig((str(run),), out=str(tmp_path / "t.csv"), device="cpu")
    expect_one_line(command(config), "was made with, but it is another now")


# Runs that were changed


def reader(name, run, folder):
    "The settings of a command that reads a run."
    table = str(folder / "table.csv")
    return {
        "evaluate": EvaluateConfig((str(run),), out=table, device="cpu"),
        "metrics": MetricsConfig((str(run),), out=table, device="cpu"),
        "report": ReportConfig((str(run),), device="cpu"),
        "export": ExportConfig(str(run), "imagefolder", str(folder / "export")),
    }[name]


IMAGE = "images/1/00000.png"
CHANGES = {
    "changed": (lambda run: Image.new("RGB", (16, 16)).save(run / IMAGE), f"{IMAGE} was changed"),
    "swapped": (lambda run: shutil.copy(run / "images/2/00000.png", run / IMAGE), "was changed"),
    "a bit": (lambda run: turn_bit(run / IMAGE), f"{IMAGE} was changed"),
    "halved": (lambda run: os.truncate(run / IMAGE, 99), f"{IMAGE} was changed"),
    "empty": (lambda run: os.truncate(run / IMAGE, 0), f"{IMAGE} was changed"),
    "missing": (lambda run: (run / IMAGE).unlink(), f"{IMAGE} is missing"),
    "no class": (lambda run: shutil.rmtree(run / "images/1"), f"{IMAGE} is missing"),
    "no images": (lambda run: shutil.rmtree(run / "images"), "images/0/00000.png is missing"),
    "added": (lambda run: shutil.copy(run / IMAGE, run / "images/1/9.jpg"), "1/9.jpg was added"),
    "deep": (lambda run: shutil.copytree(run / "images/1", run / "images/1/x"), "x/00000.png was"),
    "a class": (lambda run: shutil.copytree(run / "images/1", run / "images/5"), "5/00000.png was"),
    "loose": (lambda run: shutil.copy(run / IMAGE, run / "images/a.png"), "images/a.png was added"),
}


def turn_bit(path, place=None):
    "Turn one bit of a file, in the middle by default."
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["evaluate", "metrics", "report", "export"])
@pytest.mark.parametrize("change", ["changed", "missing", "added"])
def test_every_reader_refuses_a_changed_run(run, command, tmp_path, name, change):
    damage, words = CHANGES[change]
    damage(run)
    expect_one_line(command(reader(name, run, tmp_path)), words)
    assert not (tmp_path / "table.csv").exists() and not (tmp_path / "export").exists()


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_change_is_named(run, change):
    damage, words = CHANGES[change]
    damage(run)
    with pytest.raises(InputError, match=words):
        read_run(run)


def test_a_run_whose_images_lie_elsewhere_is_read(run, tmp_path):
    before_it = read_run(run).fingerprint
    shutil.move(run / "images/1", tmp_path / "elsewhere")
    (run / "images/1").symlink_to(tmp_path / "elsewhere")
    assert read_run(run).fingerprint == before_it


def setting(**changes):
    "A change of a manifest: some settings."
    return lambda manifest: manifest["config"].update(changes)


def entry(name, value):
    "A change of a manifest: an entry."
    return lambda manifest: manifest.update({name: value})


def klass(**changes):
    "A change of a manifest: its first class."
    return lambda manifest: manifest["classes"][0].update(changes)


MANIFESTS = {
    "no settings": entry("config", {}),
    "settings in a list": entry("config", []),
    "a strange setting": setting(color="red"),
    "IPC of text": setting(ipc="2"),
    "IPC of none": setting(ipc=0),
    "IPC of a trillion": setting(ipc=10**12),
    "another IPC": setting(ipc=1),
    "no kind of images": setting(images=None),
    "no preset": setting(preset="best"),
    "no scheduler": setting(scheduler=None),
    "strength NaN": setting(strength=math.nan),
    "steps below": setting(num_inference_steps=-5),
    "no classes": entry("classes", []),
    "classes of text": entry("classes", "012"),
    "classes of numbers": entry("classes", [0, 1, 2]),
    "a class twice": lambda manifest: manifest["classes"].append(manifest["classes"][0]),
    "a class less": lambda manifest: manifest["classes"].pop(),
    "a folder above": klass(folder="../../0"),
    "a folder below": klass(folder="0/1"),
    "an absolute folder": klass(folder="/etc"),
    "a folder of number": klass(folder=0),
    "a folder of nothing": klass(folder=""),
    "an id of text": klass(id="0"),
    "another id": klass(id=2),
    "a name of nothing": klass(name=None),
    "no fingerprint": entry("data_fingerprint", None),
    "a fingerprint of number": entry("backbone_fingerprint", 7),
    "versions in a list": entry("versions", ["1"]),
    "finished, in words": entry("finished", "false"),
    "unfinished": entry("finished", False),
    "images in a list": entry("images", []),
    "no hashes": entry("images", {}),
    "a hash of number": lambda manifest: manifest["images"].update({IMAGE: 7}),
    "a hash less": lambda manifest: manifest["images"].pop(IMAGE),
    "a hash more": lambda manifest: manifest["images"].update({"images/../x.png": "0"}),
    "a spread of text": entry("latents_spread", "wide"),
    "skipped in words": entry("skipped", "none"),
}
TEXTS = {
    "empty": "",
    "half": '{"config": {',
    "a list": "[]",
    "a number": "7",
    "nested": "[" * 100_000,
    "no UTF-8": "\udcff",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_says_something_else(run, command, tmp_path, name):
    manifest = json.loads((run / "manifest.json").read_text())
    MANIFESTS[name](manifest)
    (run / "manifest.json").write_text(json.dumps(manifest))
    expect_one_line(command(reader("metrics", run, tmp_path)), "Expected")


@pytest.mark.parametrize("name", TEXTS)
def test_a_manifest_that_cannot_be_read(lab, run, command, tmp_path, name):
    (run / "manifest.json").write_text(TEXTS[name], errors="surrogateescape")
    for config in (reader("evaluate", run, tmp_path), settings(lab, out=str(run))):
        expect_one_line(command(config), "could not be understood")


@pytest.mark.parametrize("file, name", [
    ("manifest.json", "metrics"), ("manifest.json", "distill"), ("metadata.jsonl", "export"),
])
def test_a_pipe_is_not_waited_for(lab, run, command, tmp_path, file, name):
    pipe(file)(run)
    config = settings(lab, out=str(run)) if name == "distill" else reader(name, run, tmp_path)
    expect_one_line(command(config), "Expected")


# What is damaged is made again


def drop_record(run):
    "A damage: an unfinished run of one unit, whose image is half."
    (run / "units/00001.json").unlink()
    os.truncate(run / IMAGE, 50)
    change_json(run / "manifest.json", finished=False)


def changed_record(**changes):
    "A damage: a record of which entries are others."
    return lambda run: change_json(run / "units/00000.json", **changes)


def sealed_record(**changes):
    "A damage: a record of another run, whole in itself."

    def damage(run):
        path = run / "units/00000.json"
        record = json.loads(path.read_text()) | changes
        path.write_text(json.dumps(record | {"digest": record_digest(record)}))

    return damage


def spoil(file, content):
    "A damage: another content."
    return lambda run: (run / file).write_bytes(content)


RECORD, OTHER = "units/00000.json", "images/0/00000.png"
REPAIRS = {
    "changed": CHANGES["changed"][0],
    "a bit": CHANGES["a bit"][0],
    "halved": CHANGES["halved"][0],
    "empty": CHANGES["empty"][0],
    "missing": CHANGES["missing"][0],
    "no class": CHANGES["no class"][0],
    "no images": CHANGES["no images"][0],
    "swapped": CHANGES["swapped"][0],
    "all of a unit": lambda run: [os.truncate(p, 0) for p in run.glob("images/0/*.png")],
    "unfinished, half an image": drop_record,
    "no record": lambda run: (run / RECORD).unlink(),
    "no records": lambda run: shutil.rmtree(run / "units"),
    "an empty record": spoil(RECORD, b""),
    "a pipe for a record": pipe(RECORD),
    "half a record": lambda run: os.truncate(run / RECORD, 40),
    "a nested record": spoil(RECORD, NESTED),
    "a list for a record": spoil(RECORD, b"[]"),
    "bytes for a record": spoil(RECORD, bytes(range(256))),
    "a record of no images": changed_record(images={}),
    "a record of another hash": changed_record(images={OTHER: "0" * 64}),
    "a record of other lines": changed_record(lines=[{"file_name": "x"}] * 4),
    "a record of a trace": changed_record(trace="image,step\n"),
    "a record of odd moments": changed_record(moments=["a", "b", "c"]),
    "a record without moments": changed_record(moments="GONE"),
    "a record of another run": sealed_record(run="0" * 64),
    "a record of too few lines": sealed_record(lines=[]),
    "the record of another unit": lambda run: shutil.copy(run / "units/00001.json", run / RECORD),
    "no metadata": lambda run: (run / "metadata.jsonl").unlink(),
    "half the metadata": lambda run: os.truncate(run / "metadata.jsonl", 30),
    "no gallery": lambda run: (run / "gallery.png").unlink(),
    "unfinished": lambda run: change_json(run / "manifest.json", finished=False),
}


@pytest.mark.parametrize("name", REPAIRS)
def test_a_damaged_run_is_repaired_to_the_last_byte(lab, run, name):
    whole = contents(lab / "run")
    REPAIRS[name](run)
    distill(settings(lab, out=str(run)), progress=False)
    assert contents(run) == whole
    assert len(read_run(run).data) == 6


def test_records_of_earlier_versions_are_believed_if_their_images_are_right(lab, run, monkeypatch):
    for path in run.glob("units/*.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({k: record[k] for k in record if k not in ("run", "digest")}))
    monkeypatch.setattr(distill_page, "make_missing", lambda *_: pytest.fail("it was made again"))
    distill(settings(lab, out=str(run)), progress=False)


def test_only_the_damaged_unit_is_made_again(lab, run):
    kept = (run / "images/2/00001.png").stat().st_ino
    os.truncate(run / OTHER, 10)
    with pytest.warns(UserWarning, match="4 images of .* are made again.*images/0/00000.png"):
        distill(settings(lab, out=str(run)), progress=False)
    assert (run / "images/2/00001.png").stat().st_ino == kept


def test_what_another_process_makes_is_left_to_it(lab, run):
    from manifoldgd.distillation.engine import claimed
    from manifoldgd.distillation.runs import drop_damaged
    from manifoldgd.distillation.units import cut as cut_plan
    from manifoldgd.distillation.units import plan

    units = cut_plan(plan(FolderImages(lab / "data").classes, 2), 4)
    os.truncate(run / OTHER, 10)
    with claimed(RunFolder(run), units[0]):
        assert drop_damaged(RunFolder(run), units, claimed) == []
    assert (run / RECORD).exists()


# One run, one owner


def both(monkeypatch, first, second):
    "Run two commands that have both looked at the folder before either writes into it."
    looked = threading.Barrier(2, timeout=60)
    claim, seen = RunFolder.claim, threading.local()

    def wait(self, wanted):
        stored = claim(self, wanted)
        if not getattr(seen, "once", False):
            seen.once = True
            looked.wait()
        return stored

    monkeypatch.setattr(RunFolder, "claim", wait)
    found = {}

    def call(name, config):
        found[name] = cli.main(config)

    threads = [threading.Thread(target=call, args=pair) for pair in enumerate((first, second))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[0], found[1]]


@pytest.mark.parametrize("changes", [{"strength": .3}, {"seed": 1}, {"ipc": 1}, {"batch_size": 3}])
def test_one_of_two_runs_in_a_folder_is_refused(lab, cache, tmp_path, monkeypatch, capsys, changes):
    monkeypatch.setattr(cli, "parse", lambda config: config)
    one = settings(lab, out=str(tmp_path / "both"))
    status = both(monkeypatch, one, replace(one, **changes))
    assert sorted(status) == [0, 2]
    said = capsys.readouterr().err
    assert f"the run there differs in {next(iter(changes))}" in said and "Traceback" not in said
    monkeypatch.undo()
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(cache))
    winner = one if status[0] == 0 else replace(one, **changes)
    alone = distill(replace(winner, out=str(tmp_path / "alone")), progress=False)
    made = contents(tmp_path / "both")
    assert {name: made[name] for name in made if name != "manifest.json"} == {
        name: content for name, content in contents(alone).items() if name != "manifest.json"}


def test_two_commands_of_one_run_share_it(lab, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "parse", lambda config: config)
    one = settings(lab, out=str(tmp_path / "both"))
    assert both(monkeypatch, one, one) == [0, 0]
    same = contents(lab / "run")
    made = contents(tmp_path / "both")
    for name in same:
        if name.startswith(("images", "metadata")):
            assert made[name] == same[name]


# Caches


def zeros(path):
    "A damage: zeros in the place of all numbers, under the header that was there."
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:begin] + bytes(len(content) - begin))


CACHES = {
    "zeros": zeros,
    "a bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "words": lambda path: path.write_text("words " * 99),
    "other numbers": lambda path: save_file({"latents": torch.ones(5, 4, 8, 8)}, path),
    "a huge header": lambda path: path.write_bytes(b"\xff" * 64),
}


@pytest.fixture
def kept(lab, tmp_path, monkeypatch):
    "A copy of the cache of the finished run, to be spoiled."
    copied = shutil.copytree(lab / "cache", tmp_path / "cache")
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(copied))
    return copied


@pytest.mark.parametrize("what", ["latents", "prototypes"])
@pytest.mark.parametrize("damage", CACHES)
def test_a_damaged_cache_is_made_again(lab, kept, tmp_path, what, damage):
    right = {path.name: load(path.read_bytes()) for path in (kept / what).iterdir()}
    for path in (kept / what).iterdir():
        CACHES[damage](path)
    if what == "latents":  # which are only read where prototypes are not known
        shutil.rmtree(kept / "prototypes")
    distill(settings(lab, out=str(tmp_path / "again")), progress=False)
    assert contents(tmp_path / "again/images") == contents(lab / "run/images")
    for name, held in right.items():
        again = load_file(kept / what / name)
        assert sorted(again) == sorted(held)
        assert all(torch.equal(again[key], held[key]) for key in held)


def test_damage_that_only_the_numbers_show_is_told_of(lab, kept):
    data, tiny = FolderImages(lab / "data"), load_backbone(str(lab / "backbone"))
    bank = latent_bank(tiny, data, progress=False)
    right = bank.of_class(1)
    zeros(bank.shards[1].path)
    with pytest.warns(UserWarning, match="were damaged, and are made again"):
        assert torch.equal(bank.of_class(1), right)


def test_a_class_is_hashed_once_for_all_its_images(lab, kept, monkeypatch):
    data, tiny = FolderImages(lab / "data"), load_backbone(str(lab / "backbone"))
    bank, checks, read = latent_bank(tiny, data, progress=False), [], latents_page.read_kept

    def watched(path, key, check=True):
        checks.append(check)
        return read(path, key, check)

    monkeypatch.setattr(latents_page, "read_kept", watched)
    for _ in range(3):
        bank.of_class(0)
    assert checks == [True, False, False]


def test_a_damaged_student_is_trained_again(lab, cache, monkeypatch):
    from manifoldgd.evaluation import measurement

    trained, train = [], measurement.train_feature_student

    def watched(*args):
        trained.append(1)
        return train(*args)

    monkeypatch.setattr(measurement, "train_feature_student", watched)
    data = FolderImages(lab / "data")
    name, _ = feature_student(data, 8, 3, progress=False)
    [path] = cache.glob("*-student-*")
    assert feature_student(data, 8, 3, progress=False)[0] == name and len(trained) == 1
    for damage in (zeros, CACHES["half"], CACHES["other numbers"]):
        damage(path)
        assert feature_student(data, 8, 3, progress=False)[0] == name
    assert len(trained) == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"0": 7}'])
def test_damaged_hashes_are_computed_again(lab, kept, text):
    data = FolderImages(lab / "data")
    right = class_fingerprints(data)
    for path in kept.glob("*-hashes.json"):
        path.write_text(text)
    assert class_fingerprints(data) == right


def test_a_remembered_fact_that_was_changed_is_none(cache):
    Remembered("hashes", "cats", "/cats").put("a", "monday", "5eb63b")
    [path] = cache.iterdir()
    path.write_text(path.read_text().replace("5eb63b", "5eb63c"))
    assert Remembered("hashes", "cats", "/cats").get("a", "monday") is None


# Checkpoints


def train(folder, steps=4, stop=None):
    "Train a line for some steps, with a checkpoint after each."
    model = torch.nn.Linear(2, 1)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    taken = []

    def loss_of(model, generator):
        if len(taken) == stop:
            raise InterruptedError
        taken.append(1)
        x = torch.randn(8, 2, generator=generator)
        return (model(x) - x.sum(1, keepdim=True)).pow(2).mean()

    try:
        model = train_steps(model, loss_of, "line", steps, .1, folder, every=1, progress=False)
    except InterruptedError:
        pass
    return model, len(taken)


@pytest.mark.parametrize("damage", ["a bit", "half", "empty", "words"])
@pytest.mark.parametrize("both_of_them, steps", [(False, 2), (True, 4)])
def test_a_damaged_checkpoint(tmp_path, damage, both_of_them, steps):
    through, _ = train(tmp_path / "through")
    train(tmp_path / "stopped", stop=3)
    newest = tmp_path / "stopped/line.pt"
    for path in (newest, before(newest))[:1 + both_of_them]:
        if damage == "a bit":
            weight = torch.load(path, weights_only=True)["model"]["weight"]
            turn_bit(path, path.read_bytes().index(weight.numpy().tobytes()))
        else:
            CACHES[damage](path)
    with pytest.warns(UserWarning, match="line.*pt is damaged"):
        mended, taken = train(tmp_path / "stopped")
    assert taken == steps
    assert torch.equal(mended.weight, through.weight)


def test_a_checkpoint_that_is_gone(tmp_path):
    through, _ = train(tmp_path / "through")
    train(tmp_path / "stopped", stop=3)
    (tmp_path / "stopped/line.pt").unlink()  # as after a kill between the two renames
    mended, taken = train(tmp_path / "stopped")
    assert taken == 2 and torch.equal(mended.weight, through.weight)


def weight_in(path):
    "The weight in a checkpoint, as torch reads it; None where it cannot."
    try:
        return torch.load(path, weights_only=True)["model"]["weight"]
    except Exception:
        return None


def test_no_turned_bit_is_read_as_numbers(tmp_path):
    train(tmp_path)
    path = tmp_path / "line.pt"
    right, content = weight_in(path), path.read_bytes()
    for place in range(0, len(content), len(content) // 50):
        path.write_bytes(content)
        turn_bit(path, place)
        parts = {"model": torch.nn.Linear(2, 1)}
        try:
            read_checkpoint(path, parts, 4)
        except Exception:
            continue
        assert torch.equal(parts["model"].weight, right)


def test_torch_reads_a_turned_bit_as_numbers(tmp_path):
    "Which is why `read_checkpoint` looks at the checksums of a file."
    train(tmp_path)
    path = tmp_path / "line.pt"
    right = weight_in(path)
    turn_bit(path, path.read_bytes().index(right.numpy().tobytes()))
    assert not torch.equal(weight_in(path), right)
    with pytest.raises(ValueError, match="checksum"):
        read_checkpoint(path, {"model": torch.nn.Linear(2, 1)}, 4)
