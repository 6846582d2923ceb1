"""Time and memory of a training step, of each way of learning: CPU time beside wall time, in a process of its own each.

    python -m benchmarks.training                          # the table of the docs, some minutes on two cores
    python -m benchmarks.training --format json
    python -m benchmarks.training --only full --threads 1 --steps 10

The base has the layout of Stable Diffusion 1.x with the UNet and the autoencoder at a fifth of their width, random
weights and its whole vocabulary: 256 pixels, one picture a step, float32. Pictures are encoded before the steps that
are timed. Figures of two machines cannot be compared; those of one, on an idle machine, can.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

LIMIT = 900.0
"""Seconds a measurement may take."""

WARM = 2
"""Steps that are not timed: they also pay for what is set up once."""

PICTURES, SIDE = 4, 256

WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "textual-inversion": ("textual-inversion", {"token": "<thing>", "init": "fox"}),
    "lora": ("dreambooth", {"token": "sks", "class_word": "fox", "prior": "none"}),
    "full": ("dreambooth", {"token": "sks", "class_word": "fox", "prior": "none", "form": "full"}),
    "reversion": ("reversion", {"token": "<thing>", "init": "on", "left": "fox", "right": "cat", "flip": 0.0}),
}
"""Ways of learning -> method and settings."""


@dataclass(frozen=True)
class Figures:
    """The figures of one way.

    Attributes:
        way: name.
        threads: of torch.
        wall: median seconds of a step.
        cpu: median CPU seconds of a step, all threads.
        peak: bytes, largest resident set of the process.
        trained: number of trained values.
    """

    way: str
    threads: int
    wall: float
    cpu: float
    peak: int
    trained: int


def pipeline() -> Any:
    """Return the base as a pipeline of diffusers, with random weights from a fixed seed."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from pipelines.models.single_files import SHIPPED, written
    from trainers.initial_weights import initial_weights

    said = json.loads((SHIPPED / "sd1.json").read_text(encoding="utf-8"))
    narrow = {"block_out_channels": (64, 128, 256, 256), "cross_attention_dim": 256, "attention_head_dim": 4}
    text = said["text_encoder"] | {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4}
    with tempfile.TemporaryDirectory() as place:
        tokenizer = CLIPTokenizer.from_pretrained(written("sd1", Path(place), 4, {}) / "tokenizer")
    with initial_weights(0):
        return StableDiffusionPipeline(
            unet=UNet2DConditionModel.from_config(said["unet"] | narrow | {"sample_size": SIDE // 8}),
            vae=AutoencoderKL.from_config(said["vae"] | {"block_out_channels": (32, 64, 128, 128)}),
            text_encoder=CLIPTextModel(CLIPTextConfig(**{k: v for k, v in text.items() if k != "architectures"})),
            tokenizer=tokenizer,
            scheduler=DDIMScheduler.from_config(said["scheduler"]),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def base() -> Any:
    """Return the base, its weights as of `pipeline`."""
    from pipelines.models.loading import from_pipeline

    components = from_pipeline(pipeline(), "mini")
    for module in components.modules():
        module.eval().requires_grad_(False)
    return components


def measured(components: Any, way: str, steps: int, threads: int = 1) -> Figures:
    """Train for some steps; return the figures of those after the first `WARM`."""
    import numpy as np
    import torch
    from PIL import Image

    from pipelines.events import ignore
    from trainers.data.folders import Example
    from trainers.loop.train import probe, train
    from trainers.methods import methods
    from trainers.run import run_of

    torch.set_num_threads(threads)
    name, settings = WAYS[way]
    side = min(SIDE, components.defaults.size)
    pace = {"images": "pictures", "steps": WARM + steps, "batch": 1, "resolution": side, "scale_lr": False}
    run = run_of(methods()[name], {**pace, "learning_rate": 1e-4, **settings})
    noise = np.random.default_rng(0).integers(0, 255, (PICTURES, side, side, 3), dtype=np.uint8)
    examples = [Example(f"{place}.png", Image.fromarray(one)) for place, one in enumerate(noise)]
    moments: list[tuple[float, float]] = []

    def asked() -> bool:  # once before each step
        moments.append((time.perf_counter(), time.process_time()))
        return False

    concept = train(components, run, examples, on_event=ignore, should_stop=asked)
    wall, cpu = (
        median(after[clock] - before[clock] for before, after in zip(moments[WARM:], moments[WARM + 1 :], strict=False))
        for clock in (0, 1)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    del concept
    return Figures(way, threads, wall, cpu, peak, probe(components, run, examples[:1]).trained)


def table(rows: Sequence[Figures]) -> str:
    """Return the figures as a table."""
    head = "| way | threads | wall, ms a step | CPU, ms a step | peak, MiB | trained |\n|---|---|---|---|---|---|"
    lines = (
        f"| {row.way} | {row.threads} | {row.wall * 1000:.0f} | {row.cpu * 1000:.0f} | {row.peak / 2**20:.0f} "
        f"| {row.trained:,} |"
        for row in rows
    )
    return "\n".join([head, *lines])


def main() -> None:
    """Measure each way in a process of its own, and print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of a training step.")
    parser.add_argument("--only", nargs="*", choices=list(WAYS), default=list(WAYS), help="some ways; all by default")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2], help="of torch; 1 and 2 by default")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--here", action="store_true", help="measure the first way in this process, as JSON")
    asked = parser.parse_args()
    if asked.steps < 2:
        parser.error(f"--steps {asked.steps}: at least 2 have a time between them.")
    if asked.here:
        print(json.dumps(asdict(measured(base(), asked.only[0], asked.steps, asked.threads[0]))))
        return
    rows: list[Figures] = []
    for way in asked.only:
        for threads in asked.threads:
            words = ("--here", "--only", way, "--threads", str(threads), "--steps", str(asked.steps))
            command = [sys.executable, "-m", "benchmarks.training", *words]
            done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=LIMIT)
            rows.append(Figures(**json.loads(done.stdout.splitlines()[-1])))
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(json.dumps([asdict(row) for row in rows], indent=1) if asked.format == "json" else table(rows))


if __name__ == "__main__":
    main()
