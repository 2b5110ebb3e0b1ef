"""Refresh the outputs stored in the pages, and make README.md. `tools/docs.py` makes the site.

    python tools/pages.py refresh [--slow] [PAGE ...]   run pages in place, store what they show
    python tools/pages.py readme [--check]              write README.md from nbs/index.ipynb
"""
import argparse
import os
import posixpath
import re
import shutil
import sys
from base64 import b64decode, b64encode
from io import BytesIO
from pathlib import Path
from pprint import pformat

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = 96  # of a string that is shown: with quotes and brackets it fits into 100
LARGE = 90_000  # bytes of a figure that is stored at the density of a screen
SAID = r'^#\| (fig-\w+): "(.+)"$'  # captions and alternative texts
PICTURES = "index_files"  # where the README keeps the pictures of the index page
# One thread and no progress bars: a second run must store the same bytes. Agg: on any machine.
os.environ.update(TQDM_DISABLE="1", MPLBACKEND="Agg", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from execnb.nbio import nb2str, read_nb, write_nb
from execnb.shell import CaptureShell, format_exc
from fastcore.xtras import working_directory
from nbdev.clean import clean_nb
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.process import extract_directives
from nbdev.processors import (
    FilterDefaults,
    filter_stream_,
    hide_,
    hide_line,
    insert_warning,
    rm_export,
    strip_ansi,
)
from PIL import Image

# The program and date that matplotlib writes into a PNG would change the file with the version.
# Numbers are stored with six digits: the last ones of a float say nothing, and differ by machine.
SETUP = """import matplotlib
matplotlib.rcdefaults()
matplotlib.rcParams['figure.dpi'] = 80
get_ipython().run_line_magic('config', '''InlineBackend.print_figure_kwargs = {
    'bbox_inches': 'tight', 'metadata': {'Software': None}, 'pil_kwargs': {'optimize': True}
}''')
get_ipython().run_line_magic('config', "InlineBackend.figure_format = 'retina'")
get_ipython().display_formatter.formatters['text/plain'].for_type(float, lambda x, p, _: p.text(
    repr(x) if len(repr(x)) < 10 else repr(float(f'{x:.6g}'))))"""


# The pages


def is_skipped(cell, flags):
    "nbdev's rule: which cells a test run leaves out."
    if cell.cell_type != "code" or "nbdev_export(" in cell.source:
        return True
    directives = extract_directives(cell, remove=False)
    is_off = directives.get("eval:", [""])[0].lower() == "false"
    return is_off or bool(flags & directives.keys())


def without_stderr(outputs, page, number):
    "The outputs a page keeps; stderr (warnings name paths of this machine) goes to the terminal."
    kept = []
    for out in outputs:
        if out.get("name") == "stderr":
            print(f"{page}, cell {number}, stderr:", "".join(out["text"]), file=sys.stderr)
        else:
            kept.append(out)
    return kept


def smallest_png(picture):
    "A picture as PNG: with a palette of 256 colors, or all of them, whichever takes less."
    written = []
    for kind in (picture, picture.quantize(256, dither=Image.Dither.NONE)):
        data = BytesIO()
        kind.save(data, "png", optimize=True)
        written.append(data.getvalue())
    return min(written, key=len)


def with_small_pictures(outputs):
    "Store figures at twice the density of a screen, or at its density where they would be large."
    for out in outputs:
        sizes = out.get("metadata", {}).get("image/png", {})
        if "width" not in sizes:  # no figure
            continue
        picture = Image.open(BytesIO(b64decode("".join(out["data"]["image/png"])))).convert("RGB")
        data = smallest_png(picture)
        if len(data) > LARGE:
            size = (sizes["width"], sizes["height"])
            data = smallest_png(picture.resize(size, Image.Resampling.LANCZOS))
        out["data"]["image/png"] = b64encode(data).decode() + "\n"
    return outputs


def show_string(text, printer, cycle):
    "Show a long string on several lines, as Python would write it."
    for number, line in enumerate(pformat(text, width=COLUMNS).splitlines()):
        if number:
            printer.break_()
        printer.text(line)


def refresh_page(path, flags):
    "Run a page in its folder and store the outputs; stop at the first failing cell."
    notebook = read_nb(path)
    shell = CaptureShell(path, mpl_format="retina")
    page = os.path.relpath(path, ROOT)
    shell.run(SETUP)
    shell.display_formatter.formatters["text/plain"].for_type(str, show_string)
    with working_directory(path.parent):
        for number, cell in enumerate(notebook.cells):
            if is_skipped(cell, flags):  # it keeps its outputs
                continue
            kept = without_stderr(shell.run(cell.source), page, number)
            cell.outputs = with_small_pictures(kept)
            if shell.exc:
                report_failure(cell, number, page, shell.exc)
    clean_nb(notebook, clean_ids=get_config().clean_ids)
    write_nb(notebook, path)
    print(f"{page}: {path.stat().st_size / 1000:.0f} kB")


def report_failure(cell, number, page, error):
    "Show a failing cell and its traceback, and exit."
    print(cell.source, "-" * 70, "".join(format_exc(error)), sep="\n", file=sys.stderr)
    failure = f"cell {number} (id {cell.id}) failed with {type(error).__name__}"
    sys.exit(f"{page}: {failure}. The page was left as it was.")


def refresh(pages, slow):
    "Refresh the given pages, or all of them."
    os.environ["IN_TEST"] = "1"  # nbdev's own switch: a page under test exports nothing
    sys.path.insert(0, str(ROOT))
    flags = set(get_config().tst_flags.split())
    if slow:
        flags.remove("slow")
    for path in pages or sorted(map(Path, nbglob())):
        refresh_page(path, flags)


# README.md


class ReadmeFilter(FilterDefaults):
    "nbdev's processing of a page, without what only the docs site needs."

    def base_procs(self):
        "Leave out the front matter and the links to the reference."
        return [insert_warning, strip_ansi, hide_line, filter_stream_, rm_export, hide_]


def from_root(markdown):
    "Point the relative links of a page in nbs/ from the folder above it."

    def moved(match):
        opening, link = match.groups()
        target = posixpath.normpath(f"nbs/{link}")
        exists = (ROOT / target.split("#")[0]).exists()
        return opening + (target if exists else link)

    return re.sub(r'(\]\(|src="|href=")(?!\w+:|#|/|index_files)([^)"\s]+)', moved, markdown)


def index_page():
    "The index page as nbdev processes it, without the code that it hides and the site's tabs."
    notebook = read_nb(ROOT / "nbs" / get_config().readme_nb)
    ReadmeFilter()(notebook)
    notebook.metadata["language_info"] = {"name": "python"}  # makes the fences ```python
    for cell in notebook.cells:
        is_code = cell.cell_type == "code"
        cell.metadata["said"] = dict(re.findall(SAID, cell.source, flags=re.M))
        if is_code and "false" in extract_directives(cell).get("echo:", ()):
            cell.source = ""
        cell.source = re.sub(r"^(#\||:::).*\n?", "", cell.source, flags=re.M)
    return notebook


def picture(name, out, said):
    "A picture with its caption, at half its size if it has twice the density of a screen."
    width = out.get("metadata", {}).get("image/png", {}).get("width")
    size = f' width="{width}"' if width else ""
    return f'<img src="{name}" alt="{said["fig-alt"]}"{size}>\n\n*{said["fig-cap"]}*'


def with_captions(text, notebook):
    "Show every picture of the index page with its alternative text and its caption."
    for number, cell in enumerate(notebook.cells):
        for place, out in enumerate(cell.get("outputs", [])):
            name = f"{PICTURES}/index_{number}_{place}.png"
            if f"![png]({name})" in text:
                text = text.replace(f"![png]({name})", picture(name, out, cell.metadata["said"]))
    return text


def render_readme():
    "The text of README.md and its pictures, as {name: bytes}."
    import nbformat
    from nbconvert import MarkdownExporter

    page = index_page()
    notebook = nbformat.reads(nb2str(page), 4)
    resources = {"output_files_dir": PICTURES, "unique_key": "index"}
    text, found = MarkdownExporter().from_notebook_node(notebook, resources)
    for useless in (r"```python\n\s*```\n", r"<style.*?</style>\n", r"^[ \t]+$"):
        text = re.sub(useless, "", text, flags=re.M | re.S)
    text = re.sub(r"\n{3,}", "\n\n", with_captions(text, page)).strip() + "\n"
    return from_root(text), found["outputs"]


def is_file_with(path, data):
    "Whether a file is there and holds these bytes."
    return path.exists() and path.read_bytes() == data


def readme(check):
    "Write README.md and its pictures, or say whether they are those of the index page."
    text, pictures = render_readme()
    files = {"README.md": text.encode(), **pictures}
    if check:
        if not all(is_file_with(ROOT / name, data) for name, data in files.items()):
            sys.exit("README.md differs from nbs/index.ipynb. Run `make readme`.")
        return
    shutil.rmtree(ROOT / PICTURES, ignore_errors=True)
    for name, data in files.items():
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(data)


def parse():
    "Read the command line."
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("refresh", help="run pages in place and store their outputs")
    sub.add_argument(
        "pages", nargs="*", type=lambda p: Path(p).resolve(), help="all pages if none is named"
    )
    sub.add_argument("--slow", action="store_true", help="also run the cells marked #| slow")
    sub = commands.add_parser("readme", help="write README.md from nbs/index.ipynb")
    sub.add_argument(
        "--check", action="store_true", help="only compare; exit status 1 if they differ"
    )
    return vars(parser.parse_args())


if __name__ == "__main__":
    arguments = parse()
    os.chdir(ROOT)  # nbdev looks for settings.ini from here
    {"refresh": refresh, "readme": readme}[arguments.pop("command")](**arguments)
