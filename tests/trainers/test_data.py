from __future__ import annotations

import pytest
import torch
from PIL import Image

from pipelines.errors import DataError
from tests import tiny
from trainers.data import Example, LatentSet, read_examples, templates


@pytest.fixture
def folder(tmp_path):
    for index, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"{index}.png")
    return tmp_path


def test_pictures_are_read_in_order_and_other_files_left_out(folder):
    (folder / "notes.md").write_text("x")
    (folder / ".hidden.png").write_text("x")
    (folder / "more").mkdir()
    assert [example.name for example in read_examples(folder)] == ["0.png", "1.png", "2.png"]


def test_a_text_file_beside_a_picture_is_its_caption(folder):
    (folder / "0.txt").write_text("\ufeff a red\n square {} ", encoding="utf-8")
    (folder / "1.caption").write_text("green", encoding="utf-8")
    (folder / "2.txt").write_text("  ")
    assert [example.caption for example in read_examples(folder)] == ["a red square {}", "green", None]


def test_a_caption_that_is_no_utf8_is_said(folder):
    (folder / "0.txt").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(DataError, match=r"0\.txt is not UTF-8"):
        read_examples(folder)


def test_a_missing_and_an_empty_folder_are_said(tmp_path):
    with pytest.raises(DataError, match="no folder"):
        read_examples(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no picture.*\.png"):
        read_examples(tmp_path)


def test_one_broken_picture_is_named(folder):
    (folder / "3.jpg").write_text("no picture")
    with pytest.raises(DataError, match=r"3\.jpg"):
        read_examples(folder)


@pytest.mark.parametrize(("name", "count", "distinct"), [("object", 27, 27), ("style", 19, 17), ("pocket", 5, 5)])
def test_templates_are_those_of_the_official_script(name, count, distinct):
    listed = templates(name)
    assert (len(listed), len(set(listed))) == (count, distinct)
    assert all(template.count("{}") == 1 for template in listed)


def drawn(data, index=0, batch=3, seed=0, wordings=("a {}",)):
    return data.draw(index, batch, "<x>", wordings, torch.Generator().manual_seed(seed))


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
    torch.testing.assert_close(data.means[1], mirrored.means[0], atol=1e-4, rtol=1e-3)
    assert len(LatentSet(base, [example], resolution=16, flip=0.0).means) == 1


def test_captions_give_way_to_templates_unless_they_hold_the_token(base):
    pictures = tiny.examples(3)
    captions = ["a {} in the snow", "<x> asleep", "just a picture"]
    data = LatentSet(
        base, [Example(p.name, p.picture, c) for p, c in zip(pictures, captions, strict=True)], resolution=16
    )
    batch = drawn(data)
    by_index = dict(zip(batch.indices, batch.captions, strict=True))
    assert by_index == {0: "a <x> in the snow", 1: "<x> asleep", 2: "a <x>"}


def test_original_sizes_are_kept_for_xl(base):
    data = LatentSet(base, [Example("x", Image.new("RGB", (30, 20)))], resolution=16)
    assert drawn(data, batch=1).sizes.tolist() == [[20, 30]]


def test_noise_of_the_posterior_is_drawn_anew_each_step(base):
    data = LatentSet(base, tiny.examples(1), resolution=16)
    assert not torch.equal(drawn(data, batch=1, seed=1).latents, drawn(data, batch=1, seed=2).latents)
    assert torch.equal(drawn(data, batch=1, seed=1).latents, drawn(data, batch=1, seed=1).latents)


def test_cropping_keeps_proportions_and_squeezing_does_not(base):
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste("black", (0, 0, 4, 20))
    squeezed, cropped = (
        LatentSet(base, [Example("x", wide)], resolution=16, center_crop=crop).means for crop in (False, True)
    )
    assert not torch.allclose(squeezed, cropped)
    white = LatentSet(base, [Example("x", Image.new("RGB", (8, 8), "white"))], resolution=16).means
    torch.testing.assert_close(cropped, white)
