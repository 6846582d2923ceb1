"""The pictures of all sessions: found, marked, thrown away and brought back; and the order of what waits."""

from __future__ import annotations

import os
import sqlite3
import time

import pytest
from PIL import Image

from pipelines.errors import Conflict, RequestError, Unknown
from studio.jobs import rows, store
from studio.jobs.database import _first
from studio.jobs.history import BATCH, THROWN, PictureSearch
from studio.jobs.jobs import Jobs
from studio.jobs.store import Ledger


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False, bases={"pocket": "pocket", "other": "pocket"})


def made(jobs, prompt, base="pocket", count=1, **fields):
    """A generation that is done, as its process would leave it; its id."""
    job = jobs.submit_generation({"prompt": prompt, "count": count, **fields}, base).id
    folder = jobs.places.job(job)
    folder.mkdir(parents=True)
    names = [f"jobs/{job}/{number}.png" for number in range(count)]
    for name in names:
        Image.new("RGB", (8, 8)).save(jobs.folder / name)
    assert jobs.ledger.claim(job, 1, 1.0) and jobs.ledger.move(job, ("running",), "done", results=names)
    return job


def names(found):
    return [(one.job.id, one.path.name) for one in found]


def test_pictures_of_all_days_are_found_by_what_was_asked(jobs):
    fox = made(jobs, "a Fox on blue", boxes=[{"phrase": "a red ball", "box": [0, 0, 0.5, 0.5]}])
    cat = made(jobs, "a cat", base="other", count=2)
    jobs.submit_generation({"prompt": "a fox that waits"})
    history = jobs.history
    assert names(history.find(PictureSearch())) == [(cat, "0.png"), (cat, "1.png"), (fox, "0.png")]
    assert names(history.find(PictureSearch(), limit=2)) == [(cat, "0.png"), (cat, "1.png")]
    for words in ("fox", "FOX blue", "red ball"):
        assert names(history.find(PictureSearch(words))) == [(fox, "0.png")], words
    assert history.find(PictureSearch("fox cat")) == []
    assert {one.job.id for one in history.find(PictureSearch(base="other"))} == {cat}
    assert history.find(PictureSearch(since=time.time() + 5)) == []
    assert len(history.find(PictureSearch(since=time.time() - 60))) == 3
    assert history.find(PictureSearch(concept="wolf")) == []
    assert history.prompts() == ["a fox that waits", "a cat", "a Fox on blue"]


def test_no_more_of_the_record_is_read_than_is_shown(jobs, monkeypatch):
    """Ten thousand jobs: a page of pictures reads one batch of them, boards read those that lie on one."""
    old = made(jobs, "an old one")
    first = made(jobs, "a fox")
    jobs.history.mark([(old, "0.png")], board="kept")
    with jobs.ledger._transaction() as connection:
        connection.execute(
            "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 10000) INSERT INTO jobs"
            " (id, kind, state, spec, created, results) SELECT 'n' || x, kind, state, spec, created, results"
            " FROM jobs, n WHERE id = ?",
            (first,),
        )
    read = []
    real = rows.job_of
    for module in (rows, store):
        monkeypatch.setattr(module, "job_of", lambda row: (read.append(row["id"]), real(row))[1])
    assert [one.job.id for one in jobs.history.find(PictureSearch(), 60)][:2] == ["n10000", "n9999"]
    assert len(read) == BATCH
    read.clear()
    assert jobs.history.boards() == {"kept": 1} and len(read) == 1
    assert [one.job.id for one in jobs.history.find(PictureSearch("old"))] == [old], "the whole record is searched"


def test_what_is_said_of_a_picture_stays_and_finds_it(jobs):
    fox, cat = made(jobs, "a fox"), made(jobs, "a cat", count=2)
    one, two = (fox, "0.png"), (cat, "1.png")
    jobs.history.mark([one, two], board="  my best ", tags=["for  printing", "loved"])
    jobs.history.mark([two], favourite=True)
    again = Jobs(jobs.folder, warm=False, bases={"pocket": "pocket"}).history  # tomorrow
    assert again.boards() == {"my best": 2}
    assert names(again.find(PictureSearch(board="my best"))) == [two, one]
    assert names(again.find(PictureSearch(favourites=True))) == [two]
    assert names(again.find(PictureSearch("PRINTING cat"))) == [two]
    assert again.one(one).mark.tags == ("for", "printing", "loved")
    again.mark([one], board="", tags=[])
    assert (again.boards(), again.find(PictureSearch("loved fox"))) == ({"my best": 1}, [])
    for wrong in ((fox, "7.png"), (fox, "../0.png"), ("nobody", "0.png")):
        with pytest.raises(Unknown):
            again.mark([wrong], favourite=True)
    with pytest.raises(RequestError, match="too long"):
        again.mark([one], board="x" * 61)
    jobs.delete(cat)
    assert jobs.history.boards() == {}


def test_deleted_pictures_come_back_until_they_are_old(jobs):
    job = made(jobs, "a fox", count=3)
    first, second = (job, "0.png"), (job, "1.png")
    content = jobs.results(job)[0].read_bytes()
    assert jobs.history.delete([first, second, (job, "9.png")]) == [first, second]
    assert names(jobs.history.find(PictureSearch())) == [(job, "2.png")]
    assert [path.name for path in jobs.results(job)] == ["2.png"]
    assert jobs.history.restore([first, (job, "../../jobs.sqlite"), (job, "9.png")]) == 1
    assert jobs.results(job)[0].read_bytes() == content
    jobs.history.prune(60)
    assert jobs.history.restore([second]) == 1
    jobs.history.delete([second])
    jobs.history.prune(-1)
    assert jobs.history.restore([second]) == 0
    assert not [name for name in os.listdir(jobs.places.job(job)) if name.endswith(THROWN)]


def test_waiting_jobs_are_put_first_or_last(jobs):
    ids = [jobs.submit_generation({"prompt": prompt}).id for prompt in "abcd"]
    order = lambda: "".join(job.spec["request"]["prompt"] for job in jobs.ledger.queue())  # noqa: E731
    assert order() == "abcd"
    jobs.waiting.put(ids[2], True)
    assert order() == "cabd"
    jobs.waiting.put(ids[3], True)
    jobs.waiting.put(ids[2], False)
    assert order() == "dabc"
    late = jobs.submit_generation({"prompt": "e"}).id
    assert order() == "dabec"  # what was put last stays behind what comes later
    assert [job.id for job in jobs.waiting.ahead(ids[1])] == [ids[3], ids[0]]
    assert jobs.ledger.claim(ids[3], 1, 1.0)
    assert [job.id for job in jobs.waiting.ahead(ids[1])] == [ids[3], ids[0]]
    assert jobs.waiting.ahead(ids[3]) == []
    assert [job.id for job in jobs.waiting.list()] == [ids[3], ids[0], ids[1], late, ids[2]]
    with pytest.raises(Conflict, match="running"):
        jobs.waiting.put(ids[3], True)
    with pytest.raises(Unknown):
        jobs.waiting.put("nobody", True)


def test_a_record_of_the_first_version_goes_on(tmp_path):
    path = tmp_path / "jobs.sqlite"
    with sqlite3.connect(path, isolation_level=None) as old:
        old.row_factory = sqlite3.Row
        _first(old)
        old.execute("INSERT INTO jobs (id, kind, state, spec, created) VALUES ('a', 'generation', 'queued', '{}', 5.0)")
        old.execute("PRAGMA user_version = 1")
    old.close()
    ledger = Ledger(path)
    assert [job.id for job in ledger.queue()] == ["a"] and ledger.marks() == {}
    assert ledger.put("a", True)
