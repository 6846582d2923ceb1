"""LoRA on bases of published sizes with random weights: seconds a step and peak memory, quantised or not; for a GPU.

    python -m benchmarks.gpu                      # SDXL, FLUX.2 Klein 4B, Z-Image; at most 10 minutes
    python -m benchmarks.gpu --only z-image --quantise nf4
    python -m benchmarks.gpu --small --device cpu # the same on networks of a few layers, to try the script

1024 pixels, one picture a step, bf16, rank 16, gradient checkpointing. Denoisers have the published configurations;
text encoders have their width alone and autoencoders their latents, for both leave the GPU before the steps begin.
Beside the peak stands what `studio train --dry-run` predicts for weights and what is trained.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from PIL import Image
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from pipelines.models.components import Components
from pipelines.models.loading import from_pipeline
from pipelines.models.single_files import SHIPPED
from tests import tiny, tiny_flows
from trainers.data.folders import Example
from trainers.loop.launch import narrowed
from trainers.loop.memory import needed
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import run_of

STEPS, WARM, MINUTES = 8, 2, 10.0
FORMS = ("none", "int8", "nf4")


@contextmanager
def made_there(device: str, dtype: torch.dtype) -> Iterator[None]:
    """Make networks on the device and in a precision inside the `with`: random numbers are slow to make elsewhere."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def _vae(kind: Any, channels: int) -> Any:
    """Return an autoencoder of eight pixels a latent that is otherwise as small as can be."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return kind(block_out_channels=(8,) * 4, latent_channels=channels, norm_num_groups=2, layers_per_block=1, **blocks)


def _reader(kind: Any, layers: int) -> Any:
    """Return a language model of Qwen3-4B's width with narrow layers."""
    shape = {"hidden_size": 2560, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    words = {"vocab_size": tiny_flows.VOCABULARY, "max_position_embeddings": 1024, "head_dim": 64}
    return kind(Qwen3Config(num_hidden_layers=layers, **shape, **words))


def _wider(encoder: Any, width: int) -> Any:
    """Return a text encoder like another, of a width."""
    told = {"hidden_size": width, "intermediate_size": 64, "projection_dim": width}
    return type(encoder)(type(encoder.config)(**encoder.config.to_dict() | told))


def sdxl(small: bool) -> Any:
    """Return the parts of SDXL: its UNet, beside small text encoders of its widths."""
    pipeline = tiny.sdxl_pipeline()
    if not small:
        said = json.loads((SHIPPED / "sdxl.json").read_text(encoding="utf-8"))["unet"]
        pipeline.register_modules(
            unet=type(pipeline.unet).from_config(said),
            vae=_vae(AutoencoderKL, 4),
            text_encoder=_wider(pipeline.text_encoder, 768),
            text_encoder_2=_wider(pipeline.text_encoder_2, 1280),
        )
    return pipeline


def klein(small: bool) -> Any:
    """Return the parts of FLUX.2 Klein 4B."""
    if small:
        return tiny_flows.klein_pipeline()
    blocks = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    vae = _vae(AutoencoderKLFlux2, 32)
    return Flux2KleinPipeline(
        transformer=Flux2Transformer2DModel(**blocks, guidance_embeds=False),
        text_encoder=_reader(Qwen3ForCausalLM, 28),
        tokenizer=tiny_flows.qwen_tokenizer(),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        is_distilled=False,
    )


def z_image(small: bool) -> Any:
    """Return the parts of Z-Image."""
    if small:
        return tiny_flows.z_image_pipeline()
    transformer = ZImageTransformer2DModel()
    with torch.no_grad():  # made without values
        transformer.x_pad_token.fill_(0.1)
        transformer.cap_pad_token.fill_(0.1)
    return ZImagePipeline(
        transformer=transformer,
        vae=_vae(AutoencoderKL, 16),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=tiny_flows.qwen_tokenizer(),
        text_encoder=_reader(Qwen3Model, 3),
    )


SIZES: Mapping[str, Callable[[bool], Any]] = {"sdxl": sdxl, "klein-4b": klein, "z-image": z_image}


@dataclass(frozen=True)
class Figures:
    """The figures of one training.

    Attributes:
        base: name of the size.
        quantise: form of what is frozen; none for bf16.
        numbers: of the denoiser.
        seconds: median of a step.
        peak: bytes, largest that were allocated during the steps; 0 on a CPU.
        predicted: bytes of weights and what is trained.
    """

    base: str
    quantise: str
    numbers: int
    seconds: float
    peak: int
    predicted: int


def lora(name: str, form: str, device: str, small: bool = False) -> Figures:
    """Train a LoRA for some steps on a base of a size; return the figures."""
    cuda = device.startswith("cuda")
    with made_there(device, torch.bfloat16 if cuda else torch.float32):
        components = _frozen(from_pipeline(SIZES[name](small), name))
    numbers = sum(one.numel() for one in components.denoiser.parameters())
    settings = {"images": "x", "token": "cow", "class_word": "fox", "prior": "none", "rank": 16, "batch": 1}
    settings |= {"precision": "bf16" if cuda else "no", "gradient_checkpointing": True, "scale_lr": False}
    settings |= {"resolution": 32 if small else 1024, "steps": STEPS, "quantise": None if form == "none" else form}
    run = run_of(methods()["dreambooth"], settings | {"learning_rate": 1e-4})
    components = narrowed(components, run).to(device)
    side = int(settings["resolution"])
    noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    examples, moments = [Example("noise.png", Image.fromarray(noise))], []

    def asked() -> bool:  # once before each step
        if cuda:
            torch.cuda.synchronize()
            if len(moments) == WARM:
                torch.cuda.reset_peak_memory_stats()
        moments.append(time.perf_counter())
        return False

    concept = train(components, run, examples, should_stop=asked)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    seconds = median(after - before for before, after in zip(moments[WARM:], moments[WARM + 1 :], strict=False))
    trained = sum(change.up.numel() + change.down.numel() for change in concept.changes.values())  # pyright: ignore
    predicted = next(iter(needed(components, run, trained, 0, None).values()))
    return Figures(name, form, numbers, seconds, peak, predicted)


def _frozen(components: Components) -> Components:
    for module in components.modules():
        module.eval().requires_grad_(False)
    return components


def table(rows: list[Figures]) -> str:
    """Return the figures as a table."""
    head = "| base | numbers | frozen | a step, s | peak, GiB | weights predicted, GiB |\n|---|---|---|---|---|---|"
    lines = (
        f"| {row.base} | {row.numbers / 1e9:.2f} G | {row.quantise} | {row.seconds:.3f} | {row.peak / 2**30:.2f} "
        f"| {row.predicted / 2**30:.2f} |"
        for row in rows
    )
    return "\n".join([head, *lines])


def main() -> None:
    """Measure, until the time is over; print the table."""
    parser = argparse.ArgumentParser(description="LoRA on random weights of published sizes.")
    parser.add_argument("--only", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--quantise", nargs="*", choices=FORMS, default=list(FORMS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="networks of a few layers")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="begin no measurement after so long")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    asked = parser.parse_args()
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU; --small --device cpu tries the script.")
    began, rows = time.monotonic(), list[Figures]()
    for name in asked.only:
        for form in asked.quantise:
            if time.monotonic() - began < asked.minutes * 60:
                rows.append(lora(name, form, asked.device, asked.small))
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print(json.dumps([asdict(row) for row in rows], indent=1) if asked.format == "json" else table(rows))


if __name__ == "__main__":
    main()
