"""Files and answers tell no folder of the machine, and the server's own files are closed to other users."""

from __future__ import annotations

import asyncio
import stat

import httpx
import pytest
from fastapi.testclient import TestClient
from gradio import Error

from pipelines.concepts.card import ConceptCard
from pipelines.errors import ConfigError
from pipelines.request.texts import without_folders, without_paths
from studio.api import guard
from studio.api.app import guarded, rest
from studio.api.forms import work
from studio.api.guard import Door
from studio.jobs.jobs import Jobs
from studio.serve import serve
from studio.web.panels.following import told
from studio.web.panels.watching import progress, seen_now
from tests.waiting import LIMIT

SECRET = "correct horse"


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "server", warm=False)  # nothing is begun


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/home/me/bases/twin", "twin"),
        ("/home/me/bases/twin/", "twin"),
        ("C:\\me\\twin", "twin"),
        ("C:/me/twin.safetensors", "twin.safetensors"),
        ("org/model", "org/model"),
        ("pocket", "pocket"),
        ("", ""),
    ],
)
def test_a_card_names_its_base_without_its_folder(given, kept):
    recipe = {"images": given, "also": [f"{given}:<x>:cat"], "steps": 3, "inner": {"class_images": given}}
    card = ConceptCard(token="<x>", base=given, recipe=recipe)
    assert (card.base, card.recipe["images"], card.recipe["inner"]["class_images"]) == (kept, kept, kept)
    assert "/home" not in card.model_dump_json() and card.recipe["steps"] == 3
    assert without_folders(kept) == kept


def test_errors_for_clients_name_no_folder(jobs):
    error = ConfigError(f"{jobs.folder}/concepts/x.safetensors is there already.", "GET /api/v1/concepts lists them.")
    assert without_paths(str(error)) == "x.safetensors is there already. GET /api/v1/concepts lists them."
    shown = told(error)
    assert isinstance(shown, Error) and str(jobs.folder) not in str(shown)
    job = jobs.ledger.add("generation", {"request": {"prompt": "x"}, "base": "pocket"})
    jobs.ledger.move(job.id, ("queued",), "failed", error=f"{jobs.folder}/a/b.png is bad.", hint="See /tmp/c.log.")
    jobs.ledger.tell(job.id, "note", {"text": f"Warning: {jobs.folder}/a/b.png is odd."})
    answer = work(jobs.get(job.id))
    assert (answer.error, answer.hint) == ("b.png is bad.", "See c.log.")
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    assert str(jobs.folder) not in web.get("/api/v1/generations").text
    told_by_stream = web.get(f"{answer.links['events']}").text
    assert "b.png is odd" in told_by_stream and "b.png is bad" in told_by_stream
    assert str(jobs.folder) not in told_by_stream and str(jobs.folder) not in progress(seen_now(jobs, job.id))


def test_messages_of_the_page_are_no_html():
    assert "&lt;my-cat&gt;" in str(told(ConfigError("'x' is no word.", "For example <my-cat>.")))


def test_what_the_server_keeps_is_closed_to_others(jobs):
    assert stat.S_IMODE(jobs.folder.stat().st_mode) == 0o700
    jobs.ledger.add("generation", {"request": {"prompt": "x"}, "base": "pocket"})
    for path in jobs.folder.glob("jobs.sqlite*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_token_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_TOKEN", "short")
    with pytest.raises(ConfigError, match="8 letters"):
        serve(folder=tmp_path)


def test_wrong_passwords_are_logged_with_their_address_and_wait(jobs, monkeypatch, heard):
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    monkeypatch.setattr(guard.asyncio, "sleep", sleep)
    web = TestClient(guarded(rest(jobs), Door(secrets=(SECRET,))), base_url="http://localhost", client=("10.1.2.3", 1))
    log = heard(guard._log)
    for _ in range(12):
        assert web.get("/api/v1/methods", headers={"authorization": "Bearer wrong one"}).status_code == 401
    assert "10.1.2.3 (12 in a row)" in log.text and "wrong one" not in log.text
    assert waited[:3] == [0] * 3 and 0 < waited[3] < waited[4] and max(waited) == guard.LONGEST_WAIT
    assert web.get("/api/v1/methods", headers={"authorization": f"Bearer {SECRET}"}).status_code == 200
    web.get("/api/v1/methods", headers={"authorization": "Bearer wrong one"})
    assert waited[-1] == 0  # it begins anew
    before = len(waited)
    web.get("/api/v1/methods")
    assert len(waited) == before  # a browser that has yet to ask for the password


def test_wrong_passwords_that_come_at_once_are_no_faster(jobs, monkeypatch):
    release, sleep = asyncio.Event(), asyncio.sleep

    async def held(seconds, *more):
        await (asyncio.wait_for(release.wait(), LIMIT) if seconds > 0.1 else sleep(seconds, *more))

    monkeypatch.setattr(guard.asyncio, "sleep", held)
    app = guarded(rest(jobs), Door(secrets=(SECRET,)))

    async def ask(secret, address="10.1.2.3"):
        way = httpx.ASGITransport(app, client=(address, 1))
        async with httpx.AsyncClient(transport=way, base_url="http://localhost") as web:
            return await web.get("/api/v1/methods", headers={"authorization": f"Bearer {secret}"})

    async def attack():
        for number in range(guard.PATIENCE):
            assert (await ask(f"first {number}")).status_code == 401
        guesses = [asyncio.create_task(ask(f"guess {number}")) for number in range(30)]
        while sum(one.done() for one in guesses) < 30 - guard.AT_ONCE:
            await sleep(0.001)
        turned_away, other = await ask(SECRET), await ask(SECRET, "10.1.2.4")
        release.set()
        return [one.status_code for one in await asyncio.gather(*guesses)], turned_away, other, await ask(SECRET)

    codes, turned_away, other, later = asyncio.run(attack())
    assert codes.count(429) == 30 - guard.AT_ONCE and codes.count(401) == guard.AT_ONCE
    assert turned_away.status_code == 429 and turned_away.headers["retry-after"]
    assert other.status_code == later.status_code == 200
