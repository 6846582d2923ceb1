"""Several words in one run: each exactly as in a run of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled, ConfigError
from pipelines.events import Note, Preview, StepDone
from tests import tiny
from trainers.data.folders import Example
from trainers.data.preflight import examine
from trainers.distributed import Processes
from trainers.loop.launch import train_and_save
from trainers.loop.train import probe, train
from trainers.methods import methods
from trainers.methods.parts.many_words import WordBatches
from trainers.methods.textual_inversion import TextualInversion, TextualInversionConfig
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig

WORDS = {"<a>": "fox", "<b>": "car", "<c>": "house"}
MANY = ("there:<b>:car", "elsewhere:<c>:house")


def pictures():
    """Pictures of three words: one with a mask, one with captions of its own, one with another count of pictures."""
    rng = np.random.default_rng(5)

    def one(name, **more):
        return Example(name, Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)), **more)

    half = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 40, 0).repeat(20, 1))
    return {
        "<a>": [one("1.png", mask_source=half), one("2.png")],
        "<b>": [one("1.png", captions=("a red {} here", "{} there")), one("2.png"), one("3.png")],
        "<c>": [one("1.png")],
    }


def joined(own):
    return [replace(one, word=word, name=f"{word} {one.name}") for word, listed in own.items() for one in listed]


def run(method, token, init, many=(), **more):
    pace = {"steps": 4, "batch": 2, "accumulate": 2, "learning_rate": 1e-2, "scale_lr": False, "warmup": 2} | more
    data = DataConfig(images=Path("unused"), smaller_copies=1, flip=0.5)
    return Run(
        methods()[method],
        methods()[method].Settings(token=token, init=init, many=many, vectors=2),
        TrainConfig(**pace),
        data,
    )


def values(concept):
    return {
        f"{number} {name}": tensor
        for number, part in enumerate(concept.parts)
        for name, tensor in part.tensors().items()
    }


@pytest.mark.parametrize(
    ("method", "base"), [("textual-inversion", tiny.sd), ("textual-inversion", tiny.sdxl), ("p-plus", tiny.sd)]
)
def test_each_word_is_as_in_a_run_of_its_own(method, base):
    own, components = pictures(), base()
    together = train(components, run(method, "<a>", "fox", MANY), joined(own))
    for concept, (token, init) in zip((together, *together.partners), WORDS.items(), strict=True):
        alone = train(components, run(method, token, init), own[token])
        assert (concept.token, concept.card.init) == (token, init)
        there, here = values(alone), values(concept)
        assert here.keys() == there.keys()
        for name, tensor in here.items():
            torch.testing.assert_close(tensor, there[name], atol=1e-6, rtol=0)
    assert together.digest() != together.partners[0].digest()


class Diverging(TextualInversion):
    """Loses the second word at the fourth batch, as a step that was far too large would."""

    def losses(self, trainable, batch, generator):
        if isinstance(batch, WordBatches) and batch.index == 3:
            with torch.no_grad():
                trainable.state.words[1][0].fill_(float("inf"))
        return super().losses(trainable, batch, generator)


def test_one_that_diverges_stops_alone_and_the_others_learn_on():
    own, said, steps = pictures(), [], []

    def listen(event):
        said.extend([event.text] if isinstance(event, Note) else [])
        steps.extend([event.terms] if isinstance(event, StepDone) else [])

    asked = run("textual-inversion", "<a>", "fox", MANY, ema=0.5)
    sound = train(tiny.sd(), asked, joined(own))
    broken = train(tiny.sd(), replace(asked, method=Diverging()), joined(own), on_event=listen)
    for good, other in ((sound, broken), (sound.partners[1], broken.partners[1])):
        for name, tensor in values(good).items():
            torch.testing.assert_close(values(other)[name], tensor, atol=1e-6, rtol=0)
    assert all(bool(tensor.isfinite().all()) for tensor in values(broken.partners[0]).values())
    assert sum("<b> stopped being a number by step 2" in line for line in said) == 1
    assert {"denoise <a>", "denoise <b>", "denoise <c>"} <= steps[-1].keys(), "means of all its batches"


class Exploding(TextualInversion):
    """Gives the second word a gradient that is no number in one batch, its loss one still."""

    batch = 3

    def losses(self, trainable, batch, generator):
        row = trainable.state.words[1][0]
        if isinstance(batch, WordBatches) and batch.index == self.batch:
            row.register_hook(lambda slope: slope * float("nan"))
        return super().losses(trainable, batch, generator)


class ExplodingLast(Exploding):
    batch = 7


@pytest.mark.parametrize("method", [Exploding(), ExplodingLast()])
def test_one_whose_rows_stop_being_numbers_spoils_neither_average_nor_the_end(method):
    own, asked, said = pictures(), run("textual-inversion", "<a>", "fox", MANY, ema=0.5), []
    broken = train(
        tiny.sd(),
        replace(asked, method=method),
        joined(own),
        on_event=lambda event: said.extend([event.text] if isinstance(event, Note) else []),
    )
    assert all(bool(one.isfinite().all()) for part in (broken, *broken.partners) for one in values(part).values())
    assert sum(f"<b> stopped being a number by step {method.batch // 2 + 1}" in line for line in said) == 1


def test_one_that_stopped_learns_no_more_after_an_interruption(tmp_path):
    own = joined(pictures())
    asked = replace(run("textual-inversion", "<a>", "fox", MANY), method=Diverging())
    whole, parted = (
        replace(asked, where=Destination(output=tmp_path / name / "a.safetensors", preview=False)) for name in "wp"
    )
    first = train_and_save(tiny.sd(), whole, own, on_event=lambda event: None)
    answers = iter([False] * 3 + [True])
    with pytest.raises(Cancelled):
        train_and_save(tiny.sd(), parted, own, on_event=lambda event: None, should_stop=lambda: next(answers))
    second = train_and_save(tiny.sd(), parted, own, on_event=lambda event: None)
    for one, other in zip(first, second, strict=True):
        assert Concept.load(one).digest() == Concept.load(other).digest()


def test_several_processes_are_refused():
    with pytest.raises(ConfigError, match="Use one process with --many"):
        train(
            tiny.sd(),
            run("textual-inversion", "<a>", "fox", MANY),
            joined(pictures()),
            processes=Processes(rank=0, count=2),
        )


def test_when_all_diverge_the_run_stops():
    class Lost(TextualInversion):
        def losses(self, trainable, batch, generator):
            with torch.no_grad():
                for word in trainable.state.words:
                    word[0].fill_(float("nan"))
            return super().losses(trainable, batch, generator)

    with pytest.raises(ConfigError, match="stopped being a number"):
        train(tiny.sd(), replace(run("textual-inversion", "<a>", "fox", MANY), method=Lost()), joined(pictures()))


def test_a_run_that_was_interrupted_gives_the_same_files_and_previews_show_all_words(tmp_path):
    own, shown = joined(pictures()), []
    asked = run("textual-inversion", "<a>", "fox", MANY, steps=6, preview_every=6)
    whole, parted = (
        replace(asked, where=Destination(output=tmp_path / name / "a.safetensors", preview=False)) for name in "wp"
    )
    first = train_and_save(tiny.sd(), whole, own, on_event=lambda event: shown.append(event))
    answers = iter([False] * 3 + [True])
    with pytest.raises(Cancelled):
        train_and_save(tiny.sd(), parted, own, on_event=lambda event: None, should_stop=lambda: next(answers))
    second = train_and_save(tiny.sd(), parted, own, on_event=lambda event: None)
    assert (
        [path.name for path in first]
        == [path.name for path in second]
        == ["a.safetensors", "b.safetensors", "c.safetensors"]
    )
    for one, other in zip(first, second, strict=True):
        assert Concept.load(one).digest() == Concept.load(other).digest()
    (preview,) = (event for event in shown if isinstance(event, Preview))
    assert preview.picture.width == 3 * preview.picture.height and preview.caption.count("<") == 3


def test_how_often_a_picture_is_seen_is_counted_for_each_word():
    pace, data = TrainConfig(steps=100, batch=6), DataConfig(images=Path("unused"))
    own = joined(pictures())  # two, three and one
    assert examine(own, token="<a>", config=pace, data=data, apart=True).passes == (200, 600)
    assert examine(own, token="<a>", config=pace, data=data).passes == (100, 100)


def test_a_trial_has_pictures_of_every_word():
    assert probe(tiny.sd(), run("textual-inversion", "<a>", "fox", MANY), joined(pictures())).trained == 3 * 2 * 32


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"max_grad_norm": 1.0}, "--max-grad-norm 1 is one limit"),
        ({"precision": "fp16"}, "Use --precision bf16 with --many"),
    ],
)
def test_settings_that_tie_words_together_are_refused(settings, said):
    with pytest.raises(ConfigError) as caught:
        train(tiny.sd(), run("textual-inversion", "<a>", "fox", MANY, **settings), joined(pictures()))
    assert said in f"{caught.value}"


@pytest.mark.parametrize(
    ("many", "said"),
    [
        (("there:<b>",), "many 'there:<b>' is not DIR:TOKEN:INIT"),
        (("there:<A>:car",), "the token '<a>' is given to two words"),
        ((":<b>:car",), "is not DIR:TOKEN:INIT"),
    ],
)
def test_words_are_checked_as_subjects_are(many, said):
    with pytest.raises(ValidationError) as caught:
        TextualInversionConfig(token="<a>", init="fox", many=many)
    assert said in str(caught.value)
