"""Size and crop of training pictures as inputs of SDXL, beside the official script."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from tests import tiny
from trainers.data.batches import Example, LatentSet
from trainers.data.latents import cut_off
from trainers.losses import conditioning, uncropped
from trainers.methods import methods
from trainers.methods.dreambooth import DreamBoothConfig

SIZES = [(60, 20), (20, 60), (31, 30), (37, 64), (16, 16), (45, 20), (1000, 667), (8, 5)]


def scripts_ids(picture, resolution, center_crop=True):
    """`train_dreambooth_lora_sdxl.py`: original size, crop and target size of a picture, as its `time_ids`.

    Its `Resize(resolution)` scales the shorter side and cuts the longer one down to a whole number.
    """
    original = (picture.height, picture.width)
    short, long = sorted(picture.size)
    longer = int(resolution * long / short)
    width, height = (resolution, longer) if picture.width <= picture.height else (longer, resolution)
    y1 = max(0, round((height - resolution) / 2.0))
    x1 = max(0, round((width - resolution) / 2.0))
    return [*original, y1, x1, resolution, resolution] if center_crop else [*original, 0, 0, resolution, resolution]


@pytest.mark.parametrize("crop", [True, False])
def test_xl_is_told_the_crop_the_official_script_tells(crop):
    base = tiny.sdxl()
    examples = [Example(f"{k}.png", Image.new("RGB", size)) for k, size in enumerate(SIZES)]
    data = LatentSet(base, examples, resolution=16, center_crop=crop)
    method = methods()["dreambooth"]
    config = DreamBoothConfig(token="z", class_word="fox", prior="none")
    seen = []
    handle = base.unet.register_forward_pre_hook(lambda _, args, told: seen.append(told), with_kwargs=True)
    with method.prepare(base, config, torch.Generator().manual_seed(0)) as trainable:
        generator = torch.Generator().manual_seed(1)
        batch = data.draw(0, len(SIZES), config.trigger, trainable.templates, generator)
        method.losses(trainable, batch, generator)
    handle.remove()
    told = seen[0]["added_cond_kwargs"]["time_ids"].tolist()
    assert told == [scripts_ids(examples[i].picture, 16, crop) for i in batch.indices]


def test_pictures_of_buckets_tell_what_their_shape_cuts_off():
    wide = [Example("a.png", Image.new("RGB", (66, 20))), Example("b.png", Image.new("RGB", (20, 20)))]
    data = LatentSet(tiny.sdxl(), wide, resolution=32, buckets=True)
    frames = {}
    for index in range(2):
        batch = data.draw(index, 1, "<x>", ("a {}",), torch.Generator().manual_seed(0))
        frames[batch.indices[0]] = (batch.frames.tolist()[0], tuple(batch.latents.shape[2:]))
    # 66 x 20 in a bucket of 44 x 24: scaled by 24 / 20 to 79 x 24, of which (79 - 44) / 2 are cut off at the left.
    (height, width) = frames[0][1]
    assert (width * 2, height * 2) == (44, 24)
    assert frames[0][0] == [20, 66, 0, 18] and frames[1][0] == [20, 20, 0, 0]


def test_what_is_cut_off_are_the_pixels_that_are_lost():
    marked = Image.new("RGB", (60, 20), "black")
    marked.paste((255, 255, 255), (20, 0, 40, 20))
    rows, columns = cut_off(marked.size, (16, 16), True)
    scaled = marked.resize((48, 16), Image.Resampling.NEAREST)
    assert (rows, columns) == (0, 16)
    assert scaled.crop((columns, rows, columns + 16, rows + 16)).getextrema() == ((255, 255),) * 3


def test_a_whole_picture_is_told_so():
    base = tiny.sdxl()
    told = conditioning(base, ["a fox"], uncropped(1, (24, 16)), (24, 16))["added_cond_kwargs"]["time_ids"]
    assert told.tolist() == [[24, 16, 0, 0, 24, 16]]
