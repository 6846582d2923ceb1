"""Help of the page: a sentence at each control, more on a page of its own, and the tour of a first visit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from types import MappingProxyType
from typing import NamedTuple

from pipelines.request.request import InContext, Inpaint, Request
from studio.web import forms, languages
from studio.web.pages import edit, example, offers
from studio.web.static import text


class Help(NamedTuple):
    """Help on a control.

    Attributes:
        title: what people call it.
        says: what it does, in a sentence or two.
        more: what is good to know; empty if the sentence is all.
    """

    title: str
    says: str
    more: str = ""


WORDS = (
    "A base draws what it was shown. The small base that comes with the studio, pocket, was shown some two hundred "
    "things as stickers on ten colours: click a word to put it into the prompt. Anything else, a princess or an oil "
    "painting, it has never seen; a note below the prompt says so. Bases such as Stable Diffusion know far more words "
    "and need no list."
)

CONTROLS: Mapping[str, Help] = MappingProxyType(
    {
        "prompt": Help(
            "Prompt",
            "Say what the picture shows. Ctrl+Enter generates; words are completed while you type.",
            "Words of learned concepts stand in angle brackets, such as <wolf>. (word:1.3) makes a word count more, "
            "(word:0.7) less.",
        ),
        "plan": Help(
            "Pictures, size and seed",
            "How many pictures come at once, in what shape, and the number their noise starts from.",
            "Each press draws a new seed, so that new pictures come. “Keep” makes the same pictures again, for "
            "example to see what one changed word does. “Use this seed” beneath a picture takes that of one you like.",
        ),
        "words": Help("Words the base knows", "Click a word to put it into the prompt.", WORDS),
        "chips": Help(
            "Concepts",
            "What you have taught. A click puts its word into the prompt; the slider says how strongly it acts.",
            "0 is the word it was learned from, 1 what was learned, more than 1 exaggerates it.",
        ),
        "boxes-fold": Help(
            "Boxes",
            "Draw a box and say what is in it: the thing comes there. “Own prompt” draws what is inside by itself.",
            "The prompt should say the same things as the boxes. With “Own prompt”, or painted with the brush, a part "
            "follows its words alone, as if it were a picture of its own; weights of a concept it names act in it "
            "alone, so that several learned things stand in one picture. The prompt is then that of the rest, and a "
            "soft rim mixes both. On the keyboard: arrows move a box, Shift with arrows changes its "
            "size, Delete removes it.",
        ),
        "settings-fold": Help(
            "More settings",
            "Everything else, on automatic. Nothing here has to be touched.",
            "“Automatic” is what suits the chosen base.",
        ),
        "guidance": Help(
            "Keep to the prompt",
            "How closely the picture follows the prompt; closely costs variety, and at the end quality.",
        ),
        "compare": Help(
            "Compare",
            "One picture for each value of a setting, all from the same seed, side by side on a sheet.",
        ),
        "phrasing": Help(
            "Styles and earlier prompts",
            "A style is added to every prompt, or has {prompt} where the prompt goes. Earlier prompts come back.",
            "Words can be drawn by lot: {fox|cat|dog} takes one of the three at each press, and several pictures show "
            "several. __animals__, __food__ or __colour__ draw from the words of the base.",
        ),
        "find": Help("Search pictures", "Finds pictures of all days by prompt, concept, base or tag."),
        "to-board": Help("Boards", "A board is a folder for pictures. Choose one, or write the name of a new one."),
        "parts": Help("What to use again", "Of the picture that is ticked or was clicked; everything else stays."),
        "dropped": Help(
            "Settings from a picture",
            "Pictures made here carry all their settings, and so do those of other programs. Drop one to have them.",
        ),
        "what": Help(
            "What do the pictures show?",
            "It decides how the model learns. The line beneath says what each costs.",
            "“One thing of mine” is right most of the time. “Quick” takes half as long and is less like your pictures. "
            "A style is how pictures look, whatever they show. A relation is what holds between two things.",
        ),
        "files": Help(
            "Pictures to learn from",
            "3 to 10 pictures of the same thing, from different sides and on different backgrounds.",
            "Crop them so that the thing fills most of the picture, or mask it by a click: what is around it is then "
            "learned less. Captions say what is not to be learned: what stands beside the thing, where, on what "
            "background. “Write captions” looks at the pictures that have none, leaves out what all of them show, and "
            "puts the new word there; change them as you like. A caption without the new word is not used.",
        ),
        "token": Help(
            "Its new word",
            "The word that you will say in prompts, in angle brackets so that it is no ordinary one.",
        ),
        "start": Help(
            "The nearest word",
            "A word that the model knows for something alike. Learning starts from there.",
            "For a wolf, fox is near. The nearer it is, the quicker and better the result.",
        ),
        "preset": Help("How long", "A quick look takes a third of the time, thorough twice; recommended suits most."),
        "edit-file": Help("Picture", "Drop the picture to change; or choose “Edit this picture” beside one made here."),
        "painter": Help(
            "What is to change",
            "Click a thing to mark it, or paint over it. Only what is marked is painted anew.",
        ),
        "edit-prompt": Help(
            "Description of the new picture",
            "Say what the whole picture shows afterwards, not only the new thing.",
        ),
        "example-query": Help(
            "Do the same to this",
            "Give a picture before and after a change, and another one: the same change is made to it.",
        ),
        "models": Help(
            "Base models",
            "What draws the pictures. A click shows what one needs and allows; “Use this model” chooses it.",
            "Each page remembers its own choice, and the list beside the title changes it. A concept goes with the "
            "family of the base it was taught on.",
        ),
        "hub-id": Help(
            "Fetch from huggingface.co",
            "The name of a model as on its page, OWNER/NAME; it has to be in the layout of diffusers.",
            "Only what is needed is fetched, and each file is compared with its sum. A download that was stopped goes "
            "on when it is asked for again.",
        ),
        "models-import": Help("Import", "Embeddings and LoRA of other programs become concepts of the library."),
        "search": Help("Search", "Finds concepts by word, kind, method or base."),
        "import": Help("Import", "Embeddings and LoRA of other programs become concepts of this library."),
        "dialect": Help("For other programs", "Writes a file that this program reads; the concept stays here as well."),
        "compared": Help("Concepts to compare", "Their figures stand side by side. Higher is better but for errors."),
    }
)
"""Name of a component -> its help."""

TOUR: tuple[tuple[str, str, str], ...] = (
    ("#prompt", "Say what to draw", "Write it here, or click words below. Ctrl+Enter generates."),
    ("#words", "What the model knows", "The small built-in model draws stickers; these are its words."),
    (".result", "Your pictures", "They appear here. Click one to see it large, use its seed, or edit it."),
    ("#pages [role=tab]:nth-of-type(3)", "Teach it something", "A few pictures of your own thing, and it has a word."),
)
"""Place, title and sentence of each step."""


def controls() -> dict[str, Help]:
    """Return the help of all controls: those above, and those derived from settings."""
    derived: dict[str, tuple[str, str]] = {
        **forms.helps("generation", Request, offers.LABELS),
        **forms.helps("edit", Inpaint, edit.LABELS),
        **forms.helps("example", InContext, example.LABELS),
    }
    return {**CONTROLS, **{name: Help(*told) for name, told in derived.items()}}


def languages_script(chosen: str) -> str:
    """Return the script that puts a page into the language of its visitor, and what it has to know.

    Args:
        chosen: the server's language; `AUTO` for that of the browser.
    """
    return f'<script type="application/json" id="studio-languages">{languages.told(chosen)}</script>' + _script(
        "language.js"
    )


def _script(name: str) -> str:
    return f"<script>(() => {{\n{text(name)}\n}})();</script>"


def scripts(language: str = languages.AUTO) -> str:
    """Return what goes into the head of the page: its scripts, the help they show, and the server's language."""
    told = {"controls": {name: [one.title, one.says, bool(one.more)] for name, one in controls().items()}, "tour": TOUR}
    # Inside a script element "</" must not appear.
    data = json.dumps(told, ensure_ascii=False).replace("</", "<\\/")
    names = ("prompt.js", "light.js", "guide.js", "clock.js", "looks.js", "queue.js")
    helped = f'<script type="application/json" id="studio-help">{data}</script>'
    return languages_script(language) + helped + "".join(map(_script, names))


def document(language: str = languages.AUTO) -> str:
    """Return the page of help as HTML."""
    parts = "".join(
        f'<section id="{escape(name)}"><h2>{escape(one.title)}</h2><p>{escape(one.says)}</p>'
        + (f"<p>{escape(one.more)}</p>" if one.more else "")
        + "</section>"
        for name, one in controls().items()
    )
    return text("help.html").replace("{parts}", parts).replace("{language}", languages_script(language))
