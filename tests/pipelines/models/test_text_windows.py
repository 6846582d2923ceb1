"""Prompts as trees of weights, their windows, and their gradients, against independent computations."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.models.families.clip import encode_prompts
from pipelines.models.text import parse_weights
from tests import tiny

LIMIT = 75  # tokens of a window between start and end


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def lifted(make):
    """A base whose text encoders' outputs do not add up to nothing, as those of untrained ones nearly do."""
    base = make()
    with torch.no_grad():
        for encoder in base.text_encoders:
            for name, module in encoder.named_modules():
                if name.endswith("final_layer_norm"):
                    module.bias.add_(0.3)
    return base


# -- weights ------------------------------------------------------------------------------------------------------

WORDS = st.text(alphabet="abc ,.é狐", min_size=1, max_size=4)
FACTORS = st.sampled_from(["0", "0.5", "1.25", "2", ".75", "+1.5", "-1"])
TREES = st.recursive(
    WORDS,
    lambda inner: st.lists(
        st.one_of(
            inner,
            st.tuples(st.just("round"), st.lists(inner, max_size=3)),
            st.tuples(st.just("square"), st.lists(inner, max_size=3)),
            st.tuples(FACTORS, st.lists(inner, max_size=3)),
        ),
        max_size=4,
    ),
    max_leaves=12,
)


def written(tree):
    """The prompt a tree stands for."""
    if isinstance(tree, str):
        return tree
    if isinstance(tree, list):
        return "".join(map(written, tree))
    kind, inner = tree
    text = written(inner)
    return {"round": f"({text})", "square": f"[{text}]"}.get(kind, f"({text}:{kind})")


def letters(tree, weight=1.0):
    """Each character of a tree with the product of the factors around it."""
    if isinstance(tree, str):
        return [(character, weight) for character in tree]
    if isinstance(tree, list):
        return [pair for part in tree for pair in letters(part, weight)]
    kind, inner = tree
    factor = {"round": 1.1, "square": 1 / 1.1}.get(kind)
    return letters(inner, weight * (float(kind) if factor is None else factor))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(TREES)
def test_every_letter_weighs_the_product_of_the_brackets_around_it(tree):
    parsed = [(c, weight) for text, weight in parse_weights(written(tree)) for c in text]
    expected = letters(tree)
    assert [c for c, _ in parsed] == [c for c, _ in expected]
    assert [weight for _, weight in parsed] == pytest.approx([weight for _, weight in expected])


@given(st.text(alphabet="ab()[]\\:. 12", max_size=20))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_text_can_be_said_literally_with_backslashes(text):
    escaped = "".join(f"\\{c}" if c in "()[]\\" else c for c in text)
    assert parse_weights(escaped) == [(text, 1.0)]


def test_neighbours_of_equal_weight_are_one_fragment_so_that_words_are_not_torn():
    # Fragments are tokenized one by one: "hou" and "se" would be other tokens than "house".
    assert parse_weights("(hou)(se)") == [("house", pytest.approx(1.1))]
    assert parse_weights("hou(se:1)") == [("house", 1.0)]


@pytest.mark.parametrize("prompt", ["(:1.3)", "()", "[]", "((", "a () b", "(()[])"])
def test_brackets_around_nothing_leave_the_encoding_alone(base, prompt):
    bare = "".join(c for c in prompt if c in "ab ")
    assert torch.equal(encode_prompts(base, [prompt])[0].context, encode_prompts(base, [bare])[0].context)


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
def test_a_weight_is_felt_relative_to_the_other_words_in_every_encoder(make):
    base = lifted(make)
    plain, heavy = (encode_prompts(base, [text])[0].context[0] for text in ("a red fox", "a (red:1.5) fox"))
    start = 0
    for encoder in base.text_encoders:
        part = slice(start, start + encoder.config.hidden_size)
        ratio = heavy[:, part] / plain[:, part]
        common = ratio[0].median()
        torch.testing.assert_close(ratio[2], (1.5 * common).expand_as(ratio[2]), atol=0, rtol=1e-3)
        torch.testing.assert_close(ratio[3:], common.expand_as(ratio[3:]), atol=0, rtol=1e-3)
        start = part.stop


def test_weights_do_not_touch_the_pooled_vector_of_xl():
    base = tiny.sdxl()
    plain, heavy = encode_prompts(base, ["a red fox", "a (red:1.5) fox"])
    assert torch.equal(plain.pooled, heavy.pooled) and not torch.equal(plain.context, heavy.context)


def test_xl_pools_the_first_window_of_a_long_prompt():
    base = tiny.sdxl()
    start = " ".join(["fox"] * LIMIT)
    long, short = (encode_prompts(base, [text])[0] for text in (start + " house cat", start))
    assert long.context.shape[1] == 2 * short.context.shape[1]
    torch.testing.assert_close(long.pooled, short.pooled)


# -- windows ------------------------------------------------------------------------------------------------------


class Read:
    """Records the token ids that a text encoder is really given, without start, end and padding."""

    def __init__(self, base):
        self.tokenizer, self.encoder = base.tokenizers[0], base.text_encoders[0]

    def __call__(self, components, prompt):
        seen = []
        hook = self.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        try:
            encode_prompts(components, [prompt])
        finally:
            hook.remove()
        rows = torch.cat(seen).tolist()
        assert all(row[0] == self.tokenizer.bos_token_id and len(row) == LIMIT + 2 for row in rows)
        return [row[1 : row.index(self.tokenizer.eos_token_id)] for row in rows]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.booleans())
def test_windows_hold_the_whole_prompt_and_are_cut_behind_a_near_comma(runs, weighted):
    base = tiny_base()
    prompt = ", ".join(" ".join(["fox"] * run) for run in runs)
    windows = Read(base)(base, f"({prompt}:1.2)" if weighted else prompt)
    ids = base.tokenizers[0](prompt, add_special_tokens=False).input_ids
    assert [token for window in windows for token in window] == ids
    comma = base.tokenizers[0].convert_tokens_to_ids(",</w>")
    assert len(windows[-1]) <= LIMIT
    place = 0
    for window in windows[:-1]:
        reach = ids[place : place + LIMIT]
        commas = [i + 1 for i, token in enumerate(reach) if token == comma and i + 1 > LIMIT - 20]
        assert len(window) == (commas[-1] if commas else LIMIT)
        place += len(window)


_KEPT = []


def tiny_base():
    """One base for all examples of a property, which cannot use fixtures of narrower scope."""
    if not _KEPT:
        _KEPT.append(tiny.sd())
    return _KEPT[0]


@pytest.mark.parametrize("before", [73, 74, 75, 100])
def test_all_vectors_of_a_word_are_read_also_across_a_cut(base, before):
    rows = [row.expand(4, -1) for row in single_rows(base, "house")]
    with new_words(base, "<x>", rows) as words:
        windows = Read(base)(words.components, " ".join(["fox"] * before) + " <x> cat")
    joined = [token for window in windows for token in window]
    first = len(base.tokenizers[0])
    assert joined[before : before + 4] == [first, first + 1, first + 2, first + 3]
    assert len(joined) == before + 5 and len(windows) == 2


def test_prompts_encoded_together_are_those_encoded_alone(base):
    prompts = ["a fox", "a (red:1.3) house", "", "two cats"]
    together = encode_prompts(base, prompts)
    for prompt, encoded in zip(prompts, together, strict=True):
        assert torch.equal(encoded.context, encode_prompts(base, [prompt])[0].context)


def test_a_short_prompt_beside_a_long_one_is_followed_by_the_empty_text(base):
    short = encode_prompts(base, ["a fox", " ".join(["cat"] * 80)])[0].context
    alone, empty = (encode_prompts(base, [text])[0].context for text in ("a fox", ""))
    torch.testing.assert_close(short, torch.cat([alone, empty], 1))


@pytest.mark.parametrize("make", [tiny.sd, tiny.sdxl])
@pytest.mark.parametrize("prompt", ["a <x>", "a (<x>:1.3)", " ".join(["fox"] * 74) + " <x>"])
def test_the_gradient_of_a_new_word_is_that_of_finite_differences(make, prompt):
    base = lifted(make).to("cpu", torch.float64)
    with new_words(base, "<x>", single_rows(base, "fox")) as words:
        # The parameter is float32; the slope is taken over a step wide enough for it.
        row = words.rows[-1]
        direction = torch.sin(torch.arange(row.numel(), dtype=torch.float32)).reshape(row.shape)
        probe = torch.cos(torch.arange(encode_prompts(words.components, [prompt])[0].context.numel()))

        def loss():
            return (encode_prompts(words.components, [prompt])[0].context.flatten() * probe).sum()

        loss().backward()
        assert row.grad is not None
        slope = float((row.grad * direction).sum())
        start, width = row.detach().clone(), 2**-10
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                row.copy_(start + sign * width * direction)
                values.append(float(loss()))
    assert slope == pytest.approx((values[0] - values[1]) / (2 * width), rel=0.02, abs=1e-3)
