"""Every setting of every method, folded: derived from the settings classes, grouped as these are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import gradio as gr
from pydantic import Field, create_model

from pipelines.request.request import Frozen
from studio.jobs.specs import of_clients
from studio.web.components import fold
from studio.web.forms import Form
from studio.web.panels.subjects import WHATS
from trainers.method import Method
from trainers.methods import methods
from trainers.settings import DataConfig, TrainConfig

ASKED = ("images", "steps")
"""Settings that the page asks for elsewhere."""
RECIPE = "recommended"


def groups_of(kind: type[Frozen], without: Sequence[str] = ()) -> list[tuple[str, list[str]]]:
    """Return the settings of a class that a client decides, in groups with a title: its own, then those it inherits."""
    seen = {*ASKED, *without}
    groups: list[tuple[str, list[str]]] = []
    for one in reversed(kind.__mro__):
        if isinstance(one, type) and issubclass(one, Frozen) and one is not Frozen:
            fields = one.model_fields
            names = [n for n in fields if n in kind.model_fields and n not in seen and of_clients(n, fields[n])]
            seen |= set(names)
            if names:
                groups.insert(0, ((one.__doc__ or "").strip().partition("\n")[0].rstrip("."), names))
    return groups


def left_open(kind: type[Frozen], names: Sequence[str]) -> type[Frozen]:
    """Return a class of some settings of another, each of which may be left out."""
    fields: dict[str, Any] = {}
    for name in names:
        field = kind.model_fields[name]
        annotation: Any = field.annotation
        fields[name] = (annotation | None, Field(default=None, description=field.description))
    return create_model(f"Open{kind.__name__}", __base__=Frozen, **fields)


class AdvancedPanel:
    """Components of the panel; made inside `gr.Blocks`."""

    def __init__(self, first: str) -> None:
        self.forms: dict[str, list[Form]] = {}
        self.columns: dict[str, gr.Column] = {}
        with fold("Every setting", "advanced"):
            for name, method in methods().items():
                asked = [word for offer in method.offers for word in offer.words]
                with gr.Column(visible=name == WHATS[first].method.name) as self.columns[name]:
                    self.forms[name] = self._forms(method.Settings, f"advanced-{name}", asked)
            self.shared = [form for kind in (DataConfig, TrainConfig) for form in self._forms(kind, "advanced")]

    @staticmethod
    def _forms(kind: type[Frozen], page: str, without: Sequence[str] = ()) -> list[Form]:
        forms: list[Form] = []
        for title, names in groups_of(kind, without):
            gr.Markdown(f"**{title}**")
            labels = {name: name.replace("_", " ").capitalize() for name in names}
            with gr.Row():
                forms.append(Form(left_open(kind, names), labels, page, own=RECIPE, sliders=False))
        return forms

    @property
    def components(self) -> list[Any]:
        """All fields, those of every method and then the shared ones."""
        return [component for form in self._all() for component in form.components]

    def _all(self) -> list[Form]:
        return [*(form for forms in self.forms.values() for form in forms), *self.shared]

    def explain(self, what: str) -> list[Any]:
        """Return updates of the columns: only that of the method is shown."""
        return [gr.update(visible=name == WHATS[what].method.name) for name in self.columns]

    def given(self, method: Method[Any], values: Sequence[Any]) -> dict[str, Any]:
        """Return the settings that were set for a method, from the values of all components; none without values."""
        settings: dict[str, Any] = {}
        left = list(values) or [""] * len(self.components)
        for form in self._all():
            own, left = left[: len(form.paths)], left[len(form.paths) :]
            if form in self.forms[method.name] or form in self.shared:
                settings |= _listed(form.model, form.given(own))
        return settings


def _listed(model: type[Frozen], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with the lines of a text in the place of the text, where a setting is several."""

    def several(name: str) -> bool:
        annotation = model.model_fields[name].annotation
        return any(get_origin(part) is tuple for part in (annotation, *get_args(annotation)))

    return {
        name: [line.strip() for line in str(value).splitlines() if line.strip()] if several(name) else value
        for name, value in given.items()
    }
