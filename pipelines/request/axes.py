"""Comparisons: one request with one or two of its settings varied, as rows and columns. Needs no torch.

What AUTOMATIC1111 calls an X/Y plot. An axis names a field of `Request` with dots, so that a field added there can be
compared at once; its values are read and checked as those of the field.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePath
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from pipelines.errors import RequestError
from pipelines.request.request import FileOf, Frozen, Request, problems

CELLS = 100
"""Most pictures of one comparison."""

WORDS = "words"
"""The axis that is no field: its first value is replaced by each of its values, wherever the prompts say it."""

PROMPTS = ("prompt", "negative_prompt")
"""Prompts of a request, of a region, and of a further prompt."""

LETTERS = 20_000
"""Most letters of a text in which words were replaced: replacing multiplies, and all cells are made at once."""

Value = Annotated[str, Field(max_length=4000)] | bool | int | Annotated[float, Field(allow_inf_nan=False)]


class Axis(Frozen):
    """The values of a setting that one direction of a comparison varies."""

    field: str = Field(min_length=1, max_length=200)
    """A field of the request, with dots into groups: guidance.scale, steps, scheduler, seed, prompt,
    concepts.NAME.strength or concepts.1.strength; or words, which puts each of the values in the place of the first in
    the prompts."""

    values: tuple[Value, ...] = Field(min_length=1)
    """One for each column or row; text is read as the field needs it."""

    def label(self, value: Value) -> str:
        """Return the label of a value.

        >>> Axis(field="guidance.scale", values=(2.5,)).label(2.5)
        'guidance scale 2.5'
        """
        said = f"{value:g}" if isinstance(value, float) else str(value)
        called = self.field.removeprefix("concepts.").replace(".", " ").replace("_", " ")
        return said if self.field in (WORDS, "prompt") else f"{called} {said}"


def values_in(text: str) -> tuple[str, ...]:
    """Split values at commas, or at `|` where they contain commas themselves.

    >>> values_in("1, 2,4"), values_in("a fox, asleep|a cat")
    (('1', '2', '4'), ('a fox, asleep', 'a cat'))
    """
    parts = tuple(part.strip() for part in text.split("|" if "|" in text else ","))
    return parts if "|" in text else tuple(filter(None, parts))


def axis_of(text: str) -> Axis:
    """Read `steps=5,10,20` as an axis.

    Raises:
        RequestError: if it is not of that form.
    """
    field, equals, values = text.partition("=")
    if not (equals and field.strip() and values_in(values)):
        raise RequestError(
            f"{text!r:.80} does not say what to compare.",
            "Write FIELD=VALUE,VALUE, for example guidance.scale=1,2,4, or VALUE|VALUE if values hold commas.",
        )
    return axes_of([{"field": field.strip(), "values": values_in(values)}])[0]


def axes_of(given: Sequence[Any]) -> tuple[Axis, ...]:
    """Read axes from untrusted data.

    Raises:
        RequestError: with every problem found.
    """
    try:
        return tuple(Axis.model_validate(one) for one in given)
    except ValidationError as error:
        raise RequestError(f"An axis cannot be: {problems(error)}", "Give it a field and its values.") from None


def cells(request: Request, axes: Sequence[Axis]) -> tuple[tuple[Request, ...], ...]:
    """Return the requests of a comparison: rows of columns. The first axis runs across, the second down.

    All have the seed of the request, unless the seed is what is compared.

    Raises:
        RequestError: if there are too many pictures, an axis names nothing that can be compared, or a value is out of
            the range of its field; it says which.
    """
    if not 1 <= len(axes) <= 2:
        raise RequestError(f"{len(axes)} axes were given.", "Compare one or two settings.")
    columns, rows = len(axes[0].values), len(axes[1].values) if len(axes) > 1 else 1
    if columns * rows > CELLS:
        raise RequestError(
            f"{columns} x {rows} are {columns * rows} pictures; a comparison has at most {CELLS}.", "Give fewer values."
        )
    if request.count != 1:
        raise RequestError(
            f"The request asks for {request.count} pictures (count).",
            "A comparison has one for each value; compare the seed to see several.",
        )
    places = [None if axis.field == WORDS else _place(request, axis.field) for axis in axes]
    if len(axes) > 1 and places[0] is not None and places[1] is not None and places[0].keys == places[1].keys:
        raise RequestError(f"{axes[0].field} is compared twice.", "Compare two different settings, or one.")
    downward: Sequence[tuple[Value, ...]] = [(down,) for down in axes[1].values] if len(axes) > 1 else [()]
    return tuple(
        tuple(_cell(request, list(zip(axes, places, (across, *down), strict=True))) for across in axes[0].values)
        for down in downward
    )


def labels(axes: Sequence[Axis]) -> list[str]:
    """Return the label of each cell, the values it has of the axes, row by row."""
    across, *down = ([axis.label(value) for value in axis.values] for axis in axes)
    return [f"{column}, {row}" for row in down[0] for column in across] if down else across


def comparable() -> list[str]:
    """Return the fields that an axis may name, derived from `Request`; NAME stands for one of several."""
    return [WORDS, *_leaves(Request, "")]


# -- where a value goes -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A field within a request.

    Attributes:
        keys: names and positions that lead to it.
        info: its definition.
    """

    keys: tuple[str | int, ...]
    info: FieldInfo


def _model(kind: Any) -> type[BaseModel] | None:
    """Return the settings class that a type is, or may be."""
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, BaseModel):
            return one
    return None


def _listed(info: FieldInfo) -> type[BaseModel] | None:
    """Return the settings class of which a field holds several."""
    return _model(info.annotation) if get_origin(info.annotation) is tuple else None


def _group(info: FieldInfo) -> type[BaseModel] | None:
    """Return the settings group that a field is."""
    return None if _listed(info) else _model(info.annotation)


def _why_not(path: str, info: FieldInfo) -> str:
    """Return why a field cannot be compared; empty if it can."""
    if path == "count":
        return "is always 1 in a comparison"
    if any(isinstance(mark, FileOf) for mark in info.metadata):
        return "names a file"
    return "" if _scalar(info) is not None else "is more than one value"


def _scalar(info: FieldInfo) -> Any:
    """Return the type of a field's one value: a type, or a `Literal`; None if it holds several."""
    kind = info.annotation
    if get_origin(kind) is tuple:
        return None
    kinds = [kind] if get_origin(kind) is Literal else [kind, *get_args(kind)]
    return next((one for one in kinds if one in (str, int, float, bool) or get_origin(one) is Literal), None)


def _leaves(kind: type[BaseModel], before: str) -> Iterator[str]:
    for name, info in kind.model_fields.items():
        path = before + name
        if (listed := _listed(info)) is not None:
            yield from _leaves(listed, f"{path}.NAME.")
        elif (group := _group(info)) is not None:
            yield from _leaves(group, f"{path}.")
        elif not _why_not(path, info):
            yield path


def _place(request: Request, path: str) -> _Place:
    """Return the field that an axis names.

    Raises:
        RequestError: if nowhere.
    """
    if path.startswith("grounding.") and not (request.boxes or request.regions):  # all cells would be the same picture
        raise RequestError(f"The request has no boxes for {path:.80} to act on.", "Give it boxes.")
    holder: BaseModel = request
    keys: list[str | int] = []
    rest = path
    while True:
        name, dot, rest = rest.partition(".")
        info = type(holder).model_fields.get(name)
        if info is None:
            break
        keys.append(name)
        value = getattr(holder, name)
        if not dot:
            if _listed(info) or _group(info):
                break
            if why := _why_not(path, info):
                raise RequestError(f"{path} cannot be compared: it {why}.", _offer(path))
            return _Place(tuple(keys), info)
        if _listed(info):
            which, _, rest = rest.rpartition(".")  # names may hold dots
            keys.append(index := _index(name, value, which))
            holder = value[index]
        elif _group(info) and value is not None:
            holder = value
        elif _group(info):
            raise RequestError(f"The request has no {name} to compare.", f"Give it {name}.")
        else:
            break
    raise RequestError(f"A request has no field {path!r:.80} to compare.", _offer(path))


def _offer(path: str) -> str:
    """Return fields to compare instead: those with similar names, or the most useful ones."""
    near = get_close_matches(path, comparable(), 4, 0.6)
    return f"These can be: {', '.join(near or ('guidance.scale', 'steps', 'scheduler', 'seed', 'prompt', WORDS))}."


def _index(name: str, several: Sequence[Any], which: str) -> int:
    """Return the position of one of several concepts or boxes by its name, or by its number from 1."""
    if not several:
        raise RequestError(f"The request has no {name} to compare.", f"Give it {name}.")
    called = [_called(one) for one in several]
    if called.count(which) == 1:
        return called.index(which)
    if which.isascii() and which.isdecimal() and 1 <= int(which) <= len(several):
        return int(which) - 1
    there = ", ".join(f"{number} ({one})" for number, one in enumerate(called, 1))
    raise RequestError(
        f"{which!r:.80} is not the name of one of the {name} of the request.",
        f"There are: {there}; a number will do.",
    )


def _called(one: Any) -> str:
    """Return the name of a concept or a box in the name of an axis."""
    if (source := getattr(one, "source", None)) is not None:
        return PurePath(source).name.removesuffix(".safetensors")
    return str(getattr(one, "phrase", ""))


# -- one cell ---------------------------------------------------------------------------------------------------

_Setting = tuple[Axis, _Place | None, Value]
"""An axis, where it leads (nowhere for words), and one of its values."""


def _cell(request: Request, settings: Sequence[_Setting]) -> Request:
    """Return the request with a value of each axis; fields first, so that words are replaced in compared prompts."""
    fields = request.model_dump(exclude_unset=True)
    for _, place, value in settings:
        if place is not None:
            _put(fields, place.keys, value)
    for axis, place, value in settings:
        if place is None:
            fields = _reworded(fields, str(axis.values[0]), str(value))
    try:
        return Request.model_validate(fields)
    except ValidationError as error:
        raise _refused(error, settings) from None


def _put(fields: Any, keys: Sequence[str | int], value: Value) -> None:
    for key in keys[:-1]:
        fields = fields[key] if isinstance(key, int) else fields.setdefault(key, {})
    fields[keys[-1]] = value


def _reworded(fields: dict[str, Any], found: str, instead: str) -> dict[str, Any]:
    """Return all prompts, of regions too, and phrases of boxes with words replaced.

    Raises:
        RequestError: if no prompt has them, or one would become too long.
    """
    if not found or not any(found in str(fields.get(name, "")) for name in PROMPTS):
        raise RequestError(
            f"The prompt {fields.get('prompt', '')!r:.80} does not say {found!r:.60}.",
            "The first of the words is what the others replace: words=fox,cat,dog compares fox, cat and dog.",
        )
    changed = dict(fields)
    for name in PROMPTS:
        if isinstance(fields.get(name), str):
            changed[name] = _replaced(fields[name], found, instead)
    for name, texts in (("boxes", ("phrase",)), ("regions", PROMPTS), ("also", PROMPTS)):
        if fields.get(name):
            changed[name] = [
                one | {text: _replaced(one[text], found, instead) for text in texts if text in one}
                for one in fields[name]
            ]
    return changed


def _replaced(text: str, found: str, instead: str) -> str:
    """Return a text with words replaced, its length checked before it is made.

    Raises:
        RequestError: if it would have more than `LETTERS`.
    """
    times = text.count(found)
    length = len(text) + times * (len(instead) - len(found))
    if times and length > LETTERS:
        raise RequestError(
            f"With {instead!r:.60} for {found!r:.60}, {times} times, a text would have {length} letters; "
            f"it may have at most {LETTERS}.",
            "Give shorter words, or a first of the words that the prompt says less often.",
        )
    return text.replace(found, instead)


def _refused(error: ValidationError, settings: Sequence[_Setting]) -> RequestError:
    """Return an error that names the axes with which a cell is invalid, and their ranges."""
    said = {one["loc"]: one["msg"] for one in error.errors()}
    for axis, place, value in settings:
        if place is not None and (why := said.get(place.keys)):
            why = why.removeprefix("Value error, ")
            return RequestError(
                f"{axis.field} cannot be {value!r:.60}: {why[0].lower() + why[1:]}.",
                f"{axis.field} takes {allowed(place.info)}.",
            )
    named = " with ".join(f"{axis.field} {value!r:.60}" for axis, _, value in settings)
    ranges = [f"{axis.field} takes {allowed(place.info)}." for axis, place, _ in settings if place is not None]
    return RequestError(f"{named} cannot be: {problems(error)}", " ".join(ranges))


def allowed(info: FieldInfo) -> str:
    """Return the range of a field in words.

    >>> allowed(Request.model_fields["steps"])
    'whole numbers from 1 to 1000'
    """
    kind = _scalar(info)
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if kind is bool:
        return "yes or no"
    if kind is str:
        return "text"
    words = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    limits = {name: getattr(rule, name) for rule in info.metadata for name in words if hasattr(rule, name)}
    said = [words[name].format(limits[name]) for name in words if name in limits]
    return " ".join(["whole numbers" if kind is int else "numbers", *said])
