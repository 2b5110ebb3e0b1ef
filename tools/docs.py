"""Make the pages of the docs site, build it with Quarto, and check them without it.

    python tools/docs.py make [FOLDER]   make _proc/, where `quarto render` works
    python tools/docs.py build           make _proc/ and build the site in _docs/
    python tools/docs.py check           make the pages in a temporary folder and look for faults
"""
import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import yaml
from docsite.book import ON_SITE, read_book
from docsite.links import linked, set_apart
from docsite.reference import entry_text
from docsite.tables import (
    API,
    SETTINGS,
    api_page,
    definitions,
    plain_table,
    settings_page,
)
from execnb.nbio import mk_cell, write_nb
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.processors import (
    clean_magics,
    filter_stream_,
    hide_,
    hide_line,
    populate_language,
    rm_header_dash,
    strip_ansi,
    strip_hidden_metadata,
)

NBDEV = [
    FrontmatterProc,
    populate_language,
    strip_ansi,
    hide_line,
    filter_stream_,
    rm_header_dash,
    clean_magics,
    hide_,
    strip_hidden_metadata,
]
DOWNLOADS = "notebooks"  # where the site keeps the pages as they are, to take away
DOWNLOAD = "https://quarto.org/docs/download/"


# One page


def is_exported(cell):
    "Whether a cell goes into the package."
    return bool({"export", "exports", "exporti"} & cell.directives_.keys())


def parts(entries, page, book):
    "Entries as markdown: a function or class with its methods in one box."
    texts = []
    for entry in entries:
        level = 4 if "." in entry.name else 3
        entry = dataclasses.replace(entry, summary=book.summary_of(entry))
        text = entry_text(entry, level, book.meaning_of)
        source = book.source_of(page, entry.name)
        if level == 3:
            texts.append(f"{text}\n\n[Source]({source})" if source else text)
        else:
            texts[-1] += f"\n\n{text}"
    return [mk_cell(f"::: {{.reference}}\n\n{text}\n\n:::", "markdown") for text in texts]


def note(entries):
    "Where plumbing is defined: its names, which lead to the end of the page."
    whole = [entry for entry in entries if "." not in entry.name]
    lines = [f"[`{entry.name}`](#{entry.anchor}): {entry.summary}" for entry in whole]
    return "::: {.note}\n" + "\n\n".join(lines) + "\n:::"


def source_cell(cell, entries, is_shown):
    "The code of an `exports` cell, folded unless an equation stands above it."
    names = ", ".join(entry.name for entry in entries if "." not in entry.name)
    fold = "show" if is_shown or not names else "true"
    head = f'#| code-fold: {fold}\n#| code-summary: "Source of {names or "the values"}"\n'
    cell.source = head + cell.source
    return cell


def has_equation(cells, number):
    "Whether the text right above a cell holds an equation of its own."
    above = cells[number - 1] if number else None
    return above is not None and above.cell_type == "markdown" and "$$" in above.source


def with_reference(cells, page, book):
    "Replace exported cells by what the reference says of them; plumbing goes to the end."
    told, plumbing = [], []
    for number, cell in enumerate(cells):
        if cell.cell_type != "code" or not is_exported(cell):
            if "default_exp" not in cell.directives_:
                told.append(cell)
            continue
        entries = book.entries_in(page, cell)
        if book.is_plumbing(page, cell):
            told.append(mk_cell(note(entries), "markdown"))
            plumbing.extend(parts(entries, page, book))
        else:
            told.extend(parts(entries, page, book))
        if "exports" in cell.directives_:
            told.append(source_cell(cell, entries, has_equation(cells, number)))
    if plumbing:
        words = "## Plumbing {.plumbing}\n\nWhat the code above is made of; no lesson calls it."
        told.append(mk_cell(words, "markdown"))
    return told + plumbing


def with_plain_tables(cells):
    "Turn tables of pandas into plain HTML: as they are, Quarto loads jQuery for them."
    for cell in cells:
        for out in cell.get("outputs", []):
            if "text/html" in out.get("data", {}):
                table = plain_table("".join(out.data.pop("text/html")))
                out.data["text/markdown"] = table
    return cells


def tools_cell(page, book):
    "The line under the title of a page: download it, or run it elsewhere."
    name = page.rpartition("/")[2]
    links = [f'[Download this page](/{DOWNLOADS}/{page}){{download="{name}"}}']
    if book.options.colab:
        links.append(f"[Run it on Colab]({book.options.colab}/nbs/{page})")
    return mk_cell(f"::: {{.page-tools}}\n{' '.join(links)}\n:::", "markdown")


def with_counts(cells):
    "Count the code cells: nbdev_clean writes null, which pandoc refuses."
    code = [cell for cell in cells if cell.cell_type == "code"]
    for count, cell in enumerate(code, 1):
        cell.execution_count = count
        for out in cell.outputs:
            if out.output_type == "execute_result":
                out.execution_count = count
    return cells


def processed(page, book):
    "A page of the book as a page of the site."
    processor = NBProcessor(book.root / "nbs" / page, NBDEV)
    processor.process()
    notebook = processor.nb
    front, *cells = notebook.cells
    cells = with_plain_tables(cells)
    taken = {name for home, name in book.entries if home == page}
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = set_apart(cell.source, taken)
    cells = with_reference(cells, page, book)
    cells = [tools_cell(page, book), *cells]
    for cell in cells:
        if cell.cell_type == "markdown":
            cell.source = linked(cell.source, page, book)
    notebook.cells = [front, *with_counts(cells)]
    return notebook


# All pages


def site_options(book):
    "The configuration of Quarto, with what `settings.ini` says about the places of the site."
    options = yaml.safe_load((book.root / "_quarto.yml").read_text(encoding="utf-8"))
    website, places = options["website"], book.options
    options["project"]["post-render"] = "_search.py"
    if places.site_url:
        website["site-url"] = places.site_url
    if places.git_url:
        website["repo-url"] = places.git_url
        website["repo-branch"] = places.branch
        website["repo-subdir"] = "nbs"
        website["repo-actions"] = ["issue"]
    return options


def write(path, text):
    "Write a text file, and the folders it lies in."
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def make_notebooks(book, folder):
    "Write the pages of the book, and beside them the notebooks to download."
    for page in book.pages:
        path = folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        write_nb(processed(page, book), path)
        kept = folder / DOWNLOADS / page
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(book.root / "nbs" / page, kept)


def make_others(book, folder):
    "Write the pages that are no notebooks, and copy what all pages need."
    for path in sorted((book.root / "nbs").rglob("*")):
        name = path.relative_to(book.root / "nbs").as_posix()
        if path.is_dir() or path.suffix == ".ipynb" or name.startswith((".", "_quarto", "nbdev")):
            continue
        if "/." in name or path.is_symlink():
            continue
        if path.suffix in (".qmd", ".md"):
            write(folder / name, linked(path.read_text(encoding="utf-8"), name, book))
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    for name in filter(lambda name: (book.root / name).exists(), ON_SITE):
        text = (book.root / name).read_text(encoding="utf-8")
        is_page = name.endswith(".md")
        write(folder / name, linked(text, f"../{name}", book) if is_page else text)


def make(folder=None):
    "Make the processed pages, in `_proc/` or another folder."
    folder = Path(folder or ROOT / "_proc")
    book = read_book(ROOT)
    shutil.rmtree(folder, ignore_errors=True)
    make_notebooks(book, folder)
    make_others(book, folder)
    write(folder / SETTINGS, settings_page(book))
    write(folder / API, api_page(book))
    write(folder / "_quarto.yml", yaml.safe_dump(site_options(book), sort_keys=False))
    write(folder / "_definitions.json", json.dumps(definitions(book), indent=1))
    shutil.copy(Path(__file__).parent / "docsite/search_index.py", folder / "_search.py")
    return book


# The site


def find_quarto():
    "The installed Quarto, or that of pip's quarto-cli, or None."
    beside = Path(sys.executable).parent
    path = os.pathsep.join([str(beside), os.environ.get("PATH", "")])
    found = shutil.which("quarto", path=path)
    if found is None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "quarto-cli"]
        print("No Quarto found; trying pip's quarto-cli ...", flush=True)
        subprocess.run(install, capture_output=True)
        found = shutil.which("quarto", path=path)
    return found


def build():
    "Make the pages and build the site in `_docs/`."
    make()
    quarto = find_quarto()
    if quarto is None:
        sys.exit(f"The pages are in _proc/, but building the site needs Quarto: {DOWNLOAD}")
    environment = {**os.environ, "QUARTO_PYTHON": sys.executable}
    done = subprocess.run([quarto, "render", "--no-cache"], cwd=ROOT / "_proc", env=environment)
    if done.returncode:
        sys.exit("Quarto could not build the site: see its message above.")
    shutil.rmtree(ROOT / "_docs", ignore_errors=True)
    shutil.move(ROOT / "_proc" / "_docs", ROOT / "_docs")
    print("Made _docs/. To look at it: python -m http.server -d _docs")


def check():
    "Make the pages in a temporary folder and report what is wrong with them."
    from docsite.check import problems

    with tempfile.TemporaryDirectory() as folder:
        book = make(Path(folder) / "pages")
        found = problems(Path(folder) / "pages", book)
    print(*found, f"{len(found)} problems in {len(book.pages)} pages", sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["make", "build", "check"])
    parser.add_argument("folder", nargs="?", help="with make: in place of _proc/")
    arguments = parser.parse_args()
    os.chdir(ROOT)  # nbdev looks for settings.ini from here
    if arguments.command == "make":
        make(arguments.folder)
        print(f"Made {arguments.folder or '_proc'}/. Now `quarto render` works in it.")
    else:
        {"build": build, "check": check}[arguments.command]()
