"""The base models of a server: those it was started with, and what lies in its folders of models. Needs no torch.

Clients name a base by its name alone, which is looked up among what is there; no name becomes a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipelines.request.texts import encodable
from studio.library.model_cards import BaseCard, base_card

FOLDER = Path("outputs/models")
"""Folder in which base models are looked for by default."""


@dataclass(frozen=True)
class FoundBase:
    """A base that was found.

    Attributes:
        name: its name, which is its id.
        base: "pocket", path or hub id.
        card: what it says of itself; with the reason if it cannot be used.
    """

    name: str
    base: str
    card: BaseCard


class Bases(Mapping[str, str]):
    """Name -> base of all that can be used; folders of models are looked into at each question.

    Args:
        given: those of the start, which come first.
        roots: folders whose folders and files are bases.
    """

    def __init__(self, given: Mapping[str, str], roots: Sequence[Path] = ()) -> None:
        self.given, self.roots = dict(given), tuple(dict.fromkeys(roots))

    def found(self) -> list[FoundBase]:
        """Return all bases, also those that cannot be used, with the reason."""
        listed = [FoundBase(name, base, base_card(base)) for name, base in self.given.items()]
        seen = {one.name for one in listed}
        for path in self._there():
            name, card = name_of(path), base_card(str(path))
            if str(path) in self.given.values():
                continue  # it has its name from the start
            if name in seen:
                card = BaseCard(layout=card.layout, bytes=card.bytes, problem=f"Another base is called {name}.",
                                hint="Rename one of them.")  # fmt: skip
            elif not card.problem:
                seen.add(name)
            listed.append(FoundBase(name, str(path), card))
        return listed

    def place(self, one: FoundBase) -> tuple[int, str]:
        """Return the place of a base among all: those of the start as they were given, then folder by folder."""
        if self.given.get(one.name) == one.base:
            return list(self.given).index(one.name), one.name
        path = Path(one.base)
        return len(self.given) + self.roots.index(path.parent), path.name

    def _there(self) -> Iterator[Path]:
        """Return what lies in the folders of models: folders, checkpoints, and what might be meant as one."""
        for root in self.roots:
            with suppress(OSError):
                for name in sorted(os.listdir(root)):
                    path = root / name
                    plain = encodable(name) and not name.startswith(".")
                    if plain and (path.is_dir() or path.suffix in (".safetensors", ".ckpt")):
                        yield path

    def __getitem__(self, name: str) -> str:
        if name in self.given:
            return self.given[name]
        for one in self.found():
            if one.name == name and not one.card.problem:
                return one.base
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        yield from self.given
        yield from (one.name for one in self.found()[len(self.given) :] if not one.card.problem)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def name_of(path: Path) -> str:
    """Return the name of a base by its folder or file."""
    return path.name.removesuffix(".safetensors")


def size(count: int) -> str:
    """Return a number of bytes for people.

    >>> size(34684213), size(4265146304)
    ('33 MiB', '4.0 GiB')
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def facts_of(card: BaseCard) -> dict[str, str]:
    """Return what a base says of itself, for people; what is not known is left out."""
    if card.problem:
        return {"cannot be used": card.problem, "what helps": card.hint, "on disk": size(card.bytes)}
    if card.defaults is None:
        return {"family": "known once it is loaded"}
    usual, (half, full) = card.defaults, card.memory
    told = {
        "family": card.title,
        "pictures": f"{usual.size} x {usual.size} pixels",
        "on disk": size(card.bytes),
        "memory": f"{size(half)} on a GPU, {size(full)} on a CPU for its weights; pictures take some more",
        "licence": card.licence or "not told; see the page where you got it",
        "usual settings": f"{usual.steps} steps of {usual.scheduler}, guidance {usual.scale:g}",
        "repaints": "with an inpainting UNet, which sees the rest of the picture" if card.inpainting else "by blending",
        "boxes": "has the layers that place things" if card.boxes else "",
        "learning": "made to draw in few steps; teach another base of this family, and use it here"
        if card.distilled
        else "",
    }
    return {name: one for name, one in told.items() if one}


def lines(found: Iterable[FoundBase]) -> Iterator[str]:
    """Return a line for each base, and where it is."""
    for one in found:
        card = one.card
        if card.problem:
            yield f"{one.name:28}  cannot be used: {card.problem} {card.hint}"
        else:
            title = card.title or "unknown"
            licence = card.licence or "licence not told"
            memory = f"{size(card.memory[0])} on a GPU"
            yield f"{one.name:28}  {title:22}  {size(card.bytes):>9}  {memory:>18}  {licence:24}  --base {one.base}"
