"""A 9-channel UNet from a person's pictures or pairs: the work of `studio train inpainting` and `incontext`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipelines.concepts.model_export import export_model
from pipelines.errors import ConfigError, DataError, ModelError
from pipelines.events import Note, OnEvent, ignore
from pipelines.files import require_room
from pipelines.models.components import Components
from pipelines.models.fingerprint import is_gated
from pipelines.models.inpainting_unet import FOLDER, has_inpainting_unet, inpainting_components
from pipelines.pictures.grids import Grid
from pipelines.pictures.tensors import fit, to_tensor
from pipelines.words import file_stem
from trainers.base_models.inpainting_unet import MaskedBatch, Plan, Source, save_unet, train_unet, widened
from trainers.base_models.random_masks import random_masks
from trainers.base_models.settings import InContextConfig, InpaintingConfig, InpaintingUNetConfig, ModelDestination
from trainers.data.batches import digest
from trainers.data.folders import Example
from trainers.data.picture_pairs import PicturePair, holds_pairs, read_pairs
from trainers.loop.ema import EMA
from trainers.losses import Captions, uncropped

RECIPES = {"pocket": (1e-3, "muon")}
"""Learning rate and optimizer by family."""

OTHERS = (1e-5, "adamw")


# -- batches ----------------------------------------------------------------------------------------------------


def _bytes(pictures: Sequence[Any]) -> Tensor:
    """Return pictures of one size as (N, 3, H, W) uint8."""
    return torch.stack([((to_tensor(one) + 1) * 127.5).round().to(torch.uint8) for one in pictures])


def _floats(pictures: Tensor) -> Tensor:
    return pictures.float() / 127.5 - 1


def picture_source(components: Components, examples: Sequence[Example], config: InpaintingConfig) -> Source:
    """Return a source of pictures with random masks; of those with masks of their own, some are these.

    Raises:
        DataError: if there is no picture.
        ConfigError: if the base cannot paint that size.
    """
    if not examples:
        raise DataError("There is no picture to learn from.", "Give at least one.")
    side = _side(components, config.resolution)
    kept = _bytes([fit(one.picture, side, side) for one in examples]).to(components.device)
    white = [
        torch.ones(3, side, side) if one.mask is None else to_tensor(fit(one.mask, side, side)) for one in examples
    ]
    there = torch.tensor([one.mask is not None for one in examples], device=components.device)
    things = (torch.stack(white)[:, :1] > 0).to(components.device) & there[:, None, None, None]
    conditioning = Captions(components, frozen=True)

    def source(index: int, generator: torch.Generator) -> MaskedBatch:
        which = torch.randint(len(kept), (config.batch,), generator=generator, device=generator.device)
        coins = torch.rand(3, config.batch, generator=generator, device=generator.device)
        pictures, shown = _floats(kept[which]), things[which]
        mirrored = (coins[0] < config.flip)[:, None, None, None]
        pictures = torch.where(mirrored, pictures.flip(-1), pictures)
        masks = random_masks(config.batch, (side, side), generator, torch.where(mirrored, shown.flip(-1), shown))
        captions = [
            "" if coin < config.empty or not examples[i].captions else _chosen(examples[i].captions, pick)
            for i, coin, pick in zip(which.tolist(), coins[1].tolist(), coins[2].tolist(), strict=True)
        ]
        return MaskedBatch(
            pictures, masks, conditioning(captions, uncropped(len(captions), (side, side)), (side, side))
        )

    return source


def _chosen(captions: Sequence[str], pick: float) -> str:
    return captions[int(pick * len(captions))]


def read_tasks(folder: Path, fewest: int = 2, skip: bool = False) -> dict[str, list[PicturePair]]:
    """Read the pairs of a folder as one task, or of its subfolders as one task each; `skip` as for `read_pairs`.

    Raises:
        DataError: as `read_pairs`, or if a task has fewer pairs than a visual prompt needs.
    """
    inside = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    several = [] if holds_pairs(folder) else [path for path in inside if holds_pairs(path)]
    tasks = {path.name: read_pairs(path, skip) for path in several or [folder]}
    for name, pairs in tasks.items():
        if len(pairs) < fewest:
            raise DataError(f"{name} holds {len(pairs)} pairs; at least {fewest} are needed.", "Add some pairs.")
    return tasks


def pair_source(components: Components, tasks: Mapping[str, Sequence[PicturePair]], config: InContextConfig) -> Source:
    """Return a source of visual prompts: examples and a query of one task, in changing layouts.

    Raises:
        ConfigError: if the base cannot paint that size.
    """
    side = _side(components, config.cell)
    kept = [
        torch.stack([_bytes([one.resize((side, side)) for one in (pair.before, pair.after)]) for pair in pairs]).to(
            components.device
        )
        for pairs in tasks.values()
    ]
    most = min(config.examples, min(map(len, kept)) - 1)
    conditioning = Captions(components, frozen=True)

    def source(index: int, generator: torch.Generator) -> MaskedBatch:
        grid = _grid(index, most)
        coins = torch.rand(3, config.batch, generator=generator, device=generator.device)
        chosen: list[Tensor] = []
        for place in (coins[0] * len(kept)).long().tolist():
            order = torch.randperm(len(kept[place]), generator=generator, device=generator.device)
            chosen.append(kept[place][order[: grid.pairs]])
        cells = _floats(torch.stack(chosen))
        blank = (coins[1] < config.blank)[:, None, None, None, None, None]
        cells[:, :-1] = torch.where(blank, 0.0, cells[:, :-1])
        hints = [config.hint if coin < config.hinted else "" for coin in coins[2].tolist()]
        canvas = grid.compose(cells)
        size = (canvas.shape[-2], canvas.shape[-1])
        return MaskedBatch(
            canvas, grid.mask(side, side).to(canvas), conditioning(hints, uncropped(config.batch, size), size)
        )

    return source


def _grid(index: int, most: int) -> Grid:
    """Return the layout of a step: half of them plain, the others swapped, reversed or with several examples."""
    turn = index % 4
    if turn == 3 and most > 1:
        return Grid(2 + index // 4 % (most - 1))
    return Grid(swapped=turn == 1 and index % 8 == 1, reversed=turn == 1 and index % 8 == 5)


def _side(components: Components, asked: int | None) -> int:
    side, step = asked or components.defaults.size, components.multiple
    if side % step:
        raise ConfigError(f"A side of {side} pixels is no multiple of {step}.", f"Give {side // step * step or step}.")
    return side


# -- the training -----------------------------------------------------------------------------------------------


def start_from(components: Components, start: Path | None) -> UNet2DConditionModel:
    """Return the UNet that training starts from: one given, the one beside the base, or the base widened; float32.

    Raises:
        ModelError: if what is given is none for this base, or the base has 9 channels itself.
    """
    if has_inpainting_unet(components):
        raise ModelError(
            f"{components.name} is an inpainting model already.", "Give the 4-channel base, and this one with --start."
        )
    unet = widened(components.unet)
    try:
        found = inpainting_components(components, start).unet
    except ModelError:
        if start is not None:
            raise
        return unet
    unet.load_state_dict({name: tensor for name, tensor in found.state_dict().items() if not is_gated(name)})
    return unet


def model_folder(where: ModelDestination) -> Path:
    """Return the folder for the new model.

    Raises:
        ConfigError: if something is there.
    """
    name = file_stem(Path(where.base).stem) or "base"
    folder = where.output or Path("outputs/models") / f"{name}-inpainting"
    if folder.exists():
        raise ConfigError(f"{folder} is there already.", "Choose another --output.")
    return folder


def teach_unet(
    components: Components,
    source: Source,
    config: InpaintingUNetConfig,
    where: ModelDestination,
    data: str,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Train and write the base with its new UNet as a model folder, complete or absent; return the folder.

    What was interrupted goes on where it stopped.

    Args:
        components: the base, in float32.
        source: the batches.
        config: duration and speed.
        where: the new model folder and what to start from.
        data: digest of what is learned from; a training goes on only from the same.
        on_event: receives reports.
        should_stop: asked once a step.

    Raises:
        Cancelled: if `should_stop` said so; the state is kept.
        ConfigError: if the folder is there, the disk is full, or the settings are not those the run was begun with.
    """
    folder, (rate, kind) = model_folder(where), RECIPES.get(components.family.name, OTHERS)
    rate, kind = config.learning_rate or rate, kind if config.optimizer == "auto" else config.optimizer
    unet = start_from(components, where.start)
    weights = sum(parameter.numel() for parameter in unet.parameters())
    require_room(folder.parent, weights * 4 * 16)  # states with two moments and an average, and the model
    told = config.model_dump(mode="json", exclude={"steps", "minutes", "images", "pairs"})
    about = {**told, "learning_rate": rate, "optimizer": kind, "data": data, "base": components.fingerprint()}
    state = folder.with_name(f".{folder.name}.state")
    plan = Plan(
        config.steps, config.minutes, rate, kind == "muon", config.ema, config.seed, where.keep_every, 10, about
    )
    average = train_unet(components, unet, {"denoise": source}, state, plan, on_event=on_event, should_stop=should_stop)
    on_event(Note(f"writing {folder}"))
    _write(components, unet, average, folder, about, where.half)
    shutil.rmtree(state, ignore_errors=True)
    return folder


def _write(
    components: Components,
    unet: UNet2DConditionModel,
    average: EMA,
    folder: Path,
    about: Mapping[str, Any],
    half: bool,
) -> None:
    """Write the base with the UNet beside its own as a model folder that is complete or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        export_model(components, [], temporary / "model", half=half)
        save_unet(unet, average, temporary / "model" / FOLDER, torch.float16 if half else torch.float32)
        (temporary / "model" / FOLDER / "training.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
        (temporary / "model").rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def digest_of_pairs(tasks: Mapping[str, Sequence[PicturePair]]) -> str:
    """Return 16 hex digits that identify the data of visual prompts."""
    both = [Example(f"{pair.name}{k}", one) for pairs in tasks.values() for pair in pairs for k, one in
            enumerate((pair.before, pair.after))]  # fmt: skip
    return digest(both)
