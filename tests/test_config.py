"""Settings that cannot be used are refused in one line, before any work is done."""
import json
import math

import pytest

from manifoldgd.config.presets import PRESETS, DistillConfig, resolve
from manifoldgd.config.protocols import PROTOCOLS, adapt, default_protocol, shorten
from manifoldgd.config.settings import from_dict, to_dict
from manifoldgd.errors import InputError

MODE = {"preset": "mgd"}
RELEASED = {"preset": "released"}


@pytest.mark.parametrize("settings, words", [
    ({"preset": "best"}, "one of manifoldgd, paper, released, mgd, dit, decoded, random"),
    ({"ipc": 0}, "`ipc` to be between 1 and 100000, but got 0"),
    ({"ipc": 1.5}, "`ipc` to be int, but got 1.5"),
    ({"ipc": True}, "`ipc` to be int, but got True"),
    ({"kernel": "gauss"}, "`kernel` to be one of rbf, laplace, imq, but got 'gauss'"),
    ({"strength": math.nan}, "`strength` to be between -1000.0 and 1000.0, but got nan"),
    ({"strength": "strong"}, "`strength` to be"),
    ({"radius": math.inf}, "`radius` to be at least 0, but got inf"),
    ({"stop": 1.2}, "`stop` to be between 0 and 1, but got 1.2"),
    ({"start": .8, "stop": .5}, "`start` to be at most `stop`"),
    ({"cfg_start": .8, "cfg_stop": .5}, "`cfg_start` to be at most `cfg_stop`, but got 0.8"),
    ({"cfg_stop": 1.2}, "`cfg_stop` to be between 0 and 1, but got 1.2"),
    ({"dtype": "half"}, "`dtype` to be one of float32, bfloat16, float16, but got 'half'"),
    ({"num_inference_steps": 0}, "`num_inference_steps` to be between 1 and 1000"),
    ({"scheduler": "ddpm", "num_inference_steps": 1}, "at least 2, but got 1"),
    ({"tangent_dim": 12}, "`tangent_dim` to be between 0 and 11, but got 12"),
    ({"tangent_dim": -1}, "`tangent_dim` to be at least 0, but got -1. It may also be 'auto'"),
    ({"projection": 2}, "between 0 and 1, but got 2. It may also be 'annealed'"),
    ({"anneal_steps": 0}, "at least 1, but got 0. It may also be 'all'"),
    ({"cfg_channels": 0}, "at least 1, but got 0. It may also be 'all'"),
    ({"space": "xt", "kernel": "imq"}, "`kernel` to be 'rbf' with `space='xt'`"),
    ({"apply": "mean", "scheduler": "ddim"}, "`scheduler` to be 'ddpm' with `apply='mean'`"),
    ({"prototypes": "none"}, "`prototypes` to be chosen for `guidance='manifold'`"),
    ({"preset": "decoded", "prototypes": "none"}, "to be chosen for `images='decode'`"),
    (MODE | {"n_neighbors": 20}, "`n_neighbors` not to be given with `guidance='mode'`"),
    (MODE | {"pull": .2}, "`pull` not to be given"),
    (RELEASED | {"ridge": .1}, "`ridge` not to be given"),
    (RELEASED | {"tangent_dim": "auto"}, "`tangent_dim` to be a number"),
    (RELEASED | {"anneal_steps": "all"}, "`anneal_steps` to be a number"),
    ({"guidance": "released"}, "with `guidance='released'`"),
    ({"tune_epochs": 2}, "`tune_epochs` not to be given with `reference='none'`"),
    ({"preset": "minimax", "influence": .1}, "`influence` not to be given with `reference='minim"),
    ({"preset": "minimax", "stop": .4}, "`stop` not to be given with `guidance='none'`"),
    ({"preset": "igd", "scheduler": "ddim"}, "`scheduler` to be 'ddpm' with `reference='igd'`"),
    ({"preset": "igd", "guidance": "mode"}, "`guidance` to be 'none' with `reference='igd'`"),
])
def test_settings_that_cannot_be_used(settings, words):
    with pytest.raises(InputError) as error:
        resolve(DistillConfig(**settings))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_to_itself(preset):
    resolved = resolve(DistillConfig(preset=preset))
    left = {name for name, value in vars(resolved).items() if value is None}
    not_the_methods = {"named", "classes", "image_column", "label_column"}
    not_the_methods |= {"prompt", "recipe", "vae"}
    assert left == not_the_methods
    assert resolve(resolved) == resolved


def test_a_manifest_with_an_unknown_setting():
    with pytest.raises(InputError, match="the fields of DistillConfig, but got colour too"):
        from_dict(DistillConfig, {"colour": "red"})


def test_a_manifest_with_a_word_that_is_none():
    with pytest.raises(InputError, match="`kernel` to be one of"):
        from_dict(DistillConfig, {"kernel": 3})


def test_a_student_that_does_not_exist():
    with pytest.raises(InputError, match="but got 'VGG'"):
        adapt(PROTOCOLS["hard-label-256"], 10, 3, "VGG")


SMALL = {
    "student": "ConvNet",
    "width": 128,
    "cutmix": .5,
    "flip": True,
    "epochs": [[None, 1000]],
}
SMALL_32 = SMALL | {"depth": 3, "image_size": 32, "pad": 4, "cutout": 16}
SMALL_64 = SMALL | {"depth": 4, "image_size": 64, "pad": 8, "cutout": 32}
QUICK = {"epochs": [[None, 300]]}


@pytest.mark.parametrize("name, fields", [
    ("hard-label-32", SMALL_32),
    ("hard-label-32-quick", SMALL_32 | QUICK),
    ("hard-label-64", SMALL_64),
    ("hard-label-64-quick", SMALL_64 | QUICK),
])
def test_the_protocols_of_small_images(name, fields):
    """What differs from the optimizer and the schedule that all of them share.

    Rows of results hold this text: if it changed, trainings that are done would be done again."""
    text = shorten(to_dict(PROTOCOLS[name]))
    assert json.loads(text) == fields
    protocol = PROTOCOLS[name]
    assert (protocol.learning_rate, protocol.momentum, protocol.weight_decay) == (.01, .9, 5e-4)
    assert (protocol.batch_size, protocol.decay) == (64, .2)
    assert protocol.milestones == (2 / 3, 5 / 6)


@pytest.mark.parametrize("data, size, name", [
    ("digits", 32, "digits-quick"),
    ("DIR", 16, "hard-label-32"),
    ("DIR", 32, "hard-label-32"),
    ("DIR", 33, "hard-label-64"),
    ("DIR", 64, "hard-label-64"),
    ("DIR", 65, "hard-label-256"),
])
def test_the_protocol_of_a_size(data, size, name):
    assert default_protocol(data, size) == name
