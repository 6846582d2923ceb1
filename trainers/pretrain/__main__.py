"""`python -m trainers.pretrain [STAGE]`: train `pocket`, stage by stage or all at once, score it, draw its stickers."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch

from pipelines.console import print_anything
from pipelines.errors import StudioError
from pipelines.events import Event, OnEvent, StepDone
from pipelines.models import POCKET

STAGES = ("vae", "judge", "text", "unet")


def _show(stage: str, log: Path) -> OnEvent:
    """Return an event reader that prints progress and appends it to a log of JSON lines."""

    def show(event: Event) -> None:
        if isinstance(event, StepDone):
            figures = " ".join(f"{name} {value:.4f}" for name, value in event.terms.items())
            print(f"{stage} {event.step}/{event.steps} {event.seconds:.0f} s  {figures}", flush=True)
            with log.open("a", encoding="utf-8") as stream:
                stream.write(
                    json.dumps({"stage": stage, "step": event.step, "time": time.time(), **event.terms}) + "\n"
                )
        else:
            print(f"{stage}: {getattr(event, 'text', event)}", flush=True)

    return show


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainers.pretrain", description=__doc__)
    stages = ("all", *STAGES, "pack", "decoder", "grounding", "inpainting", "join", "score", "sheets")
    parser.add_argument("stage", nargs="?", default="all", choices=stages)
    parser.add_argument(
        "--work", type=Path, default=Path("outputs/pretrain"), help="where states and previews are kept"
    )
    parser.add_argument("--out", type=Path, default=POCKET, help="where the finished model is written or scored")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, default=64, help="picture side in pixels, a multiple of 64")
    parser.add_argument("--vae-steps", type=int, default=6000)
    parser.add_argument("--judge-steps", type=int, default=1600)
    parser.add_argument("--text-steps", type=int, default=2000)
    parser.add_argument("--unet-steps", type=int, default=6000)
    parser.add_argument("--decoder-steps", type=int, default=2500)
    parser.add_argument("--redrawn", type=int, default=4096, help="decoder: pictures that the UNet draws anew")
    parser.add_argument("--grounding-steps", type=int, default=6000)
    parser.add_argument(
        "--grounding-goes-on", action="store_true", help="grounding: go on from the layers of --out instead of anew"
    )
    parser.add_argument(
        "--minutes", type=float, default=None, help="all, and each stage but judge and text: end after so much time"
    )
    parser.add_argument("--packed", type=Path, default=None, help="pack: a model folder that is there already")
    parser.add_argument(
        "--pack", action="store_true", help="grounding, inpainting: put what was trained before into --out"
    )
    parser.add_argument("--inpainting-steps", type=int, default=1_000_000, help="inpainting: most steps; see --minutes")
    parser.add_argument("--scenes", type=int, default=16384, help="inpainting: scenes of each of the four kinds")
    parser.add_argument("--rate", type=float, default=1e-3, help="inpainting: learning rate")
    parser.add_argument("--show", type=int, default=32, help="inpainting: visual prompts of each task in a preview")
    parser.add_argument("--inpainting-from", type=Path, default=None, help="inpainting: a 9-channel UNet to go on from")
    parser.add_argument("--unet-rate", type=float, default=1.2e-3, help="unet: learning rate")
    parser.add_argument(
        "--decay", type=float, default=0.3, help="unet: share of the run over which the rate falls to 0"
    )
    parser.add_argument("--frozen-text", action="store_true", help="unet: leave the text encoder as it is")
    parser.add_argument("--seed", type=int, default=31, help="unet: seed of the composed pictures")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=65536, help="composed pictures the UNet learns from")
    parser.add_argument("--keep-every", type=int, default=250, help="UNet steps between writes of the training state")
    parser.add_argument("--prompts", type=int, default=200, help="score: how many seeded prompts of each kind")
    parser.add_argument(
        "--go-on-from", type=Path, default=None, help="text, unet, inpainting: a finished model to start from"
    )
    parser.add_argument("--icons", type=Path, default=Path("icons"), help="sheets: folder of icon collections")
    parser.add_argument("--force", action="store_true", help="pack: replace a model that scores better")
    parser.add_argument("--threads", type=int, default=None)
    arguments = parser.parse_args()
    return arguments


def _train(arguments: argparse.Namespace) -> None:
    # Imported here, so that --help does not wait for transformers.
    from trainers.pretrain.grounding import grounding_stage
    from trainers.pretrain.sheets import sheets_stage
    from trainers.pretrain.stages import decoder_stage, judge_stage, pack, text_stage, unet_stage, vae_stage

    if arguments.stage == "join":
        from trainers.pretrain.prepared import FOLDER_OUT, SHARDS, join

        print(join(arguments.work / SHARDS, arguments.work / FOLDER_OUT))
        return
    if arguments.stage == "all" and arguments.minutes is not None:
        from trainers.pretrain.prepared import prepared_run

        arguments.work.mkdir(parents=True, exist_ok=True)
        prepared_run(arguments, _show)
        return
    chosen = STAGES if arguments.stage == "all" else (arguments.stage,)
    arguments.work.mkdir(parents=True, exist_ok=True)
    actions = {"vae": vae_stage, "judge": judge_stage, "text": text_stage, "unet": unet_stage, "pack": pack}
    actions |= {"grounding": grounding_stage, "decoder": decoder_stage, "sheets": sheets_stage}
    if arguments.stage == "inpainting":
        from trainers.pretrain.inpainting import inpainting_stage

        actions["inpainting"] = inpainting_stage
    for stage in (*chosen, "pack", "grounding") if arguments.stage == "all" else chosen:
        actions[stage](arguments, _show(stage, arguments.work / "log.jsonl"))


def main() -> int:
    """Run the chosen stage; errors meant for people end with exit code 2."""
    print_anything()
    arguments = _arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.device.startswith("cuda"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    if arguments.device == "cpu" and os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:
        # Page faults of large activations cost a quarter of the time; glibc reads these only at start.
        os.environ.update(MALLOC_MMAP_THRESHOLD_=str(1 << 32), MALLOC_TRIM_THRESHOLD_=str(1 << 32))
        os.execv(sys.executable, [sys.executable, "-m", "trainers.pretrain", *sys.argv[1:]])
    try:
        if arguments.stage == "score":
            from trainers.pretrain.score import score

            print(json.dumps(score(arguments.out, arguments.prompts, arguments.device), indent=1))
        else:
            _train(arguments)
    except StudioError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
