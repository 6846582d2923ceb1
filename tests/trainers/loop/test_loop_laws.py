"""The loop: what is reported, clipped, scaled, refused."""

from __future__ import annotations

import pytest
import torch

from pipelines.errors import Cancelled, ConfigError
from pipelines.events import StepDone
from trainers.loop.loop import optimise
from trainers.loop.schedule import Schedule


def descent(rate=1.0, size=2):
    weight = torch.nn.Parameter(torch.zeros(size))
    return weight, torch.optim.SGD([weight], rate)


def reports(losses, pace, optimizer, **more):
    events = []
    optimise(losses, [optimizer], pace, on_event=events.append, **more)
    return [event for event in events if isinstance(event, StepDone)]


def test_a_report_is_the_mean_since_the_last_one():
    weight, optimizer = descent(0.0)
    said = reports(lambda index, _: {"index": weight.sum() * 0 + index}, Schedule(7, report=3), optimizer)
    # Steps 0 1 2, then 3 4 5, then the last one by itself.
    assert [(event.step, event.terms["index"]) for event in said] == [(3, 1.0), (6, 4.0), (7, 6.0)]
    assert all(event.steps == 7 and event.seconds >= 0 for event in said)


def test_a_report_is_the_mean_over_accumulated_batches_too():
    weight, optimizer = descent(0.0)
    said = reports(lambda index, _: {"index": weight.sum() * 0 + index}, Schedule(2, accumulate=4, report=1), optimizer)
    assert [event.terms["index"] for event in said] == [1.5, 5.5]


def test_a_term_that_is_sometimes_there_counts_as_nothing_where_it_is_not():
    weight, optimizer = descent(0.0)

    def losses(index, generator):
        return {"always": weight.sum() + 2} | ({"rare": weight.sum() + 6} if index == 1 else {})

    (said,) = reports(losses, Schedule(3, report=3), optimizer)
    assert said.terms == {"always": 2.0, "rare": 2.0}


def test_figures_of_the_caller_join_the_losses_in_the_report():
    weight, optimizer = descent()
    said = reports(
        lambda *_: {"a": weight.sum()}, Schedule(2, report=1), optimizer, after_step=lambda done: {"done": done}
    )
    assert [event.terms["done"] for event in said] == [1, 2]


@pytest.mark.parametrize(("clip", "moved"), [(None, 5.0), (100.0, 5.0), (1.0, 1.0), (0.25, 0.25)])
def test_the_gradient_is_clipped_by_its_norm_over_all_parameters(clip, moved):
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD([weight], 1.0) for weight in weights]
    # The gradient is (3, 4), spread over two optimizers: its norm is 5.
    optimise(lambda *_: {"a": 3 * weights[0].sum() + 4 * weights[1].sum()}, optimizers, Schedule(1, clip=clip))
    together = torch.cat([weight.detach() for weight in weights])
    assert float(together.norm()) == pytest.approx(moved, rel=1e-4)
    assert float(together[0] / together[1]) == pytest.approx(0.75)


def test_gradients_do_not_leak_into_the_next_step():
    weight, optimizer = descent()
    optimise(lambda *_: {"a": weight.sum()}, [optimizer], Schedule(3))
    assert weight.tolist() == [-3, -3] and weight.grad is None


def test_the_rate_of_each_group_is_scaled_from_what_was_set():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a]}, {"params": [b], "lr": 0.1}], 1.0)
    optimise(lambda *_: {"x": a.sum() + b.sum()}, [optimizer], Schedule(4), rate=lambda step, steps: (step + 1) / steps)
    assert a.item() == pytest.approx(-(0.25 + 0.5 + 0.75 + 1))
    assert b.item() == pytest.approx(a.item() / 10)


def test_a_loss_is_scaled_up_before_and_its_gradient_down_after_it_is_differentiated():
    weight, optimizer = descent()
    seen, scaler = [], torch.amp.GradScaler("cpu", init_scale=1024.0)
    weight.register_hook(lambda gradient: seen.append(gradient.tolist()))
    optimise(
        lambda *_: {"a": weight.sum(), "b": weight.sum() * 0 + 1}, [optimizer], Schedule(1, clip=9.0), scaler=scaler
    )
    assert seen == [[1024, 1024]] and weight.tolist() == [-1, -1]


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_halved():
    weight, optimizer = descent()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def losses(index, generator):
        # Finite, but its gradient times 1024 is more than float32 holds.
        return {"a": weight.sum() * (1e37 if index == 1 else 1.0)}

    optimise(losses, [optimizer], Schedule(3), scaler=scaler)
    assert weight.tolist() == [-2, -2] and scaler.get_scale() == 512.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_breaks_is_named_with_its_step_and_what_to_do(bad):
    weight, optimizer = descent()
    kept = []
    with pytest.raises(ConfigError, match=r"\(b\) stopped being a number by step 4.*Lower the learning rate"):
        optimise(
            lambda index, _: {"a": weight.sum(), "b": weight.sum() * 0 + (bad if index == 2 else 1.0)},
            [optimizer],
            Schedule(10, report=4),
            on_event=kept.append,
        )
    assert not kept, "nothing is reported as done"


def test_stopping_is_asked_before_a_step_and_said_with_the_steps_done():
    weight, optimizer = descent()
    with pytest.raises(Cancelled, match="after step 0 of 5"):
        optimise(lambda *_: {"a": weight.sum()}, [optimizer], Schedule(5), should_stop=lambda: True)
    assert weight.tolist() == [0, 0]
