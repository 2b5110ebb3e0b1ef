"""The pages of the docs site: what is made of the notebooks, and that the check can fail."""
import dataclasses
import json
import re
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import docs
from docsite import book as books
from docsite import check
from docsite.links import heading_id, linked, set_apart
from docsite.reference import entries_of, entry_text, signature
from docsite.search_index import with_definitions
from docsite.tables import definitions, plain_table

# The site as it is


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "The processed pages: their folder, the book, and the pages as the check reads them."
    folder = tmp_path_factory.mktemp("site") / "pages"
    book = docs.make(folder)
    return folder, book, check.read_pages(folder)


@pytest.mark.parametrize("look", check.CHECKS, ids=[look.__name__ for look in check.CHECKS])
def test_the_pages_pass(site, look):
    folder, _, pages = site
    if look is check.bad_formulas:
        pytest.importorskip("pypandoc", reason="pandoc turns mathematics into MathML")
    assert not list(look(pages, folder))


def test_every_public_name_has_an_entry(site):
    folder, book, pages = site
    assert not list(check.missing_entries(pages, folder, book))
    for name in ("ManifoldGDPipeline.__call__", "ClusterTree.find", "RunFolder.claim"):
        assert name in book.homes


def test_every_parameter_is_explained(site):
    _, book, _ = site
    missing = list(check.undocumented(book))
    assert not missing, "Write a comment with shape or unit on the line of each parameter."


def test_every_module_and_every_name_of_the_package_is_told(site):
    _, book, _ = site
    package = ROOT / "manifoldgd"
    files = [path.relative_to(package) for path in package.rglob("*.py") if path.name[0] != "_"]
    names = {".".join(path.with_suffix("").parts) for path in files}
    assert set(book.modules) == names
    assert set(book.front) <= set(book.homes)


def test_sources_show_once_an_address_is_set(site):
    _, book, pages = site
    page = "guidance/manifold.ipynb"
    assert "blob/main" not in pages[page].text
    address = "https://github.com/someone/manifoldgd"
    options = books.Options(address, "main", "https://some.where")
    told = dataclasses.replace(book, options=options)
    text = "\n".join(cell.source for cell in docs.processed(page, told).cells)
    assert f"[Source]({address}/blob/main/manifoldgd/guidance/manifold.py#L" in text
    assert f"colab.research.google.com/github/someone/manifoldgd/blob/main/nbs/{page}" in text
    website = docs.site_options(told)["website"]
    assert website["repo-url"] == options.git_url
    assert website["site-url"] == "https://some.where"


def test_equations_show_their_code_and_plumbing_comes_last(site):
    _, book, pages = site
    tree = pages["prototypes/tree.ipynb"]
    folds = {source.splitlines()[0] for source in tree.code if "code-summary" in source}
    assert folds == {"#| code-fold: show", "#| code-fold: true"}
    for name, page in pages.items():
        last = page.text.partition("## Plumbing {.plumbing}")[2]
        plumbing = set(re.findall(r"^### `(\w+)`", last, flags=re.M))
        told = book.told.get(name, set()) | set(book.front)
        assert not plumbing & told, f"Expected what {name} tells of to stand where it is told."


def test_settings_have_their_values_in_each_preset(site):
    from manifoldgd.config.presets import DEFAULTS, PRESETS

    _, _, pages = site
    text = pages["reference/settings.qmd"].text
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert set(rows) >= {name for preset in PRESETS.values() for name in preset}
    cells = [cell.strip(" *`") for cell in rows["scheduler"].strip("| ").split("|")]
    values = [preset.get("scheduler", DEFAULTS["scheduler"]) for preset in PRESETS.values()]
    assert cells == ["scheduler", *values]


def test_without_quarto_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(docs, "make", lambda: None)
    monkeypatch.setattr(docs, "find_quarto", lambda: None)
    with pytest.raises(SystemExit, match="needs Quarto: https://quarto.org/docs/download/"):
        docs.build()


# Reading code

CODE = '''
@dataclass
class Patch:
    "Points around a sample."

    points: torch.Tensor  # (K, D)
    files: list = field(default_factory=list)  # where they are from

    @property
    def count(self) -> int:
        "The number of points."
        return len(self.points)

    def _hidden(self):
        "Nobody calls it."

    def __call__(self, x, g):  # (B, D), (B, D) -> (B,)
        "Measure."


def fit(
    patch: Patch,  # `K` points
    *more: Patch,  # others
    dim: Optional[int] = None,  # d; None: all
    kind: Literal["pca", "random"] = "pca",
) -> tuple[torch.Tensor, float]:  # (d, D) directions; the share
    """Fit a plane."""
'''


def test_entries_are_read_from_code():
    patch, count, call, fit = entries_of(CODE)
    assert [e.name for e in (patch, count, call)] == ["Patch", "Patch.count", "Patch.__call__"]
    assert [p.meaning for p in patch.parameters] == ["(K, D)", "where they are from"]
    assert patch.parameters[1].default == "list()"
    assert (count.kind, call.shapes) == ("property", "(B, D), (B, D) -> (B,)")
    assert [p.name for p in fit.parameters] == ["patch", "more", "dim", "kind"]
    types = ["Patch", "Patch", "int or None", '"pca" or "random"']
    assert [p.type for p in fit.parameters] == types
    assert [p.meaning for p in fit.parameters] == ["`K` points", "others", "d; None: all", ""]
    assert fit.returned == "(d, D) directions; the share"


def test_signatures_are_those_that_one_writes():
    patch, count, call, fit = entries_of(CODE)
    assert signature(patch) == "class Patch(points, files=list())"
    assert signature(count) == "Patch.count -> int"
    assert signature(call) == "Patch(x, g)"
    assert signature(fit) == 'fit(patch, *more, dim=None, kind="pca") -> tuple[Tensor, float]'


def test_an_entry_says_all_of_it():
    text = entry_text(entries_of(CODE)[-1], 3, lambda entry, parameter: parameter.meaning)
    assert text.startswith("### `fit` {#fit}\n\n```python\nfit(")
    assert "[dim]{.parameter} `int or None`, default `None`\n:   d; None: all" in text
    assert "[Returns]{.returns} `tuple[Tensor, float]`\n:   (d, D) directions; the share" in text


# Links


@pytest.fixture
def small(tmp_path):
    "A book with two definitions and one work."
    (tmp_path / "nbs" / "a").mkdir(parents=True)
    for name in ("CITATION.cff", "nbs/a/other.ipynb", "tool.py"):
        (tmp_path / name).write_text("")
    book = books.Book(tmp_path, pages={}, citations={"Arthur and Vassilvitskii 2007": "arthur2007"})
    book.modules = {"a.page": "a/page.ipynb"}
    book.homes = {
        "fit": [("a/page.ipynb", "fit")],
        "twice": [("a/page.ipynb", "twice"), ("b/page.ipynb", "twice")],
    }
    return book


@pytest.mark.parametrize(
    "text, expected",
    [
        ("see `fit`", "see [`fit`](page.ipynb#fit)"),
        ("see `fit()` and `a.page`", "see [`fit()`](page.ipynb#fit) and [`a.page`](page.ipynb)"),
        ("`fit`, `fit`", "[`fit`](page.ipynb#fit), `fit`"),  # once is enough
        ("see `twice`", "see `twice`"),  # which of the two?
        ("see `a.page.twice`", "see [`a.page.twice`](page.ipynb#twice)"),
        ("## The `fit`", "## The `fit`"),
        ("```\n`fit`\n```", "```\n`fit`\n```"),
        ("[`fit`](https://x.org)", "[`fit`](https://x.org)"),
        ("$`fit`$", "$`fit`$"),
        (
            "(Arthur and Vassilvitskii, 2007)",
            "([Arthur and Vassilvitskii, 2007](../references.qmd#ref-arthur2007))",
        ),
        ("in Someone 2007", "in Someone 2007"),
        ("[it](other.ipynb)", "[it](other.ipynb)"),
        ("[it](../../CITATION.cff)", "[it](../CITATION.cff)"),  # it moves beside the pages
        ("[it](../../tool.py)", "it"),  # it is not on the site
        ("[it](/reference/api.qmd#x)", "[it](../reference/api.qmd#x)"),
    ],
)
def test_links(small, text, expected):
    assert linked(text, "a/here.ipynb", small) == expected


def test_files_of_the_repository_are_linked_once_it_has_an_address(small):
    small.options.git_url = "https://example.org/it"
    found = linked("[it](../../tool.py)", "a/here.ipynb", small)
    assert found == "[it](https://example.org/it/blob/main/tool.py)"


@pytest.mark.parametrize(
    "words, expected",
    [
        ("Two means from inner products", "two-means-from-inner-products"),
        ("What is `x`?", "what-is-x"),
        ("1. A step", "a-step"),
        ("`fit` {#fit}", "fit"),
        ("K of *K*, in 2.5-D", "k-of-k-in-2.5-d"),
        ("[A link](to.md) here", "a-link-here"),
        ("42", "section"),
    ],
)
def test_ids_of_headings_are_those_of_pandoc(words, expected):
    assert heading_id(words) == expected
    pypandoc = pytest.importorskip("pypandoc", reason="pandoc makes the ids of the site")
    html = pypandoc.convert_text(f"## {words}", "html", "markdown")
    assert f'id="{expected}"' in html


def test_a_heading_gives_way_to_a_definition_of_its_name():
    assert set_apart("## Moments\n\ntext", {"moments"}) == "## Moments {#on-moments}\n\ntext"
    assert set_apart("## Others\n", {"moments"}) == "## Others\n"


# Tables and search


def test_tables_of_pandas_become_plain():
    pd = pytest.importorskip("pandas")
    text = plain_table(pd.DataFrame({"a": [1], "b": [float("nan")]})._repr_html_())
    assert text.startswith("```{=html}\n<div class=\"table-scroll\">\n<table class=\"dataframe\">")
    assert "<style" not in text and "border=" not in text
    assert "<td>1</td>" in text
    assert "<td></td>" in text  # what is not known is left empty


def test_the_search_finds_definitions_first(site):
    _, book, pages = site
    found = {record["section"]: record for record in definitions(book)}
    assert found["bisect_tree"]["href"] == "prototypes/tree.html#bisect_tree"
    own = {"objectID": "a.html#f", "section": "f"}
    records = [{"objectID": "a.html"}, {"objectID": "a.html#f", "section": "An old one"}]
    assert with_definitions(records, [own]) == [own, {"objectID": "a.html"}]


# The check can fail

PNG = {"image/png": "iVBO"}
SIDEBAR = {"website": {"sidebar": {"contents": ["a.ipynb"]}}}
QUARTO = SIDEBAR | {"format": {"html": {"html-math-method": "mathml"}}}


def cell(source, kind="markdown", **data):
    "A cell of a processed page, with one output if there are data."
    outputs = [{"output_type": "display_data", "data": data, "metadata": {}}] if data else []
    return {"cell_type": kind, "source": source, "outputs": outputs, "metadata": {}}


def write_site(folder, *cells, quarto=QUARTO, styles="$web-font-path: false;"):
    "A site of one page."
    (folder / "a.ipynb").write_text(json.dumps({"cells": cells}))
    (folder / "_quarto.yml").write_text(json.dumps(quarto))
    (folder / "styles.scss").write_text(styles)
    return folder


def test_a_sound_site_passes(tmp_path):
    told = cell("## Here\n\n[here](#here), $x_i$, `[x](y)`\n\n```\n[x](y)\n```")
    said = '#| fig-cap: "The only point."\n#| fig-alt: "A dot."\n'
    drawn = cell(f"{said}plot()", "code", **PNG)
    assert check.problems(write_site(tmp_path, told, drawn)) == []


@pytest.mark.parametrize(
    "broken, expected",
    [
        (cell("[x](gone.ipynb)"), "no file for the link to gone.ipynb"),
        (cell("[x](./manifoldgd/core.html)"), "no file for the link"),
        (cell("![x](gone.png)"), "no file for the link to gone.png"),
        (cell("[x](#gone)"), "no such place for the link to #gone"),
        (cell("x", "code", **{"text/markdown": "[x](gone.md)"}), "no file for the link"),
        (cell("### `f` {#f}\n\n### `f` {#f}"), "the id f stands twice"),
        (cell("## F\n\n### `f` {#f}"), "the id f stands twice"),
        (cell("![x](https://example.org/x.png)"), "fetches from the network"),
        (cell('```{=html}\n<script src="https://cdn.org/x.js"></script>\n```'), "fetches from"),
        (cell("x", "code", **{"text/html": "<table></table>"}), "an output of text/html"),
        (cell("x = 1  # " + "x" * 100, "code"), "109 columns"),
        (cell(f"```\n{'x' * 101}\n```"), "101 columns"),
        (cell("x", "code", **{"text/plain": "x" * 101}), "101 columns"),
        (cell("x", "code", **{"text/plain": "<A object at 0x7f12>"}), "an address in memory"),
        (cell("x", "code", **{"text/plain": "[0.0006880995]"}), "nobody rounded: 0.0006880995"),
        (cell("```python\nX(a=<factory>)\n```"), "a default that says nothing"),
        (cell("```python\ndef Node(a)->None:\n```"), "a class shown as a function"),
        (cell("```python\nf(a) # [`Job`](x)\n```"), "a link inside code"),
        (cell("plot()", "code", **PNG), "a picture without fig-alt: plot()"),
        (cell('#| fig-alt: "A dot."\nplot()', "code", **PNG), "a picture without fig-cap: plot()"),
        (cell('#| fig-cap: "A"\n#| fig-alt: "A"\nf()', "code", **PNG), "is its alternative text"),
        (cell("![](a.ipynb)"), "without alternative text"),
    ],
)
def test_a_broken_page_fails(tmp_path, broken, expected):
    found = check.problems(write_site(tmp_path, broken))
    assert any(expected in problem for problem in found), found


def test_mathematics_that_is_none_fails(tmp_path):
    pytest.importorskip("pypandoc", reason="pandoc turns mathematics into MathML")
    found = check.problems(write_site(tmp_path, cell(r"With $x$ and $\nothing{x}$.")))
    assert found == [r"a.ipynb: mathematics that is not MathML: \nothing{x}"]


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"quarto": SIDEBAR | {"format": {"html": {}}}}, "not MathML"),
        ({"styles": ""}, "fonts are fetched"),
        ({"styles": "@import url('https://fonts.org/x'); $web-font-path: false;"}, "fetches from"),
        ({"quarto": QUARTO | {"website": {"sidebar": {"contents": []}}}}, "does not list a.ipynb"),
        (
            {"quarto": QUARTO | {"website": {"sidebar": {"contents": ["a.ipynb", "b.qmd"]}}}},
            "the sidebar lists b.qmd",
        ),
    ],
)
def test_a_broken_configuration_fails(tmp_path, options, expected):
    found = check.problems(write_site(tmp_path, cell("x"), **options))
    assert any(expected in problem for problem in found), found


def test_a_name_without_entry_or_words_fails(tmp_path):
    book = books.Book(tmp_path, pages={})
    book.entries = {("a.ipynb", "f"): entries_of("def f(x):\n    pass")[0]}
    pages = check.read_pages(write_site(tmp_path, cell("Nothing here.")))
    assert list(check.missing_entries(pages, tmp_path, book)) == ["a.ipynb: f has no entry"]
    assert list(check.undocumented(book)) == [("a.ipynb", "f"), ("a.ipynb", "f(x)")]
