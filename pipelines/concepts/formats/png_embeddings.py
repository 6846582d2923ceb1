"""Embeddings that AUTOMATIC1111 keeps in a PNG: JSON with the numbers in it, in its text and in its pixels.

In the text it is base64. In the pixels it is packed with zlib and lies in the low halves of the bytes of two blocks,
low halves left and high halves right of the picture, each set apart by a black column and mixed with a fixed sequence
of numbers; so it outlives programs that drop a picture's text.
"""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.errors import ConceptError
from pipelines.pictures.png import PNG, pixels_alone, texts

KEY = "sd-ti-embedding"
LIMIT = 8 << 20  # letters; 256 vectors of 1280 numbers have some six million
PIXELS = 16 << 20
Bytes = NDArray[np.uint8]


def read_picture(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensor of the embedding in a picture, named as in a safetensors file, and what is said of it.

    Raises:
        ConceptError: if it is no picture, holds none, or what it holds is damaged.
    """
    try:
        content = path.read_bytes()
        text = texts(content).get(KEY)
        pixels = _pixels(content) if text is None else None
    except Exception as error:  # a damaged picture raises anything at all
        raise ConceptError(f"{path.name} is no picture ({type(error).__name__}).", "Check the file.") from None
    blocks = _blocks(pixels) if pixels is not None else None
    if (blocks is None and not isinstance(text, str)) or (isinstance(text, str) and len(text) > LIMIT):
        raise ConceptError(
            f"{path.name} is a picture without an embedding in its text or at its borders.",
            "Give the file as it was written; sites that shrink pictures remove it.",
        )
    try:
        plain = base64.b64decode(text, validate=True) if isinstance(text, str) else _unpacked(blocks)
        held: dict[str, Any] = json.loads(plain)
        ((own, entry),) = held["string_to_param"].items()
        rows = torch.tensor(entry["TORCHTENSOR"], dtype=torch.float32)
        named = held.get("name")
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        OverflowError,
        RuntimeError,
        zlib.error,
    ) as error:
        what = type(error).__name__
        raise ConceptError(f"The embedding in {path.name} is damaged ({what}).", "Get it again.") from None
    word = named if isinstance(named, str) and named else own
    return {"emb_params": rows}, {} if word == "*" else {"modelspec.trigger_phrase": word}


def _pixels(content: bytes) -> Bytes | None:
    """The bytes (H, W, 3) of a picture as they are stored; None if it has too many to look at."""
    stored = pixels_alone(content)[0] if content.startswith(PNG) else content
    with Image.open(io.BytesIO(stored)) as picture:
        if picture.width * picture.height > PIXELS:
            return None
        return np.asarray(picture.convert("RGB"))


def _blocks(pixels: Bytes) -> tuple[Bytes, Bytes] | None:
    """Return the pixels left and right of the two black columns, without a black frame; None without such columns."""
    dark = pixels.min(axis=2)  # 0 where one of the three is
    columns, rows = np.flatnonzero(dark.max(axis=0)), np.flatnonzero(dark.max(axis=1))
    if not len(columns):
        return None
    low = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & np.uint8(0x0F)
    black = np.flatnonzero(low.max(axis=(0, 2)) == 0)
    if len(black) < 2 or not black[0] or black[-1] == low.shape[1] - 1:
        return None
    return low[:, : black[0]], low[:, black[-1] + 1 :]


def _unpacked(blocks: tuple[Bytes, Bytes] | None) -> bytes:
    """The text in two blocks of half bytes.

    Raises:
        ValueError: if they are not of one size, or it has more than `LIMIT` letters.
        zlib.error: if it is damaged.
    """
    if blocks is None or blocks[0].shape != blocks[1].shape:
        raise ValueError("the two blocks differ")
    low, high = (block.flatten() ^ (_sequence(block.size) & 0x0F) for block in blocks)
    unpacking = zlib.decompressobj()
    text = unpacking.decompress((high << 4 | low).tobytes(), LIMIT)
    if not unpacking.eof:
        raise ValueError("it is too long, or has no end")
    return text


def _sequence(count: int) -> Bytes:
    """The numbers s mod 255 of s <- 1664525 s + 1013904223 mod 2^32, begun at 0."""
    factor, shift, modulus = 1664525, 1013904223, 1 << 32
    states = np.array([shift], dtype=np.uint64)
    while len(states) < count:  # as many again: factor and shift are those of that many steps
        states = np.concatenate((states, (states * np.uint64(factor) + np.uint64(shift)) % np.uint64(modulus)))
        factor, shift = factor * factor % modulus, (factor + 1) * shift % modulus
    return (states[:count] % 255).astype(np.uint8)
