"""Upscalers: networks from a file that enlarge a finished picture, tile by tile.

The ESRGAN family is read here; any other architecture by spandrel (an extra), whose weights are read here as well.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipelines.concepts.card import read_header
from pipelines.concepts.foreign_files import foreign
from pipelines.concepts.formats.pickles import read_pickle
from pipelines.concepts.lora_keys import parsed
from pipelines.enlarging.layouts import network_of
from pipelines.enlarging.second_pass import larger
from pipelines.enlarging.tiles import Tiles, tiles_over
from pipelines.errors import Cancelled, ModelError, RequestError
from pipelines.events import Note, OnEvent, StepDone
from pipelines.request.enlarge import ENDINGS, Enlarge

SIDE = 256
"""Most pixels along a side of a tile: an activation of 64 channels behind four times enlarging takes 256 MiB then."""
OVERLAP = 0.125
"""Least share of a tile that it has in common with the next."""
LIMIT = 2 << 30
"""Most bytes of a file."""
MOST = 16
"""Most times that a side may grow in one run."""
WITHIN = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Names under which files keep the weights beside other things; the averaged ones first."""
BEFORE = ("module.", "netG.")
"""Beginnings that all names of some files have."""

Apply = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Upscaler:
    """A network that enlarges pictures.

    Attributes:
        name: of its file.
        network: a module, or what spandrel gives; called with pictures (B, 3, h, w) in [0, 1].
        scale: times that a side grows; 1 for networks that clean pictures.
        digest: SHA-256 of the file.
    """

    name: str
    network: Any
    scale: int
    digest: str

    @classmethod
    def read(cls, path: Path) -> Upscaler:
        """Read an upscaler from a .safetensors file or a pickle, which is read as data and never run.

        Raises:
            RequestError: if there is no such file, or it has another ending.
            ModelError: if it is something else; with what it is.
            ConceptError: if it is a pickle that is not read.
        """
        Enlarge(upscaler=str(path)).require_file()
        if path.stat().st_size > LIMIT:
            raise ModelError(f"{path.name} has over {LIMIT >> 30} GiB, which no upscaler has.", "Check the file.")
        tensors = _tensors(path)
        network: Any = network_of(tensors)
        if network is None:
            network = _by_spandrel(path, tensors)
        if not 1 <= int(network.scale) <= MOST:
            raise ModelError(
                f"{path.name} enlarges {network.scale} times; {MOST} is the most.", "Give another upscaler."
            )
        return cls(path.name, network, int(network.scale), sha256(path.read_bytes()).hexdigest())

    def tiles(self, size: tuple[int, int], wanted: tuple[int, int]) -> list[Tiles]:
        """Return the tiles of each run of the network, until a picture is as large as wanted.

        Args:
            size: width and height in pixels.
            wanted: that the result is to have at least; a network of scale 1 runs once.
        """
        (width, height), runs = size, []
        while not runs or (self.scale > 1 and (width < wanted[0] or height < wanted[1])):
            runs.append(tiles_over((height, width), (min(height, SIDE), min(width, SIDE)), OVERLAP))
            width, height = width * self.scale, height * self.scale
        return runs

    def enlarged(
        self, pictures: Tensor, wanted: tuple[int, int], on_event: OnEvent, should_stop: Callable[[], bool]
    ) -> Tensor:
        """Return pictures (B, 3, H, W) in [-1, 1] at a width and height; a step is told for each tile.

        Raises:
            Cancelled: if it should stop.
        """
        runs = self.tiles((pictures.shape[-1], pictures.shape[-2]), wanted)
        steps, done = len(pictures) * sum(map(len, runs)), 0
        network = self.network.to(pictures.device)

        def tile(part: Tensor) -> Tensor:
            nonlocal done
            if should_stop():
                raise Cancelled(f"stopped after tile {done} of {steps}.")
            made = network(part).float()
            done += 1
            on_event(StepDone(done, steps))
            return made

        grown: list[Tensor] = []
        for one in pictures.float().split(1):
            shown = one / 2 + 0.5
            for run in runs:
                shown = run.joined(shown, tile, self.scale).clamp(0, 1)
            grown.append(larger(2 * shown - 1, wanted))
        return torch.cat(grown)


def opened(enlarge: Enlarge, on_event: OnEvent) -> tuple[Upscaler | None, Enlarge]:
    """Return the upscaler of a second pass, if it has one, and its settings with the digest of the file.

    Raises:
        RequestError: if the file has changed since a picture was made that is repeated.
        StudioError: as `Upscaler.read`.
    """
    if enlarge.upscaler is None:
        return None, enlarge
    upscaler = Upscaler.read(Path(enlarge.upscaler))
    if enlarge.digests not in ((), (upscaler.digest,)):
        raise RequestError(
            f"{enlarge.upscaler} has changed since this was made.",
            f"It cannot be repeated exactly; give --enlarge-upscaler {enlarge.upscaler} to use it nonetheless.",
        )
    if not enlarge.acts:
        on_event(Note(f"{upscaler.name} has nothing to do: the pictures are to be enlarged 1 time."))
        return None, enlarge
    return upscaler, enlarge.model_copy(update={"digests": (upscaler.digest,)})


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the weights in a file under their own names."""
    if path.suffix == ".safetensors":
        read_header(path)  # says in words what is wrong with it
        try:
            held: Any = load_file(path)
        except SafetensorError as error:
            raise ModelError(f"{path.name} is damaged: {error}.", "Fetch it again.") from None
    else:
        held = read_pickle(path, LIMIT)
    for name in WITHIN:
        if isinstance(held, dict) and isinstance(held.get(name), dict):
            held = held[name]
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise ModelError(f"{path.name} holds no weights.", f"Give the file of an upscaler, which ends in {ENDINGS}.")
    tensors = {name: one for name, one in held.items() if isinstance(one, Tensor)}
    for start in BEFORE:
        if tensors and all(name.startswith(start) for name in tensors):
            tensors = {name.removeprefix(start): one for name, one in tensors.items()}
    # Many names may share one tensor: what is made of a file is not larger than the file.
    size, needed = path.stat().st_size, sum(one.numel() * one.element_size() for one in tensors.values())
    if needed > size:
        raise ModelError(
            f"{path.name} has {size >> 10:,} KiB, and its tensors together {needed >> 10:,} KiB.", "Check the file."
        )
    return tensors


def _by_spandrel(path: Path, tensors: dict[str, Tensor]) -> Any:
    """Return a network of another architecture.

    Raises:
        ModelError: if spandrel is not there, or does not know it either.
    """
    what = _kind(path, tensors)
    try:
        spandrel: Any = importlib.import_module("spandrel")
    except (ImportError, OSError, RuntimeError):  # it, or the torchvision it wants
        if what is not None:
            raise ModelError(f"{path.name} is {what[0]}, and no upscaler.", what[1]) from None
        raise ModelError(
            f"{path.name} is an upscaler of another kind than ESRGAN, or none at all.",
            "Install the extra that reads others: pip install 'promptstudio[upscalers]'.",
        ) from None
    try:
        found = spandrel.ModelLoader(device="cpu").load_from_state_dict(tensors)
    except Exception:  # it raises whatever it meets
        kind = what[0] if what else "of an unknown kind"
        raise ModelError(f"{path.name} is {kind}, and no upscaler.", what[1] if what else "Check the file.") from None
    if (getattr(found, "input_channels", 0), getattr(found, "output_channels", 0)) != (3, 3):
        raise ModelError(f"{path.name} is a network, and enlarges no pictures in colour.", "Give another upscaler.")
    return found.eval()


def _kind(path: Path, tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return what a file is that is no upscaler, and what to do with it; None if that is not seen."""
    if any(parsed(name) for name in tensors):
        return "a change of weights (LoRA)", "Use it as a concept: --concept FILE."
    said = read_header(path).get("__metadata__", {}) if path.suffix == ".safetensors" else {}
    if found := foreign(tensors, said, False):
        return found
    if tensors and not any("." in name for name in tensors):
        return "an embedding", "Use it as a concept: --concept FILE."
    return None
