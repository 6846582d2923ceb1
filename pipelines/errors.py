"""Errors meant for people: what is wrong, and what to do next.

Raised with the offending value, the allowed range and the next step. They are caught at three places only: the
command line (exit code 2), the web layer and the job runner. Everything else stays an ordinary Python exception.
"""

from __future__ import annotations


class StudioError(Exception):
    """An error that a person can correct.

    Args:
        message: one sentence: what is wrong, with the value.
        hint: one sentence: what to do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class ConfigError(StudioError):
    """A setting or a training configuration that cannot be used."""


class NoSpace(ConfigError, OSError):  # noqa: N818 - what it says
    """The disk is full. An `OSError` too, for callers that go on without a file."""


class NoMemory(StudioError):  # noqa: N818 - what it says
    """The machine's memory, or its GPU's, is not enough."""


class RequestError(StudioError):
    """A generation request that cannot be carried out."""


class NotNumbers(RequestError):  # noqa: N818 - named for what the picture is
    """A result that is no picture: it has infinite or undefined values."""


class ModelError(StudioError):
    """A base model that cannot be loaded or does not fit."""


class ConceptError(StudioError):
    """A concept file that cannot be read, written or used with this base."""


class DataError(StudioError):
    """Training pictures or captions that cannot be used."""


class Unknown(StudioError):  # noqa: N818 - what it says
    """An id that does not exist."""


class Conflict(StudioError):  # noqa: N818 - named as HTTP names it
    """A request that does not fit the state of what it is about."""


class Cancelled(StudioError):  # noqa: N818 - stopping on request is not an error
    """The person stopped the work. Not a failure."""
