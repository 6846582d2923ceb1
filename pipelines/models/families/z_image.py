"""Z-Image: the last but one layer of Qwen3 as text, time running from noise to picture, the output negated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pipelines.models.components import Components, Conditioning
from pipelines.models.families.language import asked, bare, token_rows, word_places
from pipelines.models.families.rectified_flow import RectifiedFlow, levels, packed_tokens
from pipelines.models.flow import linear_mu

TOKENS = 512
FILLED = 32
"""The transformer fills the tokens of a picture, and those of a text, up to a multiple of this."""
_ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
_TRANSFORMER = (*_ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


class ZImage(RectifiedFlow):
    """The family of Z-Image.

    Its pipelines count guidance as c + s (c - u); the scale here is s + 1, so that 1 is off as for every base.
    """

    name = "z-image"
    pipe = "ZImagePipeline"
    base = "Tongyi-MAI/Z-Image"
    targets: Mapping[str, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "transformer": _TRANSFORMER,
        "all": (*_TRANSFORMER, "adaLN_modulation.0"),
    }
    shift = 2.0

    def channels(self, components: Components) -> int:
        """Return the channels that the transformer reads."""
        return int(components.denoiser.config["in_channels"])

    def mu(self, components: Components, steps: int, shape: tuple[int, ...]) -> float:
        """Return a line in the number of tokens, where the scheduler's shift is not fixed."""
        return linear_mu(packed_tokens(shape), components.scheduler_config, 4096)

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return states (B, n, dim) and the mask of their tokens: the transformer reads no padding."""
        texts = asked(components, bare(prompts, plain), thinking=True)
        rows = token_rows(components, 0, texts, TOKENS, fill=False)
        out = components.text_encoders[0](input_ids=rows.ids, attention_mask=rows.mask, output_hidden_states=True)
        states = out.hidden_states[-2].to(components.device, components.dtype)
        return {"states": states, "mask": rows.mask.to(components.device)}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with their places in the turn of a conversation that Qwen3 reads."""

        def template(text: str) -> str:
            return asked(components, [text], thinking=True)[0]

        return word_places(components, 0, prompt, TOKENS, template=template)

    def seats(self, tokens: int, pictured: int) -> tuple[int, int] | None:
        """Return where picture and text begin: the picture first, filled up to a multiple."""
        return 0, math.ceil(pictured / FILLED) * FILLED

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity: minus what the transformer gives at 1 - t."""
        pairs = zip(conditioning["states"], conditioning["mask"], strict=True)
        words = [states[mask] for states, mask in pairs]
        pictures: Any = list(latents.unsqueeze(2).unbind(0))
        out = components.denoiser(pictures, 1 - levels(t, latents), words, return_dict=False)[0]
        return -torch.stack(out).squeeze(2)
