"""Routes of datasets, pictures and concepts. Files have ids; no client ever names a path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, Form, Query, Response, UploadFile, status
from fastapi.responses import FileResponse, StreamingResponse

from pipelines.concepts.card import read_card
from pipelines.errors import ConceptError, DataError, Unknown
from pipelines.words import file_stem
from studio.api.forms import (
    ROOT,
    ConceptAnswer,
    DatasetAnswer,
    DatasetForm,
    PictureAnswer,
    PictureForm,
    StepForm,
    StorageAnswer,
    TakenAnswer,
    Uploaded,
    Work,
    work,
)
from studio.api.work import Paged
from studio.api.zips import zipped
from studio.jobs.history import PictureSearch
from studio.jobs.jobs import Jobs
from studio.library import archives
from studio.library.concepts import search as find
from studio.library.datasets import Dataset, DatasetPicture, newest
from studio.library.thumbnails import thumbnail
from studio.library.uploads import ARCHIVE, BYTES

BOARD = 10_000
"""Most pictures of a board in one archive."""

CREATED, GONE = status.HTTP_201_CREATED, status.HTTP_204_NO_CONTENT


def _content(file: UploadFile, most: int) -> bytes:
    """Return the content of an upload, no more than is allowed."""
    content = file.file.read(most + 1)
    if len(content) > most:
        raise DataError(f"A file has more than {most >> 20} MiB.", "Send a smaller one.")
    return content


def _upload(file: UploadFile) -> bytes:
    """Return the content of a picture or an archive."""
    archive = file.file.read(len(archives.ARCHIVE_MARK)) == archives.ARCHIVE_MARK
    file.file.seek(0)
    return _content(file, ARCHIVE if archive else BYTES)


def _dataset(one: Dataset) -> DatasetAnswer:
    return DatasetAnswer(**vars(one), href=f"{ROOT}/datasets/{one.id}")


def _entry(dataset: str, one: DatasetPicture) -> PictureAnswer:
    return PictureAnswer(**vars(one), href=f"{ROOT}/datasets/{dataset}/pictures/{one.name}")


def datasets(jobs: Jobs) -> APIRouter:
    """Return the routes of training pictures."""
    router, all_of_them = APIRouter(tags=["datasets"]), jobs.datasets

    @router.post("/datasets", status_code=CREATED)
    def create(form: DatasetForm, response: Response) -> DatasetAnswer:
        """Create a dataset without pictures."""
        answer = _dataset(all_of_them.create(form.name))
        response.headers["location"] = answer.href
        return answer

    @router.get("/datasets")
    def everything(paging: Paged) -> list[DatasetAnswer]:
        """Return all datasets, the newest first."""
        return [_dataset(one) for one in paging.take(all_of_them.list(), newest)]

    @router.get("/datasets/{dataset}")
    def one(dataset: str) -> DatasetAnswer:
        """Return a dataset."""
        return _dataset(all_of_them.get(dataset))

    @router.delete("/datasets/{dataset}", status_code=GONE)
    def forget(dataset: str) -> None:
        """Remove one with all its pictures, unless a training still needs it."""
        jobs.delete_dataset(dataset)

    _add_pictures(router, jobs)
    _add_picture(router, jobs)
    return router


def _add_pictures(router: APIRouter, jobs: Jobs) -> None:
    all_of_them = jobs.datasets

    @router.get("/datasets/{dataset}/pictures")
    def pictures(dataset: str, paging: Paged) -> list[PictureAnswer]:
        """Return the pictures of a dataset."""
        listed = paging.take(all_of_them.entries(dataset), lambda one: (0, one.name))
        return [_entry(dataset, entry) for entry in listed]

    @router.post("/datasets/{dataset}/pictures", status_code=CREATED)
    def add(dataset: str, files: Annotated[list[UploadFile], File()]) -> TakenAnswer:
        """Store pictures, and archives (zip) of them with captions, masks and lists; files left out are reported."""
        taken = archives.take_all(all_of_them, dataset, ((file.filename or "", _upload(file)) for file in files))
        new = [_entry(dataset, entry) for entry in taken.entries]
        ignored = dict(taken.ignored)
        return TakenAnswer(pictures=new, ignored=ignored)


def _add_picture(router: APIRouter, jobs: Jobs) -> None:
    all_of_them = jobs.datasets

    @router.get("/datasets/{dataset}/pictures/{name}")
    def picture(dataset: str, name: str) -> FileResponse:
        """Return a picture."""
        return FileResponse(all_of_them.picture(dataset, name), media_type="image/png")

    @router.put("/datasets/{dataset}/pictures/{name}")
    def replace(dataset: str, name: str, file: Annotated[UploadFile, File()]) -> PictureAnswer:
        """Replace a picture, for example by a cropped one."""
        all_of_them.picture(dataset, name)
        return _entry(dataset, all_of_them.replace(dataset, name, _content(file, BYTES)))

    @router.patch("/datasets/{dataset}/pictures/{name}")
    def describe(dataset: str, name: str, form: PictureForm) -> PictureAnswer:
        """Set the caption, the names and the repeats of a picture."""
        entry = all_of_them.entry(dataset, name)
        if form.pair is not None:
            entry = all_of_them.set_pair(dataset, name, *form.pair)
        if form.repeats is not None:
            entry = all_of_them.set_repeats(dataset, name, form.repeats)
        if form.caption is not None:
            entry = all_of_them.set_caption(dataset, name, form.caption)
        return _entry(dataset, entry)

    @router.delete("/datasets/{dataset}/pictures/{name}", status_code=GONE)
    def remove(dataset: str, name: str) -> None:
        """Remove a picture."""
        all_of_them.remove(dataset, name)

    @router.put("/datasets/{dataset}/pictures/{name}/mask")
    def mask(dataset: str, name: str, file: Annotated[UploadFile, File()]) -> PictureAnswer:
        """Set the mask of a picture: white where the thing is."""
        all_of_them.picture(dataset, name)
        return _entry(dataset, all_of_them.set_mask(dataset, name, _content(file, BYTES)))

    @router.delete("/datasets/{dataset}/pictures/{name}/mask", status_code=GONE)
    def unmask(dataset: str, name: str) -> None:
        """Remove the mask of a picture."""
        all_of_them.set_mask(dataset, name, b"")


def pictures(jobs: Jobs) -> APIRouter:
    """Return the routes of pictures that requests name."""
    router = APIRouter(tags=["generations"])

    @router.post("/pictures", status_code=CREATED)
    def upload(file: Annotated[UploadFile, File()], response: Response) -> Uploaded:
        """Store a picture that requests can name."""
        name = jobs.pictures.add(_content(file, BYTES), file.filename or "")
        answer = Uploaded(id=name, href=f"{ROOT}/pictures/{name}")
        response.headers["location"] = answer.href
        return answer

    @router.get("/boards")
    def boards() -> dict[str, int]:
        """Return the boards of pictures, and how many lie on each."""
        return jobs.history.boards()

    @router.get("/boards/{board}/archive", response_class=StreamingResponse)
    def archive(board: str) -> StreamingResponse:
        """Return the pictures of a board as a zip."""
        found = jobs.history.find(PictureSearch(board=board), BOARD)
        if not found:
            raise Unknown(f"There is no board {board!r:.60}.", "GET /api/v1/boards lists them.")
        return zipped([(f"{one.job.id}-{one.path.name}", one.path) for one in found], file_stem(board))

    @router.get("/storage")
    def storage() -> StorageAnswer:
        """Return the bytes of datasets, pictures and files to import."""
        return StorageAnswer(used=jobs.places.quota.used(), quota=jobs.places.quota.most)

    @router.get("/pictures/{picture}")
    def uploaded(picture: str) -> FileResponse:
        """Return a picture that was uploaded."""
        return FileResponse(jobs.pictures.path(picture), media_type="image/png")

    return router


def _found(jobs: Jobs, concept: str) -> Path:
    try:
        return jobs.places.concept(concept)
    except ConceptError as error:
        raise Unknown(error.message, error.hint) from None


def _add_concept(router: APIRouter, jobs: Jobs) -> None:
    @router.post("/concepts", status_code=status.HTTP_202_ACCEPTED)
    def take_in(
        response: Response,
        file: Annotated[UploadFile, File()],
        token: Annotated[str | None, Form(min_length=1, max_length=100)] = None,
        base: Annotated[str | None, Form(min_length=1, max_length=100)] = None,
    ) -> Work:
        """Import the file of another program into the library; a process of its own reads it.

        `base` is the one that whole weights (Custom Diffusion of diffusers) and IA3 belong to; by default the first
        that fits.
        """
        answer = work(jobs.submit_import(_content(file, ARCHIVE), file.filename or "", token, base))
        response.headers["location"] = answer.links["self"]
        return answer


def concepts(jobs: Jobs) -> APIRouter:
    """Return the routes of the library."""
    router = APIRouter(tags=["concepts"])

    def found(concept: str) -> Path:
        return _found(jobs, concept)

    @router.get("/concepts")
    def everything(
        paging: Paged, search: Annotated[str, Query(max_length=200, description="Words they all hold.")] = ""
    ) -> list[ConceptAnswer]:
        """Return the library, by name."""
        return [
            ConceptAnswer(
                id=entry.name,
                problem=entry.problem,
                card=None if entry.card is None else entry.card.model_dump(mode="json"),
                href=f"{ROOT}/concepts/{entry.name}",
            )
            for entry in paging.take(find(jobs.learned, search), lambda entry: (0, entry.path.name))
        ]

    @router.get("/concepts/{concept}")
    def one(concept: str) -> ConceptAnswer:
        """Return what a concept says of itself."""
        path = found(concept)
        try:
            card, wrong = read_card(path).model_dump(mode="json"), ""
        except ConceptError as error:
            card, wrong = None, str(error)
        return ConceptAnswer(id=path.stem, problem=wrong, card=card, href=f"{ROOT}/concepts/{path.stem}")

    @router.get("/concepts/{concept}/preview")
    def preview(concept: str, v: str = "") -> Response:
        """Return a small copy of the preview of a concept; with `v`, whatever it is, browsers may keep it for good."""
        if (png := thumbnail(found(concept))) is None:
            raise Unknown(f"There is no preview of {concept!r:.60}.", "A training draws one.")
        kept = "private, max-age=31536000, immutable" if v else "no-cache"
        return Response(png, media_type="image/png", headers={"cache-control": kept})

    @router.get("/concepts/{concept}/file")
    def file(concept: str) -> FileResponse:
        """Return the file of a concept, which other programs load too."""
        path = found(concept)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @router.put("/concepts/{concept}/step")
    def take(concept: str, form: StepForm) -> ConceptAnswer:
        """Replace a concept by a candidate of its training; the others stay."""
        jobs.take_step(found(concept).stem, form.step)
        return one(concept)

    @router.delete("/concepts/{concept}", status_code=GONE)
    def forget(concept: str) -> None:
        """Delete it for good, unless it is being measured or learned."""
        jobs.delete_concept(found(concept).stem)

    _add_concept(router, jobs)
    return router
