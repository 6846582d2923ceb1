from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from pipelines.errors import DataError
from pipelines.models.components import Posterior
from tests import tiny
from trainers.data.batches import Example, LatentSet, digest, prompt_templates, usable


@pytest.mark.parametrize(("name", "count", "distinct"), [("object", 27, 27), ("style", 19, 17), ("pocket", 5, 5)])
def test_templates_are_those_of_the_official_script(name, count, distinct):
    listed = prompt_templates(name)
    assert (len(listed), len(set(listed))) == (count, distinct)
    assert all(template.count("{}") == 1 for template in listed)


def drawn(data, index=0, batch=3, seed=0, templates=("a {}",)):
    return data.draw(index, batch, "<x>", templates, torch.Generator().manual_seed(seed))


def means(data):
    """(ways, examples, C, h, w) of a set of squares."""
    return data.buckets[0].posterior.mean


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def test_every_example_comes_once_an_epoch(base):
    data = LatentSet(base, tiny.examples(5), resolution=16, seed=3)
    seen = [i for index in range(5) for i in drawn(data, index).indices]
    assert all(sorted(seen[k : k + 5]) == list(range(5)) for k in (0, 5, 10))
    assert seen[:5] != seen[5:10] or seen[5:10] != seen[10:]


def test_another_seed_gives_another_order(base):
    orders = {tuple(drawn(LatentSet(base, tiny.examples(5), resolution=16, seed=s), 0, 5).indices) for s in range(6)}
    assert len(orders) > 3


def test_flipping_is_mirroring_before_encoding(base):
    example = Example("x", Image.linear_gradient("L").rotate(90).convert("RGB"))
    data = LatentSet(base, [example], resolution=16, flip=0.5)
    mirrored = LatentSet(
        base, [Example("y", example.picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT))], resolution=16
    )
    torch.testing.assert_close(means(data)[1], means(mirrored)[0], atol=1e-4, rtol=1e-3)
    assert len(means(LatentSet(base, [example], resolution=16, flip=0.0))) == 1


def test_captions_give_way_to_templates_unless_they_hold_the_token(base):
    pictures = tiny.examples(3)
    captions = ["a {} in the snow", "<x> asleep", "just a picture"]
    data = LatentSet(
        base, [Example(p.name, p.picture, (c,)) for p, c in zip(pictures, captions, strict=True)], resolution=16
    )
    batch = drawn(data)
    by_index = dict(zip(batch.indices, batch.captions, strict=True))
    assert by_index == {0: "a <x> in the snow", 1: "<x> asleep", 2: "a <x>"}


def test_original_sizes_are_kept_for_xl(base):
    data = LatentSet(base, [Example("x", Image.new("RGB", (30, 20)))], resolution=16)
    assert drawn(data, batch=1).frames.tolist() == [[20, 30, 0, 0]]


def test_noise_of_the_posterior_is_drawn_anew_each_step(base):
    data = LatentSet(base, tiny.examples(1), resolution=16)
    assert not torch.equal(drawn(data, batch=1, seed=1).latents, drawn(data, batch=1, seed=2).latents)
    assert torch.equal(drawn(data, batch=1, seed=1).latents, drawn(data, batch=1, seed=1).latents)


def test_cropping_keeps_proportions_and_squeezing_does_not(base):
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste("black", (0, 0, 4, 20))
    squeezed, cropped = (
        means(LatentSet(base, [Example("x", wide)], resolution=16, center_crop=crop)) for crop in (False, True)
    )
    assert not torch.allclose(squeezed, cropped)
    white = means(LatentSet(base, [Example("x", Image.new("RGB", (8, 8), "white"))], resolution=16))
    torch.testing.assert_close(cropped, white)


def test_no_picture_is_said(base):
    with pytest.raises(DataError, match="no picture to learn from"):
        LatentSet(base, [], resolution=16)


def test_the_index_of_a_draw_is_told(base):
    data = LatentSet(base, tiny.examples(), resolution=16)
    batch = drawn(data, 7)
    assert batch.index == 7 and batch.prior is None and batch.masks is None


# -- captions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "fits"), [("a {}", True), ("a <x>", True), ("<x>ish", True), ("a fox", False), ("a < x >", False)]
)
def test_a_caption_is_usable_if_it_has_a_place_for_the_token(caption, fits):
    assert usable(caption, "<x>") is fits


def test_all_usable_captions_of_a_picture_are_drawn_and_no_others(base):
    (example,) = tiny.examples(1)
    several = replace(example, captions=("a {}", "one <x> there", "nothing here", "{} again"))
    data = LatentSet(base, [several], resolution=16)
    seen = Counter(
        caption for k in range(30) for caption in drawn(data, k, seed=k, templates=("template {}",)).captions
    )
    assert set(seen) == {"a <x>", "one <x> there", "<x> again"}
    assert min(seen.values()) > 15, "evenly"
    assert data.unused_captions("<x>") == ["0.png"]


def test_several_captions_leave_all_other_chance_but_the_noise_as_it_was(base):
    plain = LatentSet(base, tiny.examples(), resolution=16, flip=0.5)
    rich = LatentSet(base, [replace(e, captions=("a {}", "one {}")) for e in tiny.examples()], resolution=16, flip=0.5)
    assert [drawn(plain, k).indices for k in range(4)] == [drawn(rich, k).indices for k in range(4)]


def test_a_single_caption_takes_no_chance_from_the_noise(base):
    plain = LatentSet(base, tiny.examples(), resolution=16, flip=0.5)
    said = LatentSet(
        base, [replace(e, captions=("a {}", "no place")) for e in tiny.examples()], resolution=16, flip=0.5
    )
    assert torch.equal(drawn(plain).latents, drawn(said).latents)


def test_the_same_set_serves_several_tokens(base):
    (example,) = tiny.examples(1)
    data = LatentSet(base, [replace(example, captions=("a <x>", "a <y>"))], resolution=16)
    for token in ("<x>", "<y>", "<x>"):
        made = data.draw(0, 4, token, ("no {}",), torch.Generator().manual_seed(0))
        assert set(made.captions) == {f"a {token}"}


def test_the_digest_is_of_pixels_captions_masks_and_repeats_not_names():
    (example,) = tiny.examples(1)
    white = Image.new("L", example.picture.size, 255)
    variants = [
        example,
        replace(example, captions=("a {}",)),
        replace(example, captions=("a {}", "b {}")),
        replace(example, captions=("a {} b {}",)),
        replace(example, mask_source=white),
        replace(example, repeats=2),
        replace(example, source=white.convert("RGB")),
    ]
    assert len({digest([variant]) for variant in variants}) == len(variants)
    assert digest([example]) == digest([replace(example, name="other.png")])
    assert digest(variants) != digest(variants[::-1])


# -- repeats ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buckets", [False, True])
def test_repeats_multiply_what_comes_in_an_epoch(base, buckets):
    examples = [replace(e, repeats=n) for e, n in zip(tiny.examples(3), (1, 3, 2), strict=True)]
    data = LatentSet(base, examples, resolution=16, buckets=buckets)
    seen = [i for k in range(6) for i in drawn(data, k, 2).indices]
    for epoch in (seen[:6], seen[6:]):
        assert Counter(epoch) == {0: 1, 1: 3, 2: 2}


def test_one_repeat_each_keeps_the_order_of_plain_pictures(base):
    data = LatentSet(base, tiny.examples(5), resolution=16, seed=3)
    orders = [
        torch.randperm(5, generator=torch.Generator().manual_seed(3 * 9_176_263 + epoch)).tolist() for epoch in range(3)
    ]
    assert [i for k in range(5) for i in drawn(data, k, 3).indices] == [i for order in orders for i in order]


# -- masks ------------------------------------------------------------------------------------------------------


def left_masked(example):
    """A picture whose left half is the thing."""
    mask = Image.new("L", example.picture.size, 0)
    mask.paste(255, (0, 0, mask.width // 2, mask.height))
    return replace(example, mask_source=mask)


def test_masks_lie_on_the_grid_of_the_latents_and_are_ones_where_there_is_none(base):
    first, second = tiny.examples(2)
    data = LatentSet(base, [left_masked(first), second], resolution=16)
    batch = drawn(data, batch=2)
    assert batch.masks.shape == (2, 1, 8, 8) and batch.masks.dtype == torch.float32
    masks = dict(zip(batch.indices, batch.masks, strict=True))
    assert torch.equal(masks[0][..., :4], torch.ones(1, 8, 4)) and not masks[0][..., 4:].any()
    assert torch.equal(masks[1], torch.ones(1, 8, 8))


@pytest.mark.parametrize("buckets", [False, True])
def test_mirrored_pictures_mirror_their_masks(base, buckets):
    picture = Image.new("RGB", (16, 16), "white")
    picture.paste("black", (0, 0, 8, 16))
    data = LatentSet(base, [left_masked(Example("x", picture))], resolution=16, flip=0.5, buckets=buckets)
    posterior, seen = data.buckets[0].posterior, set()
    for seed in range(8):
        batch = drawn(data, batch=1, seed=seed)
        way = int(batch.masks[0, 0, 0, -1])  # 1 where the mask is mirrored
        generator = torch.Generator().manual_seed(seed)
        torch.rand(1, generator=generator), torch.randint(1, (1,), generator=generator)
        assert torch.equal(Posterior(posterior.mean[way], posterior.std[way]).sample(generator), batch.latents)
        assert batch.masks.mean() == 0.5
        seen.add(way)
    assert seen == {0, 1}


def test_a_mask_of_another_size_or_no_repeat_is_refused():
    picture = Image.new("RGB", (20, 10))
    with pytest.raises(DataError, match=r"mask of x has 10 x 5 pixels, the picture 20 x 10\..*Save the mask"):
        Example("x", picture, mask_source=Image.new("L", (10, 5)))
    with pytest.raises(DataError, match="0 times"):
        Example("x", picture, repeats=0)


# -- buckets ----------------------------------------------------------------------------------------------------


def shaped(*sizes):
    return [Example(f"{k}.png", Image.new("RGB", size, (20 * k, 90, 9 * k))) for k, size in enumerate(sizes)]


MIXED = [(40, 20), (20, 40), (30, 30), (42, 20), (31, 30), (20, 41), (44, 22)]


def test_a_batch_has_one_shape_and_original_sizes(base):
    data = LatentSet(base, shaped(*MIXED), resolution=32, buckets=True)
    shapes = set()
    for k in range(8):
        batch = drawn(data, k, 2)
        assert batch.latents.shape[0] == 2 and len(batch.indices) == 2
        assert batch.frames[:, :2].tolist() == [[MIXED[i][1], MIXED[i][0]] for i in batch.indices]
        aspects = {MIXED[i][0] > 1.2 * MIXED[i][1] for i in batch.indices}
        assert len(aspects) == 1
        shapes.add(tuple(batch.latents.shape[2:]))
    assert len(shapes) == 3 and all(h % 2 == 0 and w % 2 == 0 for h, w in shapes)


@pytest.mark.parametrize("batch", [1, 2, 3, 8])
def test_every_picture_comes_in_every_epoch_of_buckets(base, batch):
    data = LatentSet(base, shaped(*MIXED), resolution=32, buckets=True, seed=2)
    counts = [len(bucket.members) for bucket in data.buckets]
    batches = sum(-(-count // batch) for count in counts)
    for epoch in range(3):
        seen = Counter(i for k in range(batches) for i in drawn(data, epoch * batches + k, batch).indices)
        assert set(seen) == set(range(len(MIXED)))
        if batch == 1:
            assert set(seen.values()) == {1}
        for bucket in data.buckets:
            inside = [seen[i] for i in bucket.members]
            assert max(inside) - min(inside) <= 1, "a last batch is filled up evenly"


def test_the_order_of_buckets_is_decided_by_seed_and_epoch(base):
    def order(seed):
        data = LatentSet(base, shaped(*MIXED), resolution=32, buckets=True, seed=seed)
        return [tuple(drawn(data, k, 2).indices) for k in range(10)]

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(5)}) == 5
    assert order(1)[:5] != order(1)[5:]


def test_draws_do_not_depend_on_draws_before(base):
    data = LatentSet(base, shaped(*MIXED), resolution=32, buckets=True, flip=0.5)
    straight = [drawn(data, k, 2).latents for k in range(6)]
    assert all(torch.equal(drawn(data, k, 2).latents, straight[k]) for k in (5, 0, 3))


def test_square_pictures_in_buckets_are_as_they_are_cropped(base):
    examples = tiny.examples(3)
    square = LatentSet(base, examples, resolution=16, center_crop=True)
    bucketed = LatentSet(base, examples, resolution=16, buckets=True)
    assert len(bucketed.buckets) == 1
    torch.testing.assert_close(means(square), means(bucketed))


def test_masks_keep_the_shape_of_their_bucket(base):
    examples = [left_masked(e) for e in shaped((40, 20), (20, 40))]
    data = LatentSet(base, examples, resolution=32, buckets=True)
    for k in range(2):
        batch = drawn(data, k, 1)
        assert batch.masks.shape[2:] == batch.latents.shape[2:]
        assert batch.masks.mean() == pytest.approx(0.5, abs=0.01)


def test_pictures_within_a_bucket_come_in_another_order_each_epoch(base):
    """Of four pictures in batches of two each pair comes together about as often: three partners, a third each."""
    data = LatentSet(base, shaped(*[(30, 30)] * 4), resolution=32, buckets=True, seed=1)
    epochs = 120
    batches = [drawn(data, k, 2).indices for k in range(2 * epochs)]
    pairs = Counter(frozenset(batch) for batch in batches)
    assert len(pairs) == 6 and all(25 <= often <= 55 for often in pairs.values())  # 40 each; the deviation is 5
    first = Counter(batch[0] for batch in batches)
    assert all(45 <= first[i] <= 75 for i in range(4))


@pytest.mark.parametrize("buckets", [False, True])
def test_an_epoch_is_ordered_once_not_at_each_step(base, monkeypatch, buckets):
    data = LatentSet(base, tiny.examples(9), resolution=16, buckets=buckets)
    made, real = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *of, **how: (made.append(of), real(*of, **how))[1])
    seen = [i for index in range(9) for i in drawn(data, index, batch=1).indices]
    assert sorted(seen) == list(range(9))
    assert len(made) == (1 + len(data.buckets) if buckets else 1)
