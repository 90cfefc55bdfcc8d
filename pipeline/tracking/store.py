"""The MLflow store: where it is, how it is opened by one writer at a time, and what happens if it cannot be."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# MLflow reads these when it is imported. Whatever the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default of 7 would hold up a training for minutes at every epoch
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of files that lie on this machine
}
LOCK_SECONDS = 120


# The store


def tracking_uri(root: str | Path) -> str:
    """Return where MLflow writes: MLFLOW_TRACKING_URI if set, else mlflow.db in the repository's root.

    Args:
        root: Of the main repository. Under `dvc exp run --temp` and `dvc queue` that is not the working folder.
    """
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(root).resolve() / 'mlflow.db'}"


@contextmanager
def open_store(root: str | Path) -> Iterator["MlflowClient"]:
    """Hand out a client of the store, created if need be, while no other process of ours writes to it.

    SQLite takes one writer, and fails at once where two that read both begin to write; so writers queue at a file lock.

    Args:
        root: Of the main repository; holds mlflow.db, mlartifacts/ and .work/mlflow.lock.

    Raises:
        OSError: If the lock is not free within two minutes, or a file cannot be written.
        Exception: Whatever MLflow raises about a store that it cannot open.
    """
    root = Path(root).resolve()
    (root / ".work").mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".work" / "mlflow.lock", timeout=LOCK_SECONDS):
        client = client_of(tracking_uri(root))
        if isinstance(client, Exception):
            raise client
        yield client


@cache  # one try a process: MLflow spends minutes on retries before it gives up on a database
def client_of(uri: str) -> "MlflowClient | Exception":
    """Return a client of the store, or what kept it from opening; asked once a process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it lists every one of sixty migrations
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy, about MLflow
        from mlflow import MlflowClient  # imported here: costs 3 s

        try:
            if uri.startswith("sqlite:///"):
                _create_database(Path(uri.removeprefix("sqlite:///")))
            # Named, or MLflow would take whatever registry this process, if it uses MLflow itself, has set for all.
            return MlflowClient(uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)
        except Exception as error:  # raised by every later call, too
            return error


def _create_database(path: Path) -> None:
    """Create an empty SQLite store under a side name first: one half made by a killed process cannot be repaired."""
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # imported here: costs 1 s

    logger.info("creating the MLflow store %s (some seconds, once)", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    for leftover in (partial, partial.with_name(partial.name + "-journal")):
        leftover.unlink(missing_ok=True)
    SqlAlchemyStore(f"sqlite:///{partial}", str(path.parent / "mlartifacts")).engine.dispose()
    partial.replace(path)


@contextmanager
def or_warn(what: str, *, strict: bool = False) -> Iterator[None]:
    """Turn a store's failure into a warning; a mistake in our own code stays an error."""
    try:
        yield
    except Exception as error:
        kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
        if strict or not (isinstance(error, OSError) or kinds & {"mlflow", "sqlalchemy", "alembic"}):
            raise
        logger.warning(
            "MLflow does not show %s: %s: %s. Nothing is lost, the files hold all of it; "
            "`python -m stages.mirror` adds it once the store can be written.",
            what, type(error).__name__, str(error).strip().partition("\n")[0][:300],
        )  # fmt: skip
