"""A condition that asks nothing of a picture: it only shows the first one on its way."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.events import OnEvent, Preview
from pipelines.models.components import Components, decode
from pipelines.pictures.tensors import to_pictures


class Watch:
    """Shows what the first picture is going to be, as far as it can be told, some times on the way to it.

    Args:
        on_event: receives a `Preview` each time.
        times: how often, at most; spread evenly, never after the last step, when the picture itself comes.
    """

    def __init__(self, on_event: OnEvent, times: int = 5) -> None:
        self.on_event, self.times = on_event, times
        self._components: Components | None = None

    def attach(self, components: Components, count: int) -> AbstractContextManager[None]:
        """Remember what decodes."""
        self._components = components
        return nullcontext()

    def unet_kwargs(self, branch: Branch, step: Step) -> dict[str, Any]:
        """Nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """The latents as they are."""
        done, every = step.index + 1, -(-step.count // (self.times + 1))
        if self._components is not None and done % every == 0 and done < step.count:
            self.on_event(Preview(done, to_pictures(decode(self._components, step.estimate()[:1]))[0]))
        return latents
