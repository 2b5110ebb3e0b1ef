"""The tests run in the project's root, where nbdev looks for settings.ini.

SLOW=1 in the environment includes the slow cells.
"""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.chdir(ROOT)
os.environ.update(MPLBACKEND="Agg", TQDM_DISABLE="1")
SLOW = os.environ.get("SLOW", "0") not in ("", "0")


def pytest_collection_modifyitems(items):
    "Keep the tests of a file in one process, where its fixtures are made once; pages are free."
    for item in items:
        alone = item.path.name == "test_pages.py"
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else item.path.name))
