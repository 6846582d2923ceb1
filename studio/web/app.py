"""The page as a whole, and its mounting."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gradio as gr

from pipelines.errors import RequestError, StudioError
from pipelines.exhaustion import hardship
from studio.jobs.jobs import Jobs
from studio.web import languages
from studio.web.components import base_choice
from studio.web.help import scripts
from studio.web.models.choice import BaseChoice
from studio.web.pages.concepts import LibraryPage
from studio.web.pages.edit import EditPage
from studio.web.pages.example import EXAMPLE, ExamplePage
from studio.web.pages.generate import GeneratePage
from studio.web.pages.measure import MeasurePage
from studio.web.pages.models import ModelsPage
from studio.web.pages.pictures import PicturesPage
from studio.web.pages.teach import TeachPage
from studio.web.panels.chips import INSERT
from studio.web.panels.following import told
from studio.web.static import text
from studio.web.theme import theme

TITLE = "Prompt Studio"
EVENTS, PROGRESS = 0.05, 1.0  # seconds between two looks for clicks, and for progress bars, which this page has none of
DAY = 86_400  # seconds between two looks at copies for browsers, and their age when they go
MASTHEAD = f"<h1>{TITLE}</h1><p>Teach a model something new from a few pictures, then generate with it.</p>"
CORNER = (
    '<button type="button" class="quiet" data-do="queue">Queue</button>'
    '<button type="button" class="quiet" data-do="tour" title="Show me around">Tour</button>'
    '<button type="button" class="quiet" data-do="looks">Dark</button>'
    '<select class="quiet" data-do="language" aria-label="Language" translate="no">'
    + "".join(f'<option value="{name}" lang="{name}">{own}</option>' for name, own in languages.names().items())
    + "</select>"
)
FOOT = (
    '<p class="hint"><a href="/help" target="_blank" rel="noopener">Help</a> · '
    '<a href="/docs" target="_blank" rel="noopener">For programs: the REST interface</a></p>'
)
TABS: Mapping[str, str] = MappingProxyType(
    {
        "generation": "generate",
        "training": "teach",
        "edit": "edit",
        "example": "example",
        "score": "measure",
        "download": "models",
    }
)
"""Name of a job in the address -> the tab that shows it."""

KEEP_TAB = """() => {
  if (!window.studio.opened) return;  // the page itself opens a tab before it has read the address
  const here = new URL(window.location);
  here.searchParams.set('tab', 'NAME');
  window.history.replaceState(null, '', here);
}"""
"""Puts the open tab into the address."""

UNFIT = RequestError("The page sent values that do not fit.", "Load the page again; the server's log has details.")
_log = logging.getLogger(__name__)


class Page(gr.Blocks):
    """The page; every function answers unexpected input with a sentence."""

    async def process_api(self, *given: Any, **named: Any) -> Any:
        """Call a function of the page; errors are sentences for people, whatever it was sent."""
        try:
            return await super().process_api(*given, **named)
        except gr.Error:  # a sentence already
            raise
        except Exception as error:
            known = error if isinstance(error, StudioError) else hardship(error)
            if known is None:
                _log.error("The page", exc_info=error)
            raise told(known or UNFIT) from None


def opened(request: gr.Request) -> Any:
    """Return the tab that the address names, or that of the job it names."""
    asked = request.query_params
    wanted = str(asked.get("tab", ""))
    if wanted not in (*TABS.values(), "concepts", "pictures", "models"):
        wanted = next((tab for job, tab in TABS.items() if asked.get(job)), "")
    return gr.update(selected=wanted) if wanted else gr.skip()


def build(jobs: Jobs) -> gr.Blocks:
    """Return the page for these jobs."""
    with Page(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(DAY, DAY)) as page:
        with gr.Row(elem_id="head"):
            gr.HTML(MASTHEAD, elem_id="masthead", js_on_load=None)
            base = base_choice(jobs.bases)
            gr.HTML(CORNER, elem_id="corner", js_on_load=None)
        choice = BaseChoice(jobs, base)
        with gr.Tabs(elem_id="pages", overflow_behavior="wrap") as tabs:
            with gr.Tab("Generate", id="generate", render_children=True) as generating:
                generate = GeneratePage(jobs, base)
            with gr.Tab("Pictures", id="pictures", render_children=True) as looking:
                pictures = PicturesPage(jobs)
            with gr.Tab("Teach", id="teach", render_children=True) as teaching:
                teach = TeachPage(jobs, base)
            with gr.Tab("Edit", id="edit", render_children=True) as editing:
                edit = EditPage(jobs, base)
            with gr.Tab("By example", id="example", render_children=True) as asking:
                example = ExamplePage(jobs, base)
            with gr.Tab("Concepts", id="concepts", render_children=True) as keeping:
                library = LibraryPage(jobs)
            with gr.Tab("Models", id="models", render_children=True) as choosing:
                models = ModelsPage(jobs, choice)
            with gr.Tab("Measure", id="measure", render_children=True) as measuring:
                measure = MeasurePage(jobs)
        gr.HTML(FOOT, elem_id="foot", js_on_load=None)
        landed = page.load(opened, None, tabs, api_visibility="private")
        landed.then(None, None, None, js="() => { window.studio.opened = true; }")
        choice.wire(page, landed)
        _choosing(page, choice, models, {"teach": teaching, "example": asking, "models": choosing})
        for tab in (generating, looking, teaching, editing, asking, keeping, choosing, measuring):
            tab.select(None, None, None, js=KEEP_TAB.replace("NAME", str(tab.id)))
        _generating(page, choice.opened("generate", generating), generating, base, generate)
        _teaching(page, teaching, teach)
        for one, tab in ((edit, editing), (example, asking)):
            one.follow_on(page)
            one.answer.look_on(tab)
        for opens in (base.input, choice.opened("edit", editing).then):
            opens(edit.refresh, [base, edit.chips], edit.chips, api_visibility="private")
        _looking(page, looking, tabs, base, generate, edit, pictures)
        keeping.select(library.refresh, library.search, library.cards, api_visibility="private")
        _measuring(page, measuring, measure)
        for offer in (generate.offer, library.offer):
            added = offer.click(generate.add_example, [base, generate.chips], generate.kept, api_visibility="private")
            added.success(None, [generate.chips, generate.prompt], generate.prompt, js=INSERT)
            if offer is library.offer:  # the other page shows them when it is opened
                added.success(library.refresh, library.search, library.cards, api_visibility="private")
        taken = [tabs, generate.prompt, generate.chips, generate.boxes, generate.words]
        tried = teach.use.click(generate.take_learned, [base, teach.job], taken, api_visibility="private")
        asked = tried.success(generate.try_three, [base, teach.job], generate.answer.job, api_visibility="private")
        generate.answer.submitted(asked, api_visibility="private")
        library.use.click(generate.take, [base, library.chosen], taken, api_visibility="private")
    page.queue(default_concurrency_limit=8)
    # Gradio looks for events a thousand times a second, which costs an idle server a twentieth of a core.
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = EVENTS, PROGRESS
    return page


def _measuring(page: gr.Blocks, tab: gr.Tab, measure: MeasurePage) -> None:
    """Keep the page of figures as the library and its job are."""
    compared = [measure.concepts, measure.concept, measure.pictures]
    tab.select(measure.refresh, compared[:2], compared, api_visibility="private")
    measure.scores.follow_on(page)
    measure.scores.look_on(tab)


def _choosing(page: gr.Blocks, choice: BaseChoice, models: ModelsPage, tabs: Mapping[str, gr.Tab]) -> None:
    """Show each page's own base when it is opened, and the bases that are there."""
    choice.opened("teach", tabs["teach"])
    choice.opened("example", tabs["example"])
    tabs["models"].select(models.refresh, None, [models.cards, choice.list], api_visibility="private")
    models.download.follow_on(page)
    models.download.look_on(tabs["models"])


def _generating(page: gr.Blocks, opened: Any, tab: gr.Tab, base: gr.Dropdown, generate: GeneratePage) -> None:
    """Keep the page of generation as the library and the chosen base are."""
    shown = [base, generate.chips]
    generate.follow_on(page)
    opened.then(generate.refresh, shown, generate.kept, api_visibility="private")
    generate.answer.look_on(tab)
    base.input(generate.refresh, shown, generate.kept, api_visibility="private")
    base.change(generate.sized, base, generate.plan, api_visibility="private")


def _looking(
    page: gr.Blocks,
    tab: gr.Tab,
    tabs: gr.Tabs,
    base: gr.Dropdown,
    generate: GeneratePage,
    edit: EditPage,
    pictures: PicturesPage,
) -> None:
    """Show all pictures when their page is opened, and carry them to the others."""
    for opens in (page.load, tab.select):
        opens(pictures.refresh, pictures.asked, pictures.found, show_progress="hidden", api_visibility="private")
    form = [generate.prompt, generate.chips, generate.boxes, generate.plan, *generate.form.components]
    held = [pictures.gallery, pictures.chosen]

    def again(chosen_base: str, shown: Any, chosen: int, parts: list[str]) -> list[Any]:
        """Return the form as a picture was made, and open its page."""
        try:
            made = pictures.made_with(shown, chosen)
        except StudioError as error:
            raise told(error) from None
        return [gr.update(selected="generate"), *generate.use_again(chosen_base, made, parts)]

    def change(shown: Any, chosen: int) -> tuple[Any, Any]:
        """Return a picture to paint on, and open the page that edits."""
        try:
            return gr.update(selected="edit"), edit.take(pictures.path(shown, chosen))
        except StudioError as error:
            raise told(error) from None

    for event in generate.answer.used(
        2, edit.take_result, [generate.answer.job, generate.answer.chosen], [edit.painter]
    ):
        event.success(lambda: gr.update(selected="edit"), None, tabs, api_visibility="private")
    asked = [base, *held, pictures.parts]
    pictures.use.click(again, asked, [tabs, *form], api_visibility="private")
    pictures.large("use0").success(again, asked, [tabs, *form], api_visibility="private")
    pictures.large("use2").success(change, held, [tabs, edit.painter], api_visibility="private")


def _teaching(page: gr.Blocks, tab: gr.Tab, teach: TeachPage) -> None:
    """Keep the page of training as its job and the room for pictures are."""
    teach.follow_on(page)
    teach.look_on(tab)
    tab.select(teach.taken_room, None, teach.room, api_visibility="private")
    teach.scores.look_on(tab)


def mount_options(jobs: Jobs, language: str = languages.AUTO) -> dict[str, Any]:
    """Return the options of `gr.mount_gradio_app`, with the language that the server has chosen."""
    return {
        "theme": theme(),
        "css": text("studio.css") + text("front.css"),
        "head": scripts(language),
        # What handlers may show; browsers get copies of it, and nothing by its path (studio/api/page_files.py).
        "allowed_paths": [
            *(str(jobs.folder / name) for name in ("concepts", "datasets", "exports", "jobs", "pictures")),
            str(EXAMPLE),
        ],
        "show_error": True,
        "ssr_mode": False,
        "footer_links": [],
        "run_history": False,
        "enable_monitoring": False,
        "max_file_size": "200mb",
    }
