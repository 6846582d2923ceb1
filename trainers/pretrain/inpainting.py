"""The last stage: a 9-channel UNet from the finished generator, for inpainting and for visual prompts."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import replace_folder, whole_file
from pipelines.models.components import Components
from pipelines.models.inpainting_unet import FOLDER
from pipelines.models.loading import load
from pipelines.pictures.grids import Grid
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_pictures
from trainers.base_models.inpainting_unet import MaskedBatch, Plan, Source, painted, save_unet, train_unet, widened
from trainers.base_models.random_masks import random_masks
from trainers.loop.ema import EMA
from trainers.pretrain.card import TRAINING, device_name, note_training
from trainers.pretrain.stages import minutes_in
from trainers.stickers.tasks import TASKS, TRAINED_TASKS, Drawings, Pool, pairs, pools, scenes_for
from trainers.stickers.world import HELD_OUT, NAMES, UNIT

RECORD = "inpainting.json"
"""Record of the training of the UNet in the same folder."""

EMPTY = 0.1
"""Share of captions left empty in plain inpainting."""

HINTED = 0.3
"""Share of visual prompts with the task in words as well."""

BLANK = 0.08
"""Share of visual prompts whose examples are left blank, so that an example can guide."""

GRIDS = (
    Grid(),
    Grid(),
    Grid(swapped=True),
    Grid(),
    Grid(2),
    Grid(),
    Grid(reversed=True),
    Grid(),
)
"""Arrangements in turn; all grids of one step are alike."""


@dataclass(frozen=True)
class World:
    """The sources of batches, on the device.

    Attributes:
        pools: for each kind of scenes.
        captions: states (N, T, D) of the captions of the pool "any".
        empty: states (T, D) of no caption.
        words: states (T, D) of the words of each task.
    """

    pools: Mapping[str, Pool]
    captions: Tensor
    empty: Tensor
    words: Mapping[str, Tensor]


@torch.no_grad()
def states_of(components: Components, texts: list[str]) -> Tensor:
    """Return states (N, T, D) of texts by the base's text encoder."""
    tokenizer, encoder = components.tokenizers[0], components.text_encoders[0]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(encoder.device)
    return torch.cat([encoder(part).last_hidden_state.float() for part in ids.split(512)])


def world(components: Components, count: int, seed: int, drawings: Drawings, names: tuple[str, ...] = NAMES) -> World:
    """Return pools of `count` scenes of each kind, and the states of their captions."""
    captions = [item.caption for item in scenes_for("any", count, seed, names)]
    words = states_of(components, [task.words for task in TASKS.values()])
    return World(
        pools(count, seed, drawings, names),
        states_of(components, captions),
        states_of(components, [""])[0],
        dict(zip(TASKS, words, strict=True)),
    )


def _conditioning(states: Tensor) -> dict[str, Tensor]:
    return {"encoder_hidden_states": states}


def plain_source(made: World, batch: int) -> Source:
    """Return a source of single pictures with random masks; nine captions in ten are kept."""

    def source(index: int, generator: torch.Generator) -> MaskedBatch:
        pool, device = made.pools["any"], generator.device
        which = torch.randint(len(pool), (batch,), generator=generator, device=device)
        material = pool.take(which)
        masks = random_masks(batch, (material.size, material.size), generator, material.masks)
        kept = torch.rand(batch, 1, 1, generator=generator, device=device) >= EMPTY
        return MaskedBatch(material.pictures, masks, _conditioning(torch.where(kept, made.captions[which], made.empty)))

    return source


def grid_source(made: World, batch: int) -> Source:
    """Return a source of visual prompts of all trained tasks in equal shares."""

    def source(index: int, generator: torch.Generator) -> MaskedBatch:
        grid, device = GRIDS[index % len(GRIDS)], generator.device
        each = max(1, round(batch * 2 / grid.pairs / len(TRAINED_TASKS)))
        cells = torch.cat([task_cells(made, name, (each, grid.pairs), generator) for name in TRAINED_TASKS])
        blank = torch.rand(len(cells), 1, 1, 1, 1, 1, generator=generator, device=device) < BLANK
        cells[:, :-1] = torch.where(blank, 0.0, cells[:, :-1])
        words = torch.stack([made.words[name] for name in TRAINED_TASKS]).repeat_interleave(each, 0)
        hinted = torch.rand(len(cells), 1, 1, generator=generator, device=device) < HINTED
        side = cells.shape[-1]
        return MaskedBatch(
            grid.compose(cells), grid.mask(side, side).to(device), _conditioning(torch.where(hinted, words, made.empty))
        )

    return source


def task_cells(made: World, name: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return cells (grids, pairs, 2, 3, S, S) of a task on scenes drawn at random."""
    return pairs(TASKS[name], made.pools[TASKS[name].scenes].draw(shape, generator), generator)


# -- looking ----------------------------------------------------------------------------------------------------


def preview(
    unet: UNet2DConditionModel, components: Components, made: World, count: int, path: Path
) -> dict[str, float]:
    """Draw a sheet of inpainted pictures and of answers; return the mean error (0 to 2) of the answers to each task.

    Args:
        unet: the UNet to look at.
        components: the base.
        made: unseen scenes.
        count: visual prompts of each task.
        path: file of the sheet.
    """
    unet.eval()
    generator = torch.Generator(unet.device).manual_seed(1)
    sheet, figures = Sheet(cell=64, label=150), {}
    batch = plain_source(made, 8)(0, generator)
    result = painted(unet, components, batch, generator)
    for caption, shown in (
        ("pictures", batch.pictures),
        ("with holes", batch.pictures * (batch.masks < 0.5)),
        ("painted", result),
    ):
        sheet.row(caption, to_pictures(shown))
    grid = Grid()
    for name in TASKS:
        cells = task_cells(made, name, (count, 2), generator)
        mask = grid.mask(cells.shape[-1], cells.shape[-1]).to(unet.device)
        conditioning = _conditioning(made.empty.expand(count, -1, -1))
        answers = grid.crop(painted(unet, components, MaskedBatch(grid.compose(cells), mask, conditioning), generator))
        figures[name] = float((answers - cells[:, -1, 1]).abs().mean())
        for k in range(min(2, count)):
            example, query = cells[k]
            row = [example[0], example[1], query[0], answers[k], query[1]]
            label = f"{name} {figures[name]:.3f}\nexample, query, answer, truth" if k == 0 else ""
            sheet.row(label, to_pictures(torch.stack(row)))
    sheet.save(path)
    unet.train()
    return figures


# -- the stage --------------------------------------------------------------------------------------------------


def inpainting_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train the UNet into `work/unet_inpainting`, with a preview sheet on the way."""
    work, device = cast(Path, arguments.work), arguments.device
    if arguments.pack:
        on_event(Note(f"written to {put_in_place(work, arguments.out)}"))
        return
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    components = load(arguments.go_on_from or "pocket", device=device)
    drawings = Drawings.of(size=UNIT, device=device)
    made = world(components, arguments.scenes, 51, drawings)
    unseen = Drawings.of(tuple(HELD_OUT), UNIT, device)
    looked = world(components, max(64, arguments.show), 52, unseen, tuple(HELD_OUT))
    on_event(Note(f"{arguments.scenes} scenes of each kind are drawn"))
    unet = widened(components.unet)
    if arguments.inpainting_from is not None:
        unet.load_state_dict(_stored(arguments.inpainting_from))
    facts: dict[str, Any] = {
        "device": device_name(device),
        "batch": arguments.batch,
        "scenes": arguments.scenes,
        "tasks": list(TRAINED_TASKS),
    }

    def spent() -> float:
        return minutes_in(work / "log.jsonl", "inpainting") if (work / "log.jsonl").exists() else 0.0

    def keep(done: int, average: EMA) -> None:
        save_unet(unet, average, work / f".{FOLDER}.part")
        replace_folder(work / f".{FOLDER}.part", work / FOLDER)
        with average.shown():
            figures = preview(unet, components, looked, arguments.show, work / "inpainting.png")
        said = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
        on_event(Note(f"after step {done}, mean error on unseen stickers: {said}"))
        with whole_file(work / RECORD) as path:
            record = facts | {"steps": done, "minutes": round(spent(), 1), "errors": figures}
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def after(done: int, average: EMA) -> None:
        last[0] = done
        if done % arguments.keep_every == 0:
            keep(done, average)

    last = [0]
    average = train_unet(
        components,
        unet,
        {"plain": plain_source(made, max(1, arguments.batch // 2)), "grid": grid_source(made, arguments.batch)},
        work / "inpainting.state",
        Plan(arguments.inpainting_steps, arguments.minutes, arguments.rate, seed=11, keep_every=arguments.keep_every),
        after=after,
        on_event=on_event,
    )
    keep(last[0], average)
    on_event(Note(f"written to {work / FOLDER}; the same command with --pack puts it into {arguments.out}"))


def put_in_place(work: Path, out: Path) -> Path:
    """Put the trained UNet beside the parts of the model in `out`, and record it in its card.

    Raises:
        ModelError: if there is none in `work`.
    """
    record = work / RECORD
    if not record.exists():
        raise ModelError(f"There is no {RECORD} in {work}.", "Run python -m trainers.pretrain inpainting.")
    shutil.copytree(work / FOLDER, work / f".{FOLDER}.part")
    replace_folder(work / f".{FOLDER}.part", out / FOLDER)
    facts = json.loads((out / TRAINING).read_text(encoding="utf-8"))
    training = json.loads(record.read_text(encoding="utf-8"))
    note_training(out, facts | {"inpainting": training})
    return out / FOLDER


def _stored(folder: Path) -> dict[str, Tensor]:
    unet: UNet2DConditionModel = UNet2DConditionModel.from_pretrained(folder)
    return unet.float().state_dict()
