"""Faults are told with the key, the value and what would be right; tests/test_params.py tells them of whole files."""

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.params_faults import fault, nearest, refusal, shown


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rate: float


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    train: Inner
    variants: dict[str, Inner] = {}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({"train": {"rate": 1, "rat": 2}}, "unknown key 'train.rat'; did you mean 'rate'?"),
        ({"train": {"rate": 1}, "trian": {}}, "unknown key 'trian'; did you mean 'train'?"),
        ({"train": {"rate": 1, "xyz": 2}}, "unknown key 'train.xyz'; known: rate"),
        ({"train": {"rate": 1}, "variants": {"a": {"rate": 1, "rats": 2}}},
         "unknown key 'variants.a.rats'; did you mean 'rate'?"),
        ({"train": {}}, "missing key 'train.rate'"),
        ({"train": {"rate": "fast"}}, "train.rate = 'fast': input should be a valid number"),
        ({"train": {"rate": 1, 7: 2}}, "unknown key 7 in train"),
    ],
)  # fmt: skip
def test_a_finding_becomes_a_sentence(raw: dict[object, object], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(raw)
    (found,) = caught.value.errors()
    assert fault(Outer, raw, found).startswith(told)


def test_one_fault_stands_in_the_line_and_several_below_it() -> None:
    assert str(refusal("params.yaml", ["a is 1"])) == "params.yaml: a is 1"
    assert str(refusal("params.yaml", ["a is 1", "b is 2"])) == "params.yaml:\n  a is 1\n  b is 2"


def test_words_and_values_are_shown_as_far_as_they_help() -> None:
    assert nearest("epoch", ["epochs", "rate"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["rate", "epochs"]) == "; known: epochs, rate"
    assert shown("x") == "'x'"
    assert shown("x" * 200) == "'" + "x" * 79 + "..."
