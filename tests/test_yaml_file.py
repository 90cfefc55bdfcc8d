"""Files of YAML against DVC's own reader, and what would exhaust the machine."""

import re
from pathlib import Path

import pytest
from conftest import ROOT
from dvc.utils.serialize import load_yaml

from pipeline import yaml_file
from pipeline.yaml_file import ParamsError, read_yaml


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "params").glob("*.yaml")))
def test_values_are_dvcs_own(name: str) -> None:
    assert read_yaml(ROOT / "params" / name) == load_yaml(str(ROOT / "params" / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: \xff\n", "is no UTF-8 text (line 2 holds the byte 0xFF): save it as UTF-8"),
        (b"a: 1\nb: 2\na: 3\n", "key 'a' stands twice (again in line 3): keep one"),
        (b"a: [1\n", "is not valid YAML: "),
        (b"a: &x [*x]\n", "line 1 holds *x within what &x names"),
        (b"a: " + b"[" * 60 + b"]" * 60, "line 1 lies more than 50 levels deep"),
        (b"a0: &a0 [" + b"1," * 999 + b"1]\na1: &a1 [" + b"*a0," * 200 + b"1]\n", "holds more than 100,000 values"),
        (b"a: " + b"1" * (1 << 20), "has 1,048,579 letters, and a file of params at most 1,048,576"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=re.escape(message)) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_our_own_params_are_far_from_the_bounds() -> None:
    assert (ROOT / "params.yaml").stat().st_size * 20 < yaml_file.MOST_BYTES
