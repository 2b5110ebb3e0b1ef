"""Properties of what reads tables and manifests: whatever the file holds, it is read or refused."""
import copy
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifoldgd.config.presets import DistillConfig, resolve
from manifoldgd.config.settings import to_dict
from manifoldgd.distillation.runs import read_manifest
from manifoldgd.errors import InputError, plain
from manifoldgd.evaluation.tables import add_rows, read_lines, read_table

COLUMNS = {"run": str, "seed": int, "top1": float, "best": float}
KEY = ["run", "seed"]
fast = settings(max_examples=40, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path):
    "Read the table of these tests."
    return read_table(path, COLUMNS, ("best",), "tests")


# Any text that a file in UTF-8 can hold, and that no terminal has asked for.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
rows = st.fixed_dictionaries({
    "run": texts,
    "seed": st.integers(0, 2**59),
    "top1": numbers,
    "best": numbers | st.just(float("nan")),
})
tables = st.lists(rows, min_size=1, max_size=5)


def write(path, table):
    "Write a table, as `evaluate` writes one."
    path.unlink(missing_ok=True)
    add_rows(path, pd.DataFrame(table), KEY, read)


@fast
@given(table=tables)
def test_what_is_added_is_read_again(tmp_path, table):
    path = tmp_path / "results.csv"
    write(path, table)
    wanted = {(row["run"], row["seed"]): row for row in table}
    found = {(row["run"], row["seed"]): row for row in read(path).to_dict("records")}
    left, right = (pd.DataFrame(list(rows))[list(COLUMNS)] for rows in (
        [found[key] for key in wanted], wanted.values()))
    pd.testing.assert_frame_equal(left, right, check_exact=True)


@fast
@given(table=tables, more=rows)
def test_the_lines_of_others_stay_to_the_byte(tmp_path, table, more):
    path = tmp_path / "results.csv"
    write(path, table)
    before = path.read_bytes()
    kept = [row for row in table if (row["run"], row["seed"]) != (more["run"], more["seed"])]
    add_rows(path, pd.DataFrame([more]), KEY, read)
    if len(kept) == len(table):
        assert path.read_bytes().startswith(before)


@fast
@given(table=tables, data=st.data())
def test_a_table_that_is_cut_off_is_refused_or_has_whole_lines_less(tmp_path, table, data):
    path = tmp_path / "results.csv"
    write(path, table)
    whole, lines = path.read_bytes(), read_lines(path)
    cut = whole[:data.draw(st.integers(0, len(whole) - 1))]
    path.write_bytes(cut)
    try:
        found = read_lines(path)
        read(path)
    except (InputError, ValueError):
        assert path.read_bytes() == cut
    else:
        assert found == lines[:len(found)]


@fast
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(
    lambda text: text.encode(errors="replace")))
def test_any_file_is_read_or_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match="results.csv to be a table of tests, but it could not be"):
        read(path)
    with pytest.raises(InputError):
        add_rows(path, pd.DataFrame([{"run": "a", "seed": 0, "top1": 1., "best": 1.}]), KEY, read)
    assert path.read_bytes() == content


@fast
@given(table=tables, place=st.floats(0, 1), byte=st.binary(min_size=0, max_size=3))
def test_a_table_with_changed_bytes_is_read_or_refused(tmp_path, table, place, byte):
    path = tmp_path / "results.csv"
    write(path, table)
    whole = path.read_bytes()
    at = int(place * (len(whole) - 1))
    path.write_bytes(whole[:at] + byte + whole[at + 1:])
    try:
        rows = read(path)
    except InputError as error:
        assert "(line " in str(error)
    else:
        assert list(rows.columns) == list(COLUMNS)
        assert rows.top1.notna().all()


# Manifests

MANIFEST = {
    "config": to_dict(resolve(DistillConfig(preset="random", ipc=1, out="run"))),
    "classes": [{"id": c, "folder": str(c), "name": str(c)} for c in range(2)],
    "data_fingerprint": "d",
    "backbone_fingerprint": "none",
    "finished": False,
}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner,
                                                                max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    "All places in a value that JSON can hold."
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(
        value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(manifest, place, value):
    "A manifest with another value in one place."
    manifest = copy.deepcopy(manifest)
    if not place:
        return value
    inner = manifest
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return manifest


def read_or_refuse(path):
    "Read a manifest; an `InputError` must name it."
    content = path.read_bytes()
    try:
        manifest = read_manifest(path, "Make the run again.")
        assert manifest["config"]["ipc"] >= 1
    except InputError as error:
        assert str(path) in str(error)
        assert plain(str(error)).isprintable()
    assert path.read_bytes() == content


def test_the_manifest_of_these_tests_is_one(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(MANIFEST))
    assert read_manifest(path, "") == MANIFEST


@fast
@given(place=st.sampled_from(list(places(MANIFEST))), value=values)
def test_a_manifest_with_another_value_is_read_or_refused(tmp_path, place, value):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(changed(MANIFEST, place, value)))
    read_or_refuse(path)


@fast
@given(place=st.floats(0, 1), byte=st.binary(min_size=0, max_size=3))
def test_a_manifest_with_changed_bytes_is_read_or_refused(tmp_path, place, byte):
    path = tmp_path / "manifest.json"
    whole = json.dumps(MANIFEST).encode()
    at = int(place * (len(whole) - 1))
    path.write_bytes(whole[:at] + byte + whole[at + 1:])
    read_or_refuse(path)


@pytest.mark.parametrize("text", ["", "[", 10_000 * "[", "null", "\x00", '{"config": 1e999}'])
def test_a_file_that_is_no_manifest(tmp_path, text):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(InputError, match="to be the manifest of a run"):
        read_manifest(path, "")


def test_a_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(InputError, match="it is a pipe"):
        read_manifest(Path(tmp_path / "manifest.json"), "")


@fast
@given(text=st.text())
def test_a_plain_message_is_one_line_that_a_terminal_shows(text):
    assert plain(text).isprintable()
    assert plain(plain(text)) == plain(text)
