"""Training state on disk, so that long work is never lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ConfigError
from pipelines.files import whole_file


@dataclass(frozen=True)
class Checkpoint:
    """Where a loop keeps its state, and what that state is.

    Attributes:
        path: the file.
        every: steps between writes.
        state: gives the tensors to keep (a nested dict).
        restore: puts them back.
    """

    path: Path
    every: int
    state: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]

    def save(self, step: int) -> None:
        """Write the state as of `step` steps done."""
        with whole_file(self.path) as temporary:
            torch.save({"step": step, **self.state()}, temporary)

    def load(self) -> int:
        """Restore the newest state and return the steps it had done; 0 if there is none.

        Raises:
            ConfigError: if the file is damaged, or `restore` refuses it.
        """
        if not self.path.exists():
            return 0
        try:
            kept: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            step = int(kept["step"])
        except Exception as error:  # a damaged pickle stream raises anything at all
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"The training state {self.path} is damaged: {first}.", "Delete it to begin anew."
            ) from None
        self.restore({key: value for key, value in kept.items() if key != "step"})
        return step
