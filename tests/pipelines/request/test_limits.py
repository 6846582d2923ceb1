"""The edges of what can be asked: ranges, steps a sampler can do, intervals of guidance, places to write to."""

from __future__ import annotations

import json
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.condition import Step, merge, stack
from pipelines.errors import ConfigError, RequestError
from pipelines.files import require_room, whole_file
from pipelines.generation import generate
from pipelines.guidance import active, classifier_free, rescaled
from pipelines.models.schedulers import KINDS, build
from pipelines.request.request import Guidance, Request
from tests import tiny

SD = tiny.sd_pipeline().scheduler.config
POCKET = dict(SD) | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


# -- requests -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field", "value", "limit"),
    [
        ({"steps": 1001}, "steps", "1001", "1000"),
        ({"steps": 2.5}, "steps", "2.5", "integer"),
        ({"width": 15}, "width", "15", "16"),
        ({"height": 4097}, "height", "4097", "4096"),
        ({"seed": 2**63}, "seed", str(2**63), str(2**63)),
        ({"count": 257}, "count", "257", "256"),
        ({"guidance": {"scale": 50.5}}, "guidance.scale", "50.5", "50"),
        ({"guidance": {"stop": 1.01}}, "guidance.stop", "1.01", "1"),
        ({"concepts": [{"source": "a"}, {"source": "b", "strength": -4.1}]}, "concepts.1.strength", "-4.1", "-4"),
        ({"scheduler": "DDIM"}, "scheduler", "'DDIM'", "'ddim'"),
        ({"prompt": None}, "prompt", "None", "string"),
        ({"promt": "x"}, "promt", "'x'", "not permitted"),
    ],
)
def test_a_value_out_of_range_is_said_with_its_field_and_the_limit(fields, field, value, limit):
    with pytest.raises(RequestError) as error:
        Request.read({"prompt": "x"} | fields)
    said = error.value.message
    assert said.startswith(f"{field}: ") and value in said and limit in said
    assert "--help" in error.value.hint and "\n" not in said


def test_a_long_value_is_shown_short():
    with pytest.raises(RequestError) as error:
        Request.read({"prompt": "x", "scheduler": "y" * 100_000})
    assert len(error.value.message) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.dictionaries(st.sampled_from([*Request.model_fields, "other"]), JSON, max_size=4))
def test_untrusted_data_are_a_valid_request_or_one_sentence(fields):
    try:
        request = Request.read(fields)
    except RequestError as error:
        assert error.message.endswith(".") and error.hint
    else:
        assert Request.read(json.loads(request.model_dump_json())) == request


# -- samplers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 25, 333])
@pytest.mark.parametrize("config", [SD, POCKET], ids=["sd", "pocket"])
@pytest.mark.parametrize("name", list(KINDS))
def test_every_sampler_walks_down_the_whole_schedule_in_the_steps_asked_for(name, config, steps):
    if name == "lcm" and steps > 50:
        with pytest.raises(RequestError, match=rf"lcm cannot do {steps} steps.*Use fewer steps"):
            build(name, config, steps, "cpu")
        return
    scheduler = build(name, config, steps, "cpu")
    timesteps = scheduler.timesteps.tolist()
    assert len(timesteps) == steps and timesteps == sorted(set(timesteps), reverse=True)
    assert timesteps[-1] >= 0 and timesteps[0] <= 999
    if config is POCKET:
        assert timesteps[0] == 999, "zero terminal SNR is only reached at the very first timestep"


def test_steps_a_sampler_cannot_do_are_said_before_anything_is_drawn():
    base, steps = tiny.sd(), []
    before = tiny.snapshot(base)
    with pytest.raises(RequestError, match="lcm cannot do 51 steps"):
        generate(base, Request(prompt="x", scheduler="lcm", steps=51, width=16, height=16), on_event=steps.append)
    assert steps == [] and tiny.same(before, base)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "lcm"])
@pytest.mark.parametrize("config", [SD, POCKET], ids=["sd", "pocket"])
def test_a_perfect_prediction_leads_every_sampler_to_the_picture(name, config):
    # With the noise known exactly, whatever is walked in between, the end is the clean picture.
    scheduler = build(name, config, 20, "cpu")
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 4, 8, 8, generator=generator)
    table = scheduler.alphas_cumprod.double()
    latents = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(latents, timestep).double()
        a = table[int(timestep)]
        noise = (seen - a.sqrt() * clean) / (1 - a).sqrt()
        guess = noise if config is SD else a.sqrt() * noise - (1 - a).sqrt() * clean
        options = {"generator": torch.Generator().manual_seed(1)} if name == "euler-a" else {}
        latents = scheduler.step(guess.float(), timestep, latents, **options).prev_sample
    # DDIM of Stable Diffusion stops at the first step's noise, a twentieth of the picture's own spread.
    assert float((latents - clean).abs().max()) < 0.2 and float((latents - clean).abs().mean()) < 0.05


# -- guidance -----------------------------------------------------------------------------------------------------


def acting(count, **fields):
    steps = [Step(index, count, torch.tensor(1), None) for index in range(count)]
    return [step.index for step in steps if active(Guidance(scale=3.0, **fields), step)]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1))
def test_two_intervals_that_meet_cover_every_step_once(count, one, other):
    first, second = sorted((one, other))
    parts = [acting(count, stop=first), acting(count, start=first, stop=second), acting(count, start=second)]
    assert sorted(index for part in parts for index in part) == list(range(count))


def test_an_interval_that_ends_before_it_begins_is_refused_with_the_next_step():
    with pytest.raises(RequestError) as caught:
        Request.read({"prompt": "a fox", "guidance": {"start": 0.6, "stop": 0.4}})
    assert "guidance: start 0.6 lies after stop 0.4" in str(caught.value) and "scale 1" in str(caught.value)
    assert acting(20, start=0.4, stop=0.4) == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.floats(0, 20), st.floats(0, 1), st.integers(0, 99))
def test_combining_is_the_published_formula_for_each_picture_alone(scale, rescale, seed):
    generator = torch.Generator().manual_seed(seed)
    c, u = (torch.randn(3, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    guided = rescaled(classifier_free(c, u, scale), c, rescale)
    for row in range(3):
        mixed = u[row] + scale * (c[row] - u[row])
        matched = mixed * c[row].std() / mixed.std()
        torch.testing.assert_close(guided[row], rescale * matched + (1 - rescale) * mixed)


# -- arguments of conditions ----------------------------------------------------------------------------------------


def test_merging_does_not_depend_on_the_order_and_leaves_its_parts_alone():
    parts = [{"a": {"x": 1, "deep": {"p": 1}}}, {"b": 2}, {"a": {"deep": {"q": 2}}}]
    kept = json.dumps(parts)
    assert merge(parts) == merge(parts[::-1]) == {"a": {"x": 1, "deep": {"p": 1, "q": 2}}, "b": 2}
    assert json.dumps(parts) == kept


@pytest.mark.parametrize(
    ("parts", "where"), [([{"a": 1}, {"a": {"x": 1}}], "a"), ([{"a": {"b": {"c": 1}}}] * 2, "a.b.c")]
)
def test_what_two_conditions_both_set_is_named_with_its_whole_path(parts, where):
    with pytest.raises(RequestError, match=rf"both set {re.escape(where)}\."):
        merge(parts)


def test_stacking_joins_tensors_along_the_batch_at_every_depth():
    one, two = ({"a": torch.full((2, 3), i), "b": {"c": torch.full((2,), i)}, "same": "x"} for i in (1.0, 2.0))
    stacked = stack([one, two])
    assert stacked["a"][:, 0].tolist() == [1, 1, 2, 2] and stacked["b"]["c"].tolist() == [1, 1, 2, 2]
    assert stacked["same"] == "x"
    with pytest.raises(ValueError, match="differ"):
        stack([{"b": {"c": 1}}, {"b": {}}])


# -- places to write ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["file/x.png", "file/deeper/x.png", f"{'n' * 250}/{'n' * 250}"])
def test_a_place_that_cannot_be_a_file_is_refused_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(ConfigError, match=r"cannot be written: .*Choose another --output") as error,
        whole_file(tmp_path / place),
    ):
        pytest.fail("the work was done for nothing")
    assert str(tmp_path / place) in error.value.message
    assert (tmp_path / "file").read_text() == "in the way"


def test_there_is_no_room_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"file is no folder that can be written to.*--output"):
        require_room(tmp_path / "file" / "below", 1)


def test_room_that_is_missing_is_told_in_full(tmp_path):
    with pytest.raises(ConfigError, match=r"Only \d+ MiB are free at .*, 1073741824 MiB are needed"):
        require_room(tmp_path / "later", 2**50)
    assert list(tmp_path.iterdir()) == []


def test_the_last_of_several_writers_wins_whole(tmp_path):
    path = tmp_path / "x"
    with whole_file(path) as first:
        first.write_text("first")
        with whole_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
