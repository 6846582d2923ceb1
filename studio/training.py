"""`studio train METHOD`: one command for each method, its flags derived from the configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from pipelines.request import Frozen
from studio.settings import Machine
from trainers import methods
from trainers.config import DataConfig, TrainConfig
from trainers.method import Method


class Output(Frozen):
    """Where the result goes."""

    output: Path | None = None
    """The concept file; outputs/concepts/TOKEN.safetensors by default."""

    overwrite: bool = False
    """Replace a concept file that is there."""

    dry_run: bool = False
    """Only look at the pictures and say what training would take."""

    base: str = "pocket"
    """pocket, a diffusers folder, a .safetensors checkpoint, or a hub id."""


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
    "--validation-steps": "--preview-every",
    "--output-dir": "--output",
    "--pretrained-model-name-or-path": "--base",
}
"""Spellings of the diffusers and kohya scripts, with dashes or underscores, that mean flags of ours."""


def translate(arguments: list[str]) -> list[str]:
    """Arguments with other programs' spellings replaced by ours."""
    translated: list[str] = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        flag = ALIASES.get(flag.replace("_", "-"), flag) if flag.startswith("--") else flag
        translated.append(flag + equals + value)
    return translated


def _command(method: Method) -> Any:
    config_type: Any = method.Config

    def command(
        *,
        config: Any,
        data: Annotated[DataConfig, Parameter(name="*")],
        train: Annotated[TrainConfig, Parameter(name="*")] = TrainConfig(),  # noqa: B008
        where: Annotated[Output, Parameter(name="*")] = Output(),  # noqa: B008
        machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
    ) -> None:
        from studio import runner

        if where.dry_run:
            for line in runner.preflight(method, config, data, train, where, machine):
                print(line)  # noqa: T201
        else:
            for path in runner.train(method, config, data, train, where, machine):
                print(path)  # noqa: T201

    command.__annotations__ = {
        "config": Annotated[config_type, Parameter(name="*")],
        "data": Annotated[DataConfig, Parameter(name="*")],
        "train": Annotated[TrainConfig, Parameter(name="*")],
        "where": Annotated[Output, Parameter(name="*")],
        "machine": Annotated[Machine, Parameter(name="*")],
    }
    command.__doc__ = (method.__doc__ or "").splitlines()[0]
    return command


app = App(
    name="train",
    help="Learn a concept from a folder of pictures.",
    help_format="plaintext",
    default_parameter=Parameter(negative_iterable=()),
)
for _name, _method in methods().items():
    app.command(_command(_method), name=_name)
