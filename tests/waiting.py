"""Waits of tests: each has a limit, and says what it waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import time

LIMIT = 120
"""Seconds that what is waited for may take: two cores at other work, and processes that load torch."""


def until(condition, what, seconds=LIMIT):
    """Ask again and again until there is what is wanted; gives it."""
    end = time.monotonic() + seconds
    while not (now := condition()):
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return now


def joined(*threads, seconds=LIMIT):
    """Wait for threads; those that may hang are to be daemons, or they keep the process from its end."""
    end = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    late = [thread.name for thread in threads if thread.is_alive()]
    assert not late, f"waited {seconds} s for the threads {', '.join(late)}"


def statuses(*children, seconds=LIMIT):
    """Wait for forked processes; gives how they ended. When one is late or ends badly, all are killed."""
    left, found = list(children), {}

    def looked():
        for child in list(left):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                left.remove(child)
                found[child] = status
        return not left or any(found.values())

    try:
        until(looked, f"the processes {', '.join(map(str, children))}", seconds)
    finally:
        for child in list(left):
            os.kill(child, signal.SIGKILL)
            looked()
            until(lambda child=child: looked() and child not in left, f"the end of process {child}", 10)
    return [found[child] for child in children]


def run(command, seconds=LIMIT, **more):
    """Run a command that begins processes of its own; when it is late all of them are killed. Gives what it said."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **pipes, **more) as process:
        try:
            said, complaint = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            _, complaint = process.communicate(timeout=10)
            raise AssertionError(f"waited {seconds} s for {command}, which said: {complaint[-3000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, said, complaint)
