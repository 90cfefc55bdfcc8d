"""How the command reads its words."""

import argparse
from pathlib import Path

import pytest

from pipeline.arguments import UNUSABLE, Help, Parser, near, number, place, positive


def test_a_mistake_is_one_line_with_what_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="it", formatter_class=Help)
    parser.add_argument("kind", choices=["table", "json"])
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(["tabel"])
    assert stopped.value.code == UNUSABLE
    said = capsys.readouterr().err
    assert said.startswith("it: error: argument kind: invalid choice: 'tabel' (choose from ")
    assert said.endswith("; did you mean 'table'? (it --help says more)\n")
    assert said.count("\n") == 1


def test_the_nearest_word_is_named_and_nothing_far() -> None:
    assert near("scor", ["score", "rank"]) == "; did you mean 'score'?"
    assert near("xyz", ["score", "rank"]) == ""


def test_an_address_stays_as_it_is() -> None:
    assert place("a//b.csv") == Path("a/b.csv")
    assert place("s3://bucket//b.csv") == "s3://bucket//b.csv"


@pytest.mark.parametrize(("kind", "text", "value"), [(positive, "7", 7), (number, "-1.5", -1.5), (number, "1e3", 1000)])
def test_numbers_are_read(kind: object, text: str, value: float) -> None:
    assert kind(text) == value


@pytest.mark.parametrize(("kind", "text"), [(positive, "0"), (positive, "-1"), (positive, "1.0"), (number, "nan"),
                                            (number, "inf"), (number, "one"), (positive, "")])  # fmt: skip
def test_what_is_no_such_number_is_named(kind: object, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' is no "):
        kind(text)
