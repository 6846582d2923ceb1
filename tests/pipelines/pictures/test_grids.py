"""The geometry of a visual prompt."""

import itertools

import pytest
import torch

from pipelines.pictures.grids import Grid

SWITCHES = ("swapped", "reversed", "transposed", "mirrored")


def cells(pairs, height=4, width=6):
    return torch.rand(2, pairs, 2, 3, height, width, generator=torch.Generator().manual_seed(pairs))


def test_a_square_of_one_example_and_the_query():
    shown = cells(2)
    canvas = Grid().compose(shown)
    assert canvas.shape == (2, 3, 8, 12)
    for pair, side in itertools.product(range(2), range(2)):
        there = canvas[:, :, pair * 4 : pair * 4 + 4, side * 6 : side * 6 + 6]
        assert torch.equal(there, shown[:, pair, side])


@pytest.mark.parametrize("examples", [0, 1, 3])
@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=4)))
def test_the_answer_is_cropped_as_it_was_given_wherever_it_lies(examples, switches):
    shown = cells(examples + 1)
    for answer in itertools.product(range(-examples - 1, examples + 1), (0, 1)):
        grid = Grid(examples, answer, **dict(zip(SWITCHES, switches, strict=True)))
        canvas = grid.compose(shown)
        assert torch.equal(grid.crop(canvas), shown[:, answer[0], answer[1]])
        mask = grid.mask(4, 6)
        assert mask.shape[2:] == canvas.shape[2:]
        assert mask.sum() == 24 and bool((grid.crop(mask) == 1).all())
        assert grid.mask(2, 3).sum() == 6  # the same in latents


def test_places():
    assert Grid(2).place(-1, 1) == (2, 1)
    assert Grid(2, reversed=True).place(-1, 1) == (0, 1)
    assert Grid(2, swapped=True).place(-1, 1) == (2, 0)
    assert Grid(2, transposed=True).place(-1, 1) == (1, 2) and Grid(2, transposed=True).shape == (2, 3)


def test_arrangements_are_all_different_and_begin_with_the_grid_itself():
    grid = Grid(2, swapped=True)
    assert grid.arrangements()[0] == grid
    assert len(set(grid.arrangements())) == 8
    shown = cells(3)
    for one in grid.arrangements():
        assert torch.equal(one.crop(one.compose(shown)), shown[:, -1, 1])


def test_what_is_no_grid_is_refused():
    with pytest.raises(ValueError, match="17 examples"):
        Grid(17)
    with pytest.raises(ValueError, match="no cell"):
        Grid(1, (2, 0))
    with pytest.raises(ValueError, match="wanted"):
        Grid(1).compose(cells(3))
    with pytest.raises(ValueError, match="no 3 x 2 cells"):
        Grid(2).crop(torch.zeros(1, 3, 8, 12))
