"""Which figures a report has, and that they name their backbone and stand on the right numbers."""

import math
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from pipeline.report import figures, plots
from pipeline.report.chart import Chart
from pipeline.report.results import Results, read_results
from pipeline.report.significance import compare, leave_out
from pipeline.report.summaries import summarise

METHODS = ("dcmpln", "no_mpa", "shuffled", "handcrafted")


@pytest.fixture(scope="module")
def results(reported: Path) -> Results:
    folders = (reported / "runs", reported / "data/splits", reported / "data/prepared")
    return read_results(["agiqa3k", "demo"], METHODS, (0, 1, 2), *folders)


def test_every_figure_stands_in_both_formats(reported: Path) -> None:
    kinds = ("outcomes", "generators", "scatter", "band", "calibration", "curves", "residuals")
    expected = {"comparison", "cross"} | {f"{kind}-{dataset}" for kind in kinds for dataset in ("agiqa3k", "demo")}
    assert {path.stem for path in (reported / "out").glob("*.svg")} == expected
    assert {path.stem for path in (reported / "out").glob("*.png")} == expected
    for path in (reported / "out").glob("*.png"):
        with Image.open(path) as picture:
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, path


def test_the_figures_show_the_studys_numbers(
    reported: Path, results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, dict] = {}
    names = ("comparison", "cross_matrix", "outcomes", "generators", "scatters", "bands", "binned", "training_curves")
    for name in names:

        def note(*values: object, name: str = name, **more: object) -> None:
            key = name + (f" {more['labels'][0]}" if "labels" in more else "")
            seen.setdefault(key, {"values": values, **more})

        monkeypatch.setattr(plots, name, note)
    rows = results.runs[results.runs["dataset"] == "agiqa3k"]
    pairs = compare(rows, leave_out(results.predictions[results.predictions["dataset"] == "agiqa3k"]))
    charts = [Chart("agiqa3k", [], "t", 0)]
    drawn = figures.draw(tmp_path, results, summarise(results.runs), {"agiqa3k": pairs, "demo": pairs}, charts)
    assert len(drawn) == 16
    for picture in drawn:
        assert "demo-vit (in-house weights)" in picture.backbone
        assert "demo-vit" not in picture.title + picture.alt + picture.caption
    assert seen["comparison"]["values"] == (charts,)
    looks = [seen[name]["looks"] for name in ("generators", "scatters", "bands")]
    assert looks[0] == looks[1] == looks[2]  # a generator looks the same in all figures
    assert set(looks[0]) == {"gan", "early diffusion", "late diffusion"}
    assert len({(look["color"], look["marker"]) for look in looks[0].values()}) == 3
    assert all("demo-vit (in-house weights)" in found["title"] for found in seen.values())
    scores = seen["cross_matrix"]["values"][0].set_index(["method", "trained_on", "tested_on"])["srcc"]
    own = results.runs[(results.runs["dataset"] == "demo") & (results.runs["method"] == "dcmpln")]["srcc"]
    assert scores["dcmpln", "demo", "demo"] == pytest.approx(own.mean())
    assert scores["dcmpln", "demo", "agiqa3k"] == pytest.approx(0.6 * own.mean())
    assert len(seen["scatters"]["values"][0]) == 60 * len(METHODS)
    told, coverage = seen["bands"]["values"]
    path = reported / "runs/agiqa3k/dcmpln/round-0/evaluate/predictions.csv"
    assert told["score"].tolist() == pytest.approx(pd.read_csv(path)["score"].tolist())
    inside = pd.read_csv(path).query("generator == 'gan' and low <= mos <= high")
    assert len(coverage) == 3 * 3  # generators and rounds
    assert coverage[coverage["generator"] == "gan"]["coverage"].iloc[0] == pytest.approx(len(inside) / 20)
    residuals = seen["binned MOS standard deviation"]["values"][0]
    assert residuals["n"].sum() == 3 * 60 * len(METHODS)
    assert seen["binned score"]["identity"]
    whole = results.predictions[results.predictions["dataset"] == "agiqa3k"]
    tenths = seen["binned score"]["values"][0]
    assert (tenths["x"] * tenths["n"]).sum() == pytest.approx(whole["score"].sum())  # not of what was fitted to test


def test_a_data_set_without_opinions_spread_has_no_figure_of_it(results: Results, tmp_path: Path) -> None:
    bare = results._replace(predictions=results.predictions.assign(mos_std=math.nan))
    plan = figures._of(bare, summarise(results.runs).query("dataset == 'demo'"), results.runs[:0], "demo", {})
    names = [picture.name for picture, _ in plan]
    assert "residuals-demo" not in names
    assert "outcomes-demo" not in names  # no pairs, no matrix
    assert len(names) == 5
