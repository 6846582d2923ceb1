"""Components: the diffusers and transformers objects of one base model, and the family that knows what to do with them.

No wrapper and no globals: a `Components` is a frozen bundle, `dataclasses.replace` gives a variant of it. What differs
between base models is its `Family`; each has a file in `pipelines.models.families`, and nothing else asks for a name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipelines.errors import ModelError
from pipelines.models.fingerprint import weights_identity
from pipelines.models.noise import NoiseProcess
from pipelines.models.text_hooks import TextHook
from pipelines.request.request import Defaults

Conditioning = dict[str, Any]
"""Inputs of a denoiser beside latents and time: tensors with one row for each picture, nested, named by the family.

Conditions add to it (`pipelines.condition`), `Family.predict` reads it.
"""

CONCAT = "concat"
"""Reserved name in a conditioning: channels that a UNet reads behind those of the latents."""


class Family(Protocol):
    """One kind of base model: all that differs between kinds. Latents outside are always (B, C, h, w)."""

    @property
    def name(self) -> str:
        """As on cards: sd1, z-image, ..."""
        ...

    @property
    def title(self) -> str:
        """As people call it."""
        ...

    @property
    def network(self) -> str:
        """Name of the denoiser in folders and in changed weights: unet or transformer."""
        ...

    @property
    def targets(self) -> Mapping[str, tuple[str, ...]]:
        """Ends of the names of layers that low-rank changes are made for, by choice: attention, transformer, all."""
        ...

    @property
    def world(self) -> str:
        """The lists of captions and templates that the base understands: world, or pocket."""
        ...

    @property
    def identifiers(self) -> bool:
        """Say whether rare words of one token are the way to call a subject, as with CLIP's vocabulary."""
        ...

    @property
    def trained_text(self) -> tuple[int, ...]:
        """Text encoders that DreamBooth may train beside the denoiser: those whose changes other programs read."""
        ...

    def channels(self, components: Components) -> int:
        """Return the channels of the latents."""
        ...

    def factor(self, components: Components) -> int:
        """Return the pixels per latent along a side."""
        ...

    def multiple(self, components: Components) -> int:
        """Return the number that width and height in pixels must be a multiple of."""
        ...

    def defaults(self, components: Components) -> Defaults:
        """Return the settings of a request that gives none."""
        ...

    def process(self, components: Components) -> NoiseProcess:
        """Return the noise process."""
        ...

    def better_base(self, components: Components) -> str:
        """Return the base to learn on instead of this one, which was distilled to few steps; empty if it was not."""
        ...

    def reads_scale(self, components: Components) -> bool:
        """Return whether the denoiser takes the guidance scale as an input, so that there is no negative branch."""
        ...

    def told_scale(self, components: Components, scale: float, count: int) -> Conditioning:
        """Return the guidance scale of `count` pictures as an input of the denoiser; nothing if it takes none."""
        ...

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return the conditioning of prompts, a row each; gradients reach the text encoders and their rows.

        Args:
            components: the base, with any new words attached.
            prompts: one or several; all become equally long.
            skip: number of last layers of CLIP text encoders to leave out.
            plain: captions of a training: brackets are text, and what exceeds the first window is cut off.

        Raises:
            RequestError: if the encoders cannot leave out so many layers.
        """
        ...

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words of a prompt, in order, each with its places in the text that the denoiser reads."""
        ...

    def seats(self, tokens: int, pictured: int) -> tuple[int, int] | None:
        """Return where picture and text begin among tokens that attend to each other; None for a UNet.

        Args:
            tokens: of the attention.
            pictured: how many of them are of the picture that is drawn.
        """
        ...

    def framed(self, components: Components, conditioning: Conditioning, frames: Tensor) -> Conditioning:
        """Return the conditioning with the sizes and crops of the pictures, where the denoiser reads them.

        Args:
            components: the base.
            conditioning: of `encode_text`, a row each.
            frames: (B, 6): original height and width, rows and columns cut off at the top and left, height and width.
        """
        ...

    def beside(self, components: Components, clean: Tensor) -> Conditioning:
        """Return what shows the denoiser a picture that is repainted in part, (B, C, h, w); nothing for most."""
        ...

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the prediction (B, C, h, w) that the noise process expects of the base.

        Args:
            components: the base.
            latents: (B, C, h, w) noisy, in the precision of the denoiser.
            t: () or (B,), time of the noise process.
            conditioning: a row for each picture.
        """
        ...

    def guide(self, c: Tensor, u: Tensor, scale: float) -> Tensor:
        """Return the guided prediction of c under the prompt and u under the negative prompt; scale 1 gives c."""
        ...

    def encode(self, components: Components, images: Tensor) -> Posterior:
        """Encode pictures (B, 3, H, W) in [-1, 1]."""
        ...

    def decode(self, components: Components, latents: Tensor) -> Tensor:
        """Decode scaled latents to pictures (B, 3, H, W), float32."""
        ...

    def pipeline(self, components: Components, parts: Mapping[str, Any]) -> Any:
        """Return a plain pipeline of diffusers over parts by their names in folders."""
        ...


@dataclass(frozen=True)
class Components:
    """One base model.

    Attributes:
        denoiser: a UNet or a transformer.
        vae: the autoencoder.
        text_encoders: all of them, in the order of the family.
        tokenizers: one for each text encoder.
        scheduler_config: configuration every scheduler is built from.
        name: name the person gave.
        family: decides everything that differs between base models.
        zero_empty: SDXL's rule that an empty negative prompt is all zeros rather than an encoded empty text.
        expansions: token id -> ids it stands for, for concepts of several vectors.
        identity: fingerprint taken at loading; empty for parts put together in memory.
        options: what the base's `model_index.json` says beside its parts.
        text_hooks: each wraps the text encoding, the later around the earlier; parts of concepts put them there.
        place: the device that computes, where networks wait in the machine's memory until they work
            (`pipelines.models.memory.offloading`); None where they are there always.
    """

    denoiser: Any
    vae: Any
    text_encoders: tuple[Any, ...]
    tokenizers: tuple[Any, ...]
    scheduler_config: Mapping[str, Any]
    name: str
    family: Family
    zero_empty: bool = False
    expansions: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    identity: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    text_hooks: tuple[TextHook, ...] = ()
    place: torch.device | None = None

    @property
    def unet(self) -> UNet2DConditionModel:
        """The denoiser, for what reaches into a UNet: boxes, regions, inpainting channels, visual prompts.

        Raises:
            ModelError: if it is a transformer.
        """
        if isinstance(self.denoiser, UNet2DConditionModel):
            return self.denoiser
        needed = "boxes, regions, visual prompts, P+ and Custom Diffusion need a UNet"
        raise ModelError(
            f"{self.name} is {self.family.title}, a transformer: {needed}.",
            "Use a base of Stable Diffusion 1.x, 2.x or XL, or pocket; or leave them out.",
        )

    @property
    def has_unet(self) -> bool:
        """Return whether the denoiser is a UNet."""
        return isinstance(self.denoiser, UNet2DConditionModel)

    @property
    def device(self) -> torch.device:
        """The device that computes: that of the denoiser, or where it is brought to."""
        # diffusers' own property walks over all modules each time.
        return self.place or next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision that the denoiser computes in, whatever its weights are stored in."""
        return next(one.dtype for one in self.denoiser.parameters() if one.is_floating_point())

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.family.channels(self)

    @property
    def input_channels(self) -> int:
        """Channels that the denoiser reads: more than those of the latents for an inpainting UNet."""
        return int(self.unet.config["in_channels"]) if self.has_unet else self.channels

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return self.family.factor(self)

    @property
    def multiple(self) -> int:
        """The number that width and height of a picture in pixels must be a multiple of."""
        return self.family.multiple(self)

    @property
    def distilled(self) -> bool:
        """Return whether the denoiser was distilled with guidance and takes its scale (LCM, FLUX.1 dev)."""
        return self.family.reads_scale(self)

    @property
    def defaults(self) -> Defaults:
        """The settings of a request that gives none."""
        return self.family.defaults(self)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return all networks."""
        return (self.denoiser, self.vae, *self.text_encoders)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Components:
        """Move the networks in place and return self."""
        for module in self.modules():
            # The plain method: that of diffusers warns of every cast.
            torch.nn.Module.to(module, device, dtype)
        return self

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify a base model, whatever its file layout or the precision it is used in."""
        return self.identity or weights_identity(self)


def word_table(encoder: Any) -> Any:
    """Return the module that looks token ids up; its `weight` is (words, dim)."""
    return encoder.get_input_embeddings()


def row_widths(components: Components) -> list[int]:
    """Return the length of a row in the table of words of each text encoder."""
    return [int(word_table(encoder).weight.shape[1]) for encoder in components.text_encoders]


# -- latents ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """The autoencoder's distribution for a picture: scaled latents are mean + std * noise.

    Attributes:
        mean: (B, C, h, w), already scaled.
        std: (B, C, h, w), already scaled; zeros for a tiny autoencoder, which has no spread.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Return scaled latents; draws noise even where std is zero, so that any base advances the generator alike."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean + self.std * noise.to(self.mean)


@torch.no_grad()
def encode(components: Components, images: Tensor) -> Posterior:
    """Encode pictures (B, 3, H, W) in [-1, 1]."""
    with _wide_enough(components.vae):
        return components.family.encode(components, images.to(components.device, components.vae.dtype))


@torch.no_grad()
def decode(components: Components, latents: Tensor) -> Tensor:
    """Decode scaled latents to pictures (B, 3, H, W) in [-1, 1], float32."""
    with _wide_enough(components.vae):
        moved = latents.to(components.device, components.vae.dtype)
        return components.family.decode(components, moved).float().clamp(-1, 1)


@contextmanager
def saving_memory(components: Components, tiling: bool, slicing: bool) -> Iterator[None]:
    """Let the autoencoder work in tiles, or on one picture at a time, inside the `with`."""
    vae: Any = components.vae
    before = vae.use_tiling, vae.use_slicing
    vae.use_tiling, vae.use_slicing = before[0] or tiling, before[1] or slicing
    try:
        yield
    finally:
        vae.use_tiling, vae.use_slicing = before


@contextmanager
def _wide_enough(vae: Any) -> Iterator[None]:
    """Use SDXL's autoencoder in float32 inside the `with` where its configuration says that float16 overflows."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(vae.config.get("force_upcast"))
    if upcast:
        torch.nn.Module.to(vae, dtype=torch.float32)
    try:
        yield
    finally:
        if upcast:
            torch.nn.Module.to(vae, dtype=dtype)
