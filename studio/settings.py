"""Settings of the machine rather than of the picture. Importable without torch."""

from __future__ import annotations

from typing import Literal

from pipelines.request.request import Frozen


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
