"""Flags of `studio generate`, derived from `Request`: a field added there is a flag here, with its help and default.

A field of a settings group is spelled with the group's name (`guidance.scale` is `--guidance-scale`); a field that
lists things is spelled in the singular and read by the line of `LISTED` that names it. `Request` checks the values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args, get_origin

from cyclopts import Group, Parameter
from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from pipelines.request.boxes import box_use
from pipelines.request.guidance import prompt_use
from pipelines.request.regions import region_use
from pipelines.request.request import Frozen, Request
from studio.library.names import named_use

LISTED: Mapping[str, tuple[str, Callable[[str], dict[str, object]], str]] = MappingProxyType(
    {
        "concepts": (
            "concept",
            named_use,
            "A learned concept: its word or name in outputs/concepts, or its file; with a strength if wanted: wolf,"
            " wolf:0.8 or fox.safetensors:0.8.",
        ),
        "boxes": (
            "box",
            box_use,
            "A thing and its left, top, right and bottom edge in fractions of the picture: fox:0.1,0.2,0.5,0.6.",
        ),
        "regions": (
            "region",
            region_use,
            "A part of the picture with a prompt of its own: its edges in fractions, or a mask that is white there:"
            " a fox:0.1,0.2,0.5,0.6, or a fox@mask.png. Weights of a concept that it names act there alone.",
        ),
        "also": (
            "also",
            prompt_use,
            "A further prompt of the same picture with its weight: a house:0.8; below 0 what shall not be there.",
        ),
    }
)
"""For each field that lists things: its flag, what reads one of them from text, and the flag's help."""

GROUPS: Mapping[str, Group] = MappingProxyType(
    {
        "": Group("Picture", sort_key=1),
        "grounding": Group("Boxes", sort_key=2),
        "inpaint": Group("Repainting", sort_key=3),
        "enlarge": Group("Larger pictures", sort_key=5),
        "guidance": Group("Guidance", sort_key=4),
        "excite": Group("Things that are missing", sort_key=6),
    }
)
"""Headings of the help by the settings group of a field; the empty one is of fields that stand alone."""

MACHINE = Group("Machine", sort_key=9)
"""Heading of the settings of the machine."""

PLACED = ("prompt", "in_context")
"""Fields given by their place on the command line, or by a command of their own, rather than by a flag."""


FILLED_IN = ("digests",)
"""Fields of groups that are filled in when a request is carried out, never given."""


def flag(field: FieldInfo) -> tuple[Any, Any]:
    """Return the flag of a field; a required field of an optional group becomes optional."""
    kind: Any = field.annotation
    if any(get_origin(getattr(part, "__origin__", part)) is tuple for part in (kind, *get_args(kind))):
        kind = str | None  # numbers with commas between them, which `Request` reads
    kind, default = (kind | None, None) if field.is_required() else (kind, field.default)
    return kind, Field(default=default, description=" ".join((field.description or "").split()))


def _group(field: FieldInfo) -> type[BaseModel] | None:
    """Return the settings group that a field holds, or may hold."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _flags() -> dict[str, Any]:
    """Return the fields of `Asked`: types and defaults of `Request`'s, without their limits."""

    def under(group: str, kind: Any, **more: Any) -> Any:
        return Annotated[kind, Parameter(group=GROUPS[group] if group in GROUPS else Group(group.capitalize()), **more)]

    flags: dict[str, Any] = {}
    shown = {"boxes": "grounding", "regions": "grounding", "also": "guidance"}
    for name, field in Request.model_fields.items():
        group = _group(field)
        if name in PLACED:
            continue
        if name in LISTED:
            called, _, text = LISTED[name]
            flags[called] = (
                under(
                    shown.get(name, ""),
                    tuple[str, ...],
                    negative="",
                ),
                Field(default=(), description=f"{text} May be repeated."),
            )
        elif group is not None:
            for inner, one in group.model_fields.items():
                if inner not in FILLED_IN:
                    kind, default = flag(one)
                    flags[f"{name}_{inner}"] = (under(name, kind), default)
        else:
            kind, default = flag(field)
            flags[name] = (under("", kind), default)
    return flags


_Flags: Any = create_model("_Flags", __base__=Frozen, **_flags())


class Asked(_Flags):
    """The values of all flags; `given` returns them in the shape of a `Request`."""


def given(asked: BaseModel) -> dict[str, Any]:
    """Return the flags that were given, nested as the fields of `Request` are; values are unchecked, names looked up.

    Raises:
        ConceptError: if there is no such concept.
    """
    said = {name: getattr(asked, name) for name in asked.model_fields_set}
    fields: dict[str, Any] = {}
    for name, field in Request.model_fields.items():
        group = _group(field)
        if name in LISTED:
            called, read, _ = LISTED[name]
            if called in said:
                fields[name] = [read(text) for text in said[called]]
        elif group is not None:
            inner: dict[str, Any] = {
                one: said[f"{name}_{one}"] for one in group.model_fields if f"{name}_{one}" in said
            }
            fields |= {name: inner} if inner else {}
        elif name in said:
            fields[name] = said[name]
    return fields
