"""FLUX.2 Klein: three layers of Qwen3 as text, latents packed and normalised on the autoencoder's side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from torch import Tensor

from pipelines.models.components import Components, Conditioning, Posterior
from pipelines.models.families.language import asked, bare, token_rows, word_places
from pipelines.models.families.rectified_flow import RectifiedFlow, grid_ids, levels

TOKENS = 512
REFERENCE, REFERENCE_TIME = "reference", 10
"""Name of a picture beside the latents in a conditioning, and its place on the axis of time."""
LAYERS = (9, 18, 27)
"""Hidden states of Qwen3 that are read, side by side."""

_ATTENTION = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    # Single-stream blocks: one layer for queries, keys, values and the first of the feed-forward, one behind both.
    "attn.to_qkv_mlp_proj",
    "attn.to_out",
)
_TRANSFORMER = (*_ATTENTION, "ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")


class Flux2Klein(RectifiedFlow):
    """The family of FLUX.2 Klein, 4B and 9B."""

    name = "flux2"
    pipe = "Flux2KleinPipeline"
    base = "black-forest-labs/FLUX.2-klein-base-4B or -9B"
    targets: Mapping[str, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "transformer": _TRANSFORMER,
        "all": (*_TRANSFORMER, "double_stream_modulation_img.linear", "double_stream_modulation_txt.linear",
                "single_stream_modulation.linear"),
    }  # fmt: skip
    shift = 3.1582
    """The sampling shift of 1024 x 1024 pixels at many steps, exp(1.15)."""

    def channels(self, components: Components) -> int:
        """Return the channels of packed latents: the square of four is packed before anything else sees it."""
        return int(components.denoiser.config["in_channels"])

    def factor(self, components: Components) -> int:
        """Return the pixels of a square of four latents of the autoencoder."""
        return super().factor(components) * 2

    def multiple(self, components: Components) -> int:
        """Return the pixels per packed latent."""
        return self.factor(components)

    def mu(self, components: Components, steps: int, shape: tuple[int, ...]) -> float:
        """Return the fit of diffusers' pipeline, in tokens and in steps."""
        return compute_empirical_mu(shape[-2] * shape[-1], steps)

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return states (B, 512, 3 dim); the transformer reads their padding too."""
        texts = asked(components, bare(prompts, plain), thinking=False)
        rows = token_rows(components, 0, texts, TOKENS)
        out = components.text_encoders[0](
            input_ids=rows.ids, attention_mask=rows.mask.long(), output_hidden_states=True, use_cache=False
        )
        states = torch.cat([out.hidden_states[layer] for layer in LAYERS], dim=-1)
        return {"encoder_hidden_states": states.to(components.device, components.dtype)}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with their places in the turn of a conversation that Qwen3 reads."""

        def template(text: str) -> str:
            return asked(components, [text], thinking=False)[0]

        return word_places(components, 0, prompt, TOKENS, template=template)

    def seats(self, tokens: int, pictured: int) -> tuple[int, int] | None:
        """Return where picture and text begin: text first, a reference behind the picture."""
        return TOKENS, 0

    def beside(self, components: Components, clean: Tensor) -> Conditioning:
        """Return the picture as a reference, which the transformer reads beside the latents."""
        return {REFERENCE: clean}

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity of the latents alone; positions are (time, row, column, place in the text)."""
        height, width = latents.shape[-2:]
        told = dict(conditioning)
        seen, places = _tokens(latents), grid_ids(height, width, 4, 1, latents.device)
        if REFERENCE in told:
            seen = torch.cat([seen, _tokens(told.pop(REFERENCE))], dim=1)
            behind = places.clone()
            behind[:, 0] = REFERENCE_TIME
            places = torch.cat([places, behind])
        length = told["encoder_hidden_states"].shape[1]
        words = torch.zeros(length, 4, device=latents.device)
        words[:, 3] = torch.arange(length, device=latents.device)
        out = components.denoiser(
            hidden_states=seen,
            timestep=levels(t, latents),
            guidance=None,
            txt_ids=words,
            img_ids=places,
            return_dict=False,
            **told,
        )[0][:, : height * width]
        return out.transpose(1, 2).reshape(latents.shape)

    def encode(self, components: Components, images: Tensor) -> Posterior:
        """Return the posterior of packed latents, normalised by the autoencoder's batch statistics."""
        found = components.vae.encode(images, return_dict=False)[0]
        mean, spread = _statistics(components, found.mean)
        return Posterior((_packed(found.mean) - mean) / spread, _packed(found.std) / spread)

    def decode(self, components: Components, latents: Tensor) -> Tensor:
        """Return the pictures."""
        mean, spread = _statistics(components, latents)
        batch, channels, height, width = latents.shape
        squares = (latents * spread + mean).reshape(batch, channels // 4, 2, 2, height, width)
        plain = squares.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, height * 2, width * 2)
        return components.vae.decode(plain, return_dict=False)[0]


def _tokens(latents: Tensor) -> Tensor:
    """Return packed latents (B, C, h, w) as tokens (B, h * w, C)."""
    return latents.flatten(2).transpose(1, 2)


def _packed(latents: Tensor) -> Tensor:
    """Return latents (B, C, h, w) as (B, 4 C, h/2, w/2)."""
    batch, channels, height, width = latents.shape
    squares = latents.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return squares.reshape(batch, 4 * channels, height // 2, width // 2)


def _statistics(components: Components, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and spread (1, 4 C, 1, 1) of packed latents."""
    norm = components.vae.bn
    mean = norm.running_mean.view(1, -1, 1, 1)
    spread = torch.sqrt(norm.running_var.view(1, -1, 1, 1) + components.vae.config["batch_norm_eps"])
    return mean.to(like), spread.to(like)
