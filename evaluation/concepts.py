"""Quality of a concept, measured against the class word with the same prompts and seeds.

`drawn` is the drawn likeness (`pipelines.measures.drawn`): the true drawing laid over each picture, beside its floor
(the nearest other sticker) and ceiling (the autoencoder alone). Likeness is the judge's cosine between what was
generated and real pictures of the thing that training did not see (CLIP-I of arXiv:2208.12242, on the largest thing of
each picture, so that backgrounds do not count), beside its floor (other real things) and ceiling (other real pictures
of the thing), and as the share of the way between them. Alignment is the cosine to the prompt in plain words (CLIP-T):
with the thing's name where it is given, else the class word. Naming is the share of generated things that the judge
calls by the right name among all names.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from PIL import Image
from scipy.stats import spearmanr

from evaluation.truth import Truth, composed, crops_of, drawn_between, judged_between, share, truth_of
from pipelines.concepts.concept import Concept
from pipelines.events import OnEvent, ignore
from pipelines.generation import generate
from pipelines.measures.drawn import Likeness
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import detect, holds, name, picture_similarity, text_alignment
from pipelines.models.components import Components
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import ConceptUse, Request
from trainers.data.batches import Example, ordinary, prompt_templates
from trainers.loop.train import train
from trainers.methods import methods
from trainers.methods.parts.identifiers import rare_identifiers
from trainers.methods.parts.merging import merged
from trainers.run import run_of
from trainers.stickers.drawn import drawn, drawn_scene, summed
from trainers.stickers.world import ALL_NAMES, CLASS_WORDS, RELATIONS, Scene, scene

PROMPTS = ("a {}", "a {} on a yellow background", "a {} on a blue background", "a picture of a {} on a gray background")
SEEDS = 6
TEACHING_SEED = 101
TEACHING_COLOURS = ("pink", "green", "blue", "gray")


def teaching_scenes(thing: str, count: int = 4) -> list[Scene]:
    """Return the example pictures of a held-out sticker or of one by other hands: alone, backgrounds differ."""
    import random

    rng = random.Random(TEACHING_SEED + list(CLASS_WORDS).index(thing))
    return [
        scene(rng, names=(thing,), kind="one", colour=TEACHING_COLOURS[i % len(TEACHING_COLOURS)]) for i in range(count)
    ]


def score_concept(components: Components, judge: Judge, concept: Concept, truth: Truth) -> dict[str, float]:
    """Return scores of a concept and of its class word.

    Args:
        components: the base.
        judge: measures the pictures.
        concept: the concept to measure.
        truth: true look of its thing; `named` is measured only if it has a name.
    """
    thing = truth.thing if truth.thing in ALL_NAMES else None  # the judge has no word for what other hands drew
    word = concept.card.init or "thing"
    taught, plain = [_pictures(components, concept, text) for text in (concept.token, word)]
    crops, plain_crops = crops_of(taught), crops_of(plain)

    def aligned(pictures: list[Image.Image], called: str) -> float:
        wording = [prompt.format(called) for prompt in PROMPTS for _ in range(SEEDS)]
        return text_alignment(judge, torch.stack([to_tensor(one) for one in pictures]), wording)

    row = {
        "likeness": picture_similarity(judge, crops, truth.crops),
        "likeness_word": picture_similarity(judge, plain_crops, truth.crops),
        "alignment": aligned(taught, thing or word),
        "alignment_word": aligned(plain, word),
        **judged_between(judge, truth),
    }
    row |= share(row)
    if truth.drawings:
        own = drawn(taught, truth.drawings)
        row |= {"drawn": own.likeness, "drawn_half": own.half, "drawn_explained": own.explained}
        row |= {"drawn_word": drawn(plain, truth.drawings).likeness, **drawn_between(components, truth)}
    # Drift of the class: what the bare class word gives once the concept is there. A word alone cannot change it.
    kept = _pictures(components, concept, word, always=True) if concept.changes else plain
    row["class_kept"] = aligned(kept, word) / row["alignment_word"]
    row["likeness_gain"] = row["likeness"] - row["likeness_word"]
    row["alignment_gain"] = row["alignment"] - row["alignment_word"]
    if thing is not None:
        called = name(judge, list(crops), ALL_NAMES)
        row["named"] = called.count(thing) / len(called)
        row["named_chance"] = 1 / len(ALL_NAMES)
    return row


def _pictures(components: Components, concept: Concept, text: str, always: bool = False) -> list[Image.Image]:
    """Return the scoring pictures with `text` in the place of the thing; the same seeds for every text.

    The concept is there if it is meant, or `always`.
    """
    pictures: list[Image.Image] = []
    for index, prompt in enumerate(PROMPTS):
        request = Request(
            prompt=prompt.format(text),
            concepts=(ConceptUse(source="scored"),) if always or text == concept.token else (),
            count=SEEDS,
            seed=1000 * (index + 1),
        )
        pictures += generate(components, request, concepts={"scored": concept}).pictures
    return pictures


WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "textual-inversion": ("textual-inversion", {}),
    "pivotal": ("dreambooth", {"pivotal": True}),
    "lora": ("dreambooth", {}),
    "full": ("dreambooth", {"form": "full"}),
    "custom-diffusion": ("custom-diffusion", {}),
}
"""Ways of teaching a sticker that are compared: method and settings."""

TOGETHER: dict[str, tuple[str, dict[str, Any]]] = {
    "pivotal-together": ("pivotal", {"cut_mix": 0.5}),
    "custom-diffusion-together": ("custom-diffusion", {"cut_mix": 0.5}),
}
"""Ways of teaching several stickers in one run: way of `WAYS` and settings."""


def teach_sticker(
    components: Components,
    thing: str,
    way: str = "textual-inversion",
    *,
    token: str | None = None,
    steps: int | None = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> Concept:
    """Teach a held-out sticker from its four example pictures, by the recipe for the base.

    Args:
        components: the base.
        thing: a key of `CLASS_WORDS`.
        way: a key of `WAYS`.
        token: its word; <my-THING>, or a rare identifier for ways that need one.
        steps: instead of the recipe's.
        on_event: receives the training's events.
        settings: of the method or of training, instead of the recipe's.
    """
    return teach_together(components, {thing: token}, way, steps=steps, on_event=on_event, **settings)[thing]


def teach_together(
    components: Components,
    things: Mapping[str, str | None],
    way: str = "pivotal",
    *,
    steps: int | None = None,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> dict[str, Concept]:
    """Teach held-out stickers in one run; as `teach_sticker`, but for several.

    Args:
        components: the base.
        things: keys of `CLASS_WORDS`, each with its word or None; several for ways of subjects.
        way: a key of `WAYS`.
        steps: instead of the recipe's, for each thing.
        on_event: receives the training's events.
        settings: of the method or of training, instead of the recipe's.
    """
    name, own = WAYS[way]
    words = {thing: word or _word(components, thing, way) for thing, word in things.items()}
    first, *others = things
    chosen = {"token": words[first], **own, **settings} | ({} if steps is None else {"steps": steps})
    chosen["init" if name == "textual-inversion" else "class_word"] = CLASS_WORDS[first]
    if others:
        chosen["also"] = tuple(f"composed:{words[thing]}:{CLASS_WORDS[thing]}" for thing in others)
    run = run_of(methods()[name], {**chosen, "images": "composed"}).with_recipe(components.family.name)
    triggers = [subject.trigger for subject in run.config.subjects] if others else [None]
    examples = [
        Example(f"{thing} {i}.png", picture, word=word)
        for thing, word in zip(things, triggers, strict=True)
        for i, picture in enumerate(composed(teaching_scenes(thing)))
    ]
    concept = cast(Concept, train(components, run, examples, on_event=on_event))
    return dict(zip(things, (concept, *concept.partners), strict=True))


def _word(components: Components, thing: str, way: str) -> str:
    """Return the word a sticker is taught by: <my-THING>, or a rare identifier of its own for ways that need one."""
    if way not in ("lora", "full"):
        return f"<my-{thing}>"
    place = list(CLASS_WORDS).index(thing)
    return rare_identifiers(components, CLASS_WORDS[thing], len(CLASS_WORDS), ALL_NAMES)[place].word


def teach_and_score(
    components: Components,
    judge: Judge,
    thing: str,
    way: str = "textual-inversion",
    *,
    on_event: OnEvent = ignore,
    **settings: Any,
) -> tuple[Concept, dict[str, float]]:
    """Teach a held-out sticker and score it; also return the seconds it took and the KiB of its file."""
    began = time.monotonic()
    concept = teach_sticker(components, thing, way, on_event=on_event, **settings)
    seconds = time.monotonic() - began
    row = score_concept(components, judge, concept, truth_of(thing))
    return concept, {**row, "seconds": seconds, "kib": _kib(concept)}


PAIR_SEEDS = 40
PAIR_STRENGTH = 0.85
"""Of each of two concepts that were learned apart: at full strength their changes get into each other's way."""


def score_pair(
    components: Components, judge: Judge, taught: Mapping[str, Concept], strength: float = PAIR_STRENGTH
) -> dict[str, float]:
    """Score two concepts in one picture: presence of both by name, their places, and their drawn likeness.

    Each of the four relations gets a quarter of the `PAIR_SEEDS` seeds. Things are found by the detector and
    named by the judge among all names, so chance is below 1 in 1000.

    Args:
        components: the base.
        judge: names the things.
        taught: two held-out names, each with its concept.
        strength: of both.
    """
    (first, one), (second, other) = taught.items()
    concepts = {first: one, second: other}
    both: list[bool] = []
    placed: list[bool] = []
    alike: list[Likeness] = []
    for index, (relation, phrases) in enumerate(RELATIONS.items()):
        request = Request(
            prompt=f"a {one.token} {phrases[0]} a {other.token}",
            concepts=tuple(ConceptUse(source=name, strength=strength) for name in concepts),
            count=PAIR_SEEDS // len(RELATIONS),
            seed=5000 + 100 * index,
        )
        for picture in generate(components, request, concepts=concepts).pictures:
            found = detect(to_tensor(picture))[:2]
            called = name(judge, [thing.crop for thing in found], ALL_NAMES)
            seen = dict(zip(called, found, strict=True))
            both.append({first, second} <= set(seen))
            placed.append(both[-1] and holds(relation, seen[first], seen[second]))
            alike += drawn_scene(picture, (first, second))
    shown = {"both": sum(both) / len(both), "in_place": sum(placed) / len(placed)}
    return shown | {"both_drawn": summed(alike).likeness}


def compare(
    components: Components,
    judge: Judge,
    things: Sequence[str],
    ways: Sequence[str] = (),
    *,
    on_event: OnEvent = ignore,
    say: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> dict[str, dict[str, float]]:
    """Compare ways of teaching: mean figures over held-out stickers, and how their concepts go together.

    Args:
        components: the base.
        judge: measures the pictures.
        things: held-out stickers; each is paired with the next one, in a ring.
        ways: keys of `WAYS` and `TOGETHER`; all by default, those of `TOGETHER` if there are several things.
        on_event: receives the trainings' events.
        say: receives each row when it is done.
        settings: of the methods or of training, instead of the recipes'.
    """
    compared: dict[str, dict[str, float]] = {}
    ring = [(a, things[(i + 1) % len(things)]) for i, a in enumerate(things)] if len(things) > 1 else []
    ring = ring if len(things) > 2 else ring[:1]
    for way in ways or (*WAYS, *(TOGETHER if ring else ())):
        taught: dict[str, Concept] = {}
        rows: dict[str, dict[str, float]] = {}
        if way in TOGETHER:
            taught, rows = _together(components, judge, things, way, on_event, settings)
        else:
            for thing in things:
                taught[thing], rows[thing] = teach_and_score(
                    components, judge, thing, way, on_event=on_event, **settings
                )
        pairs: dict[str, dict[str, float]] = {}
        for a, b in ring:
            two = [taught[a], taught[b]]
            if way == "custom-diffusion":
                two = merged(components, two, ordinary(components.family.world), prompt_templates("pocket"))
            strength = 1.0 if way in TOGETHER else PAIR_STRENGTH
            pairs[f"{a} {b}"] = score_pair(components, judge, dict(zip((a, b), two, strict=True)), strength)
            say(f"{way}: {a} and {b} both there {pairs[f'{a} {b}']['both']:.3f}")
        compared[way] = mean(rows) | (mean(pairs) if pairs else {})
        say(table({way: compared[way]}))
    return compared


def _together(
    components: Components,
    judge: Judge,
    things: Sequence[str],
    way: str,
    on_event: OnEvent,
    settings: Mapping[str, Any],
) -> tuple[dict[str, Concept], dict[str, dict[str, float]]]:
    """Return concepts taught in one run and their scores; its seconds are shared out among them."""
    name, own = TOGETHER[way]
    began = time.monotonic()
    taught = teach_together(components, dict.fromkeys(things), name, on_event=on_event, **(own | dict(settings)))
    seconds = (time.monotonic() - began) / len(things)
    rows = {
        thing: score_concept(components, judge, concept, truth_of(thing)) | {"seconds": seconds, "kib": _kib(concept)}
        for thing, concept in taught.items()
    }
    return taught, rows


def _kib(concept: Concept) -> float:
    """Return the size of a concept's file in KiB."""
    with TemporaryDirectory() as folder:
        return concept.save(Path(folder) / "concept.safetensors").stat().st_size / 1024


def mean(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of each figure over the rows that have it."""
    figures = dict.fromkeys(figure for row in rows.values() for figure in row)
    return {
        figure: sum(row[figure] for row in rows.values() if figure in row) / sum(figure in row for row in rows.values())
        for figure in figures
    }


FIGURES = (
    "drawn", "drawn_half", "drawn_word", "drawn_floor", "drawn_ceiling", "drawn_explained",
    "likeness", "likeness_word", "likeness_floor", "likeness_ceiling", "likeness_share",
    "alignment", "alignment_gain", "named", "class_kept", "both", "both_drawn", "in_place", "seconds", "kib",
)  # fmt: skip
AGREEMENT = 0.5
"""Rank correlation over things below which judge and drawing contradict each other."""
LIKED = 0.25
"""Share of the way from other things to the thing itself from which the judge's likeness claims something."""


def rank_agreement(rows: Mapping[str, Mapping[str, float]]) -> float | None:
    """Return Spearman's correlation of judged and drawn likeness over things; None for fewer than four."""
    both = [(row["likeness"], row["drawn"]) for row in rows.values() if "likeness" in row and "drawn" in row]
    if len(both) < 4:
        return None
    judged, drawings = ([pair[k] for pair in both] for k in (0, 1))
    correlation: Any = spearmanr(judged, drawings)
    value = float(correlation.statistic)
    return value if math.isfinite(value) else 0.0


def overrated(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the things that the judge finds like themselves though they are drawn no better than another thing."""
    needed = {"drawn", "drawn_half", "drawn_floor", "likeness_share"}
    return [
        key
        for key, row in rows.items()
        if needed <= set(row)
        and row["drawn"] - row["drawn_half"] <= row["drawn_floor"]
        and row["likeness_share"] > LIKED
    ]


def table(rows: Mapping[str, Mapping[str, float]], with_mean: bool = True) -> str:
    """Return rows of figures as text, with their mean where there are several."""
    shown = {**rows, **({"mean": mean(rows)} if with_mean and len(rows) > 1 else {})}
    figures = [f for f in FIGURES if any(f in row for row in shown.values())]
    width = max(12, *(len(key) + 1 for key in shown))
    wide = {figure: max(9, len(figure) + 2) for figure in figures}
    lines = [" " * width + "".join(f"{figure:>{wide[figure]}}" for figure in figures)]
    for key, row in shown.items():
        cells = (f"{row[f]:>{wide[f]}.3f}" if f in row else " " * wide[f] for f in figures)
        lines.append(f"{key:<{width}}" + "".join(cells))
    if any("named" in row for row in shown.values()):
        lines.append(f"chance of being named right: {1 / len(ALL_NAMES):.3f}")
    for key in overrated(rows):
        lines.append(f"{key}: the judge likes it, the drawing is at its floor; trust the drawing")
    agreement = rank_agreement(rows)
    if agreement is not None and with_mean:
        disagree = ": the judge contradicts the drawings, trust the drawings" if agreement < AGREEMENT else ""
        lines.append(f"rank correlation of judge and drawing over the things: {agreement:.2f}{disagree}")
    return "\n".join(lines)
