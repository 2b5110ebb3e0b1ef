"""What must hold of the pages and of what is made from them: generated files are up to date, imports go one way, pages stay small."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from nbdev.doclinks import nbglob

PAGES = sorted(map(Path, nbglob()))
NAMES = [p.relative_to(ROOT/'nbs').as_posix() for p in PAGES]
NUMBERED = [p for p in PAGES if re.match(r'\d\d_', p.name) and p.parent == ROOT/'nbs']
each_page = pytest.mark.parametrize('page', PAGES, ids=NAMES)
each_numbered = pytest.mark.parametrize('page', NUMBERED, ids=[p.name for p in NUMBERED])
read = lambda path: json.loads(path.read_text(encoding='utf-8'))
source = lambda cell: ''.join(cell['source'])
code_cells = lambda page: [c for c in read(page)['cells'] if c['cell_type'] == 'code']
ABSOLUTE = re.compile(r'(?<![\w.:/])/(?:home|root|Users|tmp|mnt|usr|opt|var|work|workspace|data|content|kaggle)/[^\s"\'`)]*|\b[A-Z]:\\\\?\w+')
is_exported = lambda cell: re.match(r'\s*#\|\s*exports?i?\b', source(cell)) is not None


def default_exp(page):
    "The module a page exports to, or None."
    found = (re.search(r'^#\|\s*default_exp\s+(\S+)', source(c), flags=re.M) for c in code_cells(page))
    return next((m[1] for m in found if m), None)


def run_nbdev(command, folder):
    "Run one of nbdev's console commands in a folder."
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'}
    subprocess.run([Path(sys.executable).parent/command], cwd=folder, env=env, check=True, capture_output=True, text=True)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    "A copy of what nbdev reads, without the modules: export has to make every one of them."
    folder = tmp_path_factory.mktemp('copy')
    shutil.copytree(ROOT/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.*'))
    shutil.copy(ROOT/'_quarto.yml', folder)
    shutil.copy(ROOT/'settings.ini', folder)
    (folder/'manifoldgd').mkdir()
    shutil.copy(ROOT/'manifoldgd'/'__init__.py', folder/'manifoldgd')
    return folder


def test_modules_are_exported(copy):
    run_nbdev('nbdev_export', copy)
    modules = lambda root: {p.name: p.read_text() for p in (root/'manifoldgd').glob('*.py')}
    fresh, committed = modules(copy), modules(ROOT)
    stale = sorted(n for n in fresh.keys() | committed.keys() if fresh.get(n) != committed.get(n))
    assert not stale, f'manifoldgd/ differs from the pages in {stale}. Run nbdev_export, and remove modules that have no page.'


def test_pages_are_clean(copy):
    run_nbdev('nbdev_clean', copy)
    dirty = [n for n, p in zip(NAMES, PAGES) if (copy/'nbs'/n).read_bytes() != p.read_bytes()]
    assert not dirty, f'nbdev_clean changes {dirty}. Run nbdev_clean.'


def test_readme_is_the_index_page():
    done = subprocess.run([sys.executable, 'tools/pages.py', 'readme', '--check'], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_sidebar_lists_every_page():
    def hrefs(items):
        for item in items:
            if isinstance(item, str): yield item
            else: yield from [item['href']] if 'href' in item else hrefs(item['contents'])
    listed = list(hrefs(yaml.safe_load((ROOT/'_quarto.yml').read_text())['website']['sidebar']['contents']))
    assert not (odd := set(listed) ^ set(NAMES)), f'_quarto.yml and nbs/ differ in {sorted(odd)}'
    assert len(listed) == len(set(listed))


def imports_of(body):
    "Modules of this package that the statements import, anywhere inside them."
    for node in (n for statement in body for n in ast.walk(statement)):
        if isinstance(node, ast.ImportFrom):
            assert not any(a.name == '*' for a in node.names), f'star import from {node.module}'
            if node.module == 'manifoldgd': yield from (a.name for a in node.names)
            elif (node.module or '').startswith('manifoldgd.'): yield node.module.split('.')[1]
            elif node.level: yield from [node.module.split('.')[0]] if node.module else (a.name for a in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('manifoldgd.'))


@each_numbered
def test_a_module_imports_only_lower_numbers(page):
    number = {default_exp(p): int(p.name[:2]) for p in NUMBERED}
    own = default_exp(page)
    for other in imports_of(ast.parse((ROOT/'manifoldgd'/f'{own}.py').read_text()).body):
        assert number.get(other, 99) < number[own], f'{own} imports {other}'


@pytest.mark.parametrize('module', ['__init__', 'cli'])
def test_only_config_at_module_level(module):
    path = ROOT/'manifoldgd'/f'{module}.py'
    tree = ast.parse(path.read_text())
    outside = [n for n in tree.body if not isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    assert set(imports_of(outside)) <= {'config'}


@each_page
def test_page_begins_with_a_noun_and_a_sentence(page):
    first = read(page)['cells'][0]
    assert first['cell_type'] == 'markdown'
    assert re.match(r'# \S.*\n+> \S', source(first)), 'Expected the first cell to be `# Noun` and `> One sentence.`'


@each_numbered
def test_page_names_its_module(page):
    assert default_exp(page) == page.stem[3:]


@each_page
def test_page_is_small(page):
    assert page.stat().st_size < 200_000, 'Expected less than 200 kB. Make pictures smaller (dpi 80, fewer images).'
    lines = [line for c in code_cells(page) for line in source(c).splitlines() if line.strip()]
    assert len(lines) < 300, f'Expected fewer than 300 lines of code, but got {len(lines)}.'
    for cell in filter(is_exported, code_cells(page)):
        assert len(source(cell).splitlines()) < 60, f'Expected fewer than 60 lines in exported cell {cell["id"]}.'


@each_page
def test_page_shows_what_it_did(page):
    outputs = [out for c in code_cells(page) for out in c['outputs']]
    assert outputs, 'Expected stored outputs. Run `make refresh`.'
    assert not [out for out in outputs if out['output_type'] == 'error'], 'Expected no error among the stored outputs.'


@each_page
def test_page_names_no_place_of_one_machine(page):
    "No absolute path in the text, the code or the outputs (pictures are base64 and may contain anything)."
    texts = [source(c) for c in read(page)['cells']]
    for out in (out for c in code_cells(page) for out in c['outputs']):
        texts += [''.join(out.get('text', []))] + [''.join(v) for k, v in out.get('data', {}).items() if k.startswith('text/')]
    assert not (found := ABSOLUTE.findall('\n'.join(texts))), found


@pytest.mark.parametrize('path', sorted((ROOT/'manifoldgd').glob('*.py')), ids=lambda p: p.name)
def test_module_names_no_place_of_one_machine(path):
    assert not (found := ABSOLUTE.findall(path.read_text())), found
