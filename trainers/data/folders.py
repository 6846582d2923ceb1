"""Training pictures on disk: common folder conventions, read into examples. Needs no torch.

Read are plain folders, captions beside pictures (`caption_files`), `metadata.jsonl` and `.csv` of Hugging Face's image
folders, folders named `10_cat` as for the kohya scripts, ReVersion's `text.json`, and for relations
`pairs.json`, the two things of each picture; with any of them masks (`mask_files`) and `repeats.json`, how often a
picture comes. Archives are read by the same rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.files import PICTURE_SUFFIXES, decoded, laid_on, open_picture
from pipelines.request.yolo import CLASSES
from pipelines.words import composed
from trainers.data.caption_files import CAPTION_SUFFIXES, caption_file, captions_in, holds_boxes, key, tidied
from trainers.data.index_files import (
    INDICES,
    METADATA,
    PAIRS,
    REPEATS,
    TABLE,
    TEXT,
    entries,
    listed_in,
    pairs_in,
    repeats_in,
    texts_in,
)
from trainers.data.mask_files import (
    FOLDERS,
    has_picture_suffix,
    kin,
    looks_like_mask,
    masks_among,
    masks_within,
    read_mask,
)
from trainers.data.named_pairs import NamedPair, pair_captions
from trainers.data.stored import Example as Example
from trainers.data.stored import Stored

PLAIN = "plain folder"
REPEATED = re.compile(r"([0-9]{1,5})_(.+)")
OTHERS = (".heic", ".heif", ".jxl", ".jp2", ".psd", ".svg", ".tga", ".ico", ".dng", ".cr2", ".nef", ".arw")


@dataclass(frozen=True)
class Reading:
    """The pictures found in a folder.

    Attributes:
        examples: the pictures, in the order of their names.
        ignored: path inside the folder -> why it was left out; hidden files are not mentioned.
        convention: name of the folder convention that was recognised.
        doubtful: path of a picture -> why it cannot be learned from as it is; none of `examples`.
        transparent: names of examples that are transparent in places, and are laid on white.
        notes: sentences on what was changed while reading.
    """

    examples: tuple[Example, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    convention: str = PLAIN
    doubtful: Mapping[str, str] = field(default_factory=dict)
    transparent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def sound(self, skip: bool | None = None) -> Reading:
        """Return this reading if it has no doubtful files or they may be skipped; None where nobody can decide.

        Raises:
            DataError: else, naming all of it; or if nothing is left.
        """
        if self.doubtful and not (skip and self.examples):
            said = " ".join(f"{name}: {why}" for name, why in self.doubtful.items())
            count = len(self.doubtful)
            what = "1 picture" if count == 1 else f"{count} pictures"
            way = "" if skip is None else ", or learn without: --skip-doubtful"
            raise DataError(f"{what} cannot be learned from. {said}", f"Put that right{way}.")
        return self


@dataclass(frozen=True)
class FolderPicture:
    """A picture of a folder, not read yet.

    Attributes:
        path: its file.
        name: path inside the folder that was given.
        captions: its own captions.
        mask: file of its mask.
        repeats: times per epoch.
        pair: the two things it relates, if `pairs.json` names them.
    """

    path: Path
    name: str
    captions: tuple[str, ...] = ()
    mask: Path | None = None
    repeats: int = 1
    pair: tuple[str, str] | None = None


@dataclass(frozen=True)
class Listing:
    """The files of a folder by their kind.

    Attributes:
        found: the pictures, in the order of their names.
        ignored: path inside the folder -> why it was left out.
        convention: name of the folder convention that was recognised.
    """

    found: tuple[FolderPicture, ...]
    ignored: Mapping[str, str]
    convention: str

    def doubt(self, one: FolderPicture, picture: Image.Image, read: Callable[[Path], Image.Image]) -> str:
        """Return why a picture is probably the mask of another; empty if it is not.

        Args:
            one: the picture.
            picture: its pixels.
            read: reads others, if that is needed to tell.
        """
        if self.convention in (METADATA, TABLE) or not looks_like_mask(picture):
            return ""  # what a list names is meant
        for other in kin(one.path, [each.path for each in self.found]):
            try:
                if looks_like_mask(read(other)):
                    continue  # drawings in ink
            except DataError:
                continue
            mask = f"{other.stem}.mask{one.path.suffix}"
            return f"it is black and white, as a mask of {other.name}; call it {mask}, or by a name of its own."
        return ""


def read_examples(folder: Path, skip: bool | None = None) -> list[Example]:
    """Return the examples of `read_folder` if all pictures are usable, or unusable ones may be skipped.

    Raises:
        DataError: as `read_folder` and `Reading.sound`.
    """
    return list(read_folder(folder).sound(skip).examples)


def read_folder(folder: Path, deep: bool = False) -> Reading:
    """Read the pictures of a folder with their captions, masks and repeats, whichever convention it follows.

    A picture that cannot be read, has a mask that cannot be used, or is rather that of another, is among the doubtful.

    Args:
        folder: folder to read.
        deep: also those of plain folders within.

    Raises:
        DataError: if there is no such folder or no picture in it; if a caption cannot be read; if an index file is
            malformed or names what is not there.
    """
    listed = listing(folder, deep)
    examples: list[Example] = []
    doubtful: dict[str, str] = {}
    transparent: list[str] = []
    for one in listed.found:
        try:
            stored = decoded(one.path, one.path.name)
            picture = laid_on(stored, "white")
            mask = Stored.of(one.mask, read_mask(one.mask), read_mask) if one.mask else None
            example = Example(one.name, Stored.of(one.path, picture, open_picture), one.captions, mask, one.repeats)
            if doubt := listed.doubt(one, picture, open_picture):
                raise DataError(doubt)
        except DataError as error:
            doubtful[one.name] = str(error)
            continue
        transparent += [one.name] if stored.mode == "RGBA" else []
        examples.append(example)
    return Reading(tuple(examples), listed.ignored, listed.convention, doubtful, tuple(transparent))


# -- folders ----------------------------------------------------------------------------------------------------


def listing(folder: Path, deep: bool = False) -> Listing:
    """Return the pictures of a folder with their captions and masks, none of them read yet.

    Args:
        folder: folder to read.
        deep: also those of plain folders within, each by its own convention, as in archives.

    Raises:
        DataError: as `read_folder`, but for pictures and masks.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder that holds your pictures.")
    listed = _listed(folder, folder, deep)
    if not listed.found:
        raise _nothing(folder)
    return listed


class _Place:
    """A folder whose files go with each other.

    Attributes:
        path: the folder.
        entries: its files, sorted by name, without hidden ones.
        pictures: the pictures in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = entries(path)
        files = [one for one in self.entries if one.is_file()]
        self._files = {key(one): one for one in reversed(files)}
        self._masks = masks_among(files)
        named = {mask for _, mask in self._masks}
        self.pictures = [one for one in files if has_picture_suffix(one) and one not in named]
        self.mask_folders = [one for one in self.entries if one.name.lower() in FOLDERS and one.is_dir()]
        for one in self.mask_folders:
            self._masks += masks_within(one, [each for each in entries(one) if each.is_file()])

    def mask(self, picture: Path) -> Path | None:
        """Return the mask file of a picture."""
        names = (composed(picture.stem), composed(picture.name))
        return next((mask for owner, mask in self._masks if owner in names), None)

    def caption(self, picture: Path) -> Path | None:
        """Return the caption file of a picture; YOLO's boxes are none."""
        found = caption_file(picture, self._files)
        return None if found and holds_boxes(found) else found

    def is_mask(self, path: Path) -> bool:
        """Return whether a file is a mask."""
        return any(path == mask for _, mask in self._masks)


def _listed(folder: Path, root: Path, deep: bool) -> Listing:
    """Return the `listing` of a folder, named as seen from `root`."""
    places = {folder: (_Place(folder), 1, "")}
    for path in places[folder][0].entries:
        numbered = REPEATED.fullmatch(path.name)
        if numbered and int(numbered[1]) > 0 and path.is_dir():
            places[path] = (_Place(path), int(numbered[1]), tidied(numbered[2]))
    pictures = {picture: place for place, (held, _, _) in places.items() for picture in held.pictures}
    index = next((name for name in INDICES if (folder / name).is_file()), "")
    captions, pairs = _said(folder, index, list(pictures))
    counts = repeats_in(folder, list(pictures))
    found: list[FolderPicture] = []
    used = {folder / index, folder / REPEATS}
    for path in sorted(captions) if index in (METADATA, TABLE) else pictures:
        held, repeats, fallback = places.get(path.parent) or (_Place(path.parent), 1, "")
        beside, mask = held.caption(path), held.mask(path)
        own = captions.get(path) or (captions_in(beside) if beside else ()) or ((fallback,) if fallback else ())
        name = path.relative_to(root).as_posix()
        found.append(FolderPicture(path, name, own, mask, counts.get(path, repeats), pairs.get(path)))
        used |= {one for one in (path, beside, mask) if one}
    within = _within(places[folder][0], root, [*places], deep and index not in (METADATA, TABLE))
    seen = dict.fromkeys((folder, *(one.path.parent for one in found)))
    ignored = dict(_ignored(folder, root, [*seen], used | {*within}))
    if deep:  # every folder was looked into
        ignored |= {path: "a folder without pictures" for path in ignored if (root / path).is_dir()}
    convention = index or (PLAIN if len(places) == 1 else "folders with repeats")
    if convention == PLAIN and any(one.captions for one in found):
        convention = "captions beside pictures"
    conventions = [convention] if found else []
    conventions += [one.convention for one in within.values() if one.convention not in conventions]
    for one in within.values():
        found += one.found
        ignored |= one.ignored
    return Listing(tuple(found), ignored, ", ".join(dict.fromkeys(conventions)))


def _said(
    folder: Path, index: str, pictures: list[Path]
) -> tuple[dict[Path, tuple[str, ...]], dict[Path, tuple[str, str]]]:
    """Return captions and pairs of the index file of a folder."""
    if index in (METADATA, TABLE):
        return listed_in(folder, index, pictures), {}
    if index == TEXT:
        return texts_in(folder, pictures), {}
    pairs = pairs_in(folder, pictures) if index == PAIRS else {}
    return {path: pair_captions(NamedPair(*pair)) for path, pair in pairs.items()}, pairs


def _within(place: _Place, root: Path, known: list[Path], deep: bool) -> dict[Path, Listing]:
    """Return the plain folders in a folder that hold pictures."""
    plain = [path for path in place.entries if path.is_dir() and path not in (*known, *place.mask_folders)]
    listed = {path: _listed(path, root, True) for path in plain} if deep else {}
    return {path: one for path, one in listed.items() if one.found}


# -- what is left out -------------------------------------------------------------------------------------------


def _nothing(folder: Path) -> DataError:
    """Return the error for a folder without pictures; it names folders within that hold some."""
    hint = f"Put in some of these kinds: {', '.join(PICTURE_SUFFIXES)}."
    if index := next((name for name in (METADATA, TABLE) if (folder / name).is_file()), ""):
        return DataError(f"{folder / index} names no picture.", "Add lines with file_name, or remove it.")
    for path in entries(folder):
        if not path.is_dir() or path.name.lower() in FOLDERS:
            continue
        inner = [one for one in entries(path) if one.is_dir() and REPEATED.fullmatch(one.name)]
        if _Place(path).pictures:
            hint = f"There are some in {path}: give that folder, or name it 1_{path.name} to read it from here."
            break
        if any(_Place(one).pictures for one in inner):
            hint = f"There are some in {inner[0]}: give {path}."
            break
    return DataError(f"There is no picture in {folder}.", hint)


def _ignored(folder: Path, root: Path, places: list[Path], used: set[Path]) -> Iterator[tuple[str, str]]:
    """Return what was left out of a folder and of the places read in it, and why."""
    for path in places:
        place = _Place(path)
        inside = [*place.entries, *(one for masks in place.mask_folders for one in entries(masks))]
        for one in inside:
            if one not in (*used, *places, *place.mask_folders):
                yield one.relative_to(root).as_posix(), _why(one, place, folder)


def _why(path: Path, place: _Place, folder: Path) -> str:
    if path.is_symlink() and not path.exists():
        return "a link that leads nowhere"
    if path.is_dir():
        return "a folder; only those named like 10_cat are read" if path.parent == folder else "a folder in a folder"
    if place.is_mask(path):
        return "a mask, but no picture goes with it or another mask of it is used"
    if has_picture_suffix(path):
        return f"not named in {METADATA if (folder / METADATA).is_file() else TABLE}"
    if path.suffix.lower() in CAPTION_SUFFIXES and (path.name.lower() == CLASSES or holds_boxes(path)):
        return "boxes of YOLO, which only the training of gated layers reads"
    if path.suffix.lower() in CAPTION_SUFFIXES:
        return "a caption, but no picture goes with it or another caption of it is used"
    if path.name in (*INDICES, REPEATS):
        read = next((index for index in INDICES if (folder / index).is_file()), path.name)
        return f"{read} is read instead" if path.parent == folder else "only read in the folder that was given"
    if path.name in ("captions.json", "meta_cap.json", "meta_lat.json"):
        return f"captions in a form that is not read; write them as {METADATA}, or beside the pictures"
    convert = "; save it as PNG or JPEG" if path.suffix.lower() in OTHERS else ""
    return f"not a kind of picture that is read{convert}"
