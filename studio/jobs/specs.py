"""Specifications of jobs: checked when they are submitted, with ids for files; read by the worker, with paths.

No client ever names a path: concepts are named by what the library calls them, pictures and datasets by the id they got
when they were sent, bases by the names the server was started with. Needs no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipelines.errors import ConceptError, ConfigError, RequestError, StudioError, Unknown
from pipelines.request.axes import axes_of, cells
from pipelines.request.request import Request, problems
from pipelines.request.settings import FileOf, Model, file_of, holds_models, mapped, with_files
from studio.jobs.store import Job
from studio.library.bases import Bases
from studio.library.datasets import Datasets, PictureUploads
from studio.library.model_cards import BaseCard
from studio.library.names import require_strengths
from studio.library.quota import QUOTA, Quota
from studio.library.upscalers import FOLDER, Upscalers
from studio.settings import Picking
from trainers.methods import methods
from trainers.run import Run, forget_state, run_of
from trainers.settings import DataConfig, Destination, TrainConfig

OURS = ("overwrite",)
"""Settings that the server decides, beside files of its own."""


@dataclass(frozen=True)
class Places:
    """The folders of a server.

    Attributes:
        folder: of everything; absolute.
        bases: id -> base model that the server was started with.
        most: bytes that datasets, pictures and files to import may take together.
        models: folders of base models.
        upscalers: folders of upscalers.
        captioner: what writes captions: "pocket", or the folder of a model.
    """

    folder: Path
    bases: Mapping[str, str]
    most: int = int(QUOTA * 2**30)
    models: tuple[Path, ...] = ()
    upscalers: tuple[Path, ...] = ()
    captioner: str = "pocket"

    @cached_property
    def catalogue(self) -> Bases:
        """Return all bases: those of the start, and what lies in the folders of models."""
        return Bases(self.bases, self.models)

    @cached_property
    def quota(self) -> Quota:
        """The limit of uploads."""
        return Quota([self.folder / name for name in ("datasets", "pictures", "imports")], self.most)

    @property
    def learned(self) -> Path:
        """The folder of concept files."""
        return self.folder / "concepts"

    @cached_property
    def datasets(self) -> Datasets:
        """The training pictures."""
        return Datasets(self.folder / "datasets", self.quota)

    @cached_property
    def pictures(self) -> PictureUploads:
        """The pictures that requests name."""
        return PictureUploads(self.folder / "pictures", self.quota)

    @cached_property
    def enlarging(self) -> Upscalers:
        """The upscalers."""
        return Upscalers(self.upscalers or (self.folder / FOLDER,))

    def job(self, job: str) -> Path:
        """Return the folder of a job."""
        return self.folder / "jobs" / job

    def base(self, name: str) -> str:
        """Return a base model by its id.

        Raises:
            ConfigError: if there is none.
        """
        if (base := self.catalogue.get(name)) is None:
            known = ", ".join(self.catalogue)
            raise ConfigError(f"There is no base {name!r:.60}.", f"There are: {known}; studio serve --base adds some.")
        return base

    def concept(self, name: str) -> Path:
        """Return the file of a concept by its id, the name of the file without ending.

        Raises:
            ConceptError: if there is none.
        """
        # Compared with what is there, never put into a path, so that no name leads anywhere else.
        there = os.listdir(self.learned) if self.learned.is_dir() else []
        for file in there:
            path = self.learned / file if file == f"{name}.safetensors" else None
            if path is not None and path.is_file() and not path.is_symlink():
                return path
        raise ConceptError(f"There is no concept {name!r:.60} in the library.", "GET /api/v1/concepts lists them.")

    def picture_of(self, job: Job, number: int) -> Path:
        """Return a picture that a job made, by its place among the results.

        Raises:
            Unknown: if there is none.
        """
        names = job.results if job.kind == "generation" else ()
        path = self.folder / names[number] if 0 <= number < len(names) else None
        if path is None or path.suffix != ".png" or not path.is_file():
            raise Unknown(f"The {job.kind} {job.id} has no picture {number}.", "See the pictures of the job.")
        return path

    def of(self, kind: str, name: str) -> str:
        """Return the path of a file by its kind and id, relative to the server's folder, so that pictures hide it."""
        of_kind = {"concept": self.concept, "upscaler": self.enlarging.path}
        path = of_kind.get(kind, self.pictures.path)(name)
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path).as_posix()


def places_of(
    folder: Path,
    bases: Mapping[str, str],
    quota: float,
    roots: Mapping[str, Sequence[Path]],
    captioner: Path | None,
) -> Places:
    """Return the folders of a server, made if they are not there; absolute, as processes work in the first.

    Args:
        folder: of everything.
        bases: id -> base model.
        quota: GiB of uploads.
        roots: "models" and "upscalers" -> further folders of them, beside those in the folder.
        captioner: folder of a model that writes captions; None for pocket's reading.
    """
    whole = {name: str(Path(base).resolve()) if Path(base).exists() else base for name, base in bases.items()}
    if not folder.exists():
        folder.mkdir(parents=True, mode=0o700)  # prompts and pictures are nobody else's
    folder = folder.resolve()
    models, upscalers = ((folder / n, *(one.resolve() for one in roots[n])) for n in ("models", FOLDER))
    told = "pocket" if captioner is None else str(captioner.resolve())
    places = Places(folder, whole, int(quota * 2**30), models, upscalers, told)
    for kept in (places.learned, models[0], upscalers[0]):
        kept.mkdir(exist_ok=True)
    return places


# -- generating -------------------------------------------------------------------------------------------------


def checked_request(fields: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Return the fields of a request with ids, as a record keeps them.

    Raises:
        RequestError: with every problem found.
        StudioError: if it names a file that is not there.
    """
    request = Request.read(dict(fields))
    _require_known(request)
    require_strengths([with_paths(request, places)], places.folder)
    return request.model_dump(mode="json", exclude_unset=True)


def checked_comparison(fields: Mapping[str, Any], axes: Sequence[Any], places: Places) -> list[dict[str, Any]]:
    """Return the axes along which a request is compared, as a record keeps them.

    Raises:
        RequestError: if there are too many pictures, or one of them cannot be.
        ConceptError: if a concept would have a strength that means nothing.
    """
    read = axes_of(axes)
    each = [cell for row in cells(Request.read(dict(fields)), read) for cell in row]
    for cell in each:
        _require_known(cell)
    require_strengths([with_paths(cell, places) for cell in each], places.folder)
    return [axis.model_dump(mode="json") for axis in read]


def checked_picking(best_of: int, fields: Mapping[str, Any], axes: Sequence[Any], base: BaseCard) -> int:
    """Return the number of candidates of each picture.

    Raises:
        RequestError: if it is out of range, there is a comparison or no prompt beside it, or nothing judges pictures
            of the base; of a base on the hub that is told by the job.
    """
    try:
        count = Picking(best_of=best_of).best_of
    except ValidationError as error:
        raise RequestError(problems(error), "Give 1 to 64 candidates.") from None
    if axes:
        raise RequestError("A comparison shows every picture and keeps none.", "Leave out best_of, or compare.")
    if not str(fields.get("prompt", "")).strip():
        raise RequestError("Candidates are judged by the prompt, and there is none.", "Say what is to be seen.")
    if count > 1 and not base.judged:
        raise RequestError(
            f"Nothing here judges pictures of {base.title}, so that the best of {count} cannot be told.",
            "Ask for one candidate, or take the base pocket, which has a judge.",
        )
    return count


def checked_attention(made: Job, picture: int, places: Places) -> dict[str, Any]:
    """Return the order of where words were looked up in a picture of a job, as a record keeps it.

    Raises:
        Unknown: if there is no such picture.
        RequestError: if it is a sheet of several, or an answer to examples.
    """
    places.picture_of(made, picture)
    if (made.spec.get("compare") and picture == 0) or made.spec["request"].get("in_context"):
        raise RequestError(
            "A sheet of a comparison, or an answer to examples, has no prompt of its own.",
            "Choose a picture that was made from a prompt.",
        )
    return {"generation": made.id, "picture": picture, "base": made.spec["base"]}


TEXTS = ("prompt", "negative_prompt", "phrase", "words", "name", "digests")
"""Fields of a request whose text is just text."""


def _require_known(model: BaseModel) -> None:
    """Refuse text fields that are not marked as naming a file or not: clients must not set them."""
    for name in unknown_texts(type(model)) & model.model_fields_set:
        if getattr(model, name) is not None:
            raise RequestError(f"{name} cannot be set here.", "It may name a file of the server's machine.")
    for name in type(model).model_fields:
        value = getattr(model, name)
        if holds_models(value):
            mapped(value, _require_known)


def unknown_texts(kind: type[BaseModel]) -> set[str]:
    """Return text fields of settings that are neither in `TEXTS` nor marked by `FileOf`."""
    return {
        name
        for name, field in kind.model_fields.items()
        if name not in TEXTS and _holds(field.annotation, str, Path) and file_of(field) is None
    }


def _holds(annotation: Any, *kinds: type) -> bool:
    return annotation in kinds or any(_holds(part, *kinds) for part in get_args(annotation))


def with_paths(model: Model, places: Places) -> Model:
    """Return the same settings with a path for each id, at any depth."""
    return with_files(model, places.of)


# -- training ---------------------------------------------------------------------------------------------------


def training_of(method: str, settings: Mapping[str, Any], dataset: str | None, base: str, places: Places) -> Run:
    """Return a training from settings by name, whichever configuration each belongs to.

    Without pictures (`dataset` None) it is one whose method has the base draw them.

    Raises:
        ConfigError: if there is no such method, or with every problem of the settings.
        Unknown: if there are no such pictures.
    """
    known = methods()
    if method not in known:
        raise ConfigError(f"There is no method {method!r:.60}.", f"There are: {', '.join(known)}.")
    kinds = (known[method].Settings, DataConfig, TrainConfig, Destination)
    fields = {name: field for kind in kinds for name, field in kind.model_fields.items()}
    fields = {name: field for name, field in fields.items() if name not in known[method].Settings.unused}
    if unknown := [name for name in settings if name not in fields]:
        raise ConfigError(f"{method} has no setting {unknown[0]!r:.60}.", f"GET /api/v1/methods/{method} lists them.")
    if closed := [name for name in settings if name == "images" or not of_clients(name, fields[name])]:
        raise ConfigError(f"{closed[0]} is decided by the server.", "Leave it out.")
    marks = {name: mark for name in settings if (mark := file_of(fields[name])) is not None}
    given = {name: _with_folders(name, one, marks.get(name), places) for name, one in settings.items()}
    said: list[str] = []

    def made(kind: Any, own: dict[str, Any]) -> Any:
        try:
            return kind.model_validate(own)
        except ValidationError as error:
            said.append(problems(error))
            return kind.model_construct()  # what else is wrong is said too

    run = run_of(known[method], given | {"images": places.datasets.folder(dataset) if dataset else None}, made)
    if said:
        raise ConfigError(" ".join(said), f"GET /api/v1/methods/{method} lists the settings and their ranges.")
    run.require_pictures()
    # Seen from the folder of the server, where its processes work, so that a concept does not tell where that is.
    output = places.folder / run.config.result(base)
    return replace(run, where=run.where.model_copy(update={"base": places.base(base), "output": output}))


def unmarked_paths(kind: type[BaseModel]) -> set[str]:
    """Return the settings that are paths and not marked by `FileOf`."""
    return {n for n, field in kind.model_fields.items() if file_of(field) is None and _holds(field.annotation, Path)}


def of_clients(name: str, field: FieldInfo) -> bool:
    """Return whether a client may decide a setting: none that the server decides, and no path that is not marked."""
    mark = file_of(field)
    if mark is not None:
        return mark.kind != "own"
    return name not in OURS and not _holds(field.annotation, Path)


def forget_training(job: Job, places: Places) -> None:
    """Remove the state of a training that was cancelled, and with it its candidates."""
    if job.kind != "training" or job.spec["dry_run"]:
        return
    try:
        output = training_of_job(job, places).outputs[0]
    except StudioError:  # its pictures are gone; the next training of this name says so if the state is in its way
        return
    forget_state(output)


def training_of_job(job: Job, places: Places) -> Run:
    """Return the training of a job; raises as `training_of`."""
    spec = job.spec
    return training_of(spec["method"], spec["settings"], spec["dataset"], spec["base"], places)


def scores_key(training: str) -> str:
    """Return the key of the job that measures the result of a training, so that there is only one."""
    return f"scores of {training}"


def _with_folders(name: str, value: Any, mark: FileOf | None, places: Places) -> Any:
    """Return the value of a setting with folders of datasets in the place of their ids."""
    if mark is None or value is None:
        return value

    def folder(text: Any) -> str:
        if not isinstance(text, str) or text.count(":") < mark.after:
            raise ConfigError(
                f"{name} {text!r:.60} is not DATASET{':TEXT' * mark.after}.",
                f"Begin with the id of a dataset, for example 0123456789abcdef{':TEXT' * mark.after}.",
            )
        return mark.with_path(text, lambda kind, identity: str(places.datasets.folder(identity)))

    return [folder(text) for text in value] if isinstance(value, list | tuple) else folder(value)
