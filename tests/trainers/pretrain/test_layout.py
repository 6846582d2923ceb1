"""The stage `text`: what a caption says about places, as truth, as a reader's answer, and as training that can stop."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPTextModel

from pipelines.events import Note, StepDone
from pipelines.measures.judge import Judge
from trainers.loop.checkpoints import Checkpoint
from trainers.pretrain import layout
from trainers.pretrain.judge import START
from trainers.pretrain.layout import GRID, TEXT, LayoutReader, begin_text, layout_of, order_right, train_text
from trainers.pretrain.parts import WIDTH, text_config
from trainers.pretrain.unet import Generator
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import KINDS, NAMES, UNIT, Placed, Scene, Stickers, scenes

pytestmark = pytest.mark.usefixtures("one_thread")

CELL = UNIT // GRID
PAIR = ("fox", "house")


def text_model(seed=0):
    torch.manual_seed(seed)
    return CLIPTextModel(text_config(build_tokenizer()))


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A work folder after the stage `judge`: the snapshot of its text tower, as `train_judge` keeps it."""
    # What was learned is measured on fewer scenes than in earnest.
    monkeypatch.setattr(layout, "scenes", lambda count, seed, **choices: scenes(min(count, 50), seed, **choices))
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    judge = Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8))
    torch.save(judge.text.state_dict(), tmp_path / START)
    return tmp_path


# -- the truth --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_names_the_last_sticker_whose_square_holds_its_middle(kind):
    for item in scenes(150, 8, kind=kind):
        cells = layout_of(item)
        for row in range(GRID):
            for column in range(GRID):
                x, y = column * CELL + CELL / 2, row * CELL + CELL / 2
                sides = [(s.left, s.left + s.side, s.top, s.top + s.side) for s in item.stickers]
                if any(x in (l, r) or y in (t, b) for l, r, t, b in sides):  # noqa: E741
                    continue  # on the edge either answer is right
                here = [s.name for s, (l, r, t, b) in zip(item.stickers, sides, strict=True) if l < x < r and t < y < b]  # noqa: E741
                assert cells[row, column] == (NAMES.index(here[-1]) + 1 if here else 0)


def test_the_cells_are_where_the_rendered_masks_are():
    names = ("fox", "house", "pear", "heart")
    listed = [item for item in scenes(160, 9, names=names) if item.kind != "scatter"]  # those hide one another
    rendered = Stickers(names=names).render(listed)
    filled = nn.functional.avg_pool2d(rendered.masks.float(), CELL)  # share of each cell that each sticker covers
    for item, shares in zip(listed, filled, strict=True):
        cells = layout_of(item)
        for slot, thing in enumerate(item.stickers):
            mine = cells == NAMES.index(thing.name) + 1
            assert mine[shares[slot] > 0.75].all(), "a cell a sticker fills is called by its name"
            # A square is larger than what is drawn in it, and is rounded to whole cells: near, never elsewhere.
            assert float(shares[slot][mine].sum()) > 0.5 * float(shares[slot].sum())
        assert float(shares.sum(0)[cells == 0].sum()) < 0.35 * float(shares.sum())


def test_even_the_smallest_sticker_fills_four_cells_and_a_pair_shares_none():
    for item in scenes(2000, 10):
        if item.kind == "scatter":
            continue  # one may stand before the other
        cells = layout_of(item)
        wanted = {}
        for thing in item.stickers:
            wanted[thing.name] = wanted.get(thing.name, 0) + 4
        assert all(int((cells == NAMES.index(name) + 1).sum()) >= least for name, least in wanted.items()), item


def test_what_is_drawn_later_covers_what_is_earlier():
    house, fox = Placed("house", 8, 8, 48), Placed("fox", 24, 24, 16)
    below = layout_of(Scene("", (house, fox), "blue"))
    assert below[4, 4] == NAMES.index("fox") + 1 and below[1, 1] == NAMES.index("house") + 1
    assert set(layout_of(Scene("", (fox, house), "blue")).unique().tolist()) == {0, NAMES.index("house") + 1}


@pytest.mark.parametrize("relation", ["left of", "right of", "above", "below"])
def test_a_layout_told_from_the_other_side_is_another_one(relation):
    """The purpose of the stage: swapping the names of a caption swaps the cells, and nothing else."""
    for item in scenes(50, 11, names=PAIR, relation=relation):
        first, second = item.stickers
        other = Scene(
            "",
            (
                Placed(second.name, first.left, first.top, first.side),
                Placed(first.name, second.left, second.top, second.side),
            ),
            item.colour,
        )
        a, b = layout_of(item), layout_of(other)
        assert torch.equal(a > 0, b > 0) and bool((a != b)[a > 0].all())


# -- the reader -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 32])
def test_the_reader_gives_a_name_or_the_background_for_every_cell_of_captions_of_any_length(length):
    reader = LayoutReader()
    logits = reader(torch.randn(3, length, WIDTH))
    assert logits.shape == (3, GRID * GRID, len(NAMES) + 1)
    logits.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in reader.parameters())
    assert reader.cells.grad is not None and bool((reader.cells.grad.norm(dim=1) > 0).all()), "every cell is asked"


def test_a_caption_is_read_the_same_alone_and_beside_others():
    torch.manual_seed(0)
    reader, states = LayoutReader(24).eval(), torch.randn(4, 9, 24)
    torch.testing.assert_close(reader(states)[2:3], reader(states[2:3]), atol=1e-5, rtol=1e-5)


def test_the_reader_alone_knows_no_order_of_the_states():
    """Order must come from the text encoder, which is what is kept: the reader sees a bag of states."""
    torch.manual_seed(0)
    reader, states = LayoutReader(24).eval(), torch.randn(2, 9, 24)
    torch.testing.assert_close(reader(states), reader(states[:, torch.randperm(9)]), atol=1e-5, rtol=1e-5)


class Oracle(nn.Module):
    """Answers with given layouts, whatever it is shown: for measuring the measure."""

    def __init__(self, layouts):
        super().__init__()
        self.cells = nn.Parameter(torch.zeros(1))
        self.answer = nn.functional.one_hot(torch.stack(layouts).flatten(1), len(NAMES) + 1).float()

    def forward(self, states):
        return self.answer


def test_the_measure_of_order_is_one_for_the_truth_and_nought_for_its_mirror():
    listed = scenes(200, 12, kind="relation")
    swapped = [
        Scene(
            "", tuple(Placed(s.stickers[1 - i].name, p.left, p.top, p.side) for i, p in enumerate(s.stickers)), "blue"
        )
        for s in listed
    ]
    text = text_model()
    assert order_right(text, Oracle([layout_of(item) for item in listed]), listed) == 1.0  # pyright: ignore
    assert order_right(text, Oracle([layout_of(item) for item in swapped]), listed) == 0.0  # pyright: ignore


def test_a_reader_to_which_all_places_are_alike_is_right_exactly_half_the_time():
    """It prefers the same of the two names at both places, so one of them is right."""
    torch.manual_seed(2)
    reader = LayoutReader()
    with torch.no_grad():
        reader.cells.zero_()
    assert order_right(text_model(), reader, scenes(100, 13, kind="relation")) == 0.5


def test_untrained_the_order_is_a_coins_toss():
    torch.manual_seed(3)
    assert order_right(text_model(), LayoutReader(), scenes(300, 14, kind="relation")) == pytest.approx(0.5, abs=0.1)


# -- where it starts --------------------------------------------------------------------------------------------


def test_the_stage_starts_from_the_judges_text_tower(work):
    text = begin_text(work, None)
    kept = torch.load(work / START, weights_only=True)
    assert all(torch.equal(value, kept[f"text_model.{key}"]) for key, value in text.state_dict().items())
    torch.manual_seed(1)
    tokenizer = build_tokenizer()
    judge = Judge(tokenizer, text_config(tokenizer), widths=(8, 8, 8, 8)).eval()
    ids = tokenizer(["a fox above a house"], return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(
            text.eval()(ids).last_hidden_state, judge.text.text_model(ids).last_hidden_state, atol=1e-6, rtol=1e-5
        )


def test_a_finished_model_is_taken_instead_of_the_snapshot_and_in_full_precision(work, tmp_path):
    finished = text_model(5).half()
    finished.save_pretrained(tmp_path / "model" / "text_encoder")
    begun = begin_text(work, tmp_path / "model")
    assert {p.dtype for p in begun.parameters()} == {torch.float32}
    assert all(torch.equal(a, b.float()) for a, b in zip(begun.parameters(), finished.parameters(), strict=True))
    (work / START).unlink()
    begin_text(work, tmp_path / "model")  # the snapshot is not asked for


# -- training ---------------------------------------------------------------------------------------------------


def learn(work, steps, on_event=lambda event: None, **more):
    settings: dict[str, Any] = {"batch": 2, "captions": 6, **more}
    return train_text(work, steps=steps, device="cpu", on_event=on_event, **settings)


def test_what_is_kept_is_the_text_encoder_the_generator_starts_from(work):
    trained = learn(work, 2)
    kept = torch.load(work / TEXT, weights_only=True)
    assert all(torch.equal(kept[key], value) for key, value in trained.state_dict().items())
    start = torch.load(work / START, weights_only=True)
    assert not torch.equal(
        kept["embeddings.token_embedding.weight"], start["text_model.embeddings.token_embedding.weight"]
    )
    Generator(64, build_tokenizer()).text.load_state_dict(kept)


def test_the_first_loss_is_that_of_guessing_among_all_names(work):
    events = []
    learn(work, 1, events.append, batch=16, captions=16)
    (first,) = (event for event in events if isinstance(event, StepDone))
    assert first.terms["layout"] == pytest.approx(math.log(len(NAMES) + 1), abs=0.5)


def test_the_same_start_gives_the_same_text_encoder_whatever_chance_was_drawn_before(work):
    torch.manual_seed(11)
    one = learn(work, 2).state_dict()
    shutil.rmtree(work / "layout.state")
    torch.manual_seed(12)
    two = learn(work, 2).state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_stopped_and_resumed_it_ends_bit_for_bit_like_one_that_was_not(work, monkeypatch):
    monkeypatch.setattr(layout, "Checkpoint", lambda path, every, *rest: Checkpoint(path, 2, *rest))
    whole = learn(work, 5).state_dict()
    (work / TEXT).unlink()
    shutil.rmtree(work / "layout.state")

    def stop(event):
        if isinstance(event, StepDone):  # reported with the last step, before that step's state is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(work, 5, stop)
    assert not (work / TEXT).exists(), "a stage that was stopped does not look finished"
    events = []
    resumed = learn(work, 5, events.append).state_dict()
    assert events[0] == Note("resumed after step 4")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert all(torch.equal(whole[key], value) for key, value in torch.load(work / TEXT, weights_only=True).items())


def test_a_little_training_teaches_which_of_two_things_is_where(work, monkeypatch):
    """Two names, one relation and one layer instead of 48, four and three: minutes become seconds.

    Order is learned late and at once, after names and places: until then both orders give the same answer, and the
    loss stays on a plateau.
    """
    choices: dict[str, Any] = {"names": PAIR, "relation": "above", "say_colour": False}
    monkeypatch.setattr(layout, "scenes", lambda count, seed, **_: scenes(min(count, 200), seed, **choices))
    config = text_config(build_tokenizer())
    config.num_hidden_layers, config.intermediate_size = 1, 128
    torch.manual_seed(3)
    CLIPTextModel(config).save_pretrained(work / "model" / "text_encoder")
    events = []
    learn(work, 450, events.append, batch=8, captions=200, rate=2e-3, go_on_from=work / "model")
    losses = [event.terms["layout"] for event in events if isinstance(event, StepDone)]
    assert losses[-1] < losses[1] - 0.1 < losses[0]
    said = events[-1].text
    assert "(chance 0.5)" in said and float(said.split(": ")[1].split()[0]) > 0.9
