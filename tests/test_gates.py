"""What must hold of the pages and of what is made from them.

Generated files are up to date, imports go one way, pages keep their shape and stay small.
"""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import resolve_name
from itertools import groupby
from pathlib import Path

import pytest
from conftest import ROOT
from nbdev.doclinks import nbglob

sys.path.insert(0, str(ROOT / "tools"))

from docsite.book import read_order

BIN = Path(sys.executable).parent
LESSONS = {"tutorials", "explanations", "experiments"}  # the chapters that export nothing
STANDARD = sys.stdlib_module_names | {"manifoldgd"}


def module_of(page):
    "The module a page exports to, by its path, or None for a page that only tells."
    chapter = page.rpartition("/")[0]
    if page == "index.ipynb" or chapter in LESSONS:
        return None
    return page.removesuffix(".ipynb").replace("/", ".")


def is_light(module):
    "Whether a module imports the standard library only, and any other may import it."
    return module == "errors" or module.startswith("config.")


def import_order(pages):
    "The modules of pages in the order in which they may import: the light ones come first."
    modules = [module_of(page) for page in pages if module_of(page)]
    return sorted(modules, key=lambda module: not is_light(module))


def name_of(page):
    "The path of a page as the sidebar writes it."
    return page.relative_to(ROOT / "nbs").as_posix()


SIDEBAR = [page for page in read_order(ROOT) if page.endswith(".ipynb")]
ORDER = import_order(SIDEBAR)

PAGES = sorted(map(Path, nbglob()))
NAMES = list(map(name_of, PAGES))
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)

WRITTEN = [
    *ROOT.glob("*.md"),
    *(ROOT / "manifoldgd").rglob("*.py"),
    *(ROOT / "tests").glob("*.py"),
    *(ROOT / "tools").glob("*.py"),
    *(ROOT / "experiments").glob("*.py"),
]
WRITTEN_NAMES = [path.relative_to(ROOT).as_posix() for path in WRITTEN]
each_written = pytest.mark.parametrize("path", WRITTEN, ids=WRITTEN_NAMES)


def cells_of(page):
    "The cells of a page."
    return json.loads(page.read_text(encoding="utf-8"))["cells"]


def source(cell):
    "The text of a cell."
    return "".join(cell["source"])


def code_cells(page):
    "The code cells of a page."
    return [cell for cell in cells_of(page) if cell["cell_type"] == "code"]


def directives(page, pattern):
    "What follows a directive of nbdev, each time it stands in a page."
    text = "\n".join(source(cell) for cell in code_cells(page))
    return [words.strip() for words in re.findall(rf"^#\|\s*{pattern}\b(.*)$", text, flags=re.M)]


# Generated files


def run_nbdev(command, folder):
    "Run one of nbdev's console commands in a folder."
    environment = {key: value for key, value in os.environ.items() if key != "IN_TEST"}
    done = subprocess.run(
        [BIN / command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    "A copy of what nbdev reads, without the modules: export has to make every one of them."
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".*"))
    shutil.copy(ROOT / "_quarto.yml", folder)
    shutil.copy(ROOT / "settings.ini", folder)
    (folder / "manifoldgd").mkdir()
    shutil.copy(ROOT / "manifoldgd" / "__init__.py", folder / "manifoldgd")
    return folder


def modules_in(folder):
    "The text of every module of the package, by its path."
    package = folder / "manifoldgd"
    return {p.relative_to(package).as_posix(): p.read_text() for p in package.rglob("*.py")}


def test_modules_are_exported(copy):
    run_nbdev("nbdev_export", copy)
    fresh = modules_in(copy)
    committed = modules_in(ROOT)
    names = fresh.keys() | committed.keys()
    stale = sorted(name for name in names if fresh.get(name) != committed.get(name))
    advice = "Run nbdev_export, and remove modules that have no page."
    assert not stale, f"manifoldgd/ differs from the pages in {stale}. {advice}"


def test_pages_are_clean(copy):
    run_nbdev("nbdev_clean", copy)
    dirty = [
        name
        for name, page in zip(NAMES, PAGES)
        if (copy / "nbs" / name).read_bytes() != page.read_bytes()
    ]
    assert not dirty, f"nbdev_clean changes {dirty}. Run nbdev_clean."


def test_readme_is_the_index_page():
    command = [sys.executable, "tools/pages.py", "readme", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Chapters and imports


def test_sidebar_lists_every_page_once():
    odd = set(SIDEBAR) ^ set(NAMES)
    assert not odd, f"_quarto.yml and nbs/ differ in {sorted(odd)}"
    assert len(SIDEBAR) == len(set(SIDEBAR))


def test_a_chapter_stands_together():
    chapters = [page.rpartition("/")[0] for page in SIDEBAR]
    runs = [chapter for chapter, _ in groupby(chapters) if chapter]
    assert len(runs) == len(set(runs)), f"a chapter is torn apart: {runs}"


def package_of(module):
    "The full name of the package that a module lies in."
    return f"manifoldgd.{module}".rpartition(".")[0]


def imports_of(code, module, order):
    "Whatever the code of a module imports, anywhere in it, by its full name."
    packages = {"manifoldgd", *map(package_of, order)}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package_of(module))
            if base in packages:  # what is imported from a package is a module of it
                yield from (f"{base}.{alias.name}" for alias in node.names)
            else:
                yield base


def forbidden_imports(code, module, order):
    "What the code of a module imports against the order of the modules."
    allowed = {f"manifoldgd.{earlier}" for earlier in order[: order.index(module)]}
    found = list(imports_of(code, module, order))
    ours = [name for name in found if name.partition(".")[0] == "manifoldgd"]
    upward = [name for name in ours if name not in allowed]
    outside = [name for name in found if name.partition(".")[0] not in STANDARD]
    return upward + (outside if is_light(module) else [])


INVENTED = ["errors", "config.a", "config.b", "core", "data.a", "data.b", "prototypes.a"]


@pytest.mark.parametrize(
    "module, code",
    [
        ("config.a", "import json\nfrom ..errors import InputError"),
        ("config.b", "from .a import f"),
        ("core", "import torch\nfrom .errors import InputError\nfrom .config.b import f"),
        ("data.b", "from ..core import f\nfrom .a import f\nfrom manifoldgd.config.a import f"),
        ("prototypes.a", "import manifoldgd.data.a\nfrom manifoldgd.data import b"),
    ],
)
def test_imports_that_are_allowed(module, code):
    assert not forbidden_imports(code, module, INVENTED)


@pytest.mark.parametrize(
    "module, code, forbidden",
    [
        ("data.a", "from .b import f", "data.b"),  # a later page of the chapter
        ("data.b", "from ..prototypes.a import f", "prototypes.a"),  # a later chapter
        ("data.b", "from manifoldgd.prototypes import a", "prototypes.a"),
        ("data.b", "import manifoldgd.prototypes.a as a", "prototypes.a"),
        ("data.b", "def f():\n    from ..prototypes.a import g", "prototypes.a"),  # out of sight
        ("data.b", "from .b import f", "data.b"),  # itself
        ("data.b", "from .c import f", "data.c"),  # no such page
        ("data.b", "from manifoldgd import distill", "distill"),  # a public name hides its module
        ("core", "from .data.a import f", "data.a"),
        ("config.a", "from .b import f", "config.b"),
        ("config.a", "from ..core import f", "core"),
        ("errors", "from .config.a import f", "config.a"),
    ],
)
def test_imports_that_are_forbidden(module, code, forbidden):
    assert forbidden_imports(code, module, INVENTED) == [f"manifoldgd.{forbidden}"]


def test_settings_load_no_library():
    assert forbidden_imports("import numpy as np", "config.a", INVENTED) == ["numpy"]
    assert not forbidden_imports("import numpy as np", "core", INVENTED)


def test_order_of_imports_is_read_from_the_sidebar():
    pages = ["index", "tutorials/t", "errors", "core", "data/b", "data/a", "config/c", "cli"]
    expected = ["errors", "config.c", "core", "data.b", "data.a", "cli"]
    assert import_order([f"{page}.ipynb" for page in pages]) == expected


@pytest.mark.parametrize("module", [m for m in map(module_of, NAMES) if m])
def test_a_module_imports_only_earlier_ones(module):
    path = ROOT / "manifoldgd" / f"{module.replace('.', '/')}.py"
    forbidden = forbidden_imports(path.read_text(), module, ORDER)
    assert not forbidden, f"{module} imports {', '.join(forbidden)}"


@pytest.mark.parametrize("module", ["manifoldgd", "manifoldgd.cli"])
def test_only_the_settings_are_loaded_with(module):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    ours = {name for name in done.stdout.split() if name.partition(".")[0] == "manifoldgd"}
    heavy = {name for name in ours if not re.match(r"manifoldgd\.(errors|config)\b", name)}
    assert module in ours, done.stderr
    assert heavy <= {"manifoldgd", module}


# The shape of a page


@each_page
def test_page_exports_to_the_module_of_its_path(page):
    module = module_of(name_of(page))
    assert directives(page, "default_exp") == ([module] if module else [])
    exports = directives(page, "exports?i?")
    assert not any(exports), "Expected `#| export` without the name of another module."
    assert module or not exports, "Expected a page that only tells to export nothing."


@each_page
def test_page_begins_with_a_noun_and_a_sentence(page):
    first = cells_of(page)[0]
    found = re.fullmatch(r"# (\S.*)\n+> (\S.*)\n*", source(first))
    assert first["cell_type"] == "markdown"
    assert found, "Expected the first cell to be `# Noun` and `> One sentence.`"
    if name_of(page) != "index.ipynb":
        assert len(found[2]) <= 94, f"Expected at most 94 characters, but got {len(found[2])}."


@each_page
def test_cell_ids_mean_nothing(page):
    ids = [cell["id"] for cell in cells_of(page)]
    odd = [name for name in ids if not re.fullmatch("[0-9a-f]{8}", name)]
    assert not odd, f"Expected ids of 8 hex digits, but got {odd}."
    assert len(ids) == len(set(ids)), "Expected every cell to have an id of its own."


@each_page
def test_page_is_small(page):
    advice = "Make pictures smaller (dpi 80, fewer images)."
    assert page.stat().st_size < 250_000, f"Expected less than 250 kB. {advice}"


@each_page
def test_page_shows_what_it_did(page):
    outputs = [out for cell in code_cells(page) for out in cell["outputs"]]
    kinds = [out["output_type"] for out in outputs]
    assert kinds, "Expected stored outputs. Run `make refresh`."
    assert "error" not in kinds, "Expected no error among the stored outputs."


def test_line_rules():
    "`ruff.toml` holds for all that is written by hand; it leaves out the generated modules."
    command = [BIN / "ruff", "check", "--no-cache", "--output-format", "concise"]
    places = [".", "manifoldgd/__init__.py"]
    done = subprocess.run([*command, *places], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# What no text may say

PLACES = "home|root|Users|tmp|mnt|usr|opt|var|work|workspace|data|content|kaggle"
ABSOLUTE = re.compile(rf"(?<![\w.:/])/(?:{PLACES})/[^\s\"'`)]*|\b[A-Z]:\\\\?\w+")
NUMBERED = re.compile(r"\bpages?[ \n]\d+", flags=re.I)
OURS = re.compile(r"\b(?:tools|experiments|results)/\w+\.(?:py|csv)\b")
LINK = re.compile(r"\]\((?!\w+:)([^)\s#]+)")  # within the project


def texts_of(page):
    "The text, the code and the printed outputs of a page; pictures may contain anything."
    yield from (source(cell) for cell in cells_of(page))
    for cell in code_cells(page):
        for out in cell["outputs"]:
            yield "".join(out.get("text", []))
            data = out.get("data", {})
            yield from ("".join(data[kind]) for kind in data if kind.startswith("text/"))


@each_page
def test_page_names_no_place_of_one_machine(page):
    found = ABSOLUTE.findall("\n".join(texts_of(page)))
    assert not found, f"Expected no absolute path, but got {found}."


@each_page
def test_page_names_other_pages_by_what_they_define(page):
    found = [words for cell in cells_of(page) for words in NUMBERED.findall(source(cell))]
    assert not found, f"Expected a backticked name in place of {found}."


@each_page
def test_links_lead_somewhere(page):
    told = [source(cell) for cell in cells_of(page) if cell["cell_type"] == "markdown"]
    dead = [to for to in LINK.findall("\n".join(told)) if not (page.parent / to).exists()]
    assert not dead, f"Expected links to files of this project, but got {dead}."


def test_the_index_leads_to_every_page():
    told = "\n".join(source(cell) for cell in cells_of(ROOT / "nbs" / "index.ipynb"))
    missing = set(SIDEBAR) - {"index.ipynb"} - set(LINK.findall(told))
    assert not missing, "Expected the table of pages on the index to link every page."


@each_page
def test_files_of_the_repository_that_a_page_names_are_there(page):
    gone = [name for name in OURS.findall("\n".join(texts_of(page))) if not (ROOT / name).exists()]
    assert not gone


@each_written
def test_file_names_no_place_of_one_machine_and_no_number_of_a_page(path):
    text = path.read_text(encoding="utf-8")
    assert not ABSOLUTE.findall(text)
    assert not NUMBERED.findall(text)
    if path.suffix == ".md":
        assert all((ROOT / name).exists() for name in OURS.findall(text))
