"""What an editor knows of params.yaml: the committed schema is current, true, and finds what the study would refuse."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from conftest import ROOT
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from pipeline.params import Params, ParamsError, parse_params
from pipeline.params_schema import text

SCHEMA = ROOT / "params.schema.json"
SETS = [ROOT / "params.yaml", *sorted((ROOT / "params").glob("*.yaml"))]
# Comments on one data set's value, which say why it is so and not what the key means.
OF_A_VALUE = {"datasets.agiqa3k.allow_problems", "datasets.agiqa1k.allow_problems"}


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())


def test_the_committed_schema_is_current() -> None:
    hint = "write it anew: python -m pipeline.params_schema > params.schema.json"
    assert SCHEMA.read_text() == text(), hint


def test_the_command_writes_it() -> None:
    command = [sys.executable, "-m", "pipeline.params_schema"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == text()


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_set_passes_and_names_the_schema(path: Path, validator: Draft202012Validator) -> None:
    assert list(validator.iter_errors(yaml.safe_load(path.read_text()))) == []
    named = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())[1]
    beside = path.parent / named
    if path.parent != ROOT:  # there lies a reference to the root's, so that a set can be copied to the root as it is
        assert json.loads(beside.read_text())["$ref"] == "../params.schema.json"

    def read(uri: str) -> Resource:
        return Resource.from_contents(json.loads(Path(uri.removeprefix("file://")).read_text()))

    there = Draft202012Validator({"$ref": beside.as_uri()}, registry=Registry(retrieve=read))
    values = yaml.safe_load(path.read_text())
    assert there.is_valid(values)
    values["train"]["epoch"] = 3
    assert not there.is_valid(values)


@pytest.mark.parametrize(
    ("place", "key", "value", "found"),
    [
        ("train", "learning_rat", 0.1, "'learning_rat' was unexpected"),
        ("", "trian", {}, "'trian' was unexpected"),
        ("datasets.agiqa3k", "sourc", "here", "'sourc' was unexpected"),
        ("variants.dcmpln.train", "epoch", 3, "'epoch' was unexpected"),
        ("train", "epochs", "6", "'6' is not of type 'integer'"),
        ("train", "epochs", 0, "0 is less than the minimum of 1"),
        ("variants.dcmpln.train", "epochs", 0, "0 is less than the minimum of 1"),
        ("split", "rule", "group", "'group' is not one of ['grouped', 'random']"),
        ("study", "baselines", ["clip_iq"], "'clip_iq' is not valid under any of the given schemas"),
        ("split", "test_fraction", 1.0, "1.0 is greater than or equal to the maximum of 1"),
    ],
)
def test_what_the_study_refuses_the_schema_finds(
    place: str, key: str, value: Any, found: str, raw: dict[str, Any], validator: Draft202012Validator
) -> None:
    assert validator.is_valid(raw)
    section = raw
    for part in filter(None, place.split(".")):
        section = section[part]
    section[key] = value
    (error,) = validator.iter_errors(raw)
    assert found in error.message
    assert ".".join(map(str, error.absolute_path)).startswith(place)
    with pytest.raises(ParamsError):
        parse_params(copy.deepcopy(raw))


def comments(path: Path) -> Iterator[tuple[list[str], str]]:
    """Yield the comments that stand beside keys."""
    stack: list[str] = []
    for line in path.read_text().splitlines():
        if key := re.match(r"( *)(\w+):(?: |$)", line):
            stack = [*stack[: len(key[1]) // 2], key[2]]
            if comment := re.search(r"\s# (.*)$", line):
                yield stack, comment[1]


def described(place: list[str]) -> str | None:
    kind, description = Params, None
    for part in place:
        if get_origin(kind) is dict:  # a table of named entries
            kind, description = get_args(kind)[1], None
        else:
            field = kind.model_fields[part]
            kind, description = field.annotation, field.description
    return description


def plain(sentence: str) -> str:
    """Return a sentence as a comment has it: a small first letter, no point at its end."""
    return (sentence[0].lower() + sentence[1:]).removesuffix(".")


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_comments_are_the_descriptions(path: Path) -> None:
    found = [(place, comment) for place, comment in comments(path) if ".".join(place) not in OF_A_VALUE]
    assert len(found) > 25
    for place, comment in found:
        assert plain(comment) == plain(described(place) or "nothing"), ".".join(place)


def test_every_key_of_the_schema_has_its_description() -> None:
    whole = json.loads(SCHEMA.read_text())
    for section in [whole, *whole["$defs"].values()]:
        assert all(value["description"] for value in section["properties"].values())
