"""Training of gated layers: what learns, what stays, what is kept, and what is refused."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from pipelines.errors import ModelError
from pipelines.gligen.tokens import grounding_input
from pipelines.models.fingerprint import is_gated
from tests import tiny
from trainers.base_models.gligen import BoxedPictures, GroundingObjective, gains, grounding_of, opened, with_gates
from trainers.base_models.grounding import GroundingConfig
from trainers.distributed import ALONE
from trainers.loop.checkpoints import states
from trainers.loop.clock import Clock
from trainers.loop.optimizers import optimizers_of
from trainers.loop.schedule import warm_stable_decay
from trainers.loop.train import train
from trainers.pretrain.grounding import ComposedGrounding
from trainers.run import run_of
from trainers.stickers.free_scenes import covered, free_scene, listed, thrown
from trainers.stickers.world import UNIT

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = GroundingConfig()
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"}


def changed(**settings):
    return CONFIG.model_copy(update=settings)


@pytest.fixture
def base():
    return tiny.sd()


@pytest.fixture
def unet(base):
    return base.unet


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


def run(data, held_out=None, **settings):
    pace = {"steps": 6, "batch": 8, "learning_rate": 3e-3, "warmup": 5, "scale_lr": False, "ema": 0.998, "decay": 0.4}
    return run_of(ComposedGrounding(data, held_out), pace | {"max_grad_norm": 1.0} | settings)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_gated_layers_alone_have_gradients_and_the_gates_the_first_of_them(unet):
    objective = GroundingObjective(unet, SCHEDULE, pictures(), CONFIG)
    with opened(unet) as trained:
        assert set(trained) == {name for name in unet.state_dict() if is_gated(name)}
        objective.loss(objective.draw(8, generator()), generator()).backward()
        moved = {name for name, value in unet.named_parameters() if value.grad is not None and bool(value.grad.any())}
        assert moved == {name for name in trained if "alpha" in name}
        for name in moved:
            trained[name].data.fill_(0.3)
        objective.loss(objective.draw(8, generator()), generator()).backward()
        moved = {name for name, value in unet.named_parameters() if value.grad is not None and bool(value.grad.any())}
        assert moved == set(trained)


def test_gates_learn_at_a_rate_of_their_own_and_never_decay(base):
    the_run = run(pictures())
    with the_run.method.prepare(base, the_run.config, generator()) as trainable:
        (adamw,) = optimizers_of(the_run.train, trainable, ALONE)
        layers, gates = sorted(adamw.param_groups, key=lambda group: group["lr"])
        assert gates["lr"] == pytest.approx(10 * layers["lr"]) and gates["weight_decay"] == 0 < layers["weight_decay"]
        assert {value.numel() for value in gates["params"]} == {1} and len(gates["params"]) == 2 * 4


def test_the_layers_open_and_learn_and_the_base_is_untouched(base):
    before, data, events = tiny.snapshot(base), pictures(), []
    layers = train(base, run(data, data, steps=40), (), on_event=events.append)
    assert tiny.same(before, base)
    with layers.attach(base) as gated:
        found = gains(gated.unet, SCHEDULE, data)
    assert found["boxes"] < found["base"] - 0.01 and found["boxes"] != found["null"] and found["gates"] > 0.02
    assert {"boxes", "null", "base", "gates"} <= events[-1].terms.keys()


def test_layers_that_begin_open_are_new_and_learn_places_by_muon_sooner(base):
    gaps = {}
    for name, settings in {"closed": {}, "open": {"gate": 0.5, "optimizer": "muon", "places_first": 0.5}}.items():
        data = pictures()
        with train(base, run(data, steps=30, **settings), ()).attach(base) as gated:
            found = gains(gated.unet, SCHEDULE, data)
        gaps[name] = found["null"] - found["boxes"]
    assert gaps["open"] > 2 * gaps["closed"]


def test_minutes_end_a_run_in_order_and_count_what_was_spent_before(base, tmp_path):
    events = []
    train(base, run(pictures(), steps=10_000, minutes=0.01), (), keep=tmp_path, on_event=events.append)
    done = int(states(tmp_path)[0].name.removeprefix("step-"))
    assert 0 < done < 10_000
    train(base, run(pictures(), steps=10_000, minutes=0.005), (), keep=tmp_path)  # the minutes are over
    assert int(states(tmp_path)[0].name.removeprefix("step-")) <= done + 1
    clock = Clock(1.0)
    clock.resume(30.0)
    assert clock.share(3, 10) == pytest.approx(0.5, abs=0.01) and clock.share(7, 10) == 0.7
    assert Clock(None).share(7, 10) == 0.7
    rates = [warm_stable_decay(10, 10_000, 1, 0.4, share) for share in (0.0, 0.6, 0.8, 1.0)]
    assert rates == pytest.approx([1, 1, 0.5, 0])


def test_while_places_come_first_the_noisy_timesteps_and_few_captions_are_seen(unet):
    seen = []

    def watched(sample, timesteps, context, **conditioning):
        seen.append((timesteps, context.abs().amax((1, 2)) > 0))
        return unet(sample, timesteps, context, **conditioning)

    watched.dtype = unet.dtype
    data = replace(pictures(), contexts=lambda which: torch.ones(len(which), 6, 32))
    config = changed(places_first=0.5, caption_drop=0.0)
    for done in (0.2, 0.7):
        objective = GroundingObjective(watched, SCHEDULE, data, config, lambda done=done: done)  # pyright: ignore
        objective.loss(objective.draw(256, generator()), generator(1))
    (early, few), (late, all_of_them) = seen
    assert int(early.min()) >= 400 > int(late.min()) and int(early.max()) >= 990
    assert 0.1 < float(few.float().mean()) < 0.3 and bool(all_of_them.all())


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
    with pytest.raises(ModelError, match="no gated layers"), opened(plain):
        pass
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
    objective = GroundingObjective(watched, SCHEDULE, data, changed(caption_drop=share))  # pyright: ignore
    objective.loss(objective.draw(400, generator()), generator(1))
    assert float(seen[0].float().mean()) == pytest.approx(1 - share, abs=0.06)
