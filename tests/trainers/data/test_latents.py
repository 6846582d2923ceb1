from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from pipelines.errors import ConfigError
from tests import tiny
from trainers.data import latents
from trainers.data.batches import LatentSet
from trainers.data.folders import Example
from trainers.data.latents import Encoder, fitted, fitted_mask, nearest, shapes


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


def noise(seed=0, size=(20, 20)):
    """A picture like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


class Counter:
    """Count the pictures that an autoencoder really encoded while it was watched."""

    def __init__(self, components):
        self.count = 0
        self.hook = components.vae.encoder.register_forward_hook(self.add)

    def add(self, module, arguments, output):
        self.count += len(arguments[0])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.hook.remove()


def encodings(base, folder, pictures, mirrored=False):
    """Return the number of pictures encoded with a cache, and their latents."""
    with Counter(base) as counter:
        posterior = Encoder(base, folder)(pictures, mirrored)
    return counter.count, posterior


# -- shapes -----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(16, 2048), st.sampled_from([4, 8, 16, 32, 64]))
def test_shapes_are_multiples_between_one_to_two_and_two_to_one(resolution, step):
    found = shapes(resolution, step)
    assert len(set(found)) == len(found)
    for width, height in found:
        assert width % step == 0 and height % step == 0 and min(width, height) > 0
        assert 0.5 <= width / height <= 2
    assert set(found) == {(height, width) for width, height in found}
    assert any(width == height for width, height in found)


@pytest.mark.parametrize(("resolution", "step"), [(512, 64), (768, 64), (1024, 64), (64, 8), (512, 8)])
def test_shapes_have_about_the_area_of_the_square(resolution, step):
    ratios = [width * height / resolution**2 for width, height in shapes(resolution, step)]
    assert min(ratios) > 0.8 and max(ratios) < 1.25


def test_shapes_of_stable_diffusion_are_those_people_know():
    assert {(512, 512), (448, 576), (384, 704), (576, 448), (704, 384)} <= set(shapes(512, 64))


def test_the_multiple_is_what_generation_asks_for(base):
    from pipelines.errors import RequestError
    from pipelines.generation import generate
    from pipelines.request.request import Request

    step = base.multiple
    generate(base, Request(prompt="x", width=step * 5, height=step * 4, steps=1))
    with pytest.raises(RequestError, match=f"no multiple of {step}"):
        generate(base, Request(prompt="x", width=step * 5 + step // 2, height=step * 4, steps=1))


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 100), (512, 512)), ((4000, 3000), (576, 448)), ((3000, 4000), (448, 576)), ((9000, 100), (704, 384))],
)
def test_a_picture_goes_to_the_nearest_shape(size, expected):
    assert nearest(size, shapes(512, 64)) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000))
def test_turning_a_picture_turns_its_shape(width, height):
    among = shapes(512, 64)
    shape, turned = nearest((width, height), among), nearest((height, width), among)
    ratio, other = shape[0] / shape[1], turned[0] / turned[1]
    assert ratio * other == pytest.approx(1) or width == height


def test_cropping_covers_and_squeezing_keeps_everything():
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste("black", (0, 0, 8, 20))
    assert fitted(wide, (16, 16), True).getpixel((0, 8)) > (240, 240, 240)
    assert fitted(wide, (16, 16), False).getpixel((0, 8)) == (0, 0, 0)
    assert fitted(wide, (32, 16), True).size == (32, 16)
    assert fitted(wide, (32, 16), True).getpixel((0, 8)) == (0, 0, 0)


# -- masks ------------------------------------------------------------------------------------------------------


def test_a_mask_is_the_share_of_each_cell_that_is_white():
    mask = Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 10, 16))
    small = fitted_mask(mask, (4, 4), False)
    assert small.shape == (1, 4, 4) and small.dtype == torch.float32
    torch.testing.assert_close(small[0, 0], torch.tensor([1, 1, 0.5, 0]), atol=3e-3, rtol=0)


def test_no_mask_is_everywhere():
    assert torch.equal(fitted_mask(None, (5, 3), True), torch.ones(1, 3, 5))


def test_masks_are_cropped_as_their_pictures_are():
    mask = Image.new("L", (40, 20), 0)
    mask.paste(255, (10, 0, 20, 20))  # the left half of the middle square
    assert torch.equal(fitted_mask(mask, (4, 4), True)[0, 0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    assert torch.equal(fitted_mask(mask, (4, 4), False)[0, 0], torch.tensor([0.0, 1.0, 0.0, 0.0]))


def test_masks_smaller_than_the_grid_are_enlarged_without_grey():
    mask = Image.new("L", (2, 2), 0)
    mask.putpixel((0, 0), 255)
    assert set(fitted_mask(mask, (8, 8), False).unique().tolist()) == {0.0, 1.0}


# -- encoding ---------------------------------------------------------------------------------------------------


def test_without_a_cache_pictures_are_encoded_together_and_none_are_kept(base, tmp_path):
    pictures = [noise(i, (16, 16)) for i in range(6)]
    posterior = Encoder(base)(pictures)
    assert posterior.mean.shape == (6, 4, 8, 8) and posterior.mean.dtype == torch.float32
    one = Encoder(base)(pictures[5:])
    torch.testing.assert_close(posterior.mean[5:], one.mean, atol=1e-5, rtol=1e-4)
    assert not any(tmp_path.iterdir())


def test_what_is_in_the_cache_is_not_encoded_again(base, tmp_path):
    pictures = [noise(i, (16, 16)) for i in range(3)]
    first, fresh = encodings(base, tmp_path, pictures)
    again, kept = encodings(base, tmp_path, pictures)
    assert (first, again) == (3, 0)
    assert torch.equal(fresh.mean, kept.mean) and torch.equal(fresh.std, kept.std)
    assert len(list(tmp_path.iterdir())) == 3
    assert all(path.suffix == ".safetensors" for path in tmp_path.iterdir())


def test_a_result_does_not_depend_on_what_was_in_the_cache_before(base, tmp_path):
    pictures = [noise(i, (16, 16)) for i in range(4)]
    _, whole = encodings(base, tmp_path / "a", pictures)
    encodings(base, tmp_path / "b", pictures[1:3])
    count, partly = encodings(base, tmp_path / "b", pictures)
    assert count == 2
    assert torch.equal(whole.mean, partly.mean) and torch.equal(whole.std, partly.std)


def test_the_cache_and_no_cache_agree(base, tmp_path):
    pictures = [noise(i, (16, 16)) for i in range(4)]
    plain, kept = Encoder(base)(pictures), encodings(base, tmp_path, pictures)[1]
    torch.testing.assert_close(plain.mean, kept.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(plain.std, kept.std, atol=1e-5, rtol=1e-4)


def test_mirrored_pictures_are_kept_apart(base, tmp_path):
    picture = [noise(0, (16, 16))]
    assert encodings(base, tmp_path, picture)[0] == 1
    count, mirrored = encodings(base, tmp_path, picture, mirrored=True)
    turned = [picture[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    assert count == 1 and torch.equal(mirrored.mean, Encoder(base)(turned).mean)


def test_one_pixel_more_or_another_shape_is_another_picture(base, tmp_path):
    picture = noise(0, (16, 16))
    encodings(base, tmp_path, [picture])
    changed = picture.copy()
    changed.putpixel((3, 3), (1, 2, 3))
    assert encodings(base, tmp_path, [changed])[0] == 1
    flat = Image.new("RGB", (16, 32), "red")
    assert encodings(base, tmp_path, [flat])[0] == 1
    assert encodings(base, tmp_path, [flat.transpose(Image.Transpose.ROTATE_90)])[0] == 1


@pytest.mark.parametrize("change", ["a weight", "the scale", "the precision"])
def test_another_autoencoder_reuses_nothing(tmp_path, change):
    picture, base = noise(0, (16, 16)), tiny.sd()
    _, before = encodings(base, tmp_path, [picture])
    if change == "a weight":
        with torch.no_grad():
            base.vae.encoder.mid_block.resnets[0].conv2.bias[-1] += 1e-3  # far from the start of any tensor
    elif change == "the scale":
        base.vae.register_to_config(scaling_factor=0.5)
    else:
        base.vae.to(torch.bfloat16)
    count, after = encodings(base, tmp_path, [picture])
    assert count == 1 and not torch.equal(before.mean, after.mean)
    assert after.mean.dtype == torch.float32


def test_other_networks_of_the_base_do_not_matter(tmp_path):
    base, other = tiny.sd(), tiny.sd(seed=1)
    encodings(base, tmp_path, [noise(0, (16, 16))])
    assert encodings(replace(other, vae=base.vae), tmp_path, [noise(0, (16, 16))])[0] == 0


def shorten(path):
    path.write_bytes(path.read_bytes()[:-20])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def another_file(path):
    path.write_bytes(b"not a tensor in sight" * 10)


def other_tensors(path):
    save_file({"weights": torch.zeros(3)}, path)


def without_checksum(path):
    save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path)


DAMAGES = [shorten, empty, flip_a_bit, another_file, other_tensors, without_checksum]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_encoded_again_and_mended(base, tmp_path, damage):
    picture = [noise(0, (16, 16))]
    _, good = encodings(base, tmp_path, picture)
    (path,) = tmp_path.iterdir()
    damage(path)
    count, mended = encodings(base, tmp_path, picture)
    assert count == 1 and torch.equal(good.mean, mended.mean)
    assert encodings(base, tmp_path, picture)[0] == 0


def test_a_cache_that_cannot_be_written_is_said(base, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--cache"):
        Encoder(base, tmp_path / "file")([noise()])


def test_a_failed_write_leaves_nothing_half_done(base, tmp_path, monkeypatch):
    def full(*arguments, **named):
        raise OSError("No space left on device")

    monkeypatch.setattr(latents, "save_file", full)
    with pytest.raises(ConfigError, match=r"no space is left.*--cache"):
        Encoder(base, tmp_path)([noise(0, (16, 16))])
    assert not list(tmp_path.iterdir())


# -- a whole set ------------------------------------------------------------------------------------------------


def test_a_set_uses_the_cache_for_every_way_and_shape(base, tmp_path):
    examples = [replace(e, source=noise(i, (20 + 8 * i, 20))) for i, e in enumerate(tiny.examples(3))]
    settings_ = {"resolution": 16, "flip": 0.5, "cache": tmp_path}
    for expected in (6, 0):
        with Counter(base) as counter:
            LatentSet(base, examples, **settings_)
        assert counter.count == expected
    for way in ({"center_crop": True}, {"center_crop": False, "resolution": 20}):
        with Counter(base) as counter:
            LatentSet(base, examples, **(settings_ | way))
        assert counter.count == 6, "another way of fitting or another size is another picture"


def test_a_set_from_the_cache_draws_the_same_batches(base, tmp_path):
    examples = [replace(e, source=noise(i)) for i, e in enumerate(tiny.examples(3))]
    first, second = (LatentSet(base, examples, resolution=16, flip=0.5, cache=tmp_path) for _ in range(2))
    for index in range(3):
        one, two = (s.draw(index, 2, "<x>", ("a {}",), torch.Generator().manual_seed(index)) for s in (first, second))
        assert torch.equal(one.latents, two.latents)


@pytest.mark.parametrize("buckets", [False, True])
@pytest.mark.parametrize("center_crop", [False, True])
def test_pictures_of_one_pixel_and_thin_strips_are_encoded_beside_others(base, buckets, center_crop):
    sizes = ((1, 1), (4000, 3), (2, 3000), (20, 16))
    examples = [Example(f"{i}.png", Image.new("RGB", size, "red")) for i, size in enumerate(sizes)]
    data = LatentSet(base, examples, resolution=32, flip=0.0, center_crop=center_crop, buckets=buckets)
    seen = {i for k in range(12) for i in data.draw(k, 1, "<x>", ("a {}",), torch.Generator()).indices}
    assert seen == set(range(4))
    assert all(bool(torch.isfinite(one.posterior.mean).all()) for one in data.buckets)
