"""Uploads of training pictures. Needs no torch.

Archives are read by the same rules as folders (`trainers.data.folders`); a picture that cannot be read is left out and
told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.pairs import SIDES, halves
from pipelines.request.request import Box
from studio.library.datasets import BOXES, DatasetPicture, Datasets
from studio.library.uploads import cleaned, decoding, members
from trainers.data.folders import FolderPicture, Listing, listing
from trainers.data.training_boxes import COCO, TrainingBoxes, yolo_tree

ARCHIVE_MARK = b"PK\x03\x04"
"""First bytes of a zip."""

NAME = 80
"""Longest name of an upload in messages, in letters."""

NAMED = 5
"""Most reasons reported where no file is usable."""


@dataclass(frozen=True)
class Taken:
    """The files stored from an upload, and those left out.

    Attributes:
        entries: the pictures.
        ignored: name, or path in an archive -> why it was left out.
    """

    entries: tuple[DatasetPicture, ...]
    ignored: Mapping[str, str]


def take_all(datasets: Datasets, dataset: str, files: Iterable[tuple[str, bytes]]) -> Taken:
    """Store files in a dataset: pictures, and archives of them. Unusable files are left out and reported.

    Args:
        datasets: of the server.
        dataset: id.
        files: name and content of each.

    Raises:
        DataError: if nothing can be learned from, an archive cannot be taken, or there are too many pictures; nothing
            is kept then.
    """
    entries: list[DatasetPicture] = []
    ignored: dict[str, str] = {}
    try:
        for name, data in files:
            if data.startswith(ARCHIVE_MARK):
                taken = take(datasets, dataset, data)
                entries += taken.entries
                ignored |= taken.ignored
                continue
            called = " ".join(name.split())[:NAME] or "the picture"
            with decoding():
                try:
                    picture = cleaned(data, called)
                except DataError as error:
                    ignored[called] = str(error)
                else:
                    entries.append(datasets.keep(dataset, picture))
        if not entries:
            raise _nothing(ignored, "these files")
    except BaseException:
        for one in entries:
            datasets.remove(dataset, one.name)
        raise
    return Taken(tuple(entries), ignored)


def _nothing(ignored: Mapping[str, str], source: str) -> DataError:
    said = " ".join(f"{name}: {why}" for name, why in [*ignored.items()][:NAMED])
    return DataError(f"No picture of {source} can be learned from. {said}", "Put that right.")


def take(datasets: Datasets, dataset: str, data: bytes) -> Taken:
    """Store the pictures of a zip in a dataset, with captions, masks and index files.

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
            ignored = _add(datasets, dataset, Path(place), listing(Path(place), deep=True), added)
        except BaseException as error:
            for name in added:
                datasets.remove(dataset, name)
            if isinstance(error, DataError):  # the sender sent no folder
                raise DataError(error.message.replace(place, "the archive"), error.hint.replace(place, "it")) from None
            raise
    return Taken(tuple(datasets.entry(dataset, name) for name in added), ignored)


def _add(datasets: Datasets, dataset: str, place: Path, listed: Listing, added: list[str]) -> dict[str, str]:
    """Add pictures with all that belongs to them, their names to `added`; return the files left out, with reasons."""
    boxes, after = _boxes_in(place), _after_of(listed)
    ignored = {name: why for name, why in listed.ignored.items() if not name.endswith(BOXES) or not boxes}
    for one in (one for one in listed.found if one.path not in after.values()):
        try:
            picture = _read(one.path)
        except DataError as error:
            ignored[one.name] = str(error)
            continue
        if doubt := listed.doubt(one, picture, _read):
            ignored[one.name] = doubt
            continue
        try:
            entry = datasets.keep(dataset, picture, "" if one.pair else "\n".join(one.captions))
            added.append(entry.name)
            _describe(datasets, dataset, entry.name, one)
            if one.path in after:
                datasets.set_after(dataset, entry.name, after[one.path].read_bytes())
            if boxes:
                datasets.set_boxes(dataset, entry.name, boxes(one.path))
        except _MaskError as error:
            ignored[one.name] = str(error)
            datasets.remove(dataset, added.pop())
        except DataError as error:
            raise DataError(f"{one.name}: {error.message}", error.hint) from None
    if not added:
        raise _nothing(ignored, "the archive")
    return ignored


def _after_of(listed: Listing) -> dict[Path, Path]:
    """Return picture before -> picture after, of the pairs in an archive."""
    folders = {one.path.parent for one in listed.found}
    pairs: dict[Path, Path] = {}
    for folder in {*folders, *(one.parent for one in folders if one.name in SIDES)}:
        before, after = halves(folder)
        pairs |= {before[name]: after[name] for name in before.keys() & after.keys()}
    return pairs


def _boxes_in(place: Path) -> Callable[[Path], tuple[Box, ...]] | None:
    """Return what gives the boxes of a picture in an archive; None if there are no boxes."""
    pictures, labels = yolo_tree(place) or (place, None)
    if labels is None and not any(place.rglob(f"*{BOXES}")) and not (place / COCO).is_file():
        return None
    boxes = TrainingBoxes(pictures, labels)
    return lambda path: boxes.of(path.relative_to(pictures).as_posix()) if path.is_relative_to(pictures) else ()


class _MaskError(DataError):
    """A mask that cannot be used."""


def _read(path: Path) -> Image.Image:
    return cleaned(path.read_bytes(), path.name)


def _describe(datasets: Datasets, dataset: str, name: str, found: FolderPicture) -> None:
    if found.mask:
        try:
            datasets.set_mask(dataset, name, found.mask.read_bytes())
        except DataError as error:
            raise _MaskError(f"{found.mask.name}: {error.message}", error.hint) from None
    if found.pair:
        datasets.set_pair(dataset, name, *found.pair)
    if found.repeats != 1:
        datasets.set_repeats(dataset, name, found.repeats)
