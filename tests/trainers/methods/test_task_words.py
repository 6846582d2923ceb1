"""A word learned for what pairs show, beside the laws of all methods: its grids, its loss, and what it is used for."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.errors import DataError
from pipelines.incontext import paint
from pipelines.models.loading import load
from pipelines.request.request import ConceptUse, Guidance, Request
from tests import tiny
from trainers.data.folders import Example
from trainers.loop.loop import step_generator
from trainers.loop.train import train
from trainers.methods import methods
from trainers.methods.parts.grid_batches import answer_error, cells_of, drawn
from trainers.run import run_of


def examples(count=4):
    """Colours and their negatives, 16 x 16."""
    shades = [tuple((40 * i + 90 * c) % 256 for c in range(3)) for i in range(count)]
    pictures = [(Image.new("RGB", (16, 16), one), Image.new("RGB", (16, 16), tuple(255 - c for c in one)))
                for one in shades]  # fmt: skip
    return [Example(str(i), before, after_source=after) for i, (before, after) in enumerate(pictures)]


def pairs():
    return cells_of(examples(), 16)


def run(**more):
    settings = {"token": "<negative>", "init": "fox", "steps": 3, "batch": 2, "resolution": 16}
    return run_of(methods()["task-word"], settings | more).with_recipe("sd")


def error(base, cells, index=0):
    process = base.family.process(base)
    return float(answer_error(base, process, cells, "<negative>", step_generator(9, index)))


@pytest.fixture(scope="module")
def base():
    return tiny.sd_inpaint()


def test_a_word_is_learned_and_asked_without_an_example(base, tmp_path):
    concept = train(base, run(), examples())
    assert concept.rows[0].shape == single_rows(base, "fox")[0].shape
    assert (concept.card.method, concept.card.init) == ("task-word", "fox")
    kept = Concept.load(concept.save(tmp_path / "negative.safetensors"))
    cells = torch.zeros(1, 2, 2, 3, 16, 16)
    request = Request(prompt="<negative>", concepts=(ConceptUse(source="it"),), steps=1, guidance=Guidance(scale=1))
    painted = paint(base, cells, request.resolved(base.defaults), concepts={"it": kept})
    assert painted.concepts == (kept,)


def test_a_base_with_its_inpainting_unet_beside_it_is_the_base_of_the_word(tmp_path):
    base = tiny.sd()
    learned = train(base, run_of(methods()["inpainting"], {"steps": 1, "batch": 1, "resolution": 16}), examples())
    whole = load(str(learned.save(tmp_path / "model")))
    concept = train(whole, run(), examples())
    assert concept.card.base_fingerprint == whole.fingerprint() == base.fingerprint()


def test_the_loss_falls_on_the_same_noise(base):
    learned = train(base, run(steps=20, learning_rate=5e-2), examples())
    losses = []
    for rows in (single_rows(base, "fox"), learned.rows):
        with new_words(base, "<negative>", rows) as words, torch.no_grad():
            grids = [drawn(pairs(), 8, 0.7, step_generator(9, i)) for i in range(2)]
            losses.append(sum(error(words.components, cells, i) for i, cells in enumerate(grids)))
    assert losses[1] < losses[0]


def test_grids_show_another_pair_as_example_or_none():
    cells = drawn(pairs(), 200, 0.5, torch.Generator().manual_seed(1))
    assert cells.shape == (200, 2, 2, 3, 16, 16)
    blank = ~cells[:, 0].flatten(1).any(1)
    assert 60 < int(blank.sum()) < 140
    assert not (cells[:, 0] == cells[:, 1]).flatten(1).all(1).any()
    shown = cells[~blank]
    assert torch.allclose(shown[:, :, 0], -shown[:, :, 1], atol=1e-6)  # each a whole pair
    assert not drawn(pairs(), 50, 1.0, torch.Generator().manual_seed(1))[:, 0].any()


def test_too_few_pairs_and_pictures_without_another_half_are_refused(base):
    with pytest.raises(DataError, match="holds 1 pair; at least 2 are needed"):
        train(base, run(), examples(1))
    with pytest.raises(DataError, match="has no picture after the change"):
        train(base, run(), tiny.examples(3))


def test_only_what_is_drawn_in_the_answers_cell_counts(base):
    def loss(added):
        """The loss if the UNet adds so much where its own input says that nothing, or something, is to be painted."""

        def change(unet, given, output):
            output.sample = output.sample + added * (given[0][:, 4:5] > 0.5 if inside else given[0][:, 4:5] <= 0.5)

        hook = base.unet.register_forward_hook(change)
        try:
            with new_words(base, "<negative>", single_rows(base, "fox")) as words, torch.no_grad():
                return error(words.components, drawn(pairs(), 4, 0.7, step_generator(9, 0)))
        finally:
            hook.remove()

    inside = False
    plain = loss(0.0)
    assert loss(100.0) == pytest.approx(plain, rel=1e-5)
    inside = True
    assert loss(100.0) == pytest.approx(10_000, rel=0.2), "a mean over the cell, whatever its size"
