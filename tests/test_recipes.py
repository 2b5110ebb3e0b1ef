"""Recipes: what they set, what is left to the user, and commands that can be typed."""
import shlex

import pytest

from manifoldgd.cli import parse
from manifoldgd.config.presets import PRESETS, DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS
from manifoldgd.config.recipes import PROTOCOL, RECIPES, tell_recipe
from manifoldgd.config.settings import from_dict, to_dict
from manifoldgd.data.named import DATASETS, named_classes

LEVELS = {"imagenette": 6, "imagewoof": 6, "imagenet100": 1, "imagenet1k": 1}  # of the scripts
CLASSES = {"imagenette": 10, "imagewoof": 10, "imagenet100": 100, "imagenet1k": 1000}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_that_of_the_scripts(recipe):
    config = resolve(DistillConfig(recipe=recipe))
    assert config.start_depth == LEVELS[recipe] - 1, "Scripts count levels from 1."
    assert len(named_classes(DATASETS[config.data])) == CLASSES[recipe]
    assert config.backbone == "facebook/DiT-XL-2-256"
    assert config.guidance_scale == 4.
    assert PROTOCOL in PROTOCOLS


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_goes_with_a_recipe(preset):
    without = vars(resolve(DistillConfig(preset=preset, data="elsewhere", backbone="a/b")))
    resolved = resolve(DistillConfig(preset=preset, recipe="imagenette"))
    changed = {name for name, value in vars(resolved).items() if value != without[name]}
    assert changed == {"recipe", "data", "backbone", "start_depth", "out"}
    assert resolve(from_dict(DistillConfig, to_dict(resolved))) == resolved


def test_what_is_given_stands():
    given = {"data": "DIR", "backbone": "MODEL", "start_depth": 0, "ipc": 1}
    resolved = resolve(DistillConfig(recipe="imagewoof", **given))
    assert {name: getattr(resolved, name) for name in given} == given


@pytest.mark.parametrize("options", [
    {},
    {"preset": "mgd", "data": "my photos", "trace": True, "named": "imagewoof:in1k"},
    {"adaptive": True, "anneal_steps": 3, "dtype": "bfloat16", "batch_size": 8},
])
def test_the_commands_of_a_table_can_be_typed(options):
    "The loop's command, read back, is the configuration that it was written from."
    asked = DistillConfig(recipe="imagewoof", show=True, ipc=7, **options)
    lines = tell_recipe(asked, resolve(asked).out).splitlines()
    command = lines[1].replace("$ipc", "50").replace("$seed", "2")
    program, *arguments = shlex.split(command)
    assert program == "manifoldgd"
    assert parse(arguments) == DistillConfig(recipe="imagewoof", ipc=50, seed=2, **options)
    judging = " ".join(lines[3:]).replace("\\", " ").replace("*", "10-seed0")
    _, *arguments = shlex.split(judging)
    evaluation = parse(arguments)
    assert evaluation.protocol == "hard-label-256"
    assert evaluation.students == ("ConvNet-6", "ResNetAP-10", "ResNet-18")
    own = resolve(DistillConfig(recipe="imagewoof", ipc=10, seed=0, **options)).out
    assert evaluation.sets == (own,)
