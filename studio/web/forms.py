"""Form fields derived from settings classes: the attribute docstrings are the help, the limits are the limits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, get_args, get_origin

import annotated_types
import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.request.guidance import MOST_PROMPTS, Prompt
from pipelines.request.inpaint import Inpaint
from pipelines.request.request import Frozen
from pipelines.request.settings import file_of
from studio.web.components import dial, further_prompts, records, start_picture

OWN = "automatic"
"""Label of a choice that is left to the base."""

BICUBIC = "none (bicubic)"
"""Label of the choice of no upscaler."""

PAPER = re.compile(r" \([^()]*(?:arXiv|section)[^()]*\)")
"""References in a docstring, which the reference of the docs has."""

SLIDERS: Mapping[str, tuple[float, float, float, float]] = MappingProxyType(
    {
        "scale": (1, 15, 0.5, 5),
        "rescale": (0, 1, 0.05, 0),
        "steps": (1, 100, 1, 25),
        "width": (64, 1536, 32, 512),
        "height": (64, 1536, 32, 512),
        "strength": (0.05, 1, 0.05, 1),
        "padding": (0, 256, 8, 32),
        "factor": (1, 4, 0.5, 1),
        "grow": (0, 64, 1, 0),
        "feather": (0, 64, 1, 0),
    }
)
"""Name of a field -> ends and step of its slider, and where it stands while the base decides. What is allowed may be
more, and can be typed; other fields have their limits as ends."""


def _field(model: type[BaseModel], path: str) -> FieldInfo:
    *groups, name = path.split(".")
    for group in groups:
        model = model.model_fields[group].annotation  # pyright: ignore[reportAssignmentType]
    return model.model_fields[name]


def _limits(field: FieldInfo) -> dict[str, float]:
    limits: dict[str, Any] = {}
    for rule in field.metadata:
        if isinstance(rule, annotated_types.Ge):
            limits["minimum"] = rule.ge
        elif isinstance(rule, annotated_types.Le):
            limits["maximum"] = rule.le
    return limits


def _slider(name: str, kind: type, field: FieldInfo, default: Any) -> dict[str, Any]:
    """Return ends, step, limits and value of the slider of a field."""
    limits = _limits(field)
    ends = limits.get("minimum", 0), limits.get("maximum", 1)
    low, high, step, start = SLIDERS.get(name, (*ends, 1 if kind is int else 0.05, ends[0]))
    found = {"low": low, "high": high, "step": step, "start": start if default is None else default}
    return found | limits | {"value": default, "open": default is None}


def _said(field: FieldInfo) -> str:
    """Return the help of a field for people: its docstring without papers."""
    plain = " ".join((field.description or "").replace("`", "").split())
    return PAPER.sub("", plain)


def component(
    model: type[BaseModel], path: str, label: str, own: str = OWN, sliders: bool = True, **more: Any
) -> Component:
    """Return the component for a field; an optional one may be empty, and then another decides.

    Args:
        model: the settings.
        path: of the field, with dots into groups: `guidance.scale`.
        label: label for people.
        own: who decides what is left empty.
        sliders: a number has a slider, rather than a field for text.
        more: for the component.
    """
    field = _field(model, path)
    given = {"label": label, **({} if sliders else {"info": _said(field)}), **more}
    mark = file_of(field)
    if mark is not None and mark.kind == "upscaler":
        return gr.Dropdown(upscalers(()), value="", **given)
    kinds = [kind for kind in get_args(field.annotation) if kind is not type(None)] or [field.annotation]
    default = field.get_default()
    choice = next((kind for kind in [field.annotation, *kinds] if get_origin(kind) is Literal), None)
    if choice is not None:
        open_ = [(own, "")] if default is None else []
        return gr.Dropdown([*open_, *get_args(choice)], value=default or "", **given)
    if kinds[0] is bool and default is None:
        return gr.Dropdown([(own, ""), ("yes", "true"), ("no", "false")], value="", **given)
    if kinds[0] is bool:
        return gr.Checkbox(value=bool(default), **given)
    if kinds[0] in (int, float):
        if not sliders:  # an empty gr.Number turns into 0 by itself when its tab is opened
            return gr.Textbox(value="" if default is None else str(default), placeholder=own, max_length=20, **given)
        return dial(**given, **_slider(path.rpartition(".")[2], kinds[0], field, default))
    if get_args(field.annotation)[:1] == (Prompt,):
        return further_prompts(label, MOST_PROMPTS, **more)
    if kinds[0] is Inpaint:
        return start_picture(label, **more)
    if any(get_origin(kind) is tuple for kind in [field.annotation, *kinds]):
        return gr.Textbox(value="\n".join(default or ()), lines=2, placeholder="one on each line", **given)
    return gr.Textbox(value=default or "", **given)


def upscalers(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return the choices of a field for upscalers, first none of them."""
    return [(BICUBIC, ""), *((Path(name).stem, name) for name in names)]


def identity(page: str, path: str) -> str:
    """Return the name of the component of a field on a page."""
    return f"{page}-{path.replace('.', '-')}"


def helps(page: str, model: type[BaseModel], labels: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return the name of each field's component -> its label and its help."""
    return {identity(page, path): (label, _said(_field(model, path))) for path, label in labels.items()}


class Form:
    """Several fields of one settings class, in order.

    Args:
        model: the settings.
        labels: path of each field -> what people call it.
        name: of the page, which names of components begin with.
        own: who decides what is left empty.
        sliders: numbers have sliders, rather than fields for texts.
    """

    def __init__(
        self, model: type[Frozen], labels: Mapping[str, str], name: str, own: str = OWN, sliders: bool = True
    ) -> None:
        self.model, self.paths = model, tuple(labels)
        self.components = [
            component(model, path, label, own, sliders, elem_id=identity(name, path)) for path, label in labels.items()
        ]

    def _chosen(self, path: str) -> bool:
        """Return whether a field is a list to choose from, in which nothing chosen is an empty text."""
        return isinstance(self.components[self.paths.index(path)], gr.Dropdown)

    def given(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return values of the components in the shape of the settings, without empty ones."""
        fields: dict[str, Any] = {}
        for path, value in zip(self.paths, values, strict=True):
            if value is None or str(value).strip() == "":
                continue
            if isinstance(value, Mapping):  # a picture to start from
                if not value.get("image"):
                    continue
                value = {name: value[name] for name in ("image", "strength") if value.get(name) is not None}
            elif isinstance(value, list):  # records; empty rows of them are none
                value = [one for one in records(value) if str(one.get("prompt", "")).strip()]
                if not value:
                    continue
            group, _, name = path.rpartition(".")
            (fields.setdefault(group, {}) if group else fields)[name] = value
        return fields

    def shown(self, settings: BaseModel) -> Iterator[Any]:
        """Return values for the components from settings."""
        for path in self.paths:
            value: Any = settings
            for name in path.split("."):
                value = getattr(value, name)
            if isinstance(value, tuple) and all(isinstance(one, BaseModel) for one in value):
                value = [one.model_dump(exclude_defaults=True) | {"weight": one.weight} for one in value]
            if isinstance(value, Inpaint):  # an order names its picture by its id, a picture by its place
                value = {"image": Path(value.image).stem, "strength": value.strength} if value.whole else None
            if path == "enlarge.upscaler" and value is not None:
                value = Path(str(value)).name
            yield "" if value is None and self._chosen(path) else value
