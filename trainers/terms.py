"""Loss terms and what they need, as functions of plain tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pipelines.components import Components
from pipelines.errors import ModelError
from pipelines.prompts import encode_ids


def noise_levels(config: Any, device: torch.device) -> Tensor:
    """Cumulative products of 1 - beta (T,) float32 of a base's noise schedule."""
    from diffusers import DDPMScheduler

    known = {key: value for key, value in dict(config).items() if not key.startswith("_")}
    return DDPMScheduler.from_config(known).alphas_cumprod.to(device, torch.float32)  # pyright: ignore


def noised(clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Latents at noise levels (B,): sqrt(a) clean + sqrt(1 - a) noise (arXiv:2006.11239, eq. 4)."""
    a = levels[:, None, None, None]
    return a.sqrt() * clean + (1 - a).sqrt() * noise


def target(kind: str, clean: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """What the UNet is to predict.

    Args:
        kind: "epsilon", "v_prediction" (arXiv:2202.00512, appendix D) or "sample".
        clean: (B, C, h, w) scaled latents.
        noise: the noise in them.
        levels: (B,) cumulative products at their timesteps.

    Raises:
        ModelError: for another kind.
    """
    a = levels[:, None, None, None]
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return a.sqrt() * noise - (1 - a).sqrt() * clean
    if kind == "sample":
        return clean
    raise ModelError(f"The base predicts {kind!r}.", "Known are epsilon, v_prediction and sample.")


def prompt_ids(components: Components, which: int, captions: list[str]) -> Tensor:
    """Token ids (B, window) of captions, concepts of several vectors written out, cut at the window."""
    tokenizer = components.tokenizers[which]
    room, window = tokenizer.model_max_length - 2, tokenizer.model_max_length
    rows: list[list[int]] = []
    for caption in captions:
        ids: list[int] = []
        for token in tokenizer(caption, add_special_tokens=False, verbose=False).input_ids:
            ids += components.expansions.get(token, (token,))
        row = [tokenizer.bos_token_id, *ids[:room], tokenizer.eos_token_id]
        rows.append(row + [tokenizer.pad_token_id] * (window - len(row)))
    return torch.tensor(rows, device=components.text_encoders[which].device)


def conditioning(components: Components, captions: list[str], sizes: Tensor, resolution: int) -> dict[str, Any]:
    """UNet arguments for captions; gradients reach the text encoders' input rows.

    Args:
        components: the base, with any new words attached.
        captions: one a picture.
        sizes: (B, 2) original heights and widths, for SDXL.
        resolution: side of the training pictures, for SDXL.
    """
    encoded = [
        encode_ids(components, which, prompt_ids(components, which, captions))
        for which in range(len(components.text_encoders))
    ]
    context = torch.cat([part for part, _ in encoded], dim=-1).to(components.dtype)
    if components.family != "sdxl":
        return {"encoder_hidden_states": context}
    rest = torch.tensor([[0, 0, resolution, resolution]]).expand(len(sizes), 4)
    ids = torch.cat((sizes, rest), dim=1).to(components.device, components.dtype)
    pooled = encoded[-1][1].to(components.dtype)
    return {"encoder_hidden_states": context, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}


def denoising_loss(
    components: Components, clean: Tensor, timesteps: Tensor, noise: Tensor, levels: Tensor, arguments: dict[str, Any]
) -> Tensor:
    """Mean squared error of the UNet's prediction, in float32 (arXiv:2112.10752, eq. 2).

    Args:
        components: the base.
        clean: (B, C, h, w) scaled latents.
        timesteps: (B,) ints.
        noise: (B, C, h, w).
        levels: (T,) of `noise_levels`.
        arguments: conditioning of the UNet.
    """
    level = levels[timesteps]
    noisy = noised(clean, noise, level).to(components.dtype)
    guess = components.unet(noisy, timesteps, **arguments).sample.float()
    kind = str(components.scheduler_config.get("prediction_type", "epsilon"))
    return (guess - target(kind, clean, noise, level)).square().mean()
