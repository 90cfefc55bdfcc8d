"""The files of a report: the same for the same runs, none of another study."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from made_study import make_study

from pipeline.report import plots
from pipeline.report.report import mean_curves, write_report

# What may be said of those who gave scores.
WHOSE = r"(?i)simulated raters|\bpeople\b|\bhumans?\b|\bpersons?\b|\bviewers?\b|\bopinions?\b|\braters\b"
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


@pytest.mark.slow
def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    make_study(tmp_path, methods=FEW)
    first = {path.name: path.read_bytes() for path in report(tmp_path)}
    assert {path.name: path.read_bytes() for path in report(tmp_path)} == first
    for picture in re.findall(r"\]\((.+?\.png)\)", (tmp_path / "out" / "summary.md").read_text()):
        assert (tmp_path / "out" / picture).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [(0,), (0, 1, 2)])
def test_what_has_no_value_is_a_mark_and_a_remark(tmp_path: Path, rounds: tuple[int, ...]) -> None:
    """A method that gave one score to every image in round 0, as `evaluate` writes it: null, and a flat fit."""
    make_study(tmp_path, ("demo", "agiqa3k"), FEW, rounds)
    folder = tmp_path / "runs/demo/shuffled/round-0/evaluate"
    table = pd.read_csv(folder / "predictions.csv")
    table.assign(predicted=0.5, fitted=table["mos"].mean()).to_csv(folder / "predictions.csv", index=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    names = ("srcc", "krcc", "plcc", "plcc_logistic", "srcc_low", "srcc_high", "plcc_low", "plcc_high")
    for values in (metrics["test"], *metrics["cross"].values()):
        values.update(dict.fromkeys(set(names) & set(values)))
    for values in metrics["generator"].values():
        values["srcc"] = None
    (folder / "metrics.json").write_text(json.dumps(metrics))
    report(tmp_path, ("demo", "agiqa3k"), rounds)
    each = pd.read_csv(tmp_path / "out/rounds.csv", dtype=str, keep_default_na=False).set_index(["dataset", "method"])
    row = each[each["round"] == "0"].loc[("demo", "shuffled")]
    assert row[["srcc", "krcc", "plcc", "plcc_raw", "srcc_low"]].tolist() == [""] * 5
    assert float(row["rmse"]) > 0
    said = (tmp_path / "out/tables/main-demo.md").read_text()
    where = "the round" if len(rounds) == 1 else "1 of 3 rounds"
    assert f"no correlation in {where}: the scores or the MOS are all equal" in said
    assert f"no correlation in {where}" in (tmp_path / "out/tables/cross.md").read_text()
    tests = (tmp_path / "out/tables/tests-demo.md").read_text()
    assert re.search(r"dcmpln - shuffled \| \S+ \| — \| — \| — \| — \| — \| — \|", tests)
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())["demo"]["shuffled"]
    assert ("srcc" in numbers) == (len(rounds) > 1)
    written = [
        path for path in (tmp_path / "out").rglob("*") if path.suffix in (".md", ".html", ".csv", ".tex", ".svg")
    ]
    assert not [path for path in written if re.search(r"(?<![\w./-])nan(?![\w-])", path.read_text())]


@pytest.mark.parametrize(("dataset", "by_people"), [("demo", False), ("agiqa3k", True)])
def test_people_stand_beside_no_score_that_a_formula_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: str, by_people: bool
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr("pipeline.report.plots.put_title", lambda figure, title: drawn.append(title))
    for name in ("generators", "scatters", "binned"):
        plain = getattr(plots, name)

        def noted(*values: object, plain: Callable[..., None] = plain, **more: object) -> None:
            drawn.extend([str(more.get("mos_label", "")), *map(str, more.get("labels", ()))])
            plain(*values, **more)

        monkeypatch.setattr(plots, name, noted)
    make_study(tmp_path, (dataset,), FEW, gallery=2)
    report(tmp_path, (dataset,))
    kinds = (".md", ".html", ".csv", ".tex", ".json")
    pages = {path.name: path.read_text() for path in (tmp_path / "out").rglob("*") if path.suffix in kinds}
    told = {name: sorted(set(re.findall(WHOSE, text))) for name, text in {**pages, "figures": "\n".join(drawn)}.items()}
    for name in ("index.html", "summary.md", "figures", f"main-{dataset}.md", f"generators-{dataset}.tex"):
        assert told[name] == (["people"] if by_people else ["simulated raters"]), name
    assert all(set(found) <= {"people" if by_people else "simulated raters"} for found in told.values())
    said = pages["index.html"]
    who = "people" if by_people else "simulated raters"
    for phrase in (
        "rated by {}",
        "agreement with {} on",
        "predicted higher than {} say",
        "generator as {} do",
        "{} rate",
    ):
        assert phrase.format(who) in said
    assert ("how anyone but the simulated raters of this data set would rate an image" in said) != by_people


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
