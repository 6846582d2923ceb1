from __future__ import annotations

import pytest
import torch

from pipelines.errors import Cancelled, ConfigError
from pipelines.events import Note
from trainers.loop.checkpoints import Checkpoint
from trainers.loop.loop import optimise, step_generator
from trainers.loop.muon import Muon, orthogonal
from trainers.loop.schedule import Schedule, warm_stable_decay


def line(path=None, every=2, **pace):
    """A tiny regression whose every part can be looked at."""
    weight = torch.nn.Parameter(torch.zeros(3, 4))
    optimizer = torch.optim.AdamW([weight], 0.1)

    def losses(index, generator):
        x = torch.randn(8, 4, generator=generator)
        return {"fit": (x @ weight.T - x[:, :3]).square().mean(), "small": 1e-3 * weight.square().sum()}

    def restore(kept):
        with torch.no_grad():
            weight.copy_(kept["weight"])
        optimizer.load_state_dict(kept["optimizer"])

    checkpoint = path and Checkpoint(
        path, every, lambda: {"weight": weight.detach(), "optimizer": optimizer.state_dict()}, restore
    )
    return weight, losses, [optimizer], Schedule(**({"steps": 10, "report": 2} | pace)), checkpoint


def run(parts, **more):
    weight, losses, optimizers, pace, checkpoint = parts
    optimise(losses, optimizers, pace, checkpoint=checkpoint, **more)
    return weight.detach().clone()


def test_terms_are_reported_apart_and_averaged():
    events = []
    run(line(), on_event=events.append)
    assert [event.step for event in events] == [2, 4, 6, 8, 10]
    assert set(events[0].terms) == {"fit", "small"}
    assert events[-1].terms["fit"] < events[0].terms["fit"]


def test_a_run_that_was_stopped_ends_bit_for_bit_like_one_that_was_not(tmp_path):
    whole = run(line())
    asked = iter([False] * 5 + [True])
    with pytest.raises(Cancelled, match="after step 5 of 10"):
        run(line(tmp_path / "s.pt"), should_stop=lambda: next(asked))
    notes = []
    assert torch.equal(run(line(tmp_path / "s.pt"), on_event=notes.append), whole)
    assert notes[0] == Note("resumed after step 5")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    whole = run(line())

    def dies(done):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(line(tmp_path / "s.pt"), after_step=dies)
    assert torch.equal(run(line(tmp_path / "s.pt")), whole)


def test_a_damaged_state_is_said_and_kept(tmp_path):
    (tmp_path / "s.pt").write_bytes(b"broken")
    with pytest.raises(ConfigError, match="damaged"):
        run(line(tmp_path / "s.pt"))
    assert (tmp_path / "s.pt").exists()


def test_accumulation_is_the_mean_over_batches():
    weight = torch.nn.Parameter(torch.zeros(1))
    seen = []

    def losses(index, generator):
        seen.append(index)
        return {"a": (weight - index).square().sum()}

    optimise(losses, [torch.optim.SGD([weight], 0.5)], Schedule(1, accumulate=3))
    assert seen == [0, 1, 2]
    assert float(weight.detach()) == pytest.approx(1.0)  # the mean of 0, 1 and 2


def test_the_rate_is_a_factor_on_what_was_set():
    parts = line(steps=4)
    rates = []
    run(parts, rate=lambda step, steps: 0.5, after_step=lambda done: rates.append(parts[2][0].param_groups[0]["lr"]))
    assert rates == [0.05] * 4


def test_a_loss_that_is_no_number_names_its_term():
    weight = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ConfigError, match="bad"):
        optimise(
            lambda i, g: {"good": weight.sum(), "bad": weight.sum() * float("nan")},
            [torch.optim.SGD([weight])],
            Schedule(5, report=1),
        )


def test_chance_depends_on_seed_and_step_alone():
    draws = [torch.rand(1, generator=step_generator(seed, step)).item() for seed in range(3) for step in range(3)]
    assert len(set(draws)) == 9
    assert step_generator(1, 2).initial_seed() == step_generator(1, 2).initial_seed()


def test_without_decay_the_rate_stays_after_the_warm_up():
    factors = [warm_stable_decay(step, 100, 10, 0.0) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)]) and set(factors[10:]) == {1.0}
    falling = [warm_stable_decay(step, 100, 0, 0.5) for step in range(101)]
    assert falling[50] == 1.0 and falling[75] == pytest.approx(0.5) and falling[100] == 0


def test_the_schedule_warms_up_stays_and_falls_to_zero():
    factors = [warm_stable_decay(step, 1000) for step in range(1001)]
    assert factors[0] == pytest.approx(0.01) and factors[100] == factors[700] == 1.0
    assert factors[850] == pytest.approx(0.5) and factors[1000] == 0.0


@pytest.mark.parametrize("shape", [(8, 20), (20, 8), (6, 6)])
def test_muon_makes_matrices_orthogonal(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.4 and values.max() < 1.4


def test_muon_learns_and_resumes():
    torch.manual_seed(0)
    target, weights = torch.randn(6, 8), [torch.nn.Parameter(torch.zeros(6, 8)) for _ in range(2)]
    first, second = (Muon([w], lr=0.05, weight_decay=0.0) for w in weights)
    for _ in range(60):
        (weights[0] - target).square().sum().backward()
        first.step()
        first.zero_grad()
    assert (weights[0].detach() - target).norm() < 0.6 * target.norm()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[weights[1]]["running"], first.state[weights[0]]["running"])
