"""The stages in order, each skipped when its result is there; and packing the result as `pocket`."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny

from pipelines.errors import ModelError
from pipelines.events import Note, OnEvent
from pipelines.files import whole_file
from pipelines.generation import generate
from pipelines.measures.judge import Judge
from pipelines.models import POCKET
from pipelines.models.components import Components
from pipelines.models.families.registry import FAMILIES
from pipelines.models.inpainting_unet import FOLDER
from pipelines.models.known_words import FILE
from pipelines.models.loading import load
from pipelines.pictures.sheet import Sheet
from pipelines.request.request import Request
from trainers.pretrain.card import TRAINING, device_name, note_training, write_card
from trainers.pretrain.decoder import train_decoder
from trainers.pretrain.judge import train_judge
from trainers.pretrain.layout import TEXT, train_text
from trainers.pretrain.parts import scheduler
from trainers.pretrain.score import score
from trainers.pretrain.unet import Generator, train_unet
from trainers.pretrain.vae import VaePlan, pictures, psnr, train_vae
from trainers.pretrain.vocabulary import build_tokenizer, write_tokenizer

WORTH = ("one_object_drawn", "two_objects_drawn", "background_right", "two_objects_and_relation")
"""Figures by whose mean models are compared."""

VAE_PICTURES = 4096
"""Pictures composed ahead for the autoencoder on a CPU; composing each step would halve the speed."""
UNSEEN = 256
"""Pictures that an autoencoder is measured on."""
WORDS = "words.json"
"""Record of the training of judge and text encoder, in the folder of work."""

PREVIEW = (
    "a dog",
    "an apple on a blue background",
    "a robot on a pink background",
    "a penguin to the left of a pizza",
    "a crown above a lion on a green background",
    "a fox to the right of a house on a yellow background",
    "two cats",
)


def vae_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train the autoencoder into `work/vae`."""
    folder = arguments.work / "vae"
    if folder.exists():
        on_event(Note(f"{folder} is there already"))
        return
    plan = VaePlan(arguments.vae_steps, arguments.minutes, arguments.size, count=VAE_PICTURES)
    if arguments.device.startswith("cuda"):
        plan = replace(plan, crop=arguments.size, batch=128, count=32768)
    vae = train_vae(arguments.work, plan, arguments.device, on_event)
    unseen = pictures(UNSEEN, 999, arguments.size, arguments.device)
    on_event(Note(f"reconstruction of unseen compositions: {psnr(vae, unseen):.2f} dB"))
    told = {
        "device": device_name(arguments.device),
        "steps": steps_in(arguments.work / "log.jsonl", "vae") or arguments.vae_steps,
        "batch": plan.batch,
        "minutes": round(minutes_in(arguments.work / "log.jsonl", "vae"), 1),
        "pictures": plan.count,
    }
    with whole_file(arguments.work / "vae.json") as path:
        path.write_text(json.dumps(told), encoding="utf-8")
    part = folder.with_name(".vae.part")
    _save_vae(vae, part)
    part.rename(folder)


def judge_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train the judge into `work/judge`."""
    folder = arguments.work / "judge"
    if folder.exists():
        on_event(Note(f"{folder} is there already"))
        return
    judge = train_judge(
        arguments.work, steps=arguments.judge_steps, size=arguments.size, device=arguments.device, on_event=on_event
    )
    part = folder.with_name(".judge.part")
    judge.to("cpu").save(part)
    _note_words(arguments, judge_steps=arguments.judge_steps)
    part.rename(folder)


def text_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train the text encoder on what captions say about places, into `work/text.pt`."""
    path = arguments.work / TEXT
    if path.exists():
        on_event(Note(f"{path} is there already"))
        return
    train_text(
        arguments.work,
        steps=arguments.text_steps,
        device=arguments.device,
        on_event=on_event,
        captions=arguments.pictures,
        go_on_from=arguments.go_on_from,
    )
    _note_words(arguments, text_steps=arguments.text_steps)


def _note_words(arguments: argparse.Namespace, **steps: int) -> None:
    """Note how many steps judge and text encoder were trained, beside what an earlier stage noted."""
    record = arguments.work / WORDS
    told = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    with whole_file(record) as path:
        path.write_text(json.dumps(told | {"device": device_name(arguments.device)} | steps), encoding="utf-8")


def as_components(model: Generator, vae: AutoencoderTiny) -> Components:
    """Return the parts in training, as a base model."""
    return Components(
        model.unet, vae, (model.text,), (build_tokenizer(),), dict(scheduler().config), "pocket", FAMILIES["pocket"]
    )


def unet_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train UNet and text encoder into `work/generator.pt`, with preview sheets on the way."""
    if arguments.go_on_from is not None:
        for part in ("vae", "judge"):  # what is not trained anew here is that of the finished model
            if not (arguments.work / part).exists():
                shutil.copytree(arguments.go_on_from / part, arguments.work / part)
    for part, stage in (("vae", "vae"), *(((TEXT, "text"),) if arguments.go_on_from is None else ())):
        if not (arguments.work / part).exists():
            raise ModelError(f"There is no {part} in {arguments.work}.", f"Run python -m trainers.pretrain {stage}.")
    vae = AutoencoderTiny.from_pretrained(arguments.work / "vae").to(arguments.device).requires_grad_(False)

    def show(model: Generator, step: int) -> None:
        was = model.training
        sheet = Sheet(cell=arguments.size)
        for prompt in PREVIEW:
            request = Request(prompt=prompt, count=4, steps=15)
            sheet.row(prompt, generate(as_components(model.eval(), vae), request).pictures)
        model.train(was)
        path = sheet.save(arguments.work / "preview.png")
        on_event(Note(f"preview after step {step}: {path}"))

    model = train_unet(
        arguments.work,
        vae,
        steps=arguments.unet_steps,
        size=arguments.size,
        device=arguments.device,
        on_event=on_event,
        batch=arguments.batch,
        pictures=arguments.pictures,
        show=show,
        show_every=max(500, arguments.keep_every),
        keep_every=arguments.keep_every,
        go_on_from=arguments.go_on_from,
        rate=arguments.unet_rate,
        minutes=arguments.minutes,
        decay=arguments.decay,
        text=not arguments.frozen_text,
        seed=arguments.seed,
    )
    with whole_file(arguments.work / "generator.pt") as path:
        torch.save(model.to("cpu").state_dict(), path)
    with whole_file(arguments.work / "facts.json") as path:
        path.write_text(json.dumps(_facts(arguments)), encoding="utf-8")


def _facts(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the training records of UNet, autoencoder, judge and text encoder, and of the model they went on from."""
    facts: dict[str, Any] = {
        "device": device_name(arguments.device),
        "size": arguments.size,
        "steps": steps_in(arguments.work / "log.jsonl", "unet") or arguments.unet_steps,
        "batch": arguments.batch,
        "minutes": minutes_in(arguments.work / "log.jsonl", "unet"),
        "text_encoder": "frozen" if arguments.frozen_text else "trained",
    }
    for part in ("vae", "words"):
        if (told := arguments.work / f"{part}.json").exists():
            facts[part] = json.loads(told.read_text(encoding="utf-8"))
    record = arguments.go_on_from / TRAINING if arguments.go_on_from else None
    if record is not None and record.exists():
        facts["earlier"] = json.loads(record.read_text(encoding="utf-8"))
    return facts


def decoder_stage(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Train a new decoder for the finished model in `out` and put it into its folder; all latents stay valid.

    Raises:
        ModelError: if there is no such model.
    """
    components = load(arguments.out, device=arguments.device)
    for part in components.modules():
        part.requires_grad_(False)
    unseen = pictures(UNSEEN, 999, arguments.size, arguments.device)
    before = psnr(components.vae, unseen)  # pyright: ignore[reportArgumentType]
    vae = train_decoder(
        arguments.work,
        components,
        steps=arguments.decoder_steps,
        size=arguments.size,
        on_event=on_event,
        count=arguments.redrawn,
        batch=128 if arguments.device.startswith("cuda") else 16,
        minutes=arguments.minutes,
    )
    after = psnr(vae, unseen)
    on_event(Note(f"reconstruction of unseen compositions: {after:.2f} dB, before {before:.2f}"))
    part = arguments.work / ".decoder.part"
    shutil.rmtree(part, ignore_errors=True)
    _save_vae(vae.half(), part)
    shutil.rmtree(arguments.out / "vae")
    part.rename(arguments.out / "vae")
    facts = json.loads((arguments.out / TRAINING).read_text(encoding="utf-8"))
    steps = steps_in(arguments.work / "log.jsonl", "decoder") or arguments.decoder_steps
    told = {"steps": steps, "redrawn": arguments.redrawn, "device": device_name(arguments.device)}
    note_training(arguments.out, facts | {"decoder": told})


def minutes_in(log: Path, stage: str) -> float:
    """Return the minutes a stage took by its log, pauses of over five minutes left out."""
    if not log.exists():
        return 0.0
    times = [json.loads(line)["time"] for line in log.read_text(encoding="utf-8").splitlines() if f'"{stage}"' in line]
    return sum(gap for before, after in pairwise(times) if (gap := after - before) < 300) / 60


def steps_in(log: Path, stage: str) -> int:
    """Return the steps that a stage had done by its last report."""
    listed = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    return max((line.get("step", 0) for line in listed if line["stage"] == stage), default=0)


def pack(arguments: argparse.Namespace, on_event: OnEvent) -> None:
    """Build the model in `work/packed`, score it, write its card, and put it in place if that is better than before."""
    packed: Path = arguments.packed or arguments.work / "packed"
    if arguments.packed is None:
        if not (arguments.work / "generator.pt").exists():
            raise ModelError(f"There is no generator.pt in {arguments.work}.", "Run python -m trainers.pretrain unet.")
        shutil.rmtree(packed, ignore_errors=True)
        write_model(arguments, packed)
    facts = json.loads((packed / TRAINING).read_text(encoding="utf-8"))
    scores = score(packed, arguments.prompts, arguments.device)
    on_event(Note(json.dumps(scores)))
    write_card(packed, facts, scores)
    before = arguments.out / "scores.json"
    if before.exists() and not arguments.force:
        old = json.loads(before.read_text(encoding="utf-8"))
        if not set(WORTH) <= set(old):  # scored before these figures were measured
            old = score(arguments.out, arguments.prompts, arguments.device)
        if _worth(old) >= _worth(scores):
            on_event(
                Note(f"{arguments.out} is better ({_worth(old):.3f} to {_worth(scores):.3f}); --force replaces it")
            )
            return
    if (arguments.out / FOLDER).exists() and not (packed / FOLDER).exists():
        on_event(
            Note(f"{FOLDER} belonged to the model before and goes with it: run python -m trainers.pretrain inpainting")
        )
    _put_in_place(packed, arguments.out)
    on_event(Note(f"written to {arguments.out}"))


def _worth(scores: dict[str, Any]) -> float:
    """Return one number to compare models by: the mean of the figures that a user notices."""
    return sum(scores[figure] for figure in WORTH) / len(WORTH)


def _put_in_place(folder: Path, out: Path) -> None:
    """Replace `out` by a copy of `folder`, in two renames: a kill never leaves half a model there."""
    new, old = out.with_name(f".{out.name}.new"), out.with_name(f".{out.name}.old")
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(folder, new)
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_model(arguments: argparse.Namespace, out: Path) -> None:
    """Write the parts in `arguments.work` as a diffusers folder of fp16 safetensors, the judge beside them."""
    out.mkdir(parents=True)
    model = Generator(arguments.size, build_tokenizer())
    model.load_state_dict(torch.load(arguments.work / "generator.pt", weights_only=True))
    vae = AutoencoderTiny.from_pretrained(arguments.work / "vae")
    model.unet.half().save_pretrained(out / "unet")
    _save_vae(vae.half(), out / "vae")
    model.text.half().save_pretrained(out / "text_encoder")
    write_tokenizer(out / "tokenizer")
    scheduler().save_pretrained(out / "scheduler")
    Judge.load(arguments.work / "judge").save(out / "judge")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    shutil.copy(arguments.work / "facts.json", out / TRAINING)
    shutil.copy(POCKET / FILE, out / FILE)  # the world's words, which tests hold to trainers/stickers/world.py


def _save_vae(vae: AutoencoderTiny, folder: Path) -> None:
    torch.nn.Module.to(vae, "cpu")
    vae.save_pretrained(folder)
    # diffusers writes this key and then warns of it at every loading.
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in ("block_out_channels", "_name_or_path"):  # the latter is a folder of whoever trained it
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
