"""`studio serve`: the web page and the REST interface. Importable without torch, and quickly."""

from __future__ import annotations

import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from pipelines.errors import ConfigError
from pipelines.request.settings import Frozen
from studio.library.quota import QUOTA
from studio.settings import DrawingMachine, Machine

if TYPE_CHECKING:
    from studio.api.guard import Door
    from studio.jobs.jobs import Jobs
    from studio.jobs.local_engine import Engine
    from studio.jobs.specs import Places

PASSWORD, TOKEN, LANGUAGE = "STUDIO_PASSWORD", "STUDIO_TOKEN", "STUDIO_LANGUAGE"


class Offered(Frozen):
    """The models that a server offers, beside what lies in its own folder."""

    base: Annotated[tuple[str, ...], Parameter(negative="")] = ()
    """A base model to offer beside pocket: a folder, a .safetensors checkpoint or a hub id. May be repeated."""

    models: Annotated[tuple[Path, ...], Parameter(negative="")] = ()
    """A folder of base models, beside `models` in --folder; what is put there later is offered too. May be repeated."""

    upscalers: Annotated[tuple[Path, ...], Parameter(negative="")] = ()
    """A folder of upscalers (ESRGAN and their like), beside `upscalers` in --folder. May be repeated."""

    captioner: Path | None = None
    """Folder of a BLIP or a Florence-2 that writes captions on Teach, instead of pocket's reading of stickers."""

    def told(self) -> dict[str, Any]:
        """Return them as settings of `Jobs`.

        Raises:
            ConfigError: if two bases have the same name, or a folder is not there.
        """
        models, upscalers = _roots(self.models, "models"), _roots(self.upscalers, "upscalers")
        _roots(() if self.captioner is None else (self.captioner,), "captioner")
        told: dict[str, Any] = {"bases": _bases(self.base), "models": models, "upscalers": upscalers}
        return told | {"captioner": self.captioner}


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    token: str | None = None,
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    offered: Annotated[Offered, Parameter(name="*")] = Offered(),  # noqa: B008 - frozen
    folder: Path = Path("outputs"),
    slots: int = 1,
    quota: float = QUOTA,
    engine: Literal["local", "ray"] = "local",
    cluster: str | None = None,
    page: bool = True,
    browser: Annotated[bool, Parameter(name="--open", negative="")] = False,
    language: str | None = None,
    machine: Annotated[DrawingMachine, Parameter(name="*")] = DrawingMachine(),  # noqa: B008
) -> None:
    """Open the studio in the browser, with a REST interface beside it.

    Parameters
    ----------
    host
        Address to listen at; any but this machine's own needs a password or token.
    port
        Port to listen at; 0 for any that is free.
    password
        What the browser asks for, with any user name; also read from STUDIO_PASSWORD, which no list of processes shows.
    token
        What programs send as `Authorization: Bearer`; also read from STUDIO_TOKEN, which no list of processes shows.
    allow_host
        A further name the server is reached by, for example behind a proxy. May be repeated.
    folder
        Where concepts, pictures and the record of jobs are kept.
    slots
        Jobs at a time.
    quota
        GiB that datasets, uploaded pictures and files to import may take together; the page and GET /api/v1/storage
        tell how much they take.
    engine
        What runs jobs: processes of this machine, or actors of a Ray cluster, a GPU or a CPU core each.
    cluster
        The Ray that this machine is part of, as HOST:PORT or auto, for --engine ray; by default one of its own.
    page
        Offer the web page too.
    browser
        Open it in this machine's browser.
    language
        Language of the page, en, de or auto for that of each browser, until visitors choose; also STUDIO_LANGUAGE.
    """
    _check(port, slots, quota)
    told = {**offered.told(), "quota": quota, "machine": machine, "slots": slots}
    told["engine"] = _engine(engine, cluster, machine, slots)
    _offer(folder, told, _door(host, (password, token), allow_host), port, browser, _page(page, language))


def _door(host: str, given: tuple[str | None, ...], names: tuple[str, ...]) -> Door:
    """Return the address of the server and whom it admits: with a secret that is given, or in the environment."""
    from studio.api.guard import Door

    secrets = tuple(secret for secret in (*given, os.environ.get(PASSWORD), os.environ.get(TOKEN)) if secret)
    return Door(host, secrets, names)


def _page(wanted: bool, language: str | None) -> Callable[[Any, Jobs], Any]:
    """Return a function that adds the page if it is wanted, in the language that is given or in the environment.

    Raises:
        ConfigError: if there is no such language.
    """
    from studio.api.app import with_page
    from studio.web.languages import AUTO, names

    if not wanted:
        return lambda app, jobs: app
    chosen = language or os.environ.get(LANGUAGE) or AUTO
    if chosen not in (AUTO, *names()):
        raise ConfigError(f"There is no language {chosen!r:.40}.", f"--language is {', '.join(names())} or {AUTO}.")
    return partial(with_page, language=chosen)


def _offer(
    folder: Path, told: dict[str, Any], door: Door, port: int, browser: bool, wrap: Callable[[Any, Jobs], Any]
) -> None:
    """Serve until stopped; `told` are the settings of `Jobs`, and `wrap` adds the page, if any."""
    from studio.api.app import guarded, rest
    from studio.jobs.jobs import Jobs

    jobs = Jobs(folder, **told)
    jobs.reserve()
    _listen(guarded(wrap(rest(jobs), jobs), door), door.host, port, browser)


def _check(port: int, slots: int, quota: float) -> None:
    if not 0 <= port <= 65535 or slots < 1 or not 0 < quota < 2**30:
        raise ConfigError(
            f"Port {port}, {slots} slots or a quota of {quota:g} GiB cannot be.",
            "Ports are 0 to 65535; one slot is the least; a quota is more than 0.",
        )


def _bases(given: tuple[str, ...]) -> dict[str, str]:
    """Return name -> base of all that are offered.

    Raises:
        ConfigError: if two have the same name.
    """
    bases = {"pocket": "pocket"} | {_name(one): one for one in given}
    if len(bases) <= len(given):
        raise ConfigError("Two of the bases have the same name.", "Rename one of their folders.")
    return bases


def _roots(given: tuple[Path, ...], what: str) -> tuple[Path, ...]:
    """Return the folders of models, upscalers or a captioner.

    Raises:
        ConfigError: if one is not there.
    """
    for one in given:
        if not one.is_dir():
            raise ConfigError(f"There is no folder {one} for --{what}.", "Check its path.")
    return given


def _engine(name: str, cluster: str | None, machine: Machine, slots: int) -> Callable[[Places], Engine] | None:
    """Return a function that makes the engine; None for that of this machine.

    Raises:
        ConfigError: if a cluster is named that nothing would use.
    """
    if name == "ray":
        from studio.jobs.ray_engine import RayEngine

        return partial(RayEngine, machine=machine, slots=slots, address=cluster)
    if cluster is not None:
        raise ConfigError(f"Nothing would use the cluster {cluster}.", "Say --engine ray as well.")
    return None


def _listen(app: Any, host: str, port: int, browser: bool) -> None:
    """Serve until stopped; say where, once it can be called, and open a browser there if asked to."""
    import uvicorn

    from studio.api.connections import Timely

    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Timely,
        ws="none",  # nothing here speaks it
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=3,
    )
    try:
        listening = config.bind_socket()
    except SystemExit:  # uvicorn has said why
        raise ConfigError(f"Port {port} at {host} cannot be used.", "Another program may use it; try --port.") from None
    listening = prompt(listening)
    listening.listen()  # whoever reads the next line may call at once
    where = "localhost" if host in ("127.0.0.1", "::1") else host
    address = f"http://{where}:{listening.getsockname()[1]}"
    sys.stderr.write(f"Prompt Studio is at {address}\n")
    sys.stderr.flush()
    if browser and not webbrowser.open(address):
        sys.stderr.write("studio: no browser was found on this machine; open that address in one.\n")
    uvicorn.Server(config).run(sockets=[listening])


def prompt(listening: socket.socket) -> socket.socket:
    """Return the same socket with TCP as its protocol, without which asyncio leaves Nagle's algorithm on.

    An answer on a kept connection takes 40 ms more with it.
    """
    return socket.socket(listening.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=listening.detach())


def _name(base: str) -> str:
    return Path(base).name.removesuffix(".safetensors") or base
