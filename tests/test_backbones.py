"""What the page of backbones refuses, and where the cache is."""
import json

import pytest

from manifoldgd.backbones.backbone import load_backbone, match_labels, tiny_backbone
from manifoldgd.core import cache_folder
from manifoldgd.data.classes import ImageClass, backbone_names, imagenet_labels, imagenet_names
from manifoldgd.data.named import find_named, named_classes
from manifoldgd.errors import InputError
from manifoldgd.sampling.pipeline import label_numbers


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    "A cache of its own for each test."
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def saved(tmp_path):
    "A tiny backbone as a folder in diffusers layout."
    folder = tmp_path / "saved"
    tiny = tiny_backbone()
    for part in ("vae", "transformer", "scheduler"):
        getattr(tiny, part).save_pretrained(folder / part)
    (folder / "model_index.json").write_text(json.dumps({"id2label": tiny.id2label}))
    return folder


def tiny_backbone_of_imagenet():
    "A tiny backbone that knows ImageNet's classes by their names."
    backbone = tiny_backbone(n_classes=1000)
    backbone.id2label = {imagenet_labels()[wnid]: name for wnid, name in imagenet_names().items()}
    return backbone


def classes_of(*folders):
    "A class for each folder, called like it."
    return [ImageClass(folder, folder) for folder in folders]


@pytest.mark.parametrize("spec", ["./nowhere", "nowhere", "/a/b/c", "owner/name/part", "~/x y"])
def test_what_names_no_backbone_is_refused(spec):
    with pytest.raises(InputError, match=f"but '{spec}' is none of these"):
        load_backbone(spec)


@pytest.mark.parametrize("part", ["vae", "transformer", "scheduler", "model_index.json"])
def test_a_missing_part_is_named(saved, part):
    (saved / part).rename(saved / "elsewhere")
    with pytest.raises(InputError, match=f"but {part} is missing"):
        load_backbone(str(saved))


@pytest.mark.parametrize("file", [
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    "transformer/config.json",
    "scheduler/scheduler_config.json",
])
def test_a_part_that_cannot_be_loaded_is_told_in_one_line(saved, file):
    (saved / file).unlink()
    with pytest.raises(InputError, match="could not be loaded: ") as caught:
        load_backbone(str(saved))
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_out_of_reach_is_told_in_one_line(monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="'owner/name' could not be loaded: ") as caught:
        load_backbone("owner/name")
    assert "\n" not in str(caught.value)


def test_a_backbone_without_names_loads(saved):
    (saved / "model_index.json").write_text("{}")
    loaded = load_backbone(str(saved))
    assert loaded.id2label == {}
    assert not loaded.vae.training
    assert not any(p.requires_grad for p in loaded.transformer.parameters())


def test_the_fingerprint_of_the_embedded_backbone_is_known():
    known = "6c08118bfc2a61b71a5e02ceef4457aa91eee00a6b4ee7b3c146728e1377d8a4"
    assert load_backbone("digits").fingerprint() == known


@pytest.mark.parametrize("folders, message", [
    (["dog"], r"class of the backbone \(0, 1, 2\), but dog is not\. Rename the folders"),
    (["1", "dog", "cat"], "but dog, cat is not"),
    (["p", "q", "r", "s", "t", "u"], r"but p, q, r, s, t, \.\.\. is not"),
    (["n01440764"], "but n01440764 is not"),
    (["0", "1", "0"], "a class of its own, but 0, 0 mean the same class"),
])
def test_classes_without_a_label_of_their_own_are_named(folders, message):
    with pytest.raises(InputError, match=message):
        match_labels(classes_of(*folders), tiny_backbone())


def test_a_folder_and_a_name_may_mean_one_class():
    classes = [ImageClass("one_1", "1"), ImageClass("1", "1")]
    with pytest.raises(InputError, match="but one_1, 1 mean the same class"):
        match_labels(classes, tiny_backbone())


@pytest.mark.parametrize("folder, meant", [
    ("crane", r"134 \(crane, n02012849\) or 517 \(crane, n03126707\)"),
    ("maillot", r"638 \(maillot, n03710637\) or 639 \(maillot, tank suit, n03710721\)"),
    ("panda", r"387 \(lesser panda.*\) or 388 \(giant panda.*\)"),
])
def test_a_name_of_two_classes_is_refused_and_both_are_named(folder, meant):
    with pytest.raises(InputError, match=f"Expected '{folder}' to mean one class, .* {meant}"):
        match_labels(classes_of(folder), tiny_backbone_of_imagenet())


def test_an_id_decides_between_classes_of_one_name():
    imagenet = tiny_backbone_of_imagenet()
    cranes = [ImageClass("n02012849", "crane"), ImageClass("n03126707", "crane")]
    assert match_labels(cranes, imagenet) == [134, 517]
    assert match_labels([ImageClass("bird", "crane", wnid="n02012849")], imagenet) == [134]


def test_an_id_that_is_no_class_of_the_name_does_not_decide():
    tench = ImageClass("fish", "crane", wnid="n01440764")
    with pytest.raises(InputError, match="Expected 'crane' to mean one class"):
        match_labels([tench], tiny_backbone_of_imagenet())


def test_synonyms_lead_to_a_class():
    imagenet = tiny_backbone_of_imagenet()
    assert match_labels(classes_of("Tinca tinca", "tench, Tinca tinca")[:1], imagenet) == [0]
    assert match_labels([ImageClass("glasses", "shades, sunglasses")], imagenet) == [837]
    with pytest.raises(InputError, match="but tench, tench, Tinca tinca mean the same class"):
        match_labels(classes_of("tench", "tench, Tinca tinca"), imagenet)


def test_the_nearest_name_is_offered():
    with pytest.raises(InputError, match="but Tench is not. Did you mean 'tench'"):
        match_labels(classes_of("Tench"), tiny_backbone_of_imagenet())


@pytest.mark.parametrize("spec", ["imagenette", "imagewoof", "imagenet100", "tiny-imagenet"])
def test_every_named_subset_of_imagenet_is_found_by_its_backbone(spec):
    labels = match_labels(named_classes(find_named(spec)), tiny_backbone_of_imagenet())
    wnids = list(imagenet_labels())
    assert [wnids[label] for label in labels] == [c.wnid for c in named_classes(find_named(spec))]


def test_the_pipeline_and_the_match_agree_on_every_class():
    imagenet = tiny_backbone_of_imagenet()
    names = backbone_names(imagenet.id2label, 1000)
    assert label_numbers(list(imagenet_labels()), names, 1000) == list(range(1000))
    with pytest.raises(InputError, match=r"may be 134 \(crane.* or 517 \(crane"):
        label_numbers(["crane"], names, 1000)


def test_a_list_of_many_classes_is_cut():
    with pytest.raises(InputError, match=r"\(0, 1, 2, 3, 4, \.\.\.\), but"):
        match_labels(classes_of("dog"), tiny_backbone(n_classes=6))


def test_wordnet_ids_are_offered_where_they_are_known():
    backbone = tiny_backbone(n_classes=1000)
    with pytest.raises(InputError, match=r"\.\.\. or ImageNet ids\), but n00000001 is not"):
        match_labels(classes_of("n00000001"), backbone)
    assert match_labels(classes_of("n02979186"), backbone) == [482]


def test_the_folder_goes_before_the_name_and_the_name_before_the_id():
    backbone = tiny_backbone(n_classes=1000)
    backbone.id2label = {5: "n01440764", 6: "tench"}
    assert match_labels([ImageClass("n01440764", "tench")], backbone) == [5]
    backbone.id2label = {6: "tench"}
    assert match_labels([ImageClass("n01440764", "tench")], backbone) == [6]
    backbone.id2label = {}
    assert match_labels([ImageClass("n01440764", "tench")], backbone) == [0]


def test_the_cache_is_in_the_home_by_default(monkeypatch):
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("MANIFOLDGD_CACHE")
    assert cache_folder().as_posix() == "/nonexistent/.cache/manifoldgd"


def test_an_unreachable_hub_is_called_unreachable(monkeypatch, tmp_path):
    asked = []

    def silent(name, kind):
        asked.append((name, kind))
        return "no answer within 8 s"

    monkeypatch.setattr("manifoldgd.backbones.backbone.ask_hub", silent)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(InputError, match="unreachable .no answer within 8 s., and there is no"):
        load_backbone("nobody/no-such-backbone")
    assert asked == [("nobody/no-such-backbone", "model")]
