"""The table of costs against sums by hand, and what it says of a load."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_study import make_study

from pipeline.report import cost
from pipeline.report.formats import markdown
from pipeline.report.results import Results, read_results
from pipeline.report.summaries import summarise
from pipeline.report.tables import trimmed

METHODS = ("dcmpln", "linear_probe")


def results_of(root: Path) -> Results:
    return read_results(["demo"], METHODS, (0, 1), root / "runs", root / "data/splits", root / "data/prepared")


def rewrite(path: Path, **changed: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"cost": content["cost"] | changed}))


def test_costs_add_up(reported: Path) -> None:
    found = pd.read_csv(reported / "out/tables/cost.csv").set_index(["dataset", "method"])
    row = found.loc[("demo", "dcmpln")]
    columns = ["train_seconds", "train_cpu_seconds", "scoring_seconds", "scoring_cpu_seconds", "peak_memory_mb"]
    assert row[[*columns, "trainable_parameters"]].tolist() == [15, 27, 0.3, 0.5, 512, 123456]
    text = (reported / "out/tables/cost.md").read_text()
    # 18 trainings of 15 s and 6 fits of half a second; 24 scorings of 0.3 s; of processors 27, 0.75 and 0.5 s
    assert "| all runs |  |  | 273.0 s | 490.5 s |  |  | 7.2 s | 12.0 s |  |  |" in text
    assert "under load" not in text.lower()
    assert "Remarks" not in text


def test_a_slow_method_has_a_speed_and_a_load_has_a_remark_with_its_rule(tmp_path: Path) -> None:
    make_study(tmp_path, ("demo",), METHODS, (0, 1))
    for number in (0, 1):
        run = tmp_path / f"runs/demo/linear_probe/round-{number}"
        slow = {"seconds": 60 / 0.04, "cpu_seconds": 1800.0, "images_per_second": 0.04, "under_load": number == 0}
        rewrite(run / "evaluate/metrics.json", **slow)
        rewrite(run / "train/run.json", seconds=0.001, cpu_seconds=0.001)
    rewrite(tmp_path / "runs/demo/dcmpln/round-1/train/run.json", under_load=True)
    results = results_of(tmp_path)
    table = trimmed(cost.cost_table(results, summarise(results.runs)))
    cells = {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    probe = cells["linear_probe on demo"]
    assert (probe["Training"], probe["Training, CPU"]) == ("< 0.1 s", "< 0.1 s")
    assert (probe["Images/s, scoring"], probe["Scoring, CPU"]) == ("0.040", "1,800.0 s")
    assert probe["Remarks"] == "scoring under load in 1 of 2 rounds"
    assert cells["dcmpln on demo"]["Remarks"] == "training under load in 1 of 2 rounds"
    assert "the clock ran over 1.25 times as long as" in table.note
    assert not any(cell.split(" ")[0] == "0" for row in table.rows for cell in row)
    assert markdown(table).count("under load") == 2


def test_what_earlier_versions_did_not_measure_is_a_mark(tmp_path: Path) -> None:
    make_study(tmp_path, ("demo",), METHODS, (0, 1))
    for path in tmp_path.glob("runs/demo/*/*/train/run.json"):
        path.write_text(
            json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "cost"})
        )
    for path in tmp_path.glob("runs/demo/*/*/evaluate/metrics.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "cost": {"seconds": 2.0}}))
    for path in tmp_path.glob("runs/demo/*/*/train/timing.csv"):
        pd.read_csv(path).drop(columns=["cpu_seconds", "under_load"]).to_csv(path, index=False)
    results = results_of(tmp_path)
    table = cost.cost_table(results, summarise(results.runs))
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert (row["Training"], row["Training, CPU"]) == ("16.0 s", "—")
    assert (row["Scoring"], row["Scoring, CPU"], row["Images/s, scoring"]) == ("2.0 s", "—", "—")
    assert table.rows[-1][3:5] == ["64.0 s", "—"]
    assert results.timing["cpu_seconds"].isna().all()


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((0, 0, 3), ""),
        ((2, 0, 3), "training under load in 2 of 3 rounds"),
        ((1, 3, 3), "training under load in 1 of 3 rounds; scoring under load in 3 of 3 rounds"),
        ((0, 1, 1), "scoring under load"),
    ],
)
def test_a_load_is_named_with_its_rounds(counts: tuple[int, int, int], said: str) -> None:
    assert cost.load_remark(*counts) == said
