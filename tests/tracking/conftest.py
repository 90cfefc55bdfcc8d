"""Roots of repositories with an empty MLflow store each."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from made_runs import in_processes

from pipeline.tracking import store


@pytest.fixture(autouse=True)
def _no_store_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a store's address in the environment, where MLflow writes it: later ones would use it."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = [os.environ.get(name) for name in names]
    yield
    assert [os.environ.get(name) for name in names] == before


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store made once, as that takes seconds, and by two processes at once, as `dvc queue start -j 2` may."""
    root = tmp_path_factory.mktemp("store")

    def make() -> None:
        with store.open_store(root, patience=store.ASKED_PATIENCE) as client:  # a busy machine takes its time
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
