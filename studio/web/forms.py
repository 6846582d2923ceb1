"""Form fields derived from settings classes: the attribute docstrings are the help, the limits are the limits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

import annotated_types
import gradio as gr
from gradio.components import Component
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipelines.request.request import Frozen

OWN = "the base's own"


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


def component(model: type[BaseModel], path: str, label: str, own: str = OWN, **more: Any) -> Component:
    """Return the component for a field; an optional one may be empty, and then another decides.

    Args:
        model: the settings.
        path: of the field, with dots into groups: `guidance.scale`.
        label: label for people.
        own: who decides what is left empty.
        more: for the component.
    """
    field = _field(model, path)
    given = {"label": label, "info": " ".join((field.description or "").replace("`", "").split()), **more}
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
        if default is None:  # an empty gr.Number turns into 0 by itself when its tab is opened
            return gr.Textbox(value="", placeholder=own, max_length=20, **given)
        return gr.Number(value=default, precision=0 if kinds[0] is int else None, **_limits(field), **given)
    if any(get_origin(kind) is tuple for kind in [field.annotation, *kinds]):
        return gr.Textbox(value="\n".join(default or ()), lines=2, placeholder="one on each line", **given)
    return gr.Textbox(value=default or "", **given)


class Form:
    """Several fields of one settings class, in order.

    Args:
        model: the settings.
        labels: path of each field -> what people call it.
        own: who decides what is left empty.
    """

    def __init__(self, model: type[Frozen], labels: Mapping[str, str], own: str = OWN) -> None:
        self.model, self.paths = model, tuple(labels)
        self.components = [component(model, path, label, own) for path, label in labels.items()]

    def _open(self, path: str) -> bool:
        return _field(self.model, path).default is None

    def given(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return values of the components in the shape of the settings, without empty ones."""
        fields: dict[str, Any] = {}
        for path, value in zip(self.paths, values, strict=True):
            if value is None or str(value).strip() == "":
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
            known = value is not None
            yield value if known and not self._open(path) else str(value) if known else ""
