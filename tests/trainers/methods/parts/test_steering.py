"""The steering loss and the focal sampling of timesteps, in closed form and against the authors' mathematics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from pipelines.concepts.token_embeddings import new_words, single_rows
from pipelines.errors import ConfigError
from pipelines.models.families.clip import caption_ids
from pipelines.models.loading import from_pipeline
from tests import tiny
from trainers.methods.parts.steering import bases, focal_timesteps, listed, steering_loss


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# -- the loss ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("positives", "negatives"), [(8, 4), (1, 1), (3, 40)])
def test_at_equal_similarities_it_is_the_logarithm_of_the_ratio(positives, negatives):
    row = torch.eye(5)[0]
    alike = F.normalize(torch.tensor([1.0, 1.0, 0, 0, 0]), dim=0)
    loss = steering_loss(row, alike.expand(positives, 5), 3 * alike.expand(negatives, 5), 0.07)
    assert float(loss) == pytest.approx(math.log((positives + negatives) / positives), rel=1e-5)


def test_a_plane_worked_out_by_hand():
    """r along x; one positive at 60 degrees, one negative at 90: cosines 0.5 and 0."""
    positive = torch.tensor([[0.5, math.sqrt(3) / 2]])
    loss = steering_loss(torch.tensor([2.0, 0.0]), positive, torch.tensor([[0.0, 7.0]]), 0.5)
    assert float(loss) == pytest.approx(-math.log(math.e / (math.e + 1)), rel=1e-5)


def test_sums_stand_inside_the_logarithm():
    """One near positive among far ones is enough; a mean of separate terms would punish the far ones."""
    row, near, far = torch.eye(3)
    negatives = far[None]
    one = steering_loss(row, near[None] * 0 + row[None], negatives, 0.1)
    with_far = steering_loss(row, torch.stack((row, near)), negatives, 0.1)
    assert float(with_far) <= float(one) + 1e-6


def authors(row, positives, negatives, temperature):
    """The authors' arithmetic: exponentials of logits, positives over all, logarithm of the quotient."""
    unit = F.normalize(row, dim=-1)
    toward = torch.exp(F.normalize(positives, dim=-1) @ unit / temperature).sum()
    away = torch.exp(F.normalize(negatives, dim=-1) @ unit / temperature).sum()
    return -torch.log(toward / (toward + away))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 30), st.floats(0.05, 1.0))
def test_it_equals_the_authors_arithmetic(seed, positives, negatives, temperature):
    generator = seeded(seed)
    row, p, n = (torch.randn(*shape, 16, generator=generator).double() for shape in ((), (positives,), (negatives,)))
    assert float(steering_loss(row, p, n, temperature)) == pytest.approx(
        float(authors(row, p, n, temperature)), rel=1e-6, abs=1e-9
    )


def test_scale_of_the_word_does_not_matter():
    generator = seeded(1)
    row, p, n = torch.randn(6, generator=generator), torch.randn(4, 6), torch.randn(5, 6)
    assert float(steering_loss(row, p, n, 0.07)) == pytest.approx(float(steering_loss(9 * row, p, n, 0.07)), rel=1e-4)


def test_gradient_steps_bring_it_to_positives_and_away_from_negatives():
    generator = seeded(2)
    row = torch.randn(16, generator=generator).requires_grad_()
    p, n = torch.randn(4, 16, generator=generator), torch.randn(6, 16, generator=generator)
    units = F.normalize(p, dim=-1), F.normalize(n, dim=-1)

    def near():
        unit = F.normalize(row.detach(), dim=-1)
        return float((units[0] @ unit).max()), float((units[1] @ unit).mean())

    before = near()
    for _ in range(50):
        (gradient,) = torch.autograd.grad(steering_loss(row, p, n, 0.07), row)
        with torch.no_grad():
            row -= 0.05 * gradient
    after = near()
    assert after[0] > before[0] and after[1] < before[1]


def test_without_negatives_it_is_nothing():
    assert float(steering_loss(torch.ones(4), torch.ones(2, 4), torch.zeros(0, 4), 0.07)) == 0.0


def test_every_vector_of_a_word_counts_alike():
    generator = seeded(3)
    rows, p, n = torch.randn(3, 8, generator=generator), torch.randn(2, 8), torch.randn(2, 8)
    each = torch.stack([steering_loss(row, p, n, 0.07) for row in rows])
    assert float(steering_loss(rows, p, n, 0.07)) == pytest.approx(float(each.mean()), rel=1e-5)


# -- timesteps --------------------------------------------------------------------------------------------------


def test_timesteps_follow_the_density():
    drawn = focal_timesteps(100_000, 1000, 0.5, seeded()).numpy()
    density = 1 - 0.5 * torch.cos(torch.pi * torch.arange(1000).double() / 1000)
    expected = (density / density.sum()).reshape(50, 20).sum(1).numpy() * len(drawn)
    seen = torch.bincount(torch.from_numpy(drawn), minlength=1000).reshape(50, 20).sum(1).numpy()
    assert stats.chisquare(seen, expected).pvalue > 1e-3
    assert (drawn >= 500).mean() == pytest.approx(0.659, abs=0.006)
    assert drawn.mean() == pytest.approx(600.9, abs=3)


def test_alpha_zero_is_uniform_and_one_never_draws_the_clean_end():
    even = focal_timesteps(100_000, 1000, 0.0, seeded())
    assert stats.chisquare(torch.bincount(even, minlength=1000).reshape(50, 20).sum(1).numpy()).pvalue > 1e-3
    assert int(focal_timesteps(20_000, 1000, 1.0, seeded()).min()) > 0


def test_the_same_generator_gives_the_same_timesteps_whatever_the_global_state():
    torch.manual_seed(1)
    first = focal_timesteps(16, 1000, 0.5, seeded(7))
    torch.manual_seed(2)
    assert torch.equal(first, focal_timesteps(16, 1000, 0.5, seeded(7)))


# -- words ------------------------------------------------------------------------------------------------------


def test_the_lists_are_those_of_the_paper():
    assert len(listed("prepositions")) == 56
    assert len(listed("stop_words")) == 127
    assert len(set(listed("prepositions")) & set(listed("stop_words"))) == 23


def negatives_of(base, caption):
    """Words among the negatives of a caption."""
    (basis,) = bases(base, ())
    with new_words(base, "<r>", single_rows(base, "of")) as words:
        ids = caption_ids(words.components, 0, [caption])
    rows = basis.negatives(ids)
    table = basis.table
    return sorted(
        base.tokenizers[0].convert_ids_to_tokens(int((table == row).all(1).nonzero()[0])).removesuffix("</w>")
        for row in rows
    )


def test_negatives_are_the_content_words_alone():
    assert negatives_of(tiny.sd(), "a fox <r> a house, on a yellow background!") == [
        "background",
        "fox",
        "house",
        "yellow",
    ]


def test_padding_is_no_negative_where_the_pad_token_is_another():
    """Stable Diffusion 2.x pads with an exclamation mark; the authors' code makes some seventy negatives of it."""
    base = tiny.frozen(from_pipeline(tiny.sd_pipeline(dim=1024), "tiny"))
    assert base.tokenizers[0].pad_token == "!"
    assert negatives_of(base, "a fox <r> a house") == ["fox", "house"]


def test_the_basis_holds_prepositions_of_one_token_and_gets_no_gradient():
    (basis,) = bases(tiny.sd(), ())
    assert set(basis.words) <= set(listed("prepositions")) and {"above", "below", "of", "under"} <= set(basis.words)
    assert not basis.rows.requires_grad and not basis.table.requires_grad


def test_both_text_encoders_of_sdxl_have_their_own_basis():
    one, other = bases(tiny.sdxl(), ())
    assert one.rows.shape[1] == 32 and other.rows.shape[1] == 48


def test_a_positive_word_of_several_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"'athwart' is \d tokens"):
        bases(tiny.sd(), ("above", "athwart"))


def test_a_basis_of_one_word_is_refused():
    with pytest.raises(ConfigError, match="2 are the least"):
        bases(tiny.sd(), ("above",))
