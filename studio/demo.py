"""`make demo`: teach pocket a sticker it has never seen from four pictures, and show what it can do with it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from pipelines.concept import Concept
from pipelines.denoising import generate
from pipelines.errors import StudioError
from pipelines.request import ConceptUse, Request
from pipelines.sheet import Sheet
from studio import runner
from studio.settings import Machine
from studio.training import Output
from trainers import methods, scoring
from trainers.config import DataConfig, TrainConfig
from trainers.data import read_examples

EXAMPLES = Path(__file__).parent.parent / "examples" / "wolf"
TOKEN, WORD, THING = "<my-wolf>", "fox", "wolf"
SEEDS = 6
PROMPTS = (
    "a {}",
    "a {} on a blue background",
    "a {} on a black background",
    "a {} to the left of a house",
    "a {} above a car",
    "two of a {}",
)


def main() -> int:
    """Run the demo; exit code 0 when the sheet is written."""
    start, machine = time.monotonic(), Machine()
    folder = Path("outputs")
    try:
        method = methods()["textual-inversion"]
        (concept_path,) = runner.train(
            method,
            method.Config(token=TOKEN, init=WORD),
            DataConfig(images=EXAMPLES),
            TrainConfig(preview_every=100),
            Output(output=folder / "demo" / "my-wolf.safetensors", overwrite=True),
            machine,
        )
        components, concept = runner.open_base("pocket", machine), Concept.load(concept_path)
        sheet = Sheet(title=f"Four pictures taught pocket a word, {TOKEN}. Same seeds in each column.")
        sheet.row("the four pictures", [example.picture for example in read_examples(EXAMPLES)])
        for prompt in PROMPTS:
            for word in (WORD, TOKEN):
                request = Request(
                    prompt=prompt.format(word),
                    concepts=(ConceptUse(source="demo"),) if word == TOKEN else (),
                    count=SEEDS,
                    seed=1,
                )
                sheet.row(request.prompt, generate(components, request, concepts={"demo": concept}).pictures)
                print(f"drawn: {request.prompt}", flush=True)
        row = scoring.score_concept(components, runner.judge(), concept, scoring.real_crops(THING), THING)
        concept.with_scores(row).save(concept_path)
        path = sheet.save(folder / "demo.png")
    except StudioError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    print(scoring.table({TOKEN: row}))
    print(f"{time.monotonic() - start:.0f} seconds. The concept: {concept_path}\nLook at {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
