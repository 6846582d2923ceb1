"""What scripts for AUTOMATIC1111 ask, as a request of ours.

A concept is used by its word in the prompt, or as `<lora:name:strength>`. What is sent, matters and is not understood
is named in the answer (`not_understood`), so that nobody takes its absence for its effect.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
import secrets
from typing import Annotated, Any

from PIL import ImageOps
from pydantic import ConfigDict, Field, model_validator

from pipelines.errors import DataError, RequestError
from pipelines.frozen import Encoded, Sound
from pipelines.metadata import SAMPLERS
from pipelines.picture_files import grey
from pipelines.words import composed
from studio import catalogue
from studio.jobs import Jobs
from studio.uploads import cleaned

LORA = re.compile(r"<lora:([^:<>]{1,100}):(-?[0-9.]{1,8})(?::[^<>]{0,50})?>")
STEPS = 25
"""Steps of all bases where a script says nothing."""

ORIGINAL = 1
"""Value of `inpainting_fill` that begins from the picture itself, as is done here."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "enable_hr": (False,),
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
    "script_name": ("", "None"),
    "script_args": ([],),
    "alwayson_scripts": ({},),
    "resize_mode": (0,),
    "inpainting_fill": (0, ORIGINAL),
    "initial_noise_multiplier": (0, 1),
    "refiner_checkpoint": ("", "None"),
    "send_images": (True,),
    "controlnet_units": ([],),
}
"""Fields that mean something there and nothing here, with the values by which they change nothing."""

SPACINGS = {"karras": ("dpm++2m", "unipc", "euler"), "sgm": ("dpm++2m", "unipc", "euler", "euler-a", "ddim")}
"""Samplers that go with a spacing of the noise levels."""

LAYERS = "CLIP_stop_at_last_layers"
NAMES = 50
"""So many fields are named at most."""

HARMLESS = frozenset(
    "sampler_index subseed save_images do_not_save_samples do_not_save_grid include_init_images image_cfg_scale "
    "override_settings_restore_afterwards firstphase_width firstphase_height hr_scale hr_upscaler "
    "hr_second_pass_steps hr_resize_x hr_resize_y hr_checkpoint_name hr_sampler_name hr_scheduler hr_prompt "
    "hr_negative_prompt refiner_switch_at disable_extra_networks force_task_id session_hash comments infotext "
    "mask_blur_x mask_blur_y latent_mask firstpass_image denoising_strength".split()
)
"""Fields that change no picture by themselves; those of a second pass come with `enable_hr`."""


class Lenient(Sound):
    """Base of what other programs send, who send more than is understood; null means the default."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class TextToImage(Lenient):
    """Pictures that are asked for."""

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
    eta: float = Field(default=0.0, ge=0, le=1)
    override_settings: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = Field(default=1, ge=1, le=64)
    n_iter: int = Field(default=1, ge=1, le=64)

    @property
    def sampler(self) -> str:
        """The sampler by either of its fields; `sampler_index` is the older one."""
        return self.sampler_name or self.sampler_index or ""

    @property
    def spacing(self) -> str:
        """The spacing of noise levels, by its own field or behind the sampler's name; empty for the usual one."""
        named = "karras" if self.sampler.lower().endswith(" karras") else ""
        wanted = self.scheduler.lower().replace("_", " ").strip()
        return {"automatic": "", "uniform": "", "sgm uniform": "sgm"}.get(wanted, wanted) or named

    @property
    def clip_skip(self) -> object:
        """Which layer of the text encoders is read, from the end, as it was sent."""
        return self.override_settings.get(LAYERS, 1)


class ImageToImage(TextToImage):
    """A picture that is to be changed."""

    init_images: Annotated[list[str], Encoded()] = Field(min_length=1, max_length=1)
    mask: Annotated[str | None, Encoded()] = None
    denoising_strength: float = Field(default=0.75, ge=0, le=1)
    mask_blur: int = Field(default=0, ge=0, le=512)
    inpaint_full_res: bool = False
    inpaint_full_res_padding: int = Field(default=0, ge=0, le=4096)
    inpainting_mask_invert: bool = False


def content(text: str) -> bytes:
    """Base64, also as data URL or in lines, to bytes.

    Raises:
        DataError: if it is none.
    """
    text = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise DataError("A picture is not in base64.", "Send the content of the file in base64.") from None


def request_of(asked: TextToImage, jobs: Jobs) -> dict[str, Any]:
    """The fields of a request for what another program asks.

    Raises:
        RequestError: for a sampler that there is not, or a strength that is no number.
    """
    uses: dict[str, float] = {}
    for name, strength in LORA.findall(asked.prompt):
        try:
            uses[name] = float(strength)
        except ValueError:
            raise RequestError(f"The strength {strength!r} of {name} is no number.", "Write <lora:name:0.8>.") from None
    # As there, what stands in the negative prompt is no order; it is no word of it either.
    texts = [composed(LORA.sub("", text)).strip() for text in (asked.prompt, asked.negative_prompt)]
    for entry in catalogue.scan(jobs.learned):
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
        "spacing": asked.spacing if sampler in SPACINGS.get(asked.spacing, ()) else None,
        "eta": asked.eta if sampler == "ddim" and asked.eta else None,
        "clip_skip": asked.clip_skip if _is_layer(asked.clip_skip) and asked.clip_skip != 1 else None,
    }
    fields |= {name: value for name, value in more.items() if value is not None}
    return fields | ({"guidance": {"scale": asked.cfg_scale}} if asked.cfg_scale is not None else {})


def _spelled(prompt: str, token: str) -> str | None:
    """The prompt with a concept's word as the concept has it, whatever its capitals there; None if it is not said."""
    said = re.compile(rf"(?<!\w){re.escape(token)}(?!\w)", re.IGNORECASE)
    return said.sub(lambda _: token, prompt) if said.search(prompt) else None


def _is_layer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 12


def _sampler(name: str) -> str | None:
    """Our name of a sampler; None for the base's own."""
    if name.lower() in ("", "automatic"):
        return None
    wanted = name.lower().removesuffix(" karras")
    known = {theirs.lower(): ours for ours, theirs in SAMPLERS.items()} | {ours: ours for ours in SAMPLERS}
    if wanted not in known:
        raise RequestError(f"There is no sampler {name!r:.60}.", f"There are: {', '.join(SAMPLERS.values())}.")
    return known[wanted]


def inpaint_of(asked: ImageToImage, jobs: Jobs) -> dict[str, Any]:
    """What is painted on, its files taken in.

    Raises:
        DataError: if a picture or mask is none.
    """
    # Less than a step would be nothing to do; there, too, at least one step is made.
    strength = max(asked.denoising_strength, 1 / (asked.steps or STEPS))
    inpaint: dict[str, Any] = {"image": jobs.pictures.add(content(asked.init_images[0])), "strength": strength}
    if not asked.mask:
        return inpaint
    mask = grey(cleaned(content(asked.mask), "the mask"))
    stream = io.BytesIO()
    (ImageOps.invert(mask) if asked.inpainting_mask_invert else mask).save(stream, "PNG")
    inpaint |= {"mask": jobs.pictures.add(stream.getvalue()), "feather": asked.mask_blur}
    if asked.inpaint_full_res:
        inpaint |= {"only_masked": True, "padding": asked.inpaint_full_res_padding}
    return inpaint


def not_understood(asked: TextToImage) -> dict[str, str]:
    """Fields that were sent, matter and had no effect, with the reason."""
    found: dict[str, str] = {}
    for name, value in (asked.model_extra or {}).items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            found[name] = "not done here"
        elif name not in NEUTRAL and name not in HARMLESS and value and len(found) < NAMES:
            found[name[:100]] = "not known here"
    if asked.spacing and _sampler(asked.sampler) not in SPACINGS.get(asked.spacing, ()):
        found["scheduler"] = f"drawn without the spacing {asked.spacing}"
    if not _is_layer(asked.clip_skip) or set(asked.override_settings) - {LAYERS}:
        found["override_settings"] = f"only {LAYERS} from 1 to 12 has an effect"
    if LORA.search(asked.negative_prompt):
        found["negative_prompt"] = "<lora:> has an effect in the prompt alone"
    if isinstance(asked, ImageToImage) and not asked.mask and asked.inpainting_mask_invert:
        found["inpainting_mask_invert"] = "there is no mask"
    return found
