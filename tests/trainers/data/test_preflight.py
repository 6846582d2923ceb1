from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from evaluation import concepts as scoring
from tests import tiny
from trainers.data import preflight
from trainers.data.batches import Example, LatentSet, read_examples
from trainers.data.folders import Reading, read_folder
from trainers.data.preflight import ALIKE, SAME_COLOUR, duplicates, examine
from trainers.data.stored import difference_hash
from trainers.settings import DataConfig, TrainConfig

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


@pytest.fixture(scope="module")
def wolves():
    return read_examples(ROOT / "studio" / "examples" / "wolf")


def look(examples, token="<x>", *, pace=None, data=None, **more):
    """A report, with a pace that gives no warnings by itself for a handful of pictures."""
    pace = {"steps": 100, "batch": 4} | (pace or {})
    config, read_as = TrainConfig(**pace), DataConfig(images="unused", **({"flip": 0.0} | (data or {})))
    return examine(examples, token=token, config=config, data=read_as, **more)


def said(report):
    return "\n".join(report.lines())


def pictures(*captions, size=(64, 64)):
    """One picture of noise for each caption; None for none."""
    return [
        Example(f"{i}.png", Image.effect_noise((size[0] + i, size[1]), 80).convert("RGB"), (c,) if c else ())
        for i, c in enumerate(captions)
    ]


# -- what is always said ----------------------------------------------------------------------------------------


def test_clean_pictures_give_no_warning(wolves):
    report = look(wolves)
    assert report.problems == []
    assert report.lines() == ["4 pictures (given pictures).", "Size 64 x 64.", "Each picture is seen 100 times."]


def test_one_fact_is_one_line_and_a_sentence(base):
    examples = [*pictures("a fox", "{} left", None), *tiny.examples(3)]
    report = look(examples, "fox", data={"flip": 0.5}, components=base, seconds_per_step=0.5, memory=["About 3 MiB."])
    lines = report.lines()
    assert len(lines) == 8 and len(set(lines)) == len(lines)
    assert all(line == line.strip() and "\n" not in line and line[-1] == "." for line in lines)
    assert [line for line in lines if line.startswith("Warning: ")] == [f"Warning: {p}" for p in report.problems]


def test_smallest_and_largest_are_by_area():
    sizes = [(100, 10), (30, 30), (60, 60), (200, 2)]
    report = look([Example(str(i), Image.new("RGB", size)) for i, size in enumerate(sizes)])
    assert (report.smallest, report.largest) == ((200, 2), (60, 60))
    assert "Sizes from 200 x 2 to 60 x 60." in report.lines()


def test_the_convention_and_what_was_ignored_are_told(tmp_path):
    for index, example in enumerate(pictures(None, None)):
        example.picture.save(tmp_path / f"{index}.png")
    (tmp_path / "0.txt").write_text("a {}")
    (tmp_path / "list.xlsx").write_text("x")
    report = look(read_folder(tmp_path))
    assert "2 pictures (captions beside pictures)." in report.lines()
    assert "1 of 2 pictures have captions of their own." in report.lines()
    assert "Ignored: list.xlsx (not a kind of picture that is read)." in report.lines()
    assert report.problems == []


def test_masks_are_counted():
    first, second = pictures(None, None)
    masked = replace(first, mask_source=Image.new("L", first.picture.size, 255))
    assert "1 of 2 pictures have a mask." in look([masked, second]).lines()
    assert "mask" not in said(look([first, second]))


# -- passes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pace", "passes", "warned"),
    [
        ({"steps": 100, "batch": 4}, 100, ""),
        ({"steps": 5, "batch": 4, "accumulate": 4}, 20, ""),
        ({"steps": 19, "batch": 4}, 19, "only 19 times"),
        ({"steps": 1, "batch": 1}, 0.25, "only 0.25 times"),
        ({"steps": 5000, "batch": 4}, 5000, ""),
        ({"steps": 5001, "batch": 4}, 5001, "5001 times"),
    ],
)
def test_too_few_and_too_many_passes_are_warned_of(pace, passes, warned):
    report = look(pictures(*[None] * 4), pace=pace)
    assert report.passes == (passes, passes)
    assert (warned in " ".join(report.problems)) if warned else not report.problems


def test_repeats_make_some_pictures_come_oftener():
    first, second = pictures(None, None)
    report = look([first, replace(second, repeats=9)], pace={"steps": 100, "batch": 1})
    assert report.passes == (10, 90)
    assert "Each picture is seen 10 to 90 times." in report.lines()
    assert "only 10 times" in " ".join(report.problems)


def test_passes_are_those_that_training_makes(base):
    examples = [replace(e, repeats=n) for e, n in zip(tiny.examples(3), (1, 2, 3), strict=True)]
    data, seen = LatentSet(base, examples, resolution=16), [0, 0, 0]
    for index in range(24):
        for i in data.draw(index, 2, "<x>", ("a {}",), torch.Generator().manual_seed(0)).indices:
            seen[i] += 1
    assert look(examples, pace={"steps": 24, "batch": 2}).passes == (seen[0], seen[2])


# -- duplicates -------------------------------------------------------------------------------------------------


def compressed(picture, quality=60):
    stream = BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


COPIES = {
    "the same": lambda picture: picture.copy(),
    "compressed": compressed,
    "smaller": lambda picture: picture.resize((48, 48), Image.Resampling.LANCZOS),
    "larger": lambda picture: picture.resize((200, 200), Image.Resampling.BICUBIC),
    "a little brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.04),
}


@pytest.mark.parametrize("way", list(COPIES))
def test_copies_are_found(wolves, way):
    for original in wolves:
        copy = Example("copy.png", COPIES[way](original.picture))
        assert duplicates([*wolves, copy]) == ((original.name, "copy.png"),)


@pytest.mark.parametrize("thing", ["tiger", "kiwi", "taxi"])
def test_the_same_thing_elsewhere_is_another_picture(thing):
    shown = scoring.composed(scoring.teaching_scenes(thing))
    assert duplicates([Example(f"{i}.png", picture) for i, picture in enumerate(shown)]) == ()


def test_different_pictures_are_no_duplicates(wolves):
    assert duplicates(wolves) == ()
    assert duplicates(tiny.examples(4)) == (), "flat pictures of different colours"
    mirrored = Example("m.png", wolves[0].picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert duplicates([wolves[0], mirrored]) == ()


def test_duplicates_are_grouped_and_said(wolves):
    again = [Example(f"copy {i}.png", wolves[0].picture) for i in range(2)]
    other = Example("other.png", wolves[1].picture)
    report = look([*wolves, *again, other])
    names = [e.name for e in wolves]
    assert set(report.duplicates) == {(names[0], "copy 0.png", "copy 1.png"), (names[1], "other.png")}
    assert f"{names[0]}, copy 0.png and copy 1.png look the same" in said(report)


def test_the_hash_tells_darker_to_the_right_from_lighter():
    ramp = Image.linear_gradient("L").rotate(90)  # dark on the left
    assert difference_hash(ramp) == 0
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 2**64 - 1
    assert difference_hash(Image.new("RGB", (50, 3), "teal")) == 0


def test_many_duplicates_are_cut_short():
    flat = [Example(f"{i}.png", Image.new("RGB", (9, 9))) for i in range(30)]
    assert "0.png, 1.png, 2.png and 27 more look the same" in said(look(flat, pace={"steps": 1000}))


# -- sizes and shapes -------------------------------------------------------------------------------------------


def test_pictures_that_are_scaled_up_are_warned_of(base):
    small = Example("s.png", Image.new("RGB", (16, 90), "red"))
    examples = [small, *pictures(None)]
    assert look(examples, data={"resolution": 17}).small == ("s.png",)
    assert look(examples, data={"resolution": 16}).small == ()
    assert look(examples).small == (), "without a resolution or a base nothing can be said"
    assert look(examples, components=base).resolution == 16
    report = look(examples, data={"resolution": 64}, components=base)
    assert "There is 1 picture to be scaled up to 64 pixels: s.png." in report.problems


def test_in_buckets_the_area_counts(base):
    long = Example("l.png", Image.new("RGB", (15, 90)))
    assert look([long], data={"resolution": 16, "buckets": True}, components=base).small == ()
    assert look([long], data={"resolution": 64, "buckets": True}, components=base).small == ("l.png",)


def test_buckets_are_listed_as_training_makes_them(base):
    examples = [
        *(replace(e, repeats=2) for e in pictures(None, None, size=(80, 40))),
        *pictures(None, size=(40, 40)),
    ]
    report = look(examples, data={"resolution": 32, "buckets": True}, components=base)
    data = LatentSet(base, examples, resolution=32, buckets=True)
    cells = {tuple(bucket.posterior.mean.shape[-2:]): bucket.members for bucket in data.buckets}
    assert report.buckets == {
        (w * base.factor, h * base.factor): sum(examples[i].repeats for i in members)
        for (h, w), members in cells.items()
    }
    assert "1 picture an epoch as 32 x 32." in report.lines()
    assert [p for p in report.problems if "Only 1 picture an epoch of the shape 32 x 32" in p]
    assert look(examples, components=base).buckets == {}


# -- captions ---------------------------------------------------------------------------------------------------


def test_captions_without_the_token_are_named():
    report = look(pictures("a {}", "a <x> there", "a fox", None, "nothing"))
    assert report.unused == ("2.png", "4.png")
    assert "There are 2 captions without '<x>' or {}, not used: 2.png and 4.png." in report.problems


def test_a_caption_with_the_identifier_alone_is_told_what_it_needs():
    report = look(pictures("a f at the sea", "a f dog"), token="f fox")
    assert "There are 2 captions without 'f fox' or {}, not used: 0.png and 1.png." in report.problems


def test_transparent_and_doubtful_pictures_are_told():
    reading = Reading(tuple(pictures("a {}")), {}, "plain folder", {"x.jpg": "x.jpg cannot be read."}, ("0.png",))
    problems = look(reading).problems
    assert "There is 1 picture transparent in places, laid on white: 0.png." in problems
    assert "x.jpg is left out: x.jpg cannot be read." in problems


def test_captions_longer_than_the_window_are_named(base):
    fits, long = "a " * 74 + "{}", "a " * 75 + "{}"
    examples = pictures(fits, long, "fox " * 200)
    report = look(examples, components=base)
    assert report.long == ("1.png",), "the last is not used anyway"
    assert "There is 1 caption too long, the end is cut off: 1.png." in report.problems
    assert look(examples).long == (), "without a base nothing can be said"


def test_the_token_counts_as_one_word_of_the_window(base):
    token = "<my-very-own-and-rather-long-word>"
    assert look(pictures("a " * 74 + token), token, components=base).long == ()


def test_left_and_right_suffer_from_mirroring():
    examples = pictures("a {} on the left", "RIGHT of {}", "a bright {}", "right away")
    assert look(examples, data={"flip": 0.5}).sided == ("0.png", "1.png")
    assert "--flip 0" in said(look(examples, data={"flip": 0.5}))
    assert look(examples).sided == ()


# -- the token --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "caption", "warned"),
    [
        ("fox", "a foxglove", "inside another word"),
        ("fox", "a fox and a foxglove", "inside another word"),
        ("fox", "a fox, alone", ""),
        ("fox", "the fox", ""),
        ("<x>", "a<x>b", ""),
        ("<x>", "a <X> here", "in other capitals"),
        ("fox", "a Fox", "in other capitals"),
        ("fox", "a Fox and a fox", ""),
        ("sks.", "a sks. thing", ""),
        ("x+", "an x+ thing", ""),
    ],
)
def test_what_could_be_taken_for_the_token_is_said(token, caption, warned):
    report = look(pictures(caption), token)
    assert (warned in " ".join(report.collisions)) if warned else not report.collisions


def test_a_token_that_is_a_word_already_is_said_with_the_next_step(base):
    (problem,) = look(pictures(None), "fox", components=base).collisions
    assert "already a word" in problem and "angle brackets" in problem
    assert look(pictures(None), "fox", components=base, new_word=False).collisions == ()
    assert look(pictures(None), "<fox>", components=base).collisions == ()
    assert look(pictures(None), "two words", components=base).collisions


# -- figures ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("per_step", "words"), [(0.1, "10 seconds"), (3, "5 minutes"), (200, "5.6 hours"), (None, None)]
)
def test_time_is_said_in_words(per_step, words):
    report = look(pictures(None), seconds_per_step=per_step)
    assert (f"About {words} of training." in report.lines()) if words else "training." not in said(report)


def test_a_reading_and_its_examples_give_the_same_but_for_where_they_come_from(wolves):
    one, other = look(Reading(tuple(wolves), {}, "given pictures")), look(wolves)
    assert one == other


def _all_pairs(examples):
    """The groups by comparing every pair, as the definition says."""
    hashes = [difference_hash(e.picture) for e in examples]
    tiles = [np.asarray(e.picture.resize((4, 4), Image.Resampling.BOX), dtype=np.float32) for e in examples]
    first = []
    for index in range(len(examples)):
        alike = (
            other
            for other in range(index)
            if (hashes[other] ^ hashes[index]).bit_count() <= ALIKE
            and np.abs(tiles[other] - tiles[index]).mean() <= SAME_COLOUR
        )
        same = next(alike, None)
        first.append(index if same is None else first[same])
    names = {one: tuple(e.name for e, own in zip(examples, first, strict=True) if own == one) for one in first}
    return tuple(group for group in names.values() if len(group) > 1)


def _near_copies(count):
    chance = np.random.default_rng(0)
    originals = chance.integers(0, 256, (12, 9, 8, 3))
    for number in range(count):
        pixels = originals[number % 12] + (number % 3) * chance.integers(-14, 15, (9, 8, 3)) + chance.integers(-16, 17)
        pixels = np.full((9, 8, 3), number % 256) if number % 17 == 0 else np.clip(pixels, 0, 255)
        picture = Image.fromarray(pixels.astype(np.uint8)).resize((36, 32), Image.Resampling.BICUBIC)
        yield Example(f"{number}", picture)


def test_duplicates_are_those_of_comparing_every_pair():
    examples = list(_near_copies(200))
    groups = duplicates(examples)
    assert groups == _all_pairs(examples) and len(groups) > 5 and max(map(len, groups)) > 3


@pytest.mark.parametrize("same", [False, True], ids=["all different", "all the same"])
def test_of_many_pictures_few_pairs_are_compared(monkeypatch, same):
    compared = []
    real = preflight._Similar.candidates
    monkeypatch.setattr(
        preflight._Similar, "candidates", lambda self, *of: (compared.append(len(real(self, *of))), real(self, *of))[1]
    )
    chance = np.random.default_rng(1)
    pixels = chance.integers(0, 256, (2000, 9, 8, 3), dtype=np.uint8)
    pictures = [Image.fromarray(pixels[0 if same else number]) for number in range(2000)]
    groups = duplicates([Example(f"{number}", picture) for number, picture in enumerate(pictures)])
    assert len(groups) == (1 if same else 0)
    assert sum(compared) < 40 * 2000, "every pair would be 2,000,000"
