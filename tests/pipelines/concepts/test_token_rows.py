"""Rows beside a frozen table: equal to a larger table, and gone without a trace."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipelines.concepts.token_embeddings import RowsBeside, check_token, embed_ids, new_words, single_rows
from pipelines.errors import ConceptError
from pipelines.models.families.clip import encode_prompts
from tests import tiny


@pytest.fixture(scope="module", params=[tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def base(request):
    return request.param()


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("shape", [(5,), (2, 7), (1, 1)])
def test_rows_beside_a_table_are_one_larger_table(rows, shape):
    generator = torch.Generator().manual_seed(rows)
    table = nn.Embedding(11, 6)
    new = nn.Parameter(torch.randn(rows, 6, generator=generator))
    beside = RowsBeside(table, new, 11)
    ids = torch.randint(0, 11 + rows, shape, generator=generator)
    larger = torch.cat([table.weight, new]).detach().requires_grad_()
    assert torch.equal(beside(ids), F.embedding(ids, larger))
    weights = torch.randn(*shape, 6, generator=generator)
    (beside(ids) * weights).sum().backward()
    (F.embedding(ids, larger) * weights).sum().backward()
    torch.testing.assert_close(new.grad, larger.grad[11:])
    assert beside.weight is table.weight


def test_rows_of_several_words_nest_like_one_table():
    table, first, second = nn.Embedding(5, 4), nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(1, 4))
    nested = RowsBeside(RowsBeside(table, first, 5), second, 7)
    ids = torch.tensor([[0, 4, 5], [6, 7, 3]])
    assert torch.equal(nested(ids), F.embedding(ids, torch.cat([table.weight, first, second])))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_new_rows_stay_float32_beside_a_narrow_table(dtype):
    base = tiny.sd().to("cpu", dtype)
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        assert words.rows[0].dtype == torch.float32
        assert encode_prompts(words.components, ["a <x>"])[0].context.dtype == dtype


def test_what_was_given_is_copied_so_that_training_does_not_write_into_it(base):
    initial = single_rows(base, "fox")
    kept = [rows.clone() for rows in initial]
    with new_words(base, "<x>", initial) as words, torch.no_grad():
        for parameter in words.rows:
            parameter.add_(1.0)
    assert all(torch.equal(a, b) for a, b in zip(initial, kept, strict=True))


def test_the_tokenizers_of_the_base_never_hear_of_the_word(base):
    before = [tokenizer("a <x> b").input_ids for tokenizer in base.tokenizers]
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        inside = [tokenizer("a <x> b").input_ids for tokenizer in words.components.tokenizers]
        assert all(len(new) < len(old) for new, old in zip(inside, before, strict=True))
        assert before == [tokenizer("a <x> b").input_ids for tokenizer in base.tokenizers]
    assert base.expansions == {}


@pytest.mark.parametrize(
    "text", ["<x>", "a <x>.", "a <x>, b", '"<x>"', "a <x> <x>", "a <x><x>", "(<x>)", "the <x>'s house", "A<x>b"]
)
def test_the_word_is_found_wherever_it_is_written(base, text):
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        tokenizer = words.components.tokenizers[0]
        ids = tokenizer(text, add_special_tokens=False).input_ids
        assert ids.count(len(base.tokenizers[0])) == text.count("<x>")


@pytest.mark.parametrize(("text", "times"), [("sks", 1), ("a sks.", 1), ("sks, sks", 2), ("sksa asks s ks", 0)])
def test_a_bare_word_is_found_as_a_word(base, text, times):
    with new_words(base, "sks", single_rows(base, "fox")) as words:
        ids = words.components.tokenizers[0](text, add_special_tokens=False).input_ids
        assert ids.count(len(base.tokenizers[0])) == times


def test_a_word_whose_vectors_would_be_anothers_is_refused_by_name(base):
    with new_words(base, "<x>_1", single_rows(base, "fox")) as words:
        with pytest.raises(ConceptError, match=r"'<x>' is already a word of .*'<x>_1'"):
            check_token(words.components, "<x>", vectors=2)
        check_token(words.components, "<x>", vectors=1)


@pytest.mark.parametrize("token", ["a b", "a\tb", "a\nb", "<x>]", "{x}", "a\\b", "<a:b>", " "])
def test_prompt_syntax_in_a_token_is_refused_with_the_token(base, token):
    with pytest.raises(ConceptError) as error:
        check_token(base, token)
    assert repr(token) in error.value.message and "<my-fox>" in error.value.hint


@pytest.mark.parametrize("token", ["<狐>", "<über-fox>", "my-fox", "sks1", "<MyFox>"])
def test_unusual_words_can_be_taught(base, token):
    with new_words(base, token, single_rows(base, "fox")) as words:
        got = encode_prompts(words.components, [f"a {token} on a table"])[0].context
    torch.testing.assert_close(got, encode_prompts(base, ["a fox on a table"])[0].context)


def test_attached_words_can_be_the_start_of_others(base):
    rows = tuple(row + 0.5 for row in single_rows(base, "fox"))
    with new_words(base, "<x>", rows) as words:
        start = single_rows(words.components, "<x>")
        assert all(torch.equal(a, b) for a, b in zip(start, rows, strict=True))
        several = embed_ids(base.text_encoders[0], [0, len(base.tokenizers[0])])
        assert torch.equal(several[1:], rows[0]) and not several.requires_grad


def test_leaving_puts_the_very_same_modules_back(base):
    tables = [encoder.get_input_embeddings() for encoder in base.text_encoders]
    ends = [
        encoder.text_model.eos_token_id if hasattr(encoder, "text_model") else None for encoder in base.text_encoders
    ]
    with (
        new_words(base, "<x>", single_rows(base, "fox")) as words,
        new_words(words.components, "<y>", single_rows(base, "cat")),
    ):
        assert all(
            encoder.get_input_embeddings() is not t for encoder, t in zip(base.text_encoders, tables, strict=True)
        )
    assert all(encoder.get_input_embeddings() is t for encoder, t in zip(base.text_encoders, tables, strict=True))
    assert ends == [
        encoder.text_model.eos_token_id if hasattr(encoder, "text_model") else None for encoder in base.text_encoders
    ]


def test_rows_that_fit_one_encoder_of_two_are_refused_before_either_is_changed():
    base = tiny.sdxl()
    before = tiny.snapshot(base)
    with (
        pytest.raises(ConceptError, match=r"\[32, 32\] numbers, tiny-xl needs \[32, 48\]"),
        new_words(base, "<x>", [torch.zeros(1, 32), torch.zeros(1, 32)]),
    ):
        pass
    assert tiny.same(before, base)
