"""Lists by REST in pages: one rule for all of them, and the whole list for who asks without."""

from __future__ import annotations

import re

import pytest
from starlette.testclient import TestClient

from pipelines.concepts.card import ConceptCard
from studio.api.app import rest
from studio.jobs.jobs import Jobs
from tests.studio.web.test_pages import write_concept


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


@pytest.fixture
def web(jobs):
    return TestClient(rest(jobs))


def pages(web, address):
    """Follow a list from page to page; the ids of each page."""
    found = []
    while address:
        answer = web.get(address)
        assert answer.status_code == 200, answer.text
        found.append([one if isinstance(one, str) else one.get("id") or one["name"] for one in answer.json()])
        link = re.fullmatch(r'<(/api/v1/[^>]+)>; rel="next"', answer.headers.get("link", ""))
        address = link.group(1) if link else ""
    return found


def test_every_list_has_limit_and_cursor(web):
    described = web.get("/api/v1/openapi.json").json()
    lists = []
    for path, verbs in described["paths"].items():
        answer = verbs.get("get", {}).get("responses", {}).get("200", {}).get("content", {})
        if path.startswith("/api/v1/") and answer.get("application/json", {}).get("schema", {}).get("type") == "array":
            lists.append(path)
            assert {"limit", "cursor"} <= {one["name"] for one in verbs["get"]["parameters"]}, path
    assert len(lists) == 14, lists


def test_lists_are_told_page_by_page_and_whole_without_a_limit(web, jobs):
    for number in range(7):
        write_concept(jobs.learned / f"c{number}.safetensors", ConceptCard(token=f"<c{number}>"))
        jobs.datasets.create(f"d{number}")
    ids = [f"c{number}" for number in range(7)]
    assert pages(web, "/api/v1/concepts") == [ids]
    assert pages(web, "/api/v1/concepts?limit=3") == [ids[:3], ids[3:6], ids[6:]]
    assert pages(web, "/api/v1/concepts?limit=7") == [ids], "there is no empty page at the end"
    assert pages(web, "/api/v1/concepts?limit=3&search=%3CC4%3E") == [["c4"]]
    (every,) = pages(web, "/api/v1/datasets")
    assert [one for page in pages(web, "/api/v1/datasets?limit=4") for one in page] == every
    methods = web.get("/api/v1/methods").json()
    assert [one for page in pages(web, "/api/v1/methods?limit=2") for one in page] == methods


def test_a_page_begins_where_the_last_one_ended_whatever_came_or_went(web, jobs):
    for name in "bdfh":
        write_concept(jobs.learned / f"{name}.safetensors", ConceptCard(token=f"<{name}>"))
    first = web.get("/api/v1/concepts?limit=2")  # b, d
    following = first.links["next"]["url"]
    write_concept(jobs.learned / "a.safetensors", ConceptCard(token="<a>"))
    assert pages(web, following) == [["f", "h"]], "what was told is not told again"
    for name in "ad":
        jobs.delete_concept(name)
    assert pages(web, following) == [["f", "h"]], "also if its last entry is gone"


def test_nothing_is_skipped_or_told_twice_while_what_was_told_goes(web, jobs):
    datasets = [jobs.datasets.create(f"d{number}").id for number in range(7)][::-1]
    for number in range(7):
        write_concept(jobs.learned / f"c{number}.safetensors", ConceptCard(token=f"<c{number}>"))
    ids = [jobs.submit_generation({"prompt": f"a fox {number}"}).id for number in range(7)]
    lists = {
        "concepts": ([f"c{number}" for number in range(7)], jobs.delete_concept),
        "datasets": (datasets, jobs.datasets.delete),
        "queue": (ids, jobs.cancel),
    }
    for place, (all_of_it, forget) in lists.items():
        found, address = [], f"/api/v1/{place}?limit=3"
        while address:
            answer = web.get(address)
            told = [one["id"] for one in answer.json()]
            found += told
            for one in told:
                forget(one)
            address = answer.links.get("next", {}).get("url")
        assert found == all_of_it, place
    ids = [jobs.submit_generation({"prompt": f"a fox {number}"}).id for number in range(4)]
    answer = web.get("/api/v1/queue?limit=2")
    jobs.waiting.put(ids[1], first=False)  # the page goes on where it was, not where it is now
    assert pages(web, answer.links["next"]["url"]) == [[ids[2], ids[3]], [ids[1]]]


def test_jobs_are_told_from_the_newest_and_stay_in_place_while_more_come(web, jobs):
    ids = [jobs.submit_generation({"prompt": f"a fox {number}"}).id for number in range(5)][::-1]
    answer = web.get("/api/v1/generations?limit=2")
    assert [one["id"] for one in answer.json()] == ids[:2]
    jobs.submit_generation({"prompt": "another"})
    jobs.cancel(ids[2])
    jobs.delete(ids[2])
    assert pages(web, answer.links["next"]["url"]) == [ids[3:]]
    assert pages(web, "/api/v1/generations?limit=2&state=cancelled") == [[]]
    with jobs.ledger._transaction() as connection:  # a damaged row in the middle of a page ends no list
        connection.execute("UPDATE jobs SET spec = 'x' WHERE id = ?", (ids[3],))
    assert pages(web, "/api/v1/generations?limit=3")[1:] == [[ids[4]]]
    assert "link" not in web.get("/api/v1/generations").headers


def test_a_cursor_of_nothing_is_refused_in_words(web, jobs):
    # [1], [1, "a"] and [1, 2, 3, "a"]
    others = {("WzFd", "generations"), ("WzEsImEiXQ", "concepts"), ("WzEsMiwzLCJhIl0", "queue")}
    write_concept(jobs.learned / "c.safetensors", ConceptCard(token="<c>"))
    jobs.submit_generation({"prompt": "a fox"})
    for cursor in ("x", "!", "WzFd", "WzEsImEiXQ", "WzEsMiwzLCJhIl0", "W10", "Wy0xXQ", "é", "WzFlOTk5LCJhIl0"):
        for place in ("concepts", "generations", "queue"):
            answer = web.get(f"/api/v1/{place}", params={"cursor": cursor})
            assert answer.status_code == (200 if (cursor, place) in others else 422), (cursor, place)
            assert answer.status_code == 200 or "header Link" in answer.json()["hint"]
