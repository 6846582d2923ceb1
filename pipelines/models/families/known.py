"""The families by name, and how the files of a base tell its family. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pipelines.request.request import Defaults, Scheduler


class Known(NamedTuple):
    """A family as far as names go.

    Attributes:
        title: as people call it.
        architecture: of `modelspec.architecture`, by which programs know the family of a file.
        version: of kohya's `ss_base_model_version`; empty if it has none.
        shown: "sd version" that AUTOMATIC1111 and Forge show of a file; empty if they have none.
        parts: subfolder of a base -> classes it may hold; the denoiser first.
        optional: parts that may be left out.
        chat: whether the tokenizer has to know how a conversation is written.
        rows: names that programs have for a word's rows of each text encoder, where there are several.
        travels: whether other programs read words of the family.
        scale: guidance scale of a request that gives none, in this studio's counting: 1 is off.
        steps: of such a request.
        quick_steps: of such a request on a base that was distilled to few steps.
        scheduler: of such a request.
        beta: share of the steps in which boxes act.
        redrawn: strength of the second pass that enlarges pictures.
        rescales: whether a noise schedule that ends in noise alone needs guidance rescale.
        sized: whether the denoiser's configuration tells the side of the latents it was made for.
        packed: latents of the autoencoder along a side of one of the denoiser.
        told_scale: whether one that takes no guidance scale was distilled without guidance.
    """

    title: str
    architecture: str
    version: str = ""
    shown: str = ""
    parts: Mapping[str, tuple[str, ...]] = {}
    optional: tuple[str, ...] = ()
    chat: bool = False
    rows: tuple[str, ...] = ()
    travels: bool = True
    scale: float = 7.5
    steps: int = 25
    quick_steps: int = 4
    scheduler: Scheduler = "dpm++2m"
    beta: float = 0.3
    redrawn: float = 0.3
    rescales: bool = True
    sized: bool = False
    packed: int = 1
    told_scale: bool = False

    def defaults(self, size: int, quick: bool, rescale: float = 0.0) -> Defaults:
        """Return the settings of a request that gives none.

        Args:
            size: side of the pictures that the base was made for, in pixels.
            quick: whether it was distilled to few steps: with an embedded scale (LCM) if it is a UNet.
            rescale: guidance rescale that its noise schedule needs.
        """
        if quick:
            scale, scheduler = (8.5, "lcm") if "unet" in self.parts else (1.0, self.scheduler)
            return Defaults(size=size, scale=scale, scheduler=scheduler, steps=self.quick_steps, redrawn=0.5)
        told = {"scheduler": self.scheduler, "steps": self.steps, "beta": self.beta, "redrawn": self.redrawn}
        return Defaults(size=size, scale=self.scale, rescale=rescale, **told)


_CLIP = ("CLIPTextModel", "CLIPTextModelWithProjection")
_CLIP_WORDS = ("CLIPTokenizer", "CLIPTokenizerFast")
UNETS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL", "AutoencoderTiny"),
    "text_encoder": _CLIP,
    "text_encoder_2": _CLIP,
    "tokenizer": _CLIP_WORDS,
    "tokenizer_2": _CLIP_WORDS,
}
"""Parts of all families with a UNet, whichever it is."""
_SECOND = ("text_encoder_2", "tokenizer_2")
_KL = ("AutoencoderKL",)
_T5_WORDS = ("T5Tokenizer", "T5TokenizerFast")


def _with_qwen(transformer: str, vae: str, *readers: str) -> dict[str, tuple[str, ...]]:
    """Return the parts of a family with one language model."""
    return {
        "transformer": (transformer,),
        "vae": (vae,),
        "text_encoder": readers,
        "tokenizer": ("Qwen2Tokenizer", "Qwen2TokenizerFast", "AutoTokenizer"),
    }


KNOWN: Mapping[str, Known] = {
    "pocket": Known(
        "pocket",
        "promptstudio-pocket",
        parts=UNETS,
        optional=_SECOND,
        scale=2.0,
        scheduler="ddim",
        beta=1.0,
        redrawn=0,
        rescales=False,
    ),
    "sd1": Known("Stable Diffusion 1.x", "stable-diffusion-v1", "sd_v1", "SD1", UNETS, _SECOND),
    "sd2": Known("Stable Diffusion 2.x", "stable-diffusion-v2-512", "sd_v2", "SD2", UNETS, _SECOND),
    "sdxl": Known(
        "Stable Diffusion XL",
        "stable-diffusion-xl-v1-base",
        "sdxl_base_v1-0",
        "SDXL",
        UNETS,
        rows=("clip_l", "clip_g"),
        scale=5.0,
    ),
    "sd3": Known(
        "Stable Diffusion 3",
        "stable-diffusion-v3",
        "sd3",
        parts={
            "transformer": ("SD3Transformer2DModel",),
            "vae": _KL,
            "text_encoder": _CLIP,
            "text_encoder_2": _CLIP,
            "text_encoder_3": ("T5EncoderModel",),
            "tokenizer": _CLIP_WORDS,
            "tokenizer_2": _CLIP_WORDS,
            "tokenizer_3": _T5_WORDS,
        },
        optional=("text_encoder_3", "tokenizer_3"),
        rows=("clip_l", "clip_g", "t5xxl"),
        scale=4.5,
        steps=28,
        quick_steps=4,
        sized=True,
        scheduler="euler",
    ),
    "flux1": Known(
        "FLUX.1",
        "flux-1-dev",
        "flux1",
        parts={
            "transformer": ("FluxTransformer2DModel",),
            "vae": _KL,
            "text_encoder": _CLIP,
            "text_encoder_2": ("T5EncoderModel",),
            "tokenizer": _CLIP_WORDS,
            "tokenizer_2": _T5_WORDS,
        },
        rows=("clip_l", "t5xxl"),
        scale=3.5,
        steps=28,
        quick_steps=4,
        told_scale=True,
        scheduler="euler",
    ),
    "flux2": Known(
        "FLUX.2 Klein",
        "flux-2-klein",
        parts=_with_qwen("Flux2Transformer2DModel", "AutoencoderKLFlux2", "Qwen3ForCausalLM"),
        chat=True,
        travels=False,
        scale=4.0,
        steps=50,
        quick_steps=4,
        packed=2,
        scheduler="euler",
    ),
    "z-image": Known(
        "Z-Image",
        "z-image",
        parts=_with_qwen("ZImageTransformer2DModel", "AutoencoderKL", "Qwen3Model", "Qwen3ForCausalLM"),
        chat=True,
        travels=False,
        scale=5.0,
        steps=40,
        quick_steps=8,
        scheduler="euler",
    ),
    "qwen-image": Known(
        "Qwen-Image",
        "qwen-image",
        parts=_with_qwen("QwenImageTransformer2DModel", "AutoencoderKLQwenImage", "Qwen2_5_VLForConditionalGeneration"),
        travels=False,
        scale=4.0,
        steps=50,
        quick_steps=8,
        scheduler="euler",
    ),
    "krea2": Known(
        "Krea 2",
        "krea-2",
        parts=_with_qwen("Krea2Transformer2DModel", "AutoencoderKLQwenImage", "Qwen3VLModel"),
        travels=False,
        scale=5.5,
        steps=28,
        quick_steps=8,
        scheduler="euler",
    ),
}
"""All families."""

TURBO = ("turbo", "schnell", "lightning", "hyper-sd", "lcm", "distilled")
"""Words in the name of a base that was distilled to few steps."""


def said_distilled(name: str) -> bool:
    """Return whether a base's own name, or that of the folder it lies in, says that it was distilled to few steps."""
    parts = Path(name).parts[-2:]
    return any(word in part.lower() for word in TURBO for part in parts)


def transformer_family(index: Mapping[str, Any]) -> str:
    """Return the family whose transformer a `model_index.json` names; empty if there is none, or it is not known."""
    kind = kind_of(index, "transformer")
    return next((name for name, one in KNOWN.items() if kind and kind in one.parts.get("transformer", ())), "")


def family_of(folder: Path, index: Mapping[str, Any]) -> str:
    """Return the family of a folder in the diffusers layout by its classes; empty if it is none of those known.

    Args:
        folder: of the base; configurations of its parts are read where the classes do not tell.
        index: contents of its `model_index.json`.
    """
    if kind_of(index, "transformer"):
        return transformer_family(index)
    if kind_of(index, "unet") not in ("", "UNet2DConditionModel"):
        return ""
    if kind_of(index, "text_encoder_2"):
        return "sdxl"
    unet = _config(folder / "unet/config.json")
    if kind_of(index, "vae") == "AutoencoderTiny" and int(unet["cross_attention_dim"]) < 768:
        return "pocket"
    return "sd2" if int(_config(folder / "text_encoder/config.json")["hidden_size"]) == 1024 else "sd1"


def kind_of(index: Mapping[str, Any], part: str) -> str:
    """Return the class of a part by a `model_index.json`; empty if it has none.

    Raises:
        ValueError: if what stands there is no library and class.
    """
    entry = index.get(part)
    if entry is None:
        return ""
    if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[1], str | None):
        raise ValueError(f"{part} is {entry!r:.60}, not a library and a class")
    return entry[1] or ""


def _config(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
