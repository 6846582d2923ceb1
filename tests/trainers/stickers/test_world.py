from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from trainers.pretrain.unet import training_stream
from trainers.stickers.art import ART, COLUMNS, SIDE, icons, sprite
from trainers.stickers.world import (
    ALL_NAMES,
    COLOURS,
    HELD_OUT,
    HELD_OUT_RELATIONS,
    NAMES,
    RELATIONS,
    Stickers,
    article,
    plural,
    scene,
    scenes,
)


@pytest.fixture(scope="module")
def stickers():
    return Stickers(names=("fox", "house", "pear", "wolf"))


def test_the_world_is_as_large_as_promised():
    assert len(NAMES) >= 200 and len(COLOURS) >= 10 and len(HELD_OUT) >= 8
    assert {"left of", "right of", "above", "below"} <= set(RELATIONS)
    assert len(HELD_OUT_RELATIONS) >= 2
    assert not set(NAMES) & set(HELD_OUT) and set(HELD_OUT.values()) <= set(NAMES)
    assert tuple(icons("fluent")) == tuple(icons("flat")) == ALL_NAMES
    assert (ART / "LICENSE").exists()


@pytest.mark.parametrize("style", ["fluent", "flat", "noto"])
def test_a_sheet_holds_a_drawing_of_each_name_and_no_two_alike(style):
    with Image.open(ART / f"{style}.webp") as sheet:
        assert sheet.size == (COLUMNS * SIDE, -(-len(icons(style)) // COLUMNS) * SIDE)
    shown = {name: np.asarray(sprite(name, style)) for name in icons(style)}
    assert all((pixels[..., 3] > 128).mean() > 0.1 for pixels in shown.values())
    assert len({pixels.tobytes() for pixels in shown.values()}) == len(shown)


def test_things_drawn_by_other_hands_are_in_no_list():
    assert len(icons("noto")) >= 5 and not set(icons("noto")) & set(ALL_NAMES)
    assert Stickers(style="noto", names=tuple(icons("noto"))).atlas.any()


def test_the_training_stream_never_shows_or_says_what_is_held_out():
    stream = training_stream(4000, 31)
    forbidden = set(HELD_OUT) | {plural(name) for name in HELD_OUT}
    for item in stream:
        assert not forbidden & set(item.caption.replace(",", " ").split())
        assert not {thing.name for thing in item.stickers} & set(HELD_OUT)
        assert item.relation not in HELD_OUT_RELATIONS
        assert not any(phrase in item.caption for phrases in HELD_OUT_RELATIONS.values() for phrase in phrases)
    assert {thing.name for item in stream for thing in item.stickers} == set(NAMES)
    assert {item.relation for item in stream} == {None, *RELATIONS}


def test_scenes_come_from_their_seed_alone():
    assert scenes(20, 3) == scenes(20, 3)
    assert scenes(20, 3) != scenes(20, 4)


@pytest.mark.parametrize("relation", [*RELATIONS, *HELD_OUT_RELATIONS])
def test_relations_hold_in_the_picture(stickers, relation):
    listed = scenes(40, 1, names=("fox", "house"), relation=relation)
    rendered = stickers.render(listed)
    for row, item in enumerate(listed):
        first = "fox" if item.caption.index("fox") < item.caption.index("house") else "house"
        by_name = {thing.name: rendered.boxes[row, slot] for slot, thing in enumerate(item.stickers)}
        a, b = by_name[first], next(box for name, box in by_name.items() if name != first)
        holds = {
            "left of": a[2] < b[0],
            "right of": a[0] > b[2],
            "above": a[3] < b[1],
            "below": a[1] > b[3],
            "inside": bool((a[:2] > b[:2]).all() and (a[2:] < b[2:]).all()),
            "on top of": abs(float(a[3] - b[1])) < 0.08 and a[1] < b[1],
        }[relation]
        assert holds, (item, a, b)


def test_captions_say_what_is_there(stickers):
    item = scene(random.Random(0), names=("pear",), kind="one", colour="blue", say_colour=True)
    assert item.caption.endswith("a pear on a blue background")
    two = scene(random.Random(1), names=("fox",), kind="two", colour="blue", say_colour=False)
    assert two.caption.endswith(("two foxes", "two of a fox")) and len(two.stickers) == 2
    flat = scene(random.Random(0), names=("pear",), kind="one", style="flat", say_colour=False)
    assert "a flat pear" in flat.caption and flat.stickers[0].name == "pear"


@pytest.mark.parametrize(
    ("name", "with_article", "many"),
    [
        ("owl", "an owl", "owls"),
        ("fox", "a fox", "foxes"),
        ("wolf", "a wolf", "wolves"),
        ("bus", "a bus", "buses"),
        ("strawberry", "a strawberry", "strawberries"),
    ],
)
def test_words_are_spelled_right(name, with_article, many):
    assert article(name) == with_article and plural(name) == many


def test_pictures_masks_and_boxes_agree(stickers):
    listed = scenes(30, 2, names=("fox", "house", "pear"))
    rendered = stickers.render(listed)
    assert rendered.images.shape == (30, 3, 64, 64) and rendered.images.abs().max() <= 1
    for row, item in enumerate(listed):
        ground = torch.tensor(COLOURS[item.colour]) / 127.5 - 1
        away = (rendered.images[row] - ground[:, None, None]).abs().amax(0) < 1e-3
        anything = rendered.masks[row].any(0)
        assert not (away & anything).float().mean() > 0.05, "a sticker pixel shows the bare background"
        for slot in range(3):
            mask, box = rendered.masks[row, slot], rendered.boxes[row, slot] * 64
            if slot >= len(item.stickers):
                assert not mask.any() and not box.any()
                continue
            ys, xs = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            thing = item.stickers[slot]
            assert thing.left <= box[0] and box[2] <= thing.left + thing.side
            assert max(box[2] - box[0], box[3] - box[1]) >= thing.side - 2, "sprites fill their square"


def test_later_stickers_cover_earlier_ones(stickers):
    listed = scenes(10, 3, names=("fox", "house"), relation="inside")
    masks = stickers.render(listed).masks
    assert not (masks[:, 0] & masks[:, 1]).any()
    assert masks[:, 1].any()


def test_larger_pictures_show_the_same_scene(stickers):
    listed = scenes(4, 5, names=("fox", "house"))
    small = stickers.render(listed).images
    large = Stickers(128, names=("fox", "house")).render(listed).images
    shrunk = torch.nn.functional.avg_pool2d(large, 2)
    assert (shrunk - small).abs().mean() < 0.03


def test_both_styles_have_the_same_geometry():
    listed = scenes(8, 6, names=("fox", "pear"), kind="one")
    shaded, flat = (Stickers(style=style, names=("fox", "pear")).render(listed) for style in ("fluent", "flat"))
    overlap = (shaded.masks & flat.masks).sum() / (shaded.masks | flat.masks).sum()
    assert overlap > 0.85
    assert (shaded.images - flat.images).abs().max() > 0.3


def test_a_size_that_is_no_multiple_is_refused():
    with pytest.raises(ValueError, match="100"):
        Stickers(100)
