"""The scripts that measure: nothing happens at import, each has a table, and no row is lost."""
import argparse
import importlib
import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib
import pandas as pd
import pytest
import torch
from conftest import ROOT
from PIL import Image

from manifoldgd.backbones.backbone import load_backbone
from manifoldgd.cli import parse
from manifoldgd.config.commands import PretrainConfig
from manifoldgd.config.presets import PRESETS, resolve
from manifoldgd.core import git_commit
from manifoldgd.evaluation.comparison import t_interval
from manifoldgd.geometry.neighborhood import find_candidates, stack_candidates
from manifoldgd.guidance.guidance import Step
from manifoldgd.guidance.manifold import ManifoldGuidance
from manifoldgd.pretraining.training import pretrain
from manifoldgd.sampling.loop import NotFinite

NAMES = sorted(p.stem for p in (ROOT / "experiments").glob("*.py"))
SHARED = {"controls", "ledger", "sweep"}  # what the scripts have in common
SCRIPTS = [name for name in NAMES if name not in SHARED]
QUOTED = {"published"}  # tables of published figures, which no script measures
UNMEASURED = {  # not run to their end yet
    "compare",
    "family_cost",
    "prediction",
    "sampler_speed",
    "start_up",
    "steps",
    "tuning",
}


@pytest.fixture
def load(monkeypatch):
    "Import a script by its name, as if it stood on the command line with a wrong option."
    monkeypatch.syspath_prepend(ROOT / "experiments")
    monkeypatch.setattr(sys, "argv", ["experiments/script.py", "--no-such-option"])
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


@pytest.fixture
def ledger(load):
    return load("ledger")


def state():
    "What a script could change by being imported."
    tables = {p.name: p.read_bytes() for p in (ROOT / "results").iterdir()}
    seeded = torch.random.get_rng_state().tolist()
    return tables, torch.get_num_threads(), matplotlib.get_backend(), seeded


@pytest.mark.parametrize("name", NAMES)
def test_importing_a_script_does_nothing(load, name, monkeypatch):
    monkeypatch.setitem(matplotlib.rcParams, "backend", "svg")
    before = state()
    module = load(name)
    assert state() == before
    assert name in SHARED or callable(module.main)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_its_table_and_its_command(load, name):
    doc = load(name).__doc__
    assert f"python experiments/{name}.py" in doc
    assert f"results/{name}.csv" in doc


def test_scripts_and_tables_have_one_stem():
    tables = {p.stem for p in (ROOT / "results").glob("*.csv")}
    assert tables - QUOTED == set(SCRIPTS) - UNMEASURED


def git(*arguments):
    "What git says of this repository, or nothing."
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@pytest.mark.skipif(
    git("rev-parse", "--is-shallow-repository") != "false",
    reason="the commits of the tables are looked for in the whole history",
)
def test_tables_were_measured_with_commits_of_this_history():
    history = set(git("rev-list", "HEAD").splitlines())
    for path in (ROOT / "results").glob("*.csv"):
        table = pd.read_csv(path)
        commits = set(table["commit"]) if path.stem not in QUOTED else set()
        assert commits <= history, f"{path.name} names a commit that is not in the history."


def test_three_seeds_tell_no_strength_of_the_presets_from_another():
    "What the page of presets says of `results/preset_strength.csv`."
    rows = pd.read_csv(ROOT / "results" / "preset_strength.csv")
    rows["arm"] = rows.run.str.extract(r"([^/]+)-ipc")[0]
    means = rows.groupby(["generation_seed", "arm"]).top1_last.mean().unstack()
    assert means.shape == (3, 7)
    for one, other in itertools.combinations(means, 2):
        mean, _, interval = t_interval(means[one] - means[other])
        assert abs(mean) < interval, f"{one} and {other}"


def test_a_wrong_option_is_refused(load, capsys):
    with pytest.raises(SystemExit) as stop:
        load("strength").main()
    assert stop.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


# The ledger

def test_rows_are_appended(ledger, tmp_path):
    book = ledger.Ledger(tmp_path / "new folder" / "table.csv")
    book.add({"a": 1, "b": "x"})
    book.add({"a": 2, "b": "y", "later": .5})
    table = pd.read_csv(book.path)
    assert list(table) == ["a", "b", "later"]
    assert table.a.tolist() == [1, 2]
    assert table.later.isna().tolist() == [True, False]


def test_a_row_is_appended_whole_or_not_at_all(ledger, tmp_path, monkeypatch):
    book = ledger.Ledger(tmp_path / "table.csv")
    book.add({"a": 1})
    before = book.path.read_bytes()

    def stopped(self, path, **options):
        path.write_text("a\n1\n")
        raise KeyboardInterrupt

    monkeypatch.setattr(pd.DataFrame, "to_csv", stopped)
    with pytest.raises(KeyboardInterrupt):
        book.add({"a": 2})
    assert book.path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["table.csv"]


def test_a_table_with_a_key_is_resumed(ledger, tmp_path):
    path = tmp_path / "table.csv"
    options = {"key": ("strength", "seed"), "float_format": "%.6g"}
    ledger.Ledger(path, **options).add({"strength": .1 * 3, "seed": 0, "top1": 85.5})
    book = ledger.Ledger(path, **options)
    assert {"strength": .3, "seed": 0} in book
    assert {"strength": .3, "seed": 1} not in book
    book.add({"strength": .3, "seed": 1, "top1": 86.})
    assert {"strength": .3, "seed": 1} in book
    assert pd.read_csv(path).top1.tolist() == [85.5, 86.]


def test_a_table_without_a_key_is_begun_anew(ledger, tmp_path):
    path = tmp_path / "table.csv"
    ledger.Ledger(path).add({"a": 1})
    book = ledger.Ledger(path)
    assert {"a": 1} not in book
    assert path.exists(), "Expected the old table to stand until there is a new row."
    book.add({"a": 2})
    assert {"a": 2} not in book
    assert pd.read_csv(path).a.tolist() == [2]


def test_provenance(ledger, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["experiments/strength.py", "--arms", "random plane"])
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    told = ledger.provenance("torch", "commit", "threads", "machine", "command")
    assert list(told) == ["torch", "commit", "threads", "machine", "command"]
    assert told["commit"] == git_commit()
    assert told["torch"] == torch.__version__
    assert told["threads"] == torch.get_num_threads()
    command = "OMP_NUM_THREADS=2 python experiments/strength.py --arms 'random plane'"
    assert told["command"] == command


def test_the_table_is_an_option(ledger):
    parser = ledger.new_parser("What is measured.", "strength")
    assert parser.parse_args([]).out == ROOT / "results" / "strength.csv"
    assert parser.parse_args(["--out", "other.csv"]).out.name == "other.csv"


# The sweep of strengths

@pytest.fixture
def strength(load):
    return load("strength")


def sweep(**options):
    "The command line of the whole sweep, with some options changed."
    defaults = {"ipc": [1, 5], "schedulers": ["ddim", "ddpm"], "stops": [.5, 1.], "arms": None}
    return argparse.Namespace(**defaults | {"seeds": 3, "trainings": 2} | options)


def test_nothing_is_missing_of_the_committed_sweep(strength, ledger):
    args = sweep()
    book = ledger.Ledger(ROOT / "results" / "strength.csv", strength.KEY)
    cells = strength.list_cells(args)
    assert 6 * len(cells) == len(book.rows)
    assert not [cell for cell in cells if strength.list_missing(cell, args, book)]
    assert len(strength.list_missing(cells[0], sweep(seeds=4), book)) == 2


def test_strengths_of_the_sweep(strength):
    def strengths(arm, scheduler, stop):
        args = sweep(arms=[arm], schedulers=[scheduler], stops=[stop], ipc=[1])
        return [cell.strength for cell in strength.list_cells(args)]

    assert strengths("mode", "ddim", .5) == [.01, .03, .06, .1, .3]
    assert strengths("mode", "ddpm", 1.) == [.09, .3, .9]
    assert strengths("rescaled", "ddim", .5) == [.03, .1, .3, 1., 3.]
    assert strengths("rescaled", "ddpm", .5) == [.3, .9, 3.]


def guided(kind, dim=3):
    "A guidance of two samples in 16 dimensions with planes of `dim`, and a step to ask it at."
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 40, 16, generator=generator)
    candidates = stack_candidates([find_candidates(z.mean(0), z) for z in latents])
    own = [torch.Generator().manual_seed(b) for b in range(2)]
    guidance = kind(latents.mean(1), candidates, tangent_dim=dim, generator=own)
    x, x0, noise_pred = torch.randn(3, 2, 16, generator=generator)
    return guidance, Step(x, x0, noise_pred, .5, 0, 10)


def test_the_rescaled_control_is_as_long_as_the_tangent_part(strength):
    guidance, step = guided(ManifoldGuidance)
    rescaled, _ = guided(strength.Rescaled)
    m, tangent, control = guidance.mode(step), guidance.vector(step), rescaled.vector(step)
    torch.testing.assert_close(control.norm(dim=1), tangent.norm(dim=1))
    torch.testing.assert_close(torch.cosine_similarity(control, m), torch.ones(2))
    assert (torch.cosine_similarity(tangent, m) < .99).all()


def test_the_random_plane_is_fixed_and_has_the_dimension(strength):
    guidance, step = guided(ManifoldGuidance)
    own = [torch.Generator().manual_seed(k) for k in range(2)]
    guidance.planes = strength.RandomPlanes(guidance.planes.dims, own)
    first, query = guidance.planes(step, 0.)
    assert first.basis.shape == (2, 3, 16)
    assert guidance.planes(step, 0.)[0] is first
    torch.testing.assert_close(query, step.x0)
    torch.testing.assert_close(first.basis @ first.basis.mT, torch.eye(3).expand(2, 3, 3))
    torch.testing.assert_close(guidance.vector(step), first.tangent(guidance.mode(step)))
    assert (first.basis[0] - first.basis[1]).norm() > .5, "Expected each image's own plane."


def test_a_strength_without_finite_samples_has_rows_without_results(strength, monkeypatch):
    def lost(*args):
        raise NotFinite("Expected finite samples.", [0])

    monkeypatch.setattr(strength, "make_images", lost)
    missing = [{"seed": 0, "training_seed": 0}, {"seed": 0, "training_seed": 1}]
    assert list(strength.rows_of(None, None, None, missing)) == missing


# The speed of the sampler

@pytest.fixture
def speed(load):
    return load("sampler_speed")


CHEAP = ["guided", "plain", "batched", "batch", "latent", "neighbors", "matmul"]


def run_script(module, monkeypatch, *arguments):
    "Run a script with these arguments."
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    module.main()


def test_figures_of_a_tiny_sampler(speed, monkeypatch, tmp_path):
    "All rows are there, each has a ratio, and a second run has nothing to do."
    path = tmp_path / "table.csv"
    arguments = ("--model", "tiny", "--repeats", "1", "--out", str(path), "--figures", *CHEAP)
    run_script(speed, monkeypatch, *arguments)
    table = pd.read_csv(path)
    settings = {name: speed.FIGURES[name].settings for name in CHEAP}
    settings["latent"] = ("side 4", "side 8", "side 16")
    for name in CHEAP:
        assert table[table.figure == name].setting.tolist() == list(settings[name])
    others = table[table.figure != "matmul"]
    assert (others.ratio - others.seconds / others.beside).abs().max() < 1e-3 * others.ratio.max()
    assert table.ratio.gt(0).all()
    before = path.read_bytes()
    run_script(speed, monkeypatch, *arguments)
    assert path.read_bytes() == before


def test_the_plain_sampler_makes_the_same_samples(speed):
    "Another way to the same latents, written from the formulas, so that the comparison is fair."
    bench = speed.Bench("tiny", torch.device("cpu"))
    images = bench.images(2)
    unguided = bench.run(images)
    guided = bench.run(images, images.guidance())
    plain = torch.cat([speed.plain_sample(bench, images.one(k)) for k in range(2)])
    torch.testing.assert_close(plain, guided, atol=1e-3, rtol=1e-4)
    assert (guided - unguided).norm() > 100 * (guided - plain).norm()


def test_missing_rows_of_the_sampler(speed, ledger, tmp_path):
    bench = speed.Bench("tiny", torch.device("cpu"))
    args = argparse.Namespace(model="tiny", figures=["plain", "neighbors"], repeats=3)
    book = ledger.Ledger(tmp_path / "table.csv", speed.KEY)
    rows = speed.list_missing(args, bench, book)
    assert len(rows) == 1 + 3 * len(speed.NEIGHBOR_COUNTS), "Expected one repeat of the slow one."
    book.add(rows[0])
    book = ledger.Ledger(tmp_path / "table.csv", speed.KEY)
    assert speed.list_missing(args, bench, book) == rows[1:]


# Fewer steps

@pytest.fixture
def steps(load):
    return load("steps")


def test_cells_of_the_samplers(steps):
    cells = steps.list_cells(["dit"])
    assert len(cells) == len(set(cells)) == 11 * 2
    sampled = {(cell.scheduler, cell.steps) for cell in cells}
    assert {("dpm++", 10), ("unipc", 25), ("ddim", 25), ("ddim", 50), ("ddpm", 50)} <= sampled
    outs = {cell.config(Path("runs"), seed).out for cell in cells for seed in steps.SEEDS}
    assert len(outs) == len(cells) * len(steps.SEEDS)


def test_a_cell_is_a_row_for_each_seed(steps, ledger, monkeypatch, tmp_path):
    "Distilling, training and measuring stand still; the times and the table are real."
    monkeypatch.setattr(steps, "distill", lambda config: config.out)
    monkeypatch.setattr(steps, "accuracies", lambda runs, folder: dict.fromkeys(runs, 90.))
    monkeypatch.setattr(steps, "metrics", lambda runs, folder: dict.fromkeys(runs, {"fid": 1.}))
    monkeypatch.setattr(steps, "SAMPLERS", (("dpm++", 10),))
    monkeypatch.setattr(steps, "IPCS", (1,))
    monkeypatch.setattr(steps, "SEEDS", (0, 1))
    monkeypatch.setattr(steps, "TIMED", 2)
    path = tmp_path / "steps.csv"
    for _ in range(2):  # the second run has nothing to do
        run_script(steps, monkeypatch, "--out", str(path))
        table = pd.read_csv(path)
        assert table.seed.tolist() == [0, 1]
        assert table.top1.tolist() == [90., 90.]
        assert (table.ratio - table.seconds / table.beside).abs().max() < 1e-3


# Three predictions

@pytest.fixture
def prediction(load):
    return load("prediction")


@pytest.fixture
def colors(tmp_path):
    "Squares of two colors to train and to test on, and a backbone of them."
    for split, name, k in itertools.product(("train", "val"), ("red", "blue"), range(4)):
        path = tmp_path / "data" / split / name / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        color = (200, 30 * k, 20) if name == "red" else (20, 30 * k, 200)
        Image.new("RGB", (8, 8), color).save(path)
    config = PretrainConfig(
        data=str(tmp_path / "data"),
        out=str(tmp_path / "model"),
        image_size=8,
        vae_widths=(8, 16),
        vae_steps=2,
        views=2,
        hidden_size=32,
        num_layers=1,
        dit_steps=2,
        dit_batch_size=4,
        device="cpu",
    )
    pretrain(config, progress=False)
    return tmp_path


@pytest.mark.filterwarnings("ignore:This backbone may be too poor")
def test_predictions_are_compared_row_by_row(prediction, colors, monkeypatch):
    monkeypatch.setattr(prediction, "SCALES", (1., 2.))
    monkeypatch.setattr(prediction, "SAMPLERS", {"v": ("ddim",), "velocity": ("flow-euler",)})
    path = colors / "prediction.csv"
    arguments = ("--data", str(colors / "data"), "--vae", str(colors / "model"), "--steps", "10",
                 "--samples", "4", "--runs", str(colors / "runs"), "--out", str(path))
    run_script(prediction, monkeypatch, *arguments)
    table = pd.read_csv(path)
    assert table.prediction.tolist() == ["v"] * 4 + ["velocity"] * 4
    assert table.steps.tolist() == [5, 5, 10, 10] * 2
    assert table.fingerprint.nunique() == 4
    assert table.fid_floor.nunique() == table.fid_decoded.nunique() == 1
    assert table.mmd.notna().all()
    spent = table.groupby("prediction").core_minutes.unique()
    assert all(half < whole for half, whole in spent)
    before = path.read_bytes()
    monkeypatch.setattr(prediction, "figures", None)
    run_script(prediction, monkeypatch, *arguments)
    assert path.read_bytes() == before
    scales = {
        load_backbone(str(place.parent)).vae.config.scaling_factor
        for place in (colors / "runs").rglob("model_index.json")
    }
    assert len(scales) == 1, "Expected the same latents for all trainings."


# All methods in one table

@pytest.fixture
def compare(load):
    return load("compare")


def test_every_preset_is_compared(compare):
    assert set(compare.NEEDS) == {*PRESETS, compare.WHOLE}
    cells = compare.list_cells(list(compare.NEEDS), [1, 10])
    keys = [tuple(c.key(seed).values()) for c in cells for seed in range(c.count)]
    assert len(set(keys)) == len(keys) == 15 * len(PRESETS) + 2
    few = compare.list_cells(["dit", "whole"], [1], 1)
    assert [(cell.method, cell.count) for cell in few] == [("dit", 1), ("whole", 1)]


def test_a_run_is_the_command_that_makes_it(compare):
    for cell in compare.list_cells(list(PRESETS), [1, 10]):
        config = cell.config(3, Path("runs/compare"))
        resolve(config)
        *start, word = compare.command_of(config)[:4]
        assert (start[1], word) == ("-c", "distill")
        assert parse(compare.command_of(config)[3:]) == config


def test_a_cell_is_a_row_for_each_training(compare, ledger, monkeypatch, tmp_path):
    "Runs, costs and trainings stand still; the table is real, and the second run adds nothing."
    made = []
    monkeypatch.setattr(compare, "distill", lambda config: made.append(config.seed))
    monkeypatch.setattr(compare, "make_and_measure", lambda config: {"seconds": 9.})

    def trained(sets, trainings, folder):
        "Rows as `evaluate` makes them, in another order."
        of_runs = sets != (compare.DIGITS,)
        numbers = range(len(sets) if of_runs else trainings)
        return [{"generation_seed": k if of_runs else -1, "training_seed": 0 if of_runs else k,
                 "top1_last": 80. + k, "student": "ConvNet-3", "n_test": 450, "seconds": 1.}
                for k in reversed(numbers)]

    monkeypatch.setattr(compare, "trained", trained)
    path = tmp_path / "compare.csv"
    arguments = ("--methods", "dit", "whole", "--ipc", "1", "--seeds", "3", "--out", str(path))
    for _ in range(2):
        run_script(compare, monkeypatch, *arguments, "--runs", str(tmp_path))
        table = pd.read_csv(path)
        assert table.method.tolist() == ["dit"] * 3 + ["whole"] * 2
        assert table.seed.tolist() == [0, 1, 2, -1, -1]
        assert table.top1.tolist() == [80., 81., 82., 80., 81.]
        assert table.seconds.tolist()[0] == 9. and table.seconds.isna().sum() == 4
    assert made == [1, 2]
