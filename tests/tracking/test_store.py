"""The MLflow store: one writer at a time, and a store that fails, as trainings see it."""

import logging
import os
import re
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT
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

from pipeline.errors import AgiqaError
from pipeline.tracking import entries, live, mirror, store


def train_without_store(root: Path) -> str:
    """Do all that a training tells MLflow, and return the run's id."""
    record = make_record()
    run_id = live.start_run(root, STUDY, record, ABOUT)
    assert re.fullmatch("[0-9a-f]{32}", run_id)
    for row, timing in zip(HISTORY, TIMING, strict=True):
        live.log_epoch(root, run_id, row, timing, write_weights(root / "work", record, int(row["epoch"])))
    live.finish_run(root, STUDY, write_train(root, record, run_id) / "train")
    return run_id


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_store_that_cannot_be_written_stops_no_training(
    make_root: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_root("b")
    (root / "file").write_text("")
    uri = f"sqlite:///{root / 'file' / 'folder' / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_id = train_without_store(root)
    (message,) = warned(caplog)
    assert message.startswith(
        f"MLflow does not show the run demo/dcmpln/round-0: the MLflow store {uri} fails: NotADirectoryError: "
    )
    assert message.endswith(
        "Nothing is lost, the files hold all of it, and this process tells MLflow no more; `python -m stages.mirror` "
        "adds it once the store can be written."
    )
    with pytest.raises(store.StoreError, match="fails: NotADirectoryError: "):
        mirror.mirror(root, STUDY, root / "runs", strict=True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert mirror.mirror(root, STUDY, root / "runs", strict=True)["epochs"] == 3
    assert runs_of(root)["demo/dcmpln/round-0"].data.tags[entries.RUN_ID] == run_id


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Return the address of a server that takes every connection and never answers."""
    taken = []

    def take(server: socket.socket) -> None:
        while True:
            try:
                taken.append(server.accept()[0])
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=take, args=(server,), daemon=True).start()
        yield f"http://me:secret@127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    for connection in taken:
        connection.close()


@pytest.mark.slow
def test_a_server_that_never_answers_costs_seconds_once(
    tmp_path: Path, silent_server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow  # noqa: F401 (its seconds are not the server's)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    for name in store.GREETING:
        monkeypatch.setenv(name, store.ENVIRONMENT[name])
    begun = time.monotonic()
    train_without_store(tmp_path)
    assert time.monotonic() - begun < 15  # of three epochs, a beginning and an end
    (message,) = warned(caplog)
    assert "MLflow does not show the run demo/dcmpln/round-0: the MLflow store http://127.0.0.1:" in message
    assert "secret" not in message
    assert "\n" not in message


def test_another_writer_that_never_ends_costs_its_wait_once(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    record = make_record()
    run_id = live.start_run(root, STUDY, record, ABOUT)
    monkeypatch.setattr(live, "EPOCH_PATIENCE", 0.5)
    hold = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]): print(flush=True); time.sleep(600)"
    words = [sys.executable, "-c", hold, str(root / ".work" / "mlflow.lock")]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        begun = time.monotonic()
        for row, timing in zip(HISTORY, TIMING, strict=True):
            live.log_epoch(root, run_id, row, timing, write_weights(root / "work", record, int(row["epoch"])))
        live.finish_run(root, STUDY, write_train(root, record, run_id) / "train")
        assert time.monotonic() - begun < 10
        holder.kill()
    (message,) = warned(caplog)
    assert message.startswith(f"MLflow does not show epoch 1 of run {run_id}: ")
    assert "fails: Timeout: The file lock" in message
    assert store.EPOCH_PATIENCE < store.PATIENCE <= 20 < store.ASKED_PATIENCE


def garbage(path: Path) -> None:
    path.write_bytes(b"no database at all " * 500)


def of_another_program(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE cookies (name TEXT)")


def overwritten(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (garbage, "file is not a database"),
        (of_another_program, "another program's tables"),
        (overwritten, "database disk image is malformed"),
    ],
)
def test_a_database_that_is_none_says_what_to_delete(
    root: Path, damage: Callable[[Path], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = root / "mlflow.db"
    damage(path)
    begun = time.monotonic()
    train_without_store(root)
    assert time.monotonic() - begun < 20
    (message,) = warned(caplog)
    advice = f"{path} is no sound database of MLflow's ({reason}): delete it, and `make mirror` fills a new one"
    assert f"MLflow does not show the run demo/dcmpln/round-0: {advice}. Nothing is lost" in message
    with pytest.raises(store.StoreError, match=f"^{re.escape(advice)}$"):
        mirror.mirror(root, STUDY, root / "runs", strict=True)


@pytest.mark.slow
def test_an_empty_file_becomes_a_database(root: Path) -> None:
    (root / "mlflow.db").write_bytes(b"")
    with store.open_store(root) as client:
        assert client.search_experiments()


@pytest.mark.parametrize("name", ["feature%2Fx", "what?", "my studies", "a #1", "größe@home [2]"])
def test_a_folder_may_have_any_name(make_root: Callable[[str], Path], name: str) -> None:
    folder = make_root(name)
    train_live(folder, make_record())
    shown = content_of(folder)["demo/dcmpln/round-0"]
    assert shown["metrics"]["val/srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]
    assert len(shown["models"]) == 3
    assert sorted(path.name for path in folder.parent.iterdir()) == [name]  # nor does a like-named folder lie beside it
    held = sorted(path.name for path in folder.iterdir())
    assert held == [".work", "mlartifacts", "mlflow.db", "runs", "work"]


@pytest.mark.slow
@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="needs a virtual environment")
def test_mlflow_may_be_installed_in_a_folder_with_a_percent_sign(tmp_path: Path) -> None:
    root = tmp_path / "feature%2Fx"
    root.mkdir()
    (root / ".venv").symlink_to(sys.prefix)
    code = (
        "import sys; from pipeline.tracking import store\n"
        "with store.open_store(sys.argv[1]) as client: print(len(client.search_experiments()))"
    )
    words = [root / ".venv" / "bin" / "python", "-c", code, root]
    # MLflow leaves its address in the environment where another test has set one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["feature%2Fx"]


def test_two_processes_fill_one_store(root: Path) -> None:
    one, two = make_record(method="one"), make_record(method="two")
    assert in_processes(lambda: train_live(root, one), lambda: train_live(root, two)) == [0, 0]
    shown = content_of(root)
    assert sorted(shown) == ["demo/one/round-0", "demo/two/round-0", STUDY]
    assert [len(run["models"]) for _, run in sorted(shown.items())] == [3, 3, 0]
    assert shown["demo/two/round-0"]["metrics"]["val/srcc"] == [(1, 0.4), (2, 0.8), (3, 0.6)]


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
    assert store.tracking_uri("/a 100%/b?#") == "sqlite:////a 100%25/b%3F#/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert store.tracking_uri(tmp_path) == "http://127.0.0.1:5000"


def test_a_mistake_in_our_own_code_is_no_warning() -> None:
    with pytest.raises(KeyError), store.or_warn("nothing"):
        raise KeyError("ours")
    with pytest.raises(AgiqaError), store.or_warn("nothing"):
        raise AgiqaError("the user's")


def test_whatever_the_stores_client_raises_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Python's own errors too, where they come out of its code."""
    from alembic.config import Config

    with store.or_warn("it"):
        Config().set_main_option("a", "50%")
    assert "MLflow does not show it: ValueError: invalid interpolation syntax in '50%'" in caplog.text
