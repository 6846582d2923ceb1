"""Methods: how something is learned, one file each, or from other packages by an entry point. Needs no torch.

A package enrols a method by an entry point of the group `promptstudio.methods`, in its `pyproject.toml`:

    [project.entry-points."promptstudio.methods"]
    my-method = "my_package.my_method:MyMethod"
"""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainers.method import Method
    from trainers.settings import MethodConfig

GROUP = "promptstudio.methods"
_log = logging.getLogger(__name__)

ENROLLED = {
    "textual-inversion": "trainers.methods.textual_inversion:TextualInversion",
    "p-plus": "trainers.methods.p_plus:PPlus",
    "dreambooth": "trainers.methods.dreambooth:DreamBooth",
    "custom-diffusion": "trainers.methods.custom_diffusion:CustomDiffusion",
    "reversion": "trainers.methods.reversion:ReVersion",
    "slider": "trainers.methods.slider:Slider",
    "inpainting": "trainers.base_models.inpainting:InpaintingTraining",
    "grounding": "trainers.base_models.grounding:GroundingTraining",
    "incontext": "trainers.base_models.incontext:InContextTraining",
    "task-word": "trainers.methods.task_word:TaskWord",
}
"""Module and class of the studio's own methods, by name. A new one is enrolled by its line here."""


@cache
def methods() -> dict[str, Method[Any]]:
    """Return all methods by name: the studio's own, then those of other packages.

    A method of another package that cannot be had is named in the log, and the others stay.
    """
    found: dict[str, Method[Any]] = {}
    for name, where in ENROLLED.items():
        module, kind = where.split(":")
        found[name] = getattr(import_module(module), kind)()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        package = point.dist.name if point.dist else point.value
        try:
            found[point.name] = _loaded(point, found)
        except Exception as error:  # whatever another package does while it is imported
            _log.warning(
                f"The method {point.name!r} of {package} is left out: {error}. Mend or remove the package {package}."
            )
    return found


def _loaded(point: EntryPoint, found: dict[str, Method[Any]]) -> Method[Any]:
    """Return the method of another package's entry point.

    Raises:
        ValueError: if its name is taken or is not the method's own.
    """
    if point.name in found:
        raise ValueError("there is one of this name already")
    method = point.load()()
    if method.name != point.name:
        raise ValueError(f"it calls itself {method.name!r}")
    return method


def summary(method: Method[Any]) -> str:
    """Return the first line of a method's docstring, which says what it does."""
    return (type(method).__doc__ or "").strip().partition("\n")[0]


def configs() -> dict[str, type[MethodConfig]]:
    """Return the settings class of each method, by its name."""
    return {name: method.Settings for name, method in methods().items()}
