"""Flags of `studio score` for whole benchmarks, in groups. Importable without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from pipelines.request.request import Frozen


class Benchmarks(Frozen):
    """Scores of relations, of boxes and of questions asked in pictures."""

    relations: bool = False
    """Teach pocket each relation from ten pictures and score it on pairs it never saw, beside the best phrase in words,
    the untrained token and Textual Inversion. With --clip the paper's protocol for a real base instead."""

    boxes: bool = False
    """Score on pocket how well things stand in boxes, beside the same prompts and seeds without boxes."""

    regions: bool = False
    """Teach held-out stickers as words and by weights, and draw one, two and three of them in boxes, with words and
    weights kept to the boxes and without; takes minutes each."""

    masks: bool = False
    """Compare masks from clicks and boxes with the exact ones of composed pictures."""

    extensions: bool = False
    """With --relations: each switch of ReVersion by itself too."""

    incontext: bool = False
    """Ask pocket questions in pictures about stickers it never saw, and score the answers of every task, beside the
    query itself, the answer without an example, and the answer to a wrong one."""

    sliders: bool = False
    """Teach pocket sliders of size, colour and count, and score on other things how what they are for moves with the
    strength, and whether the rest stays; takes minutes each."""

    best_of: bool = False
    """Draw candidates of seeded prompts on pocket, and score what keeping the judge's best of 1, 2, 4 and 8 of them
    gains in drawn likeness, a measure of its own; takes some minutes."""

    captions: bool = False
    """Caption composed scenes that nothing was trained on as `studio caption` does with pocket, and count those that
    are exact in names, numbers, relation and background."""

    taught: bool = False
    """With --captions: teach held-out stickers, or those of --only, from pictures that show another thing beside each,
    under templates and under captions, and score both; takes minutes each."""

    pictures: int | None = Field(default=None, ge=1, le=10_000)
    """With --relations: pictures of each relation and way (40), or in the paper's protocol of each pair (10). With
    --boxes: layouts (200). With --regions: layouts of each group (12). With --incontext: questions of each task
    (12). With --sliders: seeds of each thing (2). With --best-of: prompts of
    each kind (5). With --captions: scenes (200), with
    --taught pictures of each prompt (6)."""

    sheet: Path | None = None
    """With --relations, --boxes, --incontext or --sliders: also write a contact sheet here."""

    clip: Path | None = None
    """With --relations: folder of a CLIP that measures; needs --learned."""

    learned: Path | None = None
    """With --clip: folder of relations learned on the base, named painted_on.safetensors, hug.safetensors, ..."""

    scenarios: Path | None = None
    """With --clip: a JSON file of relations and the things they are tried between, instead of the built-in ones."""


BENCHMARKS = {
    "relations": ("studio.commands.score.relations", "score_relations"),
    "boxes": ("studio.commands.score.boxes", "score_boxes"),
    "regions": ("studio.commands.score.boxes", "score_regions"),
    "sliders": ("studio.commands.score.sliders", "score_sliders"),
    "best_of": ("studio.commands.score.best_of", "score_best_of"),
    "captions": ("studio.commands.score.captions", "score_captions"),
    "masks": ("studio.commands.mask", "score_masks"),
    "incontext": ("studio.commands.score.incontext", "score_answers"),
}
"""For each benchmark the module and the function that carry it out."""
