from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.errors import RequestError
from pipelines.request.request import Defaults, Guidance, Request
from tests.waiting import LIMIT

DEFAULTS = Defaults(size=64, scale=3.0, rescale=0.7, scheduler="ddim", steps=20)


def test_what_is_left_open_is_filled_in_and_what_is_said_stays():
    resolved = Request(prompt="x", steps=5, guidance=Guidance(scale=2.0)).resolved(DEFAULTS)
    assert (resolved.steps, resolved.width, resolved.height, resolved.scheduler) == (5, 64, 64, "ddim")
    assert (resolved.guidance.scale, resolved.guidance.rescale) == (2.0, 0.7)
    assert resolved.resolved(Defaults(size=512)) == resolved


def test_rescale_zero_is_a_choice_and_not_an_open_field():
    assert Request(prompt="x", guidance=Guidance(rescale=0.0)).resolved(DEFAULTS).guidance.rescale == 0.0


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 0},
        {"steps": 1001},
        {"width": 8},
        {"seed": -1},
        {"count": 0},
        {"scheduler": "magic"},
        {"extra": 1},
        {"guidance": {"scale": -1}},
        {"concepts": [{"source": ""}]},
        {"concepts": [{"source": "x", "strength": 5}]},
    ],
)
def test_bad_fields_are_named_with_their_value(fields):
    with pytest.raises(RequestError) as error:
        Request.read({"prompt": "x"} | fields)
    assert next(iter(fields)) in error.value.message


def test_all_problems_are_said_at_once():
    with pytest.raises(RequestError) as error:
        Request.read({"prompt": "x", "steps": 0, "count": 0})
    assert "steps" in error.value.message and "count" in error.value.message


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=50)


@given(st.builds(Request, prompt=TEXT, seed=st.integers(0, 2**63 - 1), count=st.integers(1, 256)))
def test_a_request_survives_json(request_):
    assert Request.model_validate_json(request_.model_dump_json()) == request_


def test_a_request_cannot_be_changed():
    with pytest.raises(ValidationError):
        Request(prompt="x").prompt = "y"


def test_a_request_imports_without_torch():
    modules = "pipelines.request.request, pipelines.concepts.card, pipelines.pictures.metadata"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT)
    assert done.stdout.strip() == "False"
