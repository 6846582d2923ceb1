"""The request: everything that decides a picture, as plain validated data.

The same class is used in Python, on the command line, by REST, in the web form and in the metadata of the picture, so
it must be importable without torch. Fields left at None mean "the base model's own default"; `Request.resolved`
fills them in, and only a resolved request is ever written into a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipelines.errors import RequestError

SCHEMA = 1
"""Version of the stored form; raised when an old request would be read wrongly."""

Scheduler = Literal["ddim", "dpm++2m", "unipc", "euler", "euler-a", "lcm"]


class Frozen(BaseModel):
    """Base of all settings: immutable, unknown names refused, attribute docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class FileOf:
    """Marks a field whose text names a file: a path in Python and on the command line, an id by REST and on the page.

    Attributes:
        kind: what file.
    """

    kind: Literal["concept", "picture"]


class ConceptUse(Frozen):
    """A learned concept to generate with."""

    source: Annotated[str, FileOf("concept")] = Field(min_length=1)
    """Path of the concept file, or its name in the library."""

    strength: float = Field(default=1.0, ge=0, le=2)
    """0 gives the word the concept started from, 1 what was learned, more exaggerates it."""


def concept_use(text: str) -> dict[str, object]:
    """`file.safetensors:0.8` to the fields of a `ConceptUse`."""
    source, colon, strength = text.rpartition(":")
    try:
        return {"source": source, "strength": float(strength)} if colon and source else {"source": text}
    except ValueError:  # a colon of the path itself
        return {"source": text}


class Guidance(Frozen):
    """Classifier-free guidance (Ho and Salimans, arXiv:2207.12598) and its corrections."""

    scale: float | None = Field(default=None, ge=0, le=50)
    """How far to follow the prompt; 1 switches guidance off. The base's own by default."""

    rescale: float | None = Field(default=None, ge=0, le=1)
    """Pull the guided prediction to the spread of the unguided one (arXiv:2305.08891, 3.4); 0.7 for zero-SNR models.
    The base's own by default."""

    start: float = Field(default=0.0, ge=0, le=1)
    """Share of the steps before which guidance is off (arXiv:2404.07724)."""

    stop: float = Field(default=1.0, ge=0, le=1)
    """Share of the steps after which guidance is off; the same as `start` switches it off wholly."""

    @model_validator(mode="after")
    def _an_interval(self) -> Self:
        if self.start > self.stop:
            raise ValueError(
                f"start {self.start:g} lies after stop {self.stop:g}, so guidance would never be on; "
                "choose start <= stop, or scale 1 for no guidance"
            )
        return self


class Inpaint(Frozen):
    """A picture to repaint a part of, or, without a mask, to change as a whole (image-to-image)."""

    image: Annotated[str, FileOf("picture")] = Field(min_length=1)
    """Path of the picture. Transparency is laid on white."""

    mask: Annotated[str | None, FileOf("picture")] = None
    """Path of the mask, of the picture's size: white is repainted, black is kept to the bit, grey fades from one to the
    other; transparent counts as black. None repaints everything."""

    strength: float = Field(default=1.0, gt=0, le=1)
    """How far to go from the picture: 1 starts from noise alone, less from the noised picture at that share of the
    steps before the end (SDEdit, arXiv:2108.01073)."""

    grow: int = Field(default=0, ge=0, le=512)
    """Pixels by which the mask is widened."""

    feather: int = Field(default=0, ge=0, le=512)
    """Pixels over which the repainted part fades into the picture, outside the mask."""

    only_masked: bool = False
    """Generate the surroundings of the mask alone, at the size of the request, instead of the whole picture."""

    padding: int = Field(default=32, ge=0, le=4096)
    """Pixels around the mask that are generated along as context, with `only_masked`."""


class Request(Frozen):
    """What to generate."""

    prompt: str
    """What the picture shows. `(word:1.3)` weighs a word, any length is used whole."""

    negative_prompt: str = ""
    """What to keep away from; works only while guidance is on."""

    concepts: tuple[ConceptUse, ...] = ()
    """Learned concepts whose tokens the prompts use."""

    inpaint: Inpaint | None = None
    """A picture to repaint instead of an empty one."""

    guidance: Guidance = Guidance()
    """Classifier-free guidance."""

    scheduler: Scheduler | None = None
    """Sampler of the denoising steps; the base's own by default."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps; the base's own by default."""

    width: int | None = Field(default=None, ge=16, le=4096)
    """Width in pixels; the base's own by default."""

    height: int | None = Field(default=None, ge=16, le=4096)
    """Height in pixels; the base's own by default."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Picture number i starts from the noise of seed + i."""

    count: int = Field(default=1, ge=1, le=256)
    """How many pictures."""

    def resolved(self, defaults: Defaults) -> Request:
        """The same request with nothing left open."""
        guidance = self.guidance.model_copy(
            update={
                "scale": defaults.scale if self.guidance.scale is None else self.guidance.scale,
                "rescale": defaults.rescale if self.guidance.rescale is None else self.guidance.rescale,
            }
        )
        return self.model_copy(
            update={
                "guidance": guidance,
                "scheduler": self.scheduler or defaults.scheduler,
                "steps": self.steps or defaults.steps,
                "width": self.width or defaults.size,
                "height": self.height or defaults.size,
            }
        )

    @classmethod
    def read(cls, fields: dict[str, Any]) -> Request:
        """Build a request from untrusted data.

        Raises:
            RequestError: with every problem found, each with its field.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise RequestError(problems(error), "studio generate --help lists the fields and their ranges.") from None


class Defaults(Frozen):
    """What a base model uses where a request says nothing."""

    size: int
    """Side of its pictures in pixels."""
    scale: float = 7.5
    """Guidance scale."""
    rescale: float = 0.0
    """Guidance rescale."""
    scheduler: Scheduler = "dpm++2m"
    """Sampler."""
    steps: int = 25
    """Denoising steps."""


def problems(error: ValidationError) -> str:
    """All problems of a validation in one sentence: field, value, reason."""
    listed = []
    for one in error.errors():
        field = ".".join(str(part) for part in one["loc"]) or "request"
        given = one.get("input")
        shown = "" if isinstance(given, dict) else f" (given: {given!r:.60})"
        said = one["msg"].removeprefix("Value error, ")
        listed.append(f"{field}: {said[0].lower() + said[1:]}{shown}")
    return "; ".join(listed) + "."
