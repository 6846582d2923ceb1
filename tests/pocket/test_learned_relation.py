"""A relation learned on pocket holds between things it never saw, and between other learned things."""

from __future__ import annotations

import pytest

from evaluation import concepts as scoring
from evaluation.relations import TOKEN, drawn_pairs, holds_in, tally, teach_relation
from evaluation.sticker_finder import Finder
from pipelines.concepts.concept import Concept
from pipelines.generation import generate
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import ConceptUse, Request
from studio.library.concepts import EXAMPLE
from trainers.stickers.relations import unseen_pairs

pytestmark = pytest.mark.pocket

RELATION = "diagonal"
THINGS = {"wolf": "fox", "taxi": "car"}
PICTURES = 8
STRENGTH = 0.8
"""Of the two things: weights that were learned apart are added up."""


@pytest.fixture(scope="module")
def base():
    return load("pocket")


@pytest.fixture(scope="module")
def finder():
    return Finder()


@pytest.fixture(scope="module")
def relation(base):
    return teach_relation(base, RELATION, steps=140)


def test_it_holds_between_things_it_never_saw(base, finder, relation):
    pairs = unseen_pairs(RELATION, 12)
    counted = []
    for said, concept in ((TOKEN, relation), ("above", None)):  # the word that learning started from
        found = [finder(to_tensor(picture)) for picture in drawn_pairs(base, pairs, said, concept, 70)]
        counted.append(tally(RELATION, pairs, found))
    learned, untrained = counted
    assert sum(learned.held) >= 4 and sum(learned.held) >= 2 * sum(untrained.held)
    assert sum(learned.entities) >= 8


def test_two_learned_things_and_a_learned_relation_come_together(base, finder, relation):
    """All three in one request are all there more often than with any one of them taken out."""
    learned = {"wolf": Concept.load(EXAMPLE), "taxi": scoring.teach_sticker(base, "taxi", "pivotal", steps=100)}

    def share(without=""):
        concepts = {name: one for name, one in learned.items() if name != without}
        words = [concepts[name].token if name in concepts else THINGS[name] for name in THINGS]
        if without != RELATION:
            concepts[RELATION] = relation
        said = TOKEN if RELATION in concepts else "above"
        uses = tuple(ConceptUse(source=name, strength=STRENGTH if name in THINGS else 1.0) for name in concepts)
        request = Request(prompt=f"a {words[0]} {said} a {words[1]}", concepts=uses, seed=0, count=PICTURES)
        made = generate(base, request, concepts=concepts).pictures
        return sum(holds_in(RELATION, *THINGS, finder(to_tensor(picture))) for picture in made) / PICTURES

    together = share()
    assert together >= 1 / PICTURES
    assert all(share(without) < together for without in (*THINGS, RELATION))
