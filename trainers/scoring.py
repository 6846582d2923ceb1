"""How well a concept shows its thing, measured against the class word with the same prompts and seeds.

Likeness is the judge's cosine between what was generated and real pictures of the thing that training did not see
(CLIP-I of arXiv:2208.12242, on the largest thing of each picture, so that backgrounds do not count); alignment is the
cosine to the prompt in plain words (CLIP-T): with the thing's name where it is given, else the class word. Naming is
the share of generated things that the judge calls by the right held-out name among all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from pipelines.components import Components
from pipelines.concept import Concept
from pipelines.denoising import generate
from pipelines.events import OnEvent, ignore
from pipelines.images import fit, to_pictures, to_tensor
from pipelines.judge import INPUT, Judge
from pipelines.request import ConceptUse, Request
from pipelines.scores import detect, name, picture_similarity, text_alignment
from trainers.config import DataConfig, TrainConfig
from trainers.data import Example
from trainers.stickers import HELD_OUT, Scene, Stickers, scene, scenes
from trainers.textual_inversion import TextualInversion, TextualInversionConfig
from trainers.train import Run, train, with_preset

PROMPTS = ("a {}", "a {} on a yellow background", "a {} on a blue background", "a picture of a {} on a gray background")
SEEDS = 6
REAL = 16  # real pictures of a held-out sticker that likeness is measured against
TEACHING_SEED, REAL_SEED = 101, 202
TEACHING_COLOURS = ("pink", "green", "blue", "gray")


def teaching_scenes(thing: str, count: int = 4) -> list[Scene]:
    """The example pictures of a held-out sticker: alone, each on another background."""
    import random

    rng = random.Random(TEACHING_SEED + list(HELD_OUT).index(thing))
    return [
        scene(rng, names=(thing,), kind="one", colour=TEACHING_COLOURS[i % len(TEACHING_COLOURS)]) for i in range(count)
    ]


def composed(listed: list[Scene], size: int = 64) -> list[Image.Image]:
    """Pictures of scenes."""
    used = tuple(dict.fromkeys(thing.name for item in listed for thing in item.stickers))
    return to_pictures(Stickers(size, names=used).render(listed).images)


def crops_of(pictures: Sequence[Image.Image]) -> Tensor:
    """The largest thing of each picture, (N, 3, 64, 64) in [-1, 1]; the whole picture where none is found."""
    listed: list[Tensor] = []
    for picture in pictures:
        image = to_tensor(picture)
        found = detect(image)
        listed.append(found[0].crop if found else to_tensor(fit(picture, INPUT, INPUT)))
    return torch.stack(listed)


def real_crops(thing: str) -> Tensor:
    """Crops of compositions of a held-out sticker that no training uses."""
    return crops_of(composed(scenes(REAL, REAL_SEED, names=(thing,), kind="one")))


def score_concept(
    components: Components, judge: Judge, concept: Concept, real: Tensor, thing: str | None = None
) -> dict[str, float]:
    """Scores of a concept and of its class word.

    Args:
        components: the base.
        judge: who measures.
        concept: what is measured.
        real: crops of real pictures, (N, 3, 64, 64).
        thing: its held-out name, for `named`; left out of the result otherwise.
    """
    word = concept.card.init or "thing"
    taught, plain = [_pictures(components, concept, text) for text in (concept.token, word)]
    crops, plain_crops = crops_of(taught), crops_of(plain)

    def aligned(pictures: list[Image.Image], called: str) -> float:
        wording = [prompt.format(called) for prompt in PROMPTS for _ in range(SEEDS)]
        return text_alignment(judge, torch.stack([to_tensor(one) for one in pictures]), wording)

    row = {
        "likeness": picture_similarity(judge, crops, real),
        "likeness_word": picture_similarity(judge, plain_crops, real),
        "alignment": aligned(taught, thing or word),
        "alignment_word": aligned(plain, word),
    }
    row["likeness_gain"] = row["likeness"] - row["likeness_word"]
    row["alignment_gain"] = row["alignment"] - row["alignment_word"]
    if thing is not None:
        called = name(judge, list(crops), tuple(HELD_OUT))
        row["named"] = called.count(thing) / len(called)
        row["named_chance"] = 1 / len(HELD_OUT)
    return row


def _pictures(components: Components, concept: Concept, text: str) -> list[Image.Image]:
    """The scoring pictures with `text` in the place of the thing; the same seeds for every text."""
    pictures: list[Image.Image] = []
    for index, prompt in enumerate(PROMPTS):
        request = Request(
            prompt=prompt.format(text),
            concepts=(ConceptUse(source="scored"),) if text == concept.token else (),
            count=SEEDS,
            seed=1000 * (index + 1),
        )
        pictures += generate(components, request, concepts={"scored": concept}).pictures
    return pictures


def teach(
    components: Components,
    thing: str,
    *,
    token: str | None = None,
    steps: int | None = None,
    on_event: OnEvent = ignore,
) -> Concept:
    """Teach a held-out sticker with Textual Inversion from its four example pictures, by the recipe for the base."""
    method = TextualInversion()
    config = TextualInversionConfig(token=token or f"<my-{thing}>", init=HELD_OUT[thing])
    pace = TrainConfig() if steps is None else TrainConfig(steps=steps)
    family = components.family
    run = Run(
        method,
        with_preset(method, family, config),
        with_preset(method, family, pace),
        with_preset(method, family, DataConfig(images=Path("composed"))),
    )
    examples = [Example(f"{i}.png", picture) for i, picture in enumerate(composed(teaching_scenes(thing)))]
    return train(components, run, examples, on_event=on_event)


def teach_and_score(
    components: Components, judge: Judge, thing: str, *, on_event: OnEvent = ignore
) -> dict[str, float]:
    """Teach a held-out sticker and score it."""
    return score_concept(components, judge, teach(components, thing, on_event=on_event), real_crops(thing), thing)


def mean(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of each figure over the rows that have it."""
    figures = dict.fromkeys(figure for row in rows.values() for figure in row)
    return {
        figure: sum(row[figure] for row in rows.values() if figure in row) / sum(figure in row for row in rows.values())
        for figure in figures
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Rows of figures as text, with their mean where there are several."""
    shown = {**rows, **({"mean": mean(rows)} if len(rows) > 1 else {})}
    figures = [
        f
        for f in ("likeness", "likeness_word", "likeness_gain", "alignment", "alignment_gain", "named")
        if any(f in row for row in shown.values())
    ]
    width = max(12, *(len(key) + 1 for key in shown))
    lines = [" " * width + "".join(f"{figure:>15}" for figure in figures)]
    for key, row in shown.items():
        lines.append(f"{key:<{width}}" + "".join(f"{row[f]:>15.3f}" if f in row else " " * 15 for f in figures))
    if any("named" in row for row in shown.values()):
        lines.append(f"chance of being named right: {1 / len(HELD_OUT):.3f}")
    return "\n".join(lines)
