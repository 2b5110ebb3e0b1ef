"""Pages and tables that are made: settings, the index of the reference, tables of pandas."""
import dataclasses
import re
from importlib import import_module
from typing import Literal, Union, get_args, get_origin, get_type_hints

from .links import relative
from .reference import one_of

API = "reference/api.qmd"
SETTINGS = "reference/settings.qmd"

# Tables of pandas


def plain_table(html):
    "A table as pandas writes it, as a block of plain HTML in markdown."
    html = re.sub(r"<style.*?</style>\s*", "", html, flags=re.S)
    html = re.sub(r"</?div>\s*", "", html)
    html = html.replace('<table border="1" class="dataframe">', '<table class="dataframe">')
    html = html.replace(' style="text-align: right;"', "").replace("<td>NaN</td>", "<td></td>")
    return f"```{{=html}}\n<div class=\"table-scroll\">\n{html.strip()}\n</div>\n```\n"


def pipe_table(head, rows, widths):
    "Rows of markdown as a pipe table; `widths` are the shares of its columns."
    rule = [f":{'-' * width}" for width in widths]
    lines = [" | ".join(cells) for cells in (head, rule, *rows)]
    return "\n".join(f"| {line} |" for line in lines)


# The settings


def kind_words(kind):
    "A type of a setting, as words."
    if kind is type(None):
        return "none"
    if get_origin(kind) is Literal:
        return one_of([f"`{word}`" for word in get_args(kind)])
    if get_origin(kind) is Union:
        return one_of([kind_words(part) for part in get_args(kind)])
    if get_origin(kind) is tuple:
        return f"several: {kind_words(get_args(kind)[0])}"
    return f"{kind.__name__}"


def setting_type(declared, kind):
    "The type of a setting; None means that a preset or the data fill it in."
    if get_origin(kind) is Union:
        parts = [part for part in get_args(kind) if part is not type(None)]
        return one_of([kind_words(part) for part in parts])
    return kind_words(kind)


def bounds(declared):
    "The bounds of a setting, as words."
    low, high = declared.metadata["at_least"], declared.metadata["at_most"]
    if low is None and high is None:
        return ""
    if high is None:
        return f", at least {low:g}"
    return f", {low:g} to {high:g}" if low is not None else f", at most {high:g}"


def value_text(value):
    "A value as one writes it on the command line."
    if value is dataclasses.MISSING:
        return "must be given"
    if value is None or value == ():
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def escaped(text):
    "Plain text as markdown for a cell of a table."
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")


def settings_table(cls, group):
    "The settings that a group declares: type, bounds, default, meaning."
    kinds = get_type_hints(cls)
    rows = []
    for declared in dataclasses.fields(cls):
        name = declared.name
        if name not in vars(group).get("__annotations__", {}):
            continue
        readers = declared.metadata.get("read_by")
        only = f" *Read by {one_of([f'`{r}`' for r in readers])}.*" if readers else ""
        rows.append([
            f"[`{name}`]{{#{group.__name__}-{name}}}",
            setting_type(declared, kinds[name]) + bounds(declared),
            value_text(declared.metadata["default"]),
            escaped(declared.metadata["help"]) + only,
        ])
    table = pipe_table(["setting", "type", "default", "meaning"], rows, (18, 24, 12, 46))
    return f"::: {{.table-scroll}}\n{table}\n:::"


def preset_table(cls, presets):
    "The value of each setting of the method in each preset, bold where it is not the default."
    rows = []
    for declared in dataclasses.fields(cls):
        usual = declared.metadata["default"]
        if declared.default is not None or usual is None:
            continue
        values = [preset.get(declared.name, usual) for preset in presets.values()]
        shown = [value_text(v) if v == usual else f"**{value_text(v)}**" for v in values]
        rows.append([f"`{declared.name}`", *shown])
    head = ["setting", *(f"`{name}`" for name in presets)]
    return pipe_table(head, rows, [14] * len(head))


SETTINGS_HEAD = """---
title: Settings
description: Every setting of every command, and its value in each preset.
---

The tables are made from the declarations in [`config.presets`](/config/presets.ipynb) and
[`config.commands`](/config/commands.ipynb). On the command line `guidance_scale` is
`--guidance-scale 3`, and a setting that is yes or no is `--trace` or `--no-trace`; in Python it is
a field of the class. `manifoldgd distill --help` says the same.
"""
PRESETS_HEAD = """### In each preset

A setting of the method has the default value where a preset does not name it. **Bold**: another
value than the default.
"""


def groups_of(cls, page, book):
    "The classes of settings that a configuration is put together from, as their page has them."
    bases = {base.__name__: base for base in cls.__mro__ if dataclasses.is_dataclass(base)}
    named = [name for home, name in book.entries if home == page and name in bases]
    return [bases[name] for name in named if vars(bases[name]).get("__annotations__")]


def settings_of(name, page, book):
    "The part of the page of settings that belongs to one command."
    home = import_module(f"manifoldgd.{page.removesuffix('.ipynb').replace('/', '.')}")
    cls, entry = getattr(home, name), book.entries[page, name]
    command = name.removesuffix("Config").lower()
    link = f"[`{name}`](/{page}#{name})"
    texts = [f"## `manifoldgd {command}` {{#{name}}}", f"{entry.summary} In Python: {link}."]
    for group in groups_of(cls, page, book):
        if group is not cls:
            summary = book.entries[page, group.__name__].summary.rstrip(".")
            texts.append(f"### {summary} {{#{group.__name__}}}")
        texts.append(settings_table(cls, group))
    presets = getattr(home, "PRESETS", None)
    if presets:
        table = preset_table(cls, presets)
        texts.append(f"{PRESETS_HEAD}\n::: {{.table-scroll .presets}}\n{table}\n:::")
    return texts


def settings_page(book):
    "The page of all settings."
    places = [place for place, entry in book.entries.items() if entry.kind == "settings"]
    parts = {base for place in places for base in book.entries[place].bases}
    whole = [(page, name) for page, name in places if name not in parts]
    texts = [SETTINGS_HEAD]
    for page, name in whole:
        texts.extend(settings_of(name, page, book))
    return with_links("\n\n".join(texts), SETTINGS)


def with_links(text, page):
    "Text of a page where links from the root of the site become links from the page."
    return re.sub(r"\]\(/([^()\s]+)\)", lambda match: f"]({relative(page, match[1])})", text)


# The index of the reference


def first_line(text):
    "The first line of a docstring."
    return text.strip().partition("\n")[0]


def index_line(page, entry, methods, summary):
    "A line of the index: the name, what it does, its methods."
    more = [f"[`.{m.name.partition('.')[2]}`](/{page}#{m.anchor})" for m in methods]
    tail = f" Methods: {', '.join(more)}." if more else ""
    name = f"[`{entry.name}`](/{page}#{entry.anchor})"
    return f"{name}\n:   {first_line(summary)}{tail}\n"


def index_of(page, book, wanted):
    "The lines of the index for the entries of a page that are wanted."
    entries = sum(book.defined[page].values(), [])
    whole = [entry for entry in entries if "." not in entry.name and wanted(entry)]
    lines = []
    for entry in whole:
        methods = [other for other in entries if other.name.startswith(f"{entry.name}.")]
        lines.append(index_line(page, entry, methods, book.summary_of(entry)))
    return lines


API_HEAD = """---
title: Index of the reference
description: Every public function and class, where it is told, and what it does in a sentence.
---

What most users need stands first and is imported as `from manifoldgd import bisect_tree`. The rest
follows in the order of the chapters, and is imported from its module. What only other functions
use is small at the end of each module.
"""


def plumbing_names(page, book):
    "The names that a page defines and no page tells of."
    cells = [cell for cell in book.pages[page].cells if book.is_plumbing(page, cell)]
    entries = sum([book.entries_in(page, cell) for cell in cells], [])
    return [entry for entry in entries if "." not in entry.name]


def module_index(module, page, book):
    "The part of the index that lists a module."
    plumbing = plumbing_names(page, book)
    small = {entry.name for entry in plumbing}
    lines = index_of(page, book, lambda entry: entry.name not in small)
    text = [f"### [`{module}`](/{page}) {{#{module}}}", *lines]
    if plumbing:
        names = [f"[`{entry.name}`](/{page}#{entry.anchor})" for entry in plumbing]
        text.append(f"[Plumbing: {', '.join(names)}.]{{.small}}")
    return "\n\n".join(text)


def api_page(book):
    "The index of all that the package defines."
    texts = [API_HEAD, "## From `manifoldgd` itself {#front}"]
    for page in book.modules.values():
        texts.extend(index_of(page, book, lambda entry: entry.name in book.front))
    texts.append("## By module")
    texts.extend(module_index(module, page, book) for module, page in book.modules.items())
    return with_links("\n\n".join(texts), API)


# For the search


def title_of(notebook):
    "The title of a page."
    return re.match(r"# (.*)", notebook.cells[0].source)[1].strip()


def definitions(book):
    "A record for the search index of every name that the package defines."
    records = []
    for (page, name), entry in book.entries.items():
        href = f"{page.removesuffix('.ipynb')}.html#{entry.anchor}"
        title = title_of(book.pages[page])
        record = {"objectID": href, "href": href, "title": title, "section": name}
        records.append(record | {"text": book.summary_of(entry)})
    return records

