"""Scores of a trained `pocket`, each beside the level of pure chance or between floor and ceiling.

The judge says whether what was asked for is there; the drawn likeness (`pipelines.measures.drawn`) says how it looks.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from pipelines.generation import generate
from pipelines.measures.drawn import likeness
from pipelines.measures.judge import Judge
from pipelines.measures.stickers import detect, holds, name, nearest_colour
from pipelines.models.components import Components
from pipelines.models.loading import load
from pipelines.pictures.tensors import to_tensor
from pipelines.request.request import Request
from trainers.pretrain.vae import pictures, psnr
from trainers.stickers.drawn import ceiling, drawing, drawn_scene, floor, summed
from trainers.stickers.world import ALL_NAMES, COLOURS, NAMES, RELATIONS, Scene, Stickers, article, scene, scenes

SEED = 7000
FLOOR_NAMES = NAMES[::8]
EACH = 8
"""Real things that floor and ceiling are measured with, for each prompt: all of them from some thirty prompts on."""
"""Names whose floor is measured: a search among all stickers takes seconds each."""


def _made(components: Components, prompts: list[str], steps: int) -> list[Image.Image]:
    """Draw one picture for each prompt, each from its own seed."""
    return [
        generate(components, Request(prompt=prompt, steps=steps, seed=SEED + index)).pictures[0]
        for index, prompt in enumerate(prompts)
    ]


def _pair_right(judge: Judge, picture: Image.Image, item: Scene) -> tuple[bool, bool]:
    """Return whether both things of a relation are present by name, and whether they also stand as told."""
    found = detect(to_tensor(picture))[:2]
    if len(found) < 2:
        return False, False
    named = dict(zip(name(judge, [one.crop for one in found], ALL_NAMES), found, strict=True))
    wanted = [thing.name for thing in item.stickers]
    if set(named) != set(wanted):
        return False, False
    return True, holds(str(item.relation), named[wanted[0]], named[wanted[1]])


def _judge_top1(judge: Judge, count: int, size: int) -> float:
    """Return how often the judge names a thing of a real unseen composition right, found by the same detector."""
    listed = scenes(count, SEED + 1, names=ALL_NAMES, kind="one")
    images = Stickers(size).render(listed).images
    found = [detect(image) for image in images]
    crops = [things[0].crop for things in found if things]
    truth = [item.stickers[0].name for item, things in zip(listed, found, strict=True) if things]
    called = name(judge, crops, ALL_NAMES)
    return sum(a == b for a, b in zip(called, truth, strict=True)) / count


def score(folder: Path, count: int, device: str, steps: int = 25) -> dict[str, Any]:
    """Return all figures of the model card.

    Args:
        folder: the model in the diffusers layout, with its judge.
        count: prompts of each kind; with few, what they are compared with is measured on fewer things as well.
        device: device to compute on.
        steps: denoising steps.
    """
    few = EACH * count
    components, judge = load(folder, device=device), Judge.load(folder / "judge")
    size = components.defaults.size
    rng = random.Random(SEED)
    singles = [scene(rng, kind="one", say_colour=True) for _ in range(count)]
    pairs = [scene(rng, relation=rng.choice(tuple(RELATIONS)), say_colour=True) for _ in range(count)]
    wording = [f"{article(s.stickers[0].name)} on {article(s.colour)} background" for s in singles]
    made = _made(components, wording, steps)
    found = [detect(to_tensor(picture)) for picture in made]
    called = [name(judge, [things[0].crop], ALL_NAMES)[0] if things else "" for things in found]
    colours = [nearest_colour(to_tensor(picture), COLOURS) for picture in made]
    made_pairs = _made(components, [s.caption for s in pairs], steps)
    both = [_pair_right(judge, p, s) for p, s in zip(made_pairs, pairs, strict=True)]
    unseen = pictures(min(256, few), SEED + 2, size, device)
    names = len(ALL_NAMES)
    alike = summed([likeness(to_tensor(p), drawing(s.stickers[0].name)) for p, s in zip(made, singles, strict=True)])
    alike_two = summed(
        [
            one
            for p, s in zip(made_pairs, pairs, strict=True)
            for one in drawn_scene(p, [thing.name for thing in s.stickers])
        ]
    )
    return {
        "prompts": count,
        "steps": steps,
        "guidance": components.defaults.scale,
        "reconstruction_db": round(psnr(components.vae, unseen), 2),  # pyright: ignore[reportArgumentType]
        "reconstruction_drawn": _mean([ceiling(components, name, 1) for name in NAMES[:few]]),
        "one_object_drawn": round(alike.likeness, 4),
        "one_object_drawn_half": round(alike.half, 4),
        "one_object_explained": round(alike.explained, 4),
        "two_objects_drawn": round(alike_two.likeness, 4),
        "two_objects_drawn_half": round(alike_two.half, 4),
        "drawn_floor": _mean([floor(name) for name in FLOOR_NAMES[:few]]),
        "one_object_named": _share([a == s.stickers[0].name for a, s in zip(called, singles, strict=True)]),
        "one_object_chance": round(1 / names, 4),
        "background_right": _share([a == s.colour for a, s in zip(colours, singles, strict=True)]),
        "background_chance": 1 / len(COLOURS),
        "two_objects_named": _share([named for named, _ in both]),
        "two_objects_and_relation": _share([right for _, right in both]),
        "two_objects_chance": round(1 / (names * (names - 1)) / 2, 6),
        "judge_top1_real": _judge_top1(judge, max(count, min(400, few)), size),
        "judge_chance": round(1 / names, 4),
        "device": str(torch.device(device)),
    }


def _share(right: list[bool]) -> float:
    return round(sum(right) / len(right), 4)


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 4)
