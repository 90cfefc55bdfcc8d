"""What is read, from where, and what is refused; the numbers against pandas on the predictions themselves."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from made_study import make_study

from pipeline.layout import StudyError
from pipeline.report.results import Results, read_results
from pipeline.report.summaries import summarise

FEW = ("clip_iqa", "shuffled", "no_mpa", "dcmpln")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_study(tmp_path, methods=FEW, epochs=3)
    return tmp_path


def read(root: Path, methods: tuple[str, ...] = FEW, rounds: tuple[int, ...] = (0, 1, 2)) -> Results:
    return read_results(["demo"], methods, rounds, root / "runs", root / "data/splits", root / "data/prepared")


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_summary_equals_a_recomputation_from_the_predictions(root: Path) -> None:
    summary = summarise(read(root).runs).set_index("method")
    for method in FEW:
        files = [root / f"runs/demo/{method}/round-{r}/evaluate/predictions.csv" for r in (0, 1, 2)]
        tables = [pd.read_csv(file) for file in files]
        srcc = pd.Series([table["predicted"].rank().corr(table["mos"].rank()) for table in tables])
        raw = pd.Series([table["predicted"].corr(table["mos"]) for table in tables])
        krcc = pd.Series([table["predicted"].corr(table["mos"], method="kendall") for table in tables])
        row = summary.loc[method]
        for name, values in (("srcc", srcc), ("plcc_raw", raw), ("krcc", krcc)):
            assert row[f"{name}_mean"] == pytest.approx(values.mean())
            assert row[f"{name}_std"] == pytest.approx(values.std())
            assert row[f"{name}_median"] == pytest.approx(values.median())


def test_generators_equal_a_recomputation_from_the_predictions(root: Path) -> None:
    table = read(root).generators
    predictions = pd.read_csv(root / "runs/demo/dcmpln/round-1/evaluate/predictions.csv")
    mine = table[(table["method"] == "dcmpln") & (table["round"] == 1)].set_index("generator")
    for name, rows in predictions.groupby("generator"):
        assert mine.loc[name, "n"] == len(rows)
        assert mine.loc[name, "srcc"] == pytest.approx(rows["predicted"].rank().corr(rows["mos"].rank()))
        assert mine.loc[name, "mos_mean"] == pytest.approx(rows["mos"].mean())
        assert mine.loc[name, "predicted_mean"] == pytest.approx(rows["predicted"].mean())
        assert mine.loc[name, "fitted_mean"] == pytest.approx(rows["fitted"].mean())
        assert mine.loc[name, "score_mean"] == pytest.approx(rows["score"].mean())
        assert mine.loc[name, "coverage"] == pytest.approx(rows["mos"].between(rows["low"], rows["high"]).mean())


def test_what_users_are_told_is_read_and_may_be_lacking(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-1/evaluate"
    change(path / "metrics.json", lambda metrics: metrics["test"].pop("unfamiliar"))
    change(path / "metrics.json", lambda metrics: metrics.pop("validation"))
    pd.read_csv(path / "predictions.csv").drop(columns="unfamiliar").to_csv(path / "predictions.csv", index=False)
    results = read(root)
    for frame, column in ((results.runs, "unfamiliar"), (results.runs, "validation_srcc")):
        lacking = frame[frame[column].isna()]
        assert lacking[["method", "round"]].values.tolist() == [["no_mpa", 1]]
    lacking = results.predictions[results.predictions["unfamiliar"].isna()]
    assert set(zip(lacking["method"], lacking["round"], strict=True)) == {("no_mpa", 1)}
    assert results.predictions["unfamiliar"].dropna().isin([0, 1]).all()
    assert results.predictions["score"].notna().all()
    change(path / "metrics.json", lambda metrics: metrics["test"].update(coverage="most"))
    with pytest.raises(StudyError, match="coverage is 'most', which is no finite number"):
        read(root)


def test_methods_stand_in_the_papers_order_and_controls_after_variants(root: Path) -> None:
    results = read(root)
    assert list(dict.fromkeys(results.runs["method"])) == ["dcmpln", "no_mpa", "shuffled", "clip_iqa"]
    kinds = results.runs.drop_duplicates("method").set_index("method")["kind"]
    assert kinds.to_dict() == {"dcmpln": "variant", "no_mpa": "variant", "shuffled": "control", "clip_iqa": "baseline"}
    assert list(dict.fromkeys(results.history["method"])) == ["dcmpln", "no_mpa", "shuffled"]
    assert list(results.history.columns[3:]) == ["epoch", "train_srcc", "validation_srcc", "loss"]
    assert results.timing["seconds"].tolist() == [7.5] * 9
    assert results.timing["cpu_seconds"].tolist() == [13.5] * 9


def test_only_the_named_folders_are_read(root: Path) -> None:
    stale = root / "runs/demo/dcmpln/round-7"
    shutil.copytree(root / "runs/demo/dcmpln/round-0", stale)
    shutil.copytree(root / "runs/demo/dcmpln", root / "runs/demo/main_only")
    shutil.copytree(root / "runs/demo", root / "runs/agiqa1k")
    (stale / "train/record.json").write_text("not even JSON")
    results = read(root)
    assert set(results.runs["round"]) == {0, 1, 2}
    assert set(results.runs["method"]) == set(FEW)
    assert set(results.runs["dataset"]) == {"demo"}


@pytest.mark.parametrize(
    "file",
    ["train/record.json", "train/history.csv", "train/timing.csv", "evaluate/metrics.json", "evaluate/predictions.csv"],
)
def test_a_missing_file_is_named(root: Path, file: str) -> None:
    path = root / "runs/demo/no_mpa/round-2" / file
    path.unlink()
    message = (
        f"{path} is missing: the study in params.yaml names no_mpa on demo, round 2. Run `dvc repro`, or take it out"
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        read(root)


@pytest.mark.parametrize("file", ["data/splits/demo/audit.json", "data/prepared/demo/card.json"])
def test_a_missing_audit_or_card_is_named(root: Path, file: str) -> None:
    (root / file).unlink()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"{root / file} is missing: the study in params.yaml names data")
    ):
        read(root)


def test_a_round_beyond_the_audit_is_refused(root: Path) -> None:
    change(root / "data/splits/demo/audit.json", lambda audit: audit["rounds"].pop("2"))
    with pytest.raises(
        ValueError, match=re.escape("audit.json of demo: no round 2; it has 0, 1. Rerun the split stage")
    ):
        read(root)


def test_a_record_in_the_wrong_place_is_refused(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-1/train/record.json"
    change(path, lambda record: record.update(round=0))
    with pytest.raises(StudyError, match=re.escape(f"{path}: round is 0, its folder says 1")):
        read(root)


@pytest.mark.parametrize("value", [math.nan, math.inf, "0.5"])
def test_a_metric_that_is_no_number_is_refused(root: Path, value: object) -> None:
    path = root / "runs/demo/no_mpa/round-1/evaluate/metrics.json"
    change(path, lambda metrics: metrics["test"].update(srcc=value))
    with pytest.raises(StudyError, match=re.escape(f"{path}: srcc is {value!r}, which is no finite number; rerun the")):
        read(root)


def test_a_metric_that_is_null_has_no_value(root: Path) -> None:
    change(root / "runs/demo/no_mpa/round-1/evaluate/metrics.json", lambda metrics: metrics["test"].update(srcc=None))
    runs = read(root).runs.set_index(["method", "round"])["srcc"]
    assert math.isnan(runs[("no_mpa", 1)])
    assert runs.isna().sum() == 1


def test_a_missing_key_and_broken_json_are_refused(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-0/evaluate/metrics.json"
    change(path, lambda metrics: metrics["test"].pop("krcc"))
    with pytest.raises(StudyError, match=re.escape(f"{path}: no key 'krcc'; it has n, groups, srcc, plcc")):
        read(root)
    path.write_text("{")
    with pytest.raises(StudyError, match=re.escape(f"{path}: not valid JSON (")):
        read(root)


def test_a_missing_column_is_refused(root: Path) -> None:
    path = root / "runs/demo/dcmpln/round-0/evaluate/predictions.csv"
    path.write_text("image_id,generator,mos\na,b,1\n")
    with pytest.raises(StudyError, match=re.escape(f"{path}: no column 'group'; it has image_id, generator, mos. Run")):
        read(root)


def test_predictions_without_the_fit_are_to_be_evaluated_anew(root: Path) -> None:
    path = root / "runs/demo/dcmpln/round-0/evaluate/predictions.csv"
    pd.read_csv(path).drop(columns="fitted").to_csv(path, index=False)
    with pytest.raises(StudyError, match=re.escape(f"{path}: no column 'fitted'; it has image_id, ")) as caught:
        read(root)
    assert str(caught.value).endswith("Run `dvc repro`, which writes it anew")


def test_methods_tested_on_other_images_are_refused(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-1/evaluate/predictions.csv"
    table = pd.read_csv(path)
    table.loc[0, "image_id"] = "another.png"
    table.to_csv(path, index=False)
    message = f"{path}: other test images than clip_iqa in round 1 of demo (2 differ); rerun the older of the two"
    with pytest.raises(StudyError, match=re.escape(message)):
        read(root)


def test_rounds_of_two_backbones_are_refused(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-1/train/record.json"
    change(path, lambda record: record["backbone"].update(origin="random"))
    message = (
        "no_mpa on demo mixes 2 backbones over its rounds (demo-vit (in-house weights) 00000000 and demo-vit "
        "(random weights) 00000000): train its rounds anew with one of them"
    )
    with pytest.raises(StudyError, match=re.escape(message)):
        read(root)
    change(path, lambda record: record["backbone"].update(origin="in-house", weights_sha256="1" * 64))
    with pytest.raises(
        StudyError, match=re.escape("(demo-vit (in-house weights) 00000000 and demo-vit (in-house weights) 1")
    ):
        read(root)
    change(path, lambda record: record["backbone"].update(origin="borrowed"))
    message = f"{path}: backbone.origin is 'borrowed'; known are random, in-house, pretrained"
    with pytest.raises(StudyError, match=re.escape(message)):
        read(root)


def test_leaks_of_any_round_mark_the_method(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-1/train/record.json"
    change(path, lambda record: record.update(leaks=["epoch selected on test"]))
    leaks = summarise(read(root).runs).set_index("method")["leaks"]
    assert leaks.to_dict() == {"dcmpln": "", "no_mpa": "epoch selected on test", "shuffled": "", "clip_iqa": ""}


def test_the_audit_marks_what_a_record_does_not_admit(root: Path) -> None:
    change(root / "data/splits/demo/audit.json", lambda audit: audit["rounds"]["1"].update(shared_prompts=4))
    assert set(summarise(read(root).runs)["leaks"]) == {"test prompts or images shared"}
    for path in root.glob("runs/*/*/*/train/record.json"):
        change(path, lambda record: record.update(leaks=["random split"]))
    assert set(summarise(read(root).runs)["leaks"]) == {"random split"}


def test_generators_may_have_names_that_look_like_numbers_or_nothing(tmp_path: Path) -> None:
    make_study(tmp_path, methods=("dcmpln",), rounds=(0,), generators=("None", "NA", "15"))
    table = read(tmp_path, ("dcmpln",), (0,)).generators
    assert set(table["generator"]) == {"None", "NA", "15"}


def test_a_generator_without_srcc_stays_in_the_table(root: Path) -> None:
    path = root / "runs/demo/no_mpa/round-1/evaluate/metrics.json"
    change(path, lambda metrics: metrics["generator"]["gan"].update(srcc=None))
    table = read(root).generators
    assert table["srcc"].isna().sum() == 1
    change(path, lambda metrics: metrics["generator"].update(lost=metrics["generator"]["gan"]))
    message = f"{path}: generator 'lost' has no image in predictions.csv; rerun the evaluation"
    with pytest.raises(StudyError, match=re.escape(message)):
        read(root)


def test_only_what_reads_a_network_has_a_backbone(tmp_path: Path) -> None:
    pretrained = {"name": "ViT-B-32", "pretrained": "openai", "weights_sha256": "1", "origin": "pretrained"}
    make_study(tmp_path, methods=("dcmpln", "handcrafted"), rounds=(0,), backbone=pretrained)
    rows = read(tmp_path, ("dcmpln", "handcrafted"), (0,)).runs.set_index("method")
    assert rows["backbone"].to_dict() == {"dcmpln": "ViT-B-32 (openai weights)", "handcrafted": "none"}
    assert rows["backbone_origin"].to_dict() == {"dcmpln": "pretrained", "handcrafted": "none"}
