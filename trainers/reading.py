"""Training pictures on disk: the folder conventions people have, read into examples.

Read are a plain folder, captions beside pictures (`fox.txt` or `fox.caption` for `fox.png`), `metadata.jsonl` as in
Hugging Face's image folders, folders named `10_cat` as for the kohya scripts, ReVersion's `text.json`, and for
relations `pairs.json`, which names the two things of each picture; with any of them
masks, as `fox.mask.png`, `fox-masklabel.png` or `masks/fox.png`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from pipelines.errors import DataError
from pipelines.picture_files import PICTURE_SUFFIXES, open_mask, open_picture
from trainers.pairs import Pair, pair_captions

METADATA, TEXT, PAIRS, MASKS, PLAIN = "metadata.jsonl", "text.json", "pairs.json", "masks", "plain folder"
MASK_ENDINGS = (".mask.png", "-masklabel.png")
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_KEYS = ("text", "caption", "prompt")
REPEATED = re.compile(r"([0-9]{1,5})_(.+)")
WHITE = 128
"""A mask that is nowhere as bright as this is taken for a mistake."""


@dataclass(frozen=True)
class Example:
    """One training picture.

    Attributes:
        name: path inside the folder it came from.
        picture: upright RGB.
        captions: its own captions, one of which is drawn each time; none for templates.
        mask: grey, of the picture's size, white where the thing is; None for everywhere.
        repeats: how often it comes in an epoch.
        word: what its captions and templates call what it shows; None for what the run calls it.

    Raises:
        DataError: if the mask is of another size, or it is to come less than once.
    """

    name: str
    picture: Image.Image
    captions: tuple[str, ...] = ()
    mask: Image.Image | None = None
    repeats: int = 1
    word: str | None = None

    def __post_init__(self) -> None:
        if self.repeats < 1:
            raise DataError(f"{self.name} is to be repeated {self.repeats} times.", "Give 1 or more.")
        if self.mask is not None and self.mask.size != self.picture.size:
            mask, own = (f"{size[0]} x {size[1]}" for size in (self.mask.size, self.picture.size))
            raise DataError(
                f"The mask of {self.name} has {mask} pixels, the picture {own}.",
                "Save the mask in the size of its picture.",
            )


@dataclass(frozen=True)
class Reading:
    """What was found in a folder.

    Attributes:
        examples: the pictures, in the order of their names.
        ignored: path inside the folder -> why it was left out; hidden files are not mentioned.
        convention: how the folder was understood, in words.
    """

    examples: tuple[Example, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    convention: str = PLAIN


def read_examples(folder: Path) -> list[Example]:
    """The examples of `read_folder`.

    Raises:
        DataError: as `read_folder`.
    """
    return list(read_folder(folder).examples)


def read_folder(folder: Path) -> Reading:
    """Read the pictures of a folder with their captions, masks and repeats, whichever convention it follows.

    Raises:
        DataError: if there is no such folder or no picture in it; if a picture, mask or caption cannot be read, or a
            mask is of another size than its picture; if `metadata.jsonl` or `text.json` is malformed or names what is
            not there.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}.", "Give the folder that holds your pictures.")
    convention, found = _found(folder)
    if not found:
        raise _nothing(folder)
    examples: list[Example] = []
    used = {folder / convention}  # where it is a file's name
    for path, (captions, repeats, fallback) in found.items():
        beside, mask = _beside(path), _mask_of(path)
        captions = captions or (_caption(beside) if beside else ()) or fallback
        name = path.relative_to(folder).as_posix()
        examples.append(Example(name, open_picture(path), captions, _mask(mask) if mask else None, repeats))
        used |= {one for one in (path, beside, mask) if one}
    if convention == PLAIN and any(example.captions for example in examples):
        convention = "captions beside pictures"
    places = dict.fromkeys((folder, *(path.parent for path in found)))
    return Reading(tuple(examples), dict(_ignored(folder, list(places), used)), convention)


def joined(readings: Sequence[tuple[Reading, str]]) -> Reading:
    """Several folders as one, each example with the word of its folder.

    Args:
        readings: what was found in each folder, and what its captions call what it shows.
    """
    examples = tuple(
        replace(one, name=f"{word} {one.name}", word=word) for reading, word in readings for one in reading.examples
    )
    ignored = {f"{word} {path}": why for reading, word in readings for path, why in reading.ignored.items()}
    conventions = dict.fromkeys(reading.convention for reading, _ in readings)
    return Reading(examples, ignored, f"{len(readings)} folders: {', '.join(conventions)}")


_Found = dict[Path, tuple[tuple[str, ...], int, tuple[str, ...]]]
"""Picture -> captions from an index file, repeats, captions where there is no other."""


def _found(folder: Path) -> tuple[str, _Found]:
    """The convention that a folder follows, and its pictures."""
    if (folder / METADATA).is_file():
        listed = _metadata(folder)
        return METADATA, {path: (listed[path], 1, ()) for path in sorted(listed)}
    places: dict[Path, tuple[int, tuple[str, ...]]] = {folder: (1, ())}
    for path in _entries(folder):
        numbered = REPEATED.fullmatch(path.name)
        if numbered and int(numbered[1]) > 0 and path.is_dir():
            places[path] = (int(numbered[1]), (numbered[2],))
    pictures = {path: place for place in places for path in _entries(place) if _is_picture(path)}
    convention = PLAIN if len(places) == 1 else "folders with repeats"
    listed: dict[Path, tuple[str, ...]] = {}
    if (folder / TEXT).is_file():
        convention, listed = TEXT, _text(folder, list(pictures))
    elif (folder / PAIRS).is_file():
        convention, listed = PAIRS, _pairs(folder, list(pictures))
    return convention, {path: (listed.get(path, ()), *places[place]) for path, place in pictures.items()}


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names, without hidden files."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.", "Allow reading it.") from None


def _is_mask(path: Path) -> bool:
    return path.name.lower().endswith(MASK_ENDINGS)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURE_SUFFIXES and not _is_mask(path) and path.is_file()


def _nothing(folder: Path) -> DataError:
    """What to say of a folder without pictures: subfolders that hold some are named."""
    hint = f"Put in some of these kinds: {', '.join(PICTURE_SUFFIXES)}."
    for path in _entries(folder):
        if path.is_dir() and path.name != MASKS and any(map(_is_picture, _entries(path))):
            hint = f"There are some in {path}: give that folder, or name it 1_{path.name} to read it from here."
            break
    return DataError(f"There is no picture in {folder}.", hint)


def _ignored(folder: Path, places: list[Path], used: set[Path]) -> Iterator[tuple[str, str]]:
    """What was left out, and why."""
    for place in places:
        inside = [*_entries(place), *(_entries(place / MASKS) if (place / MASKS).is_dir() else ())]
        for path in inside:
            if path not in (*used, *places, place / MASKS):
                yield path.relative_to(folder).as_posix(), _why(path, folder)


def _why(path: Path, folder: Path) -> str:
    if path.is_dir():
        return "a folder; only those named like 10_cat are read" if path.parent == folder else "a folder in a folder"
    if _is_mask(path) or path.parent.name == MASKS:
        return "a mask, but no picture goes with it or another mask of it is used"
    if _is_picture(path):
        return f"not named in {METADATA}"
    if path.suffix.lower() in CAPTION_SUFFIXES:
        return "a caption, but no picture goes with it or another caption of it is used"
    if path.name in (METADATA, TEXT, PAIRS):
        read = next((index for index in (METADATA, TEXT) if (folder / index).is_file()), path.name)
        return f"{read} is read instead" if path.parent == folder else "only read in the folder that was given"
    return "not a kind of picture that is read"


# -- captions ---------------------------------------------------------------------------------------------------


def _beside(picture: Path) -> Path | None:
    """The caption file of a picture."""
    return next((p for p in map(picture.with_suffix, CAPTION_SUFFIXES) if p.is_file()), None)


def _caption(path: Path) -> tuple[str, ...]:
    text = " ".join(_contents(path, f"The caption {path.name}").split())
    return (text,) if text else ()


def _contents(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{what} is not UTF-8 text.", "Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}.", "Allow reading it.") from None


def _parsed(text: str, where: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f": {error.msg.lower()} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{where} is not JSON{why}.", "Put it right or remove it.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}, not an object.", "Write {...} there.")
    return value


def _captions(value: object, where: str) -> tuple[str, ...]:
    """One caption or a list of them, white space tidied and empty ones left out."""
    tidied: list[str] = []
    for caption in value if isinstance(value, list) else [value]:
        if not isinstance(caption, str) or any("\ud800" <= letter <= "\udfff" for letter in caption):
            raise DataError(f"{where} has a caption that is no text: {caption!r:.40}.", "Write it as a string.")
        tidied.append(" ".join(caption.split()))
    return tuple(caption for caption in tidied if caption)


def _metadata(folder: Path) -> dict[Path, tuple[str, ...]]:
    """Captions of `metadata.jsonl`, by picture; several lines about one picture are several captions of it."""
    listed: dict[Path, tuple[str, ...]] = {}
    for number, line in enumerate(_contents(folder / METADATA, METADATA).split("\n"), 1):
        if not line.strip():
            continue
        where = f"Line {number} of {METADATA}"
        row = _parsed(line, where)
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} has no file_name.", 'Write {"file_name": "fox.png", "text": "a {}"}.')
        path = _inside(folder, name, where)
        said = next((row[key] for key in CAPTION_KEYS if row.get(key) is not None), [])
        listed[path] = listed.get(path, ()) + _captions(said, where)
    return listed


def _inside(folder: Path, name: str, where: str) -> Path:
    """The picture that a name means; it must be there, and inside the folder."""
    # Windows' rules take both kinds of slash and drive letters for what they are, on every system.
    parts = PureWindowsPath(name)
    if parts.anchor or ".." in parts.parts:
        raise DataError(f"{where} names {name}, which is outside the folder.", "Name files inside it only.")
    path = folder / name
    try:
        there = path.is_file()
    except OSError:  # a name that no file can have
        there = False
    if not there:
        raise DataError(f"{where} names {name:.200}, which is not there.", "Add the file, or remove what names it.")
    if not _is_picture(path):
        kinds = ", ".join(PICTURE_SUFFIXES)
        raise DataError(f"{where} names {name}, which is no picture.", f"Name one of these kinds: {kinds}.")
    return path


def _text(folder: Path, pictures: list[Path]) -> dict[Path, tuple[str, ...]]:
    """Captions of ReVersion's `text.json`: file name, or file name without its ending -> captions with a `{}`."""
    listed: dict[Path, tuple[str, ...]] = {}
    for path, said, where in _entries_of(folder, TEXT, pictures):
        captions = _captions(said, where)
        if captions and not any("{}" in caption for caption in captions):
            raise DataError(
                f"{where} has no {{}} in any of its captions.", "Write {} where the relation goes: a cat {} a box."
            )
        listed[path] = listed.get(path, ()) + captions
    return listed


def _pairs(folder: Path, pictures: list[Path]) -> dict[Path, tuple[str, ...]]:
    """Captions from the two things that `pairs.json` names for each picture."""
    listed: dict[Path, tuple[str, ...]] = {}
    for path, said, where in _entries_of(folder, PAIRS, pictures):
        names = _captions(said, where)
        if not isinstance(said, list) or len(said) != 2 or len(names) != 2:
            raise DataError(f"{where} names {len(names)} things.", 'Name two, the first one first: ["cat", "box"].')
        listed[path] = pair_captions(Pair(*names))
    return listed


def _entries_of(folder: Path, index: str, pictures: list[Path]) -> Iterator[tuple[Path, object, str]]:
    """Picture, what an index file says of it, and where; pictures may be named without their ending."""
    for name, said in _parsed(_contents(folder / index, index), index).items():
        where = f"The entry {name!r:.100} of {index}"
        named = [path for path in pictures if path.relative_to(folder).as_posix() == name]
        named = named or [path for path in pictures if path.relative_to(folder).with_suffix("").as_posix() == name]
        if len(named) > 1:
            both = " and ".join(path.name for path in named[:2])
            raise DataError(f"{where} may mean {both}.", "Write the whole file name.")
        yield named[0] if named else _inside(folder, name, where), said, where


# -- masks ------------------------------------------------------------------------------------------------------


def _mask_of(picture: Path) -> Path | None:
    """The mask file of a picture."""
    beside = [picture.with_name(picture.stem + ending) for ending in MASK_ENDINGS]
    return next((p for p in (*beside, picture.parent / MASKS / f"{picture.stem}.png") if p.is_file()), None)


def _mask(path: Path) -> Image.Image:
    mask = open_mask(path)
    brightest = int(mask.getextrema()[1])  # pyright: ignore[reportArgumentType]
    if brightest < WHITE:
        raise DataError(
            f"The mask {path.name} is dark everywhere: {brightest} of 255 at its brightest.",
            "Paint what is to be learned white, or remove the mask.",
        )
    return mask
