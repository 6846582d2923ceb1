"""Time of a picture beside plain diffusers, in one process, call by call in turn.

    python -m benchmarks.generation                        # the table of benchmarks/README.md
    python -m benchmarks.generation --pairs 4 --format json

Base, prompt, seeds, steps and guidance are the same. First the pixels of both are compared; then both draw in turn,
and the ratio of each pair's CPU times is taken, so that whatever else the machine does falls on both. diffusers beside
itself is the floor of such a ratio. Previews are what a picture costs that somebody watches as it is drawn.
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

from benchmarks.training import pipeline as stable_diffusion

STEPS, SCALE = 20, 7.5
PROMPT, SEED = "a fox on a blue background", 5
COUNTS = (1, 4)


@dataclass(frozen=True)
class Beside:
    """A way of drawing beside plain diffusers.

    Attributes:
        base: name of the base.
        way: name of the way.
        count: pictures a call.
        cpu: median ratio of the CPU times of a pair, this way's over that of diffusers.
        wall: the same of wall time.
        seconds: median CPU seconds of a call of diffusers.
        differs: largest difference of a pixel's values, of 255.
    """

    base: str
    way: str
    count: int
    cpu: float
    wall: float
    seconds: float
    differs: int


def _pocket() -> Any:
    import torch
    from diffusers import StableDiffusionPipeline

    from pipelines.models import POCKET

    return StableDiffusionPipeline.from_pretrained(POCKET, torch_dtype=torch.float32)


BASES: Mapping[str, Callable[[], Any]] = MappingProxyType(
    {"Stable Diffusion layout": stable_diffusion, "pocket": _pocket}
)
"""Name -> the pipeline, loaded."""


def measured(pipeline: Any, name: str, count: int, pairs: int, steps: int = STEPS) -> list[Beside]:
    """Draw with diffusers and with each way in turn; return each beside diffusers.

    Args:
        pipeline: a diffusers pipeline.
        name: of the base.
        count: pictures a call.
        pairs: calls that are timed.
        steps: of a picture.
    """
    import numpy as np
    import torch
    from diffusers import DDIMScheduler

    from pipelines.conditions.preview import Watch
    from pipelines.events import ignore
    from pipelines.generation import generate
    from pipelines.models.loading import from_pipeline
    from pipelines.request.request import Guidance, Request

    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    components = from_pipeline(pipeline, name)
    size = components.defaults.size
    asked: dict[str, Any] = {"prompt": PROMPT, "scheduler": "ddim", "steps": steps, "seed": SEED, "count": count}
    request = Request(**asked, width=size, height=size, guidance=Guidance(scale=SCALE, rescale=0.0))

    def plain() -> Any:
        generators = [torch.Generator().manual_seed(SEED + number) for number in range(count)]
        options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": SCALE, "height": size, "width": size}
        with torch.no_grad():
            return pipeline(PROMPT, num_images_per_prompt=count, generator=generators, **options).images

    ways: dict[str, Callable[[], Any]] = {
        "diffusers": plain,
        "studio": lambda: generate(components, request).pictures,
        "studio, previews": lambda: generate(components, request, conditions=[Watch(ignore)]).pictures,
    }
    wanted = [np.asarray(one, dtype=np.int16) for one in plain()]
    rows: list[Beside] = []
    for way, drawn in ways.items():
        found = [np.asarray(one, dtype=np.int16) for one in drawn()]
        differs = max(int(np.abs(one - other).max()) for one, other in zip(wanted, found, strict=True))
        took = [(_timed(plain), _timed(drawn)) for _ in range(pairs)]
        cpu, wall = (median(own[clock] / theirs[clock] for theirs, own in took) for clock in (0, 1))
        rows.append(Beside(name, way, count, cpu, wall, median(theirs[0] for theirs, _ in took), differs))
    return rows


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return the CPU seconds and the wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def table(rows: Sequence[Beside]) -> str:
    """Return the rows as a table."""
    columns = (
        "base",
        "pictures a call",
        "way",
        "CPU beside diffusers",
        "wall",
        "CPU s of diffusers",
        "pixels differ by",
    )
    head = f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|"
    lines = (
        f"| {row.base} | {row.count} | {row.way} | {row.cpu:.3f} | {row.wall:.3f} | {row.seconds:.2f} | {row.differs} |"
        for row in rows
    )
    return "\n".join([head, *lines])


def main() -> None:
    """Measure each base and number of pictures, and print the table."""
    import torch

    parser = argparse.ArgumentParser(description="Time of a picture beside plain diffusers.")
    parser.add_argument("--pairs", type=int, default=6, help="calls that are timed, of each")
    parser.add_argument("--counts", nargs="*", type=int, default=list(COUNTS), help="pictures a call; 1 and 4")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    asked = parser.parse_args()
    if asked.pairs < 1 or min(asked.counts, default=0) < 1:
        parser.error("at least one pair, and one number of pictures from 1 on.")
    torch.set_num_threads(asked.threads)
    rows: list[Beside] = []
    for name, made in BASES.items():
        pipeline = made()
        rows += [row for count in asked.counts for row in measured(pipeline, name, count, asked.pairs)]
    print(json.dumps([asdict(row) for row in rows], indent=1) if asked.format == "json" else table(rows))


if __name__ == "__main__":
    main()
