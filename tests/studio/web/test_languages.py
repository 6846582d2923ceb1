"""The catalogues of the page's languages: complete, and without what nothing says any more."""

from __future__ import annotations

import json
import re

import pytest
from starlette.testclient import TestClient

from pipelines.errors import ConfigError
from studio.api.app import guarded, rest, with_page
from studio.api.guard import Door
from studio.jobs.jobs import Jobs
from studio.serve import _page
from studio.web.app import build
from studio.web.languages import AUTO, ENGLISH, content, digest, names
from tests.studio.web.sentences import everything, of_config, of_errors, of_facts, of_help, of_scripts, spoken

OTHERS = [name for name in names() if name != ENGLISH]
SAME = frozenset(
    "adamw adamw8bit analogist apg autoguidance bf16 cfg cfg-zero ddim diffusers dpm++2m euler euler-a fp16 fp8 int8 "
    "karras latents lcm logit-normal lora muon nf4 pag pocket schedule-free seg sgm tcfg transformer unipc subject "
    "${value} Deutsch English".split()
) | {"{0} {1} {2} on {3} background"}
"""Names of things, and a prompt, which are the same in every language."""

PLACE = re.compile(r"\{(\d)\+?\}")
PARTS = re.compile(r"\{\d\}|[.:;,] | and ")
"""Places of values in a sentence, as sources put it together."""


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    return Jobs(tmp_path_factory.mktemp("studio"), warm=False)


@pytest.fixture(scope="module")
def page(jobs):
    return build(jobs).config


@pytest.fixture(params=OTHERS)
def catalogue(request):
    return json.loads(content(request.param))


def test_a_catalogue_has_all_that_the_page_says_at_first(page, catalogue):
    assert sorted((of_config(page) | of_help() | of_facts()) - SAME - catalogue["sentences"].keys()) == []


def test_a_catalogue_has_the_errors_and_the_scripts_of_the_page(catalogue):
    assert sorted((of_errors() | of_scripts()) - SAME - catalogue["sentences"].keys()) == []


def test_both_languages_have_the_same_values(catalogue):
    for section in ("sentences", "framework"):
        for key, text in catalogue[section].items():
            assert sorted(set(PLACE.findall(key))) == sorted(set(PLACE.findall(text))), key
            assert text.strip() == text and text, key


def test_nothing_is_translated_that_nobody_says(page, catalogue):
    said, shown = everything(), of_config(page) | of_help() | of_facts()
    unused = [
        key
        for key in catalogue["sentences"]
        if key not in shown and not all(part.strip(" .") in said for part in PARTS.split(key) if spoken(part))
    ]
    assert unused == []


def test_keys_are_in_order_so_that_changes_are_easily_read(catalogue):
    assert [*catalogue["sentences"]] == sorted(catalogue["sentences"])


@pytest.mark.parametrize("name", OTHERS)
def test_a_language_is_fetched_when_it_is_wanted_and_kept(jobs, name):
    client = TestClient(guarded(with_page(rest(jobs), jobs, name), Door("127.0.0.1", (), ())), "http://localhost")
    told = client.get("/config").json()["head"]
    assert f'"chosen": "{name}"' in told and digest(name) in told
    answer = client.get(f"/languages/{name}.json")
    assert answer.json()["language"] == names()[name]
    assert "immutable" in answer.headers["cache-control"] and "content-security-policy" in answer.headers
    assert f'"chosen": "{name}"' in client.get("/help").text
    for wrong in (ENGLISH, "xx", "..%2Fstatic"):
        assert client.get(f"/languages/{wrong}.json").status_code == 404


def test_the_server_chooses_a_language_by_flag_or_environment(monkeypatch):
    chosen = lambda given: _page(True, given).keywords["language"]  # noqa: E731
    monkeypatch.delenv("STUDIO_LANGUAGE", raising=False)
    assert chosen(None) == AUTO and chosen("de") == "de"
    monkeypatch.setenv("STUDIO_LANGUAGE", "de")
    assert chosen(None) == "de" and chosen("en") == "en"
    with pytest.raises(ConfigError, match="'klingon'") as refused:
        _page(True, "klingon")
    assert refused.value.hint == "--language is en, de or auto."
