"""`make demo`: teach pocket an unknown sticker from four pictures, in two ways, and draw the results."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from evaluation import concepts as scoring
from evaluation.truth import drawn_between, truth_of
from pipelines.concepts.concept import Concept
from pipelines.errors import StudioError
from pipelines.generation import generate
from pipelines.pictures.sheet import Sheet
from pipelines.request.request import ConceptUse, Request
from studio.settings import Machine
from studio.work import runner
from trainers.data.batches import read_examples
from trainers.methods import methods
from trainers.run import Run
from trainers.settings import DataConfig, Destination, TrainConfig
from trainers.stickers.drawn import drawn_scene, summed

EXAMPLES = Path(__file__).parents[1] / "examples" / "wolf"
WORD, THING = "fox", "wolf"
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "<wolf-word>": ("Textual Inversion", "textual-inversion", {"init": WORD}),
    "<wolf>": ("DreamBooth, low-rank", "dreambooth", {"class_word": WORD, "pivotal": True}),
}
"""The new words: how each is learned, by which method with which settings."""
SEEDS = 6
PROMPTS: dict[str, tuple[str, ...]] = {
    "a {}": (),
    "a {} on a blue background": (),
    "a {} to the left of a house": ("house",),
    "a {} above a car": ("car",),
}
"""Prompts drawn with each word, and the other thing in them."""


def _learn(folder: Path, machine: Machine) -> dict[str, tuple[Path, float]]:
    """Learn each word; return its file and the seconds it took."""
    learned: dict[str, tuple[Path, float]] = {}
    for token, (said, name, settings) in WAYS.items():
        began, method = time.monotonic(), methods()[name]
        print(f"{said}: learning {token}", flush=True)
        (path,) = runner.write_concepts(
            Run(
                method,
                method.Settings(token=token, **settings),
                TrainConfig(preview_every=100),
                DataConfig(images=EXAMPLES),
                Destination(output=folder / "demo" / f"{token.strip('<>')}.safetensors", overwrite=True),
            ),
            machine,
        )
        learned[token] = path, time.monotonic() - began
    return learned


def _drawn(components: Any, concepts: Mapping[str, Concept]) -> Sheet:
    """Draw the sheet: the pictures that were taught, then each prompt with the class word and with each new word."""
    floor, ceiling = drawn_between(components, truth_of(THING)).values()
    title = (
        f"Drawn likeness to the wolf: {floor:.2f} the nearest other sticker, {ceiling:.2f} the best pocket can reach."
    )
    sheet = Sheet(title=title)
    sheet.row("the four pictures", [example.picture for example in read_examples(EXAMPLES)])
    for prompt, others in PROMPTS.items():
        for word in (WORD, *concepts):
            request = Request(
                prompt=prompt.format(word),
                concepts=(ConceptUse(source=word),) if word in concepts else (),
                count=SEEDS,
                seed=1,
            )
            pictures = generate(components, request, concepts=dict(concepts)).pictures
            measured = summed([drawn_scene(picture, (THING, *others))[0] for picture in pictures])
            way = WAYS[word][0] if word in WAYS else "the nearest word it knew"
            sheet.row(f"{request.prompt}\n{way}\ndrawn likeness {measured.likeness:.2f}", pictures)
            print(f"drawn: {request.prompt}", flush=True)
    return sheet


def main() -> int:
    """Run the demo; exit code 0 when the sheet is written."""
    start, machine = time.monotonic(), Machine()
    folder = Path("outputs")
    rows: dict[str, dict[str, float]] = {}
    try:
        read_examples(EXAMPLES)  # what is missing is said before anything is begun
        learned = _learn(folder, machine)
        components = runner.open_base("pocket", machine)
        concepts = {token: Concept.load(path) for token, (path, _) in learned.items()}
        path = _drawn(components, concepts).save(folder / "demo.png")
        for token, (file, seconds) in learned.items():
            scores = scoring.score_concept(components, runner.judge(), concepts[token], truth_of(THING))
            concepts[token].with_scores(scores).save(file)
            rows[token] = scores | {"seconds": seconds}
    except StudioError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(scoring.table(rows, with_mean=False))
    print(f"{time.monotonic() - start:.0f} seconds. The concepts: {folder / 'demo'}\nLook at {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
