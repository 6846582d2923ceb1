"""Saved styles: kept, replaced, forgotten, and never in the way."""

from __future__ import annotations

import pytest

from pipelines.errors import DataError
from studio.library.styles import FILE, Styles, applied


def test_styles_are_kept_by_name(tmp_path):
    styles = Styles(tmp_path)
    assert styles.all() == {}
    styles.save(" flat ", "flat style")
    styles.save("card", "a card with {prompt} on it")
    styles.save("flat", "a flat {prompt}")
    assert Styles(tmp_path).all() == {"card": "a card with {prompt} on it", "flat": "a flat {prompt}"}
    styles.delete("card")
    styles.delete("nothing")
    assert list(styles.all()) == ["flat"]


@pytest.mark.parametrize(("name", "text"), [("", "x"), ("x", "  "), ("x" * 61, "y"), ("x", "y" * 1001)])
def test_a_style_without_name_or_words_is_refused(tmp_path, name, text):
    with pytest.raises(DataError, match="name and words"):
        Styles(tmp_path).save(name, text)


def test_a_damaged_file_holds_none_and_is_replaced(tmp_path):
    for text in ("no", "[1]", '{"a": 3}'):
        (tmp_path / FILE).write_text(text)
        assert Styles(tmp_path).all() == {}
    Styles(tmp_path).save("a", "b")
    assert Styles(tmp_path).all() == {"a": "b"}


def test_a_style_goes_behind_the_prompt_or_around_it():
    assert applied("on blue", "a fox ") == "a fox on blue"
    assert applied("two of {prompt}, {prompt}", "a fox") == "two of a fox, a fox"
    assert applied(" ", "a fox") == "a fox"
