"""A table of bad inputs as users give them, each with its exact message and exit status, through the public door."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from made_images import MADE

from pipeline.cli import main
from pipeline.params import ParamsError, load_params, parse_params

ROWS = yaml.safe_load((ROOT / "tests" / "data" / "bad_inputs.yaml").read_text(encoding="utf-8"))


def ids(kind: str) -> list[Any]:
    return [pytest.param(row, id=row["name"]) for row in ROWS[kind]]


def demo_text() -> str:
    return (ROOT / "params" / "demo.yaml").read_text()


@pytest.mark.parametrize("row", ids("params"))
def test_params(row: dict[str, Any], in_tmp: Path) -> None:
    with pytest.raises(ParamsError) as error:  # noqa: PT012
        if "set" in row:
            raw = yaml.safe_load(demo_text())
            for key, value in row["set"].items():
                *sections, last = key.split("/")
                place = raw
                for section in sections:
                    place = place[section]
                place[last] = value
            parse_params(raw)
        else:
            text = demo_text() + row.get("add", "")
            if "old" in row:
                assert row["old"] in text
                text = text.replace(row["old"], row["new"], 1)
            Path("params.yaml").write_bytes(eval_bytes(row["bytes"]) if "bytes" in row else text.encode())
            load_params("params.yaml")
    says = [row["says"]] if isinstance(row["says"], str) else row["says"]
    following = demo_text().count("\n") + 2  # what is added begins with a line break
    assert str(error.value).splitlines() == [line.replace("{next}", str(following)) for line in says]


def eval_bytes(text: str) -> bytes:
    """Return the bytes that a text spells, with escapes for those that are no ASCII."""
    return text.encode("latin-1", "backslashreplace").decode("unicode_escape").encode("latin-1")


@pytest.mark.parametrize("row", ids("labels"))
def test_labels(row: dict[str, Any], in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("set").mkdir()
    for name in row.get("files", ["a.png", "b.png"]):
        Path("set", name).parent.mkdir(parents=True, exist_ok=True)
        Path("set", name).write_bytes(MADE[row.get("made", {}).get(name, "plain")](len(name) + ord(name[0])))
    content = eval_bytes(row["bytes"]) if "bytes" in row else row["csv"].encode(row.get("coding", "utf-8"))
    Path("set/labels.csv").write_bytes(content)
    for name, target in row.get("links", {}).items():
        Path("set", name).symlink_to(target)
    status = main(["check", "set", *(["--scale", "1", "5"] if row.get("scale", True) else [])])
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("agiqa: error: ")]
    found = captured.out.splitlines() if status == 1 else errors
    assert [re.sub(" {2,}", " ", line) for line in found] == row["says"]
    assert status == row["status"]
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("row", ids("images"))
def test_images(row: dict[str, Any], in_tmp: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path(row["file"]).parent.mkdir(parents=True, exist_ok=True)
    if "made" in row:
        Path(row["file"]).write_bytes(MADE[row["made"]](0))
    elif "bytes" in row:
        Path(row["file"]).write_bytes(eval_bytes(row["bytes"]))
    arguments = ["score", *row.get("arguments", [row["file"]]), "--checkpoint", str(tiny_checkpoint), "--device", "cpu"]
    status = main([*arguments, "--format", "table"])
    captured = capsys.readouterr()
    rows = [line.strip() for line in captured.out.splitlines() if line.strip().startswith("- ")]
    errors = [line for line in captured.err.splitlines() if line.startswith("agiqa: error: ")]
    assert (rows or errors) == [row["says"]]
    assert status == row["status"]
    assert "Traceback" not in captured.err


def test_the_table_is_long_and_no_row_stands_twice() -> None:
    names = [(kind, row["name"]) for kind, rows in ROWS.items() for row in rows]
    assert len(names) == len(set(names)) >= 60
