"""Requests in AUTOMATIC1111's format, converted to ours.

A concept is used by its word in the prompt, or as `<lora:name:strength>`. What is sent, matters and is not understood
is named in the answer (`not_understood`), so that nobody takes its absence for its effect; a checkpoint or a script
that is not here is refused, as there. Defaults are those of AUTOMATIC1111 1.10, except steps, scale and size, which are
the base's.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import numpy as np
from PIL import Image, ImageOps
from pydantic import ConfigDict, Field, model_validator
from scipy.ndimage import gaussian_filter1d

from pipelines.errors import DataError, RequestError
from pipelines.pictures.files import grey
from pipelines.request.samplers import SAMPLERS, able, sampler_of, spacing_of
from pipelines.request.settings import FileContent, Sound
from pipelines.words import composed
from studio.jobs.jobs import Jobs
from studio.library import concepts
from studio.library.uploads import cleaned

LORA = re.compile(r"<lora:([^:<>]{1,100}):(-?[0-9.]{1,8})(?::[^<>]{0,50})?>")
STEPS = 25
"""Steps of all bases where a script says nothing."""

ORIGINAL = 1
"""Value of `inpainting_fill` that begins from the picture itself, as is done here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (-1, 0),
    "seed_resize_from_w": (-1, 0),
    "restore_faces": (False,),
    "tiling": (False,),
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_tmax": (0,),
    "s_noise": (0, 1),
    "resize_mode": (0,),
    "inpainting_fill": (0, ORIGINAL),
    "initial_noise_multiplier": (0, 1),
    "send_images": (True,),
    "controlnet_units": ([],),
}
"""Fields that mean something there and nothing here, with the values by which they change nothing."""

LAYERS, CHECKPOINT = "CLIP_stop_at_last_layers", "sd_model_checkpoint"
"""Options that have an effect."""

USUAL: dict[str, tuple[Any, ...]] = {"sd_vae": ("Automatic", "None"), "samples_save": (True, False)}
"""Options that have none, with the values by which they change no picture."""

LATENT = "Latent"
"""Upscaler of a second pass that begins from enlarged latents; also the one where a script names none."""

PLAIN = ("None", "Lanczos", "Nearest")
"""Upscalers of finished pictures that are no networks; all are bicubic interpolation here."""

OF_SECOND_PASS = ("hr_second_pass_steps", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt",
                  "hr_negative_prompt")  # fmt: skip
"""Fields of a second pass that differ from the first, which they do not here."""

NONE = ("", "none")
NAMES = 50
"""Most fields that are named."""

HARMLESS = frozenset(
    "sampler_index subseed save_images do_not_save_samples do_not_save_grid include_init_images image_cfg_scale "
    "firstphase_width firstphase_height refiner_switch_at disable_extra_networks force_task_id session_hash comments "
    "infotext script_args latent_mask firstpass_image".split()
)
"""Fields that change no picture by themselves."""


class Lenient(Sound):
    """Base of requests of other programs, which send unknown fields; null means the default."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class TextToImage(Lenient):
    """An order of pictures."""

    prompt: str = ""
    negative_prompt: str = ""
    seed: int = Field(default=-1, ge=-1, lt=2**63)
    steps: int | None = Field(default=None, ge=1, le=1000)
    cfg_scale: float | None = Field(default=None, ge=0, le=50)
    width: int | None = Field(default=None, ge=16, le=4096)
    height: int | None = Field(default=None, ge=16, le=4096)
    sampler_name: str | None = Field(default=None, max_length=100)
    sampler_index: str | None = Field(default=None, max_length=100)
    scheduler: str = Field(default="", max_length=100)
    eta: float | None = Field(default=None, ge=0, le=1)
    override_settings: dict[str, Any] = Field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    script_name: str = Field(default="", max_length=200)
    alwayson_scripts: dict[str, Any] = Field(default_factory=dict)
    refiner_checkpoint: str = Field(default="", max_length=500)
    batch_size: int = Field(default=1, ge=1, le=64)
    n_iter: int = Field(default=1, ge=1, le=64)
    denoising_strength: float = Field(default=0.75, ge=0, le=1)
    enable_hr: bool = False
    hr_scale: float = Field(default=2.0, ge=1, le=16)
    hr_upscaler: str = Field(default=LATENT, max_length=300)
    hr_resize_x: int = Field(default=0, ge=0, le=16384)
    hr_resize_y: int = Field(default=0, ge=0, le=16384)

    @property
    def larger(self) -> bool:
        """Return whether there is a second pass; of a picture to change there is none, there as well."""
        return self.enable_hr and not isinstance(self, ImageToImage)

    @property
    def least(self) -> float:
        """The least strength that is a step: less would be nothing to do, and there, too, one step is made."""
        return max(self.denoising_strength, 1 / (self.steps or STEPS))

    @property
    def sampler(self) -> str:
        """The sampler by either of its fields; `sampler_index` is the older one."""
        return self.sampler_name or self.sampler_index or ""

    @property
    def spacing(self) -> str:
        """The spacing of noise levels, by its own field or behind the sampler's name; empty for the usual one."""
        return spacing_of(self.scheduler, self.sampler)

    @property
    def clip_skip(self) -> object:
        """The layer of the text encoders to read, from the end, as it was sent."""
        return self.override_settings.get(LAYERS, 1)


class ImageToImage(TextToImage):
    """An order to change a picture."""

    init_images: Annotated[list[str], FileContent()] = Field(min_length=1, max_length=1)
    mask: Annotated[str | None, FileContent()] = None
    mask_blur: int | None = Field(default=None, ge=0, le=512)
    mask_blur_x: int = Field(default=4, ge=0, le=512)
    mask_blur_y: int = Field(default=4, ge=0, le=512)
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=4096)
    inpainting_mask_invert: bool = False

    @property
    def blur(self) -> tuple[int, int]:
        """The standard deviations of the mask's blur, across and down, in pixels."""
        return (self.mask_blur_x, self.mask_blur_y) if self.mask_blur is None else (self.mask_blur, self.mask_blur)


def content(text: str) -> bytes:
    """Decode base64, also as data URL or in lines, to bytes.

    Raises:
        DataError: if it is none.
    """
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("A picture is not in base64.", "Send the content of the file in base64.") from None


def request_of(asked: TextToImage, jobs: Jobs) -> dict[str, Any]:
    """Return the fields of our request for another program's.

    Raises:
        RequestError: for a sampler, checkpoint or script that there is not, or a strength that is no number.
    """
    _require_known(asked)
    uses: dict[str, float] = {}
    for name, strength in LORA.findall(asked.prompt):
        try:
            uses[name] = float(strength)
        except ValueError:
            raise RequestError(f"The strength {strength!r} of {name} is no number.", "Write <lora:name:0.8>.") from None
    # As there, what stands in the negative prompt is no order; it is no word of it either.
    texts = [composed(LORA.sub("", text)).strip() for text in (asked.prompt, asked.negative_prompt)]
    for entry in concepts.scan(jobs.learned):
        if entry.card is not None:
            spelled = [_spelled(text, entry.card.token) for text in texts]
            if any(text is not None for text in spelled):
                uses.setdefault(entry.name, 1.0)
                texts = [text if new is None else new for text, new in zip(texts, spelled, strict=True)]
    fields: dict[str, Any] = {
        "prompt": texts[0],
        "negative_prompt": texts[1],
        "seed": secrets.randbelow(2**32) if asked.seed < 0 else asked.seed,
        "count": asked.batch_size * asked.n_iter,
        "concepts": [{"source": name, "strength": strength} for name, strength in uses.items()],
    }
    more = {
        "steps": asked.steps,
        "width": asked.width,
        "height": asked.height,
        "scheduler": (sampler := _sampler(asked.sampler)),
        "spacing": asked.spacing if able(sampler, asked.spacing) else None,
        "eta": asked.eta if sampler == "ddim" and asked.eta else None,
        "clip_skip": asked.clip_skip if _is_layer(asked.clip_skip) and asked.clip_skip != 1 else None,
    }
    fields |= {name: value for name, value in more.items() if value is not None}
    fields |= {"enlarge": enlarge_of(asked, jobs)} if asked.larger else {}
    return fields | ({"guidance": {"scale": asked.cfg_scale}} if asked.cfg_scale is not None else {})


def enlarge_of(asked: TextToImage, jobs: Jobs) -> dict[str, Any]:
    """Return the settings of the second pass of an order with `enable_hr`.

    Raises:
        RequestError: for an upscaler that there is not, or a size that cannot be told.
    """
    factor, wanted = asked.hr_scale, (asked.hr_resize_x, asked.hr_resize_y)
    if any(wanted):
        sides = [(new, old) for new, old in zip(wanted, (asked.width, asked.height), strict=True) if new]
        if not all(old for _, old in sides):
            raise RequestError(
                f"hr_resize {wanted[0]} x {wanted[1]} needs width and height.", "Send them, or hr_scale."
            )
        factor = max(new / int(old or 1) for new, old in sides)
    named = asked.hr_upscaler.strip() or LATENT
    settings: dict[str, Any] = {"factor": factor, "strength": asked.least if asked.denoising_strength else 0}
    if named.lower() in (one.lower() for one in PLAIN):
        return settings
    if (upscaler := jobs.places.enlarging.meant(named)) is None:
        if named.lower().startswith(LATENT.lower()):  # "Latent (bicubic)" and its like, unless a file is called so
            return settings | {"by": "latents"}
        known = (LATENT, *PLAIN, *jobs.places.enlarging.there())
        raise RequestError(f"There is no upscaler {named!r:.80}.", f"There are: {', '.join(known)}.")
    return settings | {"upscaler": upscaler}


def _spelled(prompt: str, token: str) -> str | None:
    """Return the prompt with a concept's word spelled as the concept has it, whatever its case there; else None."""
    said = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)
    return said.sub(lambda _: token, prompt) if said.search(prompt) else None


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 12


def _sampler(name: str) -> str | None:
    """Return our name of a sampler; None for the base's own."""
    if name.lower() in ("", "automatic"):
        return None
    if (known := sampler_of(name)) is None:
        raise RequestError(f"There is no sampler {name!r:.60}.", f"There are: {', '.join(SAMPLERS.values())}.")
    return known


def base_of(named: object, bases: Iterable[str], usual: str) -> str:
    """Return the base that is named as a checkpoint; `usual` if none is.

    Args:
        named: as it was sent: a name, also with a file's ending, or with a sum in brackets behind.
        bases: those there are.
        usual: the one in use.

    Raises:
        RequestError: if there is none of that name.
    """
    if named is None or str(named).strip().lower() in NONE:
        return usual
    wanted = re.sub(r"\s*\[\w*\]$", "", str(named).strip()).lower().removesuffix(".safetensors")
    listed = list(bases)
    for base in listed:
        if base.lower().removesuffix(".safetensors") == wanted:
            return base
    raise RequestError(f"There is no checkpoint {str(named)!r:.80}.", f"There are: {', '.join(listed)}.")


def _require_known(asked: TextToImage) -> None:
    """Refuse scripts and models that would change the picture and do not exist here."""
    scripts = [] if asked.script_name.lower() in NONE else [asked.script_name]
    if scripts := [*scripts, *asked.alwayson_scripts]:
        raise RequestError(f"There is no script {scripts[0]!r:.80}; there are none.", "Leave it out.")
    if asked.refiner_checkpoint.lower() not in NONE:
        raise RequestError(f"There is no refiner {asked.refiner_checkpoint!r:.80}; there are none.", "Leave it out.")


def inpaint_of(asked: ImageToImage, jobs: Jobs) -> dict[str, Any]:
    """Return the settings of inpainting, with its files stored.

    Raises:
        DataError: if a picture or mask is none.
        RequestError: if the blur leaves nothing of the mask.
    """
    inpaint: dict[str, Any] = {"image": jobs.pictures.add(content(asked.init_images[0])), "strength": asked.least}
    if not asked.mask:
        return inpaint
    mask = grey(cleaned(content(asked.mask), "the mask"))
    stream = io.BytesIO()
    blurred(ImageOps.invert(mask) if asked.inpainting_mask_invert else mask, asked).save(stream, "PNG")
    inpaint |= {"mask": jobs.pictures.add(stream.getvalue())}
    if asked.inpaint_full_res:
        inpaint |= {"only_masked": True, "padding": asked.inpaint_full_res_padding}
    return inpaint


def blurred(mask: Image.Image, asked: ImageToImage) -> Image.Image:
    """Return the mask blurred by a Gaussian of a kernel cut at 2.5 deviations.

    Around a mask that is generated alone (`inpaint_full_res`) both sides of the rim fade; of a whole picture all that
    was white stays so, and twice the blur fades outside.

    Raises:
        RequestError: if nothing is left that would be repainted.
    """
    if not any(asked.blur):
        return mask
    values = np.asarray(mask)
    for axis, deviation in zip((1, 0), asked.blur, strict=True):
        if deviation:
            values = np.rint(gaussian_filter1d(values.astype(np.float32), deviation, axis, mode="mirror", truncate=2.5))
    values = values.astype(np.float32)
    if not asked.inpaint_full_res:
        values = np.clip(2 * values, 0, 255)
    if np.asarray(mask).max() >= 128 > values.max():
        raise RequestError(
            f"A mask_blur of {max(asked.blur)} leaves nothing of the mask to repaint.", "Send less, or a larger mask."
        )
    return Image.fromarray(values.astype(np.uint8))


def not_understood(asked: TextToImage) -> dict[str, str]:
    """Return fields that were sent, matter and had no effect, with the reason."""
    found: dict[str, str] = {}
    for name, value in (asked.model_extra or {}).items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            found[name] = "not done here"
        elif name not in (*NEUTRAL, *HARMLESS, *OF_SECOND_PASS) and value and len(found) < NAMES:
            found[name[:100]] = "not known here"
    if asked.spacing and not able(_sampler(asked.sampler), asked.spacing):
        found["scheduler"] = f"drawn without the spacing {asked.spacing}"
    if not _is_layer(asked.clip_skip) or without_effect(asked.override_settings):
        found["override_settings"] = f"only {CHECKPOINT}, and {LAYERS} from 1 to 12, have an effect"
    if asked.eta not in (None, 1) and _sampler(asked.sampler) == "euler-a":
        found["eta"] = "Euler a adds as much noise as with eta 1"
    if LORA.search(asked.negative_prompt):
        found["negative_prompt"] = "<lora:> has an effect in the prompt alone"
    if isinstance(asked, ImageToImage) and not asked.mask and asked.inpainting_mask_invert:
        found["inpainting_mask_invert"] = "there is no mask"
    return found | _not_enlarged(asked)


def _not_enlarged(asked: TextToImage) -> dict[str, str]:
    """Return the fields of the second pass that had no effect, with the reason."""
    if not asked.larger:
        return {"enable_hr": "a picture that is changed is drawn once"} if asked.enable_hr else {}
    said = {name: (asked.model_extra or {}).get(name) for name in OF_SECOND_PASS}
    usual = ("", "0", "None", "Use same sampler", "Use same scheduler", "Use same checkpoint")
    found = {name: "the second pass is as the first" for name, one in said.items() if str(one or "") not in usual}
    if asked.hr_resize_x and asked.hr_resize_y and asked.width and asked.height:
        across, down = asked.hr_resize_x / asked.width, asked.hr_resize_y / asked.height
        if abs(across - down) > 0.01 * max(across, down):
            found["hr_resize_x"] = "both sides grow by the larger of the two factors"
    return found


def without_effect(options: Mapping[str, Any]) -> list[str]:
    """Return names of options that matter there and have no effect here."""
    return [name[:100] for name, value in options.items()
            if name not in (LAYERS, CHECKPOINT) and value not in USUAL.get(name, ())][:NAMES]  # fmt: skip
