"""Training of gated layers: what learns, what stays, what is kept, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from pipelines.errors import Cancelled, ConfigError, ModelError
from pipelines.gligen.tokens import grounding_input, load_adapter
from pipelines.models.fingerprint import is_gated
from pipelines.models.loading import from_pipeline
from tests.tiny import sd_pipeline
from trainers.base_models.gligen import (
    BoxedPictures,
    GroundingRun,
    decay,
    denoising,
    gains,
    grounding_of,
    groups,
    opened,
    train_grounding,
    with_gates,
)
from trainers.loop.clock import Clock
from trainers.method_settings import GroundingConfig
from trainers.stickers.free_scenes import covered, free_scene, listed, thrown
from trainers.stickers.world import UNIT

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = GroundingConfig(batch=8, rate=3e-3, gate_rate=10, warmup=5)
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}


def changed(**settings):
    return CONFIG.model_copy(update=settings)


@pytest.fixture
def unet():
    return from_pipeline(sd_pipeline(), "tiny").unet


def pictures(count=64, present=True):
    """A bright square in each picture, where its box says and nothing else tells."""
    generator = torch.Generator().manual_seed(3)
    corners = torch.randint(0, 5, (count, 2), generator=generator)
    latents = torch.full((count, 4, 8, 8), -1.0)
    for one, (x, y) in zip(latents, corners.tolist(), strict=True):
        one[:, y : y + 4, x : x + 4] = 1.0
    boxes = torch.cat((corners, corners + 4), 1).float()[:, None] / 8
    context = torch.zeros(1, 6, 32)
    return BoxedPictures(
        latents,
        lambda which: context.expand(len(which), -1, -1),
        context,
        torch.randn(2, 3, 32, generator=generator),
        torch.zeros(32),
        torch.zeros(count, 1, dtype=torch.int64),
        boxes,
        torch.full((count, 1), present),
    )


def run(tmp_path, steps, **more):
    return GroundingRun(steps, tmp_path / "a.safetensors", tmp_path / "state", {"base": "tiny"}, **more)


def test_the_gated_layers_alone_have_gradients_and_the_gates_the_first_of_them(unet):
    trained = opened(unet)
    assert set(trained) == {name for name in unet.state_dict() if is_gated(name)}
    losses = denoising(unet, SCHEDULE, pictures(), CONFIG)
    losses(0, torch.Generator().manual_seed(0))["denoise"].backward()
    moved = {name for name, value in unet.named_parameters() if value.grad is not None and bool(value.grad.any())}
    assert moved == {name for name in trained if "alpha" in name}
    for name in moved:
        trained[name].data.fill_(0.3)
    losses(0, torch.Generator().manual_seed(0))["denoise"].backward()
    moved = {name for name, value in unet.named_parameters() if value.grad is not None and bool(value.grad.any())}
    assert moved == set(trained)


def test_gates_learn_at_a_rate_of_their_own_and_never_decay(unet):
    layers, gates = groups(opened(unet), CONFIG)
    assert gates["lr"] == pytest.approx(10 * layers["lr"]) and gates["weight_decay"] == 0
    assert {value.numel() for value in gates["params"]} == {1} and len(gates["params"]) == 2 * 4


def test_the_layers_open_and_learn_and_the_base_is_untouched(unet, tmp_path):
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    data = pictures()
    train_grounding(unet, SCHEDULE, data, CONFIG, run(tmp_path, 40, keep_every=40), held_out=data)
    after = unet.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if not is_gated(name))
    found = gains(unet, SCHEDULE, data)
    assert found["boxes"] < found["base"] - 0.01 and found["boxes"] != found["null"] and found["gates"] > 0.02
    layers, about = load_adapter(tmp_path / "a.safetensors")
    assert about["base"] == "tiny" and about["steps"] == "40"
    assert all(torch.equal(value, after[name].half()) for name, value in layers.items())


def test_layers_that_begin_open_are_new_and_learn_places_by_muon_sooner(tmp_path):
    """On the same data in the same steps; the first layers of a run that goes on are those that were kept."""
    gaps = {}
    for name, settings in {"closed": {}, "open": {"gate": 0.5, "muon": True, "places_first": 0.5}}.items():
        unet, data = from_pipeline(sd_pipeline(), "tiny").unet, pictures()
        train_grounding(unet, SCHEDULE, data, changed(**settings), run(tmp_path / name, 30, keep_every=30))
        found = gains(unet, SCHEDULE, data)
        gaps[name] = found["null"] - found["boxes"]
        about = changed(**settings)
        train_grounding(unet, SCHEDULE, data, about, run(tmp_path / name, 30, keep_every=30))
        assert gains(unet, SCHEDULE, data)["boxes"] == pytest.approx(found["boxes"], abs=1e-3)
    assert gaps["open"] > 2 * gaps["closed"]


def test_while_places_come_first_the_noisy_timesteps_and_few_captions_are_seen(unet):
    seen = []

    def watched(sample, timesteps, context, **conditioning):
        seen.append((timesteps, context.abs().amax((1, 2)) > 0))
        return unet(sample, timesteps, context, **conditioning)

    watched.dtype = unet.dtype
    data = replace(pictures(), contexts=lambda which: torch.ones(len(which), 6, 32))
    config = changed(batch=256, places_first=0.5, caption_drop=0.0)
    for done in (0.2, 0.7):
        denoising(watched, SCHEDULE, data, config, lambda done=done: done)(0, torch.Generator().manual_seed(0))  # pyright: ignore
    (early, few), (late, all_of_them) = seen
    assert int(early.min()) >= 400 > int(late.min()) and int(early.max()) >= 990
    assert 0.1 < float(few.float().mean()) < 0.3 and bool(all_of_them.all())


def test_a_run_that_was_stopped_gives_what_one_without_a_stop_gives(unet, tmp_path):
    start = {name: value.clone() for name, value in unet.state_dict().items()}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_grounding(unet, SCHEDULE, pictures(), CONFIG, run(whole, 6))
    expected, _ = load_adapter(whole / "a.safetensors")
    unet.load_state_dict(start)
    asked = iter((False, False, False, True))
    with pytest.raises(Cancelled):
        train_grounding(unet, SCHEDULE, pictures(), CONFIG, run(parts, 6), should_stop=lambda: next(asked))
    unet.load_state_dict(start)
    train_grounding(unet, SCHEDULE, pictures(), CONFIG, run(parts, 6))
    found, _ = load_adapter(parts / "a.safetensors")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_state_of_other_settings_is_refused_and_kept(unet, tmp_path):
    train_grounding(unet, SCHEDULE, pictures(), CONFIG, run(tmp_path, 2))
    with pytest.raises(ConfigError, match="another rate"):
        train_grounding(unet, SCHEDULE, pictures(), changed(rate=1e-4), run(tmp_path, 4))
    assert train_grounding(unet, SCHEDULE, pictures(), CONFIG, run(tmp_path, 4)) == 4


def test_pictures_without_a_box_are_refused(unet, tmp_path):
    with pytest.raises(ConfigError, match="no picture with a box"):
        train_grounding(unet, SCHEDULE, pictures(present=False), CONFIG, run(tmp_path, 2))


def test_minutes_end_a_run_and_what_was_learned_is_written(unet, tmp_path):
    done = train_grounding(unet, SCHEDULE, pictures(), CONFIG, run(tmp_path, 10_000, minutes=0.02))
    assert 0 < done < 10_000 and load_adapter(tmp_path / "a.safetensors")[1]["steps"] == str(done)
    clock = Clock(1.0)
    clock.resume(30.0)
    assert (
        clock.share(3, 10) == pytest.approx(0.5, abs=0.01)
        and clock.share(7, 10) == 0.7
        and Clock(None).share(7, 10) == 0.7
    )
    assert [decay(share) for share in (0.0, 0.6, 0.8, 1.0)] == pytest.approx([1, 1, 0.5, 0])


def test_shares_that_are_left_out_are_those_asked_for():
    data, which = pictures(512), torch.arange(512)
    data = replace(data, things=torch.zeros(512, 4, dtype=torch.int64), boxes=data.boxes.expand(-1, 4, -1),
                   present=torch.tensor([[True, True, True, False]]).expand(512, -1))  # fmt: skip
    rng = torch.Generator().manual_seed(1)
    masks = grounding_of(data, which, CONFIG, rng)["gligen"]["masks"]
    assert masks.shape == (512, 30) and not bool(masks[:, 3:].any())
    assert float((masks.sum(1) == 0).float().mean()) == pytest.approx(0.1, abs=0.05)
    none = changed(grounding_drop=0, box_drop=0, unnamed=0, blur=0)
    given = grounding_of(data, which, none, rng)["gligen"]
    assert float(given["masks"].sum()) == 3 * 512
    said = given["positive_embeddings"][:, :3].flatten(0, 1)
    assert {tuple(row) for row in said.tolist()} == {tuple(row) for row in data.phrases[:, 0].tolist()}


def test_gates_that_are_added_leave_a_base_what_it_is(unet):
    config = {**dict(unet.config), "attention_type": "default"}
    plain = type(unet).from_config(config)
    plain.load_state_dict({name: value for name, value in unet.state_dict().items() if not is_gated(name)})
    with pytest.raises(ModelError, match="no gated layers"):
        opened(plain)
    gated = with_gates(plain)
    sample, context = torch.randn(1, 4, 8, 8), torch.randn(1, 6, 32)
    boxes = grounding_input(torch.randn(1, 2, 32), torch.rand(1, 2, 4), torch.ones(1, 2))
    with torch.no_grad():
        expected = plain(sample, 5, context).sample
        assert torch.equal(gated(sample, 5, context).sample, expected)
        assert torch.equal(gated(sample, 5, context, cross_attention_kwargs=boxes).sample, expected)
    assert with_gates(gated) is gated


def test_things_that_are_thrown_are_inside_and_leave_each_other_room():
    rng = random.Random(4)
    for _ in range(300):
        squares = thrown(rng, 3, overlap=0.2)
        assert all(min(x, y) >= 1 and x + side < UNIT and y + side < UNIT for x, y, side in squares)
        assert all(covered(a, b) <= 0.2 for a in squares for b in squares if a != b)
        item = free_scene(rng)
        assert all(one.name.rstrip("y") in item.caption for one in item.stickers)
    assert covered((0, 0, 10), (5, 5, 10)) == 0.25 and covered((0, 0, 10), (10, 0, 10)) == 0
    assert listed(["fox", "car", "fox"]) == "two foxes and a car" and listed(["owl"]) == "an owl"


@pytest.mark.parametrize(("drop", "wanted"), [(0.0, 1.0), (0.4, 0.8), (1.0, 0.5)])
def test_in_half_of_the_pictures_the_share_of_single_boxes_is_left_out(drop, wanted):
    """Of two boxes each is left out with half the chance asked for, and by itself: one alone is often told."""
    count = 4000
    one = pictures(count)
    two = replace(
        one, things=one.things.repeat(1, 2), boxes=one.boxes.repeat(1, 2, 1), present=one.present.repeat(1, 2)
    )
    config = changed(box_drop=drop, grounding_drop=0.0)
    masks = grounding_of(two, torch.arange(count), config, torch.Generator().manual_seed(1))["gligen"]["masks"][:, :2]
    assert float(masks.mean()) == pytest.approx(wanted, abs=0.02)
    alone = float((masks.sum(1) == 1).float().mean())
    assert alone == pytest.approx(0.5 * 2 * drop * (1 - drop), abs=0.02)


def test_phrases_are_unnamed_and_blurred_in_the_shares_asked_for():
    count = 2000
    data = replace(pictures(count), unnamed=torch.full((32,), 7.0))
    grounding = grounding_of(
        data, torch.arange(count), changed(unnamed=0.25, blur=0.0), torch.Generator().manual_seed(1)
    )
    embeddings = grounding["gligen"]["positive_embeddings"][:, 0]
    assert float((embeddings == 7.0).all(-1).float().mean()) == pytest.approx(0.25, abs=0.03)
    grounding = grounding_of(
        data, torch.arange(count), changed(unnamed=0.0, blur=0.5), torch.Generator().manual_seed(1)
    )
    away = (grounding["gligen"]["positive_embeddings"][:, :1] - data.phrases[:, 0]).abs().amax(-1).amin(-1)
    assert float((away > 1e-3).float().mean()) == pytest.approx(0.2, abs=0.03)


def test_pictures_of_a_single_thing_are_learned_from():
    data = replace(pictures(8), phrases=torch.randn(1, 1, 32))
    grounding = grounding_of(data, torch.arange(8), changed(blur=0.5, unnamed=0.0), torch.Generator().manual_seed(1))
    assert torch.equal(grounding["gligen"]["positive_embeddings"][0, 0], data.phrases[0, 0])
    assert bool(torch.isfinite(grounding["gligen"]["positive_embeddings"]).all())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_captions_are_left_out_in_the_share_asked_for(unet, share):
    seen = []

    def watched(sample, timesteps, context, **conditioning):
        seen.append(context.abs().amax((1, 2)) > 0)
        return unet(sample, timesteps, context, **conditioning)

    watched.dtype = unet.dtype
    data = replace(pictures(), contexts=lambda which: torch.ones(len(which), 6, 32))
    denoising(watched, SCHEDULE, data, changed(batch=400, caption_drop=share))(0, torch.Generator().manual_seed(0))  # pyright: ignore
    assert float(seen[0].float().mean()) == pytest.approx(1 - share, abs=0.06)
