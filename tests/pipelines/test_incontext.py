"""Visual in-context prompts: what is painted, where, and what comes back."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipelines import incontext
from pipelines.concepts.card import ConceptCard
from pipelines.concepts.concept import Concept
from pipelines.concepts.token_embeddings import single_rows
from pipelines.condition import Branch, Step
from pipelines.conditions.grid import Agreement, Canvases, laid
from pipelines.errors import DataError, ModelError, RequestError
from pipelines.generation import generate
from pipelines.measures.nearest_examples import nearest
from pipelines.models.components import CONCAT, encode
from pipelines.models.schedulers import build
from pipelines.pictures.grids import Grid
from pipelines.pictures.metadata import KEY, Made, read_made, save_png, with_its_files
from pipelines.pictures.tensors import to_tensor
from pipelines.request.guidance import Prompt
from pipelines.request.request import ConceptUse, InContext, Request
from tests import tiny

STEP = Step(0, 4, torch.tensor(900), torch.tensor(600))


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def base():
    return tiny.sd_inpaint()


@pytest.fixture
def files(tmp_path):
    for index, name in enumerate(("before", "after", "query", "other")):
        size = (24, 12) if name == "query" else (16, 16)
        Image.new("RGB", size, (60 * index, 255 - 60 * index, 90)).save(tmp_path / f"{name}.png")
    return tmp_path


def question(files, pairs=1, **more):
    pair = {"before": str(files / "before.png"), "after": str(files / "after.png")}
    return {"examples": [pair] * pairs, "query": str(files / "query.png"), **more}


def asked(files, pairs=1, prompt="", **more):
    return Request.read({"prompt": prompt, "steps": 2, "in_context": question(files, pairs, **more)})


def test_an_answer_has_the_querys_size_and_the_request_is_whole(base, files):
    before = tiny.snapshot(base)
    request = asked(files, prompt="a fox").model_copy(update={"count": 2, "seed": 4})
    result = generate(base, request)
    assert [picture.size for picture in result.pictures] == [(24, 12)] * 2
    assert result.latents.shape == (2, 4, 8, 8)  # of a cell of 16 x 16
    assert (result.request.width, result.request.height) == (16, 16)
    assert result.request.in_context and len(result.request.in_context.digests) == 3
    assert tiny.same(before, base)
    alone = generate(base, asked(files, prompt="a fox").model_copy(update={"seed": 5}))
    assert torch.allclose(alone.latents[0], result.latents[1], atol=1e-4)


def test_the_picture_says_what_was_asked_and_repeats_it(base, files, tmp_path):
    result = generate(base, asked(files, ensemble=2))
    save_png(result.pictures[0], tmp_path / "answer.png", Made(result.request, 0, "tiny", "0" * 16))
    made = with_its_files(read_made(tmp_path / "answer.png"), tmp_path / "answer.png")
    assert made.request == result.request
    assert torch.equal(generate(base, made.request).latents, result.latents)
    Image.new("RGB", (16, 16)).save(files / "after.png")
    with pytest.raises(RequestError, match=r"after\.png changed since"):
        generate(base, made.request)


def test_it_is_the_inpainting_pipelines_answer(base, files):
    """On the same canvas, mask and noise the cell is that of plain `generate` with an `Inpaint`."""
    from pipelines.conditions.inpaint import Inpainting

    cells = random(1, 2, 2, 3, 16, 16).clamp(-1, 1)
    cells = (cells * 127.5).round() / 127.5  # as pictures are
    request = Request(prompt="a fox", steps=3).resolved(base.defaults)
    painted = incontext.paint(base, cells, request, follow=False)
    grid = Grid()
    canvas = incontext.to_pictures(grid.compose(cells))[0]
    mask = Image.fromarray((grid.mask(16, 16)[0, 0] * 255).byte().numpy())
    noise = grid.compose(incontext._noise(base, 0, cells))
    sized = request.model_copy(update={"width": 32, "height": 32})
    plain = generate(base, sized, conditions=[Inpainting(canvas, mask)], noise=noise)
    assert torch.allclose(painted.latents, grid.crop(plain.latents), atol=2e-2)
    difference = (painted.answers - grid.crop(to_tensor(plain.pictures[0])[None])).abs()
    assert float(difference.max()) < 0.03


@pytest.mark.parametrize("cell", ["bottom-right", "bottom-left", "top-right", "top-left"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("pairs", [1, 2])
def test_the_answer_is_where_it_is_wanted(files, cell, transposed, pairs):
    grid = incontext.grid_of(InContext(**question(files, pairs, cell=cell, transposed=transposed)))
    row, column = grid.place(-1, 1)
    rows, columns = grid.shape
    assert (row == 0) == ("top" in cell) and (column == 0) == ("left" in cell)
    assert row in (0, rows - 1) and column in (0, columns - 1)


def test_cells_hold_the_pairs_and_the_query_and_undoing_turns_the_pairs(files):
    plain, back = (InContext(**question(files, direction=way)) for way in ("after", "before"))
    pictures = incontext.read_pictures(plain)
    there, undone = (incontext.lay_out(one, pictures, (16, 16)) for one in (plain, back))
    assert there.shape == (1, 2, 2, 3, 16, 16)
    for index, picture in enumerate(pictures[:2]):
        assert torch.equal(there[0, 0, index], to_tensor(picture))
        assert torch.equal(undone[0, 0, 1 - index], to_tensor(picture))
    assert torch.equal(there[0, 1, 0], there[0, 1, 1]) and torch.equal(undone[:, 1], there[:, 1])


def test_without_an_example_its_cells_are_blank(base, files):
    asked_alone = asked(files, pairs=0, prompt="a fox")
    one = asked_alone.in_context
    assert one and incontext.grid_of(one).examples == 1
    cells = incontext.lay_out(one, incontext.read_pictures(one), (16, 16))
    assert cells.shape == (1, 2, 2, 3, 16, 16) and not cells[0, 0].any() and cells[0, 1].any()
    assert generate(base, asked_alone).pictures[0].size == (24, 12)


# -- arrangements ---------------------------------------------------------------------------------------------------


def test_arrangements_agree_on_the_mean_and_keep_the_rest():
    grids = Grid(2).arrangements()
    canvases = random(len(grids) * 2, 4, 12, 8)
    agreed = Agreement(grids).constrain(canvases, STEP)
    for mirrored in (False, True):
        group = [k for k, grid in enumerate(grids) if grid.mirrored == mirrored]
        mean = torch.stack([grids[k].crop(canvases[2 * k : 2 * k + 2]) for k in group]).mean(0)
        for k in group:
            part, before = agreed[2 * k : 2 * k + 2], canvases[2 * k : 2 * k + 2]
            assert torch.allclose(grids[k].crop(part), mean, atol=1e-6)
            outside = ~grids[k].mask(4, 4).bool().expand_as(part)
            assert torch.equal(part[outside], before[outside])


@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=4)))
def test_what_is_cropped_can_be_put_back(switches):
    grid = Grid(1, (-1, 1), *switches)
    canvas, answer = random(2, 3, 8, 12), random(2, 3, 4, 6, seed=1)
    assert torch.equal(grid.crop(laid(grid, canvas, answer)), answer)
    assert torch.equal(laid(grid, canvas, grid.crop(canvas)), canvas)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m", "unipc", "euler"])
def test_averaging_after_a_step_is_averaging_the_predictions(sampler):
    """Two rows with the same start and different predictions: their mean is what the mean prediction gives."""
    config = dict(tiny.sd_inpaint().scheduler_config)
    together, apart = (build(sampler, config, 5, torch.device("cpu")) for _ in range(2))
    latents = random(1, 4, 8, 8) * together.init_noise_sigma
    rows = latents.repeat(2, 1, 1, 1)
    for index, timestep in enumerate(together.timesteps):
        predictions = random(2, 4, 8, 8, seed=index)
        latents = together.step(predictions.mean(0, keepdim=True), timestep, latents).prev_sample
        rows = apart.step(predictions, timestep, rows).prev_sample
        rows = rows.mean(0, keepdim=True).repeat(2, 1, 1, 1)
    assert torch.allclose(rows[:1], latents, atol=1e-5)


def test_an_ensemble_gives_one_answer_a_question(base, files):
    for ensemble in (1, 2, 8):
        result = generate(base, asked(files, pairs=2, ensemble=ensemble).model_copy(update={"count": 2}))
        assert len(result.pictures) == 2 and result.latents.shape[0] == 2
    with pytest.raises(RequestError, match="adds noise at every step"):
        generate(base, asked(files, ensemble=2).model_copy(update={"scheduler": "euler-a"}))
    with pytest.raises(RequestError, match=r"eta 0\.5 adds noise at every step"):
        generate(base, asked(files, ensemble=2).model_copy(update={"scheduler": "ddim", "eta": 0.5}))


# -- details of the query -----------------------------------------------------------------------------------------


def one_question(like=None):
    cells = random(2, 2, 2, 3, 16, 16).clamp(-1, 1)
    if like is not None:
        cells[:, :-1, 1] = cells[:, :-1, 0]
    return cells


@pytest.mark.parametrize("scheduler", ["ddim", "dpm++2m", "unipc", "euler"])
@pytest.mark.parametrize("grids", [Grid().arrangements()[:1], Grid().arrangements()[:2]], ids=["one", "two"])
def test_an_example_that_changes_nothing_gives_back_the_query(base, scheduler, grids):
    """With any weights: the answer and the unchanged question are one, and that ends at the query."""
    cells = one_question(like="before")
    request = Request(prompt="", steps=3, scheduler=scheduler).resolved(base.defaults)
    made = incontext.paint(base, cells, request, grids, detail=[1.0, 1.0]).latents
    shown = cells.clone()
    shown[:, -1, 1] = shown[:, -1, 0]
    truth = torch.stack([grid.crop(encode(base, grid.compose(shown)).mean) for grid in grids]).mean(0)
    assert torch.allclose(made, truth, atol=1e-3)


def test_without_details_an_answer_is_what_it_was(base):
    cells, request = one_question(), Request(prompt="", steps=3).resolved(base.defaults)
    plain = incontext.paint(base, cells, request).latents
    assert torch.equal(incontext.paint(base, cells, request, detail=[0.0, 0.0]).latents, plain)
    first, second = incontext.paint(base, cells, request, detail=[0.0, 1.0]).latents
    assert torch.allclose(first, plain[0], atol=1e-4) and not torch.allclose(second, plain[1], atol=1e-2)


def test_the_share_is_the_one_that_answers_the_example_best(base):
    request = Request(prompt="", steps=3).resolved(base.defaults)
    kept = incontext.best_detail(base, one_question(like="before"), request)
    assert all(share > 0 for share in kept), "an example that changes nothing keeps details"
    cells = random(4, 2, 2, 3, 16, 16, seed=3).clamp(-1, 1)
    asked_again = torch.stack((cells[:, 0], cells[:, 0]), 1)  # the example's own before as the query
    errors = []
    for share in incontext.DETAILS:
        answers = incontext.paint(base, asked_again, request, detail=[share] * 4).answers
        errors.append((answers - cells[:, 0, 1]).abs().mean((1, 2, 3)))
    best = [incontext.DETAILS[int(index)] for index in torch.stack(errors).argmin(0)]
    assert list(incontext.best_detail(base, cells, request)) == best and len(set(best)) > 1


def test_the_picture_keeps_the_share_and_older_ones_had_none(base, files, tmp_path):
    request = asked(files).model_copy(update={"steps": 3})
    notes = []
    result = generate(base, request, on_event=lambda event: notes.append(getattr(event, "text", "")))
    chosen = result.request.in_context.detail
    assert chosen in incontext.DETAILS and any(f"detail {chosen:g}" in note for note in notes) == bool(chosen)
    path = save_png(result.pictures[0], tmp_path / "answer.png", Made(result.request, 0, "tiny", "0" * 16))
    with Image.open(path) as picture:
        own = json.loads(picture.text[KEY])
    del own["request"]["in_context"]["detail"]
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(own))
    Image.new("RGB", (4, 4)).save(tmp_path / "old.png", pnginfo=info)
    assert read_made(tmp_path / "old.png").request.in_context.detail == 0


def test_a_concept_in_memory_is_there_while_the_share_is_chosen(base, files):
    rows = tuple(row + 1 for row in single_rows(base, "fox"))
    concept = Concept(ConceptCard(token="<x>", init="fox", family="sd1"), rows)
    request = asked(files).model_copy(update={"concepts": (ConceptUse(source="x"),)})
    assert generate(base, request, concepts={"x": concept}).request.in_context.detail in incontext.DETAILS


def test_details_need_an_example_and_a_sampler_without_noise(base, files):
    refused(files, "analogist starts from the query", engine="analogist", detail=0.5)
    refused(files, "without an example", pairs=0, prompt="a fox", detail=1)
    refused(files, "detail", detail=1.5)
    for more, said in (
        ({"scheduler": "euler-a"}, "euler-a adds noise"),
        ({"scheduler": "ddim", "eta": 1.0}, "eta 1 adds noise"),
        ({"prompt": "a fox"}, "say more than the example"),
        ({"also": (Prompt(prompt="a fox"),)}, "say more than the example"),
    ):
        with pytest.raises(RequestError, match=said):
            generate(base, asked(files, detail=1).model_copy(update=more))
        assert generate(base, asked(files).model_copy(update=more)).request.in_context.detail == 0


# -- canvases -------------------------------------------------------------------------------------------------------


def test_every_row_has_its_own_canvas_and_nothing_stays(base):
    before = tiny.snapshot(base)
    images, masks = random(2, 3, 32, 32).clamp(-1, 1), torch.zeros(2, 1, 32, 32)
    masks[0, :, 16:, 16:] = masks[1, :, :16, :16] = 1
    condition = Canvases(images, masks)
    with condition.attach(base, 2):
        seen = condition.conditioning(Branch.POSITIVE, STEP)[CONCAT]
        assert seen.shape == (2, 5, 16, 16)
        assert seen[0, 0, 8:, 8:].all() and seen[0, 0].sum() == 64 and seen[1, 0, :8, :8].all()
        assert torch.equal(seen, condition.conditioning(Branch.NEGATIVE, STEP)[CONCAT])
    with Canvases(images * (1 - masks), masks).attach(base, 2):
        pass
    assert condition._seen == {} and tiny.same(before, base)


def test_what_is_under_the_mask_is_never_seen(base):
    cells = random(1, 2, 2, 3, 16, 16).clamp(-1, 1)
    other = cells.clone()
    other[:, -1, 1] = 0.7
    request = Request(prompt="", steps=2).resolved(base.defaults)
    one, two = (incontext.paint(base, c, request).latents for c in (cells, other))
    assert torch.equal(one, two)
    started = [incontext.paint(base, c, request, strength=0.5).latents for c in (cells, other)]
    assert not torch.equal(*started)  # unless the start is not noise alone


def test_guidance_follows_the_example(base):
    cells = random(1, 2, 2, 3, 16, 16).clamp(-1, 1)
    request = Request.read({"prompt": "", "steps": 1, "guidance": {"scale": 3}}).resolved(base.defaults)
    alone = request.model_copy(update={"guidance": request.guidance.model_copy(update={"scale": 1.0})})
    followed, with_it = incontext.paint(base, cells, request).latents, incontext.paint(base, cells, alone).latents
    blank = cells.clone()
    blank[:, :-1] = 0
    without = incontext.paint(base, blank, alone).latents
    assert torch.allclose(followed, without + 3 * (with_it - without), atol=1e-4)  # one step of ddim is linear


# -- Analogist ------------------------------------------------------------------------------------------------------


def test_analogist_answers_and_leaves_nothing(base, files):
    before, processors = tiny.snapshot(base), dict(base.unet.attn_processors)
    request = asked(files, prompt="a fox", engine="analogist").model_copy(update={"width": 16, "height": 16})
    result = generate(base, request)
    assert result.pictures[0].size == (24, 12)
    assert tiny.same(before, base) and dict(base.unet.attn_processors) == processors
    plain = generate(base, asked(files, prompt="a fox").model_copy(update={"width": 16, "height": 16}))
    assert not torch.equal(result.latents, plain.latents)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m", "unipc", "euler", "euler-a", "lcm"])
def test_analogist_starts_from_the_query_with_every_sampler(base, files, sampler):
    request = asked(files, prompt="a fox", engine="analogist", strength=0.5)
    request = request.model_copy(update={"width": 16, "height": 16, "scheduler": sampler, "steps": 4})
    steps = []
    assert generate(base, request, on_event=steps.append).latents.isfinite().all()
    assert len(steps) == 2  # the last half


def test_cells_and_guidance_are_the_engines_own(base, files):
    def settled(**more):
        return incontext.settled(base, asked(files, **more))

    assert settled().width == 16 and settled().guidance.scale == 1
    assert settled(prompt="a fox").guidance.scale == 7.5
    paper = settled(engine="analogist")
    assert (paper.width, paper.guidance.scale, paper.guidance.rescale) == (8, 15, 0.7)


# -- what cannot be asked -------------------------------------------------------------------------------------------


def refused(files, said, **more):
    with pytest.raises(RequestError, match=said):
        asked(files, **more)


def test_questions_that_are_none(files):
    refused(files, "17 examples; a grid takes 1 to 16", pairs=17)
    refused(files, "0 examples and no prompt", pairs=0)
    refused(files, "analogist takes one example", pairs=0, engine="analogist", prompt="a fox")
    refused(files, "analogist takes one example", pairs=2, engine="analogist")
    refused(files, "analogist takes one example", ensemble=2, engine="analogist")
    refused(files, "ensemble", ensemble=9)


def test_pictures_that_do_not_suit_each_other(base, files):
    Image.new("RGB", (16, 12)).save(files / "after.png")
    with pytest.raises(RequestError, match=r"16 x 16 pixels, .*after\.png 16 x 12"):
        generate(base, asked(files))
    Image.new("RGBA", (16, 16), (1, 2, 3, 90)).save(files / "after.png")
    with pytest.raises(DataError, match=r"after\.png is transparent in places"):
        generate(base, asked(files))
    Image.new("RGBA", (16, 16), (1, 2, 3, 255)).save(files / "after.png")  # alpha that hides nothing
    assert generate(base, asked(files)).pictures
    (files / "after.png").unlink()
    with pytest.raises(DataError, match=r"after\.png"):
        generate(base, asked(files))


def test_a_base_without_an_inpainting_unet_says_how_to_get_one(files):
    with pytest.raises(ModelError, match="studio train inpainting"):
        generate(tiny.sd(), asked(files))


def test_boxes_and_pictures_to_inpaint_belong_to_other_requests(base, files):
    place = {"box": (0, 0, 1, 1)}
    for more in (
        {"inpaint": {"image": str(files / "query.png")}},
        {"boxes": [{"phrase": "fox"} | place]},
        {"regions": [{"prompt": "a fox"} | place]},
    ):
        request = Request.read({"prompt": "a fox", "in_context": question(files), **more})
        with pytest.raises(RequestError, match="has no boxes, no regions, and no picture to inpaint"):
            generate(base, request)


def test_sizes_that_do_not_fit(base, files):
    with pytest.raises(RequestError, match="width 18 of a cell is no multiple of 4"):
        generate(base, asked(files).model_copy(update={"width": 18}))


# -- examples -------------------------------------------------------------------------------------------------------


def test_the_nearest_example_is_that_whose_picture_before_is_most_alike(tmp_path):
    colours = {"red": (250, 0, 0), "blue": (0, 0, 250), "green": (0, 250, 0)}
    for side, (name, colour) in itertools.product(("before", "after"), colours.items()):
        (tmp_path / side).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), colour if side == "before" else "white").save(tmp_path / side / f"{name}.png")
    pairs = incontext.pairs_in(tmp_path)
    assert [pair.before.split("/")[-1] for pair in pairs] == ["blue.png", "green.png", "red.png"]

    def embed(pictures):
        return torch.stack([to_tensor(picture).mean((1, 2)) + 1 for picture in pictures])

    chosen = nearest(Image.new("RGB", (9, 9), (200, 90, 20)), pairs, embed, 2)
    assert [pair.before.split("/")[-1] for pair in chosen] == ["green.png", "red.png"]


def test_folders_that_hold_no_pairs(tmp_path):
    with pytest.raises(DataError, match="holds no pairs"):
        incontext.pairs_in(tmp_path)
    (tmp_path / "before").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "before" / "fox.png")
    with pytest.raises(DataError, match=r"'fox' of .* has no picture after\."):
        incontext.pairs_in(tmp_path)
