"""The package as its users meet it: its public names, its wheel, and a command line that answers before anything heavy is loaded."""
import importlib
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from conftest import ROOT

import manifoldgd

MODULES = sorted(p.stem for p in (ROOT/'manifoldgd').glob('*.py') if not p.stem.startswith('_'))
HEAVY = {'torch', 'diffusers', 'sklearn', 'matplotlib', 'pandas', 'numpy', 'PIL'}


def python(code, cwd=None):
    "What a fresh interpreter prints when it runs the code."
    done = subprocess.run([sys.executable, '-c', code], cwd=cwd or ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_module_never_hides_a_public_name():
    for module in MODULES: importlib.import_module(f'manifoldgd.{module}')
    assert callable(manifoldgd.distill)
    assert not set(manifoldgd.__all__) & set(MODULES)
    assert set(manifoldgd.__all__) <= set(dir(manifoldgd))


@pytest.mark.parametrize('name', manifoldgd.__all__)
def test_public_name(name):
    assert callable(getattr(manifoldgd, name))


def test_unknown_name():
    with pytest.raises(AttributeError, match="has no attribute 'destill'"): manifoldgd.destill
    with pytest.raises(ImportError): exec('from manifoldgd import destill')


def test_importing_the_package_is_light():
    loaded = set(python('import sys, manifoldgd; dir(manifoldgd); print(*sys.modules)').split())
    assert not loaded & HEAVY


@pytest.mark.parametrize('arguments', [['--help'], ['distill', '--help'], ['distill', '--no-such-option', '1'], ['no-such-command']], ids=' '.join)
def test_help_and_wrong_arguments_load_nothing_heavy(arguments):
    code = f'''
import sys
from manifoldgd.cli import main
sys.argv = ['manifoldgd', *{arguments}]
try: main()
except SystemExit as stop: status = stop.code or 0
print('STATUS', status, *sys.modules)
'''
    status, *loaded = python(code).rpartition('STATUS')[2].split()
    assert status == ('0' if '--help' in arguments else '2')
    assert not set(loaded) & HEAVY


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built offline from a copy, so that no build folder is left here."
    folder = tmp_path_factory.mktemp('wheel')
    for name in ('setup.py', 'settings.ini', 'pyproject.toml', 'README.md', 'LICENSE'): shutil.copy(ROOT/name, folder)
    shutil.copytree(ROOT/'manifoldgd', folder/'manifoldgd', ignore=shutil.ignore_patterns('__pycache__'))
    build = [sys.executable, '-m', 'pip', 'wheel', '.', '--no-deps', '--no-build-isolation', '--no-index', '--wheel-dir', 'out']
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next((folder/'out').glob('*.whl'))


def test_wheel_holds_the_modules_the_weights_and_the_tables(wheel):
    here = [p for p in (ROOT/'manifoldgd').rglob('*') if p.is_file() and '__pycache__' not in p.parts]
    wanted = {p.relative_to(ROOT).as_posix() for p in here}
    assert any(f.endswith('.safetensors') for f in wanted), 'Expected the weights of the embedded backbone in manifoldgd/weights/.'
    assert any(f.startswith('manifoldgd/tables/') for f in wanted), 'Expected the split of the digits in manifoldgd/tables/.'
    assert not wanted - set(zipfile.ZipFile(wheel).namelist())


def test_wheel_states_its_licence_and_command(wheel):
    archive = zipfile.ZipFile(wheel)
    text = lambda end: next(archive.read(f).decode() for f in archive.namelist() if f.endswith(end))
    assert 'License-Expression: Apache-2.0' in text('METADATA')
    assert f'Version: {manifoldgd.__version__}' in text('METADATA')
    assert 'manifoldgd = manifoldgd.cli:main' in text('entry_points.txt')


def test_wheel_works_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = f'import sys; sys.path.insert(0, {os.fspath(tmp_path)!r}); import manifoldgd; print(manifoldgd.__file__, manifoldgd.__version__)'
    file, version = python(code, cwd=tmp_path).split()
    assert file.startswith(os.fspath(tmp_path)) and version == manifoldgd.__version__
