"""The model card of `pocket`: how it was trained and what it scores, written from figures, never by hand."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from pipelines.files import whole_file
from trainers.stickers.world import COLOURS, HELD_OUT, HELD_OUT_RELATIONS, NAMES, RELATIONS

GOALS: dict[str, tuple[str, float, float]] = {
    "reconstruction_db": ("autoencoder, PSNR on unseen compositions (dB)", 31, 33),
    "reconstruction_drawn": ("autoencoder, drawn likeness of real pictures (the ceiling of all below)", 0.93, 0.95),
    "one_object_drawn": ("one object: drawn likeness", 0.80, 0.88),
    "two_objects_drawn": ("two objects in a relation: drawn likeness, mean of both", 0.65, 0.75),
    "one_object_named": ("one object: the judge names it among all names", 0.75, 0.97),
    "background_right": ("background colour right", 0.90, 0.99),
    "two_objects_and_relation": ("two objects: both named right and the relation holds", 0.40, 0.90),
    "judge_top1_real": ("judge on real unseen compositions", 0.97, 0.99),
}
"""Figure -> what it is, the least a CPU training must reach, the goal."""

TRAINING = "training.json"
"""Record of the training of the weights beside it."""

CHANCE = {
    "one_object_drawn": "drawn_floor",
    "two_objects_drawn": "drawn_floor",
    "one_object_named": "one_object_chance",
    "background_right": "background_chance",
    "two_objects_and_relation": "two_objects_chance",
    "judge_top1_real": "judge_chance",
}


def device_name(device: str) -> str:
    """Return the processor in words."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def _told(facts: dict[str, Any]) -> str:
    seen = f"{facts['steps'] * facts['batch']:,} pictures seen by the UNet in {facts['minutes']:.0f} minutes"
    return f"{facts['device']}, {facts['size']} px, {facts['steps']} steps of {facts['batch']} ({seen})"


def _trainings(facts: dict[str, Any]) -> list[str]:
    """Return one line for each training, the last first."""
    trainings = [facts]
    while "earlier" in trainings[-1]:
        trainings.append(trainings[-1]["earlier"])
    lines = [
        f"- {'Went on from a model trained' if index else 'Trained'} on: {_told(one)}."
        for index, one in enumerate(trainings)
    ]
    if vae := facts.get("vae"):
        lines.append(
            f"- The autoencoder was trained first, on {vae['pictures']:,} composed pictures in both styles: "
            f"{vae['device']}, {vae['steps']} steps of {vae['batch']} in {vae['minutes']} minutes."
        )
    if words := facts.get("words"):
        lines.append(
            f"- Judge and text encoder came next: {words['device']}, {words['judge_steps']} steps of the judge and "
            f"{words['text_steps']} of the text encoder, which then learned on with the UNet."
        )
    if decoder := facts.get("decoder"):
        lines.append(
            f"- Its decoder was trained once more on latents of real pictures and {decoder['redrawn']:,} that the UNet "
            f"drew anew: {decoder['device']}, {decoder['steps']} steps. The encoder, and so every latent, stayed."
        )
    if boxes := facts.get("grounding"):
        lines.append(
            f"- The gated layers for boxes were trained last, on the frozen rest: {boxes['device']}, {boxes['steps']} "
            f"steps of {boxes['batch']} in {boxes['minutes']} minutes."
        )
        if before := boxes.get("earlier"):
            lines[-1] += (
                f" They went on from earlier layers: {before['device']}, {before['steps']} steps of {before['batch']}."
            )
    if holes := facts.get("inpainting"):
        lines.append(
            f"- The 9-channel UNet for inpainting and visual prompts went on from the base: {holes['device']}, "
            f"{holes['steps']} steps of {holes['batch']} visual prompts and half as many pictures in "
            f"{holes['minutes']} minutes; tasks: {', '.join(holes['tasks'])}."
        )
    return lines


def write_card(out: Path, facts: dict[str, Any], scores: dict[str, Any]) -> Path:
    """Write `README.md`, `training.json` and `scores.json` beside the weights.

    Args:
        out: the model's folder.
        facts: device, steps, batch, size, minutes of the training; `earlier`, the facts of the model it went on from;
            `grounding`, those of the gated layers; `inpainting`, those of the 9-channel UNet.
        scores: as `trainers.pretrain.score.score` gives them.
    """
    weights = sum(path.stat().st_size for path in out.rglob("*.safetensors")) / 2**20
    lines = [
        "---",
        "license: mit",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "---",
        "# pocket",
        "",
        "A small latent-diffusion model of stickers on coloured backgrounds, trained from nothing by this repository",
        "(`python -m trainers.pretrain`), so that everything can be tried, tested and measured offline, on a CPU.",
        "It knows the words below and no others; it is no substitute for Stable Diffusion.",
        "",
        *_trainings(facts),
        f"- Weights: {weights:.1f} MiB, float16 safetensors. Written {datetime.now(UTC).date().isoformat()}.",
        f"- Names ({len(NAMES)}): {', '.join(NAMES)}.",
        f"- Background colours ({len(COLOURS)}): {', '.join(COLOURS)}.",
        f"- Relations: {', '.join(RELATIONS)}; `and` and `with` join two things that stand anywhere.",
        "- Scenes: one thing, two in a relation, two alike, three in a row, two anywhere, two alike and another.",
        f"- Held out, to be taught: {', '.join((*HELD_OUT, *HELD_OUT_RELATIONS))}.",
        "",
        f"## Scores on {scores['prompts']} seeded prompts of each kind",
        "",
        f"{scores['steps']} DDIM steps, guidance {scores['guidance']}; printed by `python -m trainers.pretrain score`.",
        "Drawn likeness lays the true sticker over what was drawn (SSIM inside its shape): 1 is the sticker itself,",
        "its floor the nearest other sticker. The judge only tells what a thing is meant to be; it saturates.",
        "",
        "| figure | measured | chance, or floor | least on two CPU cores | goal |",
        "|---|---|---|---|---|",
    ]
    for key, (meaning, least, goal) in GOALS.items():
        chance = f"{scores[CHANCE[key]]:.4f}" if key in CHANCE else ""
        lines.append(f"| {meaning} | **{scores[key]:.3f}** | {chance} | {least} | {goal} |")
    lines += [
        "",
        "The art is Fluent Emoji by Microsoft Corporation, MIT licence: see `trainers/stickers/art/LICENSE`.",
        "",
    ]
    with whole_file(out / TRAINING) as path:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    with whole_file(out / "scores.json") as path:
        path.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    with whole_file(out / "README.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    return out / "README.md"


def note_training(out: Path, facts: dict[str, Any]) -> None:
    """Write how a model was trained, into its card as well if it was scored already."""
    scores = out / "scores.json"
    if scores.exists():
        write_card(out, facts, json.loads(scores.read_text(encoding="utf-8")))
        return
    with whole_file(out / TRAINING) as path:
        path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
