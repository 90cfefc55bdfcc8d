"""Which checkpoint becomes the champion, and that it is registered once."""

from pathlib import Path

import pytest

from pipeline import layout
from pipeline.files import write_json
from pipeline.serving import register
from pipeline.study import runs


def test_every_data_set_with_a_clean_variant_has_its_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for method, number, srcc, changes in (
        ("dcmpln", 0, 0.5, {}),
        ("dcmpln", 1, 0.7, {}),
        ("leaking", 0, 0.9, {"leaks": ["epoch selected on test"]}),
        ("shuffled", 0, 0.9, {"shuffled_labels": True}),
        ("old", 0, 0.9, {}),
    ):
        folder = tmp_path / layout.run_folder("demo", method, number) / "train"
        record = {"dataset": "demo", "method": method, "kind": "variant", "leaks": [], "shuffled_labels": False}
        write_json(folder / "record.json", {**record, "selected_epoch": 1, **changes})
        runs.write_table(folder / "history.csv", [{"epoch": 1, "validation_srcc": srcc}])
        layout.checkpoint_path(folder, 1).parent.mkdir()
        layout.checkpoint_path(folder, 1).touch()
    given = []
    monkeypatch.setattr(register, "log_champion", lambda *words: given.append(words) or "3")
    names = {f"demo/{run}" for run in ("dcmpln/round-0", "dcmpln/round-1", "leaking/round-0", "shuffled/round-0")}
    found = register.register_champions(
        "root", "study", ["demo", "bare"], names, folder=tmp_path
    )  # `old` is of another study
    assert found == {"agiqa-demo": "3"}
    assert [words[:3] for words in given] == [("root", "study", tmp_path / "runs/demo/dcmpln/round-1/train")]


def test_a_store_that_cannot_be_written_is_a_warning_or_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(register, "find_champion", lambda *words: tmp_path / "train/checkpoints/epoch-001.x")

    def fails(*words: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(register, "log_champion", fails)
    assert register.register_champions(tmp_path, "study", ["demo"], set()) == {}
    assert "the champion of demo" in caplog.text
    with pytest.raises(OSError, match="no space left"):
        register.register_champions(tmp_path, "study", ["demo"], set(), strict=True)
