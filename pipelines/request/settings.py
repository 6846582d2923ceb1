"""Base classes of all settings. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from pipelines.request.texts import flaw, texts


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
