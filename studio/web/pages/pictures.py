"""The page of all pictures: found again, kept on boards, compared, used again, thrown away and brought back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import gradio as gr

from pipelines.errors import StudioError
from pipelines.pictures.metadata import read_made
from studio.jobs.history import FoundPicture, Name, PictureSearch
from studio.jobs.jobs import Jobs
from studio.web.components import fold, gallery, records, told_by
from studio.web.panels.answer import ADDRESS, record, told_in
from studio.web.panels.chips import choices_of
from studio.web.panels.comparing import captions
from studio.web.panels.following import shown, told

PAGE = 60
"""Pictures that are shown at first, and more at each press."""

DAY = 86_400.0
WHEN: dict[str, float] = {"any time": 0.0, "today": DAY, "the last 7 days": 7 * DAY, "the last 30 days": 30 * DAY}
ANY = (("any", ""),)
"""The choice that leaves a question open."""

EVERYTHING, FAVOURITES = "all pictures", "favourites"
PARTS = ("prompt", "concepts", "boxes", "seed", "settings")
"""Parts of a request that can be used again."""

EMPTY = "No pictures are here yet, or none that fit."
ACTS = (("use0", "Use again"), ("use1", "Favourite"), ("use2", "Edit this picture"), ("use3", "Delete"))
COMPARE = """(pictures) => {
  const two = (pictures || []).filter((one) => one.picked);
  const caption = two.map((one) => one.caption).join(' | ');
  if (two.length === 2) window.studio.light.open([{...two[1], before: two[0].src, caption}], 0);
  else window.studio.say_once('Tick two pictures to compare them.');
}"""
"""Opens two pictures over one another, with a slider between them."""


class PicturesPage:
    """Components of the page and their events; made inside `gr.Blocks`."""

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.shown, self.chosen, self.thrown = gr.State(PAGE), gr.State(0), gr.State([])
        with gr.Row(elem_classes="filters"):
            self.words = gr.Textbox(label="Search pictures", placeholder="a word, a tag", elem_id="find", min_width=150)
            self.concept = gr.Dropdown(list(ANY), value="", label="Concept used", min_width=130)
            bases = [*ANY, *((name, name) for name in jobs.bases)]
            several = True if len(jobs.bases) > 1 else "hidden"
            self.base = gr.Dropdown(bases, value="", label="Base used", min_width=120, visible=several)
            self.when = gr.Dropdown(list(WHEN), value="any time", label="When", min_width=130)
            self.board = gr.Dropdown(
                [EVERYTHING, FAVOURITES], value=EVERYTHING, label="Board", min_width=140, elem_id="board"
            )
        with gr.Row(elem_classes="examples acts"):
            self.like = gr.Button("♥ Favourite", size="sm", min_width=100, elem_id="like")
            self.compare = gr.Button("Compare two", size="sm", min_width=100, elem_id="compare-two")
            self.delete = gr.Button("Delete", size="sm", min_width=80, elem_id="delete-pictures")
            self.undo = gr.Button("Undo", size="sm", min_width=80, visible="hidden", elem_id="undo-pictures")
        with fold("Boards, tags, and using one again", "keeping"):
            with gr.Row(elem_classes="filters"):
                self.to = gr.Dropdown(
                    [], label="Put on the board", allow_custom_value=True, min_width=170, elem_id="to-board"
                )
                self.put = gr.Button("Put there", size="sm", min_width=90, elem_classes="beside", elem_id="put-there")
                self.tags = gr.Textbox(label="Tags", placeholder="to find them by", min_width=150, elem_id="tags")
                self.tag = gr.Button("Tag", size="sm", min_width=70, elem_classes="beside", elem_id="tag")
            with gr.Row(elem_classes="filters"):
                self.parts = gr.CheckboxGroup(
                    list(PARTS), value=list(PARTS), label="What to use again", min_width=280, scale=4, elem_id="parts"
                )
                self.use = gr.Button("Use again", size="sm", min_width=90, elem_classes="beside", elem_id="use-again")
        self.archive = gr.HTML(elem_id="board-archive", js_on_load=None)
        self.gallery = gallery(EMPTY, ACTS, ticks=True, elem_id="all-pictures")
        self.more = gr.Button("Show more", size="sm", visible="hidden", elem_id="more-pictures")
        self.facts = gr.HTML(elem_id="picture-facts", js_on_load=None)
        self._wire()

    @property
    def asked(self) -> list[Any]:
        """The components that say what is looked for."""
        return [self.words, self.concept, self.base, self.when, self.board, self.shown]

    @property
    def found(self) -> list[Any]:
        """The components that show what is found."""
        return [self.gallery, self.more, self.board, self.to, self.concept, self.archive]

    def _wire(self) -> None:
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        for field in (self.concept, self.base, self.when, self.board):
            field.input(self.anew, self.asked, [self.shown, *self.found], **private)
        self.words.change(self.anew, self.asked, [self.shown, *self.found], **private)
        self.more.click(self.further, self.asked, [self.shown, *self.found], **private)
        held = [self.gallery, self.chosen]
        self.gallery.choose(self.look, self.gallery, [self.chosen, self.facts], **private)  # pyright: ignore[reportAttributeAccessIssue]
        changed = [*self.found]
        self.like.click(self.ask_like, [*held, *self.asked], changed, **private)
        self.put.click(self.ask_put, [*held, self.to, *self.asked], changed, **private)
        self.tag.click(self.ask_tag, [*held, self.tags, *self.asked], [*changed, self.tags], **private)
        self.compare.click(None, self.gallery, None, js=COMPARE)
        gone = [*changed, self.undo, self.thrown]
        self.delete.click(self.ask_delete, [*held, *self.asked], gone, **private)
        self.undo.click(self.ask_undo, [self.thrown, *self.asked], gone, **private)
        for event, act, inputs, outputs in (
            ("use1", self.ask_like, [*held, *self.asked], changed),
            ("use3", self.ask_delete, [*held, *self.asked], gone),
        ):
            opened = self.large(event)
            opened.success(act, inputs, outputs, **private)

    def large(self, event: str) -> Any:
        """Return the event of an action in the large view, after the picture is known as the chosen one."""
        seen = getattr(self.gallery, event)
        return seen(self.look_alone, self.gallery, [self.chosen, self.facts, self.gallery], api_visibility="private")

    # -- finding ---------------------------------------------------------------------------------------------------

    @staticmethod
    def wanted(words: str, concept: str, base: str, when: str, board: str) -> PictureSearch:
        """Return what the fields ask for."""
        days = WHEN.get(when, 0.0)
        named = "" if board in (EVERYTHING, FAVOURITES) else str(board or "")
        since = time.time() - days if days else 0.0
        return PictureSearch(str(words or ""), str(concept or ""), str(base or ""), since, named, board == FAVOURITES)

    def refresh(self, words: str, concept: str, base: str, when: str, board: str, count: int) -> tuple[Any, ...]:
        """Return the pictures that fit, and the boards and concepts there are."""
        boards = self.jobs.history.boards()
        if board not in (EVERYTHING, FAVOURITES, *boards):
            board = EVERYTHING
        asked = self.wanted(words, concept, base, when, board)
        there = self.jobs.history.find(asked, int(count) + 1)
        pictures = [self._record(one) for one in there[: int(count)]]
        named = [(f"{name} ({number})", name) for name, number in boards.items()]
        address = f"{ADDRESS}/boards/{quote(asked.board, safe='')}/archive" if asked.board else ""
        link = f'<p class="hint"><a href="{address}" download>Download this board as a zip</a></p>' if address else ""
        return (
            gr.update(value=pictures),
            shown(len(there) > int(count)),
            gr.update(choices=[EVERYTHING, FAVOURITES, *named], value=board),
            gr.update(choices=list(boards)),
            gr.update(choices=[*ANY, *choices_of(self.jobs)]),
            link,
        )

    def _record(self, one: FoundPicture) -> dict[str, Any]:
        job = one.job
        made = time.strftime("%d %b %H:%M", time.localtime(job.created))
        called = captions(job, [one.path])[0]
        prompt = str(job.spec.get("request", {}).get("prompt", ""))
        told_ = record(job, one.path, one.number, called if job.spec.get("compare") else prompt or called)
        more = " · ".join(filter(None, (made, one.mark.board, " ".join(f"#{tag}" for tag in one.mark.tags))))
        return told_ | {"caption": f"{told_['caption'][:80]} · {more}", "liked": one.mark.favourite, "sheet": False}

    def anew(self, words: str, concept: str, base: str, when: str, board: str, count: int) -> tuple[Any, ...]:
        """Return the first pictures that fit."""
        return PAGE, *self.refresh(words, concept, base, when, board, PAGE)

    def further(self, words: str, concept: str, base: str, when: str, board: str, count: int) -> tuple[Any, ...]:
        """Return more of the pictures that fit."""
        return int(count) + PAGE, *self.refresh(words, concept, base, when, board, int(count) + PAGE)

    # -- one of them -----------------------------------------------------------------------------------------------

    def look(self, pictures: Any, chosen: gr.EventData) -> tuple[int, str]:
        """Return the number of the picture that was clicked, and everything it says about itself."""
        try:
            index = int(told_by(chosen, "index") or 0)
            one = self.jobs.history.one(self._named(records(pictures)[index]))
            return index, f"<details><summary>How it was made</summary>{told_in(one.job, one.path)}</details>"
        except (ValueError, IndexError):
            raise gr.Error("That picture is no longer there.", print_exception=False) from None
        except StudioError as error:
            raise told(error) from None

    def look_alone(self, pictures: Any, chosen: gr.EventData) -> tuple[int, str, Any]:
        """Return the same, and the pictures without ticks: the act is meant for this one."""
        index, said = self.look(pictures, chosen)
        return index, said, gr.update(value=[one | {"picked": False} for one in records(pictures)])

    @staticmethod
    def _named(one: dict[str, Any]) -> Name:
        return str(one.get("job", "")), str(one.get("name", ""))

    def picked(self, pictures: Any, chosen: int) -> list[Name]:
        """Return the pictures that are ticked, or the chosen one if none is.

        Raises:
            gr.Error: if there is none.
        """
        there = records(pictures)
        ticked = [one for one in there if one.get("picked")] or there[int(chosen or 0) :][:1]
        if not ticked:
            raise gr.Error("There is no picture. Generate some first.", print_exception=False)
        return [self._named(one) for one in ticked]

    def made_with(self, pictures: Any, chosen: int) -> Any:
        """Return how the first of the chosen pictures was made.

        Raises:
            StudioError: if it is no longer there, or tells nothing.
        """
        return read_made(self.jobs.history.one(self.picked(pictures, chosen)[0]).path)

    def path(self, pictures: Any, chosen: int) -> Any:
        """Return the file of the first of the chosen pictures; raises `Unknown`."""
        return self.jobs.history.one(self.picked(pictures, chosen)[0]).path

    # -- what is done with them ------------------------------------------------------------------------------------

    def ask_like(self, pictures: Any, chosen: int, *asked: Any) -> tuple[Any, ...]:
        """Make pictures favourites, or no longer if all of them are."""
        names = self.picked(pictures, chosen)
        try:
            all_are = all(self.jobs.history.one(name).mark.favourite for name in names)
            self.jobs.history.mark(names, favourite=not all_are)
        except StudioError as error:
            raise told(error) from None
        return self.refresh(*asked)

    def ask_put(self, pictures: Any, chosen: int, board: str | None, *asked: Any) -> tuple[Any, ...]:
        """Put pictures on a board; without a name they are taken from theirs."""
        try:
            self.jobs.history.mark(self.picked(pictures, chosen), board=str(board or ""))
        except StudioError as error:
            raise told(error) from None
        return self.refresh(*asked)

    def ask_tag(self, pictures: Any, chosen: int, tags: str | None, *asked: Any) -> tuple[Any, ...]:
        """Give pictures tags in the place of those they have."""
        try:
            self.jobs.history.mark(self.picked(pictures, chosen), tags=str(tags or "").replace("#", " ").split())
        except StudioError as error:
            raise told(error) from None
        return *self.refresh(*asked), ""

    def ask_delete(self, pictures: Any, chosen: int, *asked: Any) -> tuple[Any, ...]:
        """Throw pictures away; the button that comes with it brings them back."""
        gone = self.jobs.history.delete(self.picked(pictures, chosen))
        said = "Undo: bring 1 picture back" if len(gone) == 1 else f"Undo: bring {len(gone)} pictures back"
        return *self.refresh(*asked), gr.update(visible=True, value=said), gone

    def ask_undo(self, thrown: Sequence[Sequence[str]], *asked: Any) -> tuple[Any, ...]:
        """Bring back the pictures that were thrown away last."""
        try:
            self.jobs.history.restore([(str(job), str(name)) for job, name in thrown or ()])
        except StudioError as error:
            raise told(error) from None
        return *self.refresh(*asked), shown(False), []
