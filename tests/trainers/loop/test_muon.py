"""Muon and the schedules, against closed forms: singular values, first steps, pieces of lines."""

from __future__ import annotations

import pytest
import torch

from trainers.loop.loop import step_generator
from trainers.loop.muon import Muon, orthogonal
from trainers.loop.schedule import warm_stable_decay


def matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quintic(values, rounds=5):
    """Muon's polynomial on single numbers; on a matrix it acts on the singular values alone."""
    for _ in range(rounds):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


SHAPES = [(4, 4), (3, 17), (17, 3), (1, 6), (6, 1), (32, 20)]


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_vectors_stay_and_singular_values_go_through_the_polynomial(shape):
    given = matrix(*shape)
    u, values, vh = torch.linalg.svd(given.double(), full_matrices=False)
    expected = u @ torch.diag(quintic(values / values.norm())) @ vh
    torch.testing.assert_close(orthogonal(given), expected.float(), atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_that_are_not_tiny_end_near_one(shape):
    u, _, vh = torch.linalg.svd(matrix(*shape), full_matrices=False)
    spread = torch.linspace(1, 0.1, min(shape))
    after = torch.linalg.svdvals(orthogonal(u @ torch.diag(spread) @ vh))
    assert float(after.min()) > 0.65 and float(after.max()) < 1.25


@pytest.mark.parametrize("factor", [1e-4, 0.5, 1e5])
def test_the_size_of_a_gradient_does_not_matter_only_its_direction(factor):
    torch.testing.assert_close(orthogonal(factor * matrix(5, 9)), orthogonal(matrix(5, 9)), atol=1e-3, rtol=1e-2)


def test_turning_a_matrix_on_its_side_turns_the_result():
    torch.testing.assert_close(orthogonal(matrix(5, 9).T), orthogonal(matrix(5, 9)).T, atol=1e-5, rtol=1e-4)


def test_rotations_pass_through():
    turn = torch.linalg.qr(matrix(6, 6, seed=3))[0]
    torch.testing.assert_close(orthogonal(turn @ matrix(6, 9)), turn @ orthogonal(matrix(6, 9)), atol=1e-4, rtol=1e-3)


def test_no_gradient_at_all_moves_nothing_and_is_no_division_by_zero():
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))
    weight = torch.nn.Parameter(matrix(3, 4))
    before = weight.detach().clone()
    optimizer = Muon([weight], 0.1, weight_decay=0.0)
    optimizer.step()  # no gradient yet
    assert torch.equal(weight, before) and not optimizer.state[weight]
    weight.grad = torch.zeros(3, 4)
    optimizer.step()
    assert torch.equal(weight, before)


@pytest.mark.parametrize("shape", [(6, 8), (8, 3, 3, 3), (4, 4, 1, 1)])
def test_the_first_step_is_the_closed_form(shape):
    weight, gradient, rate, decay = torch.nn.Parameter(matrix(*shape)), matrix(*shape, seed=1), 0.03, 0.2
    # The running gradient starts at nothing, so the first one ahead of it is a multiple of the gradient itself.
    rows, columns = shape[0], gradient.numel() // shape[0]
    step = rate * 0.2 * max(rows, columns) ** 0.5 * orthogonal(gradient.flatten(1)).view(shape)
    expected = weight.detach() * (1 - rate * decay) - step
    weight.grad = gradient.clone()
    Muon([weight], rate, weight_decay=decay).step()
    torch.testing.assert_close(weight.detach(), expected, atol=1e-4, rtol=1e-3)


def test_the_second_step_looks_ahead_along_the_running_gradient():
    weight, first, second = torch.nn.Parameter(torch.zeros(5, 7)), matrix(5, 7, seed=1), matrix(5, 7, seed=2)
    optimizer = Muon([weight], 0.1, momentum=0.9, weight_decay=0.0)
    weight.grad = first.clone()
    optimizer.step()
    between = weight.detach().clone()
    weight.grad = second.clone()
    optimizer.step()
    running = 0.9 * (0.1 * first) + 0.1 * second
    ahead = 0.1 * second + 0.9 * running  # Nesterov
    expected = between - 0.1 * 0.2 * 7**0.5 * orthogonal(ahead)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(16, 16), (8, 64), (96, 12), (32, 8, 3, 3)])
def test_a_step_is_as_large_as_one_of_adamw_whatever_the_shape(shape):
    """arXiv:2502.16982: a root mean square of 0.2 of the rate; the polynomial leaves it within a fifth or so."""
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = matrix(*shape)
    Muon([weight], 1e-2, weight_decay=0.0).step()
    assert float(weight.detach().square().mean().sqrt()) / 1e-2 == pytest.approx(0.2, rel=0.25)


def test_a_resumed_optimizer_goes_on_bit_for_bit():
    def steps(weight, optimizer, which):
        for k in which:
            weight.grad = matrix(4, 6, seed=k)
            optimizer.step()

    whole = torch.nn.Parameter(torch.zeros(4, 6))
    steps(whole, Muon([whole], 0.05), range(6))
    half = torch.nn.Parameter(torch.zeros(4, 6))
    kept = Muon([half], 0.05)
    steps(half, kept, range(3))
    again = torch.nn.Parameter(half.detach().clone())
    resumed = Muon([again], 0.9)  # the rate that was kept counts
    resumed.load_state_dict(kept.state_dict())
    steps(again, resumed, range(3, 6))
    assert torch.equal(again, whole)


# -- schedules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 60, 333, 1000, 6000])
@pytest.mark.parametrize(("warm", "decay"), [(100, 0.3), (20, 0.9), (1, 0.0), (0, 1.0)])
def test_the_rate_rises_stays_and_falls_and_never_leaves_its_range(steps, warm, decay):
    factors = [warm_stable_decay(step, steps, warm, decay) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors), "no step is wasted"
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert warm_stable_decay(steps, steps, warm, decay) == (0 if decay else 1), "without decay it stays"
    if steps >= 1000 and decay <= 0.3:
        assert max(factors) == 1.0


def test_the_pieces_of_the_schedule_are_straight_lines():
    rate = [warm_stable_decay(step, 500, 50, 0.2) for step in range(501)]
    assert rate[:50] == pytest.approx([(k + 1) / 50 for k in range(50)])
    assert rate[50:401] == [1.0] * 351
    assert rate[400:] == pytest.approx([1 - k / 100 for k in range(101)])


def test_no_two_steps_of_any_two_seeds_draw_the_same():
    seeds = [step_generator(seed, step).initial_seed() for seed in range(12) for step in range(3000)]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
def test_every_seed_the_settings_allow_gives_a_generator(seed):
    draws = [float(torch.rand((), generator=step_generator(seed, step))) for step in (0, 1, 999_999)]
    assert len(set(draws)) == 3
