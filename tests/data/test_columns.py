"""Which column is what, by names that people give them."""

import pandas as pd
import pytest

from pipeline.data.columns import ROLES, Column, role_of, take
from pipeline.data.labels import DatasetError

NUMBERS, WORDS = ["1.5", "2.25", "4"], ["a fox", "a cat", "a dog"]


def column(name: str, cells: list[str] | None = None, table: str = "a.csv") -> Column:
    return Column(table, name, pd.Series(NUMBERS if cells is None else cells, dtype=str))


@pytest.mark.parametrize(
    ("name", "cells", "role"),
    [
        ("MOS", NUMBERS, "quality"),
        ("mos_quality", NUMBERS, "quality"),
        ("Quality MOS (1-5)", NUMBERS, "quality"),
        ("meanRating", NUMBERS, "quality"),
        ("mean opinion score", NUMBERS, "quality"),
        ("MOS_std", NUMBERS, "quality_std"),
        ("SD", NUMBERS, "quality_std"),
        ("mos_align", NUMBERS, "alignment"),
        ("AlignmentScore", NUMBERS, "alignment"),
        ("std_align", NUMBERS, "alignment_std"),
        ("authenticity", NUMBERS, "authenticity"),
        ("Text Prompt", WORDS, "generation_prompt"),
        ("caption", WORDS, "generation_prompt"),
        ("model_name", ["a", "b", "a"], "generator"),
        ("mos_low", ["1", "1", "1"], "mos_low"),
        ("negative_prompt", WORDS, None),
        ("prompt_id", ["7", "8", "9"], None),
        ("model", ["1", "2", "3"], None),  # numbers name no generator
        ("seed", ["7", "8", "9"], None),
        ("quality", ["good", "bad", "fair"], None),
    ],
)
def test_a_name_and_its_cells_tell_what_a_column_is(name: str, cells: list[str], role: str | None) -> None:
    """Beside an MOS that nothing else can be."""
    asked, mos = (
        column(name, cells),
        column("mos" if role != "quality" else "tag", WORDS if role == "quality" else None),
    )
    taken = take([asked, mos], {})
    assert [ours for ours, known in taken.items() if known.column is asked] == ([] if role is None else [role])


def test_the_only_column_that_can_be_a_score_is_the_mos_whatever_it_is_called() -> None:
    """Whole numbers of which none repeats count the rows, and what never changes rates nothing."""
    rows = [str(number) for number in range(12)]
    columns = [
        column("beauty", [f"{number}.5" for number in rows]), column("nummer", rows), column("same", ["3"] * 12),
        column("text", [f"a fox {number}" for number in rows]),
    ]  # fmt: skip
    taken = take(columns, {})
    assert {ours: known.column.name for ours, known in taken.items()} == {
        "quality": "beauty",
        "generation_prompt": "text",
    }
    with pytest.raises(
        DatasetError, match=r"^no column holds the MOS: say --map mos=COLUMN; columns: a\.csv: nummer, "
    ):
        take(columns[1:], {})


def test_what_stands_in_two_tables_alike_is_one() -> None:
    twins = [column("prompt", WORDS), column("Prompt", WORDS, "b.csv"), column("mos")]
    assert take(twins, {})["generation_prompt"].column is twins[0]
    differing = [twins[0], column("prompt", WORDS[::-1], "b.csv"), twins[2]]
    with pytest.raises(
        DatasetError, match=r"^'a\.csv: prompt' and 'b\.csv: prompt' could both be the prompt: say --map "
    ):
        take(differing, {})
    assert take(differing, {"generation_prompt": "b.csv:prompt"})["generation_prompt"].column is differing[1]
    with pytest.raises(
        DatasetError, match=r"several tables have this column: say one of a\.csv:prompt, b\.csv:prompt$"
    ):
        take(differing, {"generation_prompt": "prompt"})


def test_ours_are_named_by_any_of_their_names() -> None:
    assert [role_of(name) for name in ("mos", "Quality", "prompt", "generation_prompt", "model", "x")] == [
        "quality", "quality", "generation_prompt", "generation_prompt", "generator", None,
    ]  # fmt: skip
    assert list(ROLES.values())[:3] == ["image", "mos", "std"]
