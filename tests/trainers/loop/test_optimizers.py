"""Optimisers: fused AdamW equals AdamW, and those of packages that may be missing."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from pipelines.errors import ConfigError
from tests import tiny
from trainers.distributed import ALONE
from trainers.loop.optimizers import at_the_result, optimizers_of
from trainers.loop.train import train
from trainers.method import Trainable
from trainers.methods import methods
from trainers.run import run_of
from trainers.settings import TrainConfig


def learning(name):
    weight, bias = (nn.Parameter(torch.ones(shape)) for shape in ((3, 4), (3,)))
    trainable = Trainable(tiny.sd(), {"weight": weight, "bias": bias}, (), None, rates={"bias": 5.0})
    pace = TrainConfig(optimizer=name, learning_rate=0.01, scale_lr=False, weight_decay=0.1)
    (optimizer,) = optimizers_of(pace, trainable, ALONE)
    return optimizer, [weight, bias]


def test_adamw_takes_the_steps_of_adamw_in_one_kernel_each_group_at_its_rate():
    ours, parameters = learning("adamw")
    assert all(group["fused"] for group in ours.param_groups)
    theirs = [nn.Parameter(one.detach().clone()) for one in parameters]
    groups = [{"params": theirs[:1], "lr": 0.01}, {"params": theirs[1:], "lr": 0.05}]
    plain = torch.optim.AdamW(groups, 0.01, weight_decay=0.1, fused=False, foreach=False)
    for step in range(5):
        for listed, optimizer in ((parameters, ours), (theirs, plain)):
            for one in listed:
                one.grad = torch.randn(one.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()
    for one, other in zip(parameters, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("name", "package"), [("adamw8bit", "bitsandbytes"), ("schedule-free", "schedulefree")])
def test_a_package_that_is_missing_is_named(name, package, monkeypatch):
    for module in [one for one in sys.modules if one.partition(".")[0] == package] + [package, f"{package}.optim"]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed.*pip install {package}.*--optimizer adamw"):
        learning(name)


def test_schedule_free_learns_keeps_its_result_apart_and_goes_on_where_it_stopped(tmp_path):
    pytest.importorskip("schedulefree")
    optimizer, (weight, _) = learning("schedule-free")
    for step in range(3):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        optimizer.step()
    there = weight.detach().clone()
    with at_the_result(optimizer):
        assert not torch.equal(weight, there)
    torch.testing.assert_close(weight, there)

    def learned(steps, **more):
        settings = {"images": "x", "token": "<x>", "init": "fox", "batch": 2, "steps": steps, "learning_rate": 0.01}
        run = run_of(methods()["textual-inversion"], settings | {"optimizer": "schedule-free", "scale_lr": False})
        return train(tiny.sd(), run, tiny.examples(), **more)

    whole = learned(6)
    learned(4, keep=tmp_path / "state")
    resumed = learned(6, keep=tmp_path / "state")
    assert torch.equal(whole.rows[0], resumed.rows[0]) and torch.isfinite(whole.rows[0]).all()
