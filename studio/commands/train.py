"""`studio train METHOD`: one command for each method, its flags derived from the configurations."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from studio.settings import Machine
from trainers.base_models.settings import InContextConfig, InpaintingConfig, ModelDestination
from trainers.commands import commands
from trainers.data.folders import listing
from trainers.method_settings import GroundingConfig, GroundingDestination
from trainers.run import Run
from trainers.settings import Destination


class Output(Destination):
    """The folder and file of the result."""

    dry_run: bool = False
    """Only look at the pictures and say what training would take."""


ALIASES = {
    "--train-data-dir": "--images",
    "--instance-data-dir": "--images",
    "--placeholder-token": "--token",
    "--modifier-token": "--token",
    "--class-data-dir": "--class-images",
    "--prior-loss-weight": "--prior-weight",
    "--train-text-encoder": "--text-encoder",
    "--use-dora": "--dora",
    "--network-dim": "--rank",
    "--network-alpha": "--alpha",
    "--lora-alpha": "--alpha",
    "--min-snr-gamma": "--snr-gamma",
    "--noise-offset": "--offset-noise",
    "--enable-bucket": "--buckets",
    "--cache-latents-to-disk": "--cache",
    "--token-string": "--token",
    "--initializer-token": "--init",
    "--init-word": "--init",
    "--num-vectors": "--vectors",
    "--num-vectors-per-token": "--vectors",
    "--learnable-property": "--kind",
    "--max-train-steps": "--steps",
    "--train-batch-size": "--batch",
    "--gradient-accumulation-steps": "--accumulate",
    "--lr-warmup-steps": "--warmup",
    "--mixed-precision": "--precision",
    "--adam-weight-decay": "--weight-decay",
    "--checkpointing-steps": "--keep-every",
    "--save-every-n-steps": "--keep-every",
    "--validation-steps": "--preview-every",
    "--output-dir": "--output",
    "--pretrained-model-name-or-path": "--base",
}
"""Spellings of the diffusers and kohya scripts, with dashes or underscores, that mean flags of ours."""


def translate(arguments: list[str]) -> list[str]:
    """Return arguments with other programs' spellings replaced by ours."""
    translated: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        flag = ALIASES.get(flag.replace("_", "-"), flag) if flag.startswith("--") else flag
        translated.append(flag + equals + value)
    return translated


def _carry_out(run: Run, machine: Machine) -> None:
    run.require_pictures()
    others = (one.images for one in getattr(run.config, "subjects", ()))
    for folder in {run.data.images, getattr(run.config, "less_images", None), *others} - {None}:
        if not folder.is_dir():
            listing(folder)  # says so before torch is loaded
    from studio.work import runner

    if isinstance(run.where, Output) and run.where.dry_run:
        for line in runner.preflight(run, machine):
            print(line)  # noqa: T201
    else:
        for path in runner.write_concepts(run, machine):
            print(path)  # noqa: T201


app = commands("train", _carry_out, Output, {"machine": Machine})
app.command("studio.commands.incontext:learn", name="task-word")


@app.command
def inpainting(
    config: Annotated[InpaintingConfig, Parameter(name="*")],
    where: Annotated[ModelDestination, Parameter(name="*")] = ModelDestination(),  # noqa: B008
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Inpainting: a UNet that sees the mask and what lies around it, from a base of 4 channels."""
    from studio.commands.train_parts import train_inpainting

    print(train_inpainting(config, where, machine))  # noqa: T201


@app.command
def incontext(
    config: Annotated[InContextConfig, Parameter(name="*")],
    where: Annotated[ModelDestination, Parameter(name="*")] = ModelDestination(),  # noqa: B008
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Visual prompts: the UNet for inpainting learns changes from pairs of pictures, as answers in a grid."""
    from studio.commands.train_parts import train_inpainting

    print(train_inpainting(config, where, machine))  # noqa: T201


@app.command
def grounding(
    *,
    where: Annotated[GroundingDestination, Parameter(name="*")] = GroundingDestination(),  # noqa: B008
    config: Annotated[GroundingConfig, Parameter(name="*")] = GroundingConfig(),  # noqa: B008
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Gated layers for boxes (GLIGEN) on any base, from pictures with boxes; the base itself stays what it is."""
    from studio.commands.train_parts import train_layers

    print(train_layers(where, config, machine))  # noqa: T201
