"""The example concept: it fits the pocket that is shipped, and is one click away."""

from __future__ import annotations

import gradio as gr
import pytest
from PIL import Image

from pipelines.concepts.card import read_card
from pipelines.concepts.compatibility import base_files
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.web.components import base_choice
from studio.web.pages.generate import GeneratePage, offered


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


@pytest.fixture
def generate(jobs):
    with gr.Blocks(analytics_enabled=False):
        return GeneratePage(jobs, base_choice(jobs.bases))


def test_it_was_learned_on_the_pocket_that_is_shipped():
    card = read_card(concepts.EXAMPLE)
    assert (card.token, card.family, card.base) == ("<wolf>", "pocket", "pocket")
    assert card.base_fingerprint == base_files("pocket").fingerprint
    assert concepts.verify(concepts.EXAMPLE).endswith("whole")
    with Image.open(concepts.EXAMPLE.with_name("wolf.preview.png")) as picture:
        assert picture.size == (64, 64)


def test_it_is_small_and_tells_nothing_of_the_machine_it_was_made_on():
    assert concepts.EXAMPLE.stat().st_size < 1_500_000
    told = read_card(concepts.EXAMPLE).model_dump(mode="json")
    assert not any(str(value).startswith("/") for value in [*told.values(), *told["recipe"].values()])


def test_a_click_puts_it_into_the_library_and_switches_it_on_beside_others(jobs, generate):
    assert offered(jobs)
    chips, words, offer, *_ = generate.add_example("pocket", [])
    assert [(chip["id"], chip["token"], chip["on"], chip["problem"]) for chip in chips] == [
        ("wolf", "<wolf>", True, "")
    ]
    assert chips[0]["picture"].startswith("/api/v1/concepts/wolf/preview?v=")
    assert (words["choices"][0], offer["visible"], offered(jobs)) == ("<wolf>", "hidden", False)
    assert (jobs.learned / "wolf.safetensors").read_bytes() == concepts.EXAMPLE.read_bytes()
    with pytest.raises(gr.Error, match="there already"):
        generate.add_example("pocket", chips)
    concepts.discard(jobs.learned / "wolf.safetensors")
    assert generate.refresh("pocket", chips)[2]["visible"] is True


def test_it_does_not_come_where_a_training_will_write(jobs, generate):
    dataset = jobs.datasets.create().id
    jobs.submit_training("textual-inversion", {"token": "<wolf>", "init": "fox"}, dataset)
    with pytest.raises(gr.Error, match="being learned already"):
        generate.add_example("pocket", [])
    assert not (jobs.learned / "wolf.safetensors").exists()
