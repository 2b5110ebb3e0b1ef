"""The package as its users meet it.

Its public names, its wheel, a command line that answers before anything heavy is loaded, and the
scripts in `experiments/`.
"""
import ast
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import manifoldgd

PACKAGE = ROOT / "manifoldgd"
FOUND = sorted(path.relative_to(ROOT).with_suffix("") for path in PACKAGE.rglob("*.py"))
MODULES = [".".join(path.parts) for path in FOUND if not path.name.startswith("_")]
HEAVY = {"torch", "diffusers", "sklearn", "matplotlib", "pandas", "numpy", "PIL"}

EXPERIMENTS = ROOT / "experiments"
SCRIPTS = sorted(EXPERIMENTS.glob("*.py"))


def python(code, cwd=ROOT):
    "What a fresh interpreter prints when it runs the code."
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Public names


def test_a_module_never_hides_a_public_name():
    assert {"manifoldgd.core", "manifoldgd.data.images"} <= set(MODULES)
    for module in MODULES:
        importlib.import_module(module)
    folders_and_modules = {path.stem for path in PACKAGE.iterdir()}
    assert not set(manifoldgd.__all__) & folders_and_modules
    assert set(manifoldgd.__all__) <= set(dir(manifoldgd))


@pytest.mark.parametrize("name", manifoldgd.__all__)
def test_public_name(name):
    assert callable(getattr(manifoldgd, name))


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'destill'"):
        _ = manifoldgd.destill
    with pytest.raises(ImportError):
        exec("from manifoldgd import destill")


# What is loaded


def test_importing_the_package_is_light():
    loaded = set(python("import sys, manifoldgd; dir(manifoldgd); print(*sys.modules)").split())
    assert not loaded & HEAVY


WRONG = [["distill", "--no-such-option", "1"], ["no-such-command"]]
RUN_COMMAND = """
import sys
from manifoldgd.cli import main
try:
    status = main({arguments})
except SystemExit as stop:
    status = stop.code or 0
print("STATUS", status, *sys.modules)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], *WRONG], ids=" ".join)
def test_help_and_wrong_arguments_load_nothing_heavy(arguments):
    printed = python(RUN_COMMAND.format(arguments=arguments))
    status, *loaded = printed.rpartition("STATUS")[2].split()
    assert status == ("2" if arguments in WRONG else "0")
    assert not set(loaded) & HEAVY


SMALL = ("distill", "--ipc", "1", "--classes", "0,1", "--num-inference-steps", "2",
         "--device", "cpu", "--out")
AS_COMMAND = """
import sys
from manifoldgd.cli import main
sys.argv[1:] = {arguments}
print("STATUS", main(), *sys.modules)
"""
NOT_NEEDED = {"pandas", "scipy", "sklearn", "sympy", "torch._dynamo", "transformers"}


def test_the_command_imports_less_and_makes_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setenv("MANIFOLDGD_CACHE", str(tmp_path / "cache"))
    loaded = {}
    for name, code in (("program", RUN_COMMAND), ("command", AS_COMMAND)):
        printed = python(code.format(arguments=[*SMALL, str(tmp_path / name)]))
        status, *names = printed.rpartition("STATUS")[2].split()
        assert status == "0"
        loaded[name] = set(names)
    assert not loaded["command"] & NOT_NEEDED
    assert "torch._dynamo" in loaded["program"], "Expected diffusers as it is in a program."
    images = [{p.relative_to(tmp_path / name): p.read_bytes()
               for p in (tmp_path / name).rglob("*.png")} for name in loaded]
    assert images[0] == images[1]
    assert len(images[0]) == 3  # two digits and the gallery


# The wheel


def copy_checkout(folder):
    "Copy what a build needs, so that no build folder is left here."
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(PACKAGE, folder / "manifoldgd", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "The wheel, built offline from a copy."
    folder = tmp_path_factory.mktemp("wheel")
    copy_checkout(folder)
    build = [sys.executable, "-m", "pip", "wheel", ".", "--wheel-dir", "out"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*build, *offline], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder / "out").glob("*.whl"))


def test_wheel_holds_the_subpackages_the_weights_and_the_tables(wheel):
    files = [path for path in PACKAGE.rglob("*") if path.is_file()]
    here = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert "manifoldgd/data/images.py" in here
    assert any(name.endswith(".safetensors") for name in here), "Expected the digits' weights."
    assert "manifoldgd/tables/digits_split.json" in here
    assert not here - set(zipfile.ZipFile(wheel).namelist())


def test_wheel_states_its_licence_and_command(wheel):
    archive = zipfile.ZipFile(wheel)

    def text(ending):
        return next(archive.read(n).decode() for n in archive.namelist() if n.endswith(ending))

    assert "License-Expression: Apache-2.0" in text("METADATA")
    assert f"Version: {manifoldgd.__version__}" in text("METADATA")
    assert "manifoldgd = manifoldgd.cli:main" in text("entry_points.txt")


IMPORT_WHEEL = """
import sys
sys.path.insert(0, {folder!r})
import manifoldgd
from manifoldgd.config.presets import DistillConfig
assert manifoldgd.DistillConfig is DistillConfig
print(manifoldgd.__file__, manifoldgd.__version__)
"""


def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    folder = os.fspath(tmp_path)
    zipfile.ZipFile(wheel).extractall(folder)
    file, version = python(IMPORT_WHEEL.format(folder=folder), cwd=folder).split()
    assert file.startswith(folder)
    assert version == manifoldgd.__version__


EDITABLE = "from setuptools.build_meta import build_editable; build_editable({folder!r})"
IMPORT_EDITABLE = """
import site
site.addsitedir({folder!r})
import manifoldgd
print(manifoldgd.__file__)
manifoldgd.DistillConfig
"""


def test_an_editable_install_is_found_beside_its_checkout(tmp_path):
    "A folder that holds a checkout called manifoldgd holds no package of that name."
    checkout, installed = tmp_path / "projects" / "manifoldgd", tmp_path / "installed"
    checkout.mkdir(parents=True)
    copy_checkout(checkout)
    python(EDITABLE.format(folder=str(tmp_path)), cwd=checkout)
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(installed)
    code = IMPORT_EDITABLE.format(folder=str(installed))
    for place in (checkout.parent, checkout, tmp_path):
        command = [sys.executable, "-E", "-S", "-c", code]  # without this environment's packages
        done = subprocess.run(command, cwd=place, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(checkout / "manifoldgd" / "__init__.py")


# The scripts


@pytest.mark.skipif(not EXPERIMENTS.is_dir(), reason="a source tree without experiments/")
def test_there_are_experiments():
    assert EXPERIMENTS / "demo.py" in SCRIPTS, "Expected the script that `make demo` runs."


def running_parts(script):
    "The statements of a script that run whenever it is imported, other than definitions."
    for part in ast.parse(script.read_text()).body:
        is_main = isinstance(part, ast.If) and ast.unparse(part.test) == "__name__ == '__main__'"
        if isinstance(part, (ast.For, ast.While, ast.With, ast.If, ast.Try)) and not is_main:
            yield ast.unparse(part)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_importing_an_experiment_runs_nothing(script, monkeypatch, capfd, tmp_path):
    "Not even its reading of the command line: the arguments of this process are not its own."
    assert not list(running_parts(script)), 'Expected it under `if __name__ == "__main__":`.'
    monkeypatch.syspath_prepend(EXPERIMENTS)
    monkeypatch.setattr(sys, "argv", [script.name, "--no-such-option"])
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script.stem, module)
    spec.loader.exec_module(module)
    assert capfd.readouterr().out == ""
    assert not list(tmp_path.iterdir()), "Expected an import to write no file."
