"""Cut-Mix: what is composed shows what its caption says, where it says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import ConfigError
from tests import tiny
from trainers.data.cut_mix import FEWEST, MOST, cut_mixed
from trainers.data.folders import Example
from trainers.data.stored import Composed
from trainers.loop.train import train
from trainers.methods.custom_diffusion import CustomDiffusion, CustomDiffusionConfig
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

COLOURS = {"<a>": (255, 0, 0), "<b>": (0, 255, 0), "<c>": (0, 0, 255)}
TEMPLATES = ("a {}", "a photo of a {}", "a photo of {}")


def config(share=0.5, also=("there:<b>:car",)):
    return CustomDiffusionConfig(token="<a>", class_word="fox", also=also, cut_mix=share)


def example(word, size=(40, 40), **more):
    return Example(f"{word}.png", Image.new("RGB", size, COLOURS[word]), word=word, **more)


def mixed(examples, own=None, side=32, seed=0, crop=False):
    generator = torch.Generator().manual_seed(seed)
    return cut_mixed(examples, own or config(), TEMPLATES, side=side, crop=crop, generator=generator)


def place_of(picture, word):
    """Middle of a colour as (across, down), in fractions."""
    pixels = np.asarray(picture).reshape(picture.height, picture.width, 3)
    down, across = np.nonzero((pixels == COLOURS[word]).all(-1))
    return across.mean() / picture.width, down.mean() / picture.height


RELATIONS = {
    "to the left of": (0, -1),
    "to the right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}


def test_captions_say_where_each_stands():
    made = mixed([example("<a>"), example("<b>")])[2:]
    told = set()
    for one in made:
        places = {word: place_of(one.picture, word) for word in ("<a>", "<b>")}
        for caption in one.captions:
            (relation,) = (r for r in RELATIONS if r in caption)
            axis, sign = RELATIONS[relation]
            first, second = sorted(places, key=caption.index)
            assert sign * (places[first][axis] - places[second][axis]) > 0.4, caption
            told.add((relation, first))
        assert one.picture.size == (32, 32) and str(one.word) in one.captions[0]
    assert told == {(relation, word) for relation in RELATIONS for word in ("<a>", "<b>")}


def test_articles_follow_the_template():
    captions = mixed([example("<a>"), example("<b>")])[-1].captions
    assert len(captions) == 2 * len(TEMPLATES)
    for caption in captions:
        rest = caption.removeprefix("a photo of ")
        articles = [rest[: rest.index(word)].endswith("a ") for word in ("<a>", "<b>")]
        assert articles in ([True, True], [False, False])


@pytest.mark.parametrize(("share", "repeats"), [(0.1, 1), (0.5, 1), (0.5, 7), (0.75, 200), (0.25, 1000)])
def test_composed_pictures_are_their_share_of_what_is_seen(share, repeats):
    listed = mixed([example("<a>", repeats=repeats), example("<b>")], config(share))
    own = sum(one.repeats for one in listed if "cut-mix" not in one.name)
    made = [one for one in listed if "cut-mix" in one.name]
    assert FEWEST <= len(made) <= MOST
    assert abs(sum(one.repeats for one in made) / (own + sum(one.repeats for one in made)) - share) < 0.06


def test_every_two_of_several_subjects_meet_and_never_two_of_one():
    listed = [example(word) for word in COLOURS for _ in range(2)]
    made = mixed(listed, config(also=("there:<b>:car", "there:<c>:bus")))[6:]
    pairs = {frozenset(word for word in COLOURS if word in one.captions[0]) for one in made}
    assert pairs == {frozenset(pair) for pair in (("<a>", "<b>"), ("<a>", "<c>"), ("<b>", "<c>"))}


def test_pictures_with_like_rims_come_together():
    def framed(word, rim):
        picture = Image.new("RGB", (40, 40), rim)
        picture.paste(COLOURS[word], (10, 10, 30, 30))
        return Example(f"{word}{rim}", picture, word=word)

    rims = [(240, 240, 240), (90, 90, 90), (160, 160, 160), (10, 10, 10)]
    made = mixed([framed(word, rim) for word in ("<a>", "<b>") for rim in rims])[8:]
    for one in made:
        pixels = np.asarray(one.picture).astype(int)
        assert abs(pixels[0, 0] - pixels[-1, -1]).max() < 3, "one background, no seam"


def test_the_rims_of_a_picture_are_looked_at_once_with_each_other_subject():
    read = []

    def source(word):
        return Composed((40, 40), lambda: read.append(word) or Image.new("RGB", (40, 40), COLOURS[word]))

    mixed([Example(f"{word}.png", source(word), word=word) for word in ("<a>", "<b>")])
    assert sorted(read) == ["<a>", "<b>"]


def test_masks_are_composed_with_their_pictures():
    mask = Image.new("L", (40, 40), 0)
    mask.paste(255, (10, 10, 30, 30))
    made = mixed([example("<a>", mask_source=mask), example("<b>")])[2:]
    for one in made:
        white = np.asarray(one.mask) > 128
        pixels = np.asarray(one.picture)
        of_a = (pixels == COLOURS["<a>"]).all(-1)
        assert white[~of_a].all(), "a picture without a mask counts everywhere"
        assert 0.05 < white[of_a].mean() < 0.4
        assert one.mask is not None and one.mask.size == one.picture.size
    assert mixed([example("<a>"), example("<b>")])[-1].mask is None


@pytest.mark.parametrize(("size", "crop"), [((80, 40), True), ((40, 80), False), ((33, 47), True)])
def test_any_shape_is_composed_and_the_same_seed_gives_the_same(size, crop):
    listed = [example("<a>", size), example("<b>", (17, 90))]
    first, again, other = (mixed(listed, side=31, seed=seed, crop=crop) for seed in (1, 1, 2))
    assert [(e.captions, e.picture.tobytes()) for e in first] == [(e.captions, e.picture.tobytes()) for e in again]
    assert [e.picture.tobytes() for e in first] != [e.picture.tobytes() for e in other]
    assert {e.picture.size for e in first[2:]} == {(31, 31)}


def test_mirrored_pictures_would_contradict_their_captions():
    pace = TrainConfig(steps=1, batch=1)
    the_run = Run(CustomDiffusion(), config(), pace, DataConfig(images=Path("x"), flip=0.5))
    with pytest.raises(ConfigError, match=r"contradict captions.*--flip 0"):
        train(tiny.sd(), the_run, [example("<a>"), example("<b>")])
