"""Words of concepts: which are valid, how they are compared, named as files, and missed. No torch.

Words and prompts are compared with their letters composed (NFC): a name that was copied on macOS has its accents apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from hashlib import sha256
from typing import Annotated

from pydantic import AfterValidator

from pipelines.errors import ConceptError

STEM_BYTES = 100
"""Longest name of a file that a word gives, without ending: file systems take 255 bytes, and some endings are long."""

CLOSE = 0.8
"""Least similarity, of 1, of two words of which one may be meant by the other."""

DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])(\..*)?", re.IGNORECASE)
"""Names of files that Windows keeps for itself, with whatever ending."""

_UNSAID = re.compile(r"[\s(){}\[\]\\:,]|[\x00-\x1f\x7f]")
ANGLED = re.compile(r"<[^<>\s:,()]{1,100}>")
"""Words in angle brackets, as concepts have them."""


def composed(text: str) -> str:
    """Return text with its letters composed (NFC)."""
    return unicodedata.normalize("NFC", text)


Composed = Annotated[str, AfterValidator(composed)]
"""Text in NFC, as words and prompts are kept."""


def check_word(word: str, hint: str = "Use one plain word, for example <my-fox>.") -> None:
    """Refuse a word that no prompt can say, or that no file can be called by.

    Raises:
        ConceptError: if it is empty, too long, has spaces or prompt syntax, or is a name that Windows keeps.
    """
    if not 0 < len(word) <= 100:
        raise ConceptError(f"A word has 1 to 100 letters, not {len(word)}.", hint)
    if word == "__metadata__" or _UNSAID.search(word):
        raise ConceptError(f"The token {word!r} is empty or has a space, bracket, colon or comma in it.", hint)
    file_stem(word)


def file_stem(word: str) -> str:
    """Return a file name for a word that every system takes: `<my cat>` -> `my-cat`, `<猫>` -> `猫`.

    Letters and digits of all scripts stay; spaces become dashes. Where anything else was lost, other than the angle
    brackets around it, eight digits of its sum are added, so that different words have different files.

    Raises:
        ConceptError: if it would be a name that Windows keeps for a device.
    """
    plain = composed(word)
    inner = plain[1:-1] if plain.startswith("<") and plain.endswith(">") else plain
    kept = "".join(letter if _stays(letter) else "-" for letter in inner)
    stem = re.sub(r"-+", "-", kept).strip("-.")
    short = stem.encode()[:STEM_BYTES].decode(errors="ignore").rstrip("-.")
    if DEVICES.fullmatch(short):
        raise ConceptError(
            f"Windows keeps the name {short} for a device.", f"Use another word, for example <my-{short}>."
        )
    if short != stem or not short or any(not _stays(letter) and letter not in " -" for letter in inner):
        short = f"{short or 'concept'}-{sha256(plain.encode(errors='surrogatepass')).hexdigest()[:8]}"
    return short


def _stays(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN" or letter in "_.-"


def says(text: str, word: str) -> bool:
    """Return whether a text contains a word as the tokenizers read it: new words exactly, others as whole words.

    >>> says("a photo of <cat>s", "<cat>"), says("a wolfram", "wolf")
    (True, False)
    """
    found = re.escape(composed(word))
    if re.fullmatch(r"[\w ]+", composed(word)):
        found = rf"(?<!\w){found}(?!\w)"
    return re.search(found, composed(text)) is not None


def near_miss(text: str, word: str) -> str:
    """Return the word of a text that may be meant by one that is not in it: `<my-wolf>` for `<My-Wolf>`; else empty."""
    said = re.findall(r"<[^<>\s]{1,100}>|[\w-]+", composed(text))
    rated = [(SequenceMatcher(None, _bare(one), _bare(word)).ratio(), one) for one in dict.fromkeys(said)]
    best = max(rated, default=(0.0, ""), key=lambda pair: pair[0])
    return best[1] if best[0] >= CLOSE else ""


def _bare(word: str) -> str:
    return composed(word).casefold().strip("<>")


def notes(texts: Sequence[str], learned: Sequence[str], known: Callable[[str], bool], base: str) -> str:
    """Return notes on words used without their concept, or concepts without their word; empty if all is well.

    Args:
        texts: prompts and phrases, without the syntax of weights.
        learned: words of the concepts that are used.
        known: whether a word in angle brackets is one of the base or of a concept that is used.
        base: name of the base.
    """
    text = "\n".join(texts)
    found: list[str] = []
    missed: set[str] = set()
    for word in learned:
        if not says(text, word):
            near = near_miss(text, word)
            missed.add(near)
            said = f": it says {near}, and words are told apart to the letter" if near else ""
            found.append(f"The prompt does not say {word}, so its concept does little{said}.")
    for word in dict.fromkeys(ANGLED.findall(composed(text))):
        if word not in missed and not known(word):
            found.append(f"{word} is no word of {base} or of a concept that is used; was its concept forgotten?")
    return " ".join(found)
