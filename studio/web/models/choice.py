"""The choice of the base model: one list beside the title, of which each page remembers its own choice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import gradio as gr

from studio.jobs.jobs import Jobs

PAGES: Mapping[str, str] = MappingProxyType(
    {"generate": "Generate", "teach": "Teach", "edit": "Edit", "example": "By example"}
)
"""Pages that work with a base, and what people call them."""

ALL = "all"
"""Stands for all of them."""

REMEMBER = """(base, here, kept) => {
  const chosen = JSON.parse(kept || '{}');
  if (here) chosen[here] = base;
  return window.studio.keep_bases(JSON.stringify(chosen));
}"""
KEEP = "(kept) => window.studio.keep_bases(kept)"
RECALL = "() => window.studio.kept_bases()"


class BaseChoice:
    """The base that each page has chosen; made inside `gr.Blocks`.

    Args:
        jobs: of the server.
        shown: the list of bases that can be used.

    Attributes:
        kept: JSON of page -> base, also kept by the browser.
    """

    def __init__(self, jobs: Jobs, shown: gr.Dropdown) -> None:
        self.jobs, self.list = jobs, shown
        self.here = gr.Textbox(visible="hidden", label="Page", elem_id="base-page")
        self.kept = gr.Textbox(visible="hidden", label="Bases of pages", elem_id="base-kept")

    def wire(self, page: gr.Blocks, after: Any) -> None:
        """Recall the choice of the first page when the page is opened `after` its tab is, and keep what is chosen."""
        recalled = after.then(None, None, self.kept, js=RECALL)
        recalled.then(self.first, self.kept, [self.list, self.here], api_visibility="private")
        self.list.input(None, [self.list, self.here, self.kept], self.kept, js=REMEMBER)

    def first(self, kept: str, request: gr.Request) -> tuple[Any, Any]:
        """Return the list as it is now, with the choice of the page that is opened, unless the address names a job."""
        asked = request.query_params
        here = str(asked.get("tab") or "generate")
        named = any(asked.get(job) for job in ("generation", "training", "edit", "example"))
        return self.update("" if named else self.of(here, kept)), here if here in PAGES else ""

    def update(self, chosen: str = "") -> Any:
        """Return an update of the list, with another choice if one is given."""
        names = list(self.jobs.bases)
        more = {"value": chosen} if chosen in names else {}
        return gr.update(choices=names, visible=True if len(names) > 1 else "hidden", **more)

    def of(self, page: str, kept: str) -> str:
        """Return the base that a page has chosen and that is still there; empty if it has none."""
        chosen = _read(kept).get(page, "")
        return chosen if chosen in self.jobs.bases else ""

    def opened(self, page: str, tab: gr.Tab) -> Any:
        """Show a page's own choice when its tab is opened; return what follows."""

        def switch(kept: str) -> tuple[Any, str]:
            return self.update(self.of(page, kept)), page

        return tab.select(switch, self.kept, [self.list, self.here], show_progress="hidden", api_visibility="private")

    def choose(self, base: str, pages: str, kept: str) -> str:
        """Return the choices with this base for one page, or for all."""
        names = list(PAGES) if pages == ALL else [pages]
        return json.dumps(_read(kept) | dict.fromkeys(names, base))


def _read(kept: str) -> dict[str, str]:
    """Return the choices of pages in a text that came from a browser."""
    try:
        told = json.loads(kept or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(told, dict):
        return {}
    return {str(page): base for page, base in told.items() if page in PAGES and isinstance(base, str)}
