"""The panel of comparisons: settings and values to compare, and captions of the pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import gradio as gr

from pipelines.errors import RequestError
from pipelines.request.axes import WORDS, axes_of, labels, values_in
from pipelines.request.request import Scheduler
from studio.jobs.jobs import Jobs
from studio.jobs.store import Job
from studio.web.components import fold, records
from studio.web.panels.watching import facts

NOTHING = ("nothing", "")
FIELDS: Mapping[str, tuple[str, str]] = {
    "guidance.scale": ("Guidance scale", "1, 2, 4, 8"),
    "steps": ("Steps", "5, 10, 25"),
    "scheduler": ("Sampler", ", ".join(get_args(Scheduler))),
    "seed": ("Seed", ""),
    WORDS: ("Words of the prompt", ""),
    "prompt": ("Whole prompt", ""),
    "concepts.1.strength": ("Concept strength", "0, 0.5, 1, 1.5"),
    "grounding.beta": ("Boxes' share of steps", "0.3, 0.6, 1"),
    "grounding.region": ("Words kept to their boxes", "no, yes"),
    "guidance.rescale": ("Guidance rescale", "0, 0.35, 0.7"),
    "guidance.start": ("Guidance from", "0, 0.2, 0.4"),
    "guidance.stop": ("Guidance until", "0.6, 0.8, 1"),
    "guidance.preset": ("Guidance formula", "cfg, apg, cfg-zero, tcfg, pag, seg"),
}
"""Fields that are offered -> what people call them, and values to begin with."""

STRENGTHS = FIELDS["concepts.1.strength"][1]
THINGS = ("fox", "cat", "dog")
"""Words offered in the place of a word of the prompt."""

UNLIKELY = ("a", "an", "the", "one", "two", "three", "of")

HINT = (
    "One picture for each value, or each pair of values, all from the same seed, whatever Pictures says; a sheet of "
    "them comes first. Any field of a request can be typed as well, such as width."
)
VALUES = "Separate values by commas, or by | where they contain commas."
WORDS_VALUES = "The first is a word of the prompt; the others take its place."


def first_word(prompt: str) -> str:
    """Return the word of a prompt that is most likely to be replaced: the first that is no article or number.

    >>> first_word("a fox to the left of a house")
    'fox'
    """
    words = re.findall(r"[^\W\d_][\w-]*|<[^<>\s]+>", prompt)
    return next((word for word in words if word.lower() not in UNLIKELY), "")


def suggestion(field: str, prompt: str, seed: int) -> str:
    """Return values to begin with for a field that was chosen."""
    if field == "seed":
        return ", ".join(str(seed + more) for more in range(4))
    if field == WORDS:
        word = first_word(prompt)
        return ", ".join([word, *(thing for thing in THINGS if thing != word)]) if word else ""
    if field == "prompt":
        return f"{prompt} | " if prompt else ""
    if field.startswith("concepts."):
        return STRENGTHS
    return FIELDS[field][1] if field in FIELDS else ""


def choices(chips: Sequence[Any]) -> list[tuple[str, str]]:
    """Return the fields that can be compared, with the strength of each concept that goes with the base."""
    offered = [(name, field) for field, (name, _) in FIELDS.items()]
    strengths = [
        (f"Strength of {chip.get('token')}", f"concepts.{chip.get('id')}.strength")
        for chip in records(chips)
        if not chip.get("problem")
    ]
    return [NOTHING, *offered, *strengths]


MOST = 64
"""Candidates of each picture."""


class Comparing:
    """Components of the fields and values to compare; made inside `gr.Blocks`."""

    def __init__(self) -> None:
        self.components: list[Any] = []
        with fold("Compare", "compare"):
            gr.HTML(f'<p class="hint">{HINT}</p>', js_on_load=None)
            for number, name in enumerate(("Across", "Down")):
                with gr.Row():
                    field = gr.Dropdown(
                        choices(()),
                        value="",
                        label=name,
                        allow_custom_value=True,
                        min_width=200,
                        elem_id=f"compare-field-{number}",
                    )
                    values = gr.Textbox(
                        label=f"Values {name.lower()}", info=VALUES, min_width=200, elem_id=f"compare-values-{number}"
                    )
                self.components += [field, values]
        self.components.append(
            gr.Number(
                value=1,
                minimum=1,
                maximum=MOST,
                precision=0,
                label="Keep the best of",
                info="So many are drawn for each picture, and what fits the prompt best by the judge is kept.",
                elem_id="best-of",
            )
        )

    def wire(self, prompt: Any, plan: Any, chips: Any) -> None:
        """Offer values for the chosen field, and the strengths of the concepts there are."""
        for field, values in zip(self.components[:4:2], self.components[1:4:2], strict=True):
            # Not `input`, which comes again when the field is left and would undo what was written meanwhile.
            field.select(self.suggest, [field, prompt, plan], values, api_visibility="private")
        chips.change(self.offer, chips, self.components[:4:2], api_visibility="private")

    @staticmethod
    def suggest(field: str | None, prompt: str | None, plan: Any) -> Any:
        """Return values to begin with."""
        chosen = field or ""
        seed = plan.get("seed") if isinstance(plan, Mapping) else None
        said = suggestion(chosen, (prompt or "").strip(), int(seed or 0))
        return gr.update(value=said, info=WORDS_VALUES if chosen == WORDS else VALUES)

    @staticmethod
    def offer(chips: Sequence[Any]) -> list[Any]:
        """Return the fields that can be compared now."""
        return [gr.update(choices=choices(chips))] * 2

    @staticmethod
    def restored(spec: Mapping[str, Any]) -> list[Any]:
        """Return the fields and values of a comparison that a job was asked with, and the number of candidates.

        Raises:
            StudioError: if they are none.
        """
        found: list[Any] = []
        for axis in axes_of(spec.get("compare", ())):
            values = [str(value) for value in axis.values]
            found += [axis.field, (" | " if any("," in one for one in values) else ", ").join(values)]
        return [*found, *[""] * (4 - len(found)), spec.get("best_of", 1)]

    @staticmethod
    def cleared() -> list[Any]:
        """Return an empty comparison, and no candidates."""
        return ["", "", "", "", 1]

    @staticmethod
    def best(given: Sequence[Any]) -> int:
        """Return the number of candidates of each picture, from the values of the components."""
        return int(given[4] or 1) if len(given) > 4 else 1

    @staticmethod
    def axes(given: Sequence[Any]) -> list[dict[str, Any]]:
        """Return the axes of the comparison, from the values of the components.

        Raises:
            RequestError: if a field has no values.
        """
        found: list[dict[str, Any]] = []
        for field, text in zip(given[:4:2], given[1:4:2], strict=True):
            if not field:
                continue
            values = values_in(str(text or ""))
            if not values:
                name = FIELDS.get(str(field), (str(field),))[0]
                raise RequestError(f"No values are given for {name!r:.60}.", "Write some under Compare.")
            found.append({"field": str(field), "values": list(values)})
        return found


# -- what comes of it -------------------------------------------------------------------------------------------


def is_sheet(job: Job, path: Path) -> bool:
    """Return whether a picture of a job is the sheet of a comparison rather than one that was generated."""
    return bool(job.spec.get("compare")) and path.name == Path(job.results[0]).name


def captions(job: Job, paths: Sequence[Path]) -> list[str]:
    """Return the captions of the pictures of a job: their seed, or the values that differ in a comparison."""
    if not job.spec.get("compare"):
        return [f"seed {path.stem.split('-')[0]}" for path in paths]
    said = ["all", *labels(axes_of(job.spec["compare"]))]
    names = {Path(name).name: label for name, label in zip(job.results, said, strict=False)}
    return [names[path.name] for path in paths]


def about_sheet(job: Job) -> str:
    """Return HTML about a sheet."""
    ways = zip(("across", "down"), axes_of(job.spec["compare"]), strict=False)
    rows = [(way, f"{axis.field}: {', '.join(map(str, axis.values))}") for way, axis in ways]
    return facts([*rows, ("settings", "choose one of the pictures for what made it")])


def picture_of(jobs: Jobs, job_id: str, index: int) -> Path:
    """Return a picture of a job that was generated.

    Raises:
        RequestError: if the sheet of a comparison is chosen, or the picture is no longer there.
    """
    paths = jobs.results(job_id)
    if not 0 <= index < len(paths):
        raise RequestError("That picture is no longer there.", "Generate it again.")
    if is_sheet(jobs.get(job_id), paths[index]):
        raise RequestError("That is the sheet of a comparison.", "Choose one of its pictures, then click again.")
    return paths[index]
