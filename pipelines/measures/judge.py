"""The judge: a small CLIP that names stickers and measures pictures, independent of the generator it scores.

Text goes through a transformers `CLIPTextModelWithProjection`, pictures through a small convolutional tower that is
quick on a CPU. Both give unit vectors, so a dot product is a similarity in [-1, 1].
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from pipelines.errors import ModelError

INPUT = 64  # pixels a side that the picture tower was trained on


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def _picture_tower(widths: tuple[int, ...], dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    before = 3
    for level, width in enumerate(widths):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [_Residual(width)] if level else []
        before = width
    side = INPUT >> len(widths)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side * side, dim))


class Judge(nn.Module):
    """Picture and text towers with a shared space.

    Args:
        tokenizer: reads the captions.
        text: configuration of the text tower; `projection_dim` is the size of the shared space.
        widths: channels of the picture tower; each level halves the picture.
    """

    def __init__(
        self, tokenizer: CLIPTokenizer, text: CLIPTextConfig, widths: tuple[int, ...] = (32, 48, 96, 160)
    ) -> None:
        super().__init__()
        self.tokenizer, self.widths = tokenizer, widths
        self.text = CLIPTextModelWithProjection(text)
        self.pictures = _picture_tower(widths, int(text.projection_dim or 0))
        self.log_scale = nn.Parameter(torch.tensor(2.66))  # CLIP's initial temperature, 1/0.07

    def embed_pictures(self, images: Tensor) -> Tensor:
        """Return unit vectors (B, D) of pictures (B, 3, H, W) in [-1, 1]; other sizes are resized to 64."""
        if images.shape[-2:] != (INPUT, INPUT):
            images = F.interpolate(images, size=(INPUT, INPUT), mode="bilinear", antialias=True, align_corners=False)
        return F.normalize(self.pictures(images), dim=-1)

    def embed_texts(self, texts: list[str]) -> Tensor:
        """Return unit vectors (B, D) of captions."""
        # Attention is causal and the vector is read at the end token, so padding to the longest changes nothing.
        ids = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").input_ids
        return F.normalize(self.text(ids.to(self.log_scale.device)).text_embeds, dim=-1)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write `config.json`, the tokenizer and fp16 `model.safetensors`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        config = {"text": self.text.config.to_dict(), "widths": list(self.widths)}
        (folder / "config.json").write_text(json.dumps(config, indent=1, default=str), encoding="utf-8")
        state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: Path) -> Judge:
        """Read a judge in evaluation mode, float32, on the CPU.

        Raises:
            ModelError: if the folder holds none.
        """
        if not (folder / "model.safetensors").exists():
            raise ModelError(f"There is no judge in {folder}.", "Train one: python -m trainers.pretrain judge")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            judge = cls(
                CLIPTokenizer.from_pretrained(folder), CLIPTextConfig.from_dict(config["text"]), tuple(config["widths"])
            )
            judge.load_state_dict(load_file(folder / "model.safetensors"))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(f"The judge in {folder} cannot be read: {first}", "Get the folder anew.") from None
        return judge.float().eval().requires_grad_(False)
