"""Concept files: ours, those of other programs, and damaged ones."""

from __future__ import annotations

import json
import pickle
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines.concepts.card import HEADER_LIMIT, ConceptCard, read_card
from pipelines.concepts.concept import Concept
from pipelines.errors import ConceptError
from pipelines.words import STEM_BYTES, check_word, file_stem
from tests import tiny
from tests.waiting import LIMIT


def concept(**fields):
    return Concept(ConceptCard(**({"token": "<x>", "family": "sd1", "vectors": 2} | fields)), (torch.randn(2, 32),))


def test_a_file_holds_one_tensor_named_by_its_token_and_a_full_header(tmp_path):
    path = concept(scores={"likeness": 0.5}).save(tmp_path / "x.safetensors")
    with safe_open(path, "pt") as stored:
        assert list(stored.keys()) == ["<x>"]
        metadata = stored.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/textual-inversion"
    assert metadata["modelspec.trigger_phrase"] == "<x>"
    assert read_card(path).scores == {"likeness": 0.5}
    assert read_card(path).created.endswith("+00:00")


def test_xl_files_hold_clip_l_and_clip_g(tmp_path):
    rows = (torch.randn(2, 32), torch.randn(2, 48))
    path = Concept(ConceptCard(token="<x>", family="sdxl", vectors=2), rows).save(tmp_path / "x.safetensors")
    with safe_open(path, "pt") as stored:
        assert sorted(stored.keys()) == ["clip_g", "clip_l"]
    loaded = Concept.load(path)
    assert all(torch.equal(a, b) for a, b in zip(loaded.rows, rows, strict=True))


@pytest.mark.parametrize(
    ("tensors", "token", "family"),
    [
        ({"<cat>": torch.randn(1, 768)}, "<cat>", "sd1"),
        ({"<cat>": torch.randn(768)}, "<cat>", "sd1"),
        ({"emb_params": torch.randn(3, 1024)}, "toy", "sd2"),
        ({"clip_l": torch.randn(2, 768), "clip_g": torch.randn(2, 1280)}, "toy", "sdxl"),
    ],
)
def test_embeddings_of_other_programs_are_read(tmp_path, tensors, token, family):
    save_file(tensors, tmp_path / "toy.safetensors")
    read = Concept.load(tmp_path / "toy.safetensors")
    assert (read.token, read.card.family) == (token, family)
    assert all(rows.ndim == 2 for rows in read.rows)


def test_the_card_is_read_without_torch(tmp_path):
    import subprocess
    import sys

    path = concept().save(tmp_path / "x.safetensors")
    code = (
        "import sys; from pathlib import Path; from pipelines.concepts.card import read_card; "
        f"print(read_card(Path({str(path)!r})).token); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    assert done.stdout.strip() == "<x>"


def header_file(path, header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


GOOD = {"a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"not json at all", b""),
        (b"[1, 2]", b""),
        (b'{"a": 1, "a": 2}', b""),
        (GOOD, b"1234"),
        (GOOD, b"123456789"),
        ({"a": GOOD["a"] | {"shape": [1, 3]}}, b"12345678"),
        ({"a": GOOD["a"] | {"shape": [-1, -2]}}, b"12345678"),
        ({"a": GOOD["a"] | {"dtype": "F99"}}, b"12345678"),
        ({"a": GOOD["a"], "b": GOOD["a"]}, b"12345678"),
        ({"a": {}}, b""),
        ({"__metadata__": {"promptstudio.card": "{"}} | GOOD, b"12345678"),
        ({"__metadata__": {"promptstudio.card": '{"token": ""}'}} | GOOD, b"12345678"),
        ({"__metadata__": {"k": 3}} | GOOD, b"12345678"),
        ({"a": GOOD["a"] | {"shape": [], "data_offsets": [0, 4]}}, b"1234"),
        (b"[" * 100000, b""),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, header, data):
    with pytest.raises(ConceptError) as error:
        Concept.load(header_file(tmp_path / "bad.safetensors", header, data))
    assert "bad.safetensors" in error.value.message and error.value.hint


def test_a_header_that_claims_to_be_huge_is_not_read(tmp_path):
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", HEADER_LIMIT + 1) + b"{}")
    with pytest.raises(ConceptError, match="not a safetensors file"):
        read_card(path)


class Evil:
    def __reduce__(self):
        return (open, ("hacked.txt", "w"))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors", "x.bin"])
def test_a_pickle_is_refused_without_running_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConceptError, match="pickle"):
        Concept.load(tmp_path / name)
    torch.save({"a": torch.zeros(1)}, tmp_path / "zip.safetensors")
    with pytest.raises(ConceptError, match="pickle"):
        Concept.load(tmp_path / "zip.safetensors")
    assert not (tmp_path / "hacked.txt").exists()


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(ConceptError, match="no concept file"):
        Concept.load(tmp_path / "nothing.safetensors")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    save_file({"<x>": torch.tensor([[float("nan")] * 768])}, tmp_path / "nan.safetensors")
    with pytest.raises(ConceptError, match="not finite"):
        Concept.load(tmp_path / "nan.safetensors")


@pytest.mark.parametrize(
    "tensors",
    [{"clip_g": torch.zeros(1, 1280)}, {"clip_l": torch.zeros(2, 768)}],
)
def test_one_half_of_an_xl_embedding_is_read_as_what_it_is(tmp_path, tensors):
    save_file(tensors, tmp_path / "half.safetensors")
    read = Concept.load(tmp_path / "half.safetensors")
    assert read.token == "half" and len(read.rows) == 1


@pytest.mark.parametrize(
    "tensor", [torch.zeros(()), torch.zeros(3, 0), torch.zeros(2, 2, 2), torch.zeros(2, 4, dtype=torch.int64)]
)
@pytest.mark.parametrize("card", [False, True])
def test_shapes_no_embedding_has_are_refused_with_and_without_a_card(tmp_path, tensor, card):
    metadata = {"promptstudio.card": ConceptCard(token="<x>", vectors=2).model_dump_json()} if card else None
    save_file({"<x>": tensor}, tmp_path / "odd.safetensors", metadata=metadata)
    with pytest.raises(ConceptError, match=r"odd\.safetensors"):
        Concept.load(tmp_path / "odd.safetensors")


def test_the_digest_is_of_what_was_learned_alone(tmp_path):
    one = concept()
    loaded = Concept.load(one.save(tmp_path / "x.safetensors"))
    assert one.digest() == loaded.digest() == loaded.with_scores({"a": 1.0}).digest()
    assert one.digest() != concept().digest()


def test_many_tensors_are_no_embedding(tmp_path):
    save_file({f"t{i}": torch.zeros(1, 4) for i in range(3)}, tmp_path / "lora.safetensors")
    with pytest.raises(ConceptError, match="3 tensors"):
        Concept.load(tmp_path / "lora.safetensors")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 2000), value=st.integers(0, 255), cut=st.integers(0, 400))
def test_mutated_files_never_do_worse_than_a_concept_error(tmp_path, place, value, cut):
    path = tmp_path / "m.safetensors"
    torch.manual_seed(0)
    data = bytearray(concept(created="now").save(path).read_bytes())
    data[place % len(data)] = value
    path.write_bytes(bytes(data[: len(data) - cut]) if cut < 200 else bytes(data))
    try:
        Concept.load(path)
    except ConceptError as error:
        assert "m.safetensors" in error.message


def test_a_concept_for_another_family_is_refused_with_both_names():
    made = Concept(
        ConceptCard(token="<x>", family="sdxl", base="my-xl", vectors=1), (torch.zeros(1, 32), torch.zeros(1, 48))
    )
    with (
        pytest.raises(ConceptError, match=r"Stable Diffusion XL \(my-xl\).*tiny.*Stable Diffusion 1"),
        made.attach(tiny.sd()),
    ):
        pass


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = concept().save(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def broken(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.concepts.concept.save_file", broken)
    with pytest.raises(OSError, match="no space"):
        concept().save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize(
    ("token", "stem"),
    [("<my-fox>", "my-fox"), ("<my cat>", "my-cat"), ("zwx dog", "zwx-dog"), ("<狐>", "狐"), ("<हिन्दी>", "हिन्दी")],
)
def test_file_stems_are_what_is_said(token, stem):
    assert file_stem(token) == stem


def test_what_a_file_cannot_be_called_by_is_told_apart_by_a_sum():
    lossy = [
        "<🦊>",
        "<🐺>",
        "<>",
        "<a/b>",
        "<a\\b>",
        "../../x",
        "<a:b>",
        "<a?>",
        "<a*>",
        "猫" * 60,
        "猫" * 61,
        "<a\u200bb>",
    ]
    stems = [file_stem(word) for word in lossy]
    assert len(set(stems)) == len(lossy), "different words, different files"
    for stem in stems:
        assert stem[-9] == "-" and int(stem[-8:], 16) >= 0
        assert not set(stem) & set('/\\:*?"<>|') and not stem.startswith(".") and len(stem.encode()) <= STEM_BYTES + 9
    assert file_stem("<cafe\u0301>") == file_stem("<caf\u00e9>") == "caf\u00e9"


@pytest.mark.parametrize("word", ["<con>", "CON", "<nul>", "<com1>", "lpt9", "<aux.x>"])
def test_names_that_windows_keeps_are_refused(word):
    for refuse in (file_stem, check_word):  # a training that only looks checks the word alone
        with pytest.raises(ConceptError, match="Windows keeps"):
            refuse(word)
    assert file_stem("<my-con>") == "my-con" and file_stem("<console>") == "console"
