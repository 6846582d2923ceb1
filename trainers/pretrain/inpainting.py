"""The last stage: a 9-channel UNet from the finished generator, for inpainting and for visual prompts."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from torch import Tensor

from pipelines.conditions.grid import Canvases
from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent, Preview
from pipelines.files import replace_folder, whole_file
from pipelines.generation import generate
from pipelines.incontext import paint
from pipelines.models.components import Components
from pipelines.models.inpainting_unet import FOLDER
from pipelines.models.loading import load
from pipelines.pictures.grids import Grid
from pipelines.pictures.sheet import Sheet
from pipelines.pictures.tensors import to_pictures
from pipelines.request.request import Guidance, Request
from trainers.base_models.inpainting import InpaintingConfig, InpaintingUNet, UNetState
from trainers.base_models.inpainting_unet import MaskedBatch, Source, on_device, widened
from trainers.base_models.model_folder import save_unet
from trainers.base_models.random_masks import random_masks
from trainers.data.folders import Example
from trainers.loop.checkpoints import read, states
from trainers.loop.train import train
from trainers.method import Draw, Trainable
from trainers.pretrain.card import TRAINING, device_name, note_training
from trainers.pretrain.stages import minutes_in
from trainers.run import run_of
from trainers.settings import DataConfig, TrainConfig
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
        texts: captions of the pool "any".
        captions: their states (N, T, D).
        empty: states (T, D) of no caption.
        words: states (T, D) of the words of each task.
    """

    pools: Mapping[str, Pool]
    texts: Sequence[str]
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
        captions,
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


def preview(components: Components, made: World, count: int, path: Path, steps: int = 20) -> dict[str, float]:
    """Draw a sheet of inpainted pictures and of answers; return the mean error (0 to 2) of the answers to each task.

    Args:
        components: with the UNet to look at.
        made: unseen scenes.
        count: visual prompts of each task.
        path: file of the sheet.
        steps: of denoising.
    """
    generator = torch.Generator(components.device).manual_seed(1)
    sheet, figures = Sheet(cell=64, label=150), {}
    material = made.pools["any"].take(torch.arange(8, device=components.device))
    masks = random_masks(8, (material.size, material.size), generator, material.masks)
    asked = Request(prompt="", steps=steps, guidance=Guidance(scale=1))
    canvases = zip(material.pictures.cpu().split(1), masks.cpu().split(1), made.texts, strict=False)
    results = [
        generate(components, asked.model_copy(update={"prompt": text}), conditions=(Canvases(picture, mask),))
        for picture, mask, text in canvases
    ]
    sheet.row("pictures", to_pictures(material.pictures))
    sheet.row("with holes", to_pictures(material.pictures * (masks < 0.5)))
    sheet.row("painted", [one.pictures[0] for one in results])
    for name in TASKS:
        cells = task_cells(made, name, (count, 2), generator).cpu()
        answers = paint(components, cells, asked.resolved(components.defaults)).answers
        figures[name] = float((answers - cells[:, -1, 1]).abs().mean())
        for k in range(min(2, count)):
            example, query = cells[k]
            row = [example[0], example[1], query[0], answers[k], query[1]]
            label = f"{name} {figures[name]:.3f}\nexample, query, answer, truth" if k == 0 else ""
            sheet.row(label, to_pictures(torch.stack(row)))
    sheet.save(path)
    return figures


# -- the stage --------------------------------------------------------------------------------------------------


class ComposedInpainting(InpaintingUNet):
    """A UNet of 9 channels, from single pictures and visual prompts that are composed on the device.

    Args:
        made: what is learned from.
        keep: called with the base with the UNet, its weights and the steps done, where previews are due.
    """

    name = "inpainting"
    Settings = InpaintingConfig
    offers = ()

    def __init__(self, made: World, keep: Callable[[Components, int], Preview]) -> None:
        self.made, self.keep = made, keep

    def examine(self, examples: Sequence[Example]) -> None:
        """Take the pictures that are there."""

    def source(self, state: UNetState, examples: Sequence[Example], train: TrainConfig, data: DataConfig) -> Source:
        """Return the single pictures, half as many as visual prompts."""
        return plain_source(self.made, max(1, train.batch // 2))

    def begun(self, components: Components, config: InpaintingConfig) -> UNet2DConditionModel:
        """Return the base's UNet widened, or the one given."""
        unet = widened(components.unet)
        if config.start is not None:
            unet.load_state_dict(_stored(config.start))
        return unet

    @contextmanager
    def prepare(
        self, components: Components, config: InpaintingConfig, generator: torch.Generator
    ) -> Iterator[Trainable]:
        """Give the base a new UNet inside the `with`, that learns from both kinds of pictures."""

        def batches(
            examples: Sequence[Example], train: TrainConfig, data: DataConfig, over: Callable[[], float]
        ) -> Draw:
            sources = {
                "plain": plain_source(self.made, max(1, train.batch // 2)),
                "grid": grid_source(self.made, train.batch),
            }

            @torch.no_grad()
            def draw(index: int, generator: torch.Generator) -> dict[str, MaskedBatch]:
                own = on_device(generator, components.device)
                return {name: source(index, own) for name, source in sources.items()}

            return draw

        with super().prepare(components, config, generator) as trainable:
            yield replace(trainable, batches=batches, preview=lambda step: self.keep(trainable.components, step))

    def losses(
        self, trainable: Trainable, batch: Mapping[str, MaskedBatch], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return the loss of each kind of pictures."""
        own = on_device(generator, trainable.components.device)
        return {name: trainable.state.loss(one, own) for name, one in batch.items()}


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
    facts: dict[str, Any] = {
        "device": device_name(device),
        "batch": arguments.batch,
        "scenes": arguments.scenes,
        "tasks": list(TRAINED_TASKS),
    }

    def spent() -> float:
        return minutes_in(work / "log.jsonl", "inpainting") if (work / "log.jsonl").exists() else 0.0

    def keep(taught: Components, done: int) -> Preview:
        save_unet(components.unet, taught.unet.state_dict(), work / f".{FOLDER}.part", torch.float16)
        replace_folder(work / f".{FOLDER}.part", work / FOLDER)
        figures = preview(taught, looked, arguments.show, work / "inpainting.png")
        said = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
        on_event(Note(f"after step {done}, mean error on unseen stickers: {said}"))
        with whole_file(work / RECORD) as path:
            record = facts | {"steps": done, "minutes": round(spent(), 1), "errors": figures}
            path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        with Image.open(work / "inpainting.png") as sheet:
            return Preview(done, sheet.convert("RGB"), said)

    asked = {"steps": arguments.inpainting_steps, "minutes": arguments.minutes, "learning_rate": arguments.rate}
    asked |= {"batch": arguments.batch, "preview_every": arguments.keep_every, "start": arguments.inpainting_from}
    asked |= {"seed": 11}
    run = run_of(ComposedInpainting(made, keep), asked).with_recipe("pocket")
    state = work / "inpainting.state"
    learned = train(components, run, (), keep=state, keep_every=arguments.keep_every, on_event=on_event)
    with learned.attach(components) as taught:
        keep(taught, int(read(states(state)[0])[0]["step"]))
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
