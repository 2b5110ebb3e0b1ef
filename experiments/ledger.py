"""The ledger of a measurement: a table that grows by whole rows and says where each comes from.

Every script here that measures by itself writes its table through `Ledger`. A table with a key is
resumed: what stands in it is not measured again. A table without a key is begun anew. Scripts that
run `evaluate` or `metrics` write those commands' own tables, which keep provenance themselves.
"""
import argparse
import os
import platform
import shlex
import sys
from pathlib import Path

import pandas as pd
import torch

from manifoldgd.core import git_commit, replacing

RESULTS = Path(__file__).resolve().parents[1] / "results"


def command() -> str:
    "Write the running command as it is typed in the root of the project."
    threads = os.environ.get("OMP_NUM_THREADS")
    words = ["python", f"experiments/{Path(sys.argv[0]).name}", *sys.argv[1:]]
    return (f"OMP_NUM_THREADS={threads} " if threads else "") + shlex.join(words)


FACTS = {
    "commit": git_commit,
    "machine": lambda: f"{platform.machine()}, {os.cpu_count()} cores",
    "device": lambda: f"CPU, {platform.machine()}, {os.cpu_count()} cores",
    "threads": torch.get_num_threads,
    "load": lambda: round(os.getloadavg()[0], 1),  # of the last minute: was the machine idle?
    "torch": lambda: torch.__version__,
    "command": command,
}


def provenance(
    *columns,  # names in `FACTS`, in the order of the table
) -> dict:  # the end of every row
    "Say where a row comes from."
    return {name: FACTS[name]() for name in columns}


def new_parser(
    description: str,  # docstring of the script
    table: str,  # stem of its table
) -> argparse.ArgumentParser:  # with the option `--out`
    "Begin the command line of a script."
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=RESULTS / f"{table}.csv", help="the table")
    return parser


class Ledger:
    "A CSV file that grows by whole rows."

    def __init__(
        self,
        path: Path,  # of the file; its folder is made
        key: tuple = (),  # the columns that tell a row from another; none: begin the file anew
        float_format: str = None,  # how floats are written, such as "%.6g"; None: in full
    ):
        self.path = Path(path)
        self.key = list(key)
        self.float_format = float_format
        self.rows = []
        if key and self.path.exists():
            self.rows = pd.read_csv(self.path).to_dict("records")
        self.done = {self.key_of(row) for row in self.rows}

    def key_of(self, row: dict) -> tuple:
        "What tells a row from another."
        return tuple(row[name] for name in self.key)

    def __contains__(self, row: dict) -> bool:
        "Whether a row of this key stands there already."
        return bool(self.key) and self.key_of(row) in self.done

    def add(self, row: dict):
        "Append a row; a process that is killed meanwhile leaves the file as it was."
        self.rows.append(row)
        self.done.add(self.key_of(row))
        with replacing(self.path) as temporary:
            pd.DataFrame(self.rows).to_csv(temporary, index=False, float_format=self.float_format)
