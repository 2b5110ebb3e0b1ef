"""Every page runs from its first cell to its last."""
from pathlib import Path

import pytest
from conftest import ROOT, SLOW
from nbdev.config import get_config
from nbdev.doclinks import nbglob
from nbdev.test import test_nb as run_page  # under another name, or pytest would take it for a test

PAGES = sorted(map(Path, nbglob()))
NAMES = [page.relative_to(ROOT / "nbs").as_posix() for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_page(page, monkeypatch):
    # nbdev sets it and leaves it set, which would disarm later exports
    monkeypatch.setenv("IN_TEST", "1")
    monkeypatch.syspath_prepend(ROOT)
    passed, _ = run_page(
        page,
        skip_flags=get_config().tst_flags.split(),
        force_flags=["slow"] if SLOW else [],
        basepath=ROOT,
    )
    assert passed, f"{page.name} failed: its traceback is in the captured stderr"


@pytest.fixture(autouse=True)
def close_figures():
    "Leave nothing of one page's drawing to the next."
    yield
    import matplotlib.pyplot as plt

    plt.close("all")
    plt.rcdefaults()
