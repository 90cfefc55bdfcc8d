"""pipeline.registration: which checkpoint becomes the champion, and that it is registered once."""

from pathlib import Path

import pytest

from pipeline.serving import register


def test_every_data_set_with_a_clean_variant_has_its_champion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for run, srcc in (("demo/dcmpln/round-0", 0.5), ("demo/dcmpln/round-1", 0.7), ("demo/old/round-0", 0.9)):
        folder = tmp_path / "runs" / run / "train"
        (folder / "checkpoints").mkdir(parents=True)
        method = run.split("/")[1]
        (folder / "record.json").write_text(
            f'{{"dataset": "demo", "method": "{method}", "kind": "variant", "leaks": [], "shuffled_labels": false, '
            '"selected_epoch": 1}'
        )
        (folder / "history.csv").write_text(f"epoch,validation_srcc\n1,{srcc}\n")
        (folder / "checkpoints" / "epoch-001.safetensors").touch()
    given = []
    monkeypatch.setattr(register, "log_champion", lambda *words: given.append(words) or "3")
    names = {"demo/dcmpln/round-0", "demo/dcmpln/round-1"}  # what an earlier study left behind is no candidate
    found = register.register_champions("root", "study", ["demo", "bare"], names, folder=tmp_path)
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
