"""Pictures as latents: buckets of shapes, encoding, and the folder that caches encodings between runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import ConfigError
from pipelines.files import whole_file
from pipelines.models.components import Components, Posterior, encode
from pipelines.pictures.tensors import fit, to_tensor

AT_ONCE = 4
"""Pictures encoded together where nothing is kept."""

LAYOUT = "1"
"""Part of every key: to be raised when the meaning of a kept file changes."""

WIDEST = 2.0
"""Largest ratio of the sides of a bucket; pictures that are longer lose their ends."""

Shape = tuple[int, int]
"""Width and height in pixels."""


def shapes(resolution: int, step: int) -> list[Shape]:
    """Return shapes of about resolution² pixels between 1:2 and 2:1, square among them, sides multiples of `step`.

    >>> shapes(64, 16)
    [(48, 80), (48, 96), (64, 64), (80, 48), (96, 48)]
    """
    square = max(step, round(resolution / step) * step)
    found = {(square, square)}
    for width in range(step, math.ceil(resolution * math.sqrt(WIDEST)) + step, step):
        height = max(step, round(resolution**2 / width / step) * step)
        if max(width, height) <= WIDEST * min(width, height):
            found |= {(width, height), (height, width)}
    return sorted(found)


def nearest(size: Shape, among: Sequence[Shape]) -> Shape:
    """Return the shape whose aspect ratio is nearest to that of `size`, on a logarithmic scale."""
    aspect = math.log(size[0] / size[1])
    return min(among, key=lambda shape: (round(abs(math.log(shape[0] / shape[1]) - aspect), 9), shape))


def fitted(picture: Image.Image, shape: Shape, crop: bool) -> Image.Image:
    """Return the picture in a shape: scaled to cover it and cropped in the middle, or squeezed."""
    return fit(picture, *shape) if crop else picture.resize(shape, Image.Resampling.BICUBIC)


def cut_off(size: Shape, shape: Shape, crop: bool) -> tuple[int, int]:
    """Return the pixels that `fitted` cuts off at the top and at the left, an input of SDXL.

    Counted after scaling, as the official SDXL scripts do, whose shorter side is scaled to the shape and whose longer
    one follows, rounded down.

    >>> cut_off((60, 20), (16, 16), True), cut_off((60, 20), (16, 16), False)
    ((0, 16), (0, 0))
    """
    if not crop:
        return 0, 0
    factor = max(Fraction(inner, outer) for inner, outer in zip(shape, size, strict=True))
    columns, rows = (round(Fraction(int(outer * factor) - inner, 2)) for outer, inner in zip(size, shape, strict=True))
    return max(0, rows), max(0, columns)


def fitted_mask(mask: Image.Image | None, cells: Shape, crop: bool) -> Tensor:
    """Return the mask (1, h, w) float32 in [0, 1] on the latents' grid, the white share of each cell; ones for None.

    Args:
        mask: grey, white where the thing is.
        cells: width and height of the grid, of the same proportions as the shape of the picture.
        crop: as for the picture.
    """
    if mask is None:
        return torch.ones(1, cells[1], cells[0])
    grey, box = mask.convert("L"), Image.Resampling.BOX
    small = ImageOps.fit(grey, cells, box) if crop else grey.resize(cells, box)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255)[None]


class Encoder:
    """The autoencoder of a base with a cache of its results, if it is given a folder.

    What is kept is named by the pixels that go in (after scaling and cropping), their shape, whether they are mirrored,
    and every weight of the autoencoder, so that nothing is ever used for anything else. Files that are damaged are
    encoded again.

    Args:
        components: whose autoencoder encodes.
        cache: folder for what was encoded; it may be shared by many runs and base models.
    """

    def __init__(self, components: Components, cache: Path | None = None) -> None:
        self.components, self.cache = components, cache
        self.base = _autoencoder_digest(components) if cache else ""

    def __call__(self, pictures: Sequence[Image.Image], mirrored: bool = False) -> Posterior:
        """Return the posteriors (B, C, h, w) float32 of pictures that are all of one shape.

        With a cache each picture is encoded by itself, so that a result does not depend on what was there before.

        Raises:
            ConfigError: if the cache cannot be written.
        """
        if self.cache is None:
            parts = [self._encoded(pictures[i : i + AT_ONCE], mirrored) for i in range(0, len(pictures), AT_ONCE)]
        else:
            parts = [self._kept(picture, mirrored, self.cache) for picture in pictures]
        return Posterior(torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts]))

    def _encoded(self, pictures: Sequence[Image.Image], mirrored: bool) -> Posterior:
        tensors = torch.stack([to_tensor(picture) for picture in pictures])
        posterior = encode(self.components, tensors.flip(-1) if mirrored else tensors)
        return Posterior(posterior.mean.float(), posterior.std.float())

    def _kept(self, picture: Image.Image, mirrored: bool, cache: Path) -> Posterior:
        key = hashlib.sha256(f"{LAYOUT} {self.base} {picture.mode} {picture.size} {mirrored} ".encode())
        key.update(picture.tobytes())
        path = cache / f"{key.hexdigest()}.safetensors"
        found = _load(path)
        if found is None:
            found = self._encoded([picture], mirrored)
            _save(path, found)
        device = self.components.device
        return Posterior(found.mean.to(device), found.std.to(device))


def _autoencoder_digest(components: Components) -> str:
    """Return a hash of all that affects the encoding: kind, configuration, precision, device, weights."""
    vae = components.vae
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_")}
    said = json.dumps(config, sort_keys=True, default=str)
    about = [type(vae).__name__, str(vae.dtype), components.device.type, said]
    digest = hashlib.sha256("\n".join(about).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _checksum(posterior: Posterior) -> str:
    digest = hashlib.sha256(_bytes(posterior.mean))
    digest.update(_bytes(posterior.std))
    return digest.hexdigest()


def _load(path: Path) -> Posterior | None:
    """Read a cache entry; None if there is none, or it is damaged."""
    try:
        with safe_open(path, "pt") as stored:
            posterior = Posterior(stored.get_tensor("mean"), stored.get_tensor("std"))
            whole = (stored.metadata() or {}).get("sha256") == _checksum(posterior)
    except (OSError, SafetensorError, ValueError, RuntimeError):
        return None
    return posterior if whole else None


def _save(path: Path, posterior: Posterior) -> None:
    tensors = {"mean": posterior.mean.cpu().contiguous(), "std": posterior.std.cpu().contiguous()}
    hint = "Choose another --cache, or train without."
    try:
        with whole_file(path) as temporary:
            save_file(tensors, temporary, metadata={"sha256": _checksum(posterior)})
    except ConfigError as error:
        raise type(error)(error.message, hint) from None
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path} cannot be written: {error}.", hint) from None
