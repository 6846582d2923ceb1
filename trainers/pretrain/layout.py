"""Stage 3: the text encoder learns what a caption says about places, before any picture is drawn from it.

Contrast with pictures teaches it names and colours, but not which of two things is on the left: among the captions of
a batch the same pair told the other way round hardly ever occurs, so order is never asked for, and a generator on top
ignores it for hours. Here a small reader with one query for each cell of a grid looks at the states of the caption (as
the cross-attention of the UNet will) and says which thing is there. No picture is needed, so it takes minutes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from trainers.initial_weights import initial_weights
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.loop import Losses, optimise
from trainers.loop.schedule import Schedule, warm_stable_decay
from trainers.pretrain.judge import START
from trainers.pretrain.parts import WIDTH, text_config
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import NAMES, UNIT, Scene, scenes

GRID = 8
"""Cells along a side: the finest grid at which the UNet reads the caption."""
TEXT = "text.pt"  # the text encoder after this stage


class LayoutReader(nn.Module):
    """A classifier of caption states (B, T, width): the name in each cell, logits (B, GRID * GRID, names + 1).

    Index 0 is the background, index n + 1 is `NAMES[n]`.
    """

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.cells = nn.Parameter(torch.empty(GRID * GRID, width).normal_(std=0.1))
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.names = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, len(NAMES) + 1))

    def forward(self, states: Tensor) -> Tensor:
        """Return the logits of each cell."""
        cells = self.cells[None].expand(len(states), -1, -1)
        read, _ = self.attention(cells, states, states, need_weights=False)
        return self.names(self.norm(cells + read))


def layout_of(item: Scene) -> Tensor:
    """Return the thing in each cell of the scene, int64 (GRID, GRID) of the reader's indices."""
    cells = torch.zeros(GRID, GRID, dtype=torch.int64)
    for thing in item.stickers:
        left, top, right, bottom = (
            round(edge * GRID / UNIT)
            for edge in (thing.left, thing.top, thing.left + thing.side, thing.top + thing.side)
        )
        cells[top:bottom, left:right] = NAMES.index(thing.name) + 1
    return cells


def begin_text(work: Path, go_on_from: Path | None) -> CLIPTextModel:
    """Return the text encoder this stage starts from: a finished model's, or the judge's text tower."""
    if go_on_from is not None:
        model: CLIPTextModel = CLIPTextModel.from_pretrained(go_on_from / "text_encoder")
        return model.float()
    if not (work / START).exists():
        raise ModelError(f"There is no {START} in {work}.", "Run python -m trainers.pretrain judge, or --go-on-from.")
    model = CLIPTextModel(text_config(build_tokenizer()))
    tower: dict[str, Tensor] = torch.load(work / START, weights_only=True)
    prefix = "text_model."
    model.load_state_dict({k.removeprefix(prefix): v for k, v in tower.items() if k.startswith(prefix)})
    return model


def order_right(text: CLIPTextModel, reader: LayoutReader, listed: list[Scene]) -> float:
    """Return the share of things in scenes of two for which the reader prefers the right name at its place.

    0.5 is chance: a caption read without regard to order.
    """
    device = reader.cells.device
    ids = build_tokenizer()([item.caption for item in listed], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        logits = reader(text(ids.to(device)).last_hidden_state).unflatten(1, (GRID, GRID)).cpu()
    right: list[bool] = []
    for item, seen in zip(listed, logits, strict=True):
        for here, other in (item.stickers[:2], item.stickers[1::-1]):
            row, column = ((start + here.side / 2) * GRID / UNIT for start in (here.top, here.left))
            cell = seen[int(row), int(column)]
            right.append(bool(cell[NAMES.index(here.name) + 1] > cell[NAMES.index(other.name) + 1]))
    return sum(right) / len(right)


def train_text(
    work: Path,
    *,
    steps: int,
    device: str,
    on_event: OnEvent,
    batch: int = 128,
    captions: int = 65536,
    rate: float = 1e-3,
    go_on_from: Path | None = None,
) -> CLIPTextModel:
    """Train the text encoder on layouts; the result is kept in `work` for the generator, the reader is discarded."""
    with initial_weights(6):
        text, reader = begin_text(work, go_on_from).to(device), LayoutReader().to(device)  # pyright: ignore
    optimizer = torch.optim.AdamW(
        [{"params": list(reader.parameters()), "lr": 1.5 * rate}, {"params": list(text.parameters()), "lr": rate}],
        rate,
        fused=True,
    )

    def restore(kept: dict[str, dict[str, Tensor]]) -> None:
        text.load_state_dict(kept["text"])
        reader.load_state_dict(kept["reader"])
        optimizer.load_state_dict(kept["optimizer"])

    def state() -> dict[str, dict[str, Tensor]]:
        return {"text": text.state_dict(), "reader": reader.state_dict(), "optimizer": optimizer.state_dict()}

    optimise(
        _reading(text, reader, scenes(captions, 41), batch),
        [optimizer],
        Schedule(steps, seed=7, clip=1.0, report=50),
        rate=warm_stable_decay,
        checkpoint=Checkpoint(work / "layout.state", 200, state, restore),
        on_event=on_event,
    )
    share = order_right(text, reader, scenes(512, 42, kind="relation"))
    on_event(Note(f"order of two things read right: {share:.3f} (chance 0.5)"))
    with whole_file(work / TEXT) as path:
        torch.save({key: value.cpu() for key, value in text.state_dict().items()}, path)
    return text


def _reading(text: CLIPTextModel, reader: LayoutReader, listed: list[Scene], batch: int) -> Losses:
    """Return the loss of a batch of captions: cross-entropy of the thing in each cell."""
    device = reader.cells.device
    ids = build_tokenizer()(
        [item.caption for item in listed], padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids.to(device)
    truth = torch.stack([layout_of(item) for item in listed]).flatten(1).to(device)

    def losses(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        which = torch.randint(len(listed), (batch,), generator=generator).to(device)
        logits = reader(text(ids[which]).last_hidden_state)
        return {"layout": F.cross_entropy(logits.flatten(0, 1), truth[which].flatten())}

    return losses
