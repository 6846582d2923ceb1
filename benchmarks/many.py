"""Words learned at once: steps of words a second, of one word and of several in one run.

    python -m benchmarks.many                              # 1, 4 and 16 words on two bases
    python -m benchmarks.many --words 1 8 --steps 10 --format json

The base of `benchmarks.training` and `pocket` learn at one picture a word and step, 256 and 64 pixels, float32, on two
threads by default. One word alone is the floor; what is gained is how much better a processor works on larger batches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from types import MappingProxyType
from typing import Any

from benchmarks.training import PICTURES, WARM, base

WORDS = (1, 4, 16)


@dataclass(frozen=True)
class Pace:
    """The pace of a run.

    Attributes:
        base: name of the base.
        words: learned at once.
        wall: median seconds of a step of all of them.
        cpu: median CPU seconds of it, all threads.
    """

    base: str
    words: int
    wall: float
    cpu: float

    @property
    def rate(self) -> float:
        """Return the steps of a word that are done in a second."""
        return self.words / self.wall


def _pocket() -> Any:
    from pipelines.models.loading import load

    return load("pocket")


BASES: Mapping[str, Callable[[], Any]] = MappingProxyType({"Stable Diffusion layout": base, "pocket": _pocket})
"""Name -> the base, loaded."""


def measured(components: Any, name: str, words: int, steps: int) -> Pace:
    """Learn several words for some steps; return the pace of those after the first few."""
    import numpy as np
    from PIL import Image

    from pipelines.events import ignore
    from trainers.data.folders import Example
    from trainers.loop.train import train
    from trainers.methods import methods
    from trainers.run import run_of

    side = min(256, components.defaults.size)
    tokens = [f"<thing{number}>" for number in range(words)]
    settings = {
        "token": tokens[0],
        "init": "fox",
        "many": tuple(f"pictures:{token}:fox" for token in tokens[1:]),
        **{"images": "pictures", "steps": WARM + steps, "batch": 1, "resolution": side, "scale_lr": False},
    }
    noise = np.random.default_rng(0).integers(0, 255, (words, PICTURES, side, side, 3), dtype=np.uint8)
    examples = [
        Example(f"{token} {place}.png", Image.fromarray(one), word=token if words > 1 else None)
        for token, own in zip(tokens, noise, strict=True)
        for place, one in enumerate(own)
    ]
    moments: list[tuple[float, float]] = []

    def asked() -> bool:  # once before each step
        moments.append((time.perf_counter(), time.process_time()))
        return False

    train(components, run_of(methods()["textual-inversion"], settings), examples, on_event=ignore, should_stop=asked)
    wall, cpu = (
        median(after[clock] - before[clock] for before, after in zip(moments[WARM:], moments[WARM + 1 :], strict=False))
        for clock in (0, 1)
    )
    return Pace(name, words, wall, cpu)


def table(rows: Sequence[Pace]) -> str:
    """Return the paces as a table, each beside that of one word on its base."""
    alone = {row.base: row.rate for row in rows if row.words == 1}
    columns = ("base", "words", "wall, ms a step", "CPU, ms a step", "steps of a word a second", "beside one word")
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    lines = (
        f"| {row.base} | {row.words} | {row.wall * 1000:.0f} | {row.cpu * 1000:.0f} | {row.rate:.2f} "
        f"| {f'{row.rate / alone[row.base]:.2f}' if row.base in alone else ''} |"
        for row in rows
    )
    return "\n".join([head, *lines])


def main() -> None:
    """Measure each number of words on each base, and print the table."""
    import torch

    parser = argparse.ArgumentParser(description="Words learned at once: steps of words a second.")
    parser.add_argument("--words", nargs="*", type=int, default=list(WORDS), help="numbers of words; 1, 4 and 16")
    parser.add_argument("--steps", type=int, default=6, help="steps that are timed")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    asked = parser.parse_args()
    if asked.steps < 2 or min(asked.words, default=0) < 1:
        parser.error("at least one number of words from 1 on, and 2 steps, which have a time between them.")
    torch.set_num_threads(asked.threads)
    rows: list[Pace] = []
    for name, made in BASES.items():
        components = made()
        rows += [measured(components, name, words, asked.steps) for words in asked.words]
    print(json.dumps([asdict(row) for row in rows], indent=1) if asked.format == "json" else table(rows))


if __name__ == "__main__":
    main()
