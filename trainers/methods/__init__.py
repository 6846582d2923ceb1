"""Methods: how something is learned, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainers.method import Method


class Enrolled(NamedTuple):
    """A method as it is listed before it is loaded.

    Attributes:
        where: module in this folder and class, with a colon between.
        does: the first line of the class's docstring, for help that is shown without torch.
    """

    where: str
    does: str


ENROLLED = {
    "textual-inversion": Enrolled("textual_inversion:TextualInversion", "Learns the embedding rows of a new word."),
    "dreambooth": Enrolled("dreambooth:DreamBooth", "Binds a subject into the weights, low-rank or whole."),
    "custom-diffusion": Enrolled(
        "custom_diffusion:CustomDiffusion",
        "Learns a new word with the keys and values of cross-attention; several are merged.",
    ),
    "reversion": Enrolled("reversion:ReVersion", "Learns a word for the relation between two things."),
}
"""All methods by name. A new one is enrolled by its line here."""


def method(name: str) -> Method:
    """Load a method, and torch with it.

    Raises:
        KeyError: if no method is enrolled under `name`.
    """
    module, kind = ENROLLED[name].where.split(":")
    return getattr(import_module(f"trainers.methods.{module}"), kind)()


def methods() -> dict[str, Method]:
    """Load all methods, by name, and torch with them."""
    return {name: method(name) for name in ENROLLED}
