"""Base classes of all settings. Importable without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from pipelines.request.texts import flaw, texts

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Encoded:
    """Marks a field whose text is the content of a file, in base64: it has a limit of its own."""


class Sound(BaseModel):
    """Base of everything that is read from outside: all texts are checked by `pipelines.request.texts`."""

    @field_validator("*")
    @classmethod
    def _sound_texts(cls, value: Any, info: ValidationInfo) -> Any:
        marks = cls.model_fields[info.field_name or ""].metadata
        if not any(isinstance(mark, Encoded) for mark in marks):
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
        kind: kind of file.
    """

    kind: Literal["concept", "picture"]


def marks_of(field: Any) -> list[Any]:
    """Return the annotations of a field and of its parts."""

    def inside(annotation: Any) -> list[Any]:
        own = list(getattr(annotation, "__metadata__", ()))
        return own + [mark for part in get_args(annotation) for mark in inside(part)]

    return [*field.metadata, *inside(field.annotation)]


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
        value = getattr(model, name)
        kind = next((mark.kind for mark in marks_of(field) if isinstance(mark, FileOf)), None)
        if kind is not None and value is not None:
            changes[name] = mapped(value, lambda one, kind=kind: change(kind, str(one)))
        elif holds_models(value):
            changes[name] = mapped(value, lambda one: with_files(one, change))
    return model.model_copy(update=changes) if changes else model
