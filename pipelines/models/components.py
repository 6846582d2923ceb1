"""Components: the diffusers and transformers objects of one base model, and their loading.

No wrapper and no globals: a `Components` is a frozen bundle, `dataclasses.replace` gives a variant of it. Stable
Diffusion 1.x, 2.x and XL in the diffusers layout are read, single-file checkpoints are converted, and `"pocket"` is the
small model in this repository, which is the default everywhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from pipelines.errors import ModelError
from pipelines.models import POCKET
from pipelines.models.config_limits import UNREADABLE, require_buildable
from pipelines.models.fingerprint import weights_identity
from pipelines.models.text_hooks import TextHook
from pipelines.request.request import Defaults

Family = Literal["pocket", "sd1", "sd2", "sdxl"]
Attention = Literal["sdpa", "xformers", "eager"]
TextEncoder = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class Components:
    """One base model.

    Attributes:
        unet: the denoiser.
        vae: KL or tiny autoencoder.
        text_encoders: one, or two for SDXL (the second with a projection).
        tokenizers: one for each text encoder.
        scheduler_config: configuration every scheduler is built from.
        name: name the person gave.
        family: decides text encoding, defaults and compatibility.
        zero_empty: SDXL's rule that an empty negative prompt is all zeros rather than an encoded empty text.
        expansions: token id -> ids it stands for, for concepts of several vectors.
        identity: fingerprint taken at loading; empty for parts put together in memory.
        text_hooks: each wraps the text encoding, the later around the earlier; parts of concepts put them there.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL | AutoencoderTiny
    text_encoders: tuple[TextEncoder, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    scheduler_config: Mapping[str, Any]
    name: str
    family: Family
    zero_empty: bool = False
    expansions: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    identity: str = ""
    text_hooks: tuple[TextHook, ...] = ()

    @property
    def device(self) -> torch.device:
        """The device of the UNet."""
        return next(self.unet.parameters()).device  # diffusers' own property walks over all modules each time

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the UNet."""
        return next(self.unet.parameters()).dtype

    @property
    def factor(self) -> int:
        """Pixels per latent along a side."""
        return 2 ** (len(self.vae.config["block_out_channels"]) - 1)

    @property
    def multiple(self) -> int:
        """The number that width and height of a picture in pixels must be a multiple of."""
        return self.factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1)

    @property
    def distilled(self) -> bool:
        """Return whether the UNet was distilled with guidance and takes its scale (LCM)."""
        return self.unet.config["time_cond_proj_dim"] is not None

    @property
    def defaults(self) -> Defaults:
        """The settings of a request that gives none."""
        size = int(self.unet.config["sample_size"]) * self.factor
        if self.family == "pocket":
            return Defaults(size=size, scale=2.0, rescale=0.0, scheduler="ddim", steps=25, beta=1.0)
        if self.distilled:
            return Defaults(size=size, scale=8.5, rescale=0.0, scheduler="lcm", steps=4)
        zero_snr = bool(self.scheduler_config.get("rescale_betas_zero_snr"))
        return Defaults(size=size, scale=5.0 if self.family == "sdxl" else 7.5, rescale=0.7 if zero_snr else 0.0)

    def modules(self) -> tuple[torch.nn.Module, ...]:
        """Return all networks."""
        return (self.unet, self.vae, *self.text_encoders)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Components:
        """Move the networks in place and return self."""
        for module in self.modules():
            # The plain method: that of diffusers warns of every cast.
            torch.nn.Module.to(module, device, dtype)
        return self

    def fingerprint(self) -> str:
        """Return 16 hex digits that identify a base model, whatever its file layout or the precision it is used in."""
        return self.identity or weights_identity(self)


def word_table(encoder: torch.nn.Module) -> Any:
    """Return the module that looks token ids up; its `weight` is (words, dim)."""
    return encoder.get_input_embeddings()  # pyright: ignore[reportCallIssue]


# -- latents ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Posterior:
    """The autoencoder's distribution for a picture: scaled latents are mean + std * noise.

    Attributes:
        mean: (B, C, h, w), already scaled.
        std: (B, C, h, w), already scaled; zeros for a tiny autoencoder, which has no spread.
    """

    mean: Tensor
    std: Tensor

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """Return scaled latents; draws noise even where std is zero, so that any base advances the generator alike."""
        noise = torch.randn(self.mean.shape, generator=generator, dtype=torch.float32)
        return self.mean + self.std * noise.to(self.mean)


@torch.no_grad()
def encode(components: Components, images: Tensor) -> Posterior:
    """Encode pictures (B, 3, H, W) in [-1, 1]."""
    vae = components.vae
    scale = vae.config["scaling_factor"]
    with _wide_enough(vae):
        latent: Any = vae.encode(images.to(vae.device, vae.dtype), return_dict=False)[0]
    if isinstance(vae, AutoencoderTiny):
        return Posterior(latent * scale, torch.zeros_like(latent))
    shift = vae.config["shift_factor"] or 0.0
    return Posterior((latent.mean - shift) * scale, latent.std * scale)


@torch.no_grad()
def decode(components: Components, latents: Tensor) -> Tensor:
    """Decode scaled latents to pictures (B, 3, H, W) in [-1, 1], float32."""
    vae = components.vae
    shift = 0.0 if isinstance(vae, AutoencoderTiny) else vae.config["shift_factor"] or 0.0
    with _wide_enough(vae):
        raw = latents.to(vae.device, vae.dtype) / vae.config["scaling_factor"] + shift
        return vae.decode(raw, return_dict=False)[0].float().clamp(-1, 1)


@contextmanager
def saving_memory(components: Components, tiling: bool, slicing: bool) -> Iterator[None]:
    """Let the autoencoder work in tiles, or on one picture at a time, inside the `with`."""
    vae: Any = components.vae
    before = vae.use_tiling, vae.use_slicing
    vae.use_tiling, vae.use_slicing = before[0] or tiling, before[1] or slicing
    try:
        yield
    finally:
        vae.use_tiling, vae.use_slicing = before


@contextmanager
def _wide_enough(vae: AutoencoderKL | AutoencoderTiny) -> Iterator[None]:
    """Use SDXL's autoencoder in float32 inside the `with` where its configuration says that float16 overflows."""
    dtype = vae.dtype
    upcast = dtype == torch.float16 and bool(vae.config["force_upcast"])
    if upcast:
        torch.nn.Module.to(vae, dtype=torch.float32)
    try:
        yield
    finally:
        if upcast:
            torch.nn.Module.to(vae, dtype=dtype)


# -- loading ----------------------------------------------------------------------------------------------------


def load(
    base: str | Path = "pocket",
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: Attention = "sdpa",
    download: bool = False,
    base_config: str | Path | None = None,
) -> Components:
    """Load a base model in evaluation mode with frozen weights.

    Args:
        base: "pocket", a folder in the diffusers layout, a single-file `.safetensors` checkpoint, or a hub id.
        device: target device.
        dtype: precision; always the one asked for, whatever the files hold.
        attention: implementation used in the UNet.
        download: whether a hub id may be fetched from the network; otherwise only an earlier download is used.
        base_config: for a single file, a folder in the diffusers layout with the configurations and the tokenizer of
            its family (weights are not needed there); without it they come from the hub, or an earlier download.

    Raises:
        ModelError: if there is no such model, it is of an unknown kind, or the attention is not available.
    """
    path = POCKET if str(base) == "pocket" else Path(base)
    with _without_progress_bars():
        if _is(path, Path.is_dir):
            components = _from_folder(path, str(base))
        elif _is(path, Path.is_file):
            from pipelines.models.single_files import from_single_file  # which needs this file

            components = from_single_file(path, download, None if base_config is None else Path(base_config))
        else:
            components = _from_hub(str(base), download)
    # Everything is read as float32 and cast last: the fingerprint must not depend on the precision of use.
    components = replace(components, identity=weights_identity(components))
    for module in components.modules():
        module.eval().requires_grad_(False)
    set_attention(components.unet, attention)
    return components.to(device, dtype)


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Return `path.is_dir()` or `is_file()`, false for names that no file system takes."""
    try:
        return kind(path)
    except OSError:
        return False


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars while a model loads."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def set_attention(unet: UNet2DConditionModel, attention: Attention) -> None:
    """Choose the attention implementation.

    Raises:
        ModelError: if xformers is asked for and not installed.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    if attention == "xformers":
        try:
            unet.enable_xformers_memory_efficient_attention()
        except (ImportError, ModuleNotFoundError, ValueError) as error:
            raise ModelError(
                f"xformers cannot be used here: {str(error).splitlines()[0]}.",
                "Install it (pip install xformers) on a machine with a GPU, or use --attention sdpa.",
            ) from None
    else:
        unet.set_attn_processor(AttnProcessor2_0() if attention == "sdpa" else AttnProcessor())


_KINDS: dict[str, Any] = {
    "UNet2DConditionModel": UNet2DConditionModel,
    "AutoencoderKL": AutoencoderKL,
    "AutoencoderTiny": AutoencoderTiny,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "CLIPTokenizer": CLIPTokenizer,
    "CLIPTokenizerFast": CLIPTokenizer,
}


def _from_folder(path: Path, name: str) -> Components:
    index_file = path / "model_index.json"
    if not index_file.exists():
        raise ModelError(
            f"The folder {path} holds no model_index.json.",
            "Give a folder in the diffusers layout (with unet/, vae/, text_encoder/, tokenizer/, scheduler/).",
        )
    place = "model_index.json"
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {}
        for place in ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
            _, kind = index.get(place) or (None, None)
            if kind is not None:
                parts[place] = _part(path / place, kind, f"{place} of {name}")
        place = "scheduler"
        config = dict(json.loads((path / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8")))
        zero_empty = bool(index.get("force_zeros_for_empty_prompt", True))
    except UNREADABLE as error:
        raise ModelError(
            f"The {place} of {name} cannot be read: {_first_line(error)}", "Get the folder anew."
        ) from None
    missing = [part for part in ("unet", "vae", "text_encoder", "tokenizer") if part not in parts]
    if missing:
        raise ModelError(f"{name} has no {', '.join(missing)}.", "Use a complete Stable Diffusion folder.")
    for place in ("tokenizer", "tokenizer_2"):
        words = int(parts[place.replace("tokenizer", "text_encoder")].config.vocab_size) if place in parts else 0
        if words and len(parts[place]) < words // 2:  # files missing: it would read nonsense without a word
            raise ModelError(
                f"The {place} of {name} has {len(parts[place])} words, its text encoder {words}.",
                "Get the folder anew.",
            )
    return _bundle(parts, config, name, zero_empty)


def _part(folder: Path, kind: str, what: str) -> Any:
    """Load one part in float32 whatever its files hold: safetensors only, fp16 files if there are no others."""
    if kind not in _KINDS:
        raise ModelError(f"The {what} is a {kind}, which is not supported.", "Use Stable Diffusion 1.x, 2.x or XL.")
    if kind.startswith("CLIPTokenizer"):
        return _KINDS[kind].from_pretrained(folder)
    require_buildable(folder, what)
    options: dict[str, Any] = {"use_safetensors": True}
    options["dtype" if kind.startswith("CLIPText") else "torch_dtype"] = torch.float32
    plain = [path for path in folder.glob("*.safetensors") if ".fp16" not in path.name]
    if not plain and any(folder.glob("*.fp16*.safetensors")):
        options["variant"] = "fp16"
    return _KINDS[kind].from_pretrained(folder, **options)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _bundle(parts: dict[str, Any], config: Mapping[str, Any], name: str, zero_empty: bool) -> Components:
    encoders = tuple(parts[part] for part in ("text_encoder", "text_encoder_2") if part in parts)
    tokenizers = tuple(parts[part] for part in ("tokenizer", "tokenizer_2") if part in parts)
    family: Family
    if len(encoders) == 2:
        family = "sdxl"
    elif isinstance(parts["vae"], AutoencoderTiny) and parts["unet"].config.cross_attention_dim < 768:
        family = "pocket"
    else:
        family = "sd2" if encoders[0].config.hidden_size == 1024 else "sd1"
    zero_empty = zero_empty and family == "sdxl"
    return Components(parts["unet"], parts["vae"], encoders, tokenizers, dict(config), name, family, zero_empty)


def from_pipeline(pipeline: Any, name: str) -> Components:
    """Return the parts of a loaded Stable Diffusion (1.x, 2.x, XL) pipeline; they are shared, not copied."""
    names = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    parts = {part: getattr(pipeline, part) for part in names if getattr(pipeline, part, None) is not None}
    zero = bool(pipeline.config.get("force_zeros_for_empty_prompt", False))
    return _bundle(parts, _given(pipeline.scheduler.config), name, zero)


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a scheduler that its file gives, without those that its class added.

    A sampler of another class has defaults of its own (`timestep_spacing`, say), as `from_config` of diffusers has it.
    """
    added = config.get("_use_default_values", ())
    return {key: value for key, value in config.items() if key not in added and key != "_use_default_values"}


def _from_hub(base: str, download: bool) -> Components:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*/*.json", "*/*.txt"] + [
        f"{part}/*.safetensors" for part in ("unet", "vae", "text_*")
    ]
    try:
        folder = snapshot_download(base, local_files_only=not download, allow_patterns=patterns)
    except HFValidationError:
        raise ModelError(
            f"There is no model {base!r}.", "Give pocket, a folder, a .safetensors file or a hub id."
        ) from None
    except (LocalEntryNotFoundError, OSError) as error:
        if not download:
            raise ModelError(
                f"The model {base!r} is neither a path nor downloaded yet.",
                "Check the path, or allow the download with --download.",
            ) from None
        raise ModelError(
            f"The model {base!r} could not be downloaded: {_first_line(error)}", "Check the id and the network."
        ) from None
    return _from_folder(Path(folder), base)
