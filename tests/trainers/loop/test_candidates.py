from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pipelines.concepts.concept import Concept
from pipelines.errors import Cancelled, ConceptError, ConfigError
from pipelines.events import StepDone
from tests import tiny
from trainers.loop.candidates import candidate, candidate_steps, candidates, candidates_folder, kept_step, take
from trainers.loop.launch import train_and_save
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig


@pytest.mark.parametrize(
    ("steps", "count", "wanted"),
    [
        (200, 5, {40, 80, 120, 160, 200}),
        (3, 5, {1, 2, 3}),
        (1, 3, {1}),
        (10, 0, set()),
        (7, 2, {4, 7}),
        (100, 1, {100}),
    ],
)
def test_they_are_spread_evenly_and_end_with_the_result(steps, count, wanted):
    assert candidate_steps(steps, count) == wanted


@pytest.fixture(scope="module")
def run():
    method = methods()["textual-inversion"]
    pace = {"steps": 12, "batch": 1, "learning_rate": 1e-2, "candidates": 3}
    config = method.Settings(token="<x>", init="fox")
    return Run(method, config, TrainConfig(**pace), DataConfig(images="unused"))


def training(run, output, **more):
    run = replace(run, where=Destination(output=output, keep_every=5, preview=False))
    return train_and_save(tiny.sd(), run, tiny.examples(), **{"on_event": lambda event: None} | more)


def test_they_are_kept_beside_the_concept_also_when_it_was_interrupted(run, tmp_path):
    whole, parted = tmp_path / "whole.safetensors", tmp_path / "parted.safetensors"
    training(run, whole)
    steps = []

    def count(event):
        steps.extend([event.step] if isinstance(event, StepDone) else [])

    asked = iter([False] * 9 + [True])
    with pytest.raises(Cancelled):
        training(run, parted, should_stop=lambda: next(asked))
    assert not candidates(parted) and not parted.exists()  # they come with the concept
    training(run, parted, on_event=count)
    assert list(candidates(parted)) == [4, 8, 12] and steps
    for step, path in candidates(whole).items():
        assert Concept.load(path).digest() == Concept.load(candidate(candidates_folder(parted), step)).digest()
    assert Concept.load(whole).digest() == Concept.load(candidates(whole)[12]).digest()


def test_those_of_an_earlier_training_go_when_the_new_one_is_over(run, tmp_path):
    output = tmp_path / "x.safetensors"
    candidates_folder(output).mkdir()
    candidate(candidates_folder(output), 999).write_bytes(b"old")
    with pytest.raises(Cancelled):
        training(run, output, should_stop=lambda: True)
    assert list(candidates(output)) == [999]
    training(run, output)
    assert list(candidates(output)) == [4, 8, 12]
    output.unlink()
    training(replace(run, train=run.train.model_copy(update={"candidates": 0})), output)
    assert not candidates_folder(output).exists()


def test_a_run_that_is_cut_short_keeps_those_until_then(run, tmp_path):
    output, asked = tmp_path / "x.safetensors", iter([False] * 9 + [True])
    with pytest.raises(Cancelled):
        training(run, output, should_stop=lambda: next(asked))
    training(replace(run, train=run.train.model_copy(update={"steps": 9, "candidates": 1})), output)
    assert list(candidates(output)) == [4, 8]
    (beyond := tmp_path / ".y.state" / "candidates" / "0000099.safetensors").parent.mkdir(parents=True)
    beyond.write_bytes(b"of a run that diverged")
    training(run, tmp_path / "y.safetensors")
    assert list(candidates(tmp_path / "y.safetensors")) == [4, 8, 12]


def test_what_is_no_number_is_not_kept(run):
    kept = []
    broken = replace(run, train=run.train.model_copy(update={"steps": 3}))

    class Breaking(type(run.method)):
        def losses(self, trainable, batch, generator):
            if batch.index == 1:  # what the second step leaves behind
                with torch.no_grad():
                    next(iter(trainable.parameters.values())).fill_(float("nan"))
            return super().losses(trainable, batch, generator)

    with pytest.raises(ConfigError, match="stopped being a number"):
        train(tiny.sd(), replace(broken, method=Breaking()), tiny.examples(), offer=lambda step, one: kept.append(step))
    assert kept == [1]


def test_one_is_taken_and_the_others_stay(run, tmp_path):
    output = tmp_path / "x.safetensors"
    training(run, output)
    assert kept_step(output) == 12
    take(output, 4)
    assert kept_step(output) == 4
    assert Concept.load(output).digest() == Concept.load(candidate(candidates_folder(output), 4)).digest()
    take(output, 12)
    assert Concept.load(output).digest() == Concept.load(candidate(candidates_folder(output), 12)).digest()
    with pytest.raises(ConceptError, match=r"step 5.*4, 8, 12"):
        take(output, 5)


def test_those_of_several_words_are_kept_beside_each(run, tmp_path):
    output, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    config = methods()["textual-inversion"].Settings(token="<x>", init="fox", many=("there:<y>:car",))
    pace = replace(run, config=config, where=Destination(output=output, keep_every=5, preview=False))
    pictures = [replace(one, word=word) for one, word in zip(tiny.examples(4), ("<x>", "<y>") * 2, strict=True)]
    assert train_and_save(tiny.sd(), pace, pictures, on_event=lambda event: None) == [
        output,
        tmp_path / "y.safetensors",
    ]
    for path in (output, other):
        assert list(candidates(path)) == [4, 8, 12] and kept_step(path) == 12
    assert Concept.load(candidates(other)[4]).token == "<y>"
