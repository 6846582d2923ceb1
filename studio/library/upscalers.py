"""The upscalers of a server: files in its folders of them. Needs no torch.

Clients name one by the name of its file alone, which is looked up among what is there; no name becomes a path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipelines.errors import RequestError
from pipelines.request.enlarge import may_be_upscaler
from pipelines.request.texts import encodable

FOLDER = "upscalers"
"""Folder in that of a server in which upscalers are looked for by default."""


class Upscalers:
    """Files that enlarge pictures; folders are looked into at each question.

    Args:
        roots: folders of them.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(dict.fromkeys(roots))

    def there(self) -> dict[str, Path]:
        """Return name -> file of all, by name; of two with one name the first folder's."""
        found: dict[str, Path] = {}
        for root in self.roots:
            with suppress(OSError):
                for name in os.listdir(root):
                    if encodable(name) and not name.startswith(".") and may_be_upscaler(name):
                        path = root / name
                        if path.is_file():
                            found.setdefault(name, path)
        return dict(sorted(found.items()))

    def path(self, name: str) -> Path:
        """Return a file by its name.

        Raises:
            RequestError: if there is none.
        """
        there = self.there()
        if name not in there:
            where = Path(*self.roots[0].parts[-2:])
            hint = f"There are: {', '.join(there)}." if there else f"Put its file into {where}."
            raise RequestError(f"There is no upscaler {name!r:.80}.", hint)
        return there[name]

    def meant(self, name: str) -> str | None:
        """Return the file that a name means, also without its ending and whatever its case; None if there is none."""
        wanted = name.strip().lower()
        return next((one for one in self.there() if wanted in (one.lower(), Path(one).stem.lower())), None)
