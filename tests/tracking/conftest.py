"""Roots of repositories with an empty MLflow store each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from made_runs import in_processes

from pipeline.tracking import store


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store made once, as that takes seconds, and by two processes at once, as `dvc queue start -j 2` may."""
    root = tmp_path_factory.mktemp("store")

    def make() -> None:
        with store.open_store(root) as client:
            assert client.search_experiments()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert in_processes(make, make) == [0, 0]
    assert sorted(path.name for path in root.iterdir()) == [".work", "mlflow.db"]
    return root / "mlflow.db"


@pytest.fixture
def make_root(empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Return a maker of repository roots with an empty store each."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def make(name: str) -> Path:
        root = tmp_path / name
        root.mkdir()
        shutil.copy(empty_store, root / "mlflow.db")
        return root

    return make


@pytest.fixture
def root(make_root: Callable[[str], Path]) -> Path:
    return make_root("a folder #1")  # a URI must not trip over its name
