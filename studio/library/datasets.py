"""Training pictures that people upload: folders with an id, as `trainers.data.folders` reads them. Needs no torch.

A picture is `0001.png`, its caption `0001.txt` (several are lines of `0001.captions`), its mask `0001.mask.png`; names
of two things are in `pairs.json`, and how often it comes in `repeats.json`. The picture after a change of it is
`0001.after.png`, the boxes of things in it are lines of `0001.bbox`.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from pipelines.errors import DataError, Unknown
from pipelines.files import require_room, whole_file
from pipelines.pictures.files import grey
from pipelines.request.request import Box
from pipelines.request.texts import readable
from studio.library.quota import Quota
from studio.library.uploads import CAPTION, PICTURES, at_a_time, cleaned, write_png
from trainers.data.caption_files import SEVERAL, tidied
from trainers.data.index_files import MOST, PAIRS, REPEATS
from trainers.data.mask_files import shown

ABOUT = ".about.json"
BOXES = ".bbox"
IDENTITY = re.compile(r"[0-9a-f]{16}")
PICTURE = re.compile(r"[0-9]{4}\.png")
WORD = 60


@dataclass(frozen=True)
class Dataset:
    """A set of training pictures.

    Attributes:
        id: unguessable name.
        name: name the person gave.
        created: seconds since 1970.
        pictures: number of pictures.
    """

    id: str
    name: str
    created: float
    pictures: int


@dataclass(frozen=True)
class DatasetPicture:
    """A picture of a dataset.

    Attributes:
        name: `0001.png`.
        width: in pixels.
        height: in pixels.
        caption: its caption; empty for the method's own templates.
        pair: names of the two things it relates, for relations.
        mask: whether it has one.
        repeats: times per epoch.
    """

    name: str
    width: int
    height: int
    caption: str
    pair: tuple[str, str] | None
    mask: bool
    repeats: int = 1


class Datasets:
    """All datasets of a server.

    Args:
        folder: folder to read.
        quota: room they share with other uploads; None for no limit but the disk's.
    """

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        self.path, self.quota = folder, quota
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def create(self, name: str = "") -> Dataset:
        """Create a dataset without pictures."""
        name = _one_line(name, 100) or "Pictures"
        require_room(self.path, 64 << 20)
        dataset = Dataset(secrets.token_hex(8), name, time.time(), 0)
        folder = self.path / dataset.id
        folder.mkdir(parents=True)
        self._describe(folder, {"name": name, "created": dataset.created})
        return dataset

    def _describe(self, folder: Path, about: dict[str, Any]) -> None:
        with whole_file(folder / ABOUT) as temporary:
            temporary.write_text(json.dumps(about), encoding="utf-8")

    def rename(self, dataset: str, name: str) -> Dataset:
        """Rename a dataset; an empty name changes nothing."""
        now = self.get(dataset)
        self._describe(self.folder(dataset), {"name": _one_line(name, 100) or now.name, "created": now.created})
        return self.get(dataset)

    def folder(self, dataset: str) -> Path:
        """Return the folder of its pictures.

        Raises:
            Unknown: if there is none of this id.
        """
        place = self.path / dataset
        if not IDENTITY.fullmatch(dataset) or not (place / ABOUT).is_file():
            raise Unknown(f"There are no pictures of the id {dataset!r:.60}.", "They may have been deleted.")
        return place

    def get(self, dataset: str) -> Dataset:
        """Return a dataset; raises `Unknown`."""
        folder = self.folder(dataset)
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return Dataset(dataset, about["name"], about["created"], len(self._names(folder)))

    def list(self) -> list[Dataset]:
        """Return all datasets, the newest first."""
        found: list[Dataset] = []
        for place in self.path.glob(f"*/{ABOUT}"):
            with suppress(Unknown, OSError, ValueError, KeyError):  # deleted meanwhile, or damaged
                found.append(self.get(place.parent.name))
        return sorted(found, key=newest)

    def delete(self, dataset: str) -> None:
        """Delete a dataset for good."""
        folder = self.folder(dataset)
        gone = folder.with_name(f".{dataset}.gone")
        folder.rename(gone)  # at once, also for those who look while it is removed
        shutil.rmtree(gone, ignore_errors=True)

    # -- pictures --------------------------------------------------------------------------------------------

    @at_a_time
    def add(self, dataset: str, data: bytes, name: str = "", caption: str = "") -> DatasetPicture:
        """Store a picture.

        Args:
            dataset: id.
            data: content of a file of any usual kind.
            name: original name, for errors alone.
            caption: its caption.

        Raises:
            DataError: if it is no picture, too large, or one too many.
        """
        self.folder(dataset)
        return self.keep(dataset, cleaned(data, _one_line(name, 80) or "the picture"), caption)

    def keep(self, dataset: str, picture: Image.Image, caption: str = "") -> DatasetPicture:
        """Store a decoded picture; raises `DataError` if it is one too many."""
        folder, caption = self.folder(dataset), _caption(caption)
        with self._locks[dataset]:
            there = self._names(folder)
            if len(there) >= PICTURES:
                raise DataError(f"There are {len(there)} pictures already, the most there may be.", "Remove some.")
            number = 1 + max((int(one[:4]) for one in there), default=0)
            if number > 9999:
                raise DataError("All numbers of pictures are used up.", "Begin a new dataset.")
            path = write_png(picture, folder / f"{number:04d}.png", self.quota)
            self._say(path, caption)
        return self.entry(dataset, path.name)

    def entries(self, dataset: str) -> list[DatasetPicture]:
        """Return its pictures, in the order they came."""
        found: list[DatasetPicture] = []
        for name in self._names(self.folder(dataset)):
            with suppress(Unknown, OSError):  # removed meanwhile
                found.append(self.entry(dataset, name))
        return found

    def entry(self, dataset: str, name: str) -> DatasetPicture:
        """Return one picture; raises `Unknown`."""
        path = self.picture(dataset, name)
        with Image.open(path) as picture:
            width, height = picture.size
        text = next((one for one in _captions(path) if one.is_file()), None)
        caption = text.read_text(encoding="utf-8", errors="replace") if text else ""
        pair, repeats = (self._said(path.parent, index).get(name) for index in (PAIRS, REPEATS))
        pair = (readable(pair[0]), readable(pair[1])) if pair else None
        return DatasetPicture(name, width, height, caption, pair, _mask(path).is_file(), repeats or 1)

    def picture(self, dataset: str, name: str) -> Path:
        """Return the file of a picture; raises `Unknown`."""
        path = self.folder(dataset) / name
        if not PICTURE.fullmatch(name) or not path.is_file():
            raise Unknown(f"There is no picture {name!r:.60} here.", "It may have been removed.")
        return path

    def mask(self, dataset: str, name: str) -> Path | None:
        """Return the file of a picture's mask; None if it has none. Raises `Unknown`."""
        path = _mask(self.picture(dataset, name))
        return path if path.is_file() else None

    @at_a_time
    def replace(self, dataset: str, name: str, data: bytes) -> DatasetPicture:
        """Replace a picture, for example by a cropped one; a mask that fits no more is removed."""
        path, picture = self.picture(dataset, name), cleaned(data)
        with self._locks[dataset]:
            with Image.open(path) as before:
                same = before.size == picture.size
            write_png(picture, path, self.quota)
            if not same:
                for one in (_mask(path), _after(path)):
                    one.unlink(missing_ok=True)
        return self.entry(dataset, name)

    def remove(self, dataset: str, name: str) -> None:
        """Remove a picture with its caption, names and mask."""
        path = self.picture(dataset, name)
        with self._locks[dataset]:
            for index in (PAIRS, REPEATS):  # first: what names a picture must find it
                self._index(path.parent, index, name, None)
            for one in (path, *_captions(path), _mask(path), _after(path), path.with_suffix(BOXES)):
                one.unlink(missing_ok=True)

    def set_caption(self, dataset: str, name: str, text: str) -> DatasetPicture:
        """Set the captions of a picture, one a line; an empty text removes them."""
        path, text = self.picture(dataset, name), _caption(text)
        with self._locks[dataset]:
            self._say(path, text)
        return self.entry(dataset, name)

    def _say(self, path: Path, text: str) -> None:
        one, several = _captions(path)
        kept = several if "\n" in text else one
        if text:
            self._write(kept, text)
        for file in {one, several} - ({kept} if text else set()):
            file.unlink(missing_ok=True)

    def set_repeats(self, dataset: str, name: str, times: int) -> DatasetPicture:
        """Set how often a picture comes in an epoch."""
        path = self.picture(dataset, name)
        if not 1 <= times <= MOST:
            raise DataError(f"{name} is to be repeated {times} times.", f"Give 1 to {MOST}.")
        with self._locks[dataset]:
            self._index(path.parent, REPEATS, name, None if times == 1 else times)
        return self.entry(dataset, name)

    def set_pair(self, dataset: str, name: str, left: str, right: str) -> DatasetPicture:
        """Set the names of the two things whose relation a picture shows; two empty names remove them."""
        path = self.picture(dataset, name)
        left, right = _one_line(left, WORD), _one_line(right, WORD)
        if bool(left) != bool(right):
            raise DataError(f"{name} has a name for one thing alone.", "Name both, or none.")
        with self._locks[dataset]:
            self._index(path.parent, PAIRS, name, [left, right] if left else None)
        return self.entry(dataset, name)

    @at_a_time
    def set_mask(self, dataset: str, name: str, data: bytes) -> DatasetPicture:
        """Set the mask of a picture, white where the thing is; an empty content removes it.

        Raises:
            DataError: if it is no picture or of another size.
        """
        path = self.picture(dataset, name)
        with self._locks[dataset]:
            if not data:
                _mask(path).unlink(missing_ok=True)
                return self.entry(dataset, name)
            mask = grey(cleaned(data, "the mask"))
            with Image.open(path) as picture:
                if mask.size != picture.size:
                    given, own = (f"{one[0]} x {one[1]}" for one in (mask.size, picture.size))
                    raise DataError(f"The mask has {given} pixels, {name} {own}.", "Make it as large as the picture.")
            write_png(shown(mask, "The mask"), _mask(path), self.quota)
        return self.entry(dataset, name)

    @at_a_time
    def set_after(self, dataset: str, name: str, data: bytes) -> None:
        """Set what a change made of a picture, for methods that learn changes.

        Raises:
            DataError: if it is no picture or of another size.
        """
        path, after = self.picture(dataset, name), cleaned(data, "the picture after")
        with self._locks[dataset]:
            with Image.open(path) as picture:
                if after.size != picture.size:
                    given, own = (f"{one[0]} x {one[1]}" for one in (after.size, picture.size))
                    raise DataError(f"The picture after has {given} pixels, {name} {own}.", "Make both of one size.")
            write_png(after, _after(path), self.quota)

    def set_boxes(self, dataset: str, name: str, boxes: Sequence[Box]) -> None:
        """Set the boxes of things in a picture, for methods that learn places; none removes them."""
        path = self.picture(dataset, name)
        lines = [json.dumps({"label": one.phrase, "bbox": one.box}) for one in boxes]
        with self._locks[dataset]:
            if lines:
                self._write(path.with_suffix(BOXES), "\n".join(lines))
            else:
                path.with_suffix(BOXES).unlink(missing_ok=True)

    def _names(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.glob("*.png") if PICTURE.fullmatch(path.name))

    def _write(self, path: Path, text: str) -> None:
        with (whole_file if self.quota is None else self.quota.whole_file)(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def _said(self, folder: Path, index: str) -> dict[str, Any]:
        path = folder / index
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _index(self, folder: Path, index: str, name: str, value: Any) -> None:
        """Set the entry of a picture in an index file; None removes it."""
        before = self._said(folder, index)
        said = {key: one for key, one in before.items() if key != name} | ({} if value is None else {name: value})
        if said:
            if said != before:
                self._write(folder / index, json.dumps(said, indent=1))
        else:
            (folder / index).unlink(missing_ok=True)


class PictureUploads:
    """Pictures that requests refer to.

    Args:
        folder: folder to read.
        quota: room they share with datasets; None for no limit but the disk's.
    """

    def __init__(self, folder: Path, quota: Quota | None = None) -> None:
        self.folder, self.quota = folder, quota

    @at_a_time
    def add(self, data: bytes, name: str = "") -> str:
        """Store a picture; return its id. Raises `DataError`."""
        picture = cleaned(data, _one_line(name, 80) or "the picture")
        require_room(self.folder, 64 << 20)
        identity = secrets.token_hex(8)
        write_png(picture, self.folder / f"{identity}.png", self.quota)
        return identity

    def prune(self, needed: Callable[[str], bool], seconds: float) -> int:
        """Delete unused pictures older than so many seconds; return their number."""
        old = time.time() - seconds
        gone = [path for path in self.folder.glob("*.png") if path.stat().st_mtime < old and not needed(path.stem)]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def path(self, picture: str) -> Path:
        """Return the file of a picture; raises `Unknown`."""
        path = self.folder / f"{picture}.png"
        if not IDENTITY.fullmatch(picture) or not path.is_file():
            raise Unknown(f"There is no picture of the id {picture!r:.60}.", "Send it first.")
        return path


def newest(one: Dataset) -> tuple[float, str]:
    """Return what datasets are sorted by: the newest first."""
    return -one.created, one.id


def _mask(path: Path) -> Path:
    return path.with_name(f"{path.stem}.mask.png")


def _after(path: Path) -> Path:
    return path.with_name(f"{path.stem}.after.png")


def _captions(path: Path) -> tuple[Path, Path]:
    """Return the files of a picture's caption: of one, and of several."""
    return path.with_suffix(".txt"), path.with_suffix(SEVERAL)


def _one_line(text: str, limit: int) -> str:
    return " ".join(text.split())[:limit]


def _caption(text: str) -> str:
    text = "\n".join(filter(None, map(tidied, text.splitlines())))
    if len(text) > CAPTION:
        raise DataError(f"A caption has at most {CAPTION} letters, not {len(text)}.", "Make it shorter.")
    return text
