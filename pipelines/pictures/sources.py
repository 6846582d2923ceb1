"""Files that a picture was made from: named without the folders of a machine, and found again from that name.

A picture tells a file below the working folder from there and another by its last part, so that whoever gets the
picture learns nothing of the machine. Where the files lay is kept on the machine alone, in a list of one line for each
set of files (`STATE`), so that a picture is repeated there from any folder.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

LEARNED = Path("outputs/concepts")
"""Folder that trainings write to by default."""

MOST = 8 << 20
"""Bytes of the list from which its older half is dropped."""


def state() -> Path:
    """Return the file of the list: in `$XDG_STATE_HOME`, by default `~/.local/state`."""
    folder = os.environ.get("XDG_STATE_HOME", "")
    return Path(folder or Path.home() / ".local" / "state") / "promptstudio" / "sources.jsonl"


def shared_name(text: str) -> str:
    """Return how a picture names a file or base.

    Relative to the working folder where it lies below that, else its last part; everything that is no absolute path (a
    relative path, a hub id, "pocket") stays as it is.
    """
    path = Path(text)
    if not path.is_absolute():
        return text
    here = Path.cwd()
    return (path.relative_to(here) if path != here and path.is_relative_to(here) else Path(path.name)).as_posix()


def remember(facts: object, paths: Mapping[str, str]) -> None:
    """Keep where files lay; a home that cannot be written to keeps nothing.

    Args:
        facts: whatever the picture tells of them (names, digests, the base's fingerprint), as JSON.
        paths: name in the picture -> path.
    """
    here = {name: str(Path(path).absolute()) for name, path in paths.items() if Path(path).exists()}
    if not here or recall(facts) == here:
        return
    with contextlib.suppress(OSError):
        file = state()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if file.exists() and file.stat().st_size > MOST:
            lines = file.read_bytes().splitlines(keepends=True)
            file.write_bytes(b"".join(lines[len(lines) // 2 :]))
        line = json.dumps([_key(facts), here]) + "\n"
        where = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(where, line.encode())
        finally:
            os.close(where)


def recall(facts: object) -> dict[str, str]:
    """Return where the files that a picture tells of lay on this machine, by their names in it; empty if unknown."""
    key = _key(facts).encode()
    try:
        lines = [line for line in state().read_bytes().splitlines() if key in line]
        said = json.loads(lines[-1])[1] if lines else {}
    except (OSError, RuntimeError, ValueError, IndexError, TypeError):  # no home, or a damaged list
        return {}
    return {str(name): str(path) for name, path in said.items()} if isinstance(said, dict) else {}


def found_again(text: str, picture: Path, known: Mapping[str, str]) -> str:
    """Return the path of a file that a picture names.

    Looked for where it lay, then as it is told, then beside the picture, then in the folder of concepts beside it or
    that of trainings, then in that of the server whose job the picture is of; `text` itself if it is nowhere. The
    caller compares digests: a name alone proves nothing.
    """
    if text in known and Path(known[text]).exists():
        return known[text] if Path(known[text]) != Path(text).absolute() else text
    if Path(text).exists():
        return text
    server = picture.absolute().parents[2:3]
    folders = (picture.parent, picture.parent / "concepts", picture.parent.parent / "concepts", LEARNED, *server)
    places = [folder / part for folder in folders for part in dict.fromkeys((text, Path(text).name))]
    return str(next((place for place in places if place.is_file()), text))


def _key(facts: object) -> str:
    return sha256(json.dumps(facts, ensure_ascii=True).encode()).hexdigest()
