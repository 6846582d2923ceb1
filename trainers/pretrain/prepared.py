"""One run that trains all of `pocket`, or trains it further, in a given time.

    python -m trainers.pretrain all --device cuda --minutes 9

First the autoencoder, then base and text encoder, then, beside each other in processes of their own, gated layers,
9-channel UNet and a decoder for what the base draws. What `--work` holds already is not made again: a `vae`, a `judge`,
a `text.pt`, or what an earlier run had finished. With `--go-on-from` autoencoder, judge and text encoder are those of a
finished model and its UNets go on. The run keeps states, ends in time, and leaves the model in `work/prepared` and, for
carrying it away, in pieces of at most 16 MB in `work/shards`. `python -m trainers.pretrain join` puts the pieces
together again, and `pack --packed` scores the model and puts it in place if it is better.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.models.inpainting_unet import FOLDER
from trainers.pretrain.card import TRAINING, note_training
from trainers.pretrain.grounding import ADAPTER, pack_grounding
from trainers.pretrain.inpainting import put_in_place
from trainers.pretrain.stages import judge_stage, text_stage, unet_stage, vae_stage, write_model

SHARES = {"vae": 0.15, "unet": 0.5, "together": 0.35}
"""Share of the minutes of each training in turn."""
SPARE = 0.6
"""Minutes of the last trainings kept for loading, composing and writing."""
TOGETHER = {"grounding": 0.5, "inpainting": 1.0, "decoder": 0.4}
"""Parts trained at the same time when the base is done, independent of each other: shares of time."""
ON_GPU: dict[str, dict[str, object]] = {
    "unet": {
        "batch": 512,
        "pictures": 196_608,
        "unet_rate": 2e-3,
        "decay": 0.5,
        "unet_steps": 1_000_000,
        "keep_every": 4000,
    },
    "grounding": {"batch": 512, "pictures": 65_536, "grounding_steps": 1_000_000, "keep_every": 2000},
    "inpainting": {"batch": 192, "show": 8, "keep_every": 1500},
    "decoder": {"redrawn": 16_384, "decoder_steps": 1_000_000},
}
"""Settings of the stages on a GPU, where what the command line says is meant for a CPU."""
SHARD = 16_000_000
"""Bytes of a piece."""
FOLDER_OUT, SHARDS = "prepared", "shards"


def prepared_run(arguments: argparse.Namespace, events: Callable[[str, Path], OnEvent]) -> Path:
    """Train all parts within `arguments.minutes` and return the model's folder.

    Args:
        arguments: of the command line.
        events: gives the receiver of a stage's progress, from its name and the path of its log.
    """
    ends = time.monotonic() + 60 * arguments.minutes
    work: Path = arguments.work
    out, base = work / FOLDER_OUT, arguments.go_on_from

    def run(stage: str) -> argparse.Namespace:
        """Return the arguments of a stage; its minutes are its share of the rest."""
        left, rest = max(0.02, (ends - time.monotonic()) / 60), list(SHARES)[list(SHARES).index(stage) :]
        own: dict[str, object] = {"minutes": left * SHARES[stage] / sum(SHARES[one] for one in rest)}
        if arguments.device.startswith("cuda"):
            own |= ON_GPU.get(stage, {})
        return argparse.Namespace(**(vars(arguments) | own))

    def told(stage: str) -> OnEvent:
        return events(stage, work / "log.jsonl")

    work.mkdir(parents=True, exist_ok=True)
    if base is None:
        vae_stage(run("vae"), told("vae"))
        judge_stage(arguments, told("judge"))
        text_stage(arguments, told("text"))
    if not (work / "generator.pt").exists():
        unet_stage(run("unet"), told("unet"))
    if not (out / "model_index.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        write_model(arguments, out)
    _together(arguments, work, out, (ends - time.monotonic()) / 60, told("all"))
    if (work / "grounding" / ADAPTER).exists():
        pack_grounding(work / "grounding" / ADAPTER, out)
    if (work / "inpainting" / FOLDER).exists():
        put_in_place(work / "inpainting", out)
    _take_decoder(work / "decoder" / FOLDER_OUT, out)
    pieces = split(out, work / SHARDS)
    size = f"{SHARD / 1e6:.0f} MB"
    told("all")(Note(f"{out} is trained; {len(pieces)} pieces of at most {size} in {work / SHARDS}"))
    return out


def _together(arguments: argparse.Namespace, work: Path, out: Path, minutes: float, on_event: OnEvent) -> None:
    """Train `TOGETHER` on the finished base, each in a process and a folder of its own, and wait for all.

    One that fails is said and leaves what the base had: the others are worth having without it.
    """
    each = max(0.02, minutes - SPARE)
    processes: dict[str, subprocess.Popen[bytes]] = {}
    for stage in TOGETHER:
        (work / stage).mkdir(exist_ok=True)
        if not (work / stage / "done").exists():
            flags = _flags(arguments, stage, work / stage, out, each)
            processes[stage] = subprocess.Popen([sys.executable, "-m", "trainers.pretrain", stage, *flags])
    ends = time.monotonic() + 60 * (each + 2 * SPARE)
    for stage, process in processes.items():
        try:
            code = process.wait(timeout=max(1.0, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait(timeout=30)
        if code:
            on_event(Note(f"{stage} was not trained: its process ended with {code}"))
        else:
            (work / stage / "done").touch()


def _flags(arguments: argparse.Namespace, stage: str, folder: Path, out: Path, minutes: float) -> list[str]:
    """Return the command line of one of `TOGETHER`."""
    names = ("device", "size", "batch", "pictures", "scenes", "grounding_steps", "decoder_steps", "redrawn", "show")
    own: dict[str, object] = {name: getattr(arguments, name) for name in names}
    own |= {"work": folder, "out": out, "minutes": minutes * TOGETHER[stage]}
    if arguments.device.startswith("cuda"):
        own |= ON_GPU[stage]
    if stage == "decoder":
        if not (folder / FOLDER_OUT).exists():
            shutil.copytree(out, folder / FOLDER_OUT)
        own["out"] = folder / FOLDER_OUT
    if stage == "inpainting":
        own["go_on_from"] = out
        if arguments.go_on_from is not None and (arguments.go_on_from / FOLDER).exists():
            own["inpainting_from"] = arguments.go_on_from / FOLDER
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in own.items()]
    goes_on = stage == "grounding" and arguments.go_on_from is not None
    return [*flags, "--grounding-goes-on"] if goes_on else flags


def _take_decoder(trained: Path, out: Path) -> None:
    """Take the autoencoder and its card entry from a copy of the model in which the decoder was trained."""
    kept = trained / TRAINING
    if not kept.exists() or "decoder" not in (told := json.loads(kept.read_text(encoding="utf-8"))):
        return
    shutil.rmtree(out / "vae")
    shutil.copytree(trained / "vae", out / "vae")
    facts = json.loads((out / TRAINING).read_text(encoding="utf-8"))
    note_training(out, facts | {"decoder": told["decoder"]})


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
