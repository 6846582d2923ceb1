"""A stranger's first minute: the first visit, the first picture, words, seeds, the large view, help."""

from __future__ import annotations

import io
import re
import zipfile

import pytest
from PIL import Image
from playwright.sync_api import expect

from pipelines.models.known_words import known_words
from pipelines.pictures.metadata import read_made
from studio.web.pages.edit import EXAMPLE as WOLF
from tests.browser.test_studio import chosen, draw, newest, wait_for_pictures
from tests.browser.waiting import answered, go, unfold

PROMPT = "#prompt textarea"
GALLERY = "#generation-gallery"


def quick(page, prompt, count=1):
    """Write a prompt, and ask for few pictures of few steps."""
    page.locator(PROMPT).fill(prompt)
    page.locator("#plan .count").select_option(str(count))
    if not page.locator("#generation-steps [type=number]").is_visible():
        unfold(page, "settings-fold")
    page.locator("#generation-steps [type=number]").fill("2")
    page.locator(PROMPT).focus()


def test_the_first_visit_shows_around_once_and_everything_needed_is_in_sight(visit):
    page = visit(first=True)
    tour = page.locator(".tour")
    expect(tour).to_contain_text("1 of 4")
    tour.get_by_role("button", name="Next").click()
    expect(tour).to_contain_text("What the model knows")
    expect(page.locator("#words")).to_have_class(re.compile("toured"))
    tour.get_by_role("button", name="Skip").click()
    expect(tour).to_have_count(0)
    button, prompt = page.locator("#go").bounding_box(), page.locator(PROMPT).bounding_box()
    assert button["y"] + button["height"] < 340 and 0 < button["y"] - prompt["y"] < 120
    assert page.locator(".stage").is_hidden() and page.locator("#generation-steps").is_hidden()
    page.reload()
    page.wait_for_selector(PROMPT)
    answered(page)
    expect(tour).to_have_count(0)
    page.get_by_role("button", name="Tour").click()
    expect(tour).to_contain_text("1 of 4")
    tour.press("Escape")
    expect(tour).to_have_count(0)


def test_on_a_phone_the_button_stays_and_the_result_is_in_sight(visit):
    page = visit(390, 844, has_touch=True)
    quick(page, "a fox")
    page.locator("#settings-fold .fold-head").click()
    page.evaluate("window.scrollTo(0, 0)")
    page.locator("#go").click()
    wait_for_pictures(page, 1)
    frame = page.locator(f"{GALLERY} img").bounding_box()
    assert frame["y"] + frame["height"] < 844
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    answered(page)
    button = page.locator("#go").bounding_box()
    assert button["y"] >= 0 and button["y"] + button["height"] <= 844


def test_keys_generate_each_time_anew_and_a_seed_that_is_liked_stays(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a fox on a blue background", 2)
    seeds = []
    for _ in range(2):
        before = page.url
        page.keyboard.press("Control+Enter")
        expect(page).not_to_have_url(before)
        wait_for_pictures(page, 2)
        seeds.append(newest(jobs, "generation").spec["request"]["seed"])
        expect(page.locator("#plan .seed input")).to_have_value(str(seeds[-1]))
    assert seeds[0] != seeds[1]
    expect(page.locator(f"{GALLERY} .about")).to_contain_text("64 x 64 pixels, shown enlarged")
    chosen(page, GALLERY, 1)
    page.locator("#generation-use-0").click()
    expect(page.locator("#plan .seed input")).to_have_value(str(seeds[1] + 1))
    expect(page.locator("#plan .keep input")).to_be_checked()
    page.locator(PROMPT).fill("a cat on a blue background")
    before = page.url
    page.keyboard.press("Control+Enter")
    expect(page).not_to_have_url(before)
    wait_for_pictures(page, 2)
    job = newest(jobs, "generation")
    assert (job.spec["request"]["seed"], job.spec["request"]["prompt"]) == (seeds[1] + 1, "a cat on a blue background")


def test_another_is_asked_for_while_one_is_drawn_and_the_page_follows_the_new_one(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a fox", 8)  # which ends by being cancelled alone: it would take minutes
    page.locator("#generation-steps [type=number]").fill("1000")
    page.locator("#go").click()
    expect(page.locator("#generation-progress")).to_contain_text("of 1000")
    first = newest(jobs, "generation").id
    quick(page, "a cat")
    page.locator("#go").click()
    expect(page.locator("#generation-progress")).to_contain_text("Waiting for its turn")
    jobs.cancel(first)
    wait_for_pictures(page, 1)
    assert read_made(jobs.results(newest(jobs, "generation").id)[0]).request.prompt == "a cat"
    assert jobs.get(first).state == "cancelled"


def test_words_of_the_base_are_clicked_and_completed_and_others_are_noted(visit):
    page = visit()
    prompt, asked = page.locator(PROMPT), page.locator("#words .asked")
    page.locator("#words .some").get_by_text("penguin", exact=True).click()
    expect(prompt).to_have_value("a penguin")
    page.locator("#words summary").click()
    page.locator("#words .groups").get_by_text("to the left of", exact=True).click()
    page.locator("#words .groups").get_by_text("house", exact=True).click()
    page.locator("#words .groups").get_by_text("yellow", exact=True).click()
    expect(prompt).to_have_value("a penguin to the left of a house on a yellow background")
    assert known_words("pocket").unknown(prompt.input_value()) == ()
    expect(asked).to_be_empty()
    prompt.fill("a princess and a wolf")
    expect(asked).to_contain_text("pocket was never shown: princess")
    asked.get_by_role("button", name="fox").click()
    expect(prompt).to_have_value("a princess and a fox")
    prompt.fill("")
    prompt.press_sequentially("a peng")
    expect(page.locator(".complete li")).to_have_text(["penguin"])
    prompt.press("ArrowDown")
    prompt.press("Enter")
    expect(prompt).to_have_value("a penguin ")
    expect(page.locator(".complete")).to_be_hidden()


def test_a_word_without_a_concept_is_named_with_the_one_that_is_meant(visit):
    page = visit()
    page.locator(".offer:visible").click()
    prompt, asked = page.locator(PROMPT), page.locator("#words .asked")
    expect(prompt).to_have_value("a <wolf>")
    prompt.fill("a <wolff> on a hill")
    expect(asked).to_contain_text("No concept has the word <wolff>. Did you mean")
    asked.get_by_role("button", name="<wolf>").click()
    expect(prompt).to_have_value("a <wolf> on a hill")
    prompt.fill("a ")
    prompt.press_sequentially("<w")
    expect(page.locator(".complete li")).to_have_text(["<wolf>"])
    page.locator(".complete li").click()
    expect(prompt).to_have_value("a <wolf> ")


def test_an_empty_prompt_is_asked_about(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "")
    before = len(jobs.list("generation", limit=1000))
    page.locator("#go").click()
    question = page.locator("dialog.question")
    expect(question).to_contain_text("The prompt is empty")
    question.get_by_role("button", name="Let me write it").click()
    expect(page.locator(PROMPT)).to_be_focused()
    assert len(jobs.list("generation", limit=1000)) == before
    page.locator("#go").click()
    question.get_by_role("button", name="Surprise me").click()
    wait_for_pictures(page, 1)
    said = newest(jobs, "generation").spec["request"]["prompt"]
    assert said and known_words("pocket").unknown(said) == ()
    page.locator(PROMPT).fill("")
    page.locator("#go").click()
    before = page.url
    question.get_by_role("button", name="Draw without words").click()
    expect(page).not_to_have_url(before)
    wait_for_pictures(page, 1)
    assert newest(jobs, "generation").spec["request"]["prompt"] == ""


def test_pictures_are_seen_large_and_downloaded_one_or_all(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a house", 2)
    page.keyboard.press("Control+Enter")
    wait_for_pictures(page, 2)
    first, second = jobs.results(newest(jobs, "generation").id)
    page.locator(f"{GALLERY} .thumbnail-item button").first.click()
    light = page.locator("dialog.light")
    expect(light).to_contain_text("1 of 2")
    page.keyboard.press("ArrowRight")
    expect(light).to_contain_text("2 of 2")
    page.keyboard.press("ArrowRight")
    expect(light).to_contain_text("2 of 2")
    with page.expect_download() as loaded:
        light.get_by_role("link", name="Download").click()
    assert loaded.value.path().read_bytes() == second.read_bytes()
    page.keyboard.press("ArrowLeft")
    expect(light).to_contain_text("1 of 2")
    page.keyboard.press("Escape")
    expect(light).to_be_hidden()
    expect(page.locator(f"{GALLERY} .thumbnail-item button").first).to_be_focused()
    with page.expect_download() as loaded:
        page.get_by_role("link", name="Download all as a zip").click()
    with zipfile.ZipFile(loaded.value.path()) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            one.name: one.read_bytes() for one in (first, second)
        }
        assert archive.testzip() is None


def test_a_picture_is_dragged_onto_the_page_that_edits_and_seen_before_and_after(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a house")
    page.keyboard.press("Control+Enter")
    wait_for_pictures(page, 1)
    page.locator(f"{GALLERY} img").hover()
    page.mouse.down()
    page.get_by_role("tab", name="Edit", exact=True).hover()
    page.get_by_role("tab", name="Edit", exact=True).hover(position={"x": 5, "y": 5})
    expect(page.locator("#edit-file")).to_be_visible()
    page.locator("#edit-file").hover()
    page.locator("#edit-file").hover(position={"x": 60, "y": 50})
    page.mouse.up()
    expect(page.locator("#painter .easel")).to_have_attribute("aria-busy", "false")
    page.locator("#painter").get_by_text("Everything").click()
    page.locator("#edit-prompt textarea").fill("a cat on a pink background")
    page.locator("#edit-plan .count").select_option("1")
    page.locator("#edit-go").click()
    expect(page.locator("#edit-progress")).to_contain_text("Done")
    page.locator("#edit-gallery .thumbnail-item button").click()
    before, after = page.locator("dialog.light img.before"), page.locator("dialog.light img.large")
    shown = io.BytesIO(page.request.get(before.evaluate("one => one.src")).body())
    source = jobs.results(jobs.list("generation", limit=2)[1].id)[0]
    with Image.open(shown) as given, Image.open(source) as made:
        assert given.convert("RGB").tobytes() == made.convert("RGB").tobytes()
    page.get_by_label("How much of the picture before is shown").fill("100")
    assert before.evaluate("one => one.style.clipPath") == "inset(0px 0% 0px 0px)"
    assert before.bounding_box() == pytest.approx(after.bounding_box(), abs=2)


def test_each_control_has_a_sentence_and_more_behind_a_link(visit, studio):
    address, _ = studio
    page = visit()
    page.get_by_label("Help: Pictures, size and seed").click()
    bubble = page.locator("#bubble")
    expect(bubble).to_contain_text("the number their noise starts from")
    page.keyboard.press("Escape")
    expect(bubble).to_be_hidden()
    unfold(page, "settings-fold")
    page.get_by_label("Help: Guidance rescale").click()
    expect(bubble).to_contain_text("Pull the guided prediction")
    link = bubble.get_by_role("link").get_attribute("href")
    told = page.request.get(address + link)
    assert told.ok and f'id="{link.partition("#")[2]}"' in told.text()
    for tab, control in (
        ("Teach", "What do the pictures show?"),
        ("Edit", "What is to change"),
        ("Concepts", "Import"),
    ):
        go(page, tab)
        expect(page.get_by_label(f"Help: {control}")).to_be_visible()


def test_a_setting_is_a_slider_that_can_be_left_to_the_base(visit, studio):
    _, jobs = studio
    page = visit()
    quick(page, "a fox")
    dial = page.locator("#generation-guidance-scale")
    dial.get_by_label("Guidance scale, slider").fill("3.5")
    expect(dial.get_by_label("Guidance scale", exact=True)).to_have_value("3.5")
    page.keyboard.press("Control+Enter")
    wait_for_pictures(page, 1)
    assert newest(jobs, "generation").spec["request"]["guidance"]["scale"] == 3.5
    dial.get_by_role("button", name="leave it to the base").click()
    expect(dial.get_by_label("Guidance scale", exact=True)).to_have_value("")
    page.locator("#plan .size select").select_option("wide")
    expect(page.get_by_label("Width", exact=True)).to_have_value("96")
    before = page.url
    page.locator("#go").click()
    expect(page).not_to_have_url(before)
    wait_for_pictures(page, 1)
    asked = newest(jobs, "generation").spec["request"]
    assert (asked["width"], asked["height"], asked["guidance"].get("scale")) == (96, 64, None)


def test_dark_is_chosen_and_kept(visit):
    page = visit(color_scheme="light")
    page.get_by_role("button", name="Use dark colours").click()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.reload()
    expect(page.locator("body")).to_have_class(re.compile("dark"))
    page.get_by_role("button", name="Use light colours").click()
    expect(page.locator("body")).not_to_have_class(re.compile(r"\bdark\b"))


def brush(page, words):
    """Paint a stroke across the right half of the canvas, and say what is there."""
    page.get_by_role("button", name="Brush a part").click()
    page.locator(".stage").hover()
    frame = page.locator(".stage").bounding_box()
    page.mouse.move(frame["x"] + 0.6 * frame["width"], frame["y"] + 0.5 * frame["height"])
    page.mouse.down()
    page.mouse.move(frame["x"] + 0.9 * frame["width"], frame["y"] + 0.5 * frame["height"], steps=4)
    page.mouse.up()
    page.keyboard.type(words)


def drawn_now(page, jobs):
    """Press the button; what the picture that comes says it was asked with."""
    before = page.url
    page.locator("#go").click()
    expect(page).not_to_have_url(before)
    wait_for_pictures(page, 1)
    return read_made(jobs.results(newest(jobs, "generation").id)[0]).request


def test_parts_of_the_picture_and_further_prompts_are_asked_for_and_come_back(visit, studio):
    _, jobs = studio
    page = visit(1280)
    quick(page, "a blue background")
    draw(page, 0.05, 0.3, 0.45, 0.8, "a fox")
    page.get_by_label("Own prompt for box 1").click()
    page.get_by_label("What is not in part 1").fill("a dog")
    brush(page, "a cat")
    page.get_by_role("button", name="Add a prompt").click()
    page.keyboard.type("a house")
    page.get_by_label("Weight of further prompt 1").fill("-0.5")
    expect(page.locator(".stage .box.part")).to_have_count(2)

    made = drawn_now(page, jobs)
    fox, cat = made.regions
    assert (fox.prompt, fox.negative_prompt, made.boxes) == ("a fox", "a dog", ())
    assert fox.box == pytest.approx((0.05, 0.3, 0.45, 0.8), abs=0.02)
    with Image.open(jobs.folder / cat.mask) as mask:
        left, top, right, bottom = (edge / mask.width for edge in mask.getbbox())
    assert (cat.prompt, cat.soft) == ("a cat", 0.05)
    assert (left, top, right, bottom) == pytest.approx((0.52, 0.42, 0.98, 0.58), abs=0.03)
    assert [(one.prompt, one.weight) for one in made.also] == [("a house", -0.5)]
    page.reload()
    expect(page.get_by_label("What is in box 2")).to_have_value("a cat")
    expect(page.get_by_label("What is not in part 1")).to_have_value("a dog")
    expect(page.locator(".stage .box.brushed .paint")).to_be_visible()
    answered(page)
    unfold(page, "settings-fold")
    expect(page.get_by_label("Further prompt 1", exact=True)).to_have_value("a house")
    again = drawn_now(page, jobs)
    assert (again.regions, again.also) == (made.regions, made.also)
    page.get_by_label("Remove box 2").click()
    page.get_by_label("Remove further prompt 1").click()
    chosen(page, GALLERY, 0)
    page.locator("#generation-use-1").click()  # these settings
    expect(page.get_by_label("What is in box 2")).to_have_value("a cat")
    expect(page.get_by_label("Weight of further prompt 1")).to_have_value("-0.5")
    unfold(page, "start-fold")
    page.locator("#start-fold [type=file]").set_input_files(WOLF)
    expect(page.locator("#start-fold img")).to_have_js_property("naturalWidth", 64)
    page.get_by_label("Strength of the change").fill("0.5")
    started = drawn_now(page, jobs).inpaint
    assert started.whole and started.strength == 0.5
    with Image.open(jobs.folder / started.image) as kept, Image.open(WOLF) as given:
        assert kept.convert("RGB").tobytes() == given.convert("RGB").tobytes()
    page.reload()
    answered(page)
    unfold(page, "start-fold")
    expect(page.locator("#start-fold img")).to_be_visible()
    page.locator("#start-fold [type=file]").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"no"})
    expect(page.locator("#start-fold [role=status]")).to_contain_text("no picture that can be read")
    page.get_by_role("button", name="Start from nothing").click()
    expect(page.locator("#start-fold img")).to_be_hidden()
