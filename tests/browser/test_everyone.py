"""Pages for everyone: no violation of accessibility that axe-core finds, and everything is reached by keyboard."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.test_first_minute import PROMPT, WOLF, quick
from tests.browser.test_studio import TABS, draw, wait_for_pictures
from tests.browser.waiting import answered, go, unfold

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
FOUND = """async () => {
  const {violations} = await axe.run(document, {resultTypes: ['violations']});
  return violations.flatMap((one) => one.nodes.map((node) => {
    const said = [...node.any, ...node.all, ...node.none].map((check) => check.message)[0];
    return `${one.id}: ${node.html.slice(0, 120)}: ${said}`;
  }));
}"""
"""Returns each violation on the page as it is now: the rule, the node, and why."""


STILL = """() => document.getAnimations().every(
  (one) => one.playState !== 'running' || one.effect.getTiming().iterations === Infinity)"""
"""True once nothing fades in or out, which would change its contrast."""


def violations(page):
    answered(page)
    page.wait_for_function(STILL)
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    return page.evaluate(FOUND)


def test_the_measure_finds_what_is_wrong(visit):
    page = visit()
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<p style=\"color:#aaa;background:#fff\">pale</p><img src=x>')"
    )
    found = " ".join(violations(page))
    assert "color-contrast" in found and "image-alt" in found


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_no_page_has_a_violation(visit, scheme, width):
    page = visit(width, 900, color_scheme=scheme)
    for tab in TABS:
        go(page, tab)
        for heading in page.locator(".fold-head:visible").all():
            heading.click()
        assert violations(page) == [], tab


def test_neither_has_what_opens_and_what_comes(visit):
    page = visit(first=True)
    expect(page.locator(".tour")).to_be_visible()
    assert violations(page) == []
    page.locator(".tour").get_by_role("button", name="Skip").click()
    page.get_by_label("Help: Prompt").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Queue").click()
    assert violations(page) == []
    page.get_by_label("Close the queue").click()
    page.locator("#go").click()
    assert violations(page) == []  # the question about an empty prompt
    page.get_by_role("button", name="Let me write it").click()
    page.locator("#words summary").click()
    page.locator(".offer:visible").click()
    quick(page, "a princess and a <wolff>", 2)
    expect(page.locator("#words .asked")).to_contain_text("never shown")
    page.locator("#go").click()
    wait_for_pictures(page, 2)
    draw(page, 0.1, 0.1, 0.5, 0.5, "a fox")
    page.get_by_label("Own prompt for box 1").click()
    page.get_by_role("button", name="Add a prompt").click()
    unfold(page, "start-fold")
    page.locator("#start-fold [type=file]").set_input_files(WOLF)
    expect(page.locator("#start-fold img")).to_be_visible()
    assert violations(page) == []
    page.locator("#generation-gallery .thumbnail-item button").first.click()
    expect(page.locator("dialog.light")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    go(page, "Pictures")
    expect(page.locator("#all-pictures .thumbnail-item").first).to_be_visible()
    assert violations(page) == []
    go(page, "Concepts")
    page.locator(".card").first.click()
    expect(page.locator("#concept-facts")).to_contain_text("dreambooth")
    assert violations(page) == []


def test_from_the_prompt_the_button_is_the_next_stop_and_hidden_things_are_none(visit):
    page = visit()
    page.locator(PROMPT).focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # past the help of the prompt
    stops = [page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")]
    assert "go" in stops or page.evaluate("document.activeElement.closest('.bar') !== null")
    for _ in range(60):
        page.keyboard.press("Tab")
        hidden = page.evaluate(
            "(() => { const one = document.activeElement; const {width, height} = one.getBoundingClientRect();"
            " return one !== document.body && (width === 0 || height === 0) ? one.outerHTML.slice(0, 120) : ''; })()"
        )
        assert hidden == ""


def test_the_rest_interface_is_described_by_this_server_alone(visit, studio):
    page = visit()
    link = page.get_by_role("link", name="For programs")
    assert link.get_attribute("href") == "/docs"
    page.goto(f"{studio[0]}/docs")
    page.locator("[id^='operations-bases-everything'] .opblock-summary-control").first.click()
    expect(page.get_by_text("also those that cannot be used").first).to_be_visible()
