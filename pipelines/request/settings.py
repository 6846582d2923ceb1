"""Base classes of all settings. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from pipelines.request.texts import flaw, texts

Model = TypeVar("Model", bound=BaseModel)

Quantised = Literal["int8", "fp8", "nf4"]
"""Forms that frozen weights can be kept in, of 8 or 4 bits a number."""


@dataclass(frozen=True)
class FileContent:
    """Marks a field whose text is the content of a file, in base64: it has a limit of its own."""


class Sound(BaseModel):
    """Base of everything that is read from outside: all texts are checked by `pipelines.request.texts`."""

    @field_validator("*")
    @classmethod
    def _sound_texts(cls, value: Any, info: ValidationInfo) -> Any:
        marks = cls.model_fields[info.field_name or ""].metadata
        if not any(isinstance(mark, FileContent) for mark in marks):
            for text in texts(value):
                if why := flaw(text):
                    raise ValueError(why)
        return value


class Frozen(Sound):
    """Base of all settings: immutable, unknown names refused, attribute docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class FileOf:
    """Marks a field whose text names a file: a path in Python and on the command line, an id by REST and on the page.

    Attributes:
        kind: kind of file; "own" for what the machine that works decides, which no client names.
        after: number of further parts of the text behind the path, each after a colon.
    """

    kind: Literal["concept", "picture", "upscaler", "dataset", "own"]
    after: int = 0

    def with_path(self, text: str, path: Callable[[str, str], str]) -> str:
        """Return the text with another path; `path` is called with the kind and the path that is there."""
        first, *rest = text.rsplit(":", self.after) if self.after else [text]
        return ":".join((path(self.kind, first.strip()), *rest))


def file_of(field: FieldInfo) -> FileOf | None:
    """Return the mark of a field that names a file, or whose parts do."""
    return next((mark for mark in _marks(field.metadata, field.annotation) if isinstance(mark, FileOf)), None)


def _marks(metadata: Iterable[Any], annotation: Any) -> list[Any]:
    inside = [mark for part in get_args(annotation) for mark in _marks(getattr(part, "__metadata__", ()), part)]
    return [*metadata, *getattr(annotation, "__metadata__", ()), *inside]


def without_files(settings: BaseModel) -> dict[str, Any]:
    """Return settings as JSON that may be given away: no paths, and DIR for the path within a longer text."""
    fields = type(settings).model_fields
    marks = {name: mark for name, field in fields.items() if (mark := file_of(field)) is not None}
    kept = settings.model_dump(mode="json", exclude={name for name, mark in marks.items() if not mark.after})
    for name in kept.keys() & marks.keys():
        kept[name] = [marks[name].with_path(text, lambda kind, path: "DIR") for text in kept[name]]
    return kept


def holds_models(value: Any) -> bool:
    """Return whether a value is settings within settings, or several of them."""
    return isinstance(value, BaseModel) or (
        isinstance(value, tuple) and bool(value) and all(isinstance(one, BaseModel) for one in value)
    )


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value changed, or each of several."""
    return tuple(change(one) for one in value) if isinstance(value, tuple) else change(value)


def with_files(model: Model, change: Callable[[str, str], str]) -> Model:
    """Return the same settings with every text that names a file changed, at any depth.

    Args:
        model: the settings.
        change: is given the kind of file and its text, and returns the new text.
    """
    changes: dict[str, Any] = {}
    for name, field in type(model).model_fields.items():
        value, mark = getattr(model, name), file_of(field)
        if mark is not None and value is not None:
            changes[name] = mapped(value, lambda one, mark=mark: mark.with_path(str(one), change))
        elif holds_models(value):
            changes[name] = mapped(value, lambda one: with_files(one, change))
    return model.model_copy(update=changes) if changes else model
