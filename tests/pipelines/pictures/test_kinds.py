"""Pictures of every make: orientations, transparencies, depths, animations, and damaged files of each format."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.files import PIXEL_LIMIT, open_picture
from pipelines.pictures.tensors import fit, to_pictures, to_tensor

NOISE = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)

# What a viewer does to the stored pixels for each value of the EXIF tag, after the standard's own table.
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


def with_orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("value", list(UPRIGHT))
@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_every_orientation_is_shown_upright(tmp_path, value, suffix):
    how = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(NOISE).save(tmp_path / f"x.{suffix}", exif=with_orientation(value), **how)
    assert np.array_equal(np.asarray(open_picture(tmp_path / f"x.{suffix}")), UPRIGHT[value](NOISE))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(tmp_path, value):
    Image.fromarray(NOISE).save(tmp_path / "x.png", exif=with_orientation(value))
    assert np.array_equal(np.asarray(open_picture(tmp_path / "x.png")), NOISE)


@pytest.mark.parametrize("alpha", [0, 64, 128, 255])
@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_half_transparency_is_mixed_with_white(tmp_path, alpha, mode):
    colour = (200, 100, 0) if mode == "RGBA" else (100,)
    Image.new(mode, (2, 2), (*colour, alpha)).save(tmp_path / "x.png")
    seen = open_picture(tmp_path / "x.png").getpixel((1, 1))
    mixed = [255 + (c - 255) * alpha / 255 for c in (colour if mode == "RGBA" else colour * 3)]
    assert seen == pytest.approx(mixed, abs=1.01)


def test_a_palette_with_one_clear_colour_is_laid_on_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    for suffix in ("png", "gif"):
        picture.save(tmp_path / f"x.{suffix}", transparency=1)
        opened = open_picture(tmp_path / f"x.{suffix}")
        assert [opened.getpixel((i, 0)) for i in range(2)] == [(255, 0, 0), (255, 255, 255)]


def test_one_clear_colour_of_an_rgb_picture_is_laid_on_white(tmp_path):
    picture = Image.new("RGB", (2, 1), (0, 0, 255))
    picture.putpixel((0, 0), (9, 9, 9))
    picture.save(tmp_path / "x.png", transparency=(9, 9, 9))
    opened = open_picture(tmp_path / "x.png")
    assert [opened.getpixel((i, 0)) for i in range(2)] == [(255, 255, 255), (0, 0, 255)]


def test_an_animation_is_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "x.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (257 * 128, 128), (65535, 255)])
def test_sixteen_bits_of_grey_are_scaled_rather_than_cut(tmp_path, value, expected):
    Image.fromarray(np.full((3, 3), value, np.uint16)).save(tmp_path / "x.png")
    assert open_picture(tmp_path / "x.png").getpixel((1, 1)) == (expected,) * 3


def test_the_colours_of_print_are_those_of_the_screen_again(tmp_path):
    Image.new("RGB", (8, 8), (250, 20, 30)).convert("CMYK").save(tmp_path / "x.jpg", quality=100)
    seen = open_picture(tmp_path / "x.jpg").getpixel((4, 4))
    assert seen == pytest.approx((250, 20, 30), abs=6)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("width", "height"), [(10_001, 10_000), (1, PIXEL_LIMIT + 1), (30_000, 30_000)])
def test_gigantic_pictures_are_refused_by_their_header_alone(tmp_path, width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"x\.png has .*100,000,000.*Make it smaller"):
        open_picture(tmp_path / "x.png")


def test_a_folder_named_like_a_picture_is_said(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(DataError, match=r"x\.png cannot be read"):
        open_picture(tmp_path / "x.png")


def encoded(kind):
    stream = io.BytesIO()
    how = {"exif": with_orientation(6)} if kind in ("PNG", "JPEG", "WEBP") else {}
    Image.fromarray(NOISE.repeat(3, 0).repeat(3, 1)).save(stream, kind, **how)
    return stream.getvalue()


SOUND = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", list(SOUND))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3), cut=st.booleans())
def test_damaged_pictures_never_do_worse_than_a_data_error(tmp_path, kind, damage, cut):
    data = bytearray(SOUND[kind])
    for place, value in damage:
        data[place % len(data)] = value
    (tmp_path / "x.bin").write_bytes(bytes(data[: damage[0][0]] if cut else data))
    try:
        assert open_picture(tmp_path / "x.bin").mode == "RGB"
    except DataError as error:
        assert error.message.startswith("x.bin") and error.hint


# -- tensors --------------------------------------------------------------------------------------------------------


def test_all_256_values_survive_the_way_through_a_tensor():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None].repeat(3, 0))
    tensor = to_tensor(ramp)
    torch.testing.assert_close(tensor[0, 0], torch.linspace(-1, 1, 256))
    for dtype in (torch.float32, torch.float64):
        assert np.array_equal(np.asarray(to_pictures(tensor[None].to(dtype))[0])[..., 0], np.asarray(ramp))


@pytest.mark.parametrize(
    ("value", "expected"), [(-1.5, 0), (-1.0, 0), (-0.9999, 0), (0.0, 128), (0.0039, 128), (1.0, 255)]
)
def test_values_are_rounded_to_the_nearest(value, expected):
    assert to_pictures(torch.full((1, 3, 1, 1), value))[0].getpixel((0, 0)) == (expected,) * 3


def test_a_batch_comes_out_in_order_with_width_and_height_where_they_belong():
    batch = torch.stack([torch.full((3, 2, 5), level) for level in (-1.0, 1.0)])
    pictures = to_pictures(batch)
    assert [picture.size for picture in pictures] == [(5, 2), (5, 2)]
    assert [picture.getpixel((4, 1)) for picture in pictures] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (30, 12), (64, 64)])
@pytest.mark.parametrize("target", [(16, 16), (8, 24)])
def test_fitting_cuts_the_middle_out_and_never_squeezes(size, target):
    # A picture whose brightness is the distance from its middle in units of what is kept.
    width, height = size
    scale = max(target[0] / width, target[1] / height)
    kept = (target[0] / scale, target[1] / scale)
    x = (np.arange(width) + 0.5 - width / 2) / kept[0]
    y = (np.arange(height) + 0.5 - height / 2) / kept[1]
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0], picture[..., 1] = (127.5 + 100 * x).clip(0, 255)[None], (127.5 + 100 * y).clip(0, 255)[:, None]
    fitted = np.asarray(fit(Image.fromarray(picture), *target)).astype(float)
    assert fitted.shape == (target[1], target[0], 3)
    middle = fitted[target[1] // 2 - 1 : target[1] // 2 + 1, target[0] // 2 - 1 : target[0] // 2 + 1]
    assert middle[..., 0].mean() == pytest.approx(127.5, abs=3) and middle[..., 1].mean() == pytest.approx(127.5, abs=3)
    across = 100 * (1 - 1 / target[0])
    assert fitted[..., 0].max() - fitted[..., 0].min() == pytest.approx(across, abs=12)


# -- depths and colours that Pillow does not write ------------------------------------------------------------------


def sixteen_bits(colour, *values):
    """A PNG of one pixel with 16 bits a channel, of a colour type of the standard."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 16, colour, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values)))
    return b"\x89PNG\r\n\x1a\n" + head + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("colour", "values", "expected"),
    [
        (0, (0x8080,), (128, 128, 128)),
        (2, (0xFFFF, 0x8080, 0x4040), (255, 128, 64)),
        (4, (0x8080, 0xFFFF), (128, 128, 128)),
        (4, (0x0000, 0x8080), (127, 127, 127)),
        (6, (0xFFFF, 0x0000, 0x0000, 0xFFFF), (255, 0, 0)),
        (6, (0xFFFF, 0x0000, 0x0000, 0x0000), (255, 255, 255)),
    ],
)
def test_sixteen_bits_of_every_colour_type_are_scaled_and_laid_on_white(tmp_path, colour, values, expected):
    (tmp_path / "x.png").write_bytes(sixteen_bits(colour, *values))
    assert open_picture(tmp_path / "x.png").getpixel((0, 0)) == pytest.approx(expected, abs=1)


def test_lab_and_palettes_with_transparency_are_seen_as_viewers_show_them(tmp_path):
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "x.tif")
    assert min(open_picture(tmp_path / "x.tif").getpixel((0, 0))) >= 253
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putdata([0, 1])
    palette.save(tmp_path / "x.png", transparency=bytes([255, 0]))
    seen = open_picture(tmp_path / "x.png")
    assert (seen.getpixel((0, 0)), seen.getpixel((1, 0))) == ((255, 0, 0), (255, 255, 255))
