"""A base with a new UNet of 9 channels, as a model folder."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from pipelines.concepts.model_export import export_model
from pipelines.files import replace_folder
from pipelines.models.components import Components
from pipelines.models.fingerprint import is_gated
from pipelines.models.inpainting_unet import FOLDER, widened_shape, with_layers_of
from trainers.run import TRAINING, require_replaceable


@dataclass(frozen=True)
class InpaintingModel:
    """A base whose folder has a UNet of 9 channels beside its own.

    Attributes:
        base: the base.
        weights: of the UNet, by their names; float32.
        half: whether files hold float16.
        about: settings of the training, for the record in the folder.
        partners: nothing is learned beside it.
    """

    base: Components
    weights: Mapping[str, Tensor]
    half: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    partners: Sequence[InpaintingModel] = ()

    def described(self, recipe: Mapping[str, Any], base_fingerprint: str) -> InpaintingModel:
        """Return the same with the settings of the training and the base in its record."""
        return replace(self, about={**recipe, "base": base_fingerprint})

    def save(self, path: Path) -> Path:
        """Write the folder, whole or not at all; a model that a training wrote is replaced.

        Raises:
            ConfigError: if something else is there.
        """
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            model = export_model(self.base, [], temporary / "model", half=self.half)
            save_unet(self.base.unet, self.weights, model / FOLDER, torch.float16 if self.half else torch.float32)
            (model / TRAINING).write_text(json.dumps(self.about, indent=1) + "\n", "utf-8")
            replace_folder(model, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return path

    @contextmanager
    def attach(self, components: Components) -> Iterator[Components]:
        """Give the base the UNet of 9 channels inside the `with`."""
        components = replace(components, identity=components.fingerprint())
        yield replace(components, denoiser=with_layers_of(components.unet, self.weights, "the training"))


def save_unet(base: UNet2DConditionModel, weights: Mapping[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Write a UNet of 9 channels in the diffusers layout; `pipelines.models.inpainting_unet` reads it.

    Args:
        base: the UNet of 4 channels it was made of.
        weights: by their names; layers for boxes are left out.
        folder: folder to write.
        dtype: precision in the file.
    """
    unet = widened_shape(base)
    unet.load_state_dict({name: tensor.detach().cpu() for name, tensor in weights.items() if not is_gated(name)})
    torch.nn.Module.to(unet, dtype=dtype).save_pretrained(folder)  # pyright: ignore[reportCallIssue]
