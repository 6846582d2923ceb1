"""Time limits for connections: a client that stops in the middle of a request is disconnected."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD = 20.0
"""Seconds in which the head of a request has to be there, from the first byte or from the connection on."""

BODY = 60.0
"""Seconds in which more of a body has to come, as long as the server reads."""


class Timely(AutoHTTPProtocol):
    """HTTP that closes connections whose requests do not get past their head in `HEAD` seconds, or stop in a body."""

    _deadline: asyncio.TimerHandle | None = None

    @property
    def _answering(self) -> bool:
        cycle: Any = getattr(self, "cycle", None)
        return cycle is not None and not cycle.response_complete

    def connection_made(self, transport: Any) -> None:
        """Start the time limit of the first request."""
        super().connection_made(transport)
        self._wait(transport)

    @property
    def _unfinished(self) -> bool:
        """Return whether more of a body is to come."""
        cycle: Any = getattr(self, "cycle", None)
        return self._answering and cycle.more_body

    def data_received(self, data: bytes) -> None:
        """Restart the time limit of a head or body; answers in progress have their own."""
        super().data_received(data)
        if self._unfinished:
            self._wait(getattr(self, "transport", None), BODY)
        elif self._answering:
            self._stop_waiting()
        elif self._deadline is None:
            self._wait(getattr(self, "transport", None))

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the time limit."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self, transport: Any, seconds: float | None = None) -> None:
        self._stop_waiting()
        wait = HEAD if seconds is None else seconds
        self._deadline = asyncio.get_running_loop().call_later(wait, self._late, transport)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _late(self, transport: Any) -> None:
        self._deadline = None
        flow: Any = getattr(self, "flow", None)
        if self._unfinished and flow is not None and flow.read_paused:  # the server has yet to take what came
            self._wait(transport, BODY)
        elif (self._unfinished or not self._answering) and transport is not None and not transport.is_closing():
            transport.close()
