from __future__ import annotations

import pytest
import torch

from pipelines.concepts.concept import Concept, ConceptCard
from pipelines.concepts.token_embeddings import check_token, new_words, single_rows
from pipelines.errors import ConceptError
from pipelines.models.families.clip import encode_prompts
from tests import tiny


@pytest.fixture(scope="module", params=[tiny.sd, tiny.sdxl], ids=["sd", "sdxl"])
def base(request):
    return request.param()


def test_a_word_that_starts_as_another_encodes_as_that_other(base):
    expected = encode_prompts(base, ["a photo of a fox on a table"])[0]
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        got = encode_prompts(words.components, ["a photo of a <x> on a table"])[0]
    torch.testing.assert_close(got.context, expected.context)
    if expected.pooled is not None:
        torch.testing.assert_close(got.pooled, expected.pooled)


def test_the_pooled_vector_is_read_at_the_end_even_with_old_configurations():
    base = tiny.sdxl()
    encoder = base.text_encoders[1].text_model
    expected = encode_prompts(base, ["a fox above a house"])[0].pooled
    was = encoder.eos_token_id
    encoder.eos_token_id = 2  # as in Stable Diffusion 1.x: pools at the largest id, which a new word would be
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        torch.testing.assert_close(encode_prompts(words.components, ["a <x> above a house"])[0].pooled, expected)
    assert encoder.eos_token_id == 2
    encoder.eos_token_id = was


def test_words_stack_and_leave_in_any_order(base):
    before = tiny.snapshot(base)
    with new_words(base, "<x>", single_rows(base, "fox")) as first:
        with new_words(first.components, "<y>", single_rows(base, "cat")) as second:
            both = encode_prompts(second.components, ["a <x> and a <y>"])[0].context
        torch.testing.assert_close(both, encode_prompts(base, ["a fox and a cat"])[0].context)
    assert tiny.same(before, base)


def test_gradients_reach_the_new_rows_alone(base):
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        encode_prompts(words.components, ["a <x>"])[0].context.square().sum().backward()
        assert words.rows[0].grad is not None and words.rows[0].grad.abs().sum() > 0
    assert all(p.grad is None for module in base.modules() for p in module.parameters())


def test_bare_words_do_not_match_inside_others(base):
    with new_words(base, "sks", single_rows(base, "fox")) as words:
        tokenizer = words.components.tokenizers[0]
        new = len(base.tokenizers[0])
        assert new in tokenizer("a sks").input_ids
        assert new not in tokenizer("a basks").input_ids


def test_case_matters(base):
    with new_words(base, "<R>", single_rows(base, "fox")) as words:
        tokenizer = words.components.tokenizers[0]
        assert len(base.tokenizers[0]) in tokenizer("a <R>").input_ids
        assert len(base.tokenizers[0]) not in tokenizer("a <r>").input_ids


@pytest.mark.parametrize("token", ["", "two words", "fox", "(x)", "a:1", "a,b", "Fox"])
def test_unusable_tokens_are_refused_with_the_next_step(base, token):
    with pytest.raises(ConceptError, match="<my-fox>"):
        check_token(base, token)


def test_a_token_that_is_attached_already_is_refused(base):
    with (
        new_words(base, "<x>", single_rows(base, "fox")) as words,
        pytest.raises(ConceptError, match="already a word"),
        new_words(words.components, "<x>", single_rows(base, "cat")),
    ):
        pass


def test_an_initializer_of_several_tokens_is_refused_and_shown(base):
    with pytest.raises(ConceptError, match=r"'xylophone' is \d+ tokens"):
        single_rows(base, "xylophone")


def test_rows_of_another_width_are_refused(base):
    with (
        pytest.raises(ConceptError, match="another model family"),
        new_words(base, "<x>", [torch.zeros(1, 7)] * len(base.text_encoders)),
    ):
        pass


def test_strength_zero_is_the_initializer_and_one_the_concept(base):
    rows = tuple(row + 1 for row in single_rows(base, "fox"))
    concept = Concept(ConceptCard(token="<x>", init="fox", family=base.family.name), rows)
    fox = encode_prompts(base, ["a fox"])[0].context

    def encoded(strength):
        with concept.attach(base, strength) as taught:
            return encode_prompts(taught, ["a <x>"])[0].context

    torch.testing.assert_close(encoded(0.0), fox)
    assert not torch.allclose(encoded(1.0), fox)
    assert not torch.allclose(encoded(0.5), encoded(1.0))


def test_attaching_leaves_no_residue_also_after_an_error(base):
    concept = Concept(ConceptCard(token="<x>", family=base.family.name), single_rows(base, "fox"))
    before = tiny.snapshot(base)
    with pytest.raises(RuntimeError, match="on purpose"), concept.attach(base):
        raise RuntimeError("on purpose")
    assert tiny.same(before, base)
