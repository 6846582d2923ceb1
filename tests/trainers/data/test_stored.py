"""Training pictures stay on disk: how many are in memory at once, and what is noticed when a file changes."""

from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.errors import DataError
from tests import tiny
from trainers.data import folders, stored
from trainers.data.batches import LatentSet, digest
from trainers.data.folders import Example, read_folder
from trainers.data.latents import AT_ONCE
from trainers.data.preflight import examine
from trainers.data.smaller_copies import with_smaller_copies
from trainers.settings import DataConfig, TrainConfig

COUNT = 3 * AT_ONCE


@pytest.fixture(scope="module")
def base():
    return tiny.sd()


@pytest.fixture
def folder(tmp_path):
    for number in range(COUNT):
        noise = np.random.default_rng(number).integers(0, 255, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{number:02}.png")
    Image.new("L", (120, 90), 255).save(tmp_path / "00.mask.png")
    return tmp_path


@pytest.fixture
def alive(monkeypatch):
    """Counts of decoded pictures of full size after each that is decoded, and a function that counts those now."""
    seen, counts = [], []
    real = folders.decoded

    def held():
        return sum(one() is not None for one in seen)

    def decoded(*given):
        picture = real(*given)
        seen.append(weakref.ref(picture))
        counts.append(held())
        return picture

    monkeypatch.setattr(folders, "decoded", decoded)
    monkeypatch.setattr("pipelines.pictures.files.decoded", decoded)
    return counts, held


def test_no_picture_is_held_when_it_is_not_being_encoded(base, folder, alive):
    counts, held = alive
    reading = read_folder(folder)
    examine(reading, token="<x>", config=TrainConfig(), data=DataConfig(images=folder), components=base)
    assert len(counts) == COUNT + 1, "each file is decoded once, also for what is said of them before"
    data = LatentSet(base, reading.examples, resolution=16, flip=0.5)
    digest(data.examples)
    assert len(counts) == 2 * COUNT + 2, "and once more when it is encoded, for both ways"
    gc.collect()
    assert max(counts) <= 3 and held() == 0
    assert max(len(pickle.dumps(one)) for one in data.examples) < 2_000, "bytes that are kept of a picture"


def test_pictures_on_disk_are_encoded_as_those_in_memory(base, folder):
    here = read_folder(folder).examples
    there = [Example(one.name, one.picture, one.captions, one.mask) for one in here]
    assert digest(here) == digest(there)
    for buckets in (False, True):
        (one, *_), (two, *_) = (
            LatentSet(base, some, resolution=16, flip=0.5, buckets=buckets).buckets for some in (here, there)
        )
        assert torch.equal(one.posterior.mean, two.posterior.mean) and torch.equal(one.masks, two.masks)


def test_copies_are_made_when_they_are_asked_for_the_same_each_time(base, folder, alive):
    counts, held = alive
    copies = with_smaller_copies(read_folder(folder).examples, 4, torch.Generator().manual_seed(1))
    assert len(copies) == 5 * COUNT
    LatentSet(base, copies, resolution=16)
    gc.collect()
    assert max(counts) <= 4 and held() == 0
    assert copies[1].picture.tobytes() == copies[1].picture.tobytes() != copies[2].picture.tobytes()


def test_a_picture_that_changed_meanwhile_is_refused_by_name(folder):
    first, second, third, *_ = read_folder(folder).examples
    (folder / "00.png").unlink()
    with pytest.raises(DataError, match=r"00\.png cannot be read"):
        _ = first.picture
    Image.new("RGB", (120, 90), "red").save(folder / "01.png")
    with pytest.raises(DataError, match=r"01\.png was changed meanwhile"):
        _ = second.picture
    before = third.picture.tobytes()
    third.picture.save(folder / "02.png", compress_level=0)  # another file with the same pixels
    assert third.picture.tobytes() == before


def test_what_is_kept_of_a_picture_in_memory_is_the_picture():
    picture = Image.new("RGB", (8, 8))
    assert Example("x", picture).picture is picture and stored.opened(picture) is picture
