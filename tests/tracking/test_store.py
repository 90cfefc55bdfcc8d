"""The MLflow store: one writer at a time, and a store that fails, as trainings see it."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import (
    ABOUT,
    HISTORY,
    STUDY,
    TIMING,
    content_of,
    in_processes,
    make_record,
    runs_of,
    train_live,
    write_train,
    write_weights,
)

from pipeline.tracking import entries, live, mirror, store


def test_a_store_that_cannot_be_written_stops_no_training(
    make_root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_root("b")
    (root / "file").write_text("")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'file' / 'folder' / 'mlflow.db'}")
    record = make_record()
    run_id = live.start_run(root, STUDY, record, ABOUT)
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    live.log_epoch(root, run_id, HISTORY[0], TIMING[0], write_weights(root / "work", record, 1))
    run_dir = write_train(root, record, run_id)
    live.finish_run(root, STUDY, run_dir / "train")
    warned = [message for message in caplog.messages if message.startswith("MLflow does not show")]
    assert len(warned) == 3
    assert warned[0].startswith("MLflow does not show the run demo/dcmpln/round-0: NotADirectoryError: ")
    assert warned[0].endswith(
        "Nothing is lost, the files hold all of it; `python -m stages.mirror` adds it once the store can be written."
    )
    with pytest.raises(NotADirectoryError):
        mirror.mirror(root, STUDY, root / "runs", strict=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirror.mirror(root, STUDY, root / "runs", strict=True)["epochs"] == 3
    assert runs_of(root)["demo/dcmpln/round-0"].data.tags[entries.RUN_ID] == run_id


def test_two_processes_fill_one_store(root: Path) -> None:
    one, two = make_record(method="one"), make_record(method="two")
    assert in_processes(lambda: train_live(root, one), lambda: train_live(root, two)) == [0, 0]
    shown = content_of(root)
    assert sorted(shown) == ["demo/one/round-0", "demo/two/round-0", STUDY]
    assert [len(run["models"]) for _, run in sorted(shown.items())] == [3, 3, 0]
    assert shown["demo/two/round-0"]["metrics"]["val_srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]


def test_logging_of_others_is_left_alone(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train_live(root, make_record())
    assert logging.getLogger().level == logging.WARNING
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""


def test_the_store_lies_in_the_root_unless_the_user_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert store.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_a_mistake_in_our_own_code_is_no_warning() -> None:
    with pytest.raises(KeyError), store.or_warn("nothing"):
        raise KeyError("ours")
