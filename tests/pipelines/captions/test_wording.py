"""The wording of captions for training."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipelines.captions.wording import Wording, worded


@pytest.mark.parametrize(
    ("caption", "leave_out", "token", "said"),
    [
        ("a fox on a blue background", [], "", "a fox on a blue background"),
        ("a brown dog on a red sofa", ["brown", "dog"], "<my-dog>", "a <my-dog> on a red sofa"),
        ("an owl and a fox", ["owl"], "<o>", "a <o> and a fox"),
        ("two foxes and a fox", ["fox"], "<f>", "two <f>"),
        ("a dog, brown, on a sofa", ["brown"], "", "a dog, on a sofa"),
        ("a dog on a sofa", ["dog"], "", "on a sofa"),
        ("a sofa with a dog", ["dog"], "", "a sofa"),
        ("a red sofa", ["dog"], "<d>", "<d>, a red sofa"),
        ("a <d> on a sofa", ["dog"], "<d>", "a <d> on a sofa"),
        ("a hot dog stand", ["hot dog"], "", "a stand"),
        ("a dogma", ["dog"], "", "a dogma"),
        ("A Dog", ["dog"], "<d>", "A <d>"),
    ],
)
def test_words_are_left_out_and_the_token_stands_in_their_place(caption, leave_out, token, said):
    assert worded(caption, leave_out, token) == said


def test_a_template_stands_around_every_caption():
    wording = Wording(template="a sticker of {}", leave_out=("brown, dog",), token="<d>")
    assert wording.of("a brown dog on a sofa") == "a sticker of a <d> on a sofa"
    for wrong in ("a sticker", "{} and {}"):
        with pytest.raises(ValidationError, match="place"):
            Wording(template=wrong)
