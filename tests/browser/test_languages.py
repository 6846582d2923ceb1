"""The page in German: every text of every tab, what is sent, and the ways to choose a language."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.test_everyone import violations
from tests.browser.waiting import answered, go

TABS = ("Erzeugen", "Bilder", "Trainieren", "Bearbeiten", "Nach Beispiel", "Konzepte", "Modelle", "Messen")
DATA = re.compile(r"pocket|twin|[\d.,]+ [KMG]iB|mit|Deutsch|English|common\.complete|Boxes, .*|<[\w-]+>|Prompt Studio")
"""Names, figures and the prompts of these tests, which are the same in every language."""

UNFOLD = """() => document.querySelectorAll('.fold-head[aria-expanded=false], details:not([open]) > summary')
  .forEach((one) => one.offsetParent && one.click())"""
LEFT = "() => window.studio.untranslated(document.body)"
HELPED = """async () => {
  const left = [];
  for (const one of document.querySelectorAll('.ask-help')) {
    one.click();
    await new Promise((done) => setTimeout(done));
    left.push(...window.studio.untranslated(document.getElementById('bubble')));
  }
  document.getElementById('bubble').hidePopover();
  return left;
}"""
"""Returns what is not in German of the help of all controls."""

WIDE = "document.documentElement.scrollWidth - innerWidth"
CUT = """() => [...document.querySelectorAll('h1, button, summary, [role=tab], .plan select')]
  .filter((one) => !one.matches('.ask-help, .label-wrap'))
  .filter((one) => one.offsetParent && one.scrollWidth > one.clientWidth + 1)
  .map((one) => one.innerText)"""
"""Returns what does not fit its button, heading or tab."""


def english(page):
    if "/help" not in page.url:
        answered(page)
    values = {text.strip() for text in page.locator(".facts td").all_text_contents()}
    return sorted({text for text in page.evaluate(LEFT) if not DATA.fullmatch(text)} - values)


def opened(page, tab):
    """Open a tab, with all that is folded."""
    go(page, tab)
    page.evaluate(UNFOLD)
    answered(page)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_page_is_german_in_a_german_browser_and_nothing_is_cut(visit, width, scheme):
    page = visit(width, 900, locale="de-DE", color_scheme=scheme)
    expect(page.locator("html")).to_have_attribute("lang", "de")
    for tab in TABS:
        opened(page, tab)
        assert english(page) == [], tab
        assert page.evaluate(WIDE) <= 0, tab
        assert page.evaluate(CUT) == [], tab
        if tab == "Trainieren" and width == 1280:
            for kind in page.locator("#what input, #other-what input").all():
                kind.check()
                answered(page)
                assert english(page) == []


def test_so_is_what_opens_and_what_comes_and_what_is_sent_is_not(visit, studio):
    _, jobs = studio
    page = visit(locale="de-AT", first=True)
    expect(page.locator(".tour")).to_contain_text("1 von 4")
    assert english(page) == [] and violations(page) == []
    page.locator(".tour").get_by_role("button", name="Überspringen").click()
    missing = page.evaluate(HELPED)
    assert [text for text in missing if not DATA.fullmatch(text)] == []
    page.locator("#go").click()
    assert "Der Prompt ist leer." in page.locator("dialog.question").inner_text() and english(page) == []
    page.get_by_role("button", name="Selbst schreiben").click()
    opened(page, "Erzeugen")
    closely = page.locator("#guidance input")
    expect(closely).to_have_value("normal")
    assert closely.evaluate("one => one.value") == "normally"  # to the scripts of the page
    closely.click()
    page.get_by_role("option", name="eng", exact=True).click()
    page.locator("#generation-steps [type=number]").fill("2")
    page.locator("#plan .count").select_option("2")
    page.locator("#prompt textarea").fill("Boxes")  # a word of the page, but a person's here
    page.locator("#go").click()
    expect(page.locator("#generation-progress")).to_contain_text("Fertig")
    expect(page.locator("#generation-gallery figcaption").first).to_contain_text("Seed ")
    spec = next(job for job in jobs.list("generation") if job.spec["request"]["prompt"] == "Boxes").spec
    assert spec["request"]["guidance"]["scale"] == 4.0
    go(page, "Bilder")
    expect(page.locator("#all-pictures figcaption").first).to_contain_text("Boxes")
    assert english(page) == []
    page.locator("#all-pictures .thumbnail-item button").first.click()
    expect(page.locator("dialog.light")).to_contain_text("1 von")
    assert english(page) == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Aufträge").click()
    expect(page.locator("#queue")).to_contain_text("Nichts ist in Arbeit")
    page.get_by_label("Aufträge schließen").click()
    go(page, "Messen")
    page.get_by_role("button", name="Ein Konzept messen").click()
    page.locator("#measure").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text("Noch gibt es nichts zu messen.")
    assert english(page) == [] and violations(page) == []


def test_the_language_is_chosen_on_the_page_and_remembered(visit, studio):
    page = visit(locale="en-GB")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("tab").first).to_have_text("Generate")
    page.locator("#prompt textarea").fill("a fox")
    page.get_by_label("Language").select_option("de")
    expect(page.get_by_role("tab").first).to_have_text("Erzeugen")
    page.reload()
    expect(page.get_by_role("tab").first).to_have_text("Erzeugen")
    page.goto(f"{studio[0]}/help")
    expect(page.get_by_role("heading").first).to_have_text("Hilfe")
    assert english(page) == []


def test_a_german_browser_may_read_english(visit):
    page = visit(locale="de-DE")
    go(page, "Nach Beispiel")
    page.get_by_label("Sprache").select_option("en")
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("tab").first).to_have_text("Generate")
    expect(page.locator("#example-before")).to_contain_text("Drop Image Here")  # which the framework said in German
    text = page.locator("body").inner_text()
    assert not re.search(r"\b(und|oder|der|ein)\b", text.replace("Deutsch", "")), text


def test_without_a_catalogue_for_the_browser_the_page_is_english_and_asks_for_none(visit):
    asked = []
    page = visit(locale="sv-SE")
    page.on("request", lambda request: asked.append(request.url) if "/languages/" in request.url else None)
    page.reload()
    expect(page.locator("html")).to_have_attribute("lang", "en")
    expect(page.get_by_role("tab").first).to_have_text("Generate")
    assert asked == []
