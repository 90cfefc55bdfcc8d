"""The champion is chosen on validation numbers alone, among clean runs."""

import json
import re
from pathlib import Path

import pytest

from pipeline import layout
from pipeline.files import write_json
from pipeline.study import runs
from pipeline.study.champion import ChampionError, choose_champions, find_champion, finished_champions


def run(
    root: Path, dataset: str, variant: str, number: int, srcc: list[float], selected: int = 1, **changed: object
) -> Path:
    folder = root / layout.run_folder(dataset, variant, number) / "train"
    record = {
        "dataset": dataset, "method": variant, "kind": "variant", "leaks": [], "shuffled_labels": False,
        "selected_epoch": selected, "checkpoint_md5": f"of {srcc}", "validation": None, **changed,
    }  # fmt: skip
    write_json(folder / "record.json", record)
    rows = [{"epoch": epoch, "validation_srcc": value} for epoch, value in enumerate(srcc, 1)]
    runs.write_table(folder / "history.csv", rows)
    checkpoint = layout.checkpoint_path(folder, selected)
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    return checkpoint


def test_the_best_selected_epoch_of_a_clean_run_wins(tmp_path: Path) -> None:
    run(tmp_path, "demo", "clip_agiqa", 0, [0.5])
    best = run(tmp_path, "demo", "dcmpln", 0, [0.2, 0.7, 0.6], selected=2)
    run(tmp_path, "demo", "dcmpln", 1, [0.3, 0.69], selected=2)
    run(tmp_path, "demo", "main_only", 0, [0.4, 0.9])  # its best epoch is not the selected one
    run(tmp_path, "demo", "no_mpa", 0, [0.99], leaks=["epoch selected on test"])
    run(tmp_path, "demo", "shuffled", 0, [0.99], shuffled_labels=True)
    run(tmp_path, "demo", "lucky", 0, [0.8])
    run(tmp_path, "demo", "lucky", 1, [0.5])  # the best run, and not the best method
    run(tmp_path, "demo", "no_adapter", 0, [0.99]).unlink()
    assert find_champion(tmp_path) == best
    assert find_champion(tmp_path, "demo") == best
    assert find_champion(tmp_path, "demo", {"demo/clip_agiqa/round-0"}).parents[3].name == "clip_agiqa"
    baseline = run(tmp_path, "demo", "handcrafted", 0, [0.71], kind="baseline")
    assert find_champion(tmp_path) == baseline
    assert find_champion(tmp_path, method="dcmpln") == find_champion(tmp_path, "demo", method="dcmpln") == best


def test_a_method_that_is_not_there_or_leaks_is_told(tmp_path: Path) -> None:
    run(tmp_path, "demo", "dcmpln", 0, [0.5])
    run(tmp_path, "demo", "shuffled", 0, [0.9], shuffled_labels=True)
    for method in ("shuffled", "linear_probe"):
        with pytest.raises(
            ChampionError, match=f"no model of method '{method}' that may score; it has runs of: dcmpln, "
        ):
            find_champion(tmp_path, "demo", method=method)


def test_all_windows_count_where_the_record_has_them(tmp_path: Path) -> None:
    """The history's numbers come from few windows an image."""
    run(tmp_path, "demo", "dcmpln", 0, [0.9], validation={"srcc": 0.4, "plcc": None})
    best = run(tmp_path, "demo", "clip_agiqa", 0, [0.1], validation={"srcc": 0.5})
    assert find_champion(tmp_path) == best


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


def finish(root: Path, *names: str) -> None:
    chosen = choose_champions(root, ["demo", "photos"], {f"demo/{name}/round-0" for name in names})
    write_json(root / layout.CHAMPIONS, chosen)


def test_auto_is_the_choice_of_the_finished_study(tmp_path: Path) -> None:
    run(tmp_path, "demo", "clip_agiqa", 0, [0.5])
    best = run(tmp_path, "demo", "dcmpln", 0, [0.7])
    run(tmp_path, "demo", "old", 0, [0.99])  # left behind by a study that had it
    run(tmp_path, "other", "old", 0, [0.99])
    finish(tmp_path, "clip_agiqa", "dcmpln")
    assert json.loads((tmp_path / "reports/champions.json").read_text()) == {
        "demo": {
            "run": "demo/dcmpln/round-0", "selected_epoch": 1, "checkpoint_md5": "of [0.7]", "validation_srcc": 0.7
        }
    }  # fmt: skip
    assert finished_champions(tmp_path) == {"demo": best}
    assert find_champion(tmp_path) == find_champion(tmp_path, "demo") == best
    assert find_champion(tmp_path, "other").parents[3].name == "old"


def test_a_champion_that_was_trained_anew_is_none_until_the_study_has_ended(tmp_path: Path) -> None:
    best = run(tmp_path, "demo", "dcmpln", 0, [0.7])
    other = run(tmp_path, "demo", "clip_agiqa", 0, [0.5])
    finish(tmp_path, "clip_agiqa", "dcmpln")
    run(tmp_path, "demo", "dcmpln", 0, [0.4])
    assert finished_champions(tmp_path) == {}
    assert find_champion(tmp_path) == other
    finish(tmp_path, "clip_agiqa", "dcmpln")
    assert finished_champions(tmp_path) == {"demo": other}
    other.unlink()
    assert finished_champions(tmp_path) == {}
    assert find_champion(tmp_path) == best


@pytest.mark.parametrize("text", ["{", "[]", '{"demo": {}}', '{"demo": 3}'])
def test_a_damaged_choice_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports/champions.json").write_text(text)
    with pytest.raises(ChampionError, match=r"reports/champions\.json is damaged \(.*\): `dvc repro` writes it anew$"):
        find_champion(tmp_path)
