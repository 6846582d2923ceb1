"""The panel of results: progress while a job makes pictures, the pictures, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from pipelines.errors import RequestError, StudioError
from pipelines.pictures.metadata import read_made
from studio.jobs.jobs import Job, Jobs
from studio.web.components import gallery, told_by
from studio.web.panels.comparing import about_sheet, captions, is_sheet
from studio.web.panels.following import Following, shown, told
from studio.web.panels.watching import JobMessages, facts, picture_uri, progress

ADDRESS = "/api/v1"
SMALL = 160
"""Pixels of the longer side up to which pictures are shown enlarged, with a reason."""


def told_of(path: Path) -> str:
    """Return HTML of everything a picture says about itself."""
    made = read_made(path)
    rows: dict[str, Any] = {}
    for name, value in made.request.model_dump(exclude={"concepts"}).items():
        if isinstance(value, dict):
            rows |= {f"{name} {inner}": one for inner, one in value.items()}
        else:
            rows[name] = value
    if boxes := rows.pop("boxes", ()):
        rows["boxes"] = "; ".join(f"{one['phrase']} at {_place(one['box'])}" for one in boxes)
    if regions := rows.pop("regions", ()):
        rows["parts"] = "; ".join(f"{one['prompt']} at {_place(one['box']) or 'a painted part'}" for one in regions)
    if also := rows.pop("also", ()):
        rows["further prompts"] = "; ".join(f"{one['prompt']} at {one['weight']:g}" for one in also)
    rows["concepts"] = ", ".join(f"{use.source} at {use.strength:g}" for use in made.request.concepts)
    rows |= {"seed": made.request.seed + made.index, "base": f"{made.base} ({made.fingerprint})"}
    return facts([(name.replace("_", " "), value) for name, value in rows.items() if value not in (None, "", (), [])])


def _place(box: Sequence[float] | None) -> str:
    return ", ".join(f"{edge:g}" for edge in box or ())


def told_in(job: Job, path: Path) -> str:
    """Return HTML about a picture of a job."""
    return about_sheet(job) if is_sheet(job, path) else told_of(path)


LARGEST = 4.0
"""Most times that a picture is enlarged."""


def larger(job: Job, path: Path) -> dict[str, Any]:
    """Return the order of a picture of a job at twice its size: the same picture again, with a second pass.

    Raises:
        RequestError: if it is an answer to examples, or as large as it can be.
    """
    made = read_made(path)
    if made.request.in_context is not None:
        raise RequestError("An answer to examples cannot be enlarged.", "Use it on Edit, and enlarge it there.")
    if made.request.enlarge.factor >= LARGEST:
        raise RequestError(f"The picture is enlarged {LARGEST:g} times already.", "It gets no larger.")
    fields = made.request.model_dump(mode="json", exclude={"concepts"}, exclude_unset=True)
    # Files are named by the ids of the order; a picture itself names them by their places.
    order = job.spec["request"]
    if made.request.inpaint is not None and order.get("inpaint"):
        files = {name: order["inpaint"][name] for name in ("image", "mask") if name in order["inpaint"]}
        fields["inpaint"] = {**fields["inpaint"], **files, "digests": []}
    for region, asked in zip(fields.get("regions", ()), order.get("regions", ()), strict=False):
        region.update({"mask": asked["mask"]} if asked.get("mask") else {})
    concepts = [{"source": Path(use.source).stem, "strength": use.strength} for use in made.request.concepts]
    enlarge = {**fields.get("enlarge", {}), "factor": min(LARGEST, 2 * made.request.enlarge.factor), "digests": []}
    enlarge |= {"upscaler": Path(enlarge["upscaler"]).name} if enlarge.get("upscaler") else {}
    seed = made.request.seed + made.index
    return {**fields, "concepts": concepts, "seed": seed, "count": 1, "enlarge": enlarge}


def sides(path: Path) -> tuple[int, int]:
    """Return width and height of a picture from its header; zeros if it cannot be read."""
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0, 0


def record(job: Job, path: Path, number: int, caption: str) -> dict[str, Any]:
    """Return a picture of a job as a value of `gallery`.

    Args:
        job: that made it.
        path: of the file.
        number: its place among the results of the job.
        caption: for people.
    """
    request = job.spec.get("request", {})
    painted = request.get("inpaint") or {}
    width, height = sides(path)
    return {
        "src": f"{ADDRESS}/generations/{job.id}/pictures/{number}",
        "job": job.id,
        "name": path.name,
        "caption": caption,
        "width": width,
        "height": height,
        "sheet": is_sheet(job, path),
        "before": f"{ADDRESS}/pictures/{painted['image']}" if painted.get("image") and painted.get("mask") else "",
        "alt": f"{request.get('prompt', '')}, {caption}".strip(", "),
    }


def pictures_of(jobs: Jobs, job: Job) -> list[dict[str, Any]]:
    """Return the pictures of a job that exist, as values of `gallery`."""
    paths = jobs.results(job.id)
    numbers = {Path(name).name: number for number, name in enumerate(job.results)}
    return [
        record(job, path, numbers[path.name], caption)
        for path, caption in zip(paths, captions(job, paths), strict=True)
    ]


def size_hint(pictures: Sequence[dict[str, Any]], base: str) -> str:
    """Return a sentence on why pictures are small; empty if they are not, or there are none."""
    plain = [one for one in pictures if not one["sheet"]]
    if not plain or max(max(one["width"], one["height"]) for one in plain) > SMALL:
        return ""
    return (
        f"{plain[0]['width']} x {plain[0]['height']} pixels, shown enlarged: {base} is a small base that comes with "
        "the studio. Bases such as Stable Diffusion draw 512 pixels and more."
    )


class AnswerPanel(Following):
    """A panel with the pictures of one job; made inside `gr.Blocks`.

    Args:
        jobs: of the server.
        name: of the page, in the address and in the names of components.
        go: the button that asks.
        uses: actions for the chosen picture; a button each, in the large view as well.
        empty: what is said while there are no pictures.
    """

    def __init__(self, jobs: Jobs, name: str, go: gr.Button, uses: Sequence[str], empty: str) -> None:
        super().__init__(jobs, name, "generation")
        self.go = go
        self.progress = gr.HTML(elem_id=f"{name}-progress", js_on_load=None)
        self.stop = gr.Button("Cancel", elem_id=f"{name}-stop", visible="hidden", size="sm")
        self.events = [f"use{number}" for number in range(len(uses))]
        self.gallery = gallery(empty, tuple(zip(self.events, uses, strict=True)), elem_id=f"{name}-gallery")
        self.chosen = gr.State(0)
        with gr.Row(elem_classes="examples"):
            self.uses = [
                gr.Button(use, size="sm", min_width=120, visible="hidden", elem_id=f"{name}-use-{number}")
                for number, use in enumerate(uses)
            ]
        self.all = gr.HTML(elem_id=f"{name}-all", js_on_load=None)
        with gr.Accordion("How it was made", open=False, visible=False) as self.made:
            self.facts = gr.HTML(js_on_load=None)

    def wire(self, submit: Callable[..., str], asked: Sequence[Any]) -> None:
        """Submit with `submit`, which returns the id of a job, when the button is clicked."""
        self.asking = self.go.click(submit, list(asked), self.job, api_name=self.name)
        self.submitted(self.asking)
        self.stop.click(self.cancel, self.job, api_name=f"cancel_{self.name}")
        self.gallery.choose(self.look, self.job, [self.chosen, self.facts], api_visibility="private")  # pyright: ignore[reportAttributeAccessIssue]

    def used(self, number: int, act: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any]:
        """Do `act` for the chosen picture, from the button beneath the pictures and from the large view.

        Returns:
            The two events, to go on from.
        """
        button = self.uses[number].click(act, list(inputs), list(outputs), api_visibility="private")
        seen = getattr(self.gallery, self.events[number])
        large = seen(self.look, self.job, [self.chosen, self.facts], api_visibility="private")
        return [button, large.success(act, list(inputs), list(outputs), api_visibility="private")]

    def said(self) -> Sequence[Any]:
        """The components that show progress, pictures, buttons, and settings."""
        return [self.progress, self.gallery, self.stop, self.all, self.made, self.facts, self.chosen, *self.uses]

    def nothing(self) -> tuple[Any, ...]:
        """Return an empty panel."""
        none = gr.update(value=[], hint="")
        return ("", none, shown(False), "", gr.update(visible=False), "", 0, *(shown(False) for _ in self.uses))

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return the pictures of a job, or the newest preview while it runs."""
        job = seen.job
        pictures = pictures_of(self.jobs, job) if job.ended else []
        latest = [] if job.ended else self.jobs.previews(job.id)[-1:]
        preview = picture_uri(latest[0][1]) if latest else ""
        results = self.jobs.results(job.id) if pictures else []
        facts_of_first = told_in(job, results[0]) if results else ""
        uses = [shown(bool(results)) for _ in self.uses]
        hint = size_hint(pictures, str(job.spec.get("base", "")))
        return (
            progress(seen, preview),
            gr.update(value=pictures, chosen=0, hint=hint),
            shown(not job.ended),
            self._archive(job) if len(results) > 1 else "",
            gr.update(visible=job.state == "done"),
            facts_of_first,
            0,
            *uses,
        )

    @staticmethod
    def _archive(job: Job) -> str:
        address = f"{ADDRESS}/generations/{job.id}/archive"
        return f'<p class="hint"><a href="{address}" download>Download all as a zip</a></p>'

    def look(self, job_id: str, chosen: gr.EventData) -> tuple[int, str]:
        """Return the picture that was clicked, and its facts."""
        try:
            results = self.jobs.results(job_id)
            index = max(0, min(int(told_by(chosen, "index") or 0), len(results) - 1))
            return index, told_in(self.jobs.get(job_id), results[index])
        except (ValueError, IndexError):
            raise gr.Error("That picture is no longer there.", print_exception=False) from None
        except StudioError as error:
            raise told(error) from None
