"""The words that readers, preparation and params share for what is odd about a data set."""

from typing import get_args

from PIL import Image

from pipeline.data.decoding import FORMATS
from pipeline.data.labels import ATTRIBUTES, COLUMNS, IMAGE_SUFFIXES, WHEN_ALLOWED, normalise_prompt
from pipeline.params import Attribute, ProblemKind


def test_params_may_allow_exactly_the_problems_that_have_a_consequence() -> None:
    assert set(get_args(ProblemKind)) == set(WHEN_ALLOWED)


def test_params_may_learn_exactly_the_scores_that_a_table_has() -> None:
    assert set(get_args(Attribute)) == set(ATTRIBUTES)
    assert {*ATTRIBUTES, *(f"{name}_std" for name in ATTRIBUTES)} < set(COLUMNS)


def test_files_that_count_as_images_are_of_formats_that_are_decoded() -> None:
    Image.init()
    for suffix in set(IMAGE_SUFFIXES) - {".heic", ".heif"}:  # which take a plug-in of Pillow's
        assert Image.EXTENSION[suffix] in FORMATS, suffix
    assert "HEIF" in FORMATS


def test_prompts_that_differ_in_writing_only_are_one() -> None:
    assert normalise_prompt("  A  Cat,\tsitting. ") == normalise_prompt("a cat, SITTING")
    assert normalise_prompt("a cat") != normalise_prompt("a cats")
    assert normalise_prompt("\uff21 cat") == "a cat"  # full-width letter
