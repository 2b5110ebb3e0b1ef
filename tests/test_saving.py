"""A guidance comes back from its folder as it was, and what is no guidance is refused."""
import json

import pytest
import torch

from manifoldgd.backbones.backbone import tiny_backbone
from manifoldgd.core import image_generator
from manifoldgd.errors import InputError
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import NoGuidance, Step
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.guidance.mode import ModeGuidance
from manifoldgd.guidance.released import ReleasedGuidance
from manifoldgd.sampling.pipeline import ManifoldGDPipeline
from manifoldgd.sampling.saving import load_guidance, save_guidance, settings_of_guidance
from manifoldgd.sampling.schedulers import make_scheduler

CLOUDS = torch.randn(2, 40, 16, generator=torch.Generator().manual_seed(0))
CENTERS = CLOUDS.mean(1)
CANDIDATES = stack_candidates([
    find_candidates(CENTERS[0], CLOUDS[0], n_points=30),
    find_candidates(CENTERS[1], CLOUDS[1], n_points=20),
])
WINDOW = {"strength": .3, "start": .1, "stop": .9}
KERNEL = {"kernel": "imq", "bandwidth": 2.}
PLANES = {"n_neighbors": 8, "tangent_dim": 3, "radius": 1.5, "radius_factor": 3.}


def generators():
    return [image_generator(0, "owl", k, "cloud") for k in range(2)]


def all_changed():
    "A manifold guidance of which no setting has its default."
    rest = {"annealing": "linear", "anneal_steps": 3, "adaptive": True, "ridge": .1}
    settings = WINDOW | KERNEL | PLANES | rest | {"projection": .5, "noise": "independent"}
    return ManifoldGuidance(CENTERS, CANDIDATES, generators(), apply="mean", **settings)


MAKERS = {
    "none": NoGuidance,
    "mode": lambda: ModeGuidance(CENTERS, **WINDOW, space="xt", apply="mean"),
    "mode with a kernel": lambda: ModeGuidance(CENTERS, CANDIDATES.spread, **WINDOW, **KERNEL),
    "manifold": lambda: ManifoldGuidance(CENTERS, CANDIDATES),
    "manifold, all changed": all_changed,
    "manifold, annealed": lambda: ManifoldGuidance(CENTERS, CANDIDATES, projection="annealed"),
    "released": lambda: ReleasedGuidance(CENTERS, generators(), pull=.2, n_points=50),
}


def pushes(guidance):
    "How far the guidance pushes two samples in two steps."
    found = []
    for index in range(2):
        own = torch.Generator().manual_seed(index)
        x, x0, noise_pred = torch.randn(3, 2, 16, generator=own)
        step = Step(x, x0, noise_pred, .5, index, 10, .6, .4, .3)
        found.append(guidance.rule.push(guidance.strength * guidance.vector(step), step))
    return torch.stack(found)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_guidance_comes_back(kind, tmp_path):
    guidance = MAKERS[kind]()
    save_guidance(guidance, tmp_path)
    loaded = load_guidance(tmp_path)
    assert type(loaded) is type(guidance)
    assert settings_of_guidance(loaded) == settings_of_guidance(guidance)
    if kind != "none":
        assert torch.equal(pushes(loaded), pushes(guidance))
    active = [[g.active(i, 10) for i in range(10)] for g in (loaded, guidance)]
    assert active[0] == active[1]


def test_every_setting_of_a_guidance_is_saved():
    "Against the constructor: what was given is what is found."
    given = WINDOW | KERNEL | PLANES | {"apply": "mean", "projection": .5, "noise": "independent"}
    found = settings_of_guidance(all_changed())
    assert {name: found[name] for name in given} == given


def test_generators_go_on_where_they_were(tmp_path):
    guidance = all_changed()
    pushes(guidance)
    save_guidance(guidance, tmp_path)
    assert torch.equal(pushes(load_guidance(tmp_path)), pushes(guidance))


def test_beside_a_pipeline_and_without_pickles(tmp_path):
    tiny = tiny_backbone()
    parts = (tiny.vae, tiny.transformer, make_scheduler("ddim", tiny))
    ManifoldGDPipeline(*parts).save_pretrained(tmp_path)
    save_guidance(all_changed(), tmp_path)
    ManifoldGDPipeline.from_pretrained(tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    config = json.loads((tmp_path / "guidance" / "config.json").read_text())
    assert config["guidance"] == "manifold"
    assert config["tangent_dim"] == 3


def test_only_guidances_of_the_package_are_saved(tmp_path):
    class Own(ModeGuidance):
        pass

    with pytest.raises(InputError, match="guidance that can be saved .*, but got Own"):
        save_guidance(Own(CENTERS), tmp_path)
    assert not list(tmp_path.iterdir())


def spoil(path, change):
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("change", [
    lambda config: config.pop("guidance"),
    lambda config: config.update(guidance="best"),
    lambda config: config.update(strength="strong"),
    lambda config: config.update(no_such_setting=1),
])
def test_a_folder_that_cannot_be_read(tmp_path, change):
    save_guidance(ModeGuidance(CENTERS), tmp_path)
    spoil(tmp_path / "guidance" / "config.json", change)
    with pytest.raises(InputError):
        load_guidance(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "guidance.safetensors"])
def test_a_file_that_is_missing_or_damaged(tmp_path, name):
    save_guidance(ModeGuidance(CENTERS), tmp_path)
    path = tmp_path / "guidance" / name
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(InputError, match="a saved guidance in .*, but it could not be read"):
        load_guidance(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="could not be read"):
        load_guidance(tmp_path)
