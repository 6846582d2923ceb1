"""The recipe of pocket, run in small: every stage, resumed after a kill, packed, loaded elsewhere, scored."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pipelines.errors import ModelError
from pipelines.events import Note, StepDone
from pipelines.generation import generate
from pipelines.models.fingerprint import is_gated
from pipelines.models.loading import load
from pipelines.request.request import Request
from tests.waiting import LIMIT
from trainers.loop.checkpoints import states
from trainers.pretrain import judge as judge_module
from trainers.pretrain import stages
from trainers.pretrain.card import write_card
from trainers.pretrain.layout import begin_text
from trainers.pretrain.score import score
from trainers.pretrain.unet import Generator, training_stream
from trainers.pretrain.vae import pictures
from trainers.pretrain.vocabulary import build_tokenizer


def settings(folder, **changes):
    fields = {
        "work": folder / "work",
        "out": folder / "out",
        "device": "cpu",
        "size": 64,
        "vae_steps": 4,
        "judge_steps": 5,
        "text_steps": 2,
        "unet_steps": 3,
        "unet_rate": 1.2e-3,
        "decay": 0.3,
        "frozen_text": False,
        "seed": 31,
        "batch": 4,
        "pictures": 16,
        "keep_every": 2,
        "prompts": 2,
        "force": False,
        "packed": None,
        "minutes": None,
        "go_on_from": None,
        "threads": None,
        "stage": "all",
    }
    return argparse.Namespace(**(fields | changes))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Everything trained for a handful of steps."""
    folder = tmp_path_factory.mktemp("pretrain")
    arguments = settings(folder)
    arguments.work.mkdir()
    (arguments.work / "log.jsonl").write_text(json.dumps({"stage": "unet", "time": 1.0}) + "\n")
    events = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "VAE_PICTURES", 16)
        patch.setattr(stages, "UNSEEN", 16)
        patch.setattr(judge_module, "POOL", 96)
        for stage in (stages.vae_stage, stages.judge_stage, stages.text_stage, stages.unet_stage, stages.pack):
            stage(arguments, events.append)
    return arguments, events


def test_every_stage_reports_and_previews(trained):
    arguments, events = trained
    reported = {name for event in events if isinstance(event, StepDone) for name in event.terms}
    assert {"l1", "l2", "captions", "names", "layout", "denoise"} <= reported
    said = " ".join(event.text for event in events if isinstance(event, Note))
    assert "dB" in said and "text tower kept" in said and "preview" in said
    assert "order of two things read right" in said
    assert (arguments.work / "preview.png").exists()


def test_stages_that_are_done_are_not_done_again(trained):
    arguments, _ = trained
    events = []
    stages.vae_stage(arguments, events.append)
    stages.judge_stage(arguments, events.append)
    stages.text_stage(arguments, events.append)
    assert [type(event) for event in events] == [Note] * 3
    assert all("is there already" in event.text for event in events)


def test_latent_channels_have_unit_spread_under_one_scalar_factor(trained):
    arguments, _ = trained
    images = torch.cat((pictures(12, 11, 64, "cpu"), pictures(4, 12, 64, "cpu", style="flat")))
    base = load(arguments.out)
    from pipelines.models.components import encode

    spread = encode(base, images).mean.std((0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(4), atol=0.1, rtol=0)


def test_the_packed_model_is_small_and_in_half_precision(trained):
    arguments, _ = trained
    base = load(arguments.out, dtype=torch.float16)
    assert sum(p.numel() for p in base.unet.parameters()) <= 9_000_000
    assert sum(path.stat().st_size for path in arguments.out.rglob("*")) < 40 << 20
    assert not list(arguments.out.rglob("*.bin"))
    assert all(path.stat().st_size for path in arguments.out.rglob("*.safetensors"))


def test_plain_diffusers_loads_it_and_draws_the_same(trained):
    arguments, _ = trained
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.out, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    request = Request(prompt="a fox on a blue background", steps=4, seed=3)
    ours = generate(load(arguments.out), request)
    theirs = pipeline(
        request.prompt,
        num_inference_steps=4,
        guidance_scale=ours.request.guidance.scale,
        guidance_rescale=ours.request.guidance.rescale,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images
    torch.testing.assert_close(ours.latents, theirs, atol=1e-4, rtol=0)


def test_layers_for_boxes_are_not_trained_and_do_nothing_without_boxes():
    torch.manual_seed(4)
    model = Generator(64, build_tokenizer())
    trained = {
        id(p) for optimizer in model.optimizers(1e-3) for group in optimizer.param_groups for p in group["params"]
    }
    gated = [p for name, p in model.unet.named_parameters() if is_gated(name)]
    assert gated and not any(id(p) in trained or p.requires_grad for p in gated)
    others = [p for name, p in model.named_parameters() if not is_gated(name.removeprefix("unet."))]
    assert all(id(p) in trained for p in others)


def test_a_finished_model_can_be_trained_further(trained):
    arguments, _ = trained
    model, base = Generator(64, build_tokenizer()), load(arguments.out)
    model.go_on_from(arguments.out)
    assert all(torch.equal(a, b) for a, b in zip(model.unet.parameters(), base.unet.parameters(), strict=True))
    # Its text encoder goes through the stage `text` first, which starts from the same folder.
    text = begin_text(arguments.work, arguments.out)
    assert all(torch.equal(a, b) for a, b in zip(text.parameters(), base.text_encoders[0].parameters(), strict=True))


def test_the_stream_is_the_same_every_time():
    assert training_stream(50, 31) == training_stream(50, 31)


def test_scores_are_figures_with_their_chance(trained):
    arguments, _ = trained
    figures = score(arguments.out, 1, "cpu", steps=2)
    for key in ("one_object", "background", "two_objects", "judge"):
        assert 0 <= figures[f"{key}_chance"] <= 0.2
    assert json.loads(json.dumps(figures)) == figures
    assert 0 < figures["reconstruction_db"] < 40
    assert 0.2 < figures["drawn_floor"] < 0.6, "the nearest other sticker is something like it"
    assert figures["reconstruction_drawn"] < 0.5, "an autoencoder of four steps shows nothing"
    assert all(-1 <= figures[f"{key}_drawn"] <= 1 for key in ("one_object", "two_objects"))


def test_the_card_says_how_it_was_trained(trained, tmp_path):
    arguments, _ = trained
    facts = json.loads((arguments.work / "facts.json").read_text())
    assert (facts["steps"], facts["batch"], facts["size"]) == (3, 4, 64)
    figures = json.loads((arguments.out / "scores.json").read_text())
    text = write_card(tmp_path, facts, figures).read_text()
    assert "3 steps of 4 (12 pictures seen" in text and "wolf" in text and "| 0.75 | 0.97 |" in text
    assert json.loads((tmp_path / "scores.json").read_text()) == figures


def test_a_better_model_is_not_replaced_and_a_worse_one_is(trained, monkeypatch):
    arguments, _ = trained
    monkeypatch.setattr(stages, "score", lambda *_: json.loads((arguments.work / "packed" / "../scores").read_text()))
    shown = json.loads((arguments.out / "scores.json").read_text())
    (arguments.work / "scores").write_text(json.dumps(shown))
    notes = []
    stages.pack(arguments, notes.append)
    assert "is better" in notes[-1].text
    better = shown | {"one_object_drawn": shown["one_object_drawn"] + 0.5}
    (arguments.work / "scores").write_text(json.dumps(better))
    stages.pack(arguments, notes.append)
    assert "written to" in notes[-1].text
    assert json.loads((arguments.out / "scores.json").read_text()) == better
    assert sorted(path.name for path in arguments.out.parent.glob(".*")) == []


def test_the_unet_needs_an_autoencoder_and_a_text_encoder(tmp_path):
    arguments = settings(tmp_path)
    with pytest.raises(ModelError, match=r"no vae in .*pretrain vae"):
        stages.unet_stage(arguments, lambda event: None)
    (arguments.work / "vae").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"no text\.pt in .*pretrain text"):
        stages.unet_stage(arguments, lambda event: None)


def start(arguments, steps):
    command = [sys.executable, "-m", "trainers.pretrain", "unet", "--work", str(arguments.work), "--device", "cpu"]
    more = ["--unet-steps", str(steps), "--batch", "4", "--pictures", "16", "--keep-every", "2"]
    environment = os.environ | {"MALLOC_TRIM_THRESHOLD_": "1"}
    return subprocess.Popen(
        [*command, *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def test_a_killed_training_is_resumed(trained):
    arguments, _ = trained
    state = arguments.work / "unet.state"
    shutil.rmtree(state, ignore_errors=True)
    process = start(arguments, 100_000)
    deadline = time.monotonic() + LIMIT
    while not states(state) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=LIMIT)
    done = int(states(state)[0].name.removeprefix("step-"))
    again = start(arguments, done + 1)
    try:
        output, _ = again.communicate(timeout=LIMIT)
    finally:
        again.kill()
    assert again.returncode == 0, output
    assert f"resumed after step {done}" in output and f"{done + 1}/{done + 1}" in output
