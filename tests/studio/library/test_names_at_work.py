"""Names that trainings and measurements write to: nothing else takes them meanwhile, nor takes what is there away."""

from __future__ import annotations

import asyncio

import gradio as gr
import pytest
import torch
from starlette.testclient import TestClient

from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError, Conflict
from studio.api.app import guarded, rest
from studio.api.guard import Door
from studio.jobs.jobs import Jobs
from studio.jobs.worker import Worker
from studio.library import concepts
from studio.settings import Machine
from studio.web.pages.concepts import LibraryPage
from trainers.loop.candidates import candidates_folder


@pytest.fixture
def jobs(tmp_path):
    return Jobs(tmp_path / "studio", warm=False)


@pytest.fixture
def dataset(jobs):
    return jobs.datasets.create().id


@pytest.fixture
def library(jobs):
    with gr.Blocks(analytics_enabled=False):
        return LibraryPage(jobs)


def write_concept(path):
    """A concept as a training leaves it: with its log and the folder of its candidates."""
    path.with_suffix(".losses.jsonl").write_text("{}\n")
    candidates_folder(path).mkdir()
    (candidates_folder(path) / "0000003.safetensors").write_bytes(b"x")
    return Concept(ConceptCard(token=f"<{path.stem}>"), (torch.ones(1, 96),)).save(path)


def train(jobs, dataset, name):
    return jobs.submit_training("textual-inversion", {"token": f"<{name}>", "init": "fox", "candidates": 2}, dataset)


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# -- the trash --------------------------------------------------------------------------------------------------


def test_the_trash_gives_back_all_or_nothing(jobs):
    path = write_concept(jobs.learned / "a.safetensors")
    whole = below(jobs.learned)
    thrown = concepts.discard(path)
    (jobs.learned / "a.steps").mkdir()
    (jobs.learned / "a.steps" / "x").touch()
    before = below(jobs.learned)
    with pytest.raises(ConceptError, match=r"another a\.steps"):
        jobs.restore(thrown)
    assert below(jobs.learned) == before
    (jobs.learned / "a.steps" / "x").unlink()
    (jobs.learned / "a.steps").rmdir()
    assert jobs.restore(thrown) == path
    assert [name for name in below(jobs.learned) if name != concepts.TRASH] == whole


def test_nothing_comes_back_where_a_training_will_write(jobs, dataset, library):
    thrown = library.ask_delete(write_concept(jobs.learned / "a.safetensors").stem, "")[-1]
    training = train(jobs, dataset, "a")
    with pytest.raises(gr.Error, match="being learned already"):
        library.ask_undo(thrown, "")
    assert not list(jobs.learned.glob("a*"))
    jobs.cancel(training.id)
    library.ask_undo(thrown, "")
    assert (jobs.learned / "a.steps").is_dir()


# -- other words, other programs --------------------------------------------------------------------------------


def test_no_concept_gets_a_word_that_is_being_learned_nor_loses_its_own_while_measured(jobs, dataset, library):
    path = write_concept(jobs.learned / "a.safetensors")
    training = train(jobs, dataset, "b")
    with pytest.raises(gr.Error, match="b is being learned already"):
        asyncio.run(library.ask_rename("a", "<b>", ""))
    jobs.cancel(training.id)
    jobs.submit_score("a", dataset)
    with pytest.raises(gr.Error, match="a is being measured"):
        asyncio.run(library.ask_rename("a", "<b>", ""))
    assert path.is_file() and not (jobs.learned / "b.safetensors").exists()


def test_a_file_is_imported_unless_its_word_is_being_learned(jobs, dataset, library, tmp_path):
    sent = Concept(ConceptCard(token="<a>"), (torch.ones(1, 96),)).save(tmp_path / "a.safetensors")
    training = train(jobs, dataset, "a")
    with pytest.warns(UserWarning, match="a is being learned already"):
        asyncio.run(library.importing.ask(str(sent)))
    assert not list(jobs.learned.glob("a*"))
    jobs.cancel(training.id)
    assert jobs.add_copy(sent).read_bytes() == sent.read_bytes()
    with pytest.raises(Conflict, match="there already"):
        jobs.add_copy(sent)


# -- deleting and choosing --------------------------------------------------------------------------------------


def test_what_is_being_measured_is_not_deleted(jobs, dataset, library):
    path = write_concept(jobs.learned / "a.safetensors")
    web = TestClient(guarded(rest(jobs), Door()), base_url="http://localhost")
    score = jobs.submit_score("a", dataset)
    with pytest.raises(gr.Error, match="being measured"):
        library.ask_delete("a", "")
    refused = web.delete("/api/v1/concepts/a")
    assert refused.status_code == 409 and score.id in refused.json()["hint"]
    assert path.is_file()
    jobs.cancel(score.id)
    assert web.delete("/api/v1/concepts/a").status_code == 204
    assert web.delete("/api/v1/concepts/a").status_code == 404


def test_a_cancelled_training_leaves_a_concept_of_its_name_alone(jobs, dataset):
    training = train(jobs, dataset, "a")
    path = write_concept(jobs.learned / "a.safetensors")
    with pytest.raises(Conflict, match="being learned"):
        jobs.take_step("a", 3)
    before = below(jobs.learned)
    jobs.cancel(training.id)
    assert below(jobs.learned) == before and path.is_file()


# -- a process that is killed at the very end -------------------------------------------------------------------


def killed(jobs, job):
    """A job whose process vanished, as the dispatcher puts it back."""
    assert jobs.ledger.claim(job.id, 1, 1.0)
    assert jobs.ledger.move(job.id, ("running",), "queued", lost=1)


@pytest.fixture
def worker(jobs):
    return Worker(jobs.places, Machine(), jobs.ledger)


def test_a_training_killed_after_its_concept_was_whole_is_done_and_measured(jobs, dataset, worker):
    training = train(jobs, dataset, "a")
    killed(jobs, training)
    path = write_concept(jobs.learned / "a.safetensors")
    for end in ("state", "state.over"):
        (jobs.learned / f".a.{end}" / "step-00000500").mkdir(parents=True)
    before = path.read_bytes()
    worker.run(training.id)
    assert jobs.get(training.id).state == "done", jobs.get(training.id)
    assert jobs.results(training.id) == [path] and path.read_bytes() == before
    assert not list(jobs.learned.glob(".a.*")) and (jobs.learned / "a.steps").is_dir()
    scores = jobs.scores_after(training.id)
    assert scores and scores.spec == {"concept": "a", "dataset": dataset, "base": "pocket"}


@pytest.mark.parametrize("begun_before", [True, False])
def test_a_concept_of_its_name_that_it_did_not_write_is_not_its_result(jobs, dataset, worker, begun_before):
    training = train(jobs, dataset, "a")
    path = write_concept(jobs.learned / "a.safetensors")
    if begun_before:
        killed(jobs, training)
        path.with_suffix(".losses.jsonl").unlink()  # as after an import
    worker.run(training.id)
    assert jobs.get(training.id).state == "failed" and "there already" in jobs.get(training.id).error
    assert jobs.scores_after(training.id) is None


def test_a_file_is_not_taken_in_under_a_word_that_is_being_learned(jobs, dataset):
    train(jobs, dataset, "x")
    with pytest.raises(Conflict, match="being learned"):
        jobs.submit_import(b"a file", "y.safetensors", "<x>")
    assert not (jobs.folder / "imports").exists()
    assert jobs.submit_import(b"a file", "y.safetensors", "<y>").state == "queued"
