"""A condition that changes nothing: it shows previews of the first picture."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from PIL import Image
from torch import Tensor

from pipelines.condition import Branch, Step
from pipelines.events import OnEvent, Preview
from pipelines.models.components import Components, Conditioning
from pipelines.models.latent_colours import LatentColours, latent_colours
from pipelines.pictures.tensors import to_pictures


class Watch:
    """Previews of the first picture, estimated from the latents without decoding them, at some of the steps.

    Args:
        on_event: receives a `Preview` each time.
        times: most previews; spread evenly, never after the last step, when the picture itself comes.
    """

    def __init__(self, on_event: OnEvent, times: int = 5) -> None:
        self.on_event, self.times = on_event, times
        self._factor = 1
        self._colours: LatentColours | None = None

    def attach(self, components: Components, count: int) -> AbstractContextManager[None]:
        """Fit the colours of the base's latents, unless it was done before."""
        self._factor, self._colours = components.factor, latent_colours(components)
        return nullcontext()

    def conditioning(self, branch: Branch, step: Step) -> Conditioning:
        """Return nothing."""
        return {}

    def constrain(self, latents: Tensor, step: Step) -> Tensor:
        """Send a preview if one is due; return the latents unchanged."""
        done, every = step.index + 1, -(-step.count // (self.times + 1))
        if self._colours is not None and done % every == 0 and done < step.count:
            (small,) = to_pictures(self._colours(step.estimate()[:1]))
            size = (small.width * self._factor, small.height * self._factor)
            self.on_event(Preview(done, small.resize(size, Image.Resampling.BICUBIC)))
        return latents
