"""What must hold of the processed pages, looked at without Quarto."""
import json
import posixpath
import re
from dataclasses import dataclass, field
from functools import cached_property
from html import unescape
from pathlib import Path

import yaml

from .book import REFERENCES, sidebar_pages
from .links import heading_id

COLUMNS = 100
DOWNLOADS = "notebooks/"  # copies to take away, which are no pages
FENCE = re.compile(r"^(```+|~~~+)([^\n]*)\n(.*?)^\1[ ]*$", flags=re.M | re.S)
MATH = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?!\s)([^$\n]+?)(?<!\s)\$(?!\d)", flags=re.S)
LINK = re.compile(r"(!?)\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]\(([^()\s]+)(?:\s\"[^\"]*\")?\)")
HTML_LINK = re.compile(r"\b(href|src)=\"([^\"]+)\"")
# What a built site would fetch from elsewhere while it is shown.
FETCHED = re.compile(r"<(?:script|img|iframe|link)\b[^>]*\bhttps?://|@import\s+url\(|url\(.?https?:")
ODD = (
    (r"\bobject at 0x[0-9a-f]+", "an address in memory"),
    (r"<factory>", "a default that says nothing"),
    (r"^def [A-Z]\w*\(", "a class shown as a function"),
    (r"\b\d*\.0*[1-9]\d{6,}", "a number that nobody rounded"),
)


@dataclass
class Page:
    "A processed page, its text and its code apart."
    name: str
    text: str  # markdown of cells and outputs, code blocks included
    code: list = field(default_factory=list)  # the sources of code cells
    printed: list = field(default_factory=list)  # what they print or show as text
    kinds: set = field(default_factory=set)  # of outputs
    pictures: list = field(default_factory=list)  # sources of cells with pictures

    @cached_property
    def prose(self):
        "The text without code blocks and inline code; blocks of raw HTML stay."
        kept = FENCE.sub(lambda m: m[3] if "=html" in m[2] else "", self.text)
        return re.sub(r"`+[^`\n]+`+", "", kept)

    @cached_property
    def blocks(self):
        "The code blocks in the text."
        return [block for _, kind, block in FENCE.findall(self.text) if "=html" not in kind]

    @cached_property
    def headings(self):
        "The headings, as they are written."
        kept = FENCE.sub("", self.text)
        return [words for _, words in re.findall(r"^(#+) +(.+)$", kept, flags=re.M)]


def joined(value):
    "A text that a notebook may hold as a list of lines."
    return "".join(value)


def read_notebook(path, name):
    "A processed notebook as a page."
    texts, page = [], Page(name, "")
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = joined(cell["source"])
        if cell["cell_type"] != "code":
            texts.append(source)
            continue
        page.code.append(source)
        for out in cell["outputs"]:
            data = out.get("data", {})
            page.kinds |= data.keys()
            texts.append(joined(data.get("text/markdown", "")))
            plain = data.get("text/plain", "") if data.keys() == {"text/plain"} else ""
            page.printed.append(joined(out.get("text", "")) + joined(plain))
            if any(kind.startswith("image/") for kind in data):
                page.pictures.append(source)
    page.text = "\n\n".join(texts)
    return page


def read_pages(folder):
    "All processed pages, by their names."
    pages = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name.startswith(DOWNLOADS) or "/_" in f"/{name}":
            continue
        if path.suffix == ".ipynb":
            pages[name] = read_notebook(path, name)
        elif path.suffix in (".qmd", ".md"):
            pages[name] = Page(name, path.read_text(encoding="utf-8"))
    return pages


# Links and anchors


def own_ids(page):
    "The ids that a page writes itself, one for each time it does."
    kept = FENCE.sub(lambda m: m[3] if "=html" in m[2] else "", page.text)
    in_markdown = re.findall(r"\{#([\w.:-]+)[^}\n]*\}", kept)
    return in_markdown + re.findall(r"\bid=\"([^\"]+)\"", kept)


def ids_of(page, folder):
    "Every place of a page that a link may lead to."
    ids = {*own_ids(page), *map(heading_id, page.headings)}
    bibliography = folder / "references.bib"
    if page.name == REFERENCES and bibliography.exists():
        keys = re.findall(r"^@\w+\{([\w-]+),", bibliography.read_text(encoding="utf-8"), flags=re.M)
        ids |= {f"ref-{key}" for key in keys}
    return ids


def links_of(page):
    "The targets of the links and pictures of a page, within the site."
    found = [target for _, target in LINK.findall(page.prose) + HTML_LINK.findall(page.prose)]
    return [target for target in found if not re.match(r"\w+:", target)]


def broken_links(pages, folder):
    "Links that lead nowhere."
    ids = {name: ids_of(page, folder) for name, page in pages.items()}
    for name, page in pages.items():
        for target in links_of(page):
            path, _, anchor = target.partition("#")
            to = posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            if not (folder / to).is_file():
                yield f"{name}: no file for the link to {target}"
            elif anchor and to in ids and anchor not in ids[to]:
                yield f"{name}: no such place for the link to {target}"


def double_ids(pages, folder):
    "Places with the same id."
    for page in pages.values():
        plain = [words for words in page.headings if "{#" not in words]
        ids = own_ids(page) + sorted(set(map(heading_id, plain)))
        for twice in sorted({name for name in ids if ids.count(name) > 1}):
            yield f"{page.name}: the id {twice} stands twice"


def unlisted(pages, folder):
    "Pages that the sidebar does not list, and entries without a page."
    options = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))
    listed = set(sidebar_pages(options["website"]["sidebar"]["contents"]))
    for name in sorted(listed - pages.keys()):
        yield f"the sidebar lists {name}, which is not there"
    for name in sorted(pages.keys() - listed - {"404.qmd"}):
        yield f"the sidebar does not list {name}"


# The network


def fetched(pages, folder):
    "What a reader's browser would fetch from other places."
    for page in pages.values():
        pictures = [to for mark, to in LINK.findall(page.prose) if mark]
        pictures += [to for kind, to in HTML_LINK.findall(page.prose) if kind == "src"]
        outside = [to for to in pictures if "://" in to]
        for found in FETCHED.findall(page.prose) + outside:
            yield f"{page.name}: fetches from the network: {found}"
        for kind in sorted(page.kinds & {"text/html", "application/javascript"}):
            yield f"{page.name}: an output of {kind}, for which Quarto loads jQuery"
    for path in [*folder.rglob("*.scss"), *folder.rglob("*.css"), folder / "_quarto.yml"]:
        for found in FETCHED.findall(path.read_text(encoding="utf-8")):
            yield f"{path.name}: fetches from the network: {found}"


def network_options(pages, folder):
    "Options without which Quarto loads fonts and mathematics from the network."
    options = yaml.safe_load((folder / "_quarto.yml").read_text(encoding="utf-8"))
    if options["format"]["html"].get("html-math-method") != "mathml":
        yield "_quarto.yml: mathematics that is not MathML is drawn by a script from the network"
    styles = "".join(path.read_text(encoding="utf-8") for path in folder.rglob("*.scss"))
    if not re.search(r"\$web-font-path:\s*false", styles):
        yield "the theme's fonts are fetched unless $web-font-path is false"


# Code, pictures, mathematics


def long_lines(pages, folder):
    "Lines of code, or of what it prints, that the page would cut off."
    for page in pages.values():
        lines = "\n".join([*page.code, *page.blocks, *page.printed]).splitlines()
        for line in lines:
            if len(line) > COLUMNS and not line.startswith("#| "):
                yield f"{page.name}: {len(line)} columns: {line.strip()[:60]} ..."


def odd_texts(pages, folder):
    "What a machine wrote and no reader wants."
    for page in pages.values():
        text = "\n".join([*page.printed, *page.blocks])
        for pattern, what in ODD:
            for found in re.findall(pattern, text, flags=re.M):
                yield f"{page.name}: {what}: {found}"
        for block in page.blocks:
            if re.search(r"\[`[^`]+`\]\(", block):
                yield f"{page.name}: a link inside code: {block.strip()[:60]}"


def bare_pictures(pages, folder):
    "Pictures without a caption or without an alternative text, or with the same for both."
    for page in pages.values():
        for source in page.pictures:
            said = {name: option(source, name) for name in ("fig-cap", "fig-alt")}
            for name in [name for name, words in said.items() if not words]:
                yield f"{page.name}: a picture without {name}: {first_line(source)}"
            if said["fig-cap"] and said["fig-cap"] == said["fig-alt"]:
                yield f"{page.name}: a picture whose caption is its alternative text"
        for source in re.findall(r"!\[\]\([^)]+\)(?!\{[^}]*alt=)", page.prose):
            yield f"{page.name}: a picture without alternative text: {source}"


def option(source, name):
    "The value of an option of a cell, or nothing."
    found = re.search(rf'^#\| {name}: "(.+)"$', source, flags=re.M)
    return found[1] if found else ""


def first_line(source):
    "The first line of code of a cell."
    lines = [line for line in source.splitlines() if not line.startswith("#|")]
    return lines[0][:60] if lines else ""


def formulas(pages):
    "All mathematics, each with the page it stands on."
    for page in pages.values():
        for display, inline in MATH.findall(page.prose):
            yield page.name, (display or inline).strip()


def bad_formulas(pages, folder):
    "Mathematics that pandoc cannot turn into MathML; nothing where pandoc is missing."
    try:
        import pypandoc
    except ImportError:
        return
    found = {text: name for name, text in formulas(pages)}
    together = "\n\n".join(f"${text}$" for text in found)
    options = ["--mathml", "--wrap=none", "--quiet"]
    html = pypandoc.convert_text(together, "html", "markdown", extra_args=options)
    for text in re.findall(r"<span class=\"math[^>]*>\$(.*?)\$</span>", html, flags=re.S):
        name = found.get(unescape(text), "somewhere")
        yield f"{name}: mathematics that is not MathML: {text.strip()[:80]}"


# The reference


def undocumented(book):
    "Parameters of public functions that nothing says a word about."
    for (page, name), entry in book.entries.items():
        if not book.summary_of(entry):
            yield page, name
        if entry.shapes or entry.kind == "settings":
            continue
        for parameter in entry.parameters:
            if not book.meaning_of(entry, parameter):
                yield page, f"{name}({parameter.name})"


def missing_entries(pages, folder, book):
    "Public names without an entry on their page."
    for (page, name), entry in book.entries.items():
        text = pages[page].text if page in pages else ""
        if f"`{name}` {{#{entry.anchor}}}" not in text:
            yield f"{page}: {name} has no entry"


CHECKS = (
    broken_links,
    double_ids,
    unlisted,
    fetched,
    network_options,
    long_lines,
    odd_texts,
    bare_pictures,
    bad_formulas,
)


def problems(folder, book=None):
    "Everything that is wrong with the processed pages of a folder."
    folder = Path(folder)
    pages = read_pages(folder)
    found = [problem for look in CHECKS for problem in look(pages, folder)]
    if book:
        found += missing_entries(pages, folder, book)
        found += [f"{page}: {name} is not explained" for page, name in undocumented(book)]
    return found
