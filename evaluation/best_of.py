"""Best of several: candidates of each picture are drawn, and the one that a judge likes best is kept.

A candidate is liked by the cosine of picture and prompt in the space of a CLIP. Words that were learned are told to it
by the word they were learned from. Each candidate is drawn by itself, so that the one that is kept is, bit for bit,
the picture of its own seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from evaluation.candidates import JudgeScorer, Scorer
from evaluation.sticker_finder import Finder
from pipelines.concepts.concept import Concept
from pipelines.condition import Condition
from pipelines.errors import RequestError
from pipelines.events import OnEvent, ignore
from pipelines.generation import generate
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import holds
from pipelines.models.components import Components
from pipelines.models.text import parse_weights
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import Request
from pipelines.sampling import Result
from trainers.stickers.drawn import drawn_scene
from trainers.stickers.world import Kind, Scene, scenes

LIMIT = 2**63
"""Seeds are below."""


@dataclass(frozen=True)
class Best:
    """The picture that was kept of several candidates.

    Attributes:
        result: of its own seed alone.
        scores: what the judge says of each candidate, in the order of their seeds, in [-1, 1].
        seeds: of the candidates.
    """

    result: Result
    scores: tuple[float, ...]
    seeds: tuple[int, ...]

    @property
    def seed(self) -> int:
        """The seed of the picture that was kept."""
        return self.result.request.seed

    def told(self) -> str:
        """Return a sentence with all scores."""
        listed = ", ".join(f"{seed}: {score:.3f}" for seed, score in zip(self.seeds, self.scores, strict=True))
        return f"Seed {self.seed} is kept of {len(self.seeds)} candidates, by the judge's score ({listed})."


def plain_words(prompt: str, concepts: Sequence[Concept]) -> str:
    """Return a prompt without weights, each learned word replaced by the one it was learned from.

    A learned word before that one, as in "a sks fox", is left out. One within another word is none.
    """
    text = "".join(part for part, _ in parse_weights(prompt))
    words = {one.card.token: one.card.init or "thing" for one in concepts if one.card.kind != "slider"}
    if not words:
        return text
    longest = sorted(words, key=len, reverse=True)
    places = re.compile("|".join(rf"{_edge(one[0], '(?<!')}{re.escape(one)}{_edge(one[-1], '(?!')}" for one in longest))

    def plain(found: re.Match[str]) -> str:
        init = words[found[0]]
        named = re.match(rf"\s+{re.escape(init)}(?:es|s)?(?!\w)", text[found.end() :], re.IGNORECASE)
        return "" if named else init

    return re.sub(r" {2,}", " ", places.sub(plain, text)).strip()


def _edge(letter: str, look: str) -> str:
    """Return what has to stand beside a letter at the edge of a word."""
    return rf"{look}\w)" if re.match(r"\w", letter) else ""


def best_of(
    components: Components,
    request: Request,
    count: int,
    scorer: Scorer,
    *,
    concepts: Mapping[str, Concept] | None = None,
    conditions: Sequence[Condition] = (),
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Best]:
    """Draw `count` candidates of each picture of a request, and give the best of each.

    Args:
        components: the base; bit-identical afterwards.
        request: the pictures; candidates of picture i have the seeds from seed + i * count on.
        count: candidates of each picture.
        scorer: the judge.
        concepts: as in `generate`.
        conditions: as in `generate`.
        on_event: receives the events of each candidate.
        should_stop: asked before each step.

    Raises:
        RequestError: as `generate`, or if there is no prompt to judge by.
        Cancelled: if `should_stop` said so.
    """
    if not request.prompt.strip():
        raise RequestError("Candidates are judged by the prompt, and there is none.", "Say what is to be seen.")
    for index in range(request.count):
        seeds = tuple((request.seed + index * count + place) % LIMIT for place in range(count))
        best, scores = None, []
        for seed in seeds:
            one = request.model_copy(update={"seed": seed, "count": 1})
            result = generate(
                components, one, concepts=concepts, conditions=conditions, on_event=on_event, should_stop=should_stop
            )
            score = alike(scorer, result.pictures, plain_words(request.prompt, result.concepts))[0]
            best = result if best is None or score > max(scores) else best
            scores.append(score)
        if best is not None:
            yield Best(best, tuple(scores), seeds)


@torch.no_grad()
def alike(scorer: Scorer, pictures: Sequence[Image.Image], text: str) -> list[float]:
    """Return the cosine of each picture and a text."""
    return (scorer.pictures(pictures) @ scorer.texts([text]).T).flatten().tolist()


# -- what it is good for ----------------------------------------------------------------------------------------

COUNTS = (1, 2, 4, 8)
KINDS: tuple[Kind, ...] = ("one", "relation", "scatter", "group")
"""One thing, two in a relation, two anywhere, two of one and one of another."""
PROMPTS = 5
"""Prompts of each kind."""
SEED = 23


@dataclass(frozen=True)
class Candidate:
    """Figures of one candidate: the judge's score, the drawn likeness, and whether all is there as the prompt says."""

    score: float
    drawn: float
    right: float


def drawn_candidates(
    components: Components, judge: Judge, prompts: int = PROMPTS, say: Callable[[str], None] | None = None
) -> dict[str, list[list[Candidate]]]:
    """Draw the most candidates for seeded prompts of pocket's world; gives those of each prompt by its kind."""
    scorer = JudgeScorer(judge, things=False)
    found: dict[str, list[list[Candidate]]] = {kind: [] for kind in KINDS}
    asked = [scene for kind in KINDS for scene in scenes(prompts, SEED, kind=kind)]
    for index, scene in enumerate(asked):
        row: list[Candidate] = []
        for place in range(max(COUNTS)):
            request = Request(prompt=scene.caption, seed=1000 * index + place)
            (picture,) = generate(components, request).pictures
            (score,) = alike(scorer, [picture], scene.caption)
            likenesses = drawn_scene(picture, [one.name for one in scene.stickers])
            mean = sum(one.likeness for one in likenesses) / len(likenesses)
            row.append(Candidate(score, mean, _right(picture, scene)))
        found[scene.kind].append(row)
        if say is not None:
            say(f"{scene.caption}: " + " ".join(f"{one.score:.2f}/{one.drawn:.2f}" for one in row))
    return found


def _right(picture: Image.Image, scene: Scene) -> float:
    """Return 1 if the sticker finder sees the things of a scene, as often as they are there, in their relation."""
    names = [one.name for one in scene.stickers]
    seen = Finder(tuple(dict.fromkeys(names)))(to_tensor(picture))
    if sorted(one.name for one in seen) != sorted(names):
        return 0.0
    if scene.relation is None:
        return 1.0
    first, second = (next(one for one in seen if one.name == name) for name in names)
    return float(holds(scene.relation, first, second))


def figures(candidates: Sequence[Sequence[Candidate]]) -> dict[str, dict[str, float]]:
    """Return means over prompts for each number of candidates, over all disjoint groups of so many.

    `limit` is the drawn likeness that a judge would reach who saw the drawing itself.
    """
    rows: dict[str, dict[str, float]] = {}
    for count in COUNTS:
        groups = [row[at : at + count] for row in candidates for at in range(0, len(row) - count + 1, count)]
        kept = [max(group, key=lambda one: one.score) for group in groups]
        rows[str(count)] = {
            "score": sum(one.score for one in kept) / len(kept),
            "drawn": sum(one.drawn for one in kept) / len(kept),
            "right": sum(one.right for one in kept) / len(kept),
            "limit": sum(max(one.drawn for one in group) for group in groups) / len(kept),
        }
    return rows


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return the figures with a line for each number of candidates."""
    names = {"score": "judge's score", "drawn": "drawn likeness", "right": "all as said", "limit": "limit of drawn"}
    lines = [f"{title:<12}" + "".join(f"{says:>16}" for says in names.values())]
    lines += [f"{count:<12}" + "".join(f"{row[name]:>16.3f}" for name in names) for count, row in rows.items()]
    return "\n".join(lines)


def tables(found: Mapping[str, Sequence[Sequence[Candidate]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures for each kind of prompt, and for all of them together."""
    everything = [row for rows in found.values() for row in rows]
    return {kind: figures(rows) for kind, rows in found.items()} | {"all": figures(everything)}
