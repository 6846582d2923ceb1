"""Pictures of all sessions, found again; and the queue, seen and put in order from every page."""

from __future__ import annotations

import re
import zipfile

from playwright.sync_api import expect

from benchmarks.scale import library
from tests.browser.test_first_minute import PROMPT, quick
from tests.browser.test_studio import newest, wait_for_pictures
from tests.browser.waiting import answered, choose, go, unfold

ALL = "#all-pictures"


def drawn(page, prompt, count=1):
    quick(page, prompt, count)
    page.locator("#go").click()
    wait_for_pictures(page, count)


def tick(page, *numbers):
    for number in numbers:
        page.locator(f"{ALL} .tick input").nth(number).check()


def test_pictures_of_yesterday_are_found_kept_compared_and_used_again(visit, studio):
    _, jobs = studio
    page = visit()
    drawn(page, "a fox on a blue background", 2)
    fox = newest(jobs, "generation")
    page = visit()  # tomorrow
    drawn(page, "a house")
    go(page, "Pictures")
    thumbs = page.locator(f"{ALL} .thumbnail-item")
    expect(thumbs).to_have_count(3)
    page.locator("#find").get_by_role("textbox").fill("FOX")
    expect(thumbs).to_have_count(2)
    # a board, tags, favourites
    tick(page, 0, 1)
    unfold(page, "keeping")
    page.get_by_label("Put on the board").fill("animals")
    page.get_by_label("Put on the board").press("Enter")
    page.locator("#put-there").click()
    expect(thumbs.first).to_contain_text("animals")
    tick(page, 1)
    page.locator("#tags").get_by_role("textbox").fill("printed")
    page.locator("#tag").click()
    expect(thumbs.nth(1)).to_contain_text("#printed")
    tick(page, 1)
    page.locator("#like").click()
    expect(thumbs.nth(1).locator(".liked")).to_be_visible()
    page.locator("#find").get_by_role("textbox").fill("printed")
    expect(thumbs).to_have_count(1)
    page.locator("#find").get_by_role("textbox").fill("")
    expect(thumbs).to_have_count(3)
    choose(page, "Board", "favourites")
    expect(thumbs).to_have_count(1)
    choose(page, "Board", "animals (2)")
    expect(thumbs).to_have_count(2)
    with page.expect_download() as loaded:
        page.get_by_role("link", name="Download this board as a zip").click()
    with zipfile.ZipFile(loaded.value.path()) as archive:
        assert {archive.read(name) for name in archive.namelist()} == {one.read_bytes() for one in jobs.results(fox.id)}
    # two of them compared
    tick(page, 0)
    page.locator("#compare-two").click()
    expect(page.locator(".said")).to_contain_text("Tick two pictures")
    tick(page, 1)
    page.locator("#compare-two").click()
    expect(page.locator("dialog.light img.before")).to_be_visible()
    page.keyboard.press("Escape")
    # the chosen parts of one are used again
    tick(page, 0, 1)
    page.locator(f"{ALL} .tick input").nth(1).uncheck()
    page.get_by_label("settings", exact=True).uncheck()
    page.locator("#use-again").click()
    expect(page.get_by_role("tab", name="Generate", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator(PROMPT)).to_have_value("a fox on a blue background")
    expect(page.locator("#plan .seed input")).to_have_value(str(fox.spec["request"]["seed"]))
    expect(page.locator("#generation-steps [type=number]")).to_have_value("2")  # as it was here


def test_a_picture_is_thrown_away_from_the_large_view_and_brought_back(visit, studio):
    _, jobs = studio
    page = visit()
    drawn(page, "a cat")
    job = newest(jobs, "generation").id
    go(page, "Pictures")
    thumbs = page.locator(f"{ALL} .thumbnail-item")
    expect(thumbs.first).to_contain_text("a cat")
    count = thumbs.count()
    thumbs.first.get_by_role("button").click()
    page.locator("dialog.light").get_by_role("button", name="Delete").click()
    expect(thumbs).to_have_count(count - 1)
    assert jobs.results(job) == []
    page.locator("#undo-pictures").click()
    expect(thumbs).to_have_count(count)
    assert len(jobs.results(job)) == 1
    page.reload()  # the address leads back to this page
    expect(page.get_by_role("tab", name="Pictures", exact=True)).to_have_attribute("aria-selected", "true")
    expect(thumbs).to_have_count(count)


def test_the_queue_is_seen_and_put_in_order_from_every_page(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a slow one")
    page.locator("#generation-steps [type=number]").fill("900")
    page.locator("#go").click()
    expect(page.locator("#generation-progress")).to_contain_text("of 900")
    others = [jobs.submit_generation({"prompt": f"number {name}", "steps": 1}).id for name in ("one", "two")]
    go(page, "Concepts")
    page.get_by_role("button", name=re.compile("Queue")).click()
    rows = page.locator(".drawer li")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("“a slow one”")
    expect(rows.first).to_contain_text("left")
    expect(page.locator("[data-do=queue]")).to_have_text("Queue (3)")
    page.get_by_label("Do this first: “number two”").click()
    expect(rows.nth(1)).to_contain_text("number two")
    assert [job.id for job in jobs.ledger.queue()] == others[::-1]
    page.get_by_label("Cancel: “number one”").click()
    expect(rows).to_have_count(2)
    page.get_by_label("Cancel: “a slow one”").click()
    expect(rows).to_have_count(0)
    expect(page.locator(".drawer")).to_contain_text("Nothing is at work")
    page.get_by_label("Close the queue").click()
    expect(page.locator(".drawer")).to_be_hidden()
    states = {job.spec["request"]["prompt"]: job.state for job in jobs.list("generation", limit=3)}
    assert states == {"a slow one": "cancelled", "number one": "cancelled", "number two": "done"}


def test_the_clock_goes_on_and_the_title_says_when_it_is_done(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a fox")
    page.locator("#generation-steps [type=number]").fill("900")
    page.locator("#go").click()
    clock = page.locator("#generation-progress [data-seconds]")
    expect(clock).to_have_text(re.compile(r"^[1-9]\d* s so far$"))
    jobs.cancel(newest(jobs, "generation").id)
    expect(page.locator("#generation-progress")).to_contain_text("Cancelled")
    page.evaluate("document.hasFocus = () => false")
    page.locator("#generation-steps [type=number]").fill("20")
    page.locator("#go").click()
    expect(page).to_have_title(re.compile("Your pictures are there"))
    page.evaluate("window.dispatchEvent(new Event('focus'))")
    expect(page).to_have_title("Prompt Studio")


def test_styles_earlier_prompts_and_words_by_lot(visit, studio):
    _, jobs = studio
    page = visit()
    drawn(page, "a {cow|pig}")
    said = newest(jobs, "generation").spec["request"]["prompt"]
    assert said in ("a cow", "a pig")
    unfold(page, "phrasing")
    page.locator("#style-words").get_by_role("textbox").fill("on a teal background")
    page.locator("#style-name").get_by_role("textbox").fill("teal")
    page.locator("#save-style").click()
    expect(page.get_by_label("Style added to the prompt")).to_have_value("teal")
    drawn(page, "a fox")
    assert newest(jobs, "generation").spec["request"]["prompt"] == "a fox on a teal background"
    page = visit()
    answered(page)
    unfold(page, "phrasing")
    choose(page, "Earlier prompts", said)
    expect(page.locator(PROMPT)).to_have_value(said)
    choose(page, "Style added to the prompt", "teal")
    page.locator("#delete-style").click()
    expect(page.get_by_label("Style added to the prompt")).to_have_value("none")


def test_a_large_library_is_shown_in_parts_and_found_by_words(visit, studio):
    _, jobs = studio
    library(jobs.learned, 70)
    page = visit()
    chips, cards = page.locator("#chips .chip"), page.locator("#cards .card")
    expect(chips).to_have_count(24)
    expect(chips.first.locator("img")).to_have_js_property("naturalWidth", 64)
    page.locator("#chips .seek").fill("<c00066>")
    expect(chips).to_have_count(1)
    chips.first.get_by_role("button").click()
    expect(page.locator(PROMPT)).to_have_value("a <c00066>")
    page.locator("#chips .seek").fill("")
    expect(chips).to_have_count(25)  # the one that is on stays
    expect(chips.last).to_contain_text("<c00066>")
    go(page, "Concepts")
    expect(cards).to_have_count(60)
    page.get_by_role("button", name="Show more of 10").click()
    expect(cards).to_have_count(70)
    expect(page.locator("#more-concepts")).to_be_hidden()
    page.locator("#search").get_by_role("textbox").fill("c00069 subject")
    expect(cards).to_have_count(1)
    expect(cards.first.locator("img")).to_have_js_property("naturalWidth", 64)
