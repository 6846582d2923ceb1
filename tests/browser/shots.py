"""Draws the pictures of the pages that the site shows, by using them: `python -m tests.browser.shots`.

python -m tests.browser.shots --folder docs --only teach --only generate
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from tests.browser.conftest import CHROMIUMS
from tests.browser.test_studio import click_the_middle, draw, wait_for_pictures
from tests.browser.waiting import SLOW, acquainted, answered, choose, go, questions, unfold
from tests.studio.test_serve import Server

WIDE, PHONE = (1280, 900), (390, 844)


def generate(page: Page) -> None:
    """Two boxes, one with the example concept, and what came of them."""
    page.get_by_role("button", name="Add the example concept").first.click()
    expect(page.locator("#chips .chip button")).to_have_count(1)
    page.locator("#prompt textarea").fill("a <wolf> and a pizza on a green background")
    draw(page, 0.05, 0.3, 0.5, 0.9, "a <wolf>")
    draw(page, 0.55, 0.1, 0.95, 0.5, "a pizza")
    page.locator("#go").click()
    wait_for_pictures(page, 4)


def comparison(page: Page) -> None:
    """A comparison of strength and guidance."""
    page.locator("#prompt textarea").fill("a <wolf> on a blue background")
    unfold(page, "compare")
    answered(page)  # the concepts there are
    for way, field, values in (("Across", "Strength of <wolf>", "0, 0.5, 1"), ("Down", "Guidance scale", "1, 2, 4")):
        choose(page, way, field)
        expect(page.get_by_label(f"Values {way.lower()}")).not_to_have_value("")  # what is suggested
        page.get_by_label(f"Values {way.lower()}").fill(values)
    page.locator("#go").click()
    wait_for_pictures(page, 10)


def pictures(page: Page) -> None:
    """All pictures so far, two of them favourites."""
    go(page, "Pictures")
    thumbs = page.locator("#all-pictures .thumbnail-item")
    expect(thumbs.first).to_be_visible()
    for number in (0, 2):
        page.locator("#all-pictures .tick input").nth(number).check()
    page.locator("#like").click()
    expect(thumbs.first.locator(".liked")).to_be_visible()


def teach(page: Page) -> None:
    """A subject that is taught and measured."""
    go(page, "Teach")
    page.locator("#example-wolf").click()
    expect(page.locator(".rows img")).to_have_count(4)
    page.locator("#teach").click()
    expect(page.locator("#scores-figures img")).to_have_count(1, timeout=2 * SLOW)
    expect(page.locator("#scores-progress")).not_to_contain_text("At work")


def edit(page: Page) -> None:
    """A thing that was clicked and repainted."""
    go(page, "Edit")
    page.locator("#edit-example").click()
    click_the_middle(page, "#painter")
    page.locator("#edit-go").click()
    expect(page.locator("#edit-gallery .thumbnail-item img")).to_have_count(4)


def example(page: Page) -> None:
    """A change that is shown by an example."""
    go(page, "By example")
    page.locator("#example-pair").click()
    expect(page.locator("#example-query img")).to_be_visible()
    page.locator("#example-go").click()
    expect(page.locator("#example-gallery .thumbnail-item img")).to_have_count(1)


def concepts(page: Page) -> None:
    """The library, with one concept open."""
    go(page, "Concepts")
    page.locator(".card").first.click()
    expect(page.locator("#concept-facts")).to_contain_text("dreambooth")


def measure(page: Page) -> None:
    """Scores of what has been learned."""
    go(page, "Measure")
    expect(page.locator("#figures .scores")).to_be_visible()


SHOTS: dict[str, tuple[Callable[[Page], None], tuple[int, int], str]] = {
    "generate": (generate, WIDE, "light"),
    "compare": (comparison, WIDE, "dark"),
    "pictures": (pictures, PHONE, "light"),
    "teach": (teach, WIDE, "light"),
    "edit": (edit, WIDE, "light"),
    "example": (example, WIDE, "light"),
    "concepts": (concepts, PHONE, "light"),
    "measure": (measure, WIDE, "dark"),
}
"""Name of the picture -> what is done, the size of the window, light or dark; later ones need the earlier."""


def main() -> None:
    """Draw them, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs"))
    parser.add_argument("--only", action="append", choices=list(SHOTS))
    asked = parser.parse_args()
    browser_path = next(filter(None, map(shutil.which, CHROMIUMS)))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server = Server(Path(folder), page=True)
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        try:
            for name in asked.only or SHOTS:
                act, (width, height), scheme = SHOTS[name]
                window: dict[str, Any] = {"viewport": {"width": width, "height": height}, "color_scheme": scheme}
                page = browser.new_page(**window, device_scale_factor=1)
                questions(page)
                acquainted(page)
                page.goto(server.address)
                page.wait_for_selector("#prompt")
                act(page)
                page.mouse.move(0, 0)
                answered(page)
                expect(page.locator("[data-do=queue]")).to_have_text("Queue")  # which knows it some seconds later
                drawn = Image.open(io.BytesIO(page.screenshot(full_page=True)))
                path = asked.folder / f"web-{name}.png"
                drawn.convert("RGB").quantize(256).save(path, optimize=True)
                print(path, flush=True)
                page.close()
        finally:
            browser.close()
            server.kill()


if __name__ == "__main__":
    main()
