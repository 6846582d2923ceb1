"""Embeddings in the text of a PNG, written here as AUTOMATIC1111 writes them."""

from __future__ import annotations

import base64
import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines.concept import Concept
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
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": rows}}, "name": "cat"} | more


def test_the_word_is_read_and_imported(tmp_path):
    rows = torch.randn(2, 768)
    path = picture(tmp_path / "x.png", embedding(rows.tolist()))
    read = Concept.load_picture(path)
    assert (read.token, read.card.family) == ("cat", "sd1") and torch.equal(read.rows[0], rows)
    assert main(["concepts", "import", str(path), "--library", str(tmp_path / "library")]) == 0
    assert Concept.load(tmp_path / "library" / "cat.safetensors").digest() == read.digest()
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
