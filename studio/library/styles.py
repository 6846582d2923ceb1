"""Saved styles: words that go with any prompt, in one file of the server. Needs no torch."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from pipelines.errors import DataError
from pipelines.files import whole_file

FILE = "styles.json"
HOLE = "{prompt}"
"""Place of the prompt in a style; a style without it goes behind the prompt."""

MOST, LONGEST, NAME = 200, 1000, 60
"""Most styles, and the longest text and name of one, in letters."""

_WRITING = threading.Lock()


def applied(style: str, prompt: str) -> str:
    """Return a prompt in a style.

    >>> applied("on a teal background", "a fox"), applied("a sticker of {prompt}", "a fox"), applied("", "a fox")
    ('a fox on a teal background', 'a sticker of a fox', 'a fox')
    """
    if HOLE in style:
        return style.replace(HOLE, prompt)
    return f"{prompt.rstrip()} {style.strip()}".strip() if style.strip() else prompt


class Styles:
    """The saved styles of a server.

    Args:
        folder: of the server.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE

    def all(self) -> dict[str, str]:
        """Return name -> text, by name; none if the file is not there or damaged."""
        try:
            told = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return {}
        if not isinstance(told, dict):
            return {}
        return dict(sorted((str(name), text) for name, text in told.items() if isinstance(text, str)))

    def save(self, name: str, text: str) -> None:
        """Keep a style under a name, in the place of one that has it.

        Raises:
            DataError: if name or text is empty or too long, or there are too many.
        """
        name, text = name.strip(), text.strip()
        if not name or not text or len(name) > NAME or len(text) > LONGEST:
            raise DataError("A style has a name and words.", f"Give a name of at most {NAME} letters, and some words.")
        with _WRITING:
            known = self.all() | {name: text}
            if len(known) > MOST:
                raise DataError(f"There are {MOST} styles already.", "Delete one first.")
            self._write(known)

    def delete(self, name: str) -> None:
        """Forget a style; nothing happens if there is none."""
        with _WRITING:
            known = self.all()
            if known.pop(name, None) is not None:
                self._write(known)

    def _write(self, known: dict[str, str]) -> None:
        with whole_file(self.path) as temporary:
            temporary.write_text(json.dumps(known, ensure_ascii=False, indent=1), encoding="utf-8")
