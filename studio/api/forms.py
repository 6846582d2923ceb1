"""Forms of requests and answers, derived from `Request` and the settings of methods: fields added there appear here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from pipelines.captions.wording import Wording
from pipelines.request.axes import Axis
from pipelines.request.request import Defaults, Frozen, Request
from pipelines.request.settings import file_of
from studio.jobs.specs import of_clients
from studio.jobs.store import Job, Kind, State
from trainers.methods import configs, methods
from trainers.settings import DataConfig, Destination, TrainConfig


class GenerationOrder(Frozen):
    """An order of pictures."""

    request: Request
    """The pictures to generate; files in it are ids."""

    base: str = "pocket"
    """Id of the base model."""

    compare: tuple[Axis, ...] = Field(default=(), max_length=2)
    """Settings to compare: one picture for each value, or for each pair of values, all from the same seed. The first
    picture is then a sheet of the others. Values are text, or what the field holds."""

    best_of: int = Field(default=1, ge=1, le=64)
    """Draw so many candidates of each picture and keep the one that the judge of pocket likes best, with its own seed;
    the event `note` tells all scores."""


def _of_client(field: FieldInfo) -> Any:
    """Return the type of a setting for a client, who names folders by the ids of datasets."""
    mark = file_of(field)
    return field.annotation if mark is None or mark.after else str | None


def settings_of(method: str) -> type[Frozen]:
    """Return the settings of a method that a client decides, its own and the shared ones; all are optional."""
    fields: dict[str, Any] = {}
    for kind in (configs()[method], DataConfig, TrainConfig, Destination):
        for name, field in kind.model_fields.items():
            if name != "images" and name not in configs()[method].unused and of_clients(name, field):
                metadata = tuple(field.metadata)
                annotation = _of_client(field)
                kept = Field(description=field.description, default=... if field.is_required() else field.default)
                fields[name] = (Annotated[(annotation, *metadata)] if metadata else annotation, kept)
    title = "".join(part.capitalize() for part in method.split("-"))
    return create_model(f"{title}Settings", __base__=Frozen, **fields)


def _dataset_of(method: str) -> Any:
    """Return the field for the pictures of a method; it may be left out where they can be drawn or composed."""
    if "composed" in configs()[method].model_fields:
        said = "Id of the pictures to learn from; left out with `composed`."
        return (str | None, Field(default=None, description=said))
    if all(offer.pictures for offer in methods()[method].offers):
        return (str, Field(description="Id of the pictures to learn from."))
    said = "Id of the pictures to learn from; left out, the base draws its own."
    return (str | None, Field(default=None, description=said))


def _order_of(method: str) -> Any:
    title = "".join(part.capitalize() for part in method.split("-"))
    fields: dict[str, Any] = {
        "method": (Literal[method], Field(description="How to learn.")),
        "dataset": _dataset_of(method),
        "settings": (settings_of(method), Field(description="What is not given is the recipe's.")),
        "base": (str, Field(default="pocket", description="Id of the base model.")),
        "dry_run": (bool, Field(default=False, description="Only say what it would take.")),
    }
    return create_model(f"{title}Order", __base__=Frozen, **fields)


RunOrder: Any = Annotated[reduce(or_, map(_order_of, configs())), Field(discriminator="method")]
"""A training that is asked for."""


class ScoreOrder(Frozen):
    """An order to measure a concept with the candidates of its training."""

    concept: str
    """Its id."""

    dataset: str
    """Id of the pictures it is compared with; better ones that it was not taught with."""

    base: str = "pocket"
    """Id of the base model it was trained on."""


class CaptionOrder(Wording):
    """An order of captions for the pictures that have none."""

    dataset: str
    """Id of the pictures."""


class AttentionOrder(Frozen):
    """An order of where each word of a prompt was looked up in a picture."""

    generation: str
    """Id of the generation that made the picture."""

    picture: int = Field(default=0, ge=0, le=1_000_000)
    """Its place among the pictures of the generation."""


class StepForm(Frozen):
    """The candidate that a concept is replaced by."""

    step: int = Field(ge=1, le=1_000_000)
    """Steps it was trained for; the event `scores` of a score names those there are."""


class Answer(BaseModel):
    """Base of all answers."""


class Work(Answer):
    """A run, a generation, an import or a score."""

    id: str
    kind: Kind
    state: State
    spec: dict[str, Any]
    created: float
    started: float | None
    finished: float | None
    step: int
    steps: int
    error: str
    hint: str
    links: dict[str, str]
    """Addresses of events, pictures and concepts."""
    pictures: list[str] = []
    concepts: list[str] = []
    files: list[str] = []
    """Addresses of other results: gated layers, and models, which come as a zip."""
    notes: list[str] = []
    """Sentences it said, of one that is asked for by its id: what was left out, a word that no concept has."""


ROOT = "/api/v1"
PLACE: dict[Kind, str] = {
    "generation": "generations",
    "training": "runs",
    "import": "imports",
    "score": "scores",
    "download": "downloads",
    "caption": "captions",
    "attention": "attentions",
}


def work(job: Job, notes: Sequence[str] = ()) -> Work:
    """Return a job as an answer, with its notes if they are given; files in it are addresses."""
    own = f"{ROOT}/{PLACE[job.kind]}/{job.id}"
    pictures = [f"{own}/pictures/{number}" for number, name in enumerate(job.results) if name.endswith(".png")]
    learned = [Path(name).stem for name in job.concepts]
    files = [f"{own}/files/{number}" for number in job.files]
    own_fields = Work.model_fields.keys() - {"concepts", "files"}
    told = {name: getattr(job, name) for name in own_fields if hasattr(job, name)}
    links = {"self": own, "events": f"{own}/events"}
    return Work(**told, links=links, pictures=pictures, concepts=learned, files=files, notes=list(notes))


class DatasetForm(Frozen):
    """A new dataset."""

    name: str = Field(default="", max_length=200)
    """Name of the dataset."""


class PictureForm(Frozen):
    """Changes of a picture of a dataset; fields that are left out stay."""

    caption: str | None = Field(default=None, max_length=4000)
    """In words; each line is a caption of its own; empty for none."""

    repeats: int | None = Field(default=None, ge=1, le=10_000)
    """Number of times the picture comes in an epoch."""

    pair: tuple[str, str] | None = None
    """Names of the two things it relates; two empty ones for none."""


class PictureAnswer(Answer):
    """A picture of a dataset."""

    name: str
    width: int
    height: int
    caption: str
    pair: tuple[str, str] | None
    mask: bool
    repeats: int
    href: str


class TakenAnswer(Answer):
    """The pictures stored, and the reason for each file left out, by its name or its path in an archive."""

    pictures: list[PictureAnswer]
    ignored: dict[str, str]


class DatasetAnswer(Answer):
    """A dataset."""

    id: str
    name: str
    created: float
    pictures: int
    href: str


class Uploaded(Answer):
    """A picture that requests can name."""

    id: str
    href: str


class StorageAnswer(Answer):
    """The bytes that uploads take."""

    used: int
    """Bytes of datasets, pictures and files to import now."""
    quota: int
    """Most bytes of these together."""


class BaseAnswer(Answer):
    """A base model."""

    id: str
    problem: str
    """Reason that it cannot be used; empty if it can."""
    hint: str
    """Next step then."""
    family: str
    title: str
    """Of the family, as people call it."""
    layout: str
    """folder, file, or hub for one whose files are not known."""
    bytes: int
    """On disk."""
    memory_gpu: int
    """Bytes of its weights in half precision."""
    memory_cpu: int
    """Bytes of its weights in full precision."""
    licence: str
    defaults: Defaults | None
    """Settings of a request that gives none."""
    inpainting: bool
    """True if a UNet that sees the rest of the picture repaints."""
    boxes: bool
    """True if it has the layers that place things in boxes."""
    distilled: bool
    """True if it was distilled to few steps."""
    href: str


class DownloadOrder(Frozen):
    """An order of a base model from the hub."""

    model: str = Field(min_length=3, max_length=200)
    """Its id there: OWNER/NAME."""


class ConceptAnswer(Answer):
    """A concept of the library."""

    id: str
    problem: str
    card: dict[str, Any] | None
    href: str
