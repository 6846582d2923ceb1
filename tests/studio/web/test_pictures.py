"""Pictures to learn from on the page: masks and crops from what is marked, in the browser's value and the files."""

from __future__ import annotations

import base64
import io

import gradio as gr
import pytest
from PIL import Image

from studio.jobs.jobs import Jobs
from studio.web.components import base_choice
from studio.web.pages.teach import TeachPage
from studio.web.panels.pictures import reshape, rows_of, squared, turned


@pytest.fixture
def teach(tmp_path):
    with gr.Blocks(analytics_enabled=False):
        jobs = Jobs(tmp_path / "studio", warm=False)
        return TeachPage(jobs, base_choice(jobs.bases))


@pytest.fixture
def wide(teach):
    """A dataset with one picture of 40 x 20 pixels that is red in 8 <= x < 20, 4 <= y < 16."""
    picture = Image.new("RGB", (40, 20), "blue")
    picture.paste("red", (8, 4, 20, 16))
    dataset = teach.jobs.datasets.create().id
    teach.jobs.datasets.add(dataset, content(picture), "wide", "a red <thing>")
    teach.jobs.datasets.set_pair(dataset, "0001.png", "cat", "box")
    return dataset


def content(picture):
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


def marked(*box, size=(400, 200)):
    """Return the painter's value when a box is filled, on a canvas ten times as large as the picture."""
    mask = Image.new("RGB", size)
    mask.paste("white", box)
    address = "data:image/png;base64," + base64.b64encode(content(mask)).decode()
    return {"id": "0001.png", "picture": "", "mask": address}


def mask_of(teach, dataset):
    with Image.open(teach.jobs.datasets.mask(dataset, "0001.png")) as mask:
        return mask.copy()


def picture_of(teach, dataset):
    with Image.open(teach.jobs.datasets.picture(dataset, "0001.png")) as picture:
        return picture.copy()


def opened(teach, dataset, what="mark", name="0001.png"):
    return teach.marking.open(dataset, gr.EventData(None, {"name": name, "what": what}))


def test_what_is_marked_becomes_the_mask_and_is_there_when_the_picture_is_opened_again(teach, wide):
    panel, shown = opened(teach, wide)
    assert (panel["visible"], shown["id"], shown["mask"]) == (True, "0001.png", "")
    rows = [{"name": "0001.png", "caption": "typed meanwhile"}]
    rows, panel, shown = teach.marking.keep_mask(wide, rows, marked(80, 40, 200, 160))
    assert (rows[0]["mask"], rows[0]["caption"], panel["visible"], shown) == (True, "typed meanwhile", False, None)
    mask = mask_of(teach, wide)
    assert (mask.mode, mask.size, mask.getbbox()) == ("L", (40, 20), (8, 4, 20, 16))
    assert opened(teach, wide)[1]["mask"].startswith("data:image/png;base64,")
    rows, *_ = teach.marking.no_mask(wide, rows, {"id": "0001.png"})
    assert not rows[0]["mask"]
    assert teach.jobs.datasets.mask(wide, "0001.png") is None


def test_training_reads_the_mask_that_was_kept(teach, wide):
    from trainers.data.folders import read_examples

    teach.marking.keep_mask(wide, [], marked(80, 40, 200, 160))
    (example,) = read_examples(teach.jobs.datasets.folder(wide))
    assert example.mask.getbbox() == (8, 4, 20, 16)


def test_a_crop_is_what_is_marked_with_mask_words_and_names(teach, wide):
    teach.marking.keep_mask(wide, rows_of(teach.jobs.datasets, wide), marked(100, 40, 160, 160))
    rows, panel, _ = teach.marking.crop_to(wide, [], marked(80, 40, 200, 160))
    assert not panel["visible"]
    picture = picture_of(teach, wide)
    assert (picture.size, picture.getextrema()) == ((12, 12), ((255, 255), (0, 0), (0, 0)))
    assert mask_of(teach, wide).getbbox() == (2, 0, 8, 12)
    assert (rows[0]["caption"], rows[0]["left"], rows[0]["right"]) == ("a red <thing>", "cat", "box")
    # the mask is outside of what is kept
    teach.marking.keep_mask(wide, [], marked(0, 0, 10, 120, size=(120, 120)))
    rows, *_ = teach.marking.crop_to(wide, rows, marked(30, 0, 120, 120, size=(120, 120)))
    assert (picture_of(teach, wide).size, rows[0]["mask"]) == ((9, 12), False)


def test_a_mask_is_turned_and_cropped_with_its_picture(teach, wide):
    datasets = teach.jobs.datasets
    reshape(datasets, wide, "0001.png", squared)
    half = Image.new("L", (20, 20))
    half.paste(255, (0, 0, 10, 20))
    datasets.set_mask(wide, "0001.png", content(half))
    reshape(datasets, wide, "0001.png", turned)  # a square keeps its size, so that the old mask would seem to fit
    assert mask_of(teach, wide).getbbox() == (0, 0, 20, 10)


@pytest.mark.parametrize(
    ("painted", "said"),
    [
        (None, "no picture"),
        ({"id": "../../x.png", "mask": "x"}, "no picture"),
        ({"id": "0001.png"}, "Nothing in the picture is marked"),
        ({"id": "0001.png", "mask": "/etc/passwd"}, "no PNG"),
        (marked(0, 0, 0, 0), "Nothing in the picture is marked"),
    ],
)
def test_without_a_picture_or_marks_nothing_changes(teach, wide, painted, said):
    before = content(picture_of(teach, wide))
    for act in (teach.marking.keep_mask, teach.marking.crop_to):
        with pytest.raises(gr.Error, match=said):
            act(wide, [], painted)
    assert content(picture_of(teach, wide)) == before
    assert teach.jobs.datasets.mask(wide, "0001.png") is None


def test_a_crop_to_next_to_nothing_is_refused(teach, wide):
    with pytest.raises(gr.Error, match="3 x 12 pixels; a crop has at least 8 a side"):
        teach.marking.crop_to(wide, [], marked(80, 40, 110, 160))
    assert picture_of(teach, wide).size == (40, 20)


def test_the_panel_opens_for_marking_alone_and_names_lead_nowhere(teach, wide):
    panel, shown = opened(teach, wide, "turn")
    assert (panel["visible"], shown) == (False, None)
    with pytest.raises(gr.Error, match="no picture"):
        opened(teach, wide, name="../.about.json")
