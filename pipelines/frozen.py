"""What all settings are made of. Importable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Base of all settings: immutable, unknown names refused, attribute docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class FileOf:
    """Marks a field whose text names a file: a path in Python and on the command line, an id by REST and on the page.

    Attributes:
        kind: what file.
    """

    kind: Literal["concept", "picture"]
