"""Segment Anything of each version and finders of names, with random weights: wiring, sizes and places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import SamImageProcessor, SamProcessor

from pipelines.errors import ModelError, RequestError
from pipelines.masks import names
from pipelines.masks.model_input import IMAGENET, model_input
from pipelines.masks.names import name_finder
from pipelines.masks.sam import Sam, apart
from pipelines.masks.selection import selected
from pipelines.request.inpaint import Selection
from tests.pipelines.masks.models import called, folder_of

VERSIONS = ("sam", "sam2", "edgetam", "sam3_tracker")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root, made = tmp_path_factory.mktemp("models"), {}

    def folder(kind):
        if kind not in made:
            # EdgeTAM itself needs timm; with the encoder of SAM 2 it is built without.
            made[kind] = (
                called(folder_of("sam2", root / kind), kind) if kind == "edgetam" else folder_of(kind, root / kind)
            )
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def picture():
    drawn = Image.new("RGB", (60, 30), (115, 165, 240))
    ImageDraw.Draw(drawn).ellipse((6, 4, 28, 26), fill="red")
    return drawn


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_reads_clicks_and_boxes(version, folders, picture):
    sam = str(folders(version))
    ambiguous = selected(picture, Selection(clicks=((0.3, 0.5),), sam=sam))
    assert len(ambiguous) == 3 and {guess.mask.size for guess in ambiguous} == {(60, 30)}
    assert [guess.quality for guess in ambiguous] == sorted((g.quality for g in ambiguous), reverse=True)
    sure = [
        selected(picture, Selection(clicks=((0.3, 0.5),), without=((0.9, 0.9),), sam=sam)),
        selected(picture, Selection(box=(0.1, 0.1, 0.5, 0.9), sam=sam)),
        selected(picture, Selection(box=(0.1, 0.1, 0.5, 0.9), clicks=((0.3, 0.5),), sam=sam)),
    ]
    assert [len(one) for one in sure] == [1, 1, 1]
    elsewhere = selected(picture, Selection(clicks=((0.9, 0.2),), sam=sam))
    assert any(np.any(np.asarray(a.mask) != np.asarray(b.mask)) for a, b in zip(ambiguous, elsewhere, strict=True))


def test_the_first_version_reads_as_its_processor_does(folders, picture):
    """Pixels, clicks, box and masks equal those of transformers' processor, which runs without torchvision."""
    sam = Sam.load(folders("sam"))
    images = SamImageProcessor(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}, mask_size={"longest_edge": 16}
    )
    processor = SamProcessor(images)
    clicks, box = [[18.0, 15.0], [50.0, 3.0]], [6.0, 3.0, 30.0, 27.0]
    inputs = processor(
        picture, input_points=[[clicks]], input_labels=[[[1, 0]]], input_boxes=[[box]], return_tensors="pt"
    )
    read = sam.read(picture)
    torch.testing.assert_close(read.pixels, inputs["pixel_values"].float(), rtol=0, atol=1e-5)
    shares = torch.tensor(clicks) / torch.tensor([60.0, 30.0])
    torch.testing.assert_close(read.places(shares)[None, None], inputs["input_points"].float())
    given = {key: inputs[key] for key in ("input_labels",)}
    given |= {key: inputs[key].float() for key in ("pixel_values", "input_points", "input_boxes")}
    with torch.no_grad():
        output = sam.model(**given, multimask_output=False)
    masks = processor.post_process_masks(output.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    fractions = tuple(edge / side for edge, side in zip(box, (60, 30, 60, 30), strict=True))
    one, other = ((x / 60, y / 30) for x, y in clicks)
    (guess,) = sam(picture, Selection(clicks=(one,), without=(other,), box=fractions))
    assert np.array_equal(np.asarray(guess.mask) > 0, masks[0][0, 0].numpy())


def test_later_versions_stretch_and_find_their_way_back(picture):
    read = model_input(picture, 40, IMAGENET, padded=False)
    assert read.pixels.shape == (1, 3, 40, 40)
    torch.testing.assert_close(read.places(torch.tensor([[0.5, 0.25]])), torch.tensor([[20.0, 10.0]]))
    assert read.on_picture(torch.zeros(2, 3, 10, 10)).shape == (2, 3, 30, 60)
    red = (torch.tensor([1.0, 0, 0]) - torch.tensor(IMAGENET[0])) / torch.tensor(IMAGENET[1])
    torch.testing.assert_close(read.pixels[0, :, 20, 11], red, rtol=0, atol=0.02)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_is_asked_for_by_a_grid_and_each_thing_comes_once(version, folders, picture):
    sam = Sam.load(folders(version))
    found = sam.everything(picture, points=3, sure=-10.0, stable=-1.0)
    areas = [np.count_nonzero(np.asarray(guess.mask)) for guess in found]
    assert areas and areas == sorted(areas, reverse=True) and {guess.mask.size for guess in found} == {(60, 30)}
    assert sam.everything(picture, points=3, sure=10.0) == []


def test_of_boxes_that_overlap_the_better_one_stays():
    masks = torch.zeros(3, 8, 8, dtype=torch.bool)
    masks[0, :4, :4], masks[1, :4, :5], masks[2, 5:, 5:] = True, True, True
    kept = apart([(masks[0], 0.6), (masks[1], 0.9), (masks[2], 0.1)])
    assert [quality for _, quality in kept] == [0.9, 0.1]
    assert len(apart([(masks[0], 0.6), (masks[1], 0.9)], most=0.9)) == 2


@pytest.mark.parametrize("kind", ["owlv2", "grounding-dino", "sam3"])
def test_finders_give_boxes_in_the_picture_the_surest_first(kind, folders, picture, monkeypatch):
    monkeypatch.setattr(names, "_listed", lambda *given: listed(*given[:4], -1.0, *given[5:]))
    found = name_finder(folders(kind))(picture, "The red fox")
    assert found and {one.name for one in found} == {"red fox"}
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    for one in found:
        left, top, right, bottom = one.box
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert (one.mask is None) == (kind != "sam3") and (one.mask is None or one.mask.size == (60, 30))


listed = names._listed


def test_what_no_finder_is_sure_of_is_a_sentence(picture):
    boxes, scores = torch.tensor([[0.1, 0.1, 0.4, 0.9]]), torch.tensor([0.2])
    with pytest.raises(RequestError, match=r"no 'red cup' in the picture.*0.20 at most, and more than 0.25"):
        listed("red cup", picture, boxes, scores, 0.25)
    with pytest.raises(RequestError, match="names nothing"):
        names.bare(" the ")


def test_boxes_of_owlv2_are_those_of_its_processor(folders, picture):
    """Its square is filled up below: heights are fractions of the width."""
    folder = folders("owlv2")
    processor, model = names.processor_in(folder, "Owlv2Processor"), names.model_in(folder, "Owlv2ForObjectDetection")
    inputs = processor(text=[["a photo of a fox"]], images=picture, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    theirs = processor.post_process_grounded_object_detection(output, threshold=0.0, target_sizes=[(30, 60)])[0]
    ours = {round(one.score, 5): one.box for one in name_finder(folder)(picture, "fox")}
    assert ours
    for score, box in zip(theirs["scores"].tolist(), theirs["boxes"].tolist(), strict=True):
        if (mine := ours.get(round(score, 5))) is not None:
            clipped = [min(max(edge, 0), side) for edge, side in zip(box, (60, 30, 60, 30), strict=True)]
            assert [edge * side for edge, side in zip(mine, (60, 30, 60, 30), strict=True)] == pytest.approx(
                clipped, abs=1e-2
            )


def test_folders_of_something_else_are_refused_saying_what_they_are(folders, tmp_path):
    with pytest.raises(ModelError, match=r"no Segment Anything model in .*nowhere"):
        Sam.load(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"is a owlv2, no Segment Anything.*sam2"):
        Sam.load(folders("owlv2"))
    with pytest.raises(ModelError, match=r"part of SAM 3 that finds by names.*--finder"):
        Sam.load(folders("sam3"))
    with pytest.raises(ModelError, match=r"is a sam2, which finds nothing by name.*OWLv2"):
        name_finder(folders("sam2"))
    with pytest.raises(ModelError, match="no finder of names"):
        name_finder(tmp_path)
    with pytest.raises(ModelError, match=r"lack \d+ of those of a SamModel"):
        Sam.load(called(folder_of("owlv2", tmp_path / "other"), "sam"))
