"""Stage 2: the judge, and with it the text tower from which the generator's text encoder starts.

It first sees only the generator's words. A snapshot of the text tower at that point starts the text encoder, so that
the generator knows nothing of the held-out names; then the judge goes on with all names, because it must recognise what
the generator has never seen.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.measures.judge import INPUT, Judge
from trainers.initial_weights import initial_weights
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.loop import optimise
from trainers.loop.schedule import Schedule, warm_stable_decay
from trainers.pretrain.parts import text_config
from trainers.pretrain.vocabulary import build_tokenizer
from trainers.stickers.world import ALL_NAMES, NAMES, RELATIONS, Scene, Stickers, article, scenes

POOL = 16384
START = "text_start.pt"  # the snapshot of the text tower


def _crops(images: Tensor, boxes: Tensor, generator: torch.Generator) -> Tensor:
    """Cut boxes (B, 4) out of pictures with a jittered margin, each resized to the judge's input."""
    centre, extent = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).amax(1)
    draw = torch.rand((len(boxes), 3), generator=generator).to(images.device)
    half = extent / 2 * (1.0 + 0.5 * draw[:, 0])
    centre = centre + (draw[:, 1:] - 0.5) * 0.15 * extent[:, None]
    axis = torch.linspace(-1, 1, INPUT, device=images.device)
    grid_y, grid_x = torch.meshgrid(axis, axis, indexing="ij")
    grid = torch.stack((grid_x, grid_y), -1)[None] * half[:, None, None, None] * 2
    grid = grid + (centre * 2 - 1)[:, None, None, :]
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _wear(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur or noise half of the pictures, as generated ones are."""
    small = F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True)
    blurred = F.interpolate(small, size=images.shape[-2:], mode="bilinear")
    pick = torch.rand((len(images), 2, 1, 1, 1), generator=generator).to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    images = torch.lerp(images, blurred, (pick[:, 0] * 2 - 1).clamp(0, 1))
    return images + 0.1 * noise * (pick[:, 1] * 2 - 1).clamp(0, 1)


class _Pool:
    """Pictures composed ahead, with their truth, for one set of names."""

    def __init__(self, names: tuple[str, ...], relations: tuple[str, ...], seed: int, size: int, device: str) -> None:
        self.names = names
        self.listed: list[Scene] = scenes(POOL, seed, names=names)
        for offset, relation in enumerate(relations):
            self.listed += scenes(POOL // 16, seed + 1 + offset, names=names, relation=relation)
        stickers = Stickers(size, device, names=names)
        parts = [stickers.render(self.listed[i : i + 256]) for i in range(0, len(self.listed), 256)]
        self.images = torch.cat([part.images for part in parts])
        self.boxes = torch.cat([part.boxes for part in parts])


def _losses(judge: Judge, pool: _Pool, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    device = pool.images.device
    which = torch.randint(len(pool.listed), (batch,), generator=generator).tolist()
    chosen = [pool.listed[i] for i in which]
    slot = [0 if len(s.stickers) == 1 or i % 2 else 1 for i, s in enumerate(chosen)]
    images = pool.images[which]
    crops = _crops(images, pool.boxes[which, slot], generator)
    seen = judge.embed_pictures(_wear(torch.cat((images, crops)), generator))
    captions = judge.embed_texts([s.caption for s in chosen])
    named = judge.embed_texts([article(name) for name in pool.names])
    scale = judge.log_scale.exp().clamp(max=100)
    logits = scale * seen[:batch] @ captions.T
    pairs = torch.arange(batch, device=device)
    truth = torch.tensor(
        [pool.names.index(s.stickers[k].name) for s, k in zip(chosen, slot, strict=True)], device=device
    )
    names = scale * seen[batch:] @ named.T
    return {
        "captions": (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2,
        "names": F.cross_entropy(names, truth),
    }


def train_judge(work: Path, *, steps: int, size: int, device: str, on_event: OnEvent, batch: int = 64) -> Judge:
    """Train in two phases (see above) and return the judge; the snapshot is kept in `work`."""
    tokenizer = build_tokenizer()
    with initial_weights(2):
        judge = Judge(tokenizer, text_config(tokenizer)).to(device)
    optimizer = torch.optim.AdamW(judge.parameters(), 1e-3, weight_decay=1e-2, fused=True)
    first = max(1, int(steps * 0.4))
    pools: dict[bool, _Pool] = {}

    def losses(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        everything = step >= first
        if everything not in pools:
            pools.clear()
            names, relations = (ALL_NAMES, ("inside", "on top of")) if everything else (NAMES, tuple(RELATIONS))
            pools[everything] = _Pool(names, relations, 21 + everything, size, device)
        return _losses(judge.train(), pools[everything], batch, generator)

    def after(done: int) -> None:
        if done == first and not (work / START).exists():
            with whole_file(work / START) as path:
                torch.save({k: v.cpu() for k, v in judge.text.state_dict().items()}, path)
            on_event(Note(f"text tower kept for the generator after {done} steps; now with the held-out names"))

    def restore(kept: dict[str, dict[str, Tensor]]) -> None:
        judge.load_state_dict(kept["judge"])
        optimizer.load_state_dict(kept["optimizer"])

    checkpoint = Checkpoint(
        work / "judge.state", 200, lambda: {"judge": judge.state_dict(), "optimizer": optimizer.state_dict()}, restore
    )
    optimise(
        losses,
        [optimizer],
        Schedule(steps, seed=3, clip=1.0, report=50),
        rate=warm_stable_decay,
        after_step=after,
        checkpoint=checkpoint,
        on_event=on_event,
    )
    return judge.eval()
