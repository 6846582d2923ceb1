"""Base models of the hub: which of their files are needed, and their download into a folder. Needs no torch."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import file_digest
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipelines.errors import Cancelled, ModelError
from pipelines.events import Note, OnEvent, StepDone, ignore
from pipelines.files import require_room

WEIGHTS = tuple(f"{part}/*.safetensors" for part in ("unet", "transformer", "vae", "text_*"))
NEEDED = ("*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.jinja", "*/spiece.model", *WEIGHTS)
"""Files of a base in the layout of diffusers that loading reads."""

TOLD = ("README.md", "LICENSE*")
"""Files that tell its licence."""

VARIANT = re.compile(r"\.(fp16|non_ema|bf16)(?=[.-])")
"""Mark of a file that holds the same weights in another way."""

MIB = 1 << 20


class HubFile(NamedTuple):
    """A file to fetch.

    Attributes:
        name: within the model.
        size: in bytes.
        sum: SHA-256 as the hub tells it; empty for small files, of which it tells none.
    """

    name: str
    size: int
    sum: str


def needed(files: Sequence[HubFile]) -> list[HubFile]:
    """Return the files of a model that are needed: its configurations, each weight once, and its licence.

    >>> [one.name for one in needed([Wanted(name, 1, "") for name in (
    ...     "unet/model.safetensors", "unet/model.fp16.safetensors", "unet/model.bin", "v1.safetensors", "LICENSE")])]
    ['unet/model.safetensors', 'LICENSE']
    """
    kept = [one for one in files if any(_fits(one.name, pattern) for pattern in (*NEEDED, *TOLD))]
    plain = {PurePosixPath(one.name).parent for one in kept if _weights(one) and not VARIANT.search(one.name)}
    return [
        one
        for one in kept
        if not _weights(one) or not VARIANT.search(one.name) or PurePosixPath(one.name).parent not in plain
    ]


def _fits(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern) and ".." not in name.split("/")


def _weights(one: HubFile) -> bool:
    return one.name.endswith(".safetensors")


def fetch(
    model: str,
    folder: Path,
    *,
    on_event: OnEvent = ignore,
    should_stop: Callable[[], bool] = lambda: False,
    endpoint: str | None = None,
) -> Path:
    """Download a model into a folder that is there only when it is whole; what was fetched before is not asked again.

    Args:
        model: its id on the hub.
        folder: the new folder.
        on_event: receives a `StepDone` in MiB for each of them, and a `Note` with the sum.
        should_stop: asked after each piece; true leaves with `Cancelled` and keeps what came for another time.
        endpoint: address of the hub, that of `huggingface_hub` by default.

    Raises:
        ModelError: if there is no such model, it is none for diffusers, it cannot be reached, or a file is not as the
            hub says.
        NoSpace: if it does not fit on the disk.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        about = HfApi(endpoint=endpoint).model_info(model, files_metadata=True)
        files = needed([HubFile(one.rfilename, one.size or 0, _sum(one.lfs)) for one in about.siblings or ()])
        total = sum(one.size for one in files)
        if "model_index.json" not in {one.name for one in files}:
            raise ModelError(f"{model} is no base in the layout of diffusers.", "Look for one with a model_index.json.")
        aside = folder.with_name(f".{folder.name}.part")
        names = {one.name for one in files}
        _leave_out(aside, names)
        there = sum(path.stat().st_size for path in aside.rglob("*") if path.is_file())
        require_room(folder.parent, max(total - there, 0))
        on_event(Note(f"{model}: {len(files)} files, {total / MIB:,.0f} MiB, licence {_licence(about)}."))
        options: dict[str, Any] = {"revision": about.sha, "local_dir": aside, "endpoint": endpoint}
        _fetch_all(model, files, options, _Shown(total, on_event, should_stop))
    except ModelError:
        raise
    except (RepositoryNotFoundError, GatedRepoError) as error:
        gated = isinstance(error, GatedRepoError)
        said = "asks for an agreement first" if gated else "is not on the hub, or not for everybody"
        hint = "Agree on its page, and set HF_TOKEN for the server." if gated else "Check its id, OWNER/NAME."
        raise ModelError(f"{model} {said}.", hint) from None
    except Exception as error:
        if isinstance(error, Cancelled) or not _of_the_network(error):
            raise
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "Check the network, then ask again: it goes on where it stopped."
        raise ModelError(f"{model} could not be fetched: {first:.200}", hint) from None
    shutil.rmtree(aside / ".cache", ignore_errors=True)
    if folder.exists():
        raise ModelError(f"{folder.name} is there already.", "Use it, or take its folder away and ask again.")
    aside.replace(folder)
    return folder


def _fetch_all(model: str, files: Sequence[HubFile], options: Mapping[str, Any], shown: _Shown) -> None:
    """Download files one after the other; each is as the hub says when this returns."""
    from huggingface_hub import hf_hub_download

    for one in files:
        with _by_http():
            path = Path(hf_hub_download(model, one.name, tqdm_class=shown.bar(), **options))
        _require_whole(path, one)
        shown.whole(one)


def _leave_out(aside: Path, names: Set[str]) -> None:
    """Remove files of another model, or of another state of this one, that an earlier download left."""
    for path in aside.rglob("*"):
        name = path.relative_to(aside).as_posix()
        if path.is_file() and name not in names and not name.startswith(".cache/"):
            path.unlink()


@contextmanager
def _by_http() -> Iterator[None]:
    """Fetch by HTTP inside the `with`: the client's other way, Xet, can neither be stopped nor tells what came once."""
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


def _sum(lfs: Any) -> str:
    return str(getattr(lfs, "sha256", "") or "")


def _licence(about: Any) -> str:
    card = getattr(about, "card_data", None)
    return str(getattr(card, "license", None) or "not told")


def _of_the_network(error: Exception) -> bool:
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    return isinstance(error, (*kinds, httpx2.HTTPError, ConnectionError))


def _require_whole(path: Path, one: HubFile) -> None:
    """Refuse a file that is not as the hub says, and remove it, so that it is fetched again.

    Raises:
        ModelError: with its name.
    """
    found = path.stat().st_size
    good = found == one.size
    if good and one.sum:
        with path.open("rb") as stream:
            good = file_digest(stream, "sha256").hexdigest() == one.sum
    if not good:
        path.unlink()
        raise ModelError(f"{one.name} did not arrive as the hub has it.", "Ask for the download again.")


class _Shown:
    """Tells the progress of several files as one; its bars take the place of those of the hub's client.

    Args:
        total: bytes of all files.
        on_event: receives the progress.
        should_stop: asked after each piece.
    """

    def __init__(self, total: int, on_event: OnEvent, should_stop: Callable[[], bool]) -> None:
        self.total, self.on_event, self.should_stop = total, on_event, should_stop
        self.done, self.part, self.told, self.began = 0, 0, 0, time.monotonic()

    def bar(self) -> Any:
        """Return a class of bars, each for one file."""
        from huggingface_hub.utils.tqdm import tqdm

        shown = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **named: Any) -> None:
                super().__init__(*args, **{**named, "disable": True})
                shown.part = int(named.get("initial") or 0)

            def update(self, n: float | None = 1) -> bool | None:
                shown.came(int(n or 0))
                return None

        return Bar

    def came(self, count: int) -> None:
        """Count bytes of the file at hand.

        Raises:
            Cancelled: if it is to stop.
        """
        self.part += count
        self._tell(self.done + self.part)
        if self.should_stop():
            raise Cancelled("The download was stopped.", "Ask again to go on.")

    def whole(self, one: HubFile) -> None:
        """Count a file that is there."""
        self.done, self.part = self.done + one.size, 0
        self._tell(self.done)
        if self.should_stop():
            raise Cancelled("The download was stopped.", "Ask again to go on.")

    def _tell(self, came: int) -> None:
        step, steps = min(came, self.total) // MIB, max(1, -(-self.total // MIB))
        step = steps if came >= self.total else step
        if step > self.told:
            self.told = step
            self.on_event(StepDone(step, steps, {}, time.monotonic() - self.began))
