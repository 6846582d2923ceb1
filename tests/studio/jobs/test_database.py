"""Files of the record that are damaged, foreign, older or newer: a sentence and a way out, and old ones go on."""

from __future__ import annotations

import sqlite3

import pytest

from pipelines.errors import ConfigError
from studio.cli import main
from studio.jobs.database import LATER, TABLES, VERSION
from studio.jobs.store import Ledger


def written(path, change):
    with sqlite3.connect(path) as record:
        record.executescript(change)
    record.close()


def damaged(path):
    ledger = Ledger(path)
    for number in range(200):
        ledger.add("generation", {"n": number, "text": "x" * 500})
    ledger.close()
    content = bytearray(path.read_bytes())
    content[5000:40_000] = b"\x55" * 35_000
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_bytes(b"no database at all, but a text of some length" * 40), "damaged, or something"),
        (damaged, "damaged"),
        (lambda path: written(path, "CREATE TABLE songs (name TEXT)"), "another program: it holds songs"),
        (lambda path: written(path, f"PRAGMA user_version = {VERSION + 1}"), f"version {VERSION + 1}"),
    ],
)
def test_what_cannot_be_used_is_said_with_a_way_out(tmp_path, make, said, capsys):
    path = tmp_path / "jobs.sqlite"
    make(path)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said) as error:
        Ledger(path)
    assert "Move it" in error.value.hint and path.read_bytes()[100:] == before[100:]
    assert main(["serve", "--no-page", "--port", "0", "--folder", str(tmp_path)]) == 2
    assert "Move it" in capsys.readouterr().err


def test_a_file_without_a_version_goes_on(tmp_path):
    path = tmp_path / "jobs.sqlite"
    old = TABLES
    for name, kind in LATER.items():
        old = old.replace(f" {name} {kind},", "").replace(", key TEXT UNIQUE", "")
    assert "begun" not in old and "key" not in old.replace("KEY", "")
    rows = "INSERT INTO jobs (id, kind, state, spec, created) VALUES ('a', 'generation', 'done', '{\"n\": 1}', 5.0);"
    written(path, old + rows)
    ledger = Ledger(path)
    assert (ledger.get("a").spec, ledger.get("a").begun, ledger.get("a").results) == ({"n": 1}, 0, ())
    one = ledger.add("generation", {"n": 2}, key="k")
    assert ledger.add("generation", {"n": 2}, key="k").id == one.id
    ledger.close()
    with sqlite3.connect(path) as record:
        assert record.execute("PRAGMA user_version").fetchone() == (VERSION,)
    record.close()
    again = Ledger(path)
    assert [job.id for job in again.list()] == [one.id, "a"]
