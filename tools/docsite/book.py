"""The book as a whole: its pages, what they define, and where each name is told."""
import ast
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives

from .reference import entries_of

ON_SITE = ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")  # besides nbs/
GLOSSARY = "glossary.qmd"
REFERENCES = "references.qmd"
IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


@dataclass
class Options:
    "Where the site and the repository are, as `settings.ini` says."
    git_url: str = ""  # of the repository; without it nothing links to sources
    branch: str = "main"
    site_url: str = ""  # of the site; without it there is no sitemap and no social card

    @property
    def colab(self):
        "Where Colab opens files of the repository, for one on GitHub."
        found = re.match(r"https://github\.com/([^/]+/[^/]+?)(?:\.git)?/?$", self.git_url)
        base = "https://colab.research.google.com/github"
        return f"{base}/{found[1]}/blob/{self.branch}" if found else ""

    def source(self, path):
        "The address of a file of the repository, or nothing."
        return f"{self.git_url.rstrip('/')}/blob/{self.branch}/{path}" if self.git_url else ""


@dataclass
class Book:
    "The pages and what they define."
    root: Path
    pages: dict  # path below nbs/ -> notebook, directives still in its cells
    options: Options = field(default_factory=Options)
    front: tuple = ()  # the public names of the package itself
    order: tuple = ()  # the pages as the sidebar lists them
    vocabulary: dict = field(default_factory=dict)  # name of a parameter -> what it always is
    citations: dict = field(default_factory=dict)  # "Author and Author 2007" -> key

    @cached_property
    def modules(self):
        "The page of every module: `prototypes.tree` -> `prototypes/tree.ipynb`."
        place = {page: number for number, page in enumerate(self.order)}
        pages = sorted(self.pages, key=lambda page: place.get(page, len(place)))
        found = {default_exp(self.pages[page]): page for page in pages}
        return {module: page for module, page in found.items() if module}

    @cached_property
    def defined(self):
        "The entries of every page that exports, with the ids of their cells."
        cells = {page: entries_by_cell(self.pages[page]) for page in self.modules.values()}
        for entries in cells.values():
            for entry in sum(entries.values(), []):
                fill_in_defaults(entry)
            mark_settings(sum(entries.values(), []))
        return cells

    @cached_property
    def homes(self):
        "The pages that define a name; `ClusterTree.find` is one too."
        homes = {}
        for page, cells in self.defined.items():
            for entry in sum(cells.values(), []):
                homes.setdefault(entry.name, []).append((page, entry.anchor))
        return homes

    @cached_property
    def entries(self):
        "Every entry, by its page and name."
        found = {}
        for page, cells in self.defined.items():
            found |= {(page, entry.name): entry for entry in sum(cells.values(), [])}
        return found

    @cached_property
    def told(self):
        "The words of every page outside its exported cells."
        return {page: told_words(notebook) for page, notebook in self.pages.items()}

    def source_of(self, page, name):
        "The address of the code of a function or class, or nothing."
        path = f"manifoldgd/{page.removesuffix('.ipynb')}.py"
        if not self.options.git_url or not (self.root / path).exists():
            return ""
        tree = ast.parse((self.root / path).read_text(encoding="utf-8"))
        lines = [node.lineno for node in tree.body if getattr(node, "name", "") == name]
        return self.options.source(path) + (f"#L{lines[0]}" if lines else "")

    def entries_in(self, page, cell):
        "What an exported cell defines."
        return self.defined[page].get(cell.id, [])

    def is_plumbing(self, page, cell):
        "Whether an `export` cell defines only what no page tells of."
        entries = self.entries_in(page, cell)
        if "exports" in cell.directives_ or not entries:
            return False
        names = {entry.name for entry in entries if "." not in entry.name}
        told = set().union(*self.told.values(), self.front)
        return not names & told

    def find(self, name, page):
        "Where a backticked name is told, as (page, anchor), or None."
        name = name.removesuffix("()").removeprefix("manifoldgd.")
        if name in self.modules and ("." in name or name in ("errors", "core", "cli")):
            return self.modules[name], ""
        homes = self.homes.get(name, [])
        own = [home for home in homes if home[0] == page]
        if own or len(homes) == 1:
            return (own or homes)[0]
        module, _, last = name.rpartition(".")
        return next((h for h in self.homes.get(last, []) if h[0] == self.modules.get(module)), None)

    def inherited(self, entry):
        "The entry of the method that a method overrides, if the book defines it."
        owner, _, name = entry.name.rpartition(".")
        classes = [e for (_, n), e in self.entries.items() if n == owner]
        for base in sum([list(e.bases) for e in classes], []):
            found = [e for (_, n), e in self.entries.items() if n == f"{base}.{name}"]
            if found:
                return found[0]
        return None

    def summary_of(self, entry):
        "What an entry does: its own words, or those of the method that it overrides."
        if entry.summary:
            return entry.summary
        base = self.inherited(entry)
        words = {
            "__len__": "Count the items.",
            "__getitem__": "Take some of the items.",
            "forward": "Apply the module.",
        }
        return base.summary if base else words.get(entry.name.rpartition(".")[2], "")

    def meaning_of(self, entry, parameter):
        "What a parameter is: its comment, or what its name or its type always means."
        if parameter.meaning:
            return parameter.meaning
        base = self.inherited(entry) if "." in entry.name else None
        same = [p for p in (base.parameters if base else []) if p.name == parameter.name]
        if same and base.name != entry.name and self.meaning_of(base, same[0]):
            return self.meaning_of(base, same[0])
        if parameter.name in self.vocabulary:
            return self.vocabulary[parameter.name]
        own = [word for word in IDENTIFIER.findall(parameter.type) if word in self.homes]
        if own:
            return f"a `{own[0]}`"
        return "see above" if f"`{parameter.name}`" in entry.summary else ""


def read_options():
    "The doc settings of `settings.ini`."
    config = get_config()
    host, base = config.get("doc_host") or "", config.get("doc_baseurl") or ""
    return Options(config.get("git_url") or "", config.branch, f"{host}{base}" if host else "")


def default_exp(notebook):
    "The module that a page exports to, or None."
    found = [cell.directives_.get("default_exp") for cell in notebook.cells]
    return next((words[0] for words in found if words), None)


def exports(cell):
    "Whether a cell goes into the package."
    return cell.cell_type == "code" and bool({"export", "exports"} & cell.directives_.keys())


def mark_settings(entries):
    "Let a class that is put together from classes of settings be one of them."
    names = {entry.name for entry in entries if entry.kind == "settings"}
    for entry in entries:
        if names & set(entry.bases):
            entry.kind = "settings"
            entry.parameters = []


def fill_in_defaults(entry):
    "Write the value of a declared setting where a default names it."
    from manifoldgd.config.presets import DEFAULTS

    for parameter in entry.parameters:
        found = re.fullmatch(r'DEFAULTS\["(\w+)"\]', parameter.default)
        if found:
            parameter.default = repr(DEFAULTS[found[1]]).replace("'", '"')


def entries_by_cell(notebook):
    "The entries of the exported cells of a page, by the ids of the cells."
    return {cell.id: entries_of(cell.source) for cell in notebook.cells if exports(cell)}


def told_words(notebook):
    "The identifiers in the text and in the lessons of a page."
    cells = [cell.source for cell in notebook.cells if not exports(cell)]
    return set(IDENTIFIER.findall("\n".join(cells)))


def read_page(path):
    "A page whose cells know their directives."
    notebook = read_nb(path)
    for cell in notebook.cells:
        cell.directives_ = extract_directives(cell, remove=False)
    return notebook


def read_vocabulary(text):
    "What the glossary says of the names of parameters: name -> meaning."
    return dict(re.findall(r"^`(\w+)`\n+: +(.+)$", text, flags=re.M))


def surnames(authors):
    "The surnames of the authors of an entry of a bibliography."
    return [author.split(",")[0].strip("{} ") for author in authors.split(" and ")]


def read_citations(text):
    "How the pages name the works of a bibliography: `Gretton et al. 2012` -> key."
    citations = {}
    for key, fields in re.findall(r"^@\w+\{([\w-]+),\n(.*?)\n\}", text, flags=re.M | re.S):
        values = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", fields, flags=re.M))
        names = surnames(values.get("author", ""))
        who = names[0] if len(names) == 1 else f"{names[0]} et al."
        who = " and ".join(names) if len(names) == 2 else who
        citations[f"{who} {values.get('year', '')}"] = key
    return citations


def front_names(root):
    "The public names of the package, from its `__init__`."
    tree = ast.parse((root / "manifoldgd" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES":
            return tuple(ast.literal_eval(node.value))
    return ()


def sidebar_pages(items):
    "The pages that a sidebar lists, in its order."
    for item in items:
        if isinstance(item, str):
            yield item
        elif "href" in item:
            yield item["href"]
        else:
            yield from sidebar_pages(item["contents"])


def read_order(root):
    "The pages in the order of the sidebar."
    options = yaml.safe_load((root / "_quarto.yml").read_text(encoding="utf-8"))
    return tuple(sidebar_pages(options["website"]["sidebar"]["contents"]))


def text_of(path):
    "The text of a file, or nothing where there is none."
    return path.read_text(encoding="utf-8") if path.exists() else ""


def read_book(root):
    "Read the pages of the book and what is written about it."
    nbs = root / "nbs"
    paths = sorted(Path(path) for path in nbglob(nbs))
    return Book(
        root=root,
        pages={path.relative_to(nbs).as_posix(): read_page(path) for path in paths},
        options=read_options(),
        front=front_names(root),
        order=read_order(root),
        vocabulary=read_vocabulary(text_of(nbs / GLOSSARY)),
        citations=read_citations(text_of(nbs / "references.bib")),
    )
