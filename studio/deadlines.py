"""Time limits for calls into libraries that have none of their own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

Value = TypeVar("Value")


def within(seconds: float, call: Callable[[], Value], late: Exception) -> Value:
    """Return the result of a call that runs in a thread of its own.

    The thread stays as long as the process, since what a library begins may end with the thread that began it. Nothing
    ends a call that is late: it is left behind, and keeps nobody from ending the process.

    Args:
        seconds: time limit.
        call: function to call.
        late: error to raise at the time limit.

    Raises:
        Exception: `late`, or what the call raises.
    """
    outcome: Future[Value] = Future()

    def work() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)
            return
        while True:
            time.sleep(3600)

    threading.Thread(target=work, name="deadline", daemon=True).start()
    if not wait([outcome], seconds).done:
        raise late
    return outcome.result(0)
