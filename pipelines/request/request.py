"""The request: all settings of a picture, as plain validated data.

The same class is used in Python, on the command line, by REST, in the web form and in the metadata of the picture, so
it must be importable without torch. Fields left at None mean "the base model's own default"; `Request.resolved`
fills them in, and only a resolved request is ever written into a picture.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipelines.errors import RequestError
from pipelines.request.boxes import BOXES
from pipelines.request.boxes import Box as Box
from pipelines.request.enlarge import Enlarge
from pipelines.request.excite import Excite
from pipelines.request.guidance import MOST_PROMPTS, Prompt
from pipelines.request.guidance import Guidance as Guidance
from pipelines.request.inpaint import Inpaint as Inpaint
from pipelines.request.regions import MOST_REGIONS, Region
from pipelines.request.settings import FileOf as FileOf
from pipelines.request.settings import Frozen
from pipelines.words import Composed

SCHEMA = 1
"""Version of the stored form; raised when an old request would be read wrongly."""

Scheduler = Literal["ddim", "dpm++2m", "unipc", "euler", "euler-a", "lcm"]
Spacing = Literal["own", "karras", "sgm"]


class ConceptUse(Frozen):
    """A learned concept to generate with."""

    source: Annotated[str, FileOf("concept")] = Field(min_length=1)
    """Path of the concept file, or its name in the library."""

    strength: float = Field(default=1.0, ge=-4, le=4)
    """Weight of the concept: 0 gives the word it started from, 1 what was learned, more exaggerates it. Below 0 is the
    opposite, for sliders and other changes of weights without a word; a word takes 0 to 2."""


def concept_use(text: str) -> dict[str, object]:
    """Convert `file.safetensors:0.8` to the fields of a `ConceptUse`."""
    source, colon, strength = text.rpartition(":")
    try:
        return {"source": source, "strength": float(strength)} if colon and source else {"source": text}
    except ValueError:  # a colon of the path itself
        return {"source": text}


LARGEST_GRID = 16
"""Most examples of one question."""


class ExamplePair(Frozen):
    """An example of a change: a picture before and after it."""

    before: Annotated[str, FileOf("picture")] = Field(min_length=1)
    """Path of the picture before the change."""

    after: Annotated[str, FileOf("picture")] = Field(min_length=1)
    """Path of the picture after the change, of the same size."""


class InContext(Frozen):
    """A question asked in pictures: change the query as in the examples (arXiv:2209.00647)."""

    examples: tuple[ExamplePair, ...] = ()
    """Up to 16 pairs; all show the same change. None only if the prompt says what to do, in a learned word say."""

    query: Annotated[str, FileOf("picture")] = Field(min_length=1)
    """Path of the picture to be changed; the answer has its size."""

    engine: Literal["grid", "analogist"] = "grid"
    """grid for a model trained on grids, analogist for any inpainting model of Stable Diffusion (one example)."""

    direction: Literal["after", "before"] = "after"
    """Direction of the change: "before" undoes it, and the query is a picture after it."""

    cell: Literal["bottom-right", "bottom-left", "top-right", "top-left"] = "bottom-right"
    """Cell of the answer on the canvas; the query is beside it."""

    transposed: bool = False
    """Arrange pairs in columns instead of rows."""

    ensemble: int = Field(default=1, ge=1, le=8)
    """Number of arrangements of the grid to average: rows reversed, columns swapped, both; then cells mirrored."""

    cloning: float = Field(default=1.3, ge=0, le=10)
    """Analogist: strength of the cloned attention, relative to the original."""

    strength: float = Field(default=0.98, gt=0, le=1)
    """Analogist: share of noise that the copy of the query in the answer's place starts with."""

    detail: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps, from the first, in which details of the query that the model would lose are put back: 0 none,
    1 to the end. By default what answers the example best, whose answer is known."""

    digests: tuple[str, ...] = ()
    """SHA-256 of the pictures, examples first; filled in when answered, so that changed pictures are noticed."""

    @model_validator(mode="after")
    def _fits_a_grid(self) -> Self:
        count = len(self.examples)
        if count > LARGEST_GRID:
            raise ValueError(f"{count} examples; a grid takes 1 to {LARGEST_GRID}")
        if self.engine == "analogist" and (count != 1 or self.ensemble > 1):
            raise ValueError("analogist takes one example in one arrangement; give one, or the engine grid")
        if self.detail and (self.engine == "analogist" or not self.examples):
            why = "analogist starts from the query anyhow" if self.examples else "without an example"
            raise ValueError(f"detail {self.detail:g} compares with an example in a grid ({why}); leave it out, or 0")
        return self

    @property
    def pictures(self) -> tuple[str, ...]:
        """All paths: of each example before and after, then the query."""
        return (*(path for pair in self.examples for path in (pair.before, pair.after)), self.query)


class Grounding(Frozen):
    """The effect of boxes (GLIGEN, Li et al., arXiv:2301.07093)."""

    beta: float | None = Field(default=None, ge=0, le=1)
    """Share of the steps, from the first, in which boxes act (scheduled sampling, section 4.2): more keeps to the boxes
    more strictly, less leaves the base more freedom. The base's own by default."""

    region: bool | None = None
    """Let the words of a boxed thing act in its box alone, and of several concepts the changed weights too, so that
    things do not leak into one another. By default where one of several boxes names a learned word, if the prompt says
    what is in each box."""

    scale: float | None = Field(default=None, ge=0, le=50)
    """Strength of the boxes by itself, at the cost of one more prediction a step: the difference they make, as guidance
    scale is that of the prompt. By default both act together."""

    adapter: str | None = Field(default=None, min_length=1)
    """File of gated layers for a base that has none, or instead of its own."""


class Request(Frozen):
    """All settings of pictures to generate."""

    prompt: Composed
    """Description of the picture, of any length. `(word:1.3)` weights a word."""

    negative_prompt: Composed = ""
    """Description of what to avoid; works only while guidance is on."""

    concepts: tuple[ConceptUse, ...] = Field(default=(), max_length=100)
    """Learned concepts whose tokens the prompts use."""

    boxes: tuple[Box, ...] = ()
    """Things and their boxes."""

    grounding: Grounding = Grounding()
    """Settings of the boxes."""

    regions: tuple[Region, ...] = Field(default=(), max_length=MOST_REGIONS)
    """Parts of the picture with prompts of their own."""

    inpaint: Inpaint | None = None
    """A picture to start from: it is changed as a whole, or a part of it is repainted."""

    enlarge: Enlarge = Enlarge()
    """Settings of the second pass that makes pictures larger."""

    guidance: Guidance = Guidance()
    """Strength of the prompts, and the formula they act by."""

    also: tuple[Prompt, ...] = Field(default=(), max_length=MOST_PROMPTS)
    """Further prompts, each with a weight: AND above 0, NOT below."""

    excite: Excite = Excite()
    """Correction for things that the prompt names and the picture would lack."""

    in_context: InContext | None = None
    """Examples of a change and a picture to be changed alike; width and height are then those of a cell."""

    scheduler: Scheduler | None = None
    """Sampler of the denoising steps; the base's own by default."""

    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps; the base's own by default."""

    spacing: Spacing = "own"
    """Noise levels of the steps: the base's own, karras (arXiv:2206.00364, eq. 5; dpm++2m, unipc, euler), or sgm (the
    last of equal stretches; AUTOMATIC1111's SGM Uniform, all but lcm)."""

    eta: float = Field(default=0.0, ge=0, le=1)
    """Noise that ddim adds in each step: 0 none, 1 as much as DDPM (arXiv:2010.02502, eq. 16)."""

    clip_skip: int = Field(default=1, ge=1, le=12)
    """Layer of the text encoders to read, from the end, for both prompts: 2 leaves the last one out. SDXL always
    leaves out one more."""

    vae_tiling: bool = False
    """Decode large pictures in overlapping tiles: less memory, and seams that can be seen now and then."""

    vae_slicing: bool = False
    """Decode one picture at a time: less memory, the same pictures."""

    width: int | None = Field(default=None, ge=16, le=4096)
    """Width in pixels; the base's own by default."""

    height: int | None = Field(default=None, ge=16, le=4096)
    """Height in pixels; the base's own by default."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Picture number i starts from the noise of seed + i."""

    count: int = Field(default=1, ge=1, le=256)
    """Number of pictures."""

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        if self.in_context and not self.in_context.examples and not self.prompt:
            raise ValueError("0 examples and no prompt; give 1 to 16 examples, or say what to do")
        return self

    @model_validator(mode="after")
    def _excites_words_of_its_own(self) -> Self:
        if self.in_context and self.excite.acts:
            raise ValueError(
                f"excite words {self.excite.words!r:.60} mean nothing in an answer to examples; leave them out"
            )
        return self

    @model_validator(mode="after")
    def _enlarges_whole_pictures(self) -> Self:
        if self.enlarge.acts and (self.in_context or (self.inpaint and not self.inpaint.whole)):
            what = "an answer to examples" if self.in_context else "a picture of which a part is kept to the bit"
            raise ValueError(
                f"enlarge {self.enlarge.factor:g} would draw all of {what} anew; leave it out, and enlarge the result"
                " as a picture to begin with (inpaint without a mask)"
            )
        return self

    @model_validator(mode="after")
    def _few_enough_boxes(self) -> Self:
        if len(self.boxes) > BOXES:
            first = self.boxes[BOXES].phrase
            raise ValueError(
                f"box {BOXES + 1} ({first!r:.60}) is one too many of {len(self.boxes)}; give at most {BOXES} boxes"
            )
        return self

    def resolved(self, defaults: Defaults) -> Request:
        """Return the request with all fields decided, but for what only a base can tell of several boxes (`region`)."""
        beta = defaults.beta if self.grounding.beta is None else self.grounding.beta
        alone = self.grounding.region is None and len(self.boxes) < 2  # one thing has nothing to be kept from
        guidance = self.guidance.model_copy(
            update={
                "scale": defaults.scale if self.guidance.scale is None else self.guidance.scale,
                "rescale": defaults.rescale if self.guidance.rescale is None else self.guidance.rescale,
            }
        )
        enlarge = self.enlarge
        if enlarge.acts and enlarge.strength is None:
            enlarge = enlarge.model_copy(update={"strength": defaults.redrawn})
        return self.model_copy(
            update={
                "guidance": guidance,
                "enlarge": enlarge,
                "grounding": self.grounding.model_copy(update={"beta": beta} | ({"region": False} if alone else {})),
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
    """The settings of a base model for requests that give none."""

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
    beta: float = 0.3
    """Share of the steps in which boxes act; the official models' own."""
    redrawn: float = 0.3
    """Strength of the second pass that enlarges pictures."""


def problems(error: ValidationError) -> str:
    """Return all problems of a validation in one sentence: field, value, reason."""
    listed = []
    for one in error.errors():
        place = one["loc"]
        if place[:1] == ("boxes",) and len(place) > 1:  # people count from 1
            place = (f"box {int(place[1]) + 1}", *place[2:])
        field = ".".join(str(part) for part in place) or "request"
        given = one.get("input")
        shown = "" if isinstance(given, dict) else f" (given: {given!r:.60})"
        said = one["msg"].removeprefix("Value error, ")
        listed.append(f"{field}: {said[0].lower() + said[1:]}{shown}")
    return "; ".join(listed) + "."
