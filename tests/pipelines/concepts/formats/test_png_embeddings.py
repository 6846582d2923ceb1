"""Embeddings in the text and in the pixels of a PNG, written here as AUTOMATIC1111 writes them."""

from __future__ import annotations

import base64
import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.concepts.concept import Concept
from pipelines.concepts.formats import png_embeddings
from pipelines.errors import ConceptError
from studio.cli import main


def picture(path, held):
    text = PngInfo()
    if held is not None:
        coded = held if isinstance(held, bytes) else base64.b64encode(json.dumps(held).encode())
        text.add_text("sd-ti-embedding", coded.decode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return path


def embedding(rows, **more):
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": rows}}, "name": "catling"} | more


def test_the_word_is_read_and_imported(tmp_path):
    rows = torch.randn(2, 768)
    path = picture(tmp_path / "x.png", embedding(rows.tolist()))
    read = Concept.load_picture(path)
    assert (read.token, read.card.family) == ("catling", "sd1") and torch.equal(read.rows[0], rows)
    assert main(["concepts", "import", str(path), "--library", str(tmp_path / "library")]) == 0
    assert Concept.load(tmp_path / "library" / "catling.safetensors").digest() == read.digest()
    assert Concept.load_picture(picture(path, embedding(rows.tolist(), name=None))).token == "x"


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (None, "without an embedding"),
        (b"no base64!", "damaged"),
        (base64.b64encode(b"[" * 100_000), "damaged"),
        (embedding([[1.0, 2.0], [3.0]]), "damaged"),
        (embedding("text"), "damaged"),
        (embedding([[float("nan")] * 768]), "not finite"),
        (embedding([]), "shapes"),
        (embedding(1.0), "shapes"),
        (embedding([[[1.0]]]), "shapes"),
        ({"string_to_param": {}}, "damaged"),
        ([1], "damaged"),
    ],
)
def test_what_is_no_embedding_is_one_sentence(tmp_path, held, said):
    with pytest.raises(ConceptError, match=said) as error:
        Concept.load_picture(picture(tmp_path / "x.png", held))
    assert "\n" not in error.value.message


def test_a_damaged_picture_is_one_sentence(tmp_path):
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    with pytest.raises(ConceptError, match="no picture"):
        Concept.load_picture(tmp_path / "x.png")


# -- in the pixels -----------------------------------------------------------------------------------------------


def mixed(block):
    """A block with the fixed sequence, number by number."""
    numbers, state = [], 0
    for _ in range(block.size):
        state = (1664525 * state + 1013904223) % 2**32
        numbers.append(state % 255 & 0x0F)
    return block ^ np.array(numbers, dtype=np.uint8).reshape(block.shape)


def hidden(path, text, height=48, frame=0, packed=None):
    """A picture with a text at its borders: low halves left, high halves right, repeated to fill the blocks."""
    data = np.frombuffer(zlib.compress(text, 9) if packed is None else packed, np.uint8)
    size = -(-len(data) // (3 * height)) * 3 * height
    low, high = (mixed(np.resize(half, size).reshape(height, -1, 3)) for half in (data & 0x0F, data >> 4))
    rng = np.random.default_rng(0)
    style, inside = (rng.integers(16, 256, (height, width, 3), np.uint8) for width in (low.shape[1], 20))
    gap = np.zeros((height, 1, 3), np.uint8)
    whole = np.concatenate((low | style & 0xF0, gap, inside, gap, high | style & 0xF0), axis=1)
    Image.fromarray(np.pad(whole, ((frame, frame), (frame, frame), (0, 0)))).save(path)
    return path


@pytest.mark.parametrize("frame", [0, 3])
def test_the_word_is_read_from_the_pixels_where_the_text_is_gone(tmp_path, frame):
    rows = torch.randn(2, 768)
    path = hidden(tmp_path / "x.png", json.dumps(embedding(rows.tolist())).encode(), frame=frame)
    read = Concept.load_picture(path)
    assert (read.token, read.card.family) == ("catling", "sd1") and torch.equal(read.rows[0], rows)
    assert main(["concepts", "import", str(path), "--library", str(tmp_path / "library")]) == 0
    assert Concept.load(tmp_path / "library" / "catling.safetensors").digest() == read.digest()


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        (b"no json", None),
        (b"[" * 100_000, None),
        (b"{}", None),
        (b"", b"not packed at all"),
        (b"", zlib.compress(b"{}")[:-3] + b"zzz"),
        (b" " * (png_embeddings.LIMIT + 1), None),  # a few kilobytes that would unpack to far more
    ],
)
def test_what_is_hidden_and_no_embedding_is_one_sentence(tmp_path, text, packed):
    with pytest.raises(ConceptError, match="is damaged") as error:
        Concept.load_picture(hidden(tmp_path / "x.png", text, packed=packed))
    assert "\n" not in error.value.message


def test_ordinary_pictures_hide_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number, pixels in enumerate((np.zeros((8, 8, 3)), np.full((8, 8, 3), 16), rng.integers(0, 255, (32, 32, 3)))):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{number}.png")
        with pytest.raises(ConceptError, match="without an embedding"):
            Concept.load_picture(tmp_path / f"{number}.png")
    path = hidden(tmp_path / "x.png", b"{}")
    monkeypatch.setattr(png_embeddings, "PIXELS", 100)  # too many to look at
    with pytest.raises(ConceptError, match="without an embedding"):
        Concept.load_picture(path)
