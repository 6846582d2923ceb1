"""Inference: a request in, pictures out. Public names are loaded when they are first used.

`Request`, `Axis`, `ConceptCard` and the errors import without torch; everything else brings it along.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pipelines.console import leave_out_the_fallback_to_pillow

if TYPE_CHECKING:
    from pipelines.concepts.card import ConceptCard as ConceptCard
    from pipelines.concepts.card import read_card as read_card
    from pipelines.concepts.concept import Concept as Concept
    from pipelines.generation import generate as generate
    from pipelines.measures.judge import Judge as Judge
    from pipelines.models.components import Components as Components
    from pipelines.models.loading import load as load
    from pipelines.request.axes import Axis as Axis
    from pipelines.request.axes import cells as cells
    from pipelines.request.request import Box as Box
    from pipelines.request.request import ConceptUse as ConceptUse
    from pipelines.request.request import ExamplePair as ExamplePair
    from pipelines.request.request import Grounding as Grounding
    from pipelines.request.request import Guidance as Guidance
    from pipelines.request.request import InContext as InContext
    from pipelines.request.request import Inpaint as Inpaint
    from pipelines.request.request import Request as Request
    from pipelines.sampling import Result as Result

_WHERE = {
    "Axis": "request.axes",
    "cells": "request.axes",
    "Components": "models.components",
    "load": "models.loading",
    "Concept": "concepts.concept",
    "ConceptCard": "concepts.card",
    "read_card": "concepts.card",
    "Result": "sampling",
    "Judge": "measures.judge",
    "Box": "request.request",
    "ConceptUse": "request.request",
    "generate": "generation",
    "ExamplePair": "request.request",
    "Grounding": "request.request",
    "Guidance": "request.request",
    "InContext": "request.request",
    "Inpaint": "request.request",
    "Request": "request.request",
}

leave_out_the_fallback_to_pillow()

__all__ = [*_WHERE]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"pipelines.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'pipelines' has no attribute {name!r}")
