"""The tests run in the project's root, where nbdev looks for settings.ini.

SLOW=1 in the environment includes the slow cells.
"""
import os
import sys
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


@pytest.fixture(autouse=True)
def same_threads():
    "Leave the next test as many of torch's threads as this one found."
    torch = sys.modules.get("torch")
    count = torch.get_num_threads() if torch else None
    yield
    if torch:
        torch.set_num_threads(count)
