"""Fixtures of several rooms."""

from __future__ import annotations

import pytest
import torch

from pipelines.models.families.sd import Pocket


@pytest.fixture(scope="module")
def one_thread():
    """Small matrices gain nothing from several threads, and lose much when the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_state(tmp_path_factory, monkeypatch):
    """Keep the places of pictures' files in a home of each test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))


@pytest.fixture(scope="module")
def few_steps():
    """Let pocket draw with 8 steps where a request leaves them open, for tests of what is done with pictures."""
    own = Pocket.defaults

    def quick(self, components):
        return own(self, components).model_copy(update={"steps": 8})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pocket, "defaults", quick)
        yield
