"""Initial weights from a seed leave torch's global source as it was."""

from __future__ import annotations

import pytest
import torch

from trainers.initial_weights import initial_weights


def test_the_same_seed_gives_the_same_weights_and_the_global_source_goes_on():
    torch.manual_seed(5)
    after = torch.randn(3)
    torch.manual_seed(5)
    drawn = []
    for seed in (1, 1, 2):
        with initial_weights(seed):
            drawn.append(torch.nn.Linear(2, 3).weight.detach())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.randn(3), after)


def test_it_equals_a_global_seed_also_after_an_error():
    torch.manual_seed(7)
    wanted = torch.nn.Linear(2, 3).weight.detach()
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="on purpose"), initial_weights(7):
        assert torch.equal(torch.nn.Linear(2, 3).weight, wanted)
        raise RuntimeError("on purpose")
    assert torch.equal(torch.get_rng_state(), before)
