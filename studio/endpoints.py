"""Endpoints that speak OpenAI's chat completions, each off unless it is named; their answers are data from outside."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ConfigError, RequestError
from pipelines.request.texts import readable

TIMEOUT = 60.0  # seconds, unless others are asked for
LIMIT = 1 << 20  # bytes of an answer that are read
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class Endpoint:
    """A model behind an address.

    Attributes:
        role: what it does, for messages: planner, captioner.
        flag: that names it.
        address: for example http://localhost:11434/v1.
        model: name of its model; empty for its own.
        timeout: seconds to wait for an answer.
        key: environment variable with its key, which is never an argument: others could read it.
    """

    role: str
    flag: str
    address: str
    model: str
    timeout: float
    key: str


def require_address(endpoint: Endpoint) -> None:
    """Refuse an endpoint that is no web address.

    Raises:
        ConfigError: if it is none.
    """
    if not re.match(r"https?://[^/\s]+", endpoint.address):
        raise ConfigError(
            f"The {endpoint.role} {endpoint.address!r:.80} is no web address.",
            f"Give it as in {endpoint.flag} http://localhost:11434/v1.",
        )


def require_none(flag: str, model: str, timed: bool) -> None:
    """Refuse the model or the timeout of an endpoint that is not named.

    Raises:
        ConfigError: if there is one of them.
    """
    for name in [*(["model"] if model else []), *(["timeout"] if timed else [])]:
        raise ConfigError(
            f"{flag}-{name} is of an endpoint, and none is named.", f"Add {flag} ADDRESS, or leave it out."
        )


def answer_of(endpoint: Endpoint, messages: Sequence[dict[str, Any]], hint: str) -> str:
    """Return the answer to some messages.

    Args:
        endpoint: that is asked.
        messages: as chat completions have them.
        hint: the next step where there is no answer.

    Raises:
        RequestError: if there is no answer of the right form.
    """
    import httpx

    key, role = os.environ.get(endpoint.key, ""), endpoint.role
    body: dict[str, Any] = {"messages": list(messages), "temperature": 0}
    body |= {"model": endpoint.model} if endpoint.model else {}
    end, content = time.monotonic() + endpoint.timeout, b""
    try:
        with httpx.stream(
            "POST",
            f"{endpoint.address.rstrip('/')}/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=endpoint.timeout,  # of each read; an answer in drops has the same limit as a whole
        ) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"not whole within {endpoint.timeout:g} s")
                if len(content) > LIMIT:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        said = error or type(error).__name__
        raise RequestError(f"The {role} {endpoint.address} gave no answer: {said}.", hint) from None
    if response.status_code != 200 or len(content) > LIMIT:
        said = content[:120].decode(errors="replace").replace("\n", " ")
        raise RequestError(f"The {role} {endpoint.address} answered {response.status_code}: {said}", hint)
    try:
        return said_in(json.loads(content)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise RequestError(f"The {role} {endpoint.address} does not speak chat completions.", hint) from None


def said_in(content: Any) -> str:
    """Return the text of a message, without what its model thought before it.

    Args:
        content: a text, or a list of parts of which those of the type text are read.

    Raises:
        TypeError: if it is neither.

    >>> said_in("<think>hm</think> A fox."), said_in([{"type": "text", "text": "A fox."}])
    ('A fox.', 'A fox.')
    """
    if isinstance(content, list):
        content = "".join(one["text"] for one in content if one["type"] == "text")
    if not isinstance(content, str):
        raise TypeError(f"a message of {type(content).__name__} holds no text")
    content = readable(content)
    # Some servers cut the opening mark off, and an answer that was cut short lacks the closing one.
    return _THOUGHT.sub("", content).rpartition("</think>")[2].strip()
