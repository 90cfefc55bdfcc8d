"""The report: its numbers against the tables, and what may never stand without its mark."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_study import make_study

from pipeline.report.published import published_for
from pipeline.report.report import mean_curves, overlap_sentence, write_report

FEW = ("dcmpln", "shuffled", "clip_iqa")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take longest, where a test reads the text alone."""
    monkeypatch.setattr("pipeline.report.figures.draw", lambda *_: [])


def report(root: Path, datasets: tuple[str, ...] = ("demo",), rounds: tuple[int, ...] = (0, 1, 2)) -> list[Path]:
    return write_report(
        root / "out", "toy", datasets, FEW, rounds, generated=["demo"],
        runs=root / "runs", splits=root / "data/splits", prepared=root / "data/prepared",
    )  # fmt: skip


def rows_of(text: str, method: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith(f"| `{method}`")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.usefixtures("undrawn")
def test_the_main_table_is_the_mean_and_std_over_rounds(tmp_path: Path) -> None:
    make_study(tmp_path, methods=FEW)
    written = report(tmp_path)
    assert all(path.stat().st_size > 20 for path in written)
    text = (tmp_path / "out" / "summary.md").read_text()
    each = [
        json.loads((tmp_path / f"runs/demo/dcmpln/round-{k}/evaluate/metrics.json").read_text())["test"]["srcc"]
        for k in range(3)
    ]
    row = rows_of(text, "dcmpln")[0]
    assert row[2].strip("*") == f"{np.mean(each):.3f} ± {np.std(each, ddof=1):.3f}"
    assert row[3] == f"{np.median(each):.3f}"
    assert "in-house" in row[1]
    assert "control" in rows_of(text, "shuffled")[0][-1]


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    make_study(tmp_path, methods=FEW)
    first = {path.name: path.read_bytes() for path in report(tmp_path)}
    assert {path.name: path.read_bytes() for path in report(tmp_path)} == first
    for picture in re.findall(r"\]\((.+?\.png)\)", (tmp_path / "out" / "summary.md").read_text()):
        assert (tmp_path / "out" / picture).is_file()


@pytest.mark.usefixtures("undrawn")
def test_published_rows_stand_with_their_protocol(tmp_path: Path) -> None:
    make_study(tmp_path, datasets=("agiqa3k",), methods=FEW)
    report(tmp_path, ("agiqa3k",))
    text = (tmp_path / "out" / "summary.md").read_text()
    for row in published_for("agiqa3k", "quality"):
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.method} |"))
        assert f"{row.srcc:.4f}" in line
        assert row.protocol in line


@pytest.mark.usefixtures("undrawn")
def test_a_leaking_split_is_marked_wherever_it_shows(tmp_path: Path) -> None:
    make_study(tmp_path, methods=FEW, leaks=("random split",))
    report(tmp_path)
    text = (tmp_path / "out" / "summary.md").read_text()
    assert all("LEAKS" in row[-1] for row in rows_of(text, "dcmpln")[:1])
    assert "No row is free of leaks, so none is named best." in text


@pytest.mark.usefixtures("undrawn")
def test_figures_and_tables_of_other_data_sets_do_not_stay(tmp_path: Path) -> None:
    make_study(tmp_path, methods=FEW)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curves-gone.png").write_bytes(b"")
    (tmp_path / "out" / "tables").mkdir()
    (tmp_path / "out" / "tables" / "main-gone.tex").write_text("stale")
    (tmp_path / "out" / "mine.txt").write_text("kept")
    report(tmp_path)
    assert not (tmp_path / "out" / "curves-gone.png").exists()
    assert not (tmp_path / "out" / "tables" / "main-gone.tex").exists()
    assert (tmp_path / "out" / "mine.txt").exists()


@pytest.mark.usefixtures("undrawn")
def test_one_round_claims_no_spread(tmp_path: Path) -> None:
    make_study(tmp_path, methods=FEW, rounds=(0,))
    report(tmp_path, rounds=(0,))
    text = (tmp_path / "out" / "summary.md").read_text()
    assert "One round has no spread over rounds" in text
    assert re.search(r"0\.\d{3} ± n/a", rows_of(text, "dcmpln")[0][2])


@pytest.mark.parametrize(
    ("low", "expected"),
    [(0.85, "lies above that of `b`."), (0.5, "overlaps that of `b`, so these intervals do not put it ahead of it.")],
)
def test_the_first_sentence_claims_what_the_intervals_carry(low: float, expected: str) -> None:
    table = pd.DataFrame(
        {
            "method": ["a", "b"], "kind": "variant", "leaks": "", "srcc_mean": [0.9, 0.7],
            "srcc_low": [low, 0.6], "srcc_high": [0.95, 0.8],
        }
    )  # fmt: skip
    assert overlap_sentence(table).endswith(expected)


def test_mean_curves_by_hand() -> None:
    history = pd.DataFrame(
        {
            "dataset": "demo", "method": "dcmpln", "round": [0, 0, 1], "epoch": [1, 2, 1],
            "train_srcc": [0.1, 0.2, 0.3], "validation_srcc": [0.4, 0.5, 0.8], "loss": 1.0,
        }
    )  # fmt: skip
    ((dataset, method, rows),) = mean_curves(history)
    assert (dataset, method) == ("demo", "dcmpln")
    assert rows["train_srcc"].tolist() == pytest.approx([0.2, 0.2])
    assert rows["validation_srcc"].tolist() == pytest.approx([0.6, 0.5])  # one round alone reached the second epoch
