"""Methods: how something is learned, one file each."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainers.method import Method


def methods() -> dict[str, Method]:
    """All methods by name. A new one is enrolled by its line here."""
    from trainers.methods.custom_diffusion import CustomDiffusion
    from trainers.methods.dreambooth import DreamBooth
    from trainers.methods.reversion import ReVersion
    from trainers.methods.textual_inversion import TextualInversion

    listed: list[Method] = [TextualInversion(), DreamBooth(), CustomDiffusion(), ReVersion()]
    return {method.name: method for method in listed}
