"""A language model as planner: boxes of a sentence from any endpoint that speaks OpenAI's chat completions.

Off unless an endpoint is given. What comes back is data from outside: read as JSON and checked like every other input.
"""

from __future__ import annotations

import json
import os
import re
import time
from typing import Any

from pydantic import Field

from pipelines.errors import ConfigError, RequestError
from pipelines.request.box_files import checked
from pipelines.request.layout_rules import Planner, plan
from pipelines.request.request import Box, Frozen

KEY = "STUDIO_PLANNER_KEY"
"""Environment variable with the endpoint's key, which is never an argument: others could read it."""

LIMIT = 1 << 20  # bytes of an answer that are read

INSTRUCTION = """\
You plan where things stand in a picture. Work in three steps. First list every thing the sentence names, one entry for
each copy. Then list how they stand to one another. Then give each thing a box. Answer with JSON alone:
{"boxes": [{"phrase": "red fox", "box": [left, top, right, bottom]}]}
Edges are fractions from 0 to 1 of the width and height, from the top left corner. Use the sentence's own words as
phrases, without articles, in the singular. At most 30 boxes."""


class Planning(Frozen):
    """The planner of boxes for a sentence."""

    planner: str | None = None
    """Endpoint of a language model that speaks OpenAI's chat completions, for example http://localhost:11434/v1; its
    key is read from STUDIO_PLANNER_KEY. By default built-in rules plan, and nothing leaves the machine."""

    planner_model: str = Field(default="", max_length=200)
    """Name of the endpoint's model."""

    planner_timeout: float = Field(default=60.0, gt=0, le=3600)
    """Seconds to wait for its answer."""


def planner_of(planning: Planning) -> Planner:
    """Return the planner that the settings name.

    Raises:
        ConfigError: if the endpoint is no web address.
    """
    endpoint = planning.planner
    if not endpoint:
        return plan
    if not re.match(r"https?://[^/\s]+", endpoint):
        raise ConfigError(
            f"The planner {endpoint!r:.80} is no web address.", "Give it as in --planner http://localhost:11434/v1."
        )

    def asked(sentence: str) -> tuple[Box, ...]:
        return read_answer(_ask(endpoint, planning, sentence))

    return asked


def _ask(endpoint: str, planning: Planning, sentence: str) -> str:
    """Return the answer of the language model.

    Raises:
        RequestError: if there is no answer of the right form.
    """
    import httpx

    key = os.environ.get(KEY, "")
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": sentence}],
        "temperature": 0,
    }
    body |= {"model": planning.planner_model} if planning.planner_model else {}
    hint = "Check --planner and --planner-model, or leave them out for the built-in rules."
    end, content = time.monotonic() + planning.planner_timeout, b""
    try:
        with httpx.stream(
            "POST",
            f"{endpoint.rstrip('/')}/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=planning.planner_timeout,  # of each read; an answer in drops has the same limit as a whole
        ) as response:
            for part in response.iter_bytes():
                content += part
                if time.monotonic() > end:
                    raise httpx.ReadTimeout(f"not whole within {planning.planner_timeout:g} s")
                if len(content) > LIMIT:
                    break
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise RequestError(f"The planner {endpoint} gave no answer: {error or type(error).__name__}.", hint) from None
    if response.status_code != 200 or len(content) > LIMIT:
        said = content[:120].decode(errors="replace").replace("\n", " ")
        raise RequestError(f"The planner {endpoint} answered {response.status_code}: {said}", hint)
    try:
        return str(json.loads(content)["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise RequestError(f"The planner {endpoint} does not speak chat completions.", hint) from None


def read_answer(answer: str) -> tuple[Box, ...]:
    """Read boxes from the answer of a language model, around which there may be other text.

    Raises:
        RequestError: if there is no JSON of the right form in it, or a box cannot be.
    """
    start, end = answer.find("{"), answer.rfind("}")
    try:
        listed = json.loads(answer[start : end + 1])["boxes"]
        found = [(str(one["phrase"]), [float(edge) for edge in one["box"]]) for one in listed]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RequestError(
            f"The planner's answer holds no boxes: {answer[:120]!r}.", "Ask again, or use the built-in rules."
        ) from None
    if not found:
        raise RequestError("The planner's answer holds no boxes.", "Name things in the sentence.")
    return checked(found, "the planner's answer")
