"""A language model as planner: boxes of a sentence from any endpoint that speaks OpenAI's chat completions.

Off unless an endpoint is given. What comes back is data from outside: read as JSON and checked like every other input.
"""

from __future__ import annotations

import json

from pydantic import Field

from pipelines.errors import RequestError
from pipelines.request.box_files import checked
from pipelines.request.layout_rules import Planner, plan
from pipelines.request.request import Box, Frozen
from studio.endpoints import TIMEOUT, Endpoint, answer_of, require_address, require_none

KEY = "STUDIO_PLANNER_KEY"
"""Environment variable with the endpoint's key, which is never an argument: others could read it."""

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

    planner_timeout: float = Field(default=TIMEOUT, gt=0, le=3600)
    """Seconds to wait for its answer."""


def planner_of(planning: Planning) -> Planner:
    """Return the planner that the settings name.

    Raises:
        ConfigError: if the endpoint is no web address, or there are settings of one and it is not named.
    """
    if not planning.planner:
        require_none("--planner", planning.planner_model, planning.planner_timeout != TIMEOUT)
        return plan
    endpoint = Endpoint("planner", "--planner", planning.planner, planning.planner_model, planning.planner_timeout, KEY)
    require_address(endpoint)

    def asked(sentence: str) -> tuple[Box, ...]:
        return read_answer(_ask(endpoint, sentence))

    return asked


def _ask(endpoint: Endpoint, sentence: str) -> str:
    """Return the answer of the language model.

    Raises:
        RequestError: if there is no answer of the right form.
    """
    hint = "Check --planner and --planner-model, or leave them out for the built-in rules."
    said = [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": sentence}]
    return answer_of(endpoint, said, hint)


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
