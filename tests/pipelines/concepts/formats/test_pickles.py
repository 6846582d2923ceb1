"""Embeddings kept as pickles are read as data; what a pickle would do is never done."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import pytest
import torch

from pipelines.concepts.concept import Concept
from pipelines.concepts.formats.pickles import read_pickle, read_tensors
from pipelines.errors import ConceptError


def a1111(rows, name="my cat", **more):
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": rows},
        "name": name,
        "step": 500,
        "sd_checkpoint": "abc",
        "sd_checkpoint_name": "v1-5",
    } | more


@pytest.mark.parametrize(
    ("content", "token", "vectors"),
    [
        (lambda rows: {"<R>": rows[0]}, "<R>", 1),  # as ReVersion's authors and Custom Diffusion's: one dimension
        (lambda rows: {"<R>": rows}, "<R>", 3),
        (lambda rows: OrderedDict({"<R>": rows}), "<R>", 3),
        (lambda rows: {"<R>": torch.nn.Parameter(rows)}, "<R>", 3),
        (lambda rows: {"emb_params": rows.half()}, "learned_embeds", 3),
        (lambda rows: rows.bfloat16(), "learned_embeds", 3),
        (a1111, "my cat", 3),
        (lambda rows: a1111(torch.nn.Parameter(rows), None), "learned_embeds", 3),
        (  # rinongal's
            lambda rows: {
                "string_to_token": {"<R>": torch.tensor(265)},
                "string_to_param": torch.nn.ParameterDict({"<R>": torch.nn.Parameter(rows)}),
            },
            "<R>",
            3,
        ),
    ],
)
@pytest.mark.parametrize("ending", [".bin", ".pt"])
def test_what_torch_wrote_is_read(tmp_path, content, token, vectors, ending):
    rows = torch.randn(3, 768)
    torch.save(content(rows), tmp_path / f"learned_embeds{ending}")
    read = Concept.load_pickle(tmp_path / f"learned_embeds{ending}")
    assert (read.token, read.card.vectors, read.card.family) == (token, vectors, "sd1")
    torch.testing.assert_close(read.rows[0], rows[:vectors], atol=0.02, rtol=0)


class Malice:
    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("call", [os.system, eval, exec, __import__, getattr, open, torch.load, os.mkdir])
def test_nothing_a_pickle_says_is_called(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    trace = tmp_path / "trace"
    argument = str(trace) if call is os.mkdir else f"import os; os.mkdir({str(trace)!r})"
    torch.save({"<x>": torch.zeros(768), "y": Malice(call, argument)}, "bad.bin")
    with pytest.raises(ConceptError, match=r"bad\.bin is a pickle that is not read: it asks for"):
        Concept.load_pickle(tmp_path / "bad.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["bad.bin"]


def archive(path, members, packed=False):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("members", "packed", "said"),
    [
        ({"a/data.pkl": b"."}, False, "cannot be read"),
        ({"a/data.pkl": b"N.", "../../evil": b"x"}, False, "has a member named"),
        ({"a/data.pkl": b"N.", "/evil": b"x"}, False, "has a member named"),
        ({"a/data.pkl": b"N." * 1000}, True, "packed"),
        ({"a/data.pkl": b"N.", "a/byteorder": b"big"}, False, "little-endian"),
        ({"a/other": b"N."}, False, "cannot be read"),
        ({f"a/{i}": b"" for i in range(4200)} | {"a/data.pkl": b"N."}, False, "too many members"),
        ({"a/data.pkl": pickle.dumps({1, 2})}, False, "instruction"),
        ({"a/data.pkl": pickle.dumps({(1, 2): 3})}, False, "something else than names"),
        ({"a/data.pkl": pickle.dumps([1])}, False, "no dictionary"),
        ({"a/data.pkl": pickle.dumps({"<x>": 1})}, False, "other things than tensors"),
        ({"a/data.pkl": pickle.dumps(a1111(1, string_to_param={}))}, False, "no word"),
    ],
)
def test_archives_made_to_harm_are_one_sentence(tmp_path, members, packed, said):
    path = archive(tmp_path / "bad.pt", members, packed)
    with pytest.raises(ConceptError, match=said) as error:
        Concept.load_pickle(path)
    assert error.value.hint and "\n" not in str(error.value)


def test_a_tensor_that_repeats_its_data_is_refused(tmp_path):
    torch.save({"<x>": torch.zeros(1).expand(1 << 20)}, tmp_path / "x.pt")
    with pytest.raises(ConceptError, match="row after row"):
        read_pickle(tmp_path / "x.pt")


def test_a_large_file_is_not_opened(tmp_path):
    with (tmp_path / "x.pt").open("wb") as stream:
        stream.truncate(65 << 20)
    with pytest.raises(ConceptError, match="over 64 MiB"):
        read_pickle(tmp_path / "x.pt")


@pytest.mark.parametrize("rows", [torch.full((1, 768), float("nan")), torch.zeros(1, 768, dtype=torch.int64)])
def test_numbers_no_embedding_has_are_refused(tmp_path, rows):
    torch.save({"<x>": rows}, tmp_path / "x.pt")
    with pytest.raises(ConceptError, match=r"not finite|whole numbers"):
        Concept.load_pickle(tmp_path / "x.pt")


def test_one_tensor_under_many_names_is_refused(tmp_path):
    rows = torch.zeros(1 << 18)
    torch.save({f"{number}": rows for number in range(20_000)}, tmp_path / "x.pt")  # 20 GB if each were copied
    with pytest.raises(ConceptError, match="together 20,480,000 KiB"):
        read_tensors(tmp_path / "x.pt")
