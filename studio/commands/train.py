"""`studio train METHOD`: one command for each method, its flags derived from the configurations."""

from __future__ import annotations

from studio.settings import Machine
from trainers.commands import commands
from trainers.data.folders import listing
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


OF_METHODS = {
    "incontext": {"--pairs": "--images", "--cell": "--resolution"},
    "task-word": {"--rate": "--learning-rate"},
    "grounding": {"--rate": "--learning-rate", "--muon": "--optimizer=muon"},
}
"""Further spellings of flags for one method."""


def translate(arguments: list[str]) -> list[str]:
    """Return arguments with other programs' spellings replaced by ours."""
    known = ALIASES | next((OF_METHODS[word] for word in arguments if word in OF_METHODS), {})
    translated: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        flag = known.get(flag.replace("_", "-"), flag) if flag.startswith("--") else flag
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
