"""The champion is chosen on validation numbers alone, among clean runs."""

import re
from pathlib import Path

import pytest

from pipeline import layout
from pipeline.files import write_json
from pipeline.study import runs
from pipeline.study.champion import ChampionError, find_champion


def run(
    root: Path, dataset: str, variant: str, number: int, srcc: list[float], selected: int = 1, **changed: object
) -> Path:
    folder = root / layout.run_folder(dataset, variant, number) / "train"
    record = {
        "dataset": dataset, "method": variant, "kind": "variant", "leaks": [], "shuffled_labels": False,
        "selected_epoch": selected, **changed,
    }  # fmt: skip
    write_json(folder / "record.json", record)
    rows = [{"epoch": epoch, "validation_srcc": value} for epoch, value in enumerate(srcc, 1)]
    runs.write_table(folder / "history.csv", rows)
    checkpoint = layout.checkpoint_path(folder, selected)
    checkpoint.parent.mkdir()
    checkpoint.touch()
    return checkpoint


def test_the_best_selected_epoch_of_a_clean_run_wins(tmp_path: Path) -> None:
    run(tmp_path, "demo", "clip_agiqa", 0, [0.5])
    best = run(tmp_path, "demo", "dcmpln", 0, [0.2, 0.7, 0.6], selected=2)
    run(tmp_path, "demo", "dcmpln", 1, [0.3, 0.69], selected=2)
    run(tmp_path, "demo", "main_only", 0, [0.4, 0.9])  # its best epoch is not the selected one
    run(tmp_path, "demo", "no_mpa", 0, [0.99], leaks=["epoch selected on test"])
    run(tmp_path, "demo", "shuffled", 0, [0.99], shuffled_labels=True)
    run(tmp_path, "demo", "handcrafted", 0, [0.99], kind="baseline")
    run(tmp_path, "demo", "no_adapter", 0, [0.99]).unlink()
    assert find_champion(tmp_path) == best
    assert find_champion(tmp_path, "demo") == best
    assert find_champion(tmp_path, "demo", {"demo/clip_agiqa/round-0"}).parents[3].name == "clip_agiqa"


def test_several_data_sets_want_a_name(tmp_path: Path) -> None:
    with pytest.raises(ChampionError, match="holds no trained model, so there is no champion: run the study"):
        find_champion(tmp_path)
    run(tmp_path, "demo", "dcmpln", 0, [0.5])
    other = run(tmp_path, "photos", "dcmpln", 0, [0.4])
    with pytest.raises(ChampionError, match="models of 2 data sets: say which champion, auto:demo or auto:photos"):
        find_champion(tmp_path)
    assert find_champion(tmp_path, "photos") == other
    with pytest.raises(ChampionError, match=re.escape("no model of data set 'x'; it has: demo, photos")):
        find_champion(tmp_path, "x")
