"""Krea 2: many layers of a vision-language model as text, padding inside the template, one stream of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pipelines.models.components import Components, Conditioning
from pipelines.models.families.language import bare, length_of, token_rows
from pipelines.models.families.qwen_image import PREFIX, SUFFIX, QwenAutoencoder, behind_prefix
from pipelines.models.families.rectified_flow import grid_ids, levels, pack, packed_tokens, unpack
from pipelines.models.flow import linear_mu

TOKENS = 512
LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)
"""Hidden states that are read where the base does not say which."""

_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_gate", "attn.to_out.0")
_TRANSFORMER = (*_ATTENTION, "ff.gate", "ff.up", "ff.down")


class Krea2(QwenAutoencoder):
    """The family of Krea 2.

    Its pipeline counts guidance as c + s (c - u); the scale here is s + 1, so that 1 is off as for every base.
    """

    name = "krea2"
    pipe = "Krea2Pipeline"
    base = "krea/Krea-2-Raw"
    targets: Mapping[str, tuple[str, ...]] = {
        "attention": _ATTENTION,
        "transformer": _TRANSFORMER,
        "all": (*_TRANSFORMER, "text_fusion.projector", "txt_in.linear_1", "txt_in.linear_2", "time_mod_proj"),
    }
    shift = 2.5

    def mu(self, components: Components, steps: int, shape: tuple[int, ...]) -> float:
        """Return a line in the number of tokens; 1.15 for the distilled model."""
        if components.options.get("is_distilled"):
            return 1.15
        return linear_mu(packed_tokens(shape), components.scheduler_config, 6400)

    def encode_text(
        self, components: Components, prompts: Sequence[str], *, skip: int = 0, plain: bool = False
    ) -> Conditioning:
        """Return the states of several layers (B, 512, layers, dim), and the mask of their tokens.

        The template is as long as the tokenizer makes it: 34 tokens before the prompt and 5 behind it with the
        published one, as diffusers has it.
        """
        drop, end = length_of(components, PREFIX), length_of(components, SUFFIX)
        texts = [f"{PREFIX}{prompt}" for prompt in bare(prompts, plain)]
        rows = token_rows(components, 0, texts, TOKENS + drop - end)
        behind = token_rows(components, 0, [SUFFIX] * len(texts), end)
        ids, mask = torch.cat([rows.ids, behind.ids], dim=1), torch.cat([rows.mask, behind.mask], dim=1)
        # The padding stands before the suffix, which must be placed as if it were not there.
        places = (mask.long().cumsum(dim=-1) - 1).clamp(min=0)
        out = components.text_encoders[0](
            input_ids=ids,
            attention_mask=mask,
            position_ids=places.unsqueeze(0).expand(3, -1, -1),
            output_hidden_states=True,
        )
        layers = components.options.get("text_encoder_select_layers") or LAYERS
        states = torch.stack([out.hidden_states[layer] for layer in layers], dim=2)[:, drop:]
        return {"states": states.to(components.device, components.dtype), "mask": mask[:, drop:].to(components.device)}

    def words(self, components: Components, prompt: str) -> list[tuple[str, list[int]]]:
        """Return the words with their places behind the system's sentence."""
        return behind_prefix(components, prompt, TOKENS - length_of(components, SUFFIX))

    def predict(self, components: Components, latents: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the velocity of packed latents, text at the origin and pictures on a grid of positions."""
        height, width = latents.shape[-2:]
        states = conditioning["states"]
        words = torch.zeros(states.shape[1], 3, device=latents.device)
        out = components.denoiser(
            hidden_states=pack(latents),
            encoder_hidden_states=states,
            timestep=levels(t, latents),
            position_ids=torch.cat([words, grid_ids(height // 2, width // 2, 3, 1, latents.device)]),
            encoder_attention_mask=conditioning["mask"],
            return_dict=False,
        )[0]
        return unpack(out, height, width)
