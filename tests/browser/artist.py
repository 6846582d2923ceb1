"""Plays an artist who was told nothing, and counts her clicks and seconds: `python -m tests.browser.artist`.

From an empty folder to a first picture, a concept of her own pictures, that concept in a box, found again tomorrow, and
the same on a phone. Her own pictures are five drawings of a flamingo that pocket has never seen.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.browser.conftest import CHROMIUMS
from tests.browser.test_studio import draw
from tests.browser.waiting import SLOW, go, questions
from tests.studio.test_serve import Server
from trainers.stickers.art import sprite

COUNT = """
  window.clicks = 0;
  document.addEventListener('pointerdown', (event) => { if (event.isTrusted) window.clicks += 1; }, true);
"""
LONG = 10 * SLOW
WORD, KIND = "<my-bird>", "swan"
PICTURES = 5


def own_pictures(folder: Path) -> list[Path]:
    """Draw her pictures: what pocket was never shown, by another hand."""
    paths = []
    for number, colour in enumerate(("pink", "skyblue", "khaki", "lightgreen", "orchid")[:PICTURES]):
        drawn = sprite("flamingo").resize((200, 200))
        picture = Image.new("RGB", (256, 256), colour)
        picture.paste(drawn, (20 + 8 * number, 40 - 6 * number), drawn)
        paths.append(folder / f"bird{number}.png")
        picture.save(paths[-1])
    return paths


def shown(page: Page, count: int) -> None:
    """Wait for pictures."""
    expect(page.locator("#generation-progress")).to_contain_text("Done", timeout=LONG)
    expect(page.locator("#generation-gallery .thumbnail-item img")).to_have_count(count)


def first_picture(page: Page) -> None:
    """She skips the tour, takes an example, and presses the button."""
    page.locator(".tour").get_by_role("button", name="Skip").click()
    page.get_by_role("button", name="A fox and a house").click()
    page.locator("#go").click()
    shown(page, 4)


def first_concept(page: Page, pictures: list[Path]) -> None:
    """She drops her pictures, says two words, and starts."""
    go(page, "Teach")
    page.locator("#files input[type=file]").set_input_files(pictures)
    expect(page.locator(".rows img")).to_have_count(len(pictures))
    page.locator("#token textarea, #token input").first.click()
    page.keyboard.type(WORD)
    page.locator("#start textarea, #start input").first.click()
    page.keyboard.type(KIND)
    expect(page.locator("#ready .no")).to_have_count(0)
    page.locator("#teach").click()
    expect(page.locator("#try-it")).to_be_visible(timeout=LONG)
    page.locator("#try-it").click()
    shown(page, 4)  # three prompts, and the sheet of them


def in_a_box(page: Page) -> None:
    """She puts what was learned into one box, and a pizza into another."""
    page.locator("#prompt textarea").fill(f"a {WORD} and a pizza on a green background")
    draw(page, 0.05, 0.3, 0.5, 0.9, f"a {WORD}")
    draw(page, 0.55, 0.1, 0.95, 0.5, "a pizza")
    before = page.url
    page.locator("#go").click()
    expect(page).not_to_have_url(before)
    shown(page, 4)


def found_again(page: Page) -> None:
    """Tomorrow she looks for it, and uses the settings of one again."""
    if page.locator(".tour").count():
        page.locator(".tour").get_by_role("button", name="Skip").click()
    go(page, "Pictures")
    page.locator("#find").get_by_role("textbox").fill("pizza")
    expect(page.locator("#all-pictures .thumbnail-item")).to_have_count(4)
    page.locator("#all-pictures .thumbnail-item button").first.click()
    page.locator("dialog.light").get_by_role("button", name="Use again").click()
    expect(page.locator("#prompt textarea")).to_have_value(f"a {WORD} and a pizza on a green background")
    expect(page.locator(".stage .box")).to_have_count(2)


def opened(browser: Browser, address: str, width: int, height: int) -> Page:
    """Return a fresh window, of somebody who was never here."""
    page = browser.new_context(viewport={"width": width, "height": height}, has_touch=width < 500).new_page()
    page.set_default_timeout(SLOW)
    questions(page)
    page.add_init_script(COUNT)
    page.goto(address)
    page.wait_for_selector("#prompt textarea")
    return page


def main() -> None:
    """Play her, and print what it took."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, CHROMIUMS)))
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        empty = Path(folder) / "studio"
        empty.mkdir()
        server = Server(empty, page=True)
        pictures = own_pictures(Path(folder))

        def play(name: str, page: Page, act: Callable[[], None]) -> None:
            began, before = time.monotonic(), page.evaluate("window.clicks")
            act()
            took, clicks = time.monotonic() - began, page.evaluate("window.clicks") - before
            print(f"{name:34} {clicks:3} clicks {took:7.1f} s", flush=True)

        try:
            page = opened(browser, server.address, 1280, 900)
            play("first picture", page, lambda: first_picture(page))
            play("first concept, tried in 3 prompts", page, lambda: first_concept(page, pictures))
            play("in a box, beside another thing", page, lambda: in_a_box(page))
            page.context.close()
            for name, width, height in (("tomorrow", 1280, 900), ("tomorrow, on a phone", 390, 844)):
                later = opened(browser, server.address, width, height)
                expect(later.locator(".tour")).to_be_visible()
                play(f"found again {name}", later, lambda later=later: found_again(later))
                later.context.close()
        finally:
            browser.close()
            server.kill()


if __name__ == "__main__":
    main()
