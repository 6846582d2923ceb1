"""A condition that changes nothing: it shows previews of the first picture."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.events import OnEvent, Preview
from pipelines.models.components import Components, Conditioning, decode
from pipelines.pictures.tensors import to_pictures


class Watch:
    """Previews of the first picture, estimated from the latents, at some of the steps.

    Args:
        on_event: receives a `Preview` each time.
        times: most previews; spread evenly, never after the last step, when the picture itself comes.
    """

    def __init__(self, on_event: OnEvent, times: int = 5) -> None:
        self.on_event, self.times = on_event, times
        self._components: Components | None = None

    def attach(self, components: Components, count: int) -> AbstractContextManager[None]:
        """Keep the autoencoder for the previews."""
        self._components = components
        return nullcontext()

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Send a preview if one is due; return the latents unchanged."""
        done, every = step.index + 1, -(-step.count // (self.times + 1))
        if self._components is not None and done % every == 0 and done < step.count:
            self.on_event(Preview(done, to_pictures(decode(self._components, step.estimate()[:1]))[0]))
        return latents
