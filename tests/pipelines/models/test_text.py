from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.models.families.clip import encode_prompts
from pipelines.models.text import lacks_a_side, parse_weights
from tests import tiny


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


@pytest.mark.parametrize(
    ("prompt", "fragments"),
    [
        ("", [("", 1.0)]),
        ("a fox", [("a fox", 1.0)]),
        ("a (fox)", [("a ", 1.0), ("fox", 1.1)]),
        ("((fox))", [("fox", 1.1 * 1.1)]),
        ("[fox]", [("fox", 1 / 1.1)]),
        ("a (red:1.5) fox", [("a ", 1.0), ("red", 1.5), (" fox", 1.0)]),
        ("(a (red:2) fox:0.5)", [("a ", 0.5), ("red", 1.0), (" fox", 0.5)]),
        (r"\(fox\)", [("(fox)", 1.0)]),
        ("(fox", [("fox", 1.1)]),
        ("fox)", [("fox)", 1.0)]),
        ("at 10:30", [("at 10:30", 1.0)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
    ],
)
def test_weights_follow_the_known_syntax(prompt, fragments):
    parsed = parse_weights(prompt)
    assert [text for text, _ in parsed] == [text for text, _ in fragments]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in fragments])


@given(st.text(alphabet=st.sampled_from("ab ()[]\\:.15"), max_size=30))
def test_parsing_never_fails_and_never_invents_text(prompt):
    parsed = parse_weights(prompt)
    joined = "".join(text for text, _ in parsed)
    letters = [c for c in joined if c in "ab"]
    assert letters == [c for c in prompt if c in "ab"]


def test_a_plain_prompt_is_encoded_as_the_text_encoder_alone_does(base):
    tokenizer, encoder = base.tokenizers[0], base.text_encoders[0]
    ids = tokenizer("a fox", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(encode_prompts(base, ["a fox"])[0].context, encoder(ids)[0])


def test_prompts_longer_than_the_window_are_used_whole(base):
    long = ", ".join(["a fox to the left of a house"] * 12)
    more = encode_prompts(base, [long, long + ", a cat"])
    assert more[0].context.shape[1] == more[1].context.shape[1] == 2 * 77
    assert not torch.equal(more[0].context, more[1].context)


def test_a_short_negative_prompt_is_padded_to_the_length_of_a_long_prompt(base):
    long, short = encode_prompts(base, ["fox " * 100, ""])
    assert long.context.shape == short.context.shape


def test_long_prompts_are_cut_at_a_comma(base):
    from pipelines.models.families.clip import _chunks

    words = "fox " * 65 + ", " + "cat " * 30
    chunks = _chunks(base, 0, [(words, 1.0)])
    assert [len(ids) for ids, _ in chunks] == [66, 30]


def test_weights_change_only_their_words_up_to_the_restored_mean(base):
    plain = encode_prompts(base, ["a red fox"])[0].context[0]
    weighted = encode_prompts(base, ["a (red:1.5) fox"])[0].context[0]
    torch.testing.assert_close(weighted.mean(), plain.mean(), atol=1e-4, rtol=1e-3)
    ratio = weighted / plain
    others = [i for i in range(77) if i != 2]
    torch.testing.assert_close(ratio[others], ratio[0, 0].expand(76, 32), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ratio[2], 1.5 * ratio[0], atol=1e-3, rtol=1e-3)


def test_a_weight_in_one_window_leaves_the_others_alone(base):
    start, end = "fox " * 75, "cat " * 20
    plain, weighted = (encode_prompts(base, [text])[0].context[0] for text in (start + end, f"({start}:1.4){end}"))
    assert torch.equal(plain[77:], weighted[77:])
    assert not torch.equal(plain[:77], weighted[:77])


def test_weight_one_changes_nothing(base):
    assert torch.equal(encode_prompts(base, ["a (fox:1.0)"])[0].context, encode_prompts(base, ["a fox"])[0].context)


def test_a_word_of_several_vectors_takes_their_place_in_the_prompt(base):
    rows = [row.expand(3, -1) + torch.arange(3)[:, None] for row in single_rows(base, "fox")]
    with new_words(base, "<x>", rows) as words:
        from pipelines.models.families.clip import _chunks

        ((ids, weights),) = _chunks(words.components, 0, parse_weights("a (<x>:1.2) b"))
        first = len(base.tokenizers[0])
        assert ids[1:4] == [first, first + 1, first + 2]
        assert weights == [1.0, 1.2, 1.2, 1.2, 1.0]


def test_xl_gives_both_encoders_side_by_side_and_the_pooled_vector():
    encoded = encode_prompts(tiny.sdxl(), ["a fox"])[0]
    assert encoded.context.shape == (1, 77, 80)
    assert encoded.pooled is not None and encoded.pooled.shape == (1, 32)


@pytest.mark.parametrize(
    ("prompt", "lacks"),
    [
        ("a cat <r> a box", False),
        ("cat <r> box", False),
        ("a <my-fox> <r> (a box:1.2) on a blue background", False),
        ("a photo of <r> a box", True),
        ("<r> a box", True),
        ("a cat <r>", True),
        ("a cat <r> the", True),
        ("a cat <r> a box <r>", True),
        ("a cat and a box", False),
    ],
)
def test_a_relation_with_nothing_on_one_side_is_noticed(prompt, lacks):
    assert lacks_a_side(prompt, "<r>") is lacks
