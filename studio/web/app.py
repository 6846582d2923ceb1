"""The page as a whole, and its mounting."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from pipelines.errors import RequestError, StudioError
from pipelines.exhaustion import hardship
from studio.jobs.jobs import Jobs
from studio.web.components import base_choice
from studio.web.pages.concepts import LibraryPage
from studio.web.pages.edit import EditPage
from studio.web.pages.example import EXAMPLE, ExamplePage
from studio.web.pages.generate import INSERT, GeneratePage
from studio.web.pages.measure import MeasurePage
from studio.web.pages.teach import TeachPage
from studio.web.panels.following import told
from studio.web.static import text
from studio.web.theme import theme

TITLE = "Prompt Studio"
EVENTS, PROGRESS = 0.05, 1.0  # seconds between two looks for clicks, and for progress bars, which this page has none of
DAY = 86_400  # seconds between two looks at copies for browsers, and their age when they go
MASTHEAD = f"<h1>{TITLE}</h1><p>Teach a model something new from a few pictures, then generate with it.</p>"

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


def build(jobs: Jobs) -> gr.Blocks:
    """Return the page for these jobs."""
    with Page(title=TITLE, analytics_enabled=False, fill_width=True, delete_cache=(DAY, DAY)) as page:
        with gr.Row(elem_id="head"):
            gr.HTML(MASTHEAD, elem_id="masthead", js_on_load=None)
            base = base_choice(jobs.bases)
        with gr.Tabs(elem_id="pages", overflow_behavior="wrap") as tabs:
            with gr.Tab("Generate", id="generate") as generating:
                generate = GeneratePage(jobs, base)
            with gr.Tab("Teach", id="teach") as teaching:
                teach = TeachPage(jobs, base)
            with gr.Tab("Edit", id="edit") as editing:
                edit = EditPage(jobs, base)
            with gr.Tab("By example", id="example") as asking:
                example = ExamplePage(jobs, base)
            with gr.Tab("Concepts", id="concepts") as keeping:
                library = LibraryPage(jobs)
            with gr.Tab("Measure", id="measure") as measuring:
                measure = MeasurePage(jobs)
        chips = [generate.chips, generate.boxes, generate.offer]
        page.load(generate.refresh, [base, generate.chips], chips, api_visibility="private")
        base.input(generate.refresh, [base, generate.chips], chips, api_visibility="private")
        base.input(edit.refresh, [base, edit.chips], edit.chips, api_visibility="private")
        generate.answer.follow_on(page)
        edit.answer.follow_on(page)
        example.answer.follow_on(page)
        teach.follow_on(page)
        measure.scores.follow_on(page)
        generating.select(generate.refresh, [base, generate.chips], chips, api_visibility="private")
        teach.look_on(teaching)
        teaching.select(teach.taken_room, None, teach.room, api_visibility="private")
        teach.scores.look_on(teaching)
        edit.answer.look_on(editing)
        example.answer.look_on(asking)
        editing.select(edit.refresh, [base, edit.chips], edit.chips, api_visibility="private")
        generate.answer.uses[1].click(
            edit.take_result,
            [generate.answer.job, generate.answer.chosen],
            edit.painter,
            api_visibility="private",
        ).success(lambda: gr.update(selected="edit"), None, tabs, api_visibility="private")
        keeping.select(library.refresh, library.search, library.cards, api_visibility="private")
        compared = [measure.concepts, measure.concept, measure.pictures]
        measuring.select(measure.refresh, compared[:2], compared, api_visibility="private")
        measure.scores.look_on(measuring)
        for offer in (generate.offer, library.offer):
            added = offer.click(generate.add_example, [base, generate.chips], chips, api_visibility="private")
            added.success(None, [generate.chips, generate.prompt], generate.prompt, js=INSERT)
            if offer is library.offer:  # the other page shows them when it is opened
                added.success(library.refresh, library.search, library.cards, api_visibility="private")
        taken = [tabs, generate.prompt, generate.chips, generate.boxes]
        teach.use.click(generate.take_learned, [base, teach.job], taken, api_visibility="private")
        library.use.click(generate.take, [base, library.chosen], taken, api_visibility="private")
    page.queue(default_concurrency_limit=8)
    # Gradio looks for events a thousand times a second, which costs an idle server a twentieth of a core.
    page._queue.sleep_when_free, page._queue.progress_update_sleep_when_free = EVENTS, PROGRESS
    return page


def mount_options(jobs: Jobs) -> dict[str, Any]:
    """Return the options of `gr.mount_gradio_app`."""
    return {
        "theme": theme(),
        "css": text("studio.css"),
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
