"""The pictures and concepts of the UNet families, number by number as it was before families had a seam.

`golden_numbers.safetensors` holds up to 64 values of each result, evenly spaced, and the SHA-256 of all of them; on
the kind of machine that made it the sums must be equal, elsewhere the values to 1e-4. Made anew, after a change that
is meant to change numbers, by `python -m tests.trainers.test_golden_numbers`.
"""

from __future__ import annotations

import hashlib
import json
import platform
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors import safe_open
from safetensors.torch import save_file

from pipelines import load
from pipelines.conditions.inpaint import Inpainting
from pipelines.generation import generate
from pipelines.request.request import Guidance, Request
from tests import tiny
from trainers.loop.train import train
from trainers.methods import methods
from trainers.run import Run
from trainers.settings import DataConfig, TrainConfig

STORED = Path(__file__).parent / "golden_numbers.safetensors"
KEPT = 64


def machine():
    """Return all that decides the last bits: library, instruction set, kind of processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {platform.machine()} {model}"


BASES = {
    "sd": tiny.sd,
    "v": lambda: tiny.sd(prediction_type="v_prediction"),
    "sample": lambda: tiny.sd(prediction_type="sample"),
    "xl": tiny.sdxl,
    "lcm": lambda: tiny.frozen(tiny.from_pipeline(tiny.lcm_pipeline(), "tiny-lcm")),
    "xl-lcm": lambda: tiny.frozen(tiny.from_pipeline(tiny.lcm_pipeline(xl=True), "tiny-xl-lcm")),
    "nine": tiny.sd_inpaint,
    "pocket": load,
}
PICTURE = Image.radial_gradient("L").resize((32, 32)).convert("RGB")
MASK = Image.new("L", (32, 32))
ImageDraw.Draw(MASK).rectangle((9, 5, 22, 25), fill=255)


def drawing(base, canvas="", **asked):
    def run():
        side = 64 if base == "pocket" else 32
        canvases = {
            "image": lambda: [Inpainting(PICTURE.resize((side, side)), strength=0.6)],
            "mask": lambda: [Inpainting(PICTURE.resize((side, side)), MASK.resize((side, side)), strength=0.8)],
        }
        fields = {"prompt": "a (red:1.3) fox on a hat", "negative_prompt": "a cat", "steps": 5, "count": 2} | asked
        request = Request(**fields, width=side, height=side, seed=3)
        return generate(BASES[base](), request, conditions=canvases.get(canvas, list)()).latents

    return run


def learning(base, method, pace=(), **settings):
    def run():
        kind = methods()[method]
        known = {"token": "<thing>", "class_word": "fox", "init": "fox"}
        config = kind.Settings(**{k: v for k, v in known.items() if k in kind.Settings.model_fields} | settings)
        fields = {"steps": 3, "batch": 2, "learning_rate": 1e-2, "scale_lr": False} | dict(pace)
        data = DataConfig(images="unused", resolution=64 if base == "pocket" else 16)
        concept = train(BASES[base](), Run(kind, config, TrainConfig(**fields), data), tiny.examples())
        return torch.cat([tensor.float().flatten() for _, tensor in sorted(concept.tensors().items())])

    return run


CASES = {
    "sd text": drawing("sd"),
    "sd long prompt, rescale": drawing("sd", prompt="fox " * 90, guidance=Guidance(scale=5, rescale=0.7, stop=0.6)),
    "sd ancestral": drawing("sd", scheduler="euler-a"),
    "sd ddim, clip skip": drawing("sd", scheduler="ddim", eta=0.5, clip_skip=2),
    "sd image": drawing("sd", "image"),
    "sd mask": drawing("sd", "mask", scheduler="euler"),
    "v text": drawing("v"),
    "v unipc mask": drawing("v", "mask", scheduler="unipc"),
    "xl text": drawing("xl"),
    "xl zeros": drawing("xl", negative_prompt=""),
    "xl image": drawing("xl", "image"),
    "xl mask": drawing("xl", "mask"),
    "lcm text": drawing("lcm"),
    "xl-lcm text": drawing("xl-lcm"),
    "nine mask": drawing("nine", "mask"),
    "pocket text": drawing("pocket"),
    "pocket image": drawing("pocket", "image"),
    "pocket mask": drawing("pocket", "mask"),
    "sd word": learning("sd", "textual-inversion"),
    "v word, min-SNR, offset": learning("v", "textual-inversion", snr_gamma=5.0, offset_noise=0.1, vectors=2),
    "sample word": learning("sample", "textual-inversion", snr_gamma=5.0, spread_timesteps=True),
    "xl word": learning("xl", "textual-inversion"),
    "lcm word": learning("lcm", "textual-inversion"),
    "sd LoRA": learning("sd", "dreambooth", token="cow", text_encoder=True),
    "sd full": learning("sd", "dreambooth", {"learning_rate": 1e-4}, token="cow", form="full"),
    "xl LoRA, pivotal": learning("xl", "dreambooth", pivotal=True, snr_gamma=5.0),
    "xl LoRA, frozen text": learning("xl", "dreambooth", token="cow"),
    "sd keys and values": learning("sd", "custom-diffusion", {"learning_rate": 1e-3}),
    "sd relation": learning("sd", "reversion", init="and", left="fox", right="cat", lora=True),
    "xl relation": learning("xl", "reversion", init="and", left="fox", right="cat"),
    "pocket word": learning("pocket", "textual-inversion"),
    "pocket LoRA": learning("pocket", "dreambooth", {"learning_rate": 1e-3}, token="cow", text_encoder=True),
}


def digest(values):
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()


def some(values):
    """Up to `KEPT` values, evenly spaced."""
    return values.flatten()[torch.linspace(0, values.numel() - 1, min(KEPT, values.numel())).long()].clone()


@cache
def stored():
    with safe_open(STORED, "pt") as file:
        return {name: file.get_tensor(name) for name in CASES}, file.metadata()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_before(case):
    tensors, said = stored()
    found = CASES[case]()
    assert (some(found) - tensors[case]).abs().max() < 1e-4
    if said["machine"] == machine():
        assert digest(found) == json.loads(said["sums"])[case]


def test_a_changed_bit_is_noticed():
    values = torch.arange(200.0)
    changed = values.clone()
    changed[77] = torch.nextafter(changed[77], torch.tensor(1e9))
    assert digest(values) == digest(values.clone()) != digest(changed)
    assert len(some(values)) == KEPT and some(values)[-1] == 199


def write():
    torch.set_num_threads(1)
    found = {name: case() for name, case in CASES.items()}
    sums = json.dumps({name: digest(values) for name, values in found.items()})
    tensors = {name: some(values) for name, values in found.items()}
    save_file(tensors, STORED, metadata={"machine": machine(), "sums": sums})


if __name__ == "__main__":
    write()
