"""Grounded generation here and in diffusers' deprecated GLIGEN pipeline: same base, boxes, steps and noise, in one run.

    python -m benchmarks.boxes                        # pocket
    python -m benchmarks.boxes --base sd1 --device cuda --dtype float16   # Stable Diffusion 1.5's size, random weights

Whole calls are timed: encoding of the texts, all steps, decoding. The two take turns, so that a machine that slows
down slows both, and on a CPU it is the time of this process that counts, not that of others. The table shows medians,
and the middle half of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import AutoencoderTiny, StableDiffusionGLIGENPipeline, UNet2DConditionModel
from diffusers.utils import logging
from transformers import CLIPTextConfig, CLIPTextModel

from pipelines.generation import generate
from pipelines.models.components import Components
from pipelines.models.families.registry import FAMILIES
from pipelines.models.loading import load
from pipelines.models.schedulers import build
from pipelines.request.request import Box, Grounding, Guidance, Request
from trainers.initial_weights import initial_weights

BOXES = (Box(phrase="fox", box=(0.05, 0.1, 0.45, 0.6)), Box(phrase="house", box=(0.5, 0.4, 0.95, 0.9)))


def base_of(name: str, device: str, dtype: torch.dtype) -> Components:
    """Pocket, a folder, or `sd1`: the networks of Stable Diffusion 1.5 with random weights and a tiny autoencoder."""
    if name != "sd1":
        return load(name, device=device, dtype=dtype)
    pocket = load("pocket")
    tokenizer = pocket.tokenizers[0]
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with initial_weights(0):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_type="gated")
        parts = Components(
            unet,
            AutoencoderTiny(),
            (CLIPTextModel(text),),
            pocket.tokenizers,
            pocket.scheduler_config,
            name,
            FAMILIES["sd1"],
        )
    for module in parts.modules():
        module.eval().requires_grad_(False)
    return parts.to(device, dtype)


def opened(components: Components) -> Components:
    """Gates that are open: closed ones would cost the same, but show no difference in what is drawn."""
    with torch.no_grad():
        for name, parameter in components.unet.named_parameters():
            if "alpha_" in name and float(parameter) == 0:
                parameter.fill_(0.5)
    return components


def both(components: Components, request: Request) -> tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """One call of each kind; the second gives its latents or, as the first, decodes them."""
    request = request.resolved(components.defaults)
    logging.set_verbosity_error()
    pipeline = StableDiffusionGLIGENPipeline(
        vae=components.vae,
        text_encoder=components.text_encoders[0],
        tokenizer=components.tokenizers[0],
        unet=components.unet,
        scheduler=build(request.scheduler or "ddim", components.scheduler_config, int(request.steps or 1), "cpu"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> torch.Tensor:
        return generate(components, request).latents

    def theirs(output: str = "pil") -> torch.Tensor:
        return pipeline(
            request.prompt,
            num_images_per_prompt=request.count,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance.scale,
            gligen_scheduled_sampling_beta=request.grounding.beta,
            gligen_phrases=[box.phrase for box in request.boxes],
            gligen_boxes=[list(box.box) for box in request.boxes],
            generator=[torch.Generator().manual_seed(request.seed + i) for i in range(request.count)],
            output_type=output,
        ).images

    difference = (ours() - theirs("latent").float().cpu()).abs().max()
    print(f"beta {request.grounding.beta:g}: largest difference of latents {float(difference):.1e}")
    return ours, theirs


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Return the seconds of a call; it ends with pictures on the CPU, so nothing is left running on a GPU."""
    began = clock()
    call()
    return clock() - began


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--base", default="pocket")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    options.add_argument("--steps", type=int, default=25)
    options.add_argument("--count", type=int, default=1)
    options.add_argument("--repeats", type=int, default=15)
    options.add_argument("--beta", type=float, nargs="*", default=[1.0, 0.3])
    given = options.parse_args()
    components = opened(base_of(given.base, given.device, getattr(torch, given.dtype)))
    where = (
        torch.cuda.get_device_name() if components.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    )
    print(
        f"{given.base}, {given.dtype}, {where}, {given.steps} steps, {given.count} pictures, torch {torch.__version__}"
    )
    rows: list[str] = []
    for beta in given.beta:
        request = Request(
            prompt="a fox and a house",
            boxes=BOXES,
            grounding=Grounding(beta=beta),
            guidance=Guidance(scale=4.0, rescale=0.0),
            scheduler="ddim",
            steps=given.steps,
            count=given.count,
        )
        ours, theirs = both(components, request)
        clock = time.process_time if components.device.type == "cpu" else time.perf_counter
        times = [(seconds(ours, clock), seconds(theirs, clock)) for _ in range(given.repeats)]
        mine, others = (statistics.median(column) for column in zip(*times, strict=True))
        low, middle, high = statistics.quantiles((b / a for a, b in times), n=4)
        rows.append(f"| {beta:g} | {mine:.3f} | {others:.3f} | {middle:.2f} | {low:.2f} to {high:.2f} |")
    print("\n| beta | here, s | diffusers, s | faster by | middle half |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
