"""Custom components of the page: the box editor, chips, rows and cards. Their scripts are in `static`.

They are made by functions, because gradio writes a `.pyi` file beside every source that holds a subclass.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import gradio as gr

from studio.web.static import text

ARGUMENTS = ("value", "elem_id", "elem_classes", "visible")
"""Arguments of `gr.HTML` that are no properties of a script."""

NUMBERS = {"type": "array", "items": {"type": "number"}, "description": "left, top, right, bottom from 0 to 1"}


def _own(name: str, label: str, fields: Mapping[str, Any], example: Mapping[str, Any], **more: Any) -> gr.HTML:
    """Return a component whose value is a list of records, with the frame and script of that name in `static`.

    Args:
        name: of the files.
        label: label for people.
        fields: schema of a record.
        example: one of them.
        more: properties that the script reads, and arguments of `gr.HTML`.
    """
    # An update that arrives before a component is drawn, as in a tab that is not open, makes the framework forget its
    # other properties; the script therefore knows them itself.
    own = {key: value for key, value in more.items() if key not in ARGUMENTS}
    given = f"for (const [name, value] of Object.entries({json.dumps(own)})) props[name] ??= value;\n"
    component = gr.HTML(
        value=more.pop("value", []),  # whatever the script takes
        label=label,
        html_template=text(f"{name}.html"),
        js_on_load=given + text(f"{name}.js"),
        apply_default_css=False,
        **more,
    )
    schema = {"type": "array", "items": {"type": "object", "properties": dict(fields)}}
    component.api_info = lambda: schema  # what clients send and get; gradio would say text
    component.example_payload = lambda: [dict(example)]
    component.example_value = component.example_payload
    return component


def _texts(*names: str) -> dict[str, Any]:
    return {name: {"type": "string"} for name in names}


def box_editor(**more: Any) -> gr.HTML:
    """Return a canvas of the picture's shape to draw labelled boxes on, with mouse, finger or keys.

    Its value is a list of `{"phrase", "box"}`; the box is left, top, right and bottom in fractions of the picture. One
    with `part` is a region: its words are a prompt of its own, `soft` is its rim, `avoid` its negative prompt, and one
    that was brushed has in `mask` a `data:` address, white where it is, and in `file` the id of that picture, if any.
    Properties are `choices`, words offered for labels, and `width` and `height`, of which the ratio counts. What
    comes back is checked by `Request`.
    """
    example = {"phrase": "a fox", "box": [0.05, 0.3, 0.45, 0.8]}
    fields = {**_texts("phrase", "avoid", "mask", "file"), "box": NUMBERS, "part": {"type": "boolean"}}
    fields |= {"soft": {"type": "number"}}
    return _own("boxes", "Boxes", fields, example, choices=[], width=1, height=1, **more)


def further_prompts(label: str, most: int, **more: Any) -> gr.HTML:
    """Return rows of prompts with weights, at most so many; its value is a list of `{"prompt", "weight"}`."""
    fields = {**_texts("prompt", "negative_prompt"), "weight": {"type": "number"}}
    return _own("further", label, fields, {"prompt": "a house", "weight": 0.5}, title=label, most=most, **more)


def start_picture(label: str, **more: Any) -> gr.HTML:
    """Return a place to drop a picture to start from; its value is `{"image", "strength"}` with its id, or None."""
    fields = {**_texts("image"), "strength": {"type": "number"}}
    example = {"image": "0123456789abcdef", "strength": 0.6}
    component = _own("start", label, fields, example, **more)
    component.value = None
    component.api_info = lambda: {"type": "object", "properties": fields}
    component.example_payload = lambda: dict(example)
    component.example_value = component.example_payload
    return component


def base_choice(bases: Collection[str]) -> gr.Dropdown:
    """Return the choice of the base model for all pages; hidden if there is only one."""
    names = list(bases)
    return gr.Dropdown(
        names,
        value=names[0],
        label="Base model",
        visible=True if len(names) > 1 else "hidden",
        min_width=180,
        scale=0,
        elem_id="base",
    )


def gallery(empty: str, acts: Sequence[tuple[str, str]] = (), **more: Any) -> gr.HTML:
    """Return pictures of which a click chooses one and shows it large; `empty` is said while there are none.

    Its value is a list of `{"src", "caption", "width", "height", "sheet", "before", "name"}`: addresses of the picture
    and of what it was before, if anything. The event `choose` has the index of a chosen one; `acts` are further events
    with their labels, offered for the large picture. `hint` is said under all. With `ticks` each can be ticked.
    """
    fields = {**_texts("src", "caption"), "width": {"type": "integer"}, "height": {"type": "integer"}}
    example = {"src": "/api/v1/generations/0123456789abcdef/pictures/0", "caption": "seed 7", "width": 64, "height": 64}
    return _own("gallery", "Pictures", fields, example, empty=empty, acts=list(map(list, acts)), hint="", **more)


def dial(label: str, low: float, high: float, step: float, start: float, **more: Any) -> gr.HTML:
    """Return a slider with a number; `open` lets it be left to the base, and its value is None then.

    Args:
        label: for people.
        low: left end of the slider; what is typed may be less, down to the property `minimum`.
        high: right end, and `maximum`.
        step: of the slider.
        start: where the slider stands while there is no value.
        more: `value`, `minimum`, `maximum`, `open`, and arguments of `gr.HTML`.
    """
    component = _own("dial", label, {}, {}, title=label, low=low, high=high, step=step, start=start, **more)
    component.value = more.get("value")
    component.api_info = lambda: {"type": "number"}
    component.example_payload = lambda: start
    component.example_value = component.example_payload
    return component


def looked_words(**more: Any) -> gr.HTML:
    """Return the words of a prompt; the one pointed at or clicked shows where it was looked up in the picture.

    Its value is `{"picture", "words"}`, the latter a list of `{"word", "src", "most"}`: address of the picture with the
    word's attention over it, and its largest share of the attention; None for nothing.
    """
    fields = {
        **_texts("picture"),
        "words": {"type": "array", "items": {"type": "object", "properties": _texts("word")}},
    }
    example = {"picture": "/api/v1/generations/0123456789abcdef/pictures/0", "words": []}
    component = _own("looked", "Where words look", fields, example, **more)
    component.value = None
    component.api_info = lambda: {"type": "object", "properties": fields}
    component.example_payload = lambda: dict(example)
    component.example_value = component.example_payload
    return component


COUNTS = (1, 2, 4, 8, 16)
"""Numbers of pictures that are offered."""


def plan(sizes: Sequence[tuple[str, str]] = (), count: int = 4, **more: Any) -> gr.HTML:
    """Return small fields for the number of pictures, their size and their seed.

    Its value is `{"count", "size", "seed", "keep"}`; without `keep` another seed is drawn for each job. `sizes` are
    values and labels; without any there is no field for it.
    """
    fields = {"count": {"type": "integer"}, **_texts("size"), "seed": {"type": "integer"}, "keep": {"type": "boolean"}}
    example = {"count": count, "size": sizes[0][0] if sizes else "", "seed": None, "keep": False}
    component = _own("plan", "Pictures, size and seed", fields, example, counts=COUNTS, sizes=sizes, **more)
    component.value = dict(example)
    component.api_info = lambda: {"type": "object", "properties": fields}
    component.example_payload = lambda: dict(example)
    component.example_value = component.example_payload
    return component


def base_words(target: str, **more: Any) -> gr.HTML:
    """Return the words of the base, each put into the prompt by a click, and a note on words it does not know.

    Its value is that of `studio.web.panels.phrasing.words_of`; `target` is the selector of the prompt.
    """
    component = _own("words", "Words of the base", _texts("base"), {"base": "pocket"}, target=target, **more)
    component.value = {}
    return component


def concept_chips(**more: Any) -> gr.HTML:
    """Return learned concepts to switch on with a click, each with its strength.

    Its value is a list of `{"id", "token", "kind", "picture", "on", "strength", "least", "problem"}`; of one that does
    not go with the base the last says why, and it cannot be switched on.
    """
    fields = {**_texts("id", "token"), "on": {"type": "boolean"}, "strength": {"type": "number"}}
    return _own("chips", "Concepts", fields, {"id": "my-wolf", "on": True, "strength": 1.0}, **more)


def picture_rows(**more: Any) -> gr.HTML:
    """Return training pictures, each with its caption, or the names of two things if the property `pairs` is set.

    Its value is a list of `{"name", "picture", "caption", "left", "right", "mask"}`, the last whether it has one; the
    event `act` tells which was to be marked, turned, cropped or removed.
    """
    example = {"name": "0001.png", "caption": "a <my-fox> on grass", "left": "", "right": "", "mask": False}
    fields = {**_texts("name", "caption", "left", "right"), "mask": {"type": "boolean"}}
    return _own("rows", "Pictures", fields, example, pairs=False, **more)


def concept_cards(empty: str, title: str = "Concepts", **more: Any) -> gr.HTML:
    """Return cards of concepts or of bases; the event `pick` has the one clicked. `empty` is shown for none.

    Its value is a list of `{"id", "token", "kind", "base", "picture", "words"}`.
    """
    example = {"id": "my-wolf", "token": "<my-wolf>", "kind": "object", "base": "pocket", "words": ""}
    return _own("cards", title, _texts(*example), example, title=title, chosen="", empty=empty, **more)


def mask_painter(empty: str, **more: Any) -> gr.HTML:
    """Return a picture in which one marks a part: by a click on a thing, with brush or box.

    Its value is `{"id", "picture", "mask"}`: what the picture is called, and two `data:` addresses; white of the mask
    is marked, and what a picture comes with is marked at first. `empty` is said while there is no picture.
    """
    example = {"id": "0123456789abcdef", "picture": "data:image/png;base64,", "mask": "data:image/png;base64,"}
    component = _own("paint", "Picture", _texts(*example), example, empty=empty, **more)
    component.value = None
    return component


@contextmanager
def fold(label: str, elem_id: str) -> Iterator[gr.Column]:
    """Put what is made inside beneath a heading that opens and closes it; closed at first.

    Unlike an accordion it builds its content at once, so that updates reach it while it is closed.
    """
    heading = f'<button type="button" class="fold-head" aria-expanded="false">{escape(label)}</button>'
    with gr.Column(elem_id=elem_id, elem_classes="fold") as column:
        gr.HTML(heading, js_on_load=None)
        yield column


def told_by(event: gr.EventData, name: str) -> str:
    """Return a field of the event of a component."""
    data = event._data if isinstance(event._data, Mapping) else {}
    return str(data.get(name, ""))


def records(value: Sequence[Any] | None) -> list[dict[str, Any]]:
    """Return the records of a value that came from a browser; invalid ones are left out."""
    return [dict(one) for one in value or () if isinstance(one, Mapping)]
