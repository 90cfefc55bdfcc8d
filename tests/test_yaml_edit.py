"""Changing one value changes that one: the oracle is the file's other lines, and ruamel's own reading of the result."""

import random
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.yaml_edit import with_values
from pipeline.yaml_file import ParamsError

PARAMS = Path(__file__).resolve().parent.parent / "params"
MINE = {"reader": "folder", "source": "my images", "scale": [1, 5]}


def read(text: str) -> object:
    return YAML(typ="safe", pure=True).load(text)


@pytest.mark.parametrize("path", sorted(PARAMS.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_block_is_added_and_no_other_line_is_touched(path: Path) -> None:
    text = path.read_text()
    edited = with_values(text, {("datasets", "mine"): MINE, ("study", "datasets"): ["mine"], ("study", "name"): "mine"})
    before, after = text.splitlines(), edited.splitlines()
    added = ["  mine:", "    reader: folder", "    source: my images", "    scale: [1, 5]"]
    place = after.index("  mine:")
    assert after[place : place + 4] == added
    assert after[place + 4 : place + 6] == ["", "demo:                       # the generator of the embedded data set"]
    del after[place : place + 4]
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert [new for _, new in changed] == ["  name: mine", "  datasets: [mine]"]
    expected = read(text)
    expected["datasets"]["mine"] = MINE
    expected["study"] |= {"datasets": ["mine"], "name": "mine"}
    assert read(edited) == expected


@pytest.mark.parametrize(
    ("text", "changes", "expected"),
    [
        ("a: 1  # one\nb: 2\n", {("a",): "x y"}, "a: x y  # one\nb: 2\n"),
        ("a: 1\n", {("b",): None}, "a: 1\nb: null\n"),
        ("a: 1", {("b",): [1, "on", "1"]}, "a: 1\nb: [1, on, '1']"),
        ("a: {b: 1}  # c\n", {("a", "d"): {"e": "f: g"}}, "a: {b: 1, d: {e: 'f: g'}}  # c\n"),
        ("a: {}\nb: 1\n", {("a", "d"): {"e": 1}}, "a: {d: {e: 1}}\nb: 1\n"),
        ("a:\n  - x  # first\nb: 1\n", {("a",): ["x", "y"]}, "a:\n  - x  # first\n  - y\nb: 1\n"),
        ("a:\n- x\n- y\nb: 1\n", {("a",): ["y"]}, "a: [y]\nb: 1\n"),
        ("a:\r\n  b: 1\r\nc: 2\r\n", {("a", "d"): 3}, "a:\r\n  b: 1\r\n  d: 3\r\nc: 2\r\n"),
        ("\ufeffa: 1\n", {("a",): 2}, "\ufeffa: 2\n"),
        ("a:\n  b: 1\n  # of b\n\n# of c\nc: 2\n", {("a", "d"): 3}, "a:\n  b: 1\n  # of b\n  d: 3\n\n# of c\nc: 2\n"),
        ("a:\n  b: |\n    text\nc: 2\n", {("a", "d"): 3}, "a:\n  b: |\n    text\n  d: 3\nc: 2\n"),
        ("a:\n  b:\n    c: 1\n    d: 2  # old\ne: 1\n", {("a", "b"): {"f": 1}}, "a:\n  b:\n    f: 1\ne: 1\n"),
        ("a:\nb: 1\n", {("a",): 2}, "a: 2\nb: 1\n"),
    ],
)
def test_values_change_in_their_places(text: str, changes: dict, expected: str) -> None:
    assert with_values(text, changes) == expected


@pytest.mark.parametrize("seed", range(20))
def test_any_value_that_is_written_is_read_back(seed: int) -> None:
    """Random words, with what YAML could take for something else, among the comments of a real file."""
    draw = random.Random(seed)
    word = "".join(draw.choice("ab #:{}[]'\"\\-?!&*|>%@`,~0.é\t") for _ in range(12))
    text = (PARAMS / "demo.yaml").read_text()
    edited = with_values(text, {("datasets", "mine"): {"reader": "folder", "source": word}})
    assert read(edited)["datasets"]["mine"]["source"] == word
    assert edited.replace(edited[edited.index("  mine:") : edited.index("\n\ndemo:")], "").replace(
        "\n\n\ndemo:", "\n\ndemo:"
    ) == text  # fmt: skip


def test_what_stands_in_two_places_is_not_changed_in_one() -> None:
    text = "base: &shared\n  x: 1\none: *shared\n"
    with pytest.raises(ParamsError, match=r"^one\.y cannot be changed in its place: write it by hand: 2$"):
        with_values(text, {("one", "y"): 2})
