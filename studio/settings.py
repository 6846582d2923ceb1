"""Settings of the machine rather than of the picture. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.request.settings import Frozen, Quantised


class Machine(Frozen):
    """The device, its precision and its memory settings."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Precision; auto is float32 on a CPU and bfloat16 on a GPU."""

    attention: Literal["sdpa", "xformers", "eager"] = "sdpa"
    """Attention implementation of the UNet."""

    download: bool = False
    """Allow fetching a model from the hub when its id is given."""

    base_config: str | None = None
    """For a base in a single file: a folder in the diffusers layout with the configurations and the tokenizer of its
    family, so that nothing has to be fetched."""

    def to_learn(self) -> Machine:
        """Return these settings without those of drawing alone; a base that is to learn is opened as it is."""
        return Machine.model_validate(self.model_dump(include=set(Machine.model_fields)) | {"dtype": "float32"})


class Picking(Frozen):
    """The choice among candidates of each picture."""

    best_of: int = Field(default=1, ge=1, le=64)
    """Draw so many candidates of each picture and keep the one that the judge likes best, with its own seed: pocket's
    judge, or the CLIP of --clip."""

    clip: Path | None = None
    """With --best-of: folder of a CLIP that judges, for other bases than pocket."""

    @model_validator(mode="after")
    def _judges_some(self) -> Self:
        if self.clip is not None and self.best_of < 2:
            raise ValueError("--clip judges candidates, and there is one; add --best-of 4, or leave --clip out")
        return self


class DrawingMachine(Machine):
    """The same, with what saves memory while pictures are drawn."""

    quantise: Quantised | None = None
    """Keep the denoiser's and text encoders' weights in 8 or 4 bits a number: a half or a quarter of the memory of
    bfloat16, a little slower, and pictures that differ a little."""

    finder: Path | None = None
    """Folder of a model that finds things by their names, for --inpaint-name: OWLv2, Grounding DINO or SAM 3. Without
    one the stickers of pocket are found by theirs."""

    offload: Literal["none", "parts", "layers"] = "none"
    """parts: text encoders, denoiser and autoencoder are on the GPU only while they work. layers: the layers of the
    first two one by one, for the smallest GPUs; much slower."""

    @field_validator("finder")
    @classmethod
    def _wherever_it_is_read(cls, finder: Path | None) -> Path | None:
        return finder and finder.absolute()  # processes of a server work in its folder
