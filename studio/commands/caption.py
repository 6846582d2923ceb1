"""`studio caption`: captions beside pictures, for training. Importable without torch."""

from __future__ import annotations

import base64
import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import Field

from pipelines.captions.wording import Wording
from pipelines.errors import ConfigError, DataError, RequestError
from pipelines.files import whole_file
from pipelines.pictures.files import open_picture
from pipelines.request.settings import Frozen
from pipelines.words import composed
from studio.endpoints import TIMEOUT, Endpoint, answer_of, require_address, require_none
from studio.settings import Machine
from trainers.data.caption_files import caption_file, caption_line, holds_boxes, key
from trainers.data.folders import FolderPicture, listing
from trainers.data.index_files import INDICES
from trainers.data.mask_files import has_picture_suffix

if TYPE_CHECKING:
    from PIL import Image

KEY = "STUDIO_CAPTION_KEY"
LONG_SIDE = 1024
"""Pixels of the longer side of a picture that is sent to an endpoint, at most."""
PATIENCE = 3
"""Pictures on end that an endpoint may leave without an answer."""
INSTRUCTION = """\
Describe the picture in one plain English sentence for the training of a text-to-image model: what is there, what it
does, where things stand, the background. No opinion, no introduction; answer with the sentence alone."""


class Shown(Frozen):
    """The endpoint that is shown the pictures."""

    endpoint: str | None = None
    """Address of a model that sees pictures and speaks OpenAI's chat completions, for example
    http://localhost:11434/v1, instead; its key is read from STUDIO_CAPTION_KEY. Pictures are sent there, and nowhere
    unless it is named."""

    endpoint_model: str = Field(default="", max_length=200)
    """Name of the endpoint's model."""

    endpoint_timeout: float = Field(default=TIMEOUT, gt=0, le=3600)
    """Seconds to wait for each of its answers."""

    def asked(self) -> Endpoint | None:
        """Return the endpoint that was named, if one was.

        Raises:
            ConfigError: if it is no web address, or there are settings of one and it is not named.
        """
        if self.endpoint is None:
            require_none("--endpoint", self.endpoint_model, self.endpoint_timeout != TIMEOUT)
            return None
        named = Endpoint("captioner", "--endpoint", self.endpoint, self.endpoint_model, self.endpoint_timeout, KEY)
        require_address(named)
        return named


def caption(
    folder: Path,
    *,
    by: str = "pocket",
    shown: Annotated[Shown, Parameter(name="*")] = Shown(),  # noqa: B008
    wording: Annotated[Wording, Parameter(name="*", negative="")] = Wording(),  # noqa: B008
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    machine: Annotated[Machine, Parameter(name="*")] = Machine(),  # noqa: B008
) -> None:
    """Write a caption beside each picture of a folder, as NAME.txt; those that have one keep it.

    Parameters
    ----------
    folder
        Folder of pictures.
    by
        pocket, which tells stickers exactly and knows nothing else, or a folder with a BLIP or a Florence-2.
    overwrite
        Replace captions that are there.
    dry_run
        Print the captions and write none.
    """
    listed = listing(folder)
    index = next((name for name in INDICES if (folder / name).is_file()), "")
    if index:
        raise DataError(
            f"The captions of {folder} stand in {index}, beside which others are not read.", "Change them there."
        )
    beside = _Beside([one.path for one in listed.found])
    asked = [one for one in listed.found if overwrite or beside.caption(one.path) is None]
    captioner = _captioner(by, shown.asked(), wording, machine)
    made = 0
    try:
        said_of, worded = _among(asked, lambda one: captioner(open_picture(one.path)), wording)
        for line in _written(asked, lambda one: caption_line(said_of(one), worded), None if dry_run else beside):
            made += 1
            print(line)  # noqa: T201
    finally:  # also where it is stopped on the way
        kept = len(listed.found) - len(asked)
        said = f"{made} captions {'made' if dry_run else 'written'}, {kept} there already were kept."
        sys.stderr.writelines(f"studio: {line}\n" for line in [*beside.shared(), said])


def _among(
    asked: Sequence[FolderPicture], captioner: Callable[[FolderPicture], str], wording: Wording
) -> tuple[Callable[[FolderPicture], str], Wording]:
    """Return what writes captions, and the wording for them; where words of all are left out, all are seen first."""
    if not wording.shared:
        return captioner, wording
    told: dict[Path, str] = {}
    for one in asked:
        try:
            told[one.path] = captioner(one)
        except DataError:  # it is said when its caption is due
            continue
        except RequestError:
            break
    return lambda one: told.get(one.path) or captioner(one), wording.among(tuple(told.values()))


def _written(
    asked: Sequence[FolderPicture], captioner: Callable[[FolderPicture], str], beside: _Beside | None
) -> Iterator[str]:
    """Write the captions of pictures, or none without `beside`; gives a line about each.

    Raises:
        RequestError: if the captioner fails three times on end, or each time.
    """
    made, unanswered = 0, 0
    for one in asked:
        try:
            text = captioner(one)
            if beside is not None:
                beside.write(one.path, text)
        except (DataError, RequestError) as error:
            unanswered += isinstance(error, RequestError)
            if unanswered == PATIENCE or (unanswered and not made and one is asked[-1]):
                raise
            sys.stderr.write(f"studio: {one.name} is left without: {error}\n")
        else:
            made, unanswered = made + 1, 0
            yield f"{one.name}: {text}"


class _Beside:
    """The files beside pictures; each folder is listed once."""

    def __init__(self, pictures: Sequence[Path]) -> None:
        files = [one for folder in {one.parent for one in pictures} for one in folder.iterdir() if one.is_file()]
        self._files: dict[Path, dict[str, Path]] = {}
        for one in files:
            self._files.setdefault(one.parent, {})[key(one)] = one
        self._stems = Counter((one.parent, composed(one.stem)) for one in files if has_picture_suffix(one))
        self._had = {one: there for one in pictures if (there := self.caption(one)) is not None}
        self._readers: dict[Path, set[Path]] = {}  # of each caption file: the pictures without a new one
        for one, there in self._had.items():
            self._readers.setdefault(there, set()).add(one)
        self._left: set[Path] = set()  # caption files that some of their pictures no longer need

    def caption(self, picture: Path) -> Path | None:
        """Return the file beside a picture that is its caption, or has the name of one, if there is one."""
        return caption_file(picture, self._files[picture.parent])

    def write(self, picture: Path, text: str) -> None:
        """Write a caption where it is read for this picture alone.

        The file it had goes when all pictures that read it have their own.

        Raises:
            DataError: if boxes of YOLO have its name.
        """
        alone = self._stems[picture.parent, composed(picture.stem)] < 2
        target = picture.with_suffix(".txt") if alone else picture.with_name(f"{picture.name}.txt")
        there = self._had.get(picture)
        if there is not None and holds_boxes(there):
            raise DataError(f"{there.name} holds boxes of YOLO.", "Keep captions and boxes in folders of their own.")
        with whole_file(target) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")
        if there is None or there not in self._readers:
            return
        if there.samefile(target):
            del self._readers[there]  # it is new itself, and stays
            return
        self._left.add(there)
        self._readers[there].discard(picture)
        if not self._readers[there]:
            there.unlink()  # else two captions would stand beside one picture

    def shared(self) -> list[str]:
        """Return a sentence about each caption file that is still read though some of its pictures have a new one."""
        left = {one.name: [picture.name for picture in self._readers.get(one, ())] for one in sorted(self._left)}
        return [
            f"{name} stays, and is read before the new captions: there is none for {', '.join(sorted(without))}."
            for name, without in left.items()
            if without
        ]


def _captioner(by: str, endpoint: Endpoint | None, wording: Wording, machine: Machine) -> Callable[[Image.Image], str]:
    """Return what writes the captions.

    Raises:
        ConfigError: if two were named.
        ModelError: if the folder holds none.
    """
    if endpoint is not None:
        if by != "pocket":
            raise ConfigError("Two captioners were named.", "Give --by or --endpoint.")
        return lambda picture: _asked(endpoint, picture, wording)
    from studio.work import captions

    return captions.captioner(by, machine)


def _asked(endpoint: Endpoint, picture: Image.Image, wording: Wording) -> str:
    """Return the caption of an endpoint."""
    shown, content = picture.convert("RGB"), io.BytesIO()
    shown.thumbnail((LONG_SIDE, LONG_SIDE))
    shown.save(content, format="PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    unsaid = f" Do not name: {', '.join(wording.leave_out)}." if wording.leave_out and not wording.token else ""
    parts = [{"type": "text", "text": INSTRUCTION + unsaid}, {"type": "image_url", "image_url": {"url": url}}]
    return answer_of(endpoint, [{"role": "user", "content": parts}], "Check --endpoint and --endpoint-model.")
