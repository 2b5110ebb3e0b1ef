"""What the pages tell a reader to type, and the figures that they quote."""
import json
import re
import subprocess
from functools import cache

import pandas as pd
import pytest
from conftest import ROOT

from manifoldgd.cli import parse
from manifoldgd.config.presets import DistillConfig, resolve

PAGES = sorted((ROOT / "nbs").rglob("*.ipynb"))
BLOCK = re.compile(r"^```(?:bash|sh)?\n(.*?)^```", flags=re.M | re.S)
SHELL = re.compile(r"\s*(manifoldgd |for .*; do$|done$|base=|#|$)")

# What stands in for the command: it prints its arguments, each ended by a zero byte, then a line.
STAND_IN = r"""
manifoldgd() { printf '%s\0' "$@"; printf '\n'; }
"""


def blocks_of(page):
    "The blocks of a page that are made of our commands, and of loops around them."
    for cell in json.loads(page.read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            for block in BLOCK.findall("".join(cell["source"])):
                lines = block.replace("\\\n", " ").splitlines()
                if "manifoldgd " in block and all(map(SHELL.match, lines)):
                    yield block


def commands_of(block, folder):
    "What a shell makes of a block: a list of arguments for each command, in an empty folder."
    command = ["bash", "-e", "-u", "-c", STAND_IN + block]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [line.split("\0")[:-1] for line in done.stdout.splitlines()]


@cache
def read(*arguments):
    "The configuration of a command; of a distillation, with every setting filled in."
    config = parse(list(arguments))
    return resolve(config) if isinstance(config, DistillConfig) else config


TOLD = [(page, block) for page in PAGES for block in blocks_of(page)]
IDS = [f"{page.stem}-{number}" for number, (page, _) in enumerate(TOLD)]


def test_there_are_commands_to_read():
    pages = {page.stem for page, _ in TOLD}
    assert {"index", "first_distill", "reproduction"} <= pages


@pytest.mark.parametrize("page, block", TOLD, ids=IDS)
def test_commands_are_understood(page, block, tmp_path):
    commands = commands_of(block, tmp_path)
    assert commands
    for arguments in commands:
        read(*arguments)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    "The configurations of all distillations that the reproduction tells."
    folder = tmp_path_factory.mktemp("empty")
    blocks = [block for page, block in TOLD if page.stem == "reproduction"]
    commands = [command for block in blocks for command in commands_of(block, folder)]
    return [read(*command) for command in commands if command[0] == "distill"]


def test_no_two_runs_of_the_reproduction_share_a_folder_or_settings(configs):
    assert len({config.out for config in configs}) == len(configs)
    by_folder = {}
    for config in configs:
        folder = config.out.split("/")[1]
        settings = tuple(value for name, value in vars(config).items() if name != "out")
        by_folder.setdefault(folder, []).append(settings)
    for settings in by_folder.values():
        assert len(set(settings)) == len(settings)


def test_runs_of_the_reproduction_have_the_settings_of_the_paper(configs):
    depths = {
        "imagenette:in1k": 5,
        "imagewoof:in1k": 5,
        "imagenet100": 0,
        "imagenet1k": 0,
    }
    for config in configs:
        assert config.guidance_scale == 4
        assert config.num_inference_steps == 50
        assert config.scheduler == "ddpm"
        assert config.backbone == "facebook/DiT-XL-2-256"
        if config.prototypes == "levels":
            assert config.start_depth == depths[config.data]
    assert {config.seed for config in configs} == {0, 1, 2}


# The published figures

PUBLISHED = ROOT / "results" / "published.csv"
PLACE = ["table", "dataset", "ipc", "network", "method", "paper"]


@pytest.fixture
def published():
    return pd.read_csv(PUBLISHED, keep_default_na=False)


def test_every_published_figure_has_its_place_and_stands_once(published):
    assert list(published) == [*PLACE, "top1", "note"]
    assert not published.duplicated(PLACE).any()
    assert published.top1.between(5, 95).all()
    assert (published[["table", "dataset", "network", "method"]] != "").all(axis=None)


def test_a_figure_that_two_tables_tell_differently_has_a_note(published):
    settings = ["table", "ipc", "network", "method"]
    several = published[published.duplicated(settings, keep=False)]
    assert set(several.method) == {"Minimax", "MGD"}
    assert (several.note != "").all()
    full = published[published.method.isin(["ManifoldGD", "+ annealing", "RBF, projected"])]
    same = full[(full.dataset == "imagenette") & (full.ipc == 10)]
    same = same[same.network == "ResNetAP-10"]
    assert sorted(same.top1) == [64.1, 64.4, 64.5]
    assert same.note.nunique() == 1
    assert same.note.iloc[0] != ""


def test_some_figures_as_they_were_published(published):
    "Typed a second time, so that a slip of one hand is found."
    figures = published.set_index(["table", "method", "paper", "ipc", "network"]).top1.sort_index()
    rows = figures["ImageNette"]
    assert rows["random", ""].tolist() == [54.2, 63.5, 76.1]
    assert rows["DiT", ""].tolist() == [59.1, 64.8, 73.3]
    assert rows["MGD", "MGD"].tolist() == [66.4, 71.2, 79.5]
    assert rows["MGD", "ManifoldGD"].tolist() == [61.9, 66.5, 77.5]
    assert rows["ManifoldGD", "ManifoldGD"].tolist() == [64.1, 69.7, 78.4]
    assert figures["ablation", "level-wise", "ManifoldGD", 10].to_dict() == {
        "ConvNet-6": 59.2,
        "ResNetAP-10": 63.3,
        "ResNet-18": 61.1,
    }
