"""The untrained parts of `pocket` and their sizes; one place for every number of the architecture."""

from __future__ import annotations

from typing import Any

from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTokenizer

from trainers.pretrain.vocabulary import MAX_LENGTH

WIDTH = 128  # of the text encoder, and so of the cross-attention


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """Return the shape of the text encoder (and of the judge's text tower, which it starts from)."""
    special: Any = tokenizer  # its special ids are typed as anything
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
    )


def autoencoder() -> AutoencoderTiny:
    """Return an autoencoder of 4 latent channels at a quarter of the side; `scaling_factor` is set after training."""
    return AutoencoderTiny(
        encoder_block_out_channels=(48, 48, 48),
        decoder_block_out_channels=(48, 48, 48),
        num_encoder_blocks=(1, 2, 4),
        num_decoder_blocks=(4, 3, 1),
        latent_channels=4,
    )


def unet(size: int = 64) -> UNet2DConditionModel:
    """Return a UNet of three levels, cross-attention at the lower two and in the middle, gated layers in each.

    Narrow on purpose: on a CPU, twice the samples teach more than twice the width.

    Args:
        size: side of the pictures in pixels; the latents are a quarter of it.
    """
    return UNet2DConditionModel(
        sample_size=size // 4,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,  # diffusers' name for the number of heads
        attention_type="gated",
    )


def scheduler() -> DDIMScheduler:
    """Return a DDIM of v-prediction with zero terminal SNR (arXiv:2305.08891), for backgrounds of any colour."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,  # the default clips predicted latents to [-1, 1] and wrecks the colours
        set_alpha_to_one=True,
        steps_offset=1,  # plain pipelines insist on it; trailing spacing does not use it
    )
