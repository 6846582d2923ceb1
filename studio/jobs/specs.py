"""Specifications of jobs: checked when they are submitted, with ids for files; read by the worker, with paths.

No client ever names a path: concepts are named by what the library calls them, pictures and datasets by the id they got
when they were sent, bases by the names the server was started with. Needs no torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipelines.errors import ConceptError, ConfigError, RequestError, StudioError
from pipelines.request.axes import axes_of, cells
from pipelines.request.request import FileOf, Frozen, Request, problems
from pipelines.request.settings import Model, holds_models, mapped, marks_of, with_files
from pipelines.words import file_stem
from studio.jobs.store import Job
from studio.library.datasets import Datasets, Pictures
from studio.library.quota import QUOTA, Quota
from trainers.methods import configs
from trainers.settings import DataConfig, Destination, TrainConfig

OURS = ("cache", "output", "overwrite", "base")
"""Settings that the server decides."""


@dataclass(frozen=True)
class Places:
    """The folders of a server.

    Attributes:
        folder: of everything; absolute.
        bases: id -> base model.
        most: bytes that datasets, pictures and files to import may take together.
    """

    folder: Path
    bases: Mapping[str, str]
    most: int = int(QUOTA * 2**30)

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
    def pictures(self) -> Pictures:
        """The pictures that requests name."""
        return Pictures(self.folder / "pictures", self.quota)

    def job(self, job: str) -> Path:
        """Return the folder of a job."""
        return self.folder / "jobs" / job

    def base(self, name: str) -> str:
        """Return a base model by its id.

        Raises:
            ConfigError: if there is none.
        """
        if name not in self.bases:
            known = ", ".join(self.bases)
            raise ConfigError(f"There is no base {name!r:.60}.", f"There are: {known}; studio serve --base adds some.")
        return self.bases[name]

    def concept(self, name: str) -> Path:
        """Return the file of a concept by its id, the name of the file without ending.

        Raises:
            ConceptError: if there is none.
        """
        # Compared with what is there, never put into a path, so that no name leads anywhere else.
        for path in self.learned.glob("*.safetensors"):
            if path.stem == name and path.is_file() and not path.is_symlink():
                return path
        raise ConceptError(f"There is no concept {name!r:.60} in the library.", "GET /api/v1/concepts lists them.")

    def of(self, kind: str, name: str) -> str:
        """Return the path of a file by its kind and id, relative to the server's folder, so that pictures hide it."""
        path = self.concept(name) if kind == "concept" else self.pictures.path(name)
        return path.relative_to(self.folder).as_posix()


# -- generating -------------------------------------------------------------------------------------------------


def checked_request(fields: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Return the fields of a request with ids, as a record keeps them.

    Raises:
        RequestError: with every problem found.
        StudioError: if it names a file that is not there.
    """
    request = Request.read(dict(fields))
    _require_known(request)
    with_paths(request, places)
    return request.model_dump(mode="json", exclude_unset=True)


def checked_comparison(fields: Mapping[str, Any], axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the axes along which a request is compared, as a record keeps them.

    Raises:
        RequestError: if there are too many pictures, or one of them cannot be.
    """
    read = axes_of(axes)
    for row in cells(Request.read(dict(fields)), read):
        for cell in row:
            _require_known(cell)
    return [axis.model_dump(mode="json") for axis in read]


TEXTS = ("prompt", "negative_prompt", "phrase", "digests")
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
        if name not in TEXTS
        and _is_text(field.annotation)
        and not any(isinstance(mark, FileOf) for mark in marks_of(field))
    }


def _is_text(annotation: Any) -> bool:
    return annotation in (str, Path) or any(_is_text(part) for part in get_args(annotation))


def with_paths(model: Model, places: Places) -> Model:
    """Return the same settings with a path for each id, at any depth."""
    return with_files(model, places.of)


# -- training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSpec:
    """A training with all its settings.

    Attributes:
        method: its name.
        config: its own settings.
        data: settings of reading pictures.
        train: pace and optimiser.
        where: base and concept file.
    """

    method: str
    config: Any
    data: DataConfig
    train: TrainConfig
    where: Destination


def training_spec(method: str, settings: Mapping[str, Any], dataset: str, base: str, places: Places) -> TrainingSpec:
    """Return a training from settings by name, whichever configuration each belongs to.

    Raises:
        ConfigError: if there is no such method, or with every problem of the settings.
        Unknown: if there are no such pictures.
    """
    known = configs()
    if method not in known:
        raise ConfigError(f"There is no method {method!r:.60}.", f"There are: {', '.join(known)}.")
    kinds: tuple[type[Frozen], ...] = (known[method], DataConfig, TrainConfig, Destination)
    if closed := [name for name in settings if name in OURS or name == "images"]:
        raise ConfigError(f"{closed[0]} is decided by the server.", "Leave it out.")
    names = {name for kind in kinds for name in kind.model_fields}
    if unknown := [name for name in settings if name not in names]:
        raise ConfigError(f"{method} has no setting {unknown[0]!r:.60}.", f"GET /api/v1/methods/{method} lists them.")
    given = _with_folders(dict(settings), places) | {"images": places.datasets.folder(dataset)}
    said: list[str] = []
    made: list[Any] = []
    for kind in kinds:
        try:
            made.append(kind.model_validate({name: one for name, one in given.items() if name in kind.model_fields}))
        except ValidationError as error:
            said.append(problems(error))
    if said:
        raise ConfigError(" ".join(said), f"GET /api/v1/methods/{method} lists the settings and their ranges.")
    config, data, train, where = made
    if train.candidates and len(getattr(config, "subjects", ())) > 1:
        raise ConfigError("Candidates cannot be kept of several subjects.", "Leave candidates out, or also.")
    # Seen from the folder of the server, where its processes work, so that a concept does not tell where that is.
    output = places.learned / f"{file_stem(config.trigger)}.safetensors"
    where = where.model_copy(update={"base": places.base(base), "output": output})
    return TrainingSpec(method, config, data, train, where)


def forget_training(job: Job, places: Places) -> None:
    """Remove the state of a training that was cancelled, and with it its candidates."""
    if job.kind != "training" or job.spec["dry_run"]:
        return
    try:
        output = outputs(spec_of_job(job, places))[0]
    except StudioError:  # its pictures are gone; the next training of this name says so if the state is in its way
        return
    forget_state(output)


def forget_state(output: Path) -> None:
    """Remove the state of the training of a concept file, also one that was about to be removed."""
    for end in ("state", "state.over"):
        shutil.rmtree(output.with_name(f".{output.stem}.{end}"), ignore_errors=True)


def spec_of_job(job: Job, places: Places) -> TrainingSpec:
    """Return the training of a job; raises as `training_spec`."""
    spec = job.spec
    return training_spec(spec["method"], spec["settings"], spec["dataset"], spec["base"], places)


def scores_key(training: str) -> str:
    """Return the key of the job that measures the result of a training, so that there is only one."""
    return f"scores of {training}"


def outputs(one: TrainingSpec) -> list[Path]:
    """Return the concept files of a training: its own first."""
    subjects = getattr(one.config, "subjects", ())[1:]
    first = one.where.output or Path()
    return [first, *(first.with_name(f"{file_stem(subject.trigger)}.safetensors") for subject in subjects)]


def learned(one: TrainingSpec) -> bool:
    """Return whether all files of a training exist; its log, which an imported concept lacks, shows whose they are."""
    first, *others = outputs(one)
    return all(path.is_file() for path in (first.with_name(f"{first.stem}.losses.jsonl"), *others, first))


def _with_folders(settings: dict[str, Any], places: Places) -> dict[str, Any]:
    """Return settings with folders of datasets in the place of their ids."""
    if settings.get("class_images") is not None:
        settings["class_images"] = places.datasets.folder(str(settings["class_images"]))
    if isinstance(settings.get("also"), list | tuple):
        settings["also"] = [_folder_of(text, places) for text in settings["also"]]
    return settings


def _folder_of(text: Any, places: Places) -> str:
    """Return `ID:TOKEN:CLASS` with the folder for the id; other text is left to the validation to refuse."""
    parts = text.rsplit(":", 2) if isinstance(text, str) else []
    if len(parts) < 3:
        raise ConfigError(
            f"also {text!r:.60} is not DATASET:TOKEN:CLASS.", "Write for example 0123456789abcdef:<my-cat>:cat."
        )
    return ":".join((str(places.datasets.folder(parts[0].strip())), *parts[1:]))
