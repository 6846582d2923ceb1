"""Safetensors headers made to harm, beside those that are merely unusual; safetensors itself is the second opinion."""

from __future__ import annotations

import json
import struct
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.concepts.card import CARD_KEY, TENSOR_LIMIT, VECTOR_LIMIT, ConceptCard, read_card, read_header
from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError

ONE = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}


def write(path, header, data=b"12345678", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin, end, **fields):
    return {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]} | fields


@pytest.mark.parametrize(
    ("header", "data"),
    [
        pytest.param({"a": entry(0, 5), "b": entry(3, 8)}, b"12345678", id="overlap"),
        pytest.param({"a": entry(0, 3), "b": entry(5, 8)}, b"12345678", id="gap"),
        pytest.param({"a": entry(4, 8)}, b"12345678", id="late start"),
        pytest.param({"a": entry(-4, 4)}, b"12345678", id="before the start"),
        pytest.param({"a": entry(8, 0, shape=[0])}, b"12345678", id="reversed"),
        pytest.param({"a": ONE | {"shape": [True, 2]}}, b"12345678", id="true is no extent"),
        pytest.param({"a": ONE | {"shape": [1.0, 2.0]}}, b"12345678", id="fractions"),
        pytest.param({"a": ONE | {"shape": "12"}}, b"12345678", id="a word for a shape"),
        pytest.param({"a": ONE | {"shape": None}}, b"12345678", id="no shape"),
        pytest.param({"a": ONE | {"data_offsets": ["0", "8"]}}, b"12345678", id="words for offsets"),
        pytest.param({"a": ONE | {"data_offsets": [0, 4, 8]}}, b"12345678", id="three offsets"),
        pytest.param({"a": ONE | {"dtype": ["F32"]}}, b"12345678", id="a list for a type"),
        pytest.param({"a": [1, 2]}, b"12345678", id="a list for a tensor"),
        pytest.param({"a": ONE | {"shape": [2**62, 2**62]}}, b"12345678", id="more than the world holds"),
        pytest.param({"a": ONE | {"shape": [2**63, 0]}}, b"", id="nothing times everything"),
        pytest.param({"__metadata__": None, "a": ONE}, b"12345678", id="no metadata"),
        pytest.param({"__metadata__": ["x"], "a": ONE}, b"12345678", id="a list of metadata"),
        pytest.param({"__metadata__": {"x": {"y": "z"}}, "a": ONE}, b"12345678", id="nested metadata"),
        pytest.param(b'{"a": 1' + b"0" * 5000 + b"}", b"", id="a number of five thousand digits"),
        pytest.param(b'{"\xff": 1}', b"", id="not utf-8"),
        pytest.param(b"\xef\xbb\xbf{}", b"", id="a byte order mark"),
        pytest.param(b"{}\0\0", b"", id="zeros behind"),
        pytest.param(
            b'{"a": {"dtype": "F32", "shape": [9], "shape": [1, 2], "data_offsets": [0, 8]}}',
            b"12345678",
            id="a key twice, deeper",
        ),
        pytest.param(b"null", b"", id="null"),
        pytest.param({}, b"12345678", id="data of no tensor"),
        pytest.param({str(i): entry(0, 0) for i in range(TENSOR_LIMIT + 1)}, b"", id="too many tensors"),
    ],
)
def test_a_header_that_does_not_describe_its_file_exactly_is_refused(tmp_path, header, data):
    path = write(tmp_path / "bad.safetensors", header, data)
    for read in (read_header, read_card, Concept.load):
        with pytest.raises(ConceptError, match=r"bad\.safetensors") as error:
            read(path)
        assert error.value.hint and "\n" not in error.value.message


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\0" * 8, struct.pack("<Q", 1) + b"{", struct.pack("<Q", 100) + b"{}"]
)
def test_a_truncated_header_is_refused(tmp_path, content):
    (tmp_path / "short.safetensors").write_bytes(content)
    with pytest.raises(ConceptError, match="not a safetensors file"):
        read_header(tmp_path / "short.safetensors")


@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1])
def test_an_announced_length_that_cannot_be_is_never_read(tmp_path, length):
    path = write(tmp_path / "x.safetensors", {"a": ONE}, length=length)
    with pytest.raises(ConceptError, match=f"header length {length}"):
        read_header(path)


def test_a_folder_is_no_concept_file(tmp_path):
    with pytest.raises(ConceptError, match=f"no concept file {tmp_path}"):
        Concept.load(tmp_path)


def test_a_header_may_be_padded_with_spaces_as_safetensors_does(tmp_path):
    path = write(tmp_path / "x.safetensors", json.dumps({"<x>": ONE}).encode() + b"   ")
    assert Concept.load(path).rows[0].shape == load_file(path)["<x>"].shape == (1, 2)


def test_offsets_that_only_look_like_numbers_are_caught_by_the_second_reader(tmp_path):
    # JSON's false is Python's 0; safetensors is stricter, and its refusal is one sentence as well.
    path = write(tmp_path / "x.safetensors", {"<x>": ONE | {"data_offsets": [False, 8]}})
    with pytest.raises(ConceptError, match=r"x\.safetensors"):
        Concept.load(path)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": ([], torch.float32)},
        {"empty": ([0, 3], torch.float16), "also": ([3, 0], torch.float32), "some": ([2, 2], torch.bfloat16)},
        {"wide": ([1, 2, 3, 4], torch.float64), "odd": ([3], torch.uint8), "flags": ([5], torch.bool)},
        {
            "狐": ([1], torch.int64),
            'quote"d': ([7], torch.int16),
            "tab\t": ([1, 1], torch.int32),
            "": ([9], torch.int8),
        },
    ],
)
def test_every_kind_of_tensor_that_safetensors_writes_is_read_as_written(tmp_path, tensors):
    stored = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in tensors.items()}
    save_file(stored, tmp_path / "x.safetensors", {"k": "v"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.pop("__metadata__") == {"k": "v"}
    assert {name: one["shape"] for name, one in header.items()} == {name: shape for name, (shape, _) in tensors.items()}
    for name, one in header.items():
        assert one["data_offsets"][1] - one["data_offsets"][0] == stored[name].numel() * stored[name].element_size()


# -- cards --------------------------------------------------------------------------------------------------------


def embedding(path, card=None, shape=(2, 4), name="<x>"):
    save_file({name: torch.zeros(shape)}, path, None if card is None else {CARD_KEY: card})
    return path


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("null", "card of x.safetensors is damaged"),
        ("[]", "card of x.safetensors is damaged"),
        ('{"token": "<x>", "vectors": 2, "surprise": 1}', "surprise"),
        ('{"token": "<x>", "vectors": 0}', "vectors"),
        ('{"token": "<x>", "vectors": 100000}', "vectors"),
        ('{"token": "<x>", "vectors": 2, "kind": "spell"}', "kind"),
        (json.dumps({"token": "x" * 101, "vectors": 2}), "token"),
        ('{"token": "<x>", "vectors": 2, "scores": {"likeness": "high"}}', "scores"),
        ('{"token": "<x>", "vectors": 3}', "3 vectors its card tells of"),
    ],
)
def test_a_card_that_is_wrong_says_which_field(tmp_path, card, said):
    with pytest.raises(ConceptError, match=said):
        read_card(embedding(tmp_path / "x.safetensors", card))


def test_a_card_survives_with_everything_on_it(tmp_path):
    card = ConceptCard(
        token="<狐>",
        kind="style",
        method="x",
        family="sd1",
        base="a, b",
        base_fingerprint="0" * 16,
        vectors=2,
        init="fox",
        recipe={"steps": 3, "nested": {"list": [1, None, "ü"]}},
        scores={"likeness": -0.25},
        created="2026-01-02T03:04:05+00:00",
    )
    path = Concept(card, (torch.zeros(2, 4),)).save(tmp_path / "x.safetensors")
    assert read_card(path) == card == Concept.load(path).card


@pytest.mark.parametrize(
    ("shape", "vectors"), [((768,), 1), ((1, 768), 1), ((5, 768), 5), ((VECTOR_LIMIT, 4), VECTOR_LIMIT)]
)
def test_vectors_are_counted_from_the_shape(tmp_path, shape, vectors):
    path = embedding(tmp_path / "x.safetensors", shape=shape)
    assert read_card(path).vectors == vectors == len(Concept.load(path).rows[0])


def test_more_vectors_than_a_prompt_could_hold_are_refused(tmp_path):
    with pytest.raises(ConceptError, match=str(VECTOR_LIMIT + 1)):
        read_card(embedding(tmp_path / "x.safetensors", shape=(VECTOR_LIMIT + 1, 4)))


def test_a_tensor_name_too_long_for_a_word_is_cut(tmp_path):
    card = read_card(embedding(tmp_path / "x.safetensors", name="n" * 5000))
    assert card.token == "n" * 100


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_in_other_precisions_are_read_exactly(tmp_path, dtype):
    stored = torch.randn(2, 768, generator=torch.Generator().manual_seed(0)).to(dtype)
    save_file({"<x>": stored}, tmp_path / "x.safetensors")
    rows = Concept.load(tmp_path / "x.safetensors").rows[0]
    assert rows.dtype == torch.float32 and torch.equal(rows, stored.float())


def test_halves_of_an_xl_embedding_with_unequal_counts_are_refused(tmp_path):
    save_file({"clip_l": torch.zeros(2, 768), "clip_g": torch.zeros(3, 1280)}, tmp_path / "x.safetensors")
    with pytest.raises(ConceptError, match=r"x\.safetensors does not hold the 2 vectors"):
        Concept.load(tmp_path / "x.safetensors")


def test_absurd_shapes_are_refused_at_once(tmp_path):
    extent = "9" * 4200
    shape = "[" + ",".join([extent] * 900) + "]"
    text = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 8]}}}}'.encode()
    began = time.process_time()
    with pytest.raises(ConceptError, match="wrong length"):
        read_header(write(tmp_path / "x.safetensors", text))
    assert time.process_time() - began < 5  # 82 s when it was multiplied


def test_a_card_has_a_limit(tmp_path):
    card = ConceptCard(token="<x>", recipe={f"a{number}": "x" * 1000 for number in range(70)})
    header = {"__metadata__": {CARD_KEY: card.model_dump_json()}, "<x>": ONE}
    with pytest.raises(ConceptError, match="at most 65,536"):
        read_card(write(tmp_path / "x.safetensors", header))
