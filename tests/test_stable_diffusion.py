"""Distilling by prompt: classes that no label knows, through the ordinary command."""
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="prompts are read by transformers")

from manifoldgd.backbones.families import open_backbone
from manifoldgd.backbones.stable_diffusion import (
    class_prompt,
    diffusers_pipeline,
    tiny_stable_diffusion,
)
from manifoldgd.config.presets import DistillConfig
from manifoldgd.core import to_pil
from manifoldgd.data.classes import ImageClass
from manifoldgd.distillation.distill import distill
from manifoldgd.errors import InputError

CLASSES = ("red_shirt", "blue trousers")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    "Tiny models with random weights, as folders in diffusers layout."
    folder = tmp_path_factory.mktemp("models")
    diffusers_pipeline(tiny_stable_diffusion()).save_pretrained(folder / "sd")
    diffusers_pipeline(tiny_stable_diffusion(xl=True)).save_pretrained(folder / "xl")
    v = tiny_stable_diffusion(prediction="v_prediction")
    diffusers_pipeline(v).save_pretrained(folder / "v")
    return folder


@pytest.fixture
def photos(tmp_path, monkeypatch):
    "Two classes of random images."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    generator = torch.Generator().manual_seed(0)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        images = to_pil(torch.rand(14, 3, 20, 16, generator=generator) * 2 - 1)
        for i, image in enumerate(images):
            image.save(tmp_path / "photos" / name / f"{i:02}.png")
    return tmp_path / "photos"


def by_prompt(photos, model, name, **settings):
    "Distil two images a class in four steps."
    config = DistillConfig(
        data=str(photos),
        backbone=str(model),
        ipc=2,
        num_inference_steps=4,
        out=str(photos.parent / name),
        device="cpu",
        **settings,
    )
    return distill(config, progress=False)


def manifest_of(run):
    "The manifest of a run."
    return json.loads((run / "manifest.json").read_text())


def pictures(run):
    "The bytes of every image, by its name."
    images = run / "images"
    return {p.relative_to(images).as_posix(): p.read_bytes() for p in images.rglob("*.png")}


@pytest.mark.parametrize("kind", ["sd", "xl", "v"])
def test_a_run_by_prompt(models, photos, kind):
    run = by_prompt(photos, models / kind, kind)
    assert len(pictures(run)) == 4
    classes = manifest_of(run)["classes"]
    prompts = {"a photo of a red shirt", "a photo of a blue trousers"}
    assert {c["label"] for c in classes} == prompts


def test_the_prompt_is_part_of_the_run(models, photos):
    run = by_prompt(photos, models / "sd", "run", preset="dit")
    other = by_prompt(photos, models / "sd", "other", preset="dit", prompt="an old drawing, {name}")
    assert pictures(run).keys() == pictures(other).keys()
    assert pictures(run) != pictures(other)
    with pytest.raises(InputError, match="differs in prompt"):
        by_prompt(photos, models / "sd", "run", preset="dit", prompt="another {name}")


def test_a_run_by_prompt_is_resumed_to_the_same_bytes(models, photos):
    whole = by_prompt(photos, models / "sd", "whole", batch_size=1)
    cut = by_prompt(photos, models / "sd", "cut", batch_size=1)
    shutil.rmtree(cut / "images" / CLASSES[0])
    again = by_prompt(photos, models / "sd", "cut", batch_size=1)
    assert pictures(again) == pictures(whole)


@pytest.mark.parametrize("template, words", [
    ("a photo", "to have {name} in it"),
    ("{name} " * 20, "at most 40 tokens"),
])
def test_prompts_that_cannot_work(models, photos, template, words):
    with pytest.raises(InputError, match=words):
        by_prompt(photos, models / "sd", "none", prompt=template)
    assert not (photos.parent / "none").exists()


def test_a_backbone_of_labels_reads_no_prompt():
    with pytest.raises(InputError, match="reads no prompt"):
        open_backbone("digits", "a {name}")


def test_transformers_is_asked_for_by_name(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"pip install 'manifoldgd\[sd\]'"):
        open_backbone(str(models / "sd"))


def test_a_class_is_called_by_its_first_name():
    tench = ImageClass("n01440764", "tench, Tinca tinca", wnid="n01440764")
    assert class_prompt(tench) == "a photo of a tench"


def edit_config(folder, part, **changes):
    "Change entries of the configuration of a part."
    file = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_tensor(folder, part):
    "Take a tensor out of a part's weights."
    file, = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, file, {"format": "pt"})


def pickled(folder, part):
    "Store the weights of a part as a pickle, as in old days."
    file, = (folder / part).glob("*.safetensors")
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


DAMAGE = {
    "an inpainting model": (
        lambda m: edit_config(m, "unet", in_channels=9), "of 4 channels.*it takes 9"),
    "another denoiser": (
        lambda m: edit_config(m, "unet", _class_name="UNet2DModel"), "but got UNet2DModel"),
    "a flow model": (
        lambda m: edit_config(m, "scheduler", prediction_type="flow_prediction"),
        "says flow_prediction"),
    "an unscaled VAE": (lambda m: edit_config(m, "vae", scaling_factor=0), "`scaling_factor`"),
    "a tensor is missing": (lambda m: drop_tensor(m, "unet"), "missing"),
    "a word is missing": (lambda m: drop_tensor(m, "text_encoder"), "missing"),
    "a pickle": (lambda m: pickled(m, "unet"), "safetensors"),
    "no tokenizer": (lambda m: shutil.rmtree(m / "tokenizer"), "to have 80 words.*has 2"),
    "no weights": (lambda m: shutil.rmtree(m / "vae"), "could not be loaded"),
}


@pytest.mark.parametrize("damage, words", DAMAGE.values(), ids=DAMAGE)
def test_what_is_loaded_is_what_runs(models, tmp_path, damage, words):
    shutil.copytree(models / "sd", tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=words):
        open_backbone(str(tmp_path / "model"))
