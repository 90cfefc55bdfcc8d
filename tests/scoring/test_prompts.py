"""Which images are of one prompt: columns, folders, names, in that order, or what the user says."""

import re

import pytest

from pipeline.scoring.gather import InputError, Item
from pipeline.scoring.prompts import group_by_prompt


def items(*paths: str, **cells: list[str]) -> list[Item]:
    return [Item(path, cells={name: texts[place] for name, texts in cells.items()}) for place, path in enumerate(paths)]


def test_a_column_of_both_comes_first() -> None:
    first = items("a/x/1.png", "a/y/2.png", Prompt=["A cat ", "a dog"])
    second = items("b/x/1.png", "b/y/2.png", generation_prompt=["a  CAT", "a cat"])
    found = group_by_prompt(first, second)
    assert (found.by, found.column) == ("column", "Prompt")
    assert found.labels[0][0] == found.labels[1][0] == found.labels[1][1] != found.labels[0][1]


def test_a_column_with_a_gap_or_of_one_set_is_passed_over() -> None:
    second = items("b/1.png", "b/2.png", prompt=["a cat", "a dog"])
    assert group_by_prompt(items("a/1.png", "a/2.png", prompt=["a cat", ""]), second).by == "name"
    assert group_by_prompt(items("a/1.png", "a/2.png"), second).by == "name"


def test_folders_come_next_if_every_image_lies_in_one() -> None:
    found = group_by_prompt(
        items("m/cat/1.png", "m/cat/2.png", "m/dog/1.png"), items("n/deep/cat/9.png", "n/fox/1.png")
    )
    assert (found.by, found.column, found.labels) == ("folder", None, (["cat", "cat", "dog"], ["deep/cat", "fox"]))
    found = group_by_prompt(items("m/cat/1.png", "m/1.png"), items("n/cat/1.png", "n/dog/1.png"))
    assert (found.by, found.labels) == ("name", (["cat/1", "1"], ["cat/1", "dog/1"]))
    found = group_by_prompt(items("m/x/1.png", "m/x/2.jpg"), items("n/2.webp", "n/1.png"))  # a folder that holds all
    assert (found.by, found.labels) == ("name", (["1", "2"], ["2", "1"]))


def test_what_the_user_says_goes() -> None:
    first = items("m/cat/1.png", "m/dog/1.png", prompt=["p", "q"], theme=["s", "t"])
    second = items("n/cat/1.png", "n/fox/1.png", prompt=["p", "q"], theme=["s", "s"])
    assert group_by_prompt(first, second, "name").labels == (["cat/1", "dog/1"], ["cat/1", "fox/1"])
    assert group_by_prompt(first, second, "folder").labels == (["cat", "dog"], ["cat", "fox"])
    found = group_by_prompt(first, second, "Theme")
    assert (found.by, found.column, found.labels) == ("column", "Theme", (["s", "t"], ["s", "s"]))
    for by, sets, message in (
        ("them", (first, second), "--by is 'them', a column that not every image has; columns: prompt, theme; is it"),
        ("folder", (first, items("n/1.png")), "--by is folder, and 1 of the images lie in no folder below that of"),
        ("prompt", (first, items("n/1.png", prompt=[""])), "--by is 'prompt', a column in which n/1.png has no text"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            group_by_prompt(*sets, by)
