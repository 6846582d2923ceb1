"""Archives of pictures to learn from, read by the same rules as folders: see `trainers.reading`. Needs no torch."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.errors import DataError
from studio.datasets import Datasets, Entry
from studio.uploads import cleaned, members
from trainers.reading import Found, Listing, listing

NAMED = 5
"""So many reasons are told where nothing is left."""


@dataclass(frozen=True)
class Taken:
    """What was taken in of an archive.

    Attributes:
        entries: the pictures.
        ignored: path in the archive -> why it was left out.
    """

    entries: tuple[Entry, ...]
    ignored: Mapping[str, str]


def take(datasets: Datasets, dataset: str, data: bytes) -> Taken:
    """Take the pictures of a zip into a dataset, with all that a folder to learn from may have.

    What cannot be learned from is left out and told.

    Raises:
        DataError: if the archive is not as it should be, there is no picture in it, or a caption, mask or index file
            cannot be used; nothing of it is kept then.
    """
    datasets.folder(dataset)
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=datasets.path) as place:
        for name, content in members(data):
            file = Path(place, name)
            if not any(part.startswith(".") for part in Path(name).parts):
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        added: list[str] = []
        try:
            ignored = _add(datasets, dataset, listing(Path(place), deep=True), added)
        except BaseException as error:
            for name in added:
                datasets.remove(dataset, name)
            if isinstance(error, DataError):  # it was no folder to whoever sent it
                raise DataError(error.message.replace(place, "the archive"), error.hint.replace(place, "it")) from None
            raise
    return Taken(tuple(datasets.entry(dataset, name) for name in added), ignored)


def _add(datasets: Datasets, dataset: str, listed: Listing, added: list[str]) -> dict[str, str]:
    """Add pictures with what belongs to them, their names to `added`; gives what was left out, and why."""
    ignored = dict(listed.ignored)
    for one in listed.found:
        try:
            picture = _read(one.path)
        except DataError as error:
            ignored[one.name] = str(error)
            continue
        if doubt := listed.doubt(one, picture, _read):
            ignored[one.name] = doubt
            continue
        entry = datasets.keep(dataset, picture, "" if one.pair else "\n".join(one.captions))
        added.append(entry.name)
        _describe(datasets, dataset, entry.name, one)
    if not added:
        said = " ".join(f"{name}: {why}" for name, why in [*ignored.items()][:NAMED])
        raise DataError(f"No picture of the archive can be learned from. {said}", "Put that right.")
    return ignored


def _read(path: Path) -> Image.Image:
    return cleaned(path.read_bytes(), path.name)


def _describe(datasets: Datasets, dataset: str, name: str, found: Found) -> None:
    if found.mask:
        try:
            datasets.set_mask(dataset, name, found.mask.read_bytes())
        except DataError as error:
            raise DataError(f"{found.mask.name}: {error.message}", error.hint) from None
    if found.pair:
        datasets.set_pair(dataset, name, *found.pair)
    if found.repeats != 1:
        datasets.set_repeats(dataset, name, found.repeats)
