"""One run that carries the whole of `pocket` on, in a given time: base, gated layers, 9-channel UNet, each its share.

    python -m trainers.pretrain all --device cuda --minutes 12

goes on from the committed weights, keeps a state every few seconds of steps, ends in time, and leaves the model in
`work/prepared` and, for carrying it away, in pieces of at most 16 MB in `work/shards`. `python -m trainers.pretrain
join` puts the pieces together again, and `pack --packed` scores the model and puts it in place if it is better.
"""

from __future__ import annotations

import argparse
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from pipelines.components import POCKET
from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.inpainting_unet import FOLDER
from trainers.pretrain.grounding import ADAPTER, grounding_stage, pack_grounding
from trainers.pretrain.inpainting import inpainting_stage, put_in_place
from trainers.pretrain.stages import unet_stage, write_model

SHARES = {"unet": 0.5, "grounding": 0.2, "inpainting": 0.25}
"""Share of the minutes of each training; the rest is for composing, loading and writing."""
SHARD = 16_000_000
"""Bytes of a piece."""
FOLDER_OUT, SHARDS = "prepared", "shards"


def prepared_run(arguments: argparse.Namespace, events: Callable[[str, Path], OnEvent]) -> Path:
    """Train base, gated layers and 9-channel UNet in turn within `arguments.minutes`; return the model's folder.

    Args:
        arguments: of the command line; `go_on_from` is the model to start from, the committed one by default. What an
            earlier run of the same command had finished is not done again.
        events: gives the receiver of a stage's progress, from its name and the path of its log.
    """
    ends = time.monotonic() + 60 * arguments.minutes
    start: Path = arguments.go_on_from or POCKET
    work: Path = arguments.work
    out = work / FOLDER_OUT

    def run(stage: str, **changes: object) -> argparse.Namespace:
        """The arguments of a stage; its minutes are its share of the run, or of what is left if that is less."""
        left = max(0.02, (ends - time.monotonic()) / 60)
        rest = list(SHARES)[list(SHARES).index(stage) :]
        share = min(arguments.minutes * SHARES[stage], left * SHARES[stage] / sum(SHARES[one] for one in rest))
        own = {"work": work / stage, "out": out, "minutes": share, **changes}
        (work / stage).mkdir(parents=True, exist_ok=True)
        return argparse.Namespace(**(vars(arguments) | own))

    def told(stage: str) -> OnEvent:
        return events(stage, work / stage / "log.jsonl")

    base = run("unet", go_on_from=start)
    if not (base.work / "generator.pt").exists():
        unet_stage(base, told("unet"))
    if not (out / FOLDER).exists():
        shutil.rmtree(out, ignore_errors=True)
        write_model(base, out)
        shutil.copytree(start / FOLDER, out / FOLDER)
    boxes = run("grounding")
    if not (boxes.work / "done").exists():
        grounding_stage(boxes, told("grounding"))
        pack_grounding(boxes.work / ADAPTER, out)
        (boxes.work / "done").touch()
    holes = run("inpainting", go_on_from=out, inpainting_from=out / FOLDER)
    inpainting_stage(holes, told("inpainting"))
    put_in_place(holes.work, out)
    pieces = split(out, work / SHARDS)
    size = f"{SHARD / 1e6:.0f} MB"
    told("inpainting")(Note(f"{out} is trained; {len(pieces)} pieces of at most {size} in {work / SHARDS}"))
    return out


def split(folder: Path, shards: Path) -> list[Path]:
    """Pack a folder into numbered pieces of at most `SHARD` bytes; return them."""
    shutil.rmtree(shards, ignore_errors=True)
    shards.mkdir(parents=True)
    whole = shards / "whole.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    pieces: list[Path] = []
    with whole.open("rb") as stream:
        while part := stream.read(SHARD):
            pieces.append(shards / f"pocket-{len(pieces):02d}.part")
            pieces[-1].write_bytes(part)
    whole.unlink()
    return pieces


def join(shards: Path, folder: Path) -> Path:
    """Put the pieces of `split` together again; return the folder.

    Raises:
        ModelError: if pieces are missing or damaged.
    """
    pieces = sorted(shards.glob("pocket-*.part"))
    whole = shards / "whole.zip"
    try:
        whole.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
        with zipfile.ZipFile(whole) as archive:
            if damaged := archive.testzip():
                raise ModelError(f"{damaged} in {shards} is damaged.", "Copy the pieces once more.")
            shutil.rmtree(folder, ignore_errors=True)
            archive.extractall(folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(
            f"The {len(pieces)} pieces in {shards} are no whole model: {error}.", "Copy all pieces there."
        ) from None
    finally:
        whole.unlink(missing_ok=True)
    return folder
