"""Refresh the outputs stored in the pages, and make README.md and the docs' sources from them, without Quarto.

    python tools/pages.py refresh [--slow] [PAGE ...]    run pages in place and store what their cells print and draw
    python tools/pages.py readme [--check]               write README.md from nbs/index.ipynb, or only compare the two
    python tools/pages.py docs                           make _proc/, from which `quarto render` builds the site
"""
import argparse
import os
import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PICTURES = 'index_files'                                        # where the README keeps the pictures of the index page
# One thread and no progress bars: a second run must store the same bytes. Agg and a CPU: on any machine.
os.environ.update(TQDM_DISABLE='1', MPLBACKEND='Agg', HF_HUB_DISABLE_PROGRESS_BARS='1')
os.environ.setdefault('OMP_NUM_THREADS', '1')

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

# The program and date that matplotlib writes into a PNG would change the file with the version.
PNG = "{'bbox_inches': 'tight', 'metadata': {'Software': None}, 'pil_kwargs': {'optimize': True}}"
SETUP = f"""import matplotlib
matplotlib.rcdefaults()
matplotlib.rcParams['figure.dpi'] = 80
get_ipython().run_line_magic('config', "InlineBackend.print_figure_kwargs = {PNG}")"""


def is_skipped(cell, flags):
    "nbdev's rule: which cells a test run leaves out."
    if cell.cell_type != 'code' or 'nbdev_export(' in cell.source: return True
    directives = extract_directives(cell, remove=False)
    return directives.get('eval:', [''])[0].lower() == 'false' or bool(flags & directives.keys())


def stored(outputs, page, number):
    "The outputs a page keeps: all but stderr (warnings name paths of this machine), which goes to the terminal."
    for out in outputs:
        if out.get('name') == 'stderr': print(f'{page}, cell {number}, stderr:', ''.join(out['text']), file=sys.stderr)
    return [out for out in outputs if out.get('name') != 'stderr']


def refresh_page(path, flags):
    "Run a page in its folder and store the outputs, keeping those of skipped cells; stop at the first failing cell."
    nb, shell, page = read_nb(path), CaptureShell(path, mpl_format='png'), os.path.relpath(path, ROOT)
    shell.run(SETUP)
    with working_directory(path.parent):
        for number, cell in enumerate(nb.cells):
            if is_skipped(cell, flags): continue
            cell.outputs = stored(shell.run(cell.source), page, number)
            if shell.exc:
                print(cell.source, '-'*70, ''.join(format_exc(shell.exc)), sep='\n', file=sys.stderr)
                sys.exit(f'{page}: cell {number} (id {cell.id}) failed with {type(shell.exc).__name__}. The page was left as it was.')
    clean_nb(nb, clean_ids=get_config().clean_ids)
    write_nb(nb, path)
    print(f'{page}: {path.stat().st_size/1000:.0f} kB')


def refresh(pages, slow):
    "Refresh the given pages, or all of them."
    os.environ['IN_TEST'] = '1'                                 # nbdev's own switch: a page under test exports nothing
    sys.path.insert(0, str(ROOT))
    flags = set(get_config().tst_flags.split()) - ({'slow'} if slow else set())
    for path in pages or sorted(map(Path, nbglob())): refresh_page(path, flags)


class ReadmeFilter(FilterDefaults):
    "nbdev's processing of a page, without what only the docs site needs (front matter, links to the reference)."
    def base_procs(self): return [insert_warning, strip_ansi, hide_line, filter_stream_, rm_export, hide_]


def from_root(markdown):
    "Point the relative links of a page in nbs/ from the folder above it."
    def fix(m):
        target = posixpath.normpath(f'nbs/{m[2]}')
        return m[1] + (target if (ROOT/target.split('#')[0]).exists() else m[2])
    return re.sub(r'(\]\(|src="|href=")(?!\w+:|#|/|index_files)([^)"\s]+)', fix, markdown)


def render_readme():
    "The text of README.md and its pictures, as {name: bytes}."
    import nbformat
    from nbconvert import MarkdownExporter
    nb = read_nb(ROOT/'nbs'/get_config().readme_nb)
    ReadmeFilter()(nb)
    nb.metadata['language_info'] = {'name': 'python'}           # nbdev_clean drops it; it makes the fences ```python
    for cell in nb.cells:
        if cell.cell_type == 'code' and 'false' in extract_directives(cell).get('echo:', ()): cell.source = ''
        cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
    text, found = MarkdownExporter().from_notebook_node(nbformat.reads(nb2str(nb), 4), {'output_files_dir': PICTURES, 'unique_key': 'index'})
    for useless in (r'```python\n\s*```\n', r'<style.*?</style>\n', r'^[ \t]+$'): text = re.sub(useless, '', text, flags=re.M | re.S)
    return from_root(re.sub(r'\n{3,}', '\n\n', text).strip() + '\n'), found['outputs']


def readme(check):
    "Write README.md and its pictures, or say whether they are those of the index page."
    text, pictures = render_readme()
    if check:
        same = (ROOT/'README.md').read_text() == text and all((ROOT/f).exists() and (ROOT/f).read_bytes() == b for f, b in pictures.items())
        if not same: sys.exit('README.md differs from nbs/index.ipynb. Run `make readme`.')
        return
    shutil.rmtree(ROOT/PICTURES, ignore_errors=True)
    for name, data in pictures.items():
        (ROOT/name).parent.mkdir(exist_ok=True)
        (ROOT/name).write_bytes(data)
    (ROOT/'README.md').write_text(text)


def docs():
    "Make _proc/: the pages with their reference filled in and their stored outputs kept."
    import nbdev.doclinks
    from nbdev.quarto import refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    nbdev.doclinks._build_modidx()
    for path in Path(proc_nbs(force=True)).rglob('*.ipynb'):
        nb = read_nb(path)
        code = [cell for cell in nb.cells if cell.cell_type == 'code']
        for count, cell in enumerate(code, 1):                  # nbdev_clean writes null, which pandoc refuses
            for part in [cell, *(out for out in cell.outputs if out.output_type == 'execute_result')]: part.execution_count = count
        write_nb(nb, path)
    print('Made _proc/. Now run `quarto render` in it.')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    sub = commands.add_parser('refresh', help='run pages in place and store their outputs')
    sub.add_argument('pages', nargs='*', type=lambda p: Path(p).resolve(), help='all pages if none is named')
    sub.add_argument('--slow', action='store_true', help='also run the cells marked #| slow')
    sub = commands.add_parser('readme', help='write README.md from nbs/index.ipynb')
    sub.add_argument('--check', action='store_true', help='only compare; exit status 1 if they differ')
    commands.add_parser('docs', help='make _proc/ for quarto')
    args = vars(parser.parse_args())
    os.chdir(ROOT)                                              # nbdev looks for settings.ini from here
    globals()[args.pop('command')](**args)
