"""A folder of concepts: its files, their integrity, and the bases they fit. Needs no torch."""

from __future__ import annotations

import difflib
import json
import logging
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipelines.concepts.card import HASH_KEY, ConceptCard, read_card, read_header, sum_of_numbers
from pipelines.concepts.headers import FAMILY_NAMES, words
from pipelines.concepts.lora_keys import parsed
from pipelines.concepts.registry import by_prefix, kinds_of, vectors_of
from pipelines.errors import ConceptError
from pipelines.files import whole_file
from pipelines.models.families.known import KNOWN as FAMILIES
from pipelines.request.texts import encodable, readable
from pipelines.words import ANGLED, composed, near_miss
from studio.library.index import IndexEntry as Entry
from studio.library.index import looked_at

FOLDER = Path("outputs/concepts")
EXAMPLE = Path(__file__).parents[1] / "examples" / "concepts" / "wolf.safetensors"
"""A concept to try at once, learned on `pocket`."""

_log = logging.getLogger(__name__)
NOTE_LIMIT = 1 << 20  # bytes


def scan(folder: Path) -> list[Entry]:
    """Return the concepts of a folder by name, damaged ones with their error; only headers of new files are read.

    Raises:
        ConceptError: if there is no such folder.
    """
    if not folder.is_dir():
        raise ConceptError(f"There is no folder {folder}.", "Train a concept first, or give another --library.")
    return looked_at(folder, _read)


def search(folder: Path, words: str) -> list[Entry]:
    """Return the concepts of a library that hold all words: in name, word, kind, method, base or figures.

    Raises:
        ConceptError: if there is no such folder.
    """
    asked = words.lower().split()
    return [entry for entry in scan(folder) if entry.holds(asked)]


def _read(path: Path) -> tuple[ConceptCard | None, str]:
    if not encodable(path.name):
        return None, f"{readable(path.name)} has a name that is no valid Unicode. Rename the file."
    try:
        return read_card(path), ""
    except ConceptError as error:
        return None, readable(str(error))
    except Exception as error:  # whatever one file does, the others are listed
        _log.warning("%s", path.name, exc_info=error)
        return None, f"{path.name} cannot be read ({type(error).__name__}). Get it again, or remove it."


def found(name: str, folder: Path) -> Path:
    """Return the file of a concept, by its path, the file's name or the word.

    Raises:
        ConceptError: if there is none; with the nearest names.
    """
    for path in (Path(name), folder / f"{name}.safetensors"):
        if path.suffix == ".safetensors" and path.is_file():
            return path
    entries = scan(folder)
    for entry in entries:
        if entry.card is not None and entry.card.token == name:
            return entry.path
    names = [entry.name for entry in entries]
    names += [entry.card.token for entry in entries if entry.card is not None]
    near = difflib.get_close_matches(name, names, 3)
    known = ", ".join(entry.name for entry in entries[:5]) or "none"
    hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {known}."
    raise ConceptError(f"There is no concept {name!r:.80} in {folder}.", hint)


def meant(texts: Sequence[str], used: Sequence[str], folder: Path) -> str:
    """Return which concepts of a library may be meant by `<words>` that no concept of a request has; empty if none.

    Args:
        texts: prompts and phrases.
        used: paths or names of the concepts that are used.
        folder: the library.
    """
    if not folder.is_dir():
        return ""
    there = {entry.card.token: entry.name for entry in scan(folder) if entry.card is not None}
    own = [token for token, name in there.items() if name in {Path(one).stem for one in used}]
    said: list[str] = []
    for word in dict.fromkeys(ANGLED.findall(composed("\n".join(texts)))):
        if word in own:
            continue
        near = word if word in there else near_miss(" ".join(there), word)
        if near in there and near not in own:
            said.append(
                f"{word}: " + (f"the library has it as {there[near]}." if near == word else f"{near} is meant?")
            )
    return " ".join(said)


def listed(folder: Path) -> Iterator[str]:
    """Return a line for each concept."""
    for entry in scan(folder):
        if entry.card is None:
            yield f"{entry.name:24}  damaged: {entry.problem}"
        else:
            card = entry.card
            made = FAMILY_NAMES.get(card.family, "an unknown base")
            yield f"{entry.name:24}  {card.token:20}  {card.kind:8}  {card.method:18}  for {made}"


def shown(path: Path) -> Iterator[str]:
    """Return the card of a concept, a line for each field that has a value."""
    for name, value in read_card(path).model_dump().items():
        if value not in ("", {}):
            yield f"{name:16}  {value}"
    yield f"{'elsewhere':16}  {elsewhere(path)}"


def verify(path: Path) -> str:
    """Compare a concept's tensors with the checksum in its header; return a line with the result.

    Raises:
        ConceptError: if they differ, or the header is damaged.
    """
    read_card(path)
    stored = read_header(path).get("__metadata__", {}).get(HASH_KEY, "")
    if not stored:
        return f"{path}: whole; it has no sum to compare with"
    if stored != f"0x{sum_of_numbers(path)}":
        raise ConceptError(f"{path} has changed since it was written.", "Get or train it again.")
    return f"{path}: whole"


BESIDE = (".losses.jsonl", ".preview.png", ".json", ".steps")
"""Endings of what belongs to a concept X.safetensors: its log, its picture, what other programs show of it, and the
folder of its candidates."""


def beside(path: Path, new: Path) -> list[tuple[Path, Path]]:
    """Return the files that belong to a concept, each with its name if the concept were `new`."""
    pairs = [(path.with_name(path.stem + end), new.with_name(new.stem + end)) for end in BESIDE]
    return [(there, place) for there, place in pairs if there.exists()]


def copy_picture(path: Path, new: Path) -> None:
    """Give `new` the preview picture of a concept, if there is one and `new` has none."""
    for there, place in beside(path, new):
        if there.name.endswith(".preview.png") and not place.exists():
            with whole_file(place) as picture:
                shutil.copyfile(there, picture)


DIALECTS = ("a1111", "comfyui", "diffusers", "peft")
"""Layouts of other programs."""


def dialects(path: Path) -> tuple[str, ...]:
    """Return those of `DIALECTS` a concept can be written in without its base.

    Raises:
        ConceptError: if its header cannot be read.
    """
    roles = _roles(path)
    if _stays(path):
        return ()
    # For a UNet, ComfyUI's own layout is that of a1111.
    listed = DIALECTS if _of_transformer(read_header(path)) else tuple(one for one in DIALECTS if one != "comfyui")
    if roles & {"difference", "dora"}:
        return listed[:-2]
    if "magnitude" in roles:
        return listed[-2:]
    return listed if roles else listed[:-1]


def _of_transformer(names: Iterable[str]) -> bool:
    """Return whether a file holds changes of a transformer."""
    return any(key.layer.startswith("transformer.") for key in map(parsed, names) if key is not None)


def _roles(path: Path) -> set[str]:
    """Return the roles of the tensors of changed weights in a file."""
    return {key.role for key in map(parsed, read_header(path)) if key is not None}


def changes_weights(path: Path) -> bool:
    """Return whether a file holds changed weights, beside a word or alone.

    Raises:
        ConceptError: if its header cannot be read.
    """
    return bool(_roles(path))


def width(path: Path) -> int | None:
    """Return the size of the vectors of a concept's word, for the first text encoder; None if it has no word.

    Raises:
        ConceptError: if its header cannot be read.
    """
    header = read_header(path)
    held = [name for names in by_prefix(header).values() for name in names]
    found = words([name for name in header if name != "__metadata__" and name not in held and parsed(name) is None])
    rows = [*found.names, *(sorted(held) if vectors_of({name: header[name]["shape"] for name in held}) else [])]
    return header[rows[0]]["shape"][-1] if rows else None


def elsewhere(path: Path) -> str:
    """Return which other programs read a file as it is, and what to do for the others.

    Raises:
        ConceptError: if its header cannot be read.
    """
    roles = _roles(path)
    header = read_header(path)
    if further := kinds_of(header):
        return f"none: other programs have no layout for its {further}"
    names = [name for name in header if parsed(name) is not None]
    if stays := _stays(path):
        return f"none: {stays}"
    if _of_transformer(names):
        return "diffusers and ComfyUI read the weights as they are; for kohya's scripts and others export it for a1111"
    if not roles:
        return "diffusers, AUTOMATIC1111 and ComfyUI read the file as it is; for InvokeAI export it for a1111"
    if not any(name.startswith("lora_") for name in names):
        return "diffusers reads the weights as they are; for ComfyUI, AUTOMATIC1111 and InvokeAI export it for a1111"
    if roles & {"difference", "dora"}:
        return "ComfyUI, AUTOMATIC1111 and Forge read the file as it is; for diffusers write a model with studio export"
    return "ComfyUI, AUTOMATIC1111, InvokeAI and diffusers read the file as it is"


def _stays(path: Path) -> str:
    """Return why a concept's word cannot be used in other programs; empty if it can, or if it has none."""
    card = read_card(path)
    family = FAMILIES.get(card.family)
    if not card.vectors or family is None or family.travels:
        return ""
    return f"no other program gives the text encoder of {family.title} new words; teach a LoRA with a plain trigger"


def add_copy(source: Path, folder: Path) -> Path:
    """Put a copy of a concept, with the files beside it, into a library; return its file.

    Raises:
        ConceptError: if one of its name is there.
    """
    new = folder / source.name
    if new.exists():
        raise ConceptError(f"There is a concept {source.stem} already.", "Rename or delete it first.")
    folder.mkdir(parents=True, exist_ok=True)
    for there, place in [*beside(source, new), (source, new)]:
        with whole_file(place) as temporary:
            shutil.copyfile(there, temporary)
    return new


def activation(path: Path) -> str:
    """Return the word by which other programs call a file, from the `X.json` beside it; empty without one."""
    note = path.with_suffix(".json")
    try:
        if not note.is_file() or note.stat().st_size > NOTE_LIMIT:
            return ""
        told = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""  # trainers put other things under that name
    text = told.get("activation text") if isinstance(told, dict) else None
    return text.split(",")[0].strip()[:100] if isinstance(text, str) else ""


def delete(path: Path) -> list[Path]:
    """Delete a concept and the files beside it; return the files."""
    read_card(path)  # nothing else than a concept is deleted
    gone = [path, *(there for there, _ in beside(path, path))]
    for place in gone:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    return gone


TRASH = ".trash"
"""Folder in the library that keeps what was thrown away."""


def discard(path: Path) -> str:
    """Move a concept and the files beside it into the trash; return the name it has there.

    Raises:
        ConceptError: if it is not there.
    """
    if not path.is_file():
        raise ConceptError(f"There is no concept file {path.name}.", "It may have been deleted already.")
    name = secrets.token_hex(8)
    place = path.parent / TRASH / name
    place.mkdir(parents=True)
    for there in [*(there for there, _ in beside(path, path)), path]:
        there.replace(place / there.name)
    return name


def thrown(name: str, folder: Path) -> Path:
    """Return the file of a concept in the trash of a library.

    Raises:
        ConceptError: if it is not in the trash.
    """
    place = next((one for one in (folder / TRASH).glob("*") if one.name == name), None)
    concept = next(place.glob("*.safetensors"), None) if place else None
    if concept is None:
        raise ConceptError("That concept is no longer in the trash.", "Train or import it again.")
    return concept


def restore(name: str, folder: Path) -> Path:
    """Bring a concept back from the trash of a library, with the files beside it; return its file.

    Raises:
        ConceptError: if it is not in the trash, or something of its names is there now; all is as before then.
    """
    concept = thrown(name, folder)
    place, new = concept.parent, folder / concept.name
    kept = [*(one for one in sorted(place.iterdir()) if one != concept), concept]
    for there in reversed(kept):
        if (folder / there.name).exists():
            raise ConceptError(f"There is another {there.name} now.", "Rename or move that one first.")
    for there in kept:
        there.replace(folder / there.name)
    place.rmdir()
    return new
