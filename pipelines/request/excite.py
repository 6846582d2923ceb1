"""Settings of the correction for things that the prompt names and the picture would lack. Importable without torch."""

from __future__ import annotations

from pydantic import Field

from pipelines.request.settings import Frozen
from pipelines.words import Composed


class Excite(Frozen):
    """Correction of the latents until each of some words is looked up somewhere (Attend-and-Excite, arXiv:2301.13826).

    Before each of the first steps the latents move so that the word that is looked up least is looked up more. It costs
    a prediction with its gradient for each correction, and is for UNets.
    """

    words: Composed = ""
    """Words of the prompt whose things must not be missing, with commas between them: fox, house. None by default,
    which switches it off."""

    strength: float = Field(default=20.0, ge=0, le=200)
    """Length of a correction relative to the gradient, at the first step; at the last it is 0.7 of it. 0 switches it
    off."""

    until: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps, from the first, before which latents are corrected."""

    tries: int = Field(default=20, ge=0, le=100)
    """Most further corrections at the beginning, at a fifth and at two fifths of the steps, where each word is to be
    looked up with a share of 0.05, 0.5 and 0.8 somewhere."""

    @property
    def acts(self) -> bool:
        """Return whether anything is corrected."""
        return bool(self.named) and self.strength > 0 and self.until > 0

    @property
    def named(self) -> tuple[str, ...]:
        """Return the words.

        >>> Excite(words="fox,  red house,").named
        ('fox', 'red house')
        """
        return tuple(word for part in self.words.split(",") if (word := " ".join(part.split())))
