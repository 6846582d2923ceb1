"""Tasks for visual prompts: each is exact on scenes made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from trainers.stickers.tasks import (
    HELD_OUT_TASKS,
    NOISE,
    SHIFT,
    TASKS,
    TRAINED_TASKS,
    Drawings,
    Material,
    Pool,
    grey,
    pairs,
    scenes_for,
)
from trainers.stickers.world import COLOURS, Placed, Scene

NAMES = ("fox", "apple")
FOX, APPLE = Placed("fox", 4, 8, 20), Placed("apple", 40, 30, 18)
BOTH = Scene("", (APPLE, FOX), "blue")  # not from left to right
ONE = Scene("", (Placed("fox", 20, 16, 24),), "pink")


@pytest.fixture(scope="module")
def drawings():
    return Drawings.of(NAMES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def made(name, drawings, *listed, grids=1, seed=0):
    """Before and after (grids, pairs, 3, 64, 64) of a task whose every grid holds the scenes."""
    pool = Pool(listed, drawings)
    which = torch.arange(len(listed)).expand(grids, -1)
    return pairs(TASKS[name], pool.take(which), seeded(seed)).unbind(2)


def picture(drawings, scene):
    return drawings.shaded.render([scene]).images[0]


def close(found, wanted, within=2 / 255):
    torch.testing.assert_close(found, wanted, atol=within, rtol=0)


@pytest.mark.parametrize("name", [n for n in TASKS if n not in ("colour", "style", "recolour", "denoise")])
def test_before_is_the_picture_itself(name, drawings):
    before, after = made(name, drawings, ONE, BOTH)
    close(before[0, 0], picture(drawings, ONE))
    close(before[0, 1], picture(drawings, BOTH))
    assert after.shape == before.shape and after.min() >= -1 and after.max() <= 1


def test_the_mask_is_white_on_what_is_seen_and_black_elsewhere(drawings):
    _, after = made("mask", drawings, BOTH)
    shown = drawings.shaded.render([BOTH]).masks[0].any(0)
    assert torch.equal(after[0, 0] > 0, shown.expand(3, -1, -1)) and set(after.unique().tolist()) == {-1.0, 1.0}


def test_the_box_is_the_extent_of_the_mask(drawings):
    _, after = made("box", drawings, ONE)
    rows, columns = drawings.shaded.render([ONE]).masks[0, 0].nonzero().unbind(1)
    wanted = torch.full((64, 64), -1.0)
    wanted[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = 1
    assert torch.equal(after[0, 0], wanted.expand(3, -1, -1))


def test_grey_and_back(drawings):
    colourless, again = made("grey", drawings, ONE)[1], made("colour", drawings, ONE)
    close(colourless, grey(picture(drawings, ONE)).expand_as(colourless))
    assert torch.equal(again[0], colourless)
    close(again[1][0, 0], picture(drawings, ONE))
    assert grey(torch.ones(3, 1, 1)).flatten().tolist() == pytest.approx([1, 1, 1])


def test_the_outline_is_the_rim_of_the_mask():
    masks = torch.zeros(1, 1, 3, 64, 64, dtype=torch.bool)
    masks[..., 1, 10:20, 30:45] = True
    nothing = torch.zeros(1, 1, 3, 64, 64)
    empty = torch.zeros(1, 1, 3, 3)
    material = Material(nothing, nothing, nothing[:, :, :1], masks, torch.zeros(1, 1, 3, 4), empty, empty[..., 0])
    _, after = TASKS["outline"].make(material, seeded())
    wanted = torch.full((64, 64), -1.0)
    wanted[10:20, 30:45] = 1
    wanted[11:19, 31:44] = -1
    assert torch.equal(after[0, 0], wanted.expand(3, -1, -1))


def test_style_goes_one_way_in_a_grid_and_both_ways_in_all(drawings):
    before, after = made("style", drawings, ONE, BOTH, grids=16)
    shaded = torch.stack([picture(drawings, one) for one in (ONE, BOTH)])
    flat = drawings.flat.render([ONE, BOTH]).images
    ways = set()
    for grid in range(16):
        way = bool((before[grid] - flat).abs().max() < 3 / 255)
        close(before[grid], flat if way else shaded)
        close(after[grid], shaded if way else flat)
        ways.add(way)
    assert ways == {True, False}


def test_recolour_gives_all_pictures_of_a_grid_one_background_they_did_not_have(drawings):
    before, after = made("recolour", drawings, ONE, BOTH, grids=12)
    palette = torch.tensor(list(COLOURS.values())) / 127.5 - 1
    seen = set()
    for grid in range(12):
        target = int((palette - after[grid, 0, :, 0, 0]).abs().sum(1).argmin())
        seen.add(target)
        for pair, scene in enumerate((ONE, BOTH)):
            close(after[grid, pair], picture(drawings, replace(scene, colour=list(COLOURS)[target])), 4 / 255)
            was = int((palette - before[grid, pair, :, 0, 0]).abs().sum(1).argmin())
            assert was != target
            close(before[grid, pair], picture(drawings, replace(scene, colour=list(COLOURS)[was])), 4 / 255)
    assert len(seen) > 3


def test_flip_mirrors(drawings):
    before, after = made("flip", drawings, BOTH)
    assert torch.equal(after, before.flip(-1))


def test_denoise_starts_from_noise_of_one_strength_in_a_grid(drawings):
    dim = replace(ONE, colour="gray")
    before, after = made("denoise", drawings, dim, dim, grids=8)
    close(after[0, 0], picture(drawings, dim))
    spread = (before - after)[..., :8].std((2, 3, 4))
    assert bool(((spread[:, 0] - spread[:, 1]).abs() < 0.03).all())
    assert spread.min() > 0.8 * NOISE[0] and spread.max() < 1.1 * NOISE[1]
    assert spread.max() - spread.min() > 0.05


def test_remove_takes_the_left_or_the_right_one_of_every_picture_of_a_grid(drawings):
    other = Scene("", (Placed("fox", 2, 30, 18), Placed("apple", 30, 20, 22)), "green")
    _, after = made("remove", drawings, BOTH, other, grids=12)
    left, right = [replace(BOTH, stickers=(kept,)) for kept in (APPLE, FOX)]
    ways = set()
    for grid in range(12):
        first = bool((after[grid, 0] - picture(drawings, left)).abs().max() < 3 / 255)
        close(after[grid, 0], picture(drawings, left if first else right))
        close(after[grid, 1], picture(drawings, replace(other, stickers=(other.stickers[1 if first else 0],))))
        ways.add(first)
    assert ways == {True, False}


def test_move_goes_one_way_in_a_grid_and_four_ways_in_all(drawings):
    thing = ONE.stickers[0]
    _, after = made("move", drawings, ONE, replace(ONE, colour="teal"), grids=24)
    ways = {(-SHIFT, 0), (SHIFT, 0), (0, -SHIFT), (0, SHIFT)}
    seen = set()
    for grid in range(24):
        for way in ways:
            there = replace(thing, left=thing.left + way[0], top=thing.top + way[1])
            if (after[grid, 0] - picture(drawings, replace(ONE, stickers=(there,)))).abs().max() < 3 / 255:
                close(after[grid, 1], picture(drawings, replace(ONE, colour="teal", stickers=(there,))))
                seen.add(way)
    assert seen == ways


def test_scenes_are_of_the_kind_a_task_wants():
    for item in scenes_for("movable", 50, 1):
        (thing,) = item.stickers
        assert SHIFT <= thing.left <= 64 - SHIFT - thing.side and SHIFT <= thing.top <= 64 - SHIFT - thing.side
    for item in scenes_for("pair", 50, 1):
        first, second = sorted(item.stickers, key=lambda one: one.left)
        assert first.left + first.side <= second.left
    assert all(len(item.stickers) == 1 for item in scenes_for("one", 50, 1))
    assert {item.kind for item in scenes_for("any", 300, 1)} > {"one", "two", "scatter"}
    assert scenes_for("any", 20, 3) == scenes_for("any", 20, 3) != scenes_for("any", 20, 4)


def test_two_tasks_are_held_out():
    assert set(TRAINED_TASKS) | set(HELD_OUT_TASKS) == set(TASKS) and len(HELD_OUT_TASKS) == 2
    assert not set(TRAINED_TASKS) & set(HELD_OUT_TASKS)
