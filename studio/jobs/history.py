"""The pictures of all sessions: found by words, concept, base and date; favourites, boards, tags, and a way back.

A picture is named by its job and its file. Deleted ones get another ending, so that nothing shows them, and are removed
for good when the server starts days later.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.errors import RequestError, StudioError, Unknown
from studio.jobs.store import Job, Ledger, Mark

THROWN = ".thrown"
"""Ending of deleted pictures."""

BATCH = 200
"""Jobs that are read at once, until enough pictures are found."""

LONGEST = 60
"""Longest name of a board, and of a tag, in letters."""

Name = tuple[str, str]
"""Job and file of a picture."""


@dataclass(frozen=True)
class FoundPicture:
    """A picture of the record.

    Attributes:
        job: that made it.
        number: its place among the results of the job.
        path: of the file.
        mark: what people said of it.
    """

    job: Job
    number: int
    path: Path
    mark: Mark


@dataclass(frozen=True)
class PictureSearch:
    """A search among pictures; everything that is left out fits.

    Attributes:
        words: text of which all words are in the prompts, boxes, parts, concepts, base or tags.
        concept: id of one that was used.
        base: id of the base.
        since: seconds since 1970.
        board: name of a board.
        favourites: only these.
    """

    words: str = ""
    concept: str = ""
    base: str = ""
    since: float = 0.0
    board: str = ""
    favourites: bool = False

    def takes(self, job: Job) -> bool:
        """Return whether pictures of a job may be wanted."""
        request = job.spec.get("request", {})
        used = [str(use.get("source")) for use in request.get("concepts", ())]
        return (
            job.created >= self.since
            and self.base in ("", job.spec.get("base"))
            and (not self.concept or self.concept in used)
        )

    def fits(self, job: Job, mark: Mark) -> bool:
        """Return whether a picture with this mark is wanted."""
        if (self.favourites and not mark.favourite) or self.board not in ("", mark.board):
            return False
        text = " ".join((said_in(job), *mark.tags)).casefold()
        return all(word in text for word in self.words.casefold().split())


def said_in(job: Job) -> str:
    """Return the words by which pictures of a job are found."""
    request = job.spec.get("request", {})
    used = [str(use.get("source")) for use in request.get("concepts", ())]
    boxes = [str(box.get("phrase")) for box in request.get("boxes", ())]
    boxes += [str(one.get("prompt")) for name in ("regions", "also") for one in request.get(name, ())]
    texts = (request.get("prompt", ""), request.get("negative_prompt", ""), job.spec.get("base", ""))
    return " ".join([*map(str, texts), *used, *boxes])


class History:
    """The pictures that jobs made.

    Args:
        ledger: the record.
        folder: of the server.
    """

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self.ledger, self.folder = ledger, folder

    def find(self, wanted: PictureSearch, limit: int = 60) -> list[FoundPicture]:
        """Return pictures that exist, the newest first, no more than `limit`."""
        found: list[FoundPicture] = []
        for one in self._all(wanted):
            found.append(one)
            if len(found) >= limit:
                break
        return found

    def _all(self, wanted: PictureSearch) -> Iterator[FoundPicture]:
        marks = self.ledger.marks()
        for job in self._jobs():
            if not wanted.takes(job):
                continue
            for number, name in enumerate(job.results):
                path = self.folder / name
                mark = marks.get((job.id, path.name), Mark())
                if wanted.fits(job, mark) and path.is_file():
                    yield FoundPicture(job, number, path, mark)

    def _jobs(self) -> Iterator[Job]:
        """Return generations that are done, the newest first; no more of them are read than are looked at."""
        before: int | None = None
        while True:
            jobs, before = self.ledger.page("generation", ("done",), BATCH, before)
            yield from jobs
            if before is None:
                return

    def one(self, name: Name) -> FoundPicture:
        """Return a picture.

        Raises:
            Unknown: if it is not there.
        """
        return replace(self._placed(name), mark=self.ledger.marks().get(name, Mark()))

    def _placed(self, name: Name) -> FoundPicture:
        """Return a picture without what is said of it; raises `Unknown`."""
        job = self.ledger.get(name[0])
        for number, result in enumerate(job.results):
            path = self.folder / result
            if path.name == name[1] and path.is_file() and job.kind == "generation":
                return FoundPicture(job, number, path, Mark())
        raise Unknown("That picture is no longer there.", "Generate it again, or bring it back.")

    def boards(self) -> dict[str, int]:
        """Return name -> number of pictures of each board, by name."""
        named = [(name, mark.board) for name, mark in self.ledger.marks().items() if mark.board]
        there = {name for name, _ in named if self._is_there(name)}
        return dict(sorted(Counter(board for name, board in named if name in there).items()))

    def _is_there(self, name: Name) -> bool:
        try:
            self._placed(name)
        except StudioError:
            return False
        return True

    def prompts(self, limit: int = 40) -> list[str]:
        """Return different prompts that were asked for, the latest first."""
        jobs = self.ledger.list("generation", (), 20 * limit)
        said = (str(job.spec.get("request", {}).get("prompt", "")).strip() for job in jobs)
        return list(dict.fromkeys(prompt for prompt in said if prompt))[:limit]

    def mark(
        self,
        names: Iterable[Name],
        *,
        favourite: bool | None = None,
        board: str | None = None,
        tags: Sequence[str] | None = None,
    ) -> None:
        """Change what is said of pictures; what is None stays.

        Raises:
            RequestError: if a board's or tag's name is too long.
            Unknown: if a picture is not there.
        """
        if too_long := [name for name in (board or "", *(tags or ())) if len(name) > LONGEST]:
            raise RequestError(f"The name {too_long[0]!r:.80} is too long.", f"Use at most {LONGEST} letters.")
        changes = {"favourite": favourite, "board": None if board is None else board.strip()}
        changes |= {"tags": None if tags is None else tuple(tag for text in tags for tag in text.split())}
        given = {name: value for name, value in changes.items() if value is not None}
        for one in [self.one(name) for name in names]:
            self.ledger.mark(one.job.id, one.path.name, replace(one.mark, **given))

    def delete(self, names: Iterable[Name]) -> list[Name]:
        """Take pictures away, so that they can be brought back for some days; return those that were there."""
        gone: list[Name] = []
        for name in names:
            try:
                path = self.one(name).path
            except Unknown:
                continue
            path.replace(path.with_name(path.name + THROWN))
            gone.append(name)
        return gone

    def restore(self, names: Iterable[Name]) -> int:
        """Bring deleted pictures back; return how many."""
        back = 0
        for job, name in names:
            # Compared with what the job made, never put into a path, so that no name leads anywhere else.
            for result in self.ledger.get(job).results:
                path = self.folder / result
                thrown = path.with_name(path.name + THROWN)
                if path.name == name and thrown.is_file():
                    thrown.replace(path)
                    back += 1
        return back

    def prune(self, seconds: float) -> None:
        """Remove deleted pictures for good that were deleted longer ago than this."""
        old = time.time() - seconds
        for path in (self.folder / "jobs").glob(f"*/*{THROWN}"):
            if path.stat().st_ctime < old:
                path.unlink(missing_ok=True)
