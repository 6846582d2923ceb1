"""`studio caption`: captions beside pictures, for training. Importable without torch."""

from __future__ import annotations

import base64
import glob
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pipelines.captions.wording import Wording
from pipelines.errors import ConfigError, DataError
from pipelines.files import whole_file
from pipelines.pictures.files import open_picture
from pipelines.request.yolo import holds_labels
from studio.endpoints import Endpoint, answer_of, require_address
from studio.settings import Machine
from trainers.data.caption_files import caption_file, holds_boxes, key, tidied
from trainers.data.folders import listing
from trainers.data.index_files import INDICES
from trainers.data.mask_files import has_picture_suffix

if TYPE_CHECKING:
    from PIL import Image

KEY = "STUDIO_CAPTION_KEY"
LONG_SIDE = 1024
"""Pixels of the longer side of a picture that is sent to an endpoint, at most."""
INSTRUCTION = """\
Describe the picture in one plain English sentence for the training of a text-to-image model: what is there, what it
does, where things stand, the background. No opinion, no introduction; answer with the sentence alone."""


def caption(
    folder: Path,
    *,
    by: str = "pocket",
    endpoint: str | None = None,
    endpoint_model: str = "",
    endpoint_timeout: float = 60.0,
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
    endpoint
        Address of a model that sees pictures and speaks OpenAI's chat completions, for example
        http://localhost:11434/v1, instead; its key is read from STUDIO_CAPTION_KEY. Pictures are sent there, and
        nowhere unless it is named.
    endpoint_model
        Name of the endpoint's model.
    endpoint_timeout
        Seconds to wait for each of its answers.
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
    asked = [one for one in listed.found if overwrite or _file_of(one.path) is None]
    captioner = _captioner(by, _endpoint(endpoint, endpoint_model, endpoint_timeout), wording, machine)
    made = 0
    for one in asked:
        try:
            text = _worded(captioner(open_picture(one.path)), wording)
            if not dry_run:
                _write(one.path, text)
        except DataError as error:
            sys.stderr.write(f"studio: {one.name} is left without: {error}\n")
            continue
        made += 1
        print(f"{one.name}: {text}")  # noqa: T201
    kept = len(listed.found) - len(asked)
    sys.stderr.write(f"studio: {made} captions {'made' if dry_run else 'written'}, {kept} there already were kept.\n")


def _worded(answer: str, wording: Wording) -> str:
    """Return a caption as it is written, on one line.

    Raises:
        DataError: if nothing is left of it, or it would be read as boxes.
    """
    text = tidied(wording.of(answer))
    if not tidied(answer) or not wording.model_copy(update={"template": "{}"}).of(answer):
        raise DataError(f"Nothing is left of the caption {answer!r:.80}.", "Write one by hand, or leave out less.")
    if holds_labels(answer) or holds_labels(text):
        raise DataError(f"The caption {answer!r:.80} would be read as boxes of YOLO.", "Write one by hand.")
    return text


def _file_of(picture: Path) -> Path | None:
    """Return the file beside a picture that is its caption, or has the name of one, if there is one."""
    return caption_file(picture, {key(one): one for one in picture.parent.iterdir() if one.is_file()})


def _write(picture: Path, text: str) -> None:
    """Write a caption where it is read for this picture alone.

    Raises:
        DataError: if boxes of YOLO have its name.
    """
    alike = [one for one in picture.parent.glob(f"{glob.escape(picture.stem)}.*") if has_picture_suffix(one)]
    target = picture.with_suffix(".txt") if len(alike) < 2 else picture.with_name(f"{picture.name}.txt")
    there = _file_of(picture)
    if there is not None and holds_boxes(there):
        raise DataError(f"{there.name} holds boxes of YOLO.", "Keep captions and boxes in folders of their own.")
    with whole_file(target) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    if there is not None and there != target and there.name != target.name:
        there.unlink()  # else two captions would stand beside one picture


def _endpoint(address: str | None, model: str, timeout: float) -> Endpoint | None:
    """Return the endpoint that was named, if one was.

    Raises:
        ConfigError: if it is no web address.
    """
    if address is None:
        return None
    endpoint = Endpoint("captioner", "--endpoint", address, model, timeout, KEY)
    require_address(endpoint)
    return endpoint


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
