"""A panel that follows one job: as it happens, after a reload, and when its tab is opened again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from html import escape
from typing import Any

import gradio as gr

from pipelines.errors import StudioError
from pipelines.request.texts import without_paths
from studio.jobs.jobs import Jobs
from studio.web.panels.watching import JobMessages, for_people, seen_now, watched

REMEMBER = """(id) => {
  const here = new URL(window.location);
  here.searchParams.set('NAME', id);
  window.history.replaceState(null, '', here);
}"""
"""Puts a job into the address of the page, so that loading it again shows the job again."""


STAYS = 12.0
"""Seconds that a message stays; hovering over it keeps it."""


def told(error: StudioError) -> gr.Error:
    """Return an error as the page shows it, for some seconds."""
    return gr.Error(said(for_people(error.message, error.hint)), duration=STAYS, print_exception=False)


def said(text: str) -> str:
    """Return a sentence as a message of the page, which reads HTML; it tells no folder of the server."""
    return escape(without_paths(text), quote=False)


def shown(there: bool) -> Any:
    """Return an update of a button; a removed one comes back without its text."""
    return gr.update(visible=True if there else "hidden")


class Following:
    """The shared behaviour of panels of a job; made inside `gr.Blocks`.

    Args:
        jobs: of the server.
        name: of the job in the address of the page and in the names of components and endpoints.
        kind: of the jobs it shows: "generation", "training" or "score".
    """

    def __init__(self, jobs: Jobs, name: str, kind: str) -> None:
        self.jobs, self.name, self.kind = jobs, name, kind
        self.job = gr.Textbox(visible="hidden", label="Job", elem_id=f"{name}-id")
        self._latest: dict[str, str] = {}
        """Session of a browser -> the job it follows here."""

    def said(self) -> Sequence[Any]:
        """The components that show a job."""
        raise NotImplementedError

    def seen(self, seen: JobMessages) -> tuple[Any, ...]:
        """Return the values of these components for a job."""
        raise NotImplementedError

    def nothing(self) -> tuple[Any, ...]:
        """Return the values of these components without a job."""
        raise NotImplementedError

    def submitted(self, asked: Any, **named: Any) -> None:
        """Remember and follow the job whose id a click has given; it is `named` for programs."""
        asked.success(None, self.job, js=REMEMBER.replace("NAME", self.name))
        self.followed(asked, **(named or {"api_name": f"follow_{self.name}"}))

    def followed(self, after: Any, **named: Any) -> None:
        """Follow the job once its id is known."""
        said = list(self.said())
        # Asked again before it has ended, the page follows the new job: "once" would drop that.
        options = {"show_progress": "hidden", "concurrency_limit": None, "trigger_mode": "multiple", **named}
        self.afterwards(after.success(self.follow, self.job, said, **options))

    def afterwards(self, followed: Any) -> None:
        """Return the values after the job has ended, or is found to have ended; nothing by default."""

    def follow_on(self, page: gr.Blocks) -> None:
        """Show the job that the address names when the page is opened."""
        self.followed(page.load(self.restore, None, self.job, api_visibility="private"), api_visibility="private")

    def cancel(self, job_id: str) -> None:
        """Stop a job; what was done of it is kept."""
        try:
            self.jobs.cancel(job_id)
        except StudioError as error:
            raise told(error) from None

    def look_on(self, tab: gr.Tab) -> None:
        """Show the job when a tab is opened, for updates that a closed tab received are lost, and when all is quiet.

        A stream of updates can end without a word: a network that was away, a computer that slept, a proxy's limit, and
        seldom a race of Gradio's client. A job at work of which nothing came for a while is looked at (`clock.js`).
        """
        # One whose answer was lost must not keep the next from being asked, as "once" does.
        private: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "trigger_mode": "multiple",
        }
        look = gr.Button("Look again", visible="hidden", elem_id=f"{self.name}-look")
        for asked in (tab.select, look.click):
            asked(self.glance, self.job, list(self.said()), **private)

    def restore(self, request: gr.Request) -> str:
        """Return the job that the address names on opening, if it exists."""
        try:
            job = self.jobs.get(str(request.query_params.get(self.name, "")))
        except StudioError:
            return ""
        return job.id if job.kind == self.kind else ""

    def glance(self, job_id: str) -> Any:
        """Return the state of a job now."""
        seen = seen_now(self.jobs, job_id)
        return self.seen(seen) if seen else tuple(gr.skip() for _ in self.said())

    async def follow(self, job_id: str, request: gr.Request | None = None) -> AsyncIterator[tuple[Any, ...]]:
        """Yield the state of a job until it has ended, or the same browser follows another one here."""
        session = str(request.session_hash) if request else ""
        if not job_id:
            yield self.nothing()
            return
        self._latest[session] = job_id
        try:
            async for seen in watched(self.jobs, job_id):
                if self._latest.get(session) != job_id:
                    return
                yield self.seen(seen)
        except StudioError as error:
            raise told(error) from None
        finally:
            if self._latest.get(session) == job_id:
                del self._latest[session]
