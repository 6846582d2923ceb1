from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import DataError
from pipelines.pictures.files import open_picture
from pipelines.pictures.tensors import fit, to_pictures, to_tensor


def test_tensors_and_pictures_round_trip():
    array = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(array)
    assert np.array_equal(np.asarray(to_pictures(to_tensor(picture)[None])[0]), array)
    assert to_tensor(picture).shape == (3, 9, 7)
    assert to_tensor(Image.new("RGB", (1, 1), "white")).max() == 1 and to_tensor(Image.new("RGB", (1, 1))).min() == -1


def test_phone_photos_are_turned_upright(tmp_path):
    picture = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    picture.save(tmp_path / "phone.jpg", exif=exif)
    assert open_picture(tmp_path / "phone.jpg").size == (10, 20)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_kind_of_colour_becomes_rgb(tmp_path, mode):
    suffix = "tif" if mode == "CMYK" else "png"
    if mode == "I;16":
        picture = Image.fromarray(np.full((8, 8), 32896, np.uint16))
    else:
        picture = Image.new("RGB", (8, 8), (128, 128, 128)).convert(mode)
    picture.save(tmp_path / f"x.{suffix}")
    opened = open_picture(tmp_path / f"x.{suffix}")
    assert opened.mode == "RGB"
    if mode != "1":
        assert abs(np.asarray(opened).mean() - 128) < 4


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_a_text_file_named_jpg_is_said_to_be_one(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    with pytest.raises(DataError, match=r"notes\.jpg is no picture.*whatever its name"):
        open_picture(tmp_path / "notes.jpg")


def test_a_truncated_picture_is_refused(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.png cannot be read"):
        open_picture(tmp_path / "cut.png")


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    with pytest.raises(DataError, match="pixels"):
        open_picture(tmp_path / "bomb.png")


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        open_picture(tmp_path / "nothing.png")


def test_fitting_keeps_proportions():
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (0, 0, 10, 20))
    assert fit(picture, 10, 10).getpixel((5, 5)) == (0, 0, 255)
    assert fit(picture, 10, 10).size == (10, 10)


def test_values_out_of_range_are_clipped():
    assert to_pictures(torch.full((1, 3, 1, 1), 9.0))[0].getpixel((0, 0)) == (255, 255, 255)
