"""The studio as a person uses it: real server, real browser, real pocket."""

from __future__ import annotations

import re
import time
from urllib.parse import parse_qs, urlparse

import pytest
from gradio_client import Client
from PIL import Image, ImageChops
from playwright.sync_api import expect

from pipelines.pictures.metadata import read_made
from studio.library import concepts
from studio.web.pages.edit import EXAMPLE
from tests.browser.waiting import SLOW, answered, choose, drawn, easel, go, unfold
from tests.waiting import until

TABS = ("Generate", "Pictures", "Teach", "Edit", "By example", "Concepts", "Models", "Measure")


def draw(page, left, top, right, bottom, words):
    """Draw a box with the mouse, in fractions of the canvas, and say what is in it."""
    if not page.locator(".stage").is_visible():
        unfold(page, "boxes-fold")
    count = page.locator(".stage .box").count()
    page.locator(".stage").hover()  # in view, and it stands still
    frame = page.locator(".stage").bounding_box()

    def at(x, y):
        return frame["x"] + x * frame["width"], frame["y"] + y * frame["height"]

    page.mouse.move(*at(left, top))
    page.mouse.down()
    page.mouse.move(*at((left + right) / 2, (top + bottom) / 2))
    page.mouse.move(*at(right, bottom))
    page.mouse.up()
    field = page.get_by_label(f"What is in box {count + 1}")
    expect(field).to_be_focused()
    page.keyboard.type(words)
    expect(field).to_have_value(words)


def click_the_middle(page, painter):
    easel(page, painter).click()


def mark_and_crop(page, jobs):
    """Keep a mask of the thing in one training picture, and crop another to a box."""
    page.get_by_label("Mask or crop 0001.png").click()
    click_the_middle(page, "#marker")
    page.locator("#keep-mask").click()
    expect(page.get_by_label("0001.png has a mask")).to_be_visible()
    expect(page.locator("#marker")).to_be_hidden()
    page.get_by_label("Mask or crop 0002.png").click()
    page.locator("#marker").get_by_text("Box").click()
    over = easel(page, "#marker")
    over.hover(position={"x": 2, "y": 2})
    frame = over.bounding_box()
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.75 * frame["width"], frame["y"] + 0.75 * frame["height"])
    page.mouse.up()
    page.locator("#crop-to-it").click()
    expect(page.locator("#marker")).to_be_hidden()
    dataset = jobs.datasets.list()[0].id
    first, second, _ = jobs.datasets.entries(dataset)
    assert (first.mask, second.mask, second.width, second.height) == (True, False, 48, 48)
    with Image.open(jobs.datasets.mask(dataset, "0001.png")) as mask:
        assert (mask.size, mask.getpixel((32, 32)), mask.getpixel((1, 1))) == ((64, 64), 255, 0)


SHOWN = """() => {
  const job = new URL(location).searchParams.get('generation');
  return job && document.querySelector(`#generation-progress [data-job="${job}"][data-state=done]`) !== null;
}"""
"""True once the page shows the job of its address, and it is done."""


def wait_for_pictures(page, count):
    """Wait for the pictures of what was asked last; what a click asks is answered first, as earlier ones are done."""
    drawn(page)
    answered(page)
    page.wait_for_function(SHOWN, timeout=SLOW)
    expect(page.locator("#generation-progress")).to_contain_text("Done")
    expect(page.locator("#generation-gallery .thumbnail-item img")).to_have_count(count)


def newest(jobs, kind):
    return jobs.list(kind=kind, limit=1)[0]


def chosen(page, gallery, number):
    """Choose a picture, which opens it large, and close it again."""
    page.locator(f"{gallery} .thumbnail-item button").nth(number).click()
    expect(page.locator("dialog.light")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog.light")).to_be_hidden()
    answered(page)  # which picture was chosen is known to the server from then on


def test_an_example_is_one_click_away_and_its_settings_come_back(visit, studio):
    _, jobs = studio
    page = visit()
    page.get_by_role("button", name="Two boxes").click()
    expect(page.locator("#prompt textarea")).to_have_value("a cat and a pizza on a green background")
    page.locator("#plan .seed input").fill("7")
    page.locator("#plan .count").select_option("2")
    unfold(page, "settings-fold")
    page.locator("#generation-steps [type=number]").fill("9")
    page.locator("#go").click()
    wait_for_pictures(page, 2)
    job = newest(jobs, "generation")
    expect(page).to_have_url(re.compile(f"generation={job.id}"))
    page.reload()  # the whole form comes back
    wait_for_pictures(page, 2)
    expect(page.locator("#prompt textarea")).to_have_value("a cat and a pizza on a green background")
    expect(page.locator(".stage .box")).to_have_count(2)
    expect(page.locator("#plan .seed input")).to_have_value("7")
    expect(page.locator("#plan .count")).to_have_value("2")
    expect(page.locator("#generation-steps [type=number]")).to_have_value("9")
    page.locator("#prompt textarea").fill("something else")
    chosen(page, "#generation-gallery", 1)
    page.locator("#generation-use-4").click()  # where words look
    words, shown = page.locator(".looked"), page.locator(".looked img")
    pizza = words.get_by_role("button", name="pizza", exact=True)
    pizza.hover()
    (looking,) = jobs.list("attention")
    expect(shown).to_have_attribute("src", f"/api/v1/attentions/{looking.id}/pictures/4")
    expect(page.locator(".looked figcaption")).to_contain_text("“pizza”: light where it was looked up most")
    pizza.click()
    words.get_by_role("button", name="cat", exact=True).hover()
    expect(shown).to_have_attribute("src", f"/api/v1/attentions/{looking.id}/pictures/1")
    page.locator("#prompt textarea").hover()
    expect(shown).to_have_attribute("src", f"/api/v1/attentions/{looking.id}/pictures/4")
    page.locator("#generation-use-1").click()
    expect(page.locator("#prompt textarea")).to_have_value("a cat and a pizza on a green background")
    expect(page.locator("#plan .seed input")).to_have_value("8")
    expect(page.locator("#plan .keep input")).to_be_checked()
    # the same from the file, dropped into a fresh window
    other = visit()
    other.locator("#dropped input[type=file]").set_input_files(jobs.results(job.id)[1])
    expect(other.locator("#plan .seed input")).to_have_value("8")


def test_teaching_survives_a_reload_and_what_is_learned_stands_in_its_box(visit, studio):
    _, jobs = studio
    page = visit()
    go(page, "Teach")
    page.get_by_label("One thing, quick").check()
    page.locator("#example-wolf").click()
    expect(page.locator(".rows img")).to_have_count(4)
    page.get_by_label("Remove 0004.png").click()
    expect(page.locator(".rows img")).to_have_count(3)
    mark_and_crop(page, jobs)
    page.locator("#steps textarea, #steps input").first.fill("60")
    page.locator("#teach").click()
    expect(page.locator("#training-progress")).to_contain_text("At work")
    page.reload()  # the address leads back to the page that teaches
    expect(page.get_by_role("tab", name="Teach", exact=True)).to_have_attribute("aria-selected", "true")
    expect(page.locator("#training-progress")).to_contain_text("of 60")
    expect(page.locator(".rows img")).to_have_count(3)
    expect(page.locator("#token textarea, #token input")).to_have_value("<my-wolf>")
    expect(page.locator("#curves")).to_contain_text("denoise")
    expect(page.locator("#training-progress")).to_contain_text("Done")
    expect(page.locator("#previews img").nth(3)).to_be_attached()
    assert newest(jobs, "training").spec["settings"]["token"] == "<my-wolf>"
    expect(page.locator("#scores-reason")).to_contain_text("Proposed: step")
    expect(page.locator("#scores-figures tr")).to_have_count(7)  # a head, the word before, five steps
    expect(page.locator("#scores-step input")).to_have_count(5)  # any of which can be kept
    page.get_by_label("step 24", exact=True).check()
    page.locator("#scores-take").click()
    expect(page.locator("#scores-reason")).to_contain_text("step 24 now")
    page.locator("#try-it").click()
    expect(page.locator("#prompt textarea")).to_have_value("a <my-wolf>")
    expect(page.locator("#chips .chip button")).to_have_attribute("aria-pressed", "true")
    wait_for_pictures(page, 4)  # three prompts were tried at once, on a sheet
    assert len(newest(jobs, "generation").spec["compare"][0]["values"]) == 3
    page.locator("#prompt textarea").fill("a cat and a <my-wolf>")
    draw(page, 0.05, 0.3, 0.45, 0.8, "a cat")
    draw(page, 0.55, 0.3, 0.95, 0.8, "a <my-wolf>")
    expect(page.locator(".stage .box")).to_have_count(2)
    before = page.url
    page.locator("#go").click()
    expect(page).not_to_have_url(before)
    wait_for_pictures(page, 4)
    made = read_made(jobs.results(newest(jobs, "generation").id)[0])
    assert [box.phrase for box in made.request.boxes] == ["a cat", "a <my-wolf>"]
    assert made.request.boxes[0].box == pytest.approx((0.05, 0.3, 0.45, 0.8), abs=0.02)
    assert [use.source for use in made.request.concepts] == ["concepts/my-wolf.safetensors"]


def captions_are_written_and_changed(page, jobs):
    fields = page.locator(".rows .words input")
    fields.nth(1).fill("my own words")
    page.locator("#write-captions").click()
    expect(page.locator("#captions-progress")).to_contain_text("of 3")
    fields.nth(3).fill("typed meanwhile")
    expect(fields.nth(0)).to_have_value("a <another> on a pink background")
    expect(fields.nth(2)).to_have_value("a <another> on a blue background")
    fields.nth(0).fill("a sleeping <another> on a pink background")
    fields.nth(0).blur()
    page.get_by_label("Turn 0004.png").click()  # whatever is done next keeps all words
    dataset = page.locator("#dataset-id textarea, #dataset-id input").first.input_value()
    wanted = ["a sleeping <another> on a pink background", "my own words", "a <another> on a blue background"]
    until(lambda: [one.caption for one in jobs.datasets.entries(dataset)] == [*wanted, "typed meanwhile"], "the words")


def test_words_are_checked_while_they_are_typed_and_what_is_missing_is_said(visit, studio):
    _, jobs = studio
    page = visit()
    go(page, "Teach")
    ready, start = page.locator("#ready"), page.locator("#start textarea, #start input").first
    expect(page.locator("#token textarea, #token input").first).to_have_value("")
    start.fill("bird")
    expect(ready).to_contain_text("pocket has no word “bird”; near ones: penguin, owl")
    expect(ready).to_contain_text("Pictures are missing")
    count = len(jobs.list("training", limit=1000))
    page.locator("#teach").click()
    expect(page.locator(".toast-body")).to_contain_text("no pictures yet")
    page.locator("#example-wolf").click()
    expect(ready).to_contain_text("4 pictures")
    expect(start).to_have_value("fox")
    page.locator("#token textarea, #token input").first.fill("my wolf")
    expect(ready).to_contain_text("without spaces")
    page.locator("#token textarea, #token input").first.fill("<another>")
    expect(ready).to_contain_text("You will say <another> in prompts")
    expect(ready.locator(".no")).to_have_count(0)
    captions_are_written_and_changed(page, jobs)
    page.get_by_label("A style", exact=True).check()
    expect(page.locator("#what-says")).to_contain_text("How pictures look")
    assert len(jobs.list("training", limit=1000)) == count


def test_boxes_by_keyboard_and_by_mouse(visit):
    page = visit()
    page.get_by_role("button", name="Two boxes").click()  # which opens the boxes
    boxes = page.locator(".stage .box")
    expect(boxes).to_have_count(2)
    answered(page)
    boxes.first.hover()  # it stands still
    boxes.first.focus()
    before = boxes.first.bounding_box()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    after = boxes.first.bounding_box()
    assert after["x"] > before["x"]
    assert after["height"] > before["height"]
    boxes.first.locator(".corner.se").hover(position={"x": 5, "y": 5})
    corner = boxes.first.locator(".corner.se").bounding_box()
    page.mouse.down()
    page.mouse.move(corner["x"] - 25, corner["y"] - 35)
    page.mouse.up()
    assert boxes.first.bounding_box()["width"] < after["width"] - 15
    boxes.first.focus()
    page.keyboard.press("Delete")
    expect(boxes).to_have_count(1)
    page.get_by_role("button", name="Add a box").click()
    expect(page.get_by_label("What is in box 2")).to_be_focused()


def test_a_thing_is_clicked_and_repainted_and_the_rest_stays(visit, studio):
    _, jobs = studio
    page = visit()
    go(page, "Edit")
    page.locator("#edit-example").click()
    click_the_middle(page, "#painter")
    page.locator("#edit-go").click()
    expect(page.locator("#edit-progress")).to_contain_text("Done")
    expect(page.locator("#edit-gallery .thumbnail-item img")).to_have_count(4)
    job = newest(jobs, "generation")
    with Image.open(jobs.results(job.id)[0]) as after, Image.open(EXAMPLE) as before:
        changed = ImageChops.difference(after.convert("RGB"), before.convert("RGB"))
        assert changed.getpixel((32, 36)) != (0, 0, 0)
        assert changed.crop((0, 0, 64, 5)).getbbox() is None
        assert changed.crop((0, 0, 8, 64)).getbbox() is None


def test_a_change_is_shown_by_example(visit, studio):
    _, jobs = studio
    page = visit()
    go(page, "By example")
    page.locator("#example-pair").click()
    expect(page.locator("#example-query img")).to_be_visible()
    page.locator("#example-go").click()
    expect(page.locator("#example-progress")).to_contain_text("Done")
    expect(page.locator("#example-gallery .thumbnail-item img")).to_have_count(1)
    assert len(read_made(jobs.results(newest(jobs, "generation").id)[0]).request.in_context.examples) == 1


def test_two_settings_are_compared_at_phone_width_and_one_picture_is_gone_on_with(visit, studio):
    _, jobs = studio
    page = visit(390, 844, has_touch=True)
    page.locator("#prompt textarea").fill("a fox and a house")
    unfold(page, "compare")
    choose(page, "Across", "Words of the prompt")
    expect(page.get_by_label("Values across")).to_have_value("fox, cat, dog")
    page.get_by_label("Values across").fill("fox, cat")
    choose(page, "Down", "Steps")
    expect(page.get_by_label("Values down")).to_have_value("5, 10, 25")
    page.get_by_label("Values down").fill("1, 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.locator("#go").click()
    wait_for_pictures(page, 5)
    expect(page.locator("#generation-gallery")).to_contain_text("cat, steps 2")
    job = newest(jobs, "generation")
    assert job.steps == 6
    with Image.open(jobs.results(job.id)[0]) as sheet:
        assert sheet.width > 2 * 128
    page.locator("#generation-use-1").click()
    expect(page.locator(".toast-body")).to_contain_text("Choose one of its pictures")
    expect(page.get_by_label("Values down")).to_have_value("1, 2")
    chosen(page, "#generation-gallery", 4)
    page.locator("#generation-use-1").click()
    expect(page.locator("#prompt textarea")).to_have_value("a cat and a house")
    expect(page.get_by_label("Values down")).to_have_value("")


def test_another_base_is_chosen_and_its_job_cancelled(visit, studio):
    _, jobs = studio
    page = visit()
    choose(page, "Base model", "twin")
    page.locator("#prompt textarea").fill("a fox")
    unfold(page, "settings-fold")
    page.locator("#generation-steps [type=number]").fill("1000")
    page.locator("#go").click()
    page.locator("#generation-stop").click()
    expect(page.locator("#generation-progress")).to_contain_text("Cancelled")
    job = newest(jobs, "generation")
    assert (job.state, job.spec["base"]) == ("cancelled", "twin")
    expect(page.locator("#go")).to_be_enabled()


def test_two_browsers_at_once_each_get_their_own(visit, studio):
    _, jobs = studio
    asked = {"a cat on a pink background": visit(), "a house on a blue background": visit()}
    for prompt, page in asked.items():
        page.locator("#prompt textarea").fill(prompt)
    for page in asked.values():
        page.locator("#go").click()
    for prompt, page in asked.items():
        wait_for_pictures(page, 4)
        job = jobs.get(parse_qs(urlparse(page.url).query)["generation"][0])
        assert job.spec["request"]["prompt"] == prompt
        sources = page.locator("#generation-gallery .thumbnail-item img").evaluate_all("all => all.map(one => one.src)")
        shown = [page.request.get(source).body() for source in sources]
        assert shown == [path.read_bytes() for path in jobs.results(job.id)]


def test_what_is_wrong_is_said_and_nothing_is_lost(visit):
    page = visit()
    page.locator("#prompt textarea").fill("a fox")
    unfold(page, "settings-fold")
    page.get_by_label("Guidance from", exact=True).fill("0.9")
    page.get_by_label("Guidance until", exact=True).fill("0.2")
    page.locator("#go").click()
    expect(page.locator(".toast-body")).to_contain_text("start 0.9 lies after stop 0.2")
    expect(page.locator("#prompt textarea")).to_have_value("a fox")
    expect(page.locator("#go")).to_be_enabled()


def test_a_concept_is_deleted_and_brought_back_and_an_example_added(visit, studio):
    _, jobs = studio
    assert (jobs.learned / "my-wolf.safetensors").is_file()
    page = visit()
    go(page, "Concepts")
    page.locator(".card").click()
    expect(page.locator("#concept-facts")).to_contain_text("textual-inversion")
    page.locator("#delete").click()
    expect(page.locator(".card")).to_have_count(0)
    assert not (jobs.learned / "my-wolf.safetensors").exists()
    page.locator("#undo").click()
    expect(page.locator(".card")).to_have_count(1)
    assert (jobs.learned / "my-wolf.safetensors").is_file()
    page.locator("#search").get_by_role("textbox").fill("tiger")
    expect(page.locator(".card")).to_have_count(0)
    page.locator("#search").get_by_role("textbox").fill("")
    expect(page.locator(".card")).to_have_count(1)
    page.locator(".offer:visible").click()
    expect(page.locator(".card")).to_have_count(2)
    expect(page.locator(".offer:visible")).to_have_count(0)
    go(page, "Generate")
    expect(page.locator("#prompt textarea")).to_have_value("a <wolf>")
    expect(page.locator("#chips .chip button", has_text="<wolf>")).to_have_attribute("aria-pressed", "true")
    expect(page.locator(".offer:visible")).to_have_count(0)
    # and on the page that generates, on a first visit
    concepts.discard(jobs.learned / "wolf.safetensors")
    page = visit()
    page.locator(".offer:visible").click()
    expect(page.locator("#chips .chip button", has_text="<wolf>")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#prompt textarea")).to_have_value("a <wolf>")
    answered(page)  # what goes wrong afterwards is told in a corner
    expect(page.locator(".toast-body")).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_width(visit, scheme):
    page = visit(390, 844, color_scheme=scheme, has_touch=True)
    for tab in TABS:
        go(page, tab)
        answered(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, shade.removeprefix("rgb(").removeprefix("rgba(").rstrip(")").split(",")[:3])) > 380
    assert light == (scheme == "light")


def test_every_field_has_a_label(visit):
    page = visit()
    for tab in TABS:
        go(page, tab)
        answered(page)
        nameless = page.evaluate(
            """[...document.querySelectorAll('input, textarea, select, button')].filter(e => e.offsetParent &&
               !(e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.title ||
                 e.innerText?.trim() || e.closest('label'))).map(e => e.outerHTML.slice(0, 160))"""
        )
        assert nameless == [], tab


def test_a_stream_with_nothing_to_come_is_not_waited_for(visit):
    page = visit()
    answered(page)
    with page.expect_request("**/queue/join*") as question:
        go(page, "Teach")
    session = question.value.post_data_json["session_hash"]
    page.route(
        "**/queue/join*", lambda route: route.abort()
    )  # what is asked later would be answered to the stream below
    answered(page)
    began = time.monotonic()
    # As the page opens it when the last answer comes before the word that it was asked for.
    opened = page.evaluate(
        "url => fetch(url).then(one => one.status)", f"/gradio_api/queue/data?session_hash={session}"
    )
    answered(page)
    assert opened == 200 and time.monotonic() - began < 60


def test_programs_call_the_handlers_by_name(studio):
    address, _ = studio
    client = Client(address, verbose=False)
    assert "No figures yet" in client.predict([], api_name="/compare")
    names = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert {"/generation", "/teach", "/edit", "/example", "/export_concept"} <= set(names)
