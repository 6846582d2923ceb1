"""Analogist: the algebra of the cloned and masked attention, and no residue."""

from __future__ import annotations

import itertools

import pytest
import torch

from pipelines.conditions.analogist import Analogist, Square, blocks, cloned
from pipelines.pictures.grids import Grid
from tests import tiny

ROLES = ("a", "a2", "b", "b2")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indices(square, cell, shape):
    """Token numbers of a cell, counted one by one."""
    rows, columns = shape
    row, column = cell
    return [
        y * columns + x
        for y in range(row * rows // 2, (row + 1) * rows // 2)
        for x in range(column * columns // 2, (column + 1) * columns // 2)
    ]


@pytest.mark.parametrize(("shape", "ratio"), [((4, 4), 1.0), ((8, 4), 2.0), ((2, 6), 1 / 3)])
@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=2)))
def test_the_cloned_logits_are_those_of_the_paper(shape, ratio, switches):
    square = Square.of(Grid(1, swapped=switches[0], transposed=switches[1]), ratio)
    tokens = shape[0] * shape[1]
    assert square.shape(tokens) == shape
    logits = random(3, tokens, tokens)
    expected = logits.clone()
    a, a2, b, b2 = (indices(square, getattr(square, role), shape) for role in ROLES)
    for i, j in itertools.product(range(len(a)), repeat=2):
        expected[:, a2[i], b2[j]] = 1.3 * logits[:, a[i], b[j]]
        expected[:, b2[i], a2[j]] = 1.3 * logits[:, b[i], a[j]]
    before = logits.clone()
    assert torch.equal(cloned(logits, square, 1.3), expected)
    assert torch.equal(logits, before)


def test_cells_are_where_the_grid_puts_them():
    plain = Square.of(Grid(1))
    assert (plain.a, plain.a2, plain.b, plain.b2) == ((0, 0), (0, 1), (1, 0), (1, 1))
    turned = Square.of(Grid(1, transposed=True))
    assert (turned.a, turned.a2, turned.b, turned.b2) == ((0, 0), (1, 0), (0, 1), (1, 1))
    asked = Square.of(Grid(1, answer=(0, 0)))  # what is painted is B', whatever cell it is
    assert (asked.a, asked.a2, asked.b, asked.b2) == ((1, 1), (1, 0), (0, 1), (0, 0))
    with pytest.raises(ValueError, match="2 examples"):
        Square.of(Grid(2))


@pytest.fixture
def base():
    return tiny.sd()


def test_a_patched_block_attends_in_closed_form(base):
    block = blocks(base.unet)[1]
    attention, tokens = block.attn1, random(2, 16, block.attn1.to_q.in_features)
    square = Square.of(Grid(1))
    with Analogist(Grid(1), within=(0, 1)).attach(base, 1):
        patched = attention(tokens)
    q, k, v = (
        layer(tokens).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    a, a2, b, b2 = (indices(square, getattr(square, role), (4, 4)) for role in ROLES)
    edited = logits.clone()
    for i, j in itertools.product(range(4), repeat=2):
        edited[:, :, a2[i], b2[j]] = 1.3 * logits[:, :, a[i], b[j]]
        edited[:, :, b2[i], a2[j]] = 1.3 * logits[:, :, b[i], a[j]]
    expected = attention.to_out[0]((edited.softmax(-1) @ v).transpose(1, 2).flatten(2))
    assert torch.allclose(patched, expected, atol=1e-6)
    assert not torch.allclose(attention(tokens), expected, atol=1e-4)


def test_the_prompt_reaches_the_answer_alone(base):
    block = blocks(base.unet)[0]
    attention = block.attn2
    tokens, prompt = random(2, 16, attention.to_q.in_features), random(2, 7, attention.to_k.in_features, seed=1)
    plain = attention(tokens, prompt)
    with Analogist(Grid(1), within=(0, 1)).attach(base, 1):
        masked = attention(tokens, prompt)
    answer = indices(None, (1, 1), (4, 4))
    others = [i for i in range(16) if i not in answer]
    assert torch.allclose(masked[:, answer], plain[:, answer], atol=1e-6)
    assert torch.allclose(masked[:, others], attention.to_out[0].bias.expand(2, 12, -1), atol=1e-6)


def test_blocks_are_in_the_order_in_which_they_are_computed(base):
    seen = []
    listed = blocks(base.unet)
    handles = [one.register_forward_pre_hook(lambda layer, _: seen.append(layer)) for one in listed]
    base.unet(random(1, 4, 8, 8), 5, encoder_hidden_states=random(1, 7, 32))
    assert [id(one) for one in seen] == [id(one) for one in listed] and len(listed) > 3
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(("count", "first", "last"), [(16, 3, 11), (4, 1, 3), (7, 1, 5)])
def test_the_share_of_blocks_is_the_papers(monkeypatch, count, first, last):
    monkeypatch.setattr("pipelines.conditions.analogist.blocks", lambda unet: list(range(count)))
    assert Analogist(Grid(1)).chosen(None) == list(range(first, last))


def test_nothing_stays_also_after_an_error(base):
    state, processors = tiny.snapshot(base), dict(base.unet.attn_processors)
    sample, prompt = random(2, 4, 8, 8), random(2, 7, 32)
    before = base.unet(sample, 5, encoder_hidden_states=prompt).sample
    with pytest.raises(RuntimeError, match="on purpose"), Analogist(Grid(1)).attach(base, 1):
        inside = base.unet(sample, 5, encoder_hidden_states=prompt).sample
        raise RuntimeError("on purpose")
    assert not torch.equal(inside, before)
    assert tiny.same(state, base) and dict(base.unet.attn_processors) == processors
    assert torch.equal(base.unet(sample, 5, encoder_hidden_states=prompt).sample, before)


def test_cloning_relates_the_answer_to_its_example_as_the_query_to_its_own(base):
    """With A' = A and B' = B and strength 1 there is nothing to change: the copied logits are those that are there."""
    width = blocks(base.unet)[1].attn1.to_q.in_features
    cell_a, cell_b = random(1, 2, 2, width), random(1, 2, 2, width, seed=3)
    tokens = torch.cat((torch.cat((cell_a, cell_a), 2), torch.cat((cell_b, cell_b), 2)), 1).flatten(1, 2)
    attention = blocks(base.unet)[1].attn1
    with Analogist(Grid(1), strength=1.0, within=(0, 1)).attach(base, 1):
        patched = attention(tokens)
    assert torch.allclose(patched, attention(tokens), atol=1e-6)
