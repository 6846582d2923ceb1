"""Comparisons as plain data: which requests the cells are, and what is said when they cannot be."""

from __future__ import annotations

import pytest

from pipelines.errors import RequestError
from pipelines.request.axes import CELLS, WORDS, Axis, axes_of, axis_of, cells, comparable, labels, values_in
from pipelines.request.guidance import Prompt
from pipelines.request.regions import Region
from pipelines.request.request import Box, ConceptUse, Guidance, InContext, Inpaint, Request

FOX = Request(
    prompt="a fox and a house",
    negative_prompt="a blurry fox",
    concepts=(
        ConceptUse(source="outputs/concepts/my.wolf.safetensors"),
        ConceptUse(source="other", strength=0.5),
    ),
    boxes=(Box(phrase="a fox", box=(0, 0, 0.5, 0.5)), Box(phrase="v1.5 house", box=(0.5, 0, 1, 0.5))),
    inpaint=Inpaint(image="x.png"),
    seed=7,
)


def grid(*texts, request=FOX):
    return cells(request, [axis_of(text) for text in texts])


def changed(**fields):
    """FOX with other fields, as a person would write it."""
    return Request.read(FOX.model_dump(exclude_unset=True) | fields)


def test_the_first_axis_runs_across_and_the_second_down():
    rows = grid("guidance.scale=1,2.5,4", "steps=5,10")
    assert [[(cell.guidance.scale, cell.steps) for cell in row] for row in rows] == [
        [(1.0, 5), (2.5, 5), (4.0, 5)],
        [(1.0, 10), (2.5, 10), (4.0, 10)],
    ]
    assert {(cell.seed, cell.count) for row in rows for cell in row} == {(7, 1)}
    assert rows[1][2] == changed(guidance={"scale": 4}, steps=10)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("guidance.start=0.25", {"guidance": {"start": 0.25}}),
        ("scheduler=dpm++2m", {"scheduler": "dpm++2m"}),
        ("seed=9223372036854775807", {"seed": 2**63 - 1}),
        ("prompt=a cat, asleep|", {"prompt": "a cat, asleep"}),
        ("negative_prompt=|blurry", {"negative_prompt": ""}),
        ("grounding.beta=0.3", {"grounding": {"beta": 0.3}}),
        ("grounding.region=yes", {"grounding": {"region": True}}),
        ("inpaint.strength=.5", {"inpaint": {"image": "x.png", "strength": 0.5}}),
        ("inpaint.only_masked=true", {"inpaint": {"image": "x.png", "only_masked": True}}),
        ("width=32", {"width": 32}),
    ],
)
def test_values_are_read_as_their_field_needs_them(text, fields):
    assert grid(text)[0][0] == changed(**fields)


@pytest.mark.parametrize(
    ("field", "index"), [("my.wolf", 0), ("1", 0), ("other", 1), ("2", 1)], ids=["name", "number", "id", "second"]
)
def test_a_concept_is_named_or_numbered(field, index):
    strengths = [[use.strength for use in cell.concepts] for cell in grid(f"concepts.{field}.strength=0,1.5")[0]]
    before = [1.0, 0.5]
    assert strengths == [[*before[:index], value, *before[index + 1 :]] for value in (0.0, 1.5)]


def test_a_box_is_found_by_its_words_even_with_dots():
    (row,) = grid("boxes.v1.5 house.phrase=a barn|a shed")
    assert [cell.boxes[1].phrase for cell in row] == ["a barn", "a shed"]
    assert all(cell.boxes[0] == FOX.boxes[0] for cell in row)


def test_words_are_replaced_wherever_the_prompts_and_boxes_say_them():
    fox, cat = grid("words=fox,cat")[0]
    assert fox == FOX
    assert (cat.prompt, cat.negative_prompt) == ("a cat and a house", "a blurry cat")
    assert [box.phrase for box in cat.boxes] == ["a cat", "v1.5 house"]


def test_words_are_replaced_in_prompts_that_are_compared_too():
    for axes in (("prompt=a fox|the fox, asleep", "words=fox,dog"), ("words=fox,dog", "prompt=a fox|the fox, asleep")):
        prompts = {cell.prompt for row in grid(*axes) for cell in row}
        assert prompts == {"a fox", "the fox, asleep", "a dog", "the dog, asleep"}
    both = grid("words=fox,cat", "words=house,car")
    assert [[cell.prompt for cell in row] for row in both] == [
        ["a fox and a house", "a cat and a house"],
        ["a fox and a car", "a cat and a car"],
    ]


def test_only_what_was_set_is_set_in_a_cell():
    assert grid("guidance.scale=2", request=Request(prompt="x"))[0][0].model_fields_set == {"prompt", "guidance"}


def test_every_field_that_can_be_compared_has_a_place_and_a_range():
    request = FOX.model_copy(
        update={
            "in_context": InContext(query="q", examples=()),
            "also": (Prompt(prompt="x"),),
            "regions": (Region(prompt="x", box=(0, 0, 1, 1)),),
        }
    )
    for field in comparable():
        path = field.replace("NAME", "1")
        if path in (WORDS, "prompt", "negative_prompt", "boxes.1.phrase") or path.endswith(
            (".adapter", ".sam", ".unet", ".name", ".words", "prompt")
        ):
            continue  # any text will do
        with pytest.raises(RequestError, match="takes"):
            cells(request, [Axis(field=path, values=("no such value",))])


def test_what_can_be_compared_is_what_a_request_has_one_plain_value_of():
    there = set(comparable())
    assert {f"guidance.{name}" for name in Guidance.model_fields} <= there
    assert {"steps", "scheduler", "seed", "width", "concepts.NAME.strength", "inpaint.strength", "words"} <= there
    assert not {"count", "concepts.NAME.source", "inpaint.image", "inpaint.mask", "in_context.query"} & there
    assert not {"inpaint.box", "inpaint.click", "inpaint.digests", "boxes.NAME.box", "boxes.NAME.picture"} & there


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["guidance.scale=1,-2"], "guidance.scale cannot be '-2'.* guidance.scale takes numbers from 0 to 50"),
        (["steps=5,many"], "steps cannot be 'many'.* whole numbers from 1 to 1000"),
        (["steps=5", "scheduler=ddim,best"], "scheduler cannot be 'best'.* one of ddim, dpm"),
        (["concepts.1.strength=0,5"], r"concepts.1.strength cannot be '5'.* from -4 to 4"),
        (["inpaint.strength=0"], "inpaint.strength cannot be '0'.* above 0 to 1"),
        (["grounding.region=maybe"], "'maybe'.* yes or no"),
        (["guidance.start=0.1,0.5", "guidance.stop=0.2"], "guidance.start '0.5' with guidance.stop '0.2'.* lies after"),
        (["guidance.scael=1"], "no field 'guidance.scael'.*guidance.scale"),
        (["guidance=1"], "no field 'guidance'"),
        (["steps.x=1"], "no field 'steps.x'"),
        (["concepts=1"], "no field 'concepts'"),
        (["concepts.none.strength=1"], r"'none' is not the name.*1 \(my.wolf\), 2 \(other\)"),
        (["concepts.3.strength=1"], "'3' is not the name"),
        (["concepts.².strength=1"], "'²' is not the name"),
        (["in_context.ensemble=1"], "no in_context"),
        (["count=1,2"], "count cannot be compared: it is always 1"),
        (["concepts.1.source=a,b"], "names a file"),
        (["inpaint.image=a,b"], "names a file"),
        (["inpaint.click=0.5"], "more than one value"),
        (["steps=1,2", "steps=3"], "twice"),
        (["concepts.1.strength=1", "concepts.my.wolf.strength=0"], "twice"),
        (["words=dog,cat"], "does not say 'dog'"),
        (["words=|cat"], "does not say ''"),
        (["seed=1", "steps=1", "width=32"], "3 axes"),
        ([], "0 axes"),
        (["seed=" + ",".join(map(str, range(CELLS + 1)))], "101 x 1 are 101 pictures.* at most 100"),
        (["seed=" + ",".join(map(str, range(11))), "steps=" + ",".join(map(str, range(1, 11)))], "11 x 10 are 110"),
        (["steps"], "FIELD=VALUE"),
        (["=1"], "FIELD=VALUE"),
        (["steps= , "], "FIELD=VALUE"),
    ],
)
def test_what_cannot_be_compared_is_said_with_axis_value_and_range(texts, said):
    with pytest.raises(RequestError, match=said):
        grid(*texts)


def test_words_that_multiply_are_refused_before_they_do():
    axis = Axis(field=WORDS, values=("a", *["b" * 2000] * 20))
    box = Box(phrase="a" * 11, box=(0, 0, 0.5, 0.5))
    for request in (
        Request(prompt="a" * 2000),
        Request(prompt="a", negative_prompt="a" * 1000),
        Request(prompt="a", boxes=(box,)),
        Request(prompt="a" * 20_000),  # 40 MB if it were made
    ):
        with pytest.raises(RequestError, match=r"would have \d+ letters; it may have at most 20000.*shorter words"):
            cells(request, [axis])
    assert len(cells(Request(prompt="a" * 10), [axis])[0][1].prompt) == 20_000


def test_a_hundred_pictures_are_not_too_many():
    rows = grid("seed=" + ",".join(map(str, range(10))), "steps=" + ",".join(map(str, range(1, 11))))
    assert sum(map(len, rows)) == CELLS


def test_a_comparison_has_one_picture_a_cell():
    with pytest.raises(RequestError, match="4 pictures"):
        grid("steps=1,2", request=Request(prompt="a fox", count=4))


def test_a_concept_of_the_same_name_needs_a_number():
    twins = Request(
        prompt="x", concepts=(ConceptUse(source="a/fox.safetensors"), ConceptUse(source="b/fox.safetensors"))
    )
    with pytest.raises(RequestError, match="a number"):
        grid("concepts.fox.strength=1", request=twins)
    assert [use.strength for use in grid("concepts.2.strength=0", request=twins)[0][0].concepts] == [1, 0]


@pytest.mark.parametrize(("field", "missing"), [("concepts.1.strength", "concepts"), ("grounding.beta", "boxes")])
def test_what_a_request_lacks_cannot_be_compared(field, missing):
    with pytest.raises(RequestError, match=f"no {missing}"):
        grid(f"{field}=0,1", request=Request(prompt="x"))


def test_values_have_commas_or_bars_between_them():
    assert values_in(" 1 ,2, ") == ("1", "2")
    assert values_in("a, b | c") == ("a, b", "c")
    assert values_in("|blurry") == ("", "blurry")
    assert values_in("") == ()


def test_labels_say_what_differs_row_by_row():
    axes = axes_of(
        [{"field": "guidance.scale", "values": [1, 2.50]}, {"field": "words", "values": ["fox", "cat"]}],
    )
    assert labels(axes) == [
        "guidance scale 1, fox",
        "guidance scale 2.5, fox",
        "guidance scale 1, cat",
        "guidance scale 2.5, cat",
    ]
    assert labels([axis_of("concepts.my-wolf.strength=0.5")]) == ["my-wolf strength 0.5"]


@pytest.mark.parametrize(
    "given",
    [{}, {"field": "steps"}, {"field": "", "values": [1]}, {"field": "steps", "values": []}, "steps", None,
     {"field": "steps", "values": [[1]]}, {"field": "steps", "values": [None]},
     {"field": "steps", "values": [float("nan")]}, {"field": "steps", "values": [1], "more": 1},
     {"field": "s" * 201, "values": [1]}],
)  # fmt: skip
def test_what_is_no_axis_is_refused(given):
    with pytest.raises(RequestError, match="axis"):
        axes_of([given])


def test_values_keep_their_kind():
    (axis,) = axes_of([{"field": "grounding.region", "values": [True, "no", 1, 0.5]}])
    assert [type(value) for value in axis.values] == [bool, str, int, float]
    assert axes_of([axis]) == (axis,)
    assert Axis.model_validate_json(axis.model_dump_json()) == axis


def test_words_are_replaced_in_regions_and_further_prompts_too():
    asked = Request(
        prompt="a fox",
        regions=(Region(prompt="a red fox", box=(0, 0, 1, 1)),),
        also=(Prompt(prompt="no fox", weight=-1),),
    )
    ((_, cat),) = cells(asked, [axis_of("words=fox,cat")])
    assert (cat.prompt, cat.regions[0].prompt, cat.also[0].prompt) == ("a cat", "a red cat", "no cat")
    assert cells(asked, [axis_of("grounding.beta=0.5,1")])
