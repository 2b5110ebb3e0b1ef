"""The tests run in the project's root, where nbdev looks for settings.ini.

SLOW=1 in the environment includes the slow cells.
"""
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
os.chdir(ROOT)
os.environ.update(MPLBACKEND="Agg", TQDM_DISABLE="1")
SLOW = os.environ.get("SLOW", "0") not in ("", "0")
