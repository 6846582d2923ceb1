"""A word learned for what pairs show: only its rows change, and its loss falls."""

from __future__ import annotations

import pytest
import torch

from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.errors import Cancelled, ConfigError, DataError
from pipelines.events import Note
from pipelines.incontext import paint
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny
from trainers.loop.loop import step_generator
from trainers.method_settings import TaskWordConfig
from trainers.methods.task_word import _drawn, grid_losses, learn_word


def pairs(count=4):
    """Colours and their negatives, 16 x 16."""
    before = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 16, 16) * 2 - 1
    return torch.stack((before, -before), 1)


def config(**more):
    return TaskWordConfig(token="<negative>", init="fox", **more)


@pytest.fixture(scope="module")
def base():
    return tiny.sd_inpaint()


def test_a_word_is_learned_and_nothing_else(base, tmp_path):
    before = tiny.snapshot(base)
    concept = learn_word(base, pairs(), config(steps=3, batch=2))
    assert tiny.same(before, base)
    start = single_rows(base, "fox")[0]
    assert concept.rows[0].shape == start.shape and not torch.equal(concept.rows[0], start)
    assert (concept.card.method, concept.card.init) == ("task-word", "fox")
    again = learn_word(base, pairs(), config(steps=3, batch=2))
    assert torch.equal(again.rows[0], concept.rows[0])
    kept = Concept.load(concept.save(tmp_path / "negative.safetensors"))
    assert torch.equal(kept.rows[0], concept.rows[0])
    cells = torch.zeros(1, 2, 2, 3, 16, 16)
    request = Request(prompt="<negative>", concepts=(ConceptUse(source="it"),), steps=1, guidance=Guidance(scale=1))
    painted = paint(base, cells, request.resolved(base.defaults), concepts={"it": kept})
    assert painted.concepts == (kept,)


def test_what_was_stopped_goes_on_bit_for_bit_and_not_with_other_pairs_or_settings(base, tmp_path):
    whole = learn_word(base, pairs(), config(steps=4, batch=2))
    asked = iter([False, False, True])
    with pytest.raises(Cancelled, match="after step 2 of 4"):
        learn_word(base, pairs(), config(steps=4, batch=2), keep=tmp_path, should_stop=lambda: next(asked))
    events = []
    for other in ({"pairs": pairs(3)}, {"config": config(steps=4, batch=3)}):
        with pytest.raises(ConfigError, match=next(iter(other)) if "pairs" in other else "batch"):
            learn_word(base, other.get("pairs", pairs()), other.get("config", config(steps=4, batch=2)), keep=tmp_path)
    resumed = learn_word(base, pairs(), config(steps=4, batch=2), keep=tmp_path, on_event=events.append)
    assert any(isinstance(event, Note) and "after step 2" in event.text for event in events)
    assert torch.equal(resumed.rows[0], whole.rows[0])


def test_the_loss_falls_on_the_same_noise(base):
    learned = learn_word(base, pairs(), config(steps=20, batch=2, rate=5e-2))
    losses = []
    for rows in (single_rows(base, "fox"), learned.rows):
        with new_words(base, "<negative>", rows) as words, torch.no_grad():
            of = grid_losses(words.components, pairs(), config(batch=8))
            losses.append(sum(float(of(i, step_generator(9, i))["denoise"]) for i in range(2)))
    assert losses[1] < losses[0]


def test_grids_show_another_pair_as_example_or_none():
    drawn = _drawn(pairs(), 200, 0.5, torch.Generator().manual_seed(1))
    assert drawn.shape == (200, 2, 2, 3, 16, 16)
    blank = ~drawn[:, 0].flatten(1).any(1)
    assert 60 < int(blank.sum()) < 140
    assert not (drawn[:, 0] == drawn[:, 1]).flatten(1).all(1).any()
    shown = drawn[~blank]
    assert torch.equal(shown[:, :, 0], -shown[:, :, 1])  # each a whole pair
    assert not _drawn(pairs(), 50, 1.0, torch.Generator().manual_seed(1))[:, 0].any()


def test_one_pair_is_too_few_and_it_can_be_stopped(base):
    with pytest.raises(DataError, match="1 pairs; a word is learned from two at least"):
        learn_word(base, pairs(1), config())
    with pytest.raises(Cancelled):
        learn_word(base, pairs(), config(), should_stop=lambda: True)
    assert single_rows(base, "fox")[0].shape == (1, 32)


def test_only_what_is_drawn_in_the_answers_cell_counts(base):
    def loss(added):
        """The loss if the UNet adds so much where its own input says that nothing, or something, is to be painted."""

        def change(unet, given, output):
            output.sample = output.sample + added * (given[0][:, 4:5] > 0.5 if inside else given[0][:, 4:5] <= 0.5)

        hook = base.unet.register_forward_hook(change)
        try:
            with new_words(base, "<negative>", single_rows(base, "fox")) as words, torch.no_grad():
                return float(
                    grid_losses(words.components, pairs(), config(batch=4))(0, step_generator(9, 0))["denoise"]
                )
        finally:
            hook.remove()

    inside = False
    plain = loss(0.0)
    assert loss(100.0) == pytest.approx(plain, rel=1e-5)
    inside = True
    assert loss(100.0) == pytest.approx(10_000, rel=0.2), "a mean over the cell, whatever its size"
