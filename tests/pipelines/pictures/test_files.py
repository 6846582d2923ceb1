"""Sound pixels are read whatever stands beside them, in the colours and the range they mean."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from pipelines.errors import DataError, RequestError
from pipelines.pictures.files import decoded, open_mask, open_picture
from pipelines.pictures.metadata import KEY, read_made
from pipelines.pictures.png import PNG, TEXT_LIMIT, chunks, texts
from studio.library.uploads import cleaned

NOISE = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
TALL = np.rot90(NOISE, -1)
_PACKED = (
    "c${NkV0@61oLkJ~z`&53S5g$@?xYYA8KuDfgn<zV!5}fYxPSpK_;wAV_OdR1byxvsN@{U3kp2L~3CRUTB@7IV0YJ7u"
    "c}W3?od9Hu6agItWS4;0=@51Yh@Avs&jG6m333LqH-Pk}L)ZsE>?8>L0*DQ@3j|n8Qj1H-a4%j^l3D>aGcP|c6-0x="
    "5+Z{LBZOG<Jq8Bb{r~^}-+>VGI>^AV(S(74YZpRH!-9c9ke7ks#O~zMqB5vej7-K1421Xqi+n!_"
)
P3 = zlib.decompress(base64.b85decode(_PACKED))
"""A Display P3 profile."""

PNG_ONLY = pytest.mark.parametrize("read", [open_picture, lambda path: cleaned(path.read_bytes(), path.name)])


def chunk(kind, data, wrong=0):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ wrong)


def png(picture, *beside):
    """A PNG with chunks of one's own before its pixels."""
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    parts = [chunk(kind, data) for kind, data, _ in chunks(stream.getvalue())]
    return PNG + b"".join([parts[0], *beside, *parts[1:]])


def tiff(*entries, tail=b"\0\0\0\0"):
    """EXIF: tag, type, count and value of each entry."""
    packed = [struct.pack("<HHI4s", tag, kind, count, value.ljust(4, b"\0")) for tag, kind, count, value in entries]
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(packed) + tail


TURN = (0x0112, 3, 1, b"\x06")
EXIF = {
    "empty": (b"", False),
    "not TIFF": (b"garbage-not-tiff", False),
    "cut short": (b"II*\0\x08\0\0\0\x01\0", False),
    "turned": (tiff(TURN), True),
    "no turn": (tiff((0x0112, 3, 1, b"\0")), False),
    "a turn that does not exist": (tiff((0x0112, 3, 1, b"\x09")), False),
    "a turn in letters": (tiff((0x0112, 2, 4, b"6\0\0\0")), False),
    "two turns": (tiff((0x0112, 3, 2, b"\x06\0\x06\0")), True),
    "a place outside": (tiff(TURN, (0x8769, 4, 1, b"\x9f\x86\x01\0")), True),
    "letters for a directory": (tiff(TURN, (0x8769, 2, 4, b"abc\0")), True),
    "letters for a place on earth": (tiff(TURN, (0x8825, 2, 4, b"abc\0")), True),
    "divided by nothing": (tiff(TURN, (0x011A, 5, 1, b"\x2a\0\0\0"), tail=bytes(16)), True),
    "a number for the program": (tiff(TURN, (0x0131, 3, 1, b"\x05\0\0\0"), (0x0100, 2, 4, b"abc\0")), True),
    "an unknown type": (tiff(TURN, (0xEA1C, 99, 1, b"abcd")), True),
    "less than nothing": (tiff(TURN, (0x011A, 10, 1, b"\x32\0\0\0"), tail=b"\xff" * 24), True),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", list(EXIF))
def test_of_exif_the_orientation_is_used_and_nothing_else_hinders(tmp_path, kind, name):
    exif, turned = EXIF[name]
    picture, path = Image.fromarray(NOISE), tmp_path / "x.bin"
    if kind == "PNG":
        path.write_bytes(png(picture, chunk(b"eXIf", exif)))
    elif kind == "JPEG":
        picture.save(path, kind, exif=b"Exif\0\0" + exif, quality=100, subsampling=0)
    else:
        picture.save(path, kind, exif=exif, lossless=True)
    for seen in (open_picture(path), cleaned(path.read_bytes())):
        expected = TALL if turned else NOISE
        assert seen.size == expected.shape[1::-1] and not seen.info and not seen.getexif()
        assert np.abs(np.asarray(seen).astype(int) - expected).max() <= (8 if kind == "JPEG" else 0)


LARGE = zlib.compress(b'{"workflow": 1}' * 150_000)
BESIDE = {
    "a large packed text": chunk(b"zTXt", b"workflow\0\0" + LARGE),
    "a large international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + LARGE),
    "a text with a wrong sum": chunk(b"tEXt", b"Comment\0hello", wrong=1),
    "a packed text that is none": chunk(b"zTXt", b"Comment\0\0junk"),
    "a text without a name": chunk(b"tEXt", b""),
    "a profile that is none": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"no profile")),
    "a profile that is not packed": chunk(b"iCCP", b"x\0\0junk"),
    "a profile of many MiB": chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(16 << 20))),
    "a size in metres that is cut short": chunk(b"pHYs", b"\0"),
    "primaries that are none": chunk(b"cHRM", b"\0\0"),
    "frames of an animation": chunk(b"acTL", b"\0\0\0"),
    "a chunk nobody knows": chunk(b"abCd", b"junk", wrong=7),
}


@PNG_ONLY
@pytest.mark.parametrize("name", list(BESIDE))
def test_pixels_are_read_whatever_stands_beside_them(tmp_path, name, read):
    path = tmp_path / "x.png"
    path.write_bytes(png(Image.fromarray(NOISE), BESIDE[name]))
    assert np.array_equal(np.asarray(read(path)), NOISE)


@PNG_ONLY
@pytest.mark.parametrize("place", [b"IHDR", b"IDAT"])
def test_pixels_that_are_damaged_are_not_read(tmp_path, read, place):
    stream, path = io.BytesIO(), tmp_path / "x.png"
    Image.fromarray(NOISE).save(stream, "PNG")
    parts = [chunk(kind, b"junk" * 9 if kind == place else data) for kind, data, _ in chunks(stream.getvalue())]
    path.write_bytes(PNG + b"".join(parts))
    with pytest.raises(DataError, match=r"x\.png"):
        read(path)


# -- colours --------------------------------------------------------------------------------------------------------


def with_profile(profile, mode="RGB", colour=(234, 51, 35), kind="PNG", **how):
    stream = io.BytesIO()
    Image.new(mode, (8, 8), colour).save(stream, kind, icc_profile=profile, **how)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_colours_of_a_profile_become_those_of_the_screen(kind):
    how = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    seen = cleaned(with_profile(P3, kind=kind, **how)).getpixel((4, 4))
    assert seen == pytest.approx((255, 0, 0), abs=3)  # what a browser shows


def test_colours_of_a_profile_keep_their_transparency():
    seen = decoded(with_profile(P3, "RGBA", (234, 51, 35, 128)), "x").getpixel((0, 0))
    assert seen == pytest.approx((255, 0, 0, 128), abs=1)


def test_colours_that_are_of_the_screen_already_stay_to_the_bit():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "PNG", icc_profile=profile)
    assert np.array_equal(np.asarray(cleaned(stream.getvalue())), NOISE)


def test_a_profile_for_other_channels_is_left_out():
    assert cleaned(with_profile(P3, "L", 100)).getpixel((0, 0)) == (100, 100, 100)


# -- depth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("most", [1, 255, 65535, 1e6])
def test_real_numbers_keep_their_range(tmp_path, most):
    ramp = np.linspace(0, most, 256, dtype=np.float32).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "x.tif")
    seen = np.asarray(open_picture(tmp_path / "x.tif"))[..., 0].ravel()
    assert np.abs(seen.astype(int) - np.arange(256)).max() <= 1


def test_numbers_that_are_none_are_black_or_as_bright_as_can_be(tmp_path):
    values = np.array([[0, 0.5, 1], [np.nan, np.inf, -np.inf]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    seen = np.asarray(open_picture(tmp_path / "x.tif"))[..., 0]
    assert seen.tolist() == [[0, 127, 255], [0, 255, 0]]


def test_sixteen_bits_of_grey_keep_the_level_that_is_clear(tmp_path):
    values = np.full((4, 4), 30_000, np.uint16)
    values[0] = 257 * 10
    Image.fromarray(values).save(tmp_path / "x.png", transparency=30_000)
    assert decoded(tmp_path / "x.png", "x").getchannel("A").getextrema() == (0, 255)
    seen = np.asarray(open_picture(tmp_path / "x.png"))[..., 0]
    assert (seen[0] == 10).all() and (seen[1:] == 255).all()
    assert (np.asarray(open_mask(tmp_path / "x.png"))[1:] == 0).all(), "clear is black in a mask"


@pytest.mark.parametrize("upload", [False, True])
def test_thirty_two_bits_keep_their_range(tmp_path, upload):
    for most, expected in ((65535, 255), (2**31 - 1, 127)):
        Image.fromarray(np.full((2, 2), most, np.int32)).save(tmp_path / "x.tif")
        seen = cleaned((tmp_path / "x.tif").read_bytes()) if upload else open_picture(tmp_path / "x.tif")
        assert seen.getpixel((0, 0)) == (expected,) * 3


# -- texts ----------------------------------------------------------------------------------------------------------


def test_texts_are_read_as_pillow_reads_them():
    info = PngInfo()
    info.add_text("a", "plain")
    info.add_text("b", "packed", zip=True)
    info.add_itxt("c", "ünd 猫", lang="de", tkey="x")
    info.add_itxt("d", "ünd 猫" * 99, zip=True)
    stream = io.BytesIO()
    Image.fromarray(NOISE).save(stream, "PNG", pnginfo=info)
    assert texts(stream.getvalue()) == Image.open(stream).text
    assert texts(b"no picture") == {}


def test_texts_that_are_damaged_or_too_long_are_left_out_and_others_read(tmp_path):
    own, long = chunk(b"tEXt", b"note\0read me"), zlib.compress(bytes(TEXT_LIMIT + 1))
    for beside in (*BESIDE.values(), chunk(b"zTXt", b"long\0\0" + long), chunk(b"iTXt", b"x\0\0\0\0\0\xff")):
        found = texts(png(Image.fromarray(NOISE), beside, own))
        assert found["note"] == "read me" and set(found) <= {"note", "workflow", ""}
    (tmp_path / "x.png").write_bytes(png(Image.fromarray(NOISE), BESIDE["a large packed text"]))
    assert len(texts(tmp_path / "x.png")["workflow"]) == 15 * 150_000
    with pytest.raises(RequestError, match="does not say how it was made"):
        read_made(tmp_path / "x.png")
    (tmp_path / "y.png").write_bytes(
        png(Image.fromarray(NOISE), *BESIDE.values(), chunk(b"tEXt", KEY.encode() + b"\0{"))
    )
    with pytest.raises(RequestError, match=r"y\.png says about itself is damaged"):
        read_made(tmp_path / "y.png")
