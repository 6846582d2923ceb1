"""Acts on a page that wait for what they need, never for a time."""

from __future__ import annotations

from playwright.sync_api import expect

SLOW = 240_000
"""Milliseconds that anything waited for may take: two cores at other work, and processes that load torch."""

expect.set_options(timeout=SLOW)

QUESTIONS = {}
"""Page -> questions to the server whose answers have not ended."""


def questions(page):
    """Keep count of what a page asks its server from now on; for `answered`."""
    asked = QUESTIONS[page] = set()
    page.on("request", lambda request: asked.add(request) if "/queue/" in request.url else None)
    page.on("requestfinished", lambda request: asked.discard(request))
    page.on("requestfailed", lambda request: asked.discard(request))
    page.on("close", lambda page: QUESTIONS.pop(page, None))


def answered(page):
    """Wait until no answer of the server is outstanding: its stream ends with the last of them."""
    for _ in range(2):  # an answer may lead to the next question
        while QUESTIONS[page]:
            page.evaluate("new Promise(requestAnimationFrame)")
        page.evaluate("new Promise(requestAnimationFrame)")


def go(page, tab):
    """Open a page and wait until it is shown."""
    page.get_by_role("tab", name=tab, exact=True).click()
    expect(page.get_by_role("tab", name=tab, exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("[role=tabpanel]:visible")).to_have_count(1)


def choose(page, label, option):
    """Choose from a list, and wait until it is gone: it fades, and the next one would stand beside it."""
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("listbox")).to_have_count(0)


def easel(page, painter):
    """What is drawn on, once its picture is there."""
    expect(page.locator(f"{painter} .easel")).to_have_attribute("aria-busy", "false")
    return page.locator(f"{painter} .over")
