"""A run: one training with all its settings, described once for command line, REST, page and loop. Needs no torch."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.files import require_room, stem_of
from pipelines.request.settings import without_files
from pipelines.words import file_stem
from trainers.method import Method
from trainers.settings import DataConfig, Destination, TrainConfig, require_folder

TRAINING = "unet_inpainting/training.json"
"""Record of the training, in the folder of a model."""

MODEL_FILES = ("model_index.json", TRAINING)
"""Files by which a folder is known as a model that a training wrote."""


@dataclass(frozen=True)
class Run:
    """A training with all its settings.

    Attributes:
        method: the method.
        config: the method's own settings.
        train: pace and optimiser.
        data: settings of reading pictures.
        where: the base, and the file of the result.
    """

    method: Method[Any]
    config: Any
    train: TrainConfig
    data: DataConfig
    where: Destination = Destination()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        """Refuse shared settings that the method has no use for.

        Raises:
            ConfigError: naming the first of them.
        """
        given = {name for one in (self.train, self.data, self.where) for name in one.model_fields_set}
        if unused := sorted(given & self.config.unused):
            raise ConfigError(f"{self.method.name} has no use for {unused[0]}.", "Leave it out.")

    def recipe(self) -> dict[str, Any]:
        """Return the resolved settings for the result's card, without the person's folder names."""
        return {**without_files(self.config), **without_files(self.train), **without_files(self.data)}

    def with_recipe(self, family: str) -> Run:
        """Return the run with the method's recipe for a family wherever the person set nothing."""
        values = self.method.recipe(family, self.config)

        def filled(config: Any) -> Any:
            left_open = type(config).model_fields.keys() - config.model_fields_set
            return config.model_copy(update={key: value for key, value in values.items() if key in left_open})

        return replace(self, config=filled(self.config), train=filled(self.train), data=filled(self.data))

    @property
    def outputs(self) -> list[Path]:
        """Return the files of the result: the run's own as set, those of others beside it by their words.

        Raises:
            ConfigError: if the place that is set has no name, as `.` and `..` have none.
        """
        first = self.where.output or Path("outputs") / self.config.result(self.where.base)
        if first.name in ("", ".."):
            raise ConfigError(
                f"--output {first} names no place of its own.", f"Give a name too: --output {first / 'NAME'}."
            )
        if not self.config.gives_folder and first.suffix != ".safetensors":
            first = first.with_name(f"{first.name}.safetensors")
        return [first, *(first.with_name(f"{file_stem(word)}.safetensors") for word in self.config.triggers[1:])]

    @property
    def whole(self) -> bool:
        """Return whether all files of the run exist; its log, which an imported concept lacks, shows whose they are."""
        first, *others = self.outputs
        return all(path.exists() for path in (losses_of(first), *others, first))

    def require_pictures(self) -> None:
        """Refuse a run without a folder of pictures if the method neither draws nor composes its own.

        Raises:
            DataError: if it does not.
            ConfigError: if it has a folder and is to compose its own.
        """
        composed = getattr(self.config, "composed", 0)
        if composed and self.data.images:
            raise ConfigError("One source of pictures is needed.", "Leave out the pictures, or `composed`.")
        if not (self.data.images or self.config.drawn_prompts or composed):
            require_folder(None)

    def require_free(self) -> list[Path]:
        """Return the files of the result, which can be written.

        Raises:
            ConfigError: if one is there already, something is there that is no such result, two are the same, or the
                disk is full.
        """
        outputs = self.outputs
        for path in outputs:
            if outputs.count(path) > 1:
                raise ConfigError(
                    f"Two subjects would be written to {path}.", "Choose other tokens, or another --output."
                )
            if self.config.gives_folder:
                require_replaceable(path)
            if path.exists() and not self.where.overwrite:
                raise ConfigError(
                    f"{path} is there already.", "Choose another --output, or replace it with --overwrite."
                )
        require_room(outputs[0].parent, 64 << 20)
        return outputs


def require_replaceable(folder: Path) -> None:
    """Refuse a place for a model where something is that no training wrote, which would be lost.

    Raises:
        ConfigError: if there is.
    """
    if (folder.exists() or folder.is_symlink()) and not all((folder / name).is_file() for name in MODEL_FILES):
        raise ConfigError(
            f"{folder} is there already, and is no model that a training wrote; it is never replaced.",
            "Give another --output.",
        )


def run_of(
    method: Method[Any], settings: Mapping[str, Any], made: Callable[[Any, dict[str, Any]], Any] | None = None
) -> Run:
    """Return a run of settings by name, whichever configuration each belongs to.

    Args:
        method: the method.
        settings: by name; each goes to every configuration that has it.
        made: makes a configuration of its class and fields; the class itself by default.
    """
    parts = [
        (made or _made)(kind, {name: value for name, value in settings.items() if name in kind.model_fields})
        for kind in (method.Settings, TrainConfig, DataConfig, Destination)
    ]
    return Run(method, *parts)


def _made(kind: Any, fields: dict[str, Any]) -> Any:
    return kind(**fields)


def losses_of(output: Path) -> Path:
    """Return the log of losses beside a result."""
    return output.with_name(f"{stem_of(output)}.losses.jsonl")


def state_of(output: Path) -> Path:
    """Return the folder of the training state of a result."""
    return output.with_name(f".{stem_of(output)}.state")


def over_of(output: Path) -> Path:
    """Return the folder that a training state becomes when the run is over, before it is removed."""
    return output.with_name(f"{state_of(output).name}.over")


def forget_state(output: Path) -> None:
    """Remove the state of the training of a result, also one that was about to be removed."""
    for folder in (state_of(output), over_of(output)):
        shutil.rmtree(folder, ignore_errors=True)
