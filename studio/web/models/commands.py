"""Commands on concepts, which load torch, in processes of their own."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

from pipelines.errors import ConceptError

LIMIT = 600.0
"""Seconds that a command on one concept may take."""


async def concept_command(*words: str) -> str:
    """Run `studio concepts` in a process of its own, since it loads torch; return its output.

    Raises:
        ConceptError: with the sentence it ended with, or if it does not end.
    """
    root = str(Path(__file__).parents[3])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "studio.cli",
        "concepts",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))},
    )
    try:
        said, complaint = await asyncio.wait_for(process.communicate(), LIMIT)
    except TimeoutError:
        hint = "The machine may be short of memory. Try again."
        raise ConceptError(f"The command took longer than {LIMIT:.0f} s and was stopped.", hint) from None
    finally:
        if process.returncode is None:  # it is late, or nobody waits for it any more
            process.kill()
            with suppress(TimeoutError):  # held by the kernel
                await asyncio.wait_for(process.wait(), 5)
    if process.returncode:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["studio: It ended without a word."]
        raise ConceptError(lines[-1].removeprefix("studio: "), "")
    return said.decode(errors="replace").strip()
