"""The MLflow store: where it is, how it is opened by one writer at a time, and what happens if it fails.

After one failure a process leaves the store alone until its end: what cannot be written once can seldom be written a
second later, and to find that out anew at every epoch would cost a training more than the mirror is worth.
"""

import logging
import os
import re
import sqlite3
import traceback
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from filelock import FileLock

from pipeline.errors import AgiqaError

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# MLflow reads these when it is imported or at every call. Whatever the user has set stays.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by default 7, each of 120 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of files that lie on this machine
}
GREETING = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}  # for a server's first answer
# Seconds to wait for another writer: by a training at an epoch, by a stage, and by somebody who asked for the mirror.
EPOCH_PATIENCE, PATIENCE, ASKED_PATIENCE = 10, 20, 120
ENGINE_TRIES = 4  # a second in all; MLflow's own ten take two minutes

# Whose code fails where a store does.
STORE_CODE = {"alembic", "mlflow", "requests", "sqlalchemy", "sqlite3", "urllib3"}
DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
SQLITE = "sqlite:///"


class StoreError(AgiqaError):
    """The store cannot be read or written; the one failure of a process, which its later calls repeat."""


_failed: dict[str, StoreError] = {}  # by URI
_told: set[StoreError] = set()


# The store


def tracking_uri(root: str | Path) -> str:
    """Return where MLflow writes: MLFLOW_TRACKING_URI if set, else mlflow.db in the repository's root.

    SQLAlchemy reads percent escapes in a database's path and takes what follows a question mark for options, so both
    signs are escaped, and nothing else: before it opens a database, MLflow makes its folder by the name in the URI.

    Args:
        root: Of the main repository. Under `dvc exp run --temp` and `dvc queue` that is not the working folder.
    """
    path = str(Path(root).resolve() / "mlflow.db").replace("%", "%25").replace("?", "%3F")
    return os.environ.get("MLFLOW_TRACKING_URI") or SQLITE + path


def shown(uri: str) -> str:
    """Return a store's URI without the user and password that it may hold."""
    return re.sub(r"//[^/@]+@", "//", uri)


@contextmanager
def open_store(root: str | Path, *, patience: float = PATIENCE) -> Iterator["MlflowClient"]:
    """Hand out a client of the store, created if need be, while no other process of ours writes to it.

    SQLite takes one writer, and fails at once where two that read both begin to write; so writers queue at a file lock.

    Args:
        root: Of the main repository; holds mlflow.db, mlartifacts/ and .work/mlflow.lock.
        patience: Seconds to wait for another writer.

    Raises:
        StoreError: If the store fails, in this block or by any call in it, or has failed before in this process.
    """
    root, uri = Path(root).resolve(), tracking_uri(root)
    if uri in _failed:
        raise _failed[uri].with_traceback(None)
    try:
        (root / ".work").mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".work" / "mlflow.lock", timeout=patience):
            yield client_of(uri)
    except Exception as error:
        if not of_store(error):
            raise
        _failed[uri] = _failure(uri, error)
        raise _failed[uri] from error


@cache
def client_of(uri: str) -> "MlflowClient":
    """Return a client of the store, which is created, or has answered, when this returns.

    Raises:
        Exception: Whatever MLflow raises about a store that it cannot open; `of_store` knows it.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it lists every one of sixty migrations
    for name in ("mlflow.store.db", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they tell is in the exception, too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of SQLAlchemy, about MLflow
        from mlflow import MlflowClient  # imported here: costs 3 s

        if not uri.startswith("http"):
            _mend_mlflow()
        # Named, or MLflow would take whatever registry this process, if it uses MLflow itself, has set for all.
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or uri
        if uri.startswith(SQLITE):
            path = Path(unquote(uri.removeprefix(SQLITE).partition("?")[0]))
            _create_database(path, uri)
            with _without_stray_folder(uri):
                client = MlflowClient(uri, registry_uri=registry)
                client.search_experiments(max_results=1)
            return client
        client = MlflowClient(uri, registry_uri=registry)
        with _environment(GREETING):
            client.search_experiments(max_results=1)
        return client


def _create_database(path: Path, uri: str) -> None:
    """Create an empty SQLite store under a side name first: one half made by a killed process cannot be repaired."""
    if path.exists() and path.stat().st_size:
        _check_database(path)
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # imported here: costs 1 s

    logger.info("creating the MLflow store %s (some seconds, once)", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    for leftover in (partial, partial.with_name(partial.name + "-journal")):
        leftover.unlink(missing_ok=True)
    with _without_stray_folder(uri):
        SqlAlchemyStore(uri.partition("?")[0] + ".partial", str(path.parent / "mlartifacts")).engine.dispose()
    partial.replace(path)


def _check_database(path: Path) -> None:
    """Raise StoreError if a file is no database of MLflow's, to which MLflow would say so in SQL, after minutes."""
    try:
        # rw: what a killed process has left half written is rolled back
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as connection:
            found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", None) not in DAMAGED:
            return  # such as a lock: MLflow waits for it
        raise StoreError(_no_database(path, error)) from error
    if not found[0]:
        raise StoreError(_no_database(path, "another program's tables"))


def _no_database(path: Path, reason: object) -> str:
    return f"{path} is no sound database of MLflow's ({reason}): delete it, and `make mirror` fills a new one"


def _mend_mlflow() -> None:
    """Let MLflow open a database from an installation whose path holds a percent sign, and give up on one soon.

    It hands that path to a ConfigParser, for which the sign must be doubled.
    """
    from mlflow.store.db import utils  # imported here: costs 1 s

    utils.MAX_RETRY_COUNT = ENGINE_TRIES
    folder = Path(utils.__file__).parents[1] / "db_migrations"
    if "%" not in str(folder):
        return

    def alembic_config(db_url: str, alembic_dir: str | None = None) -> Any:
        from alembic.config import Config  # imported here: costs a second, and few need it

        config = Config(folder / "alembic.ini")
        config.set_main_option("script_location", str(alembic_dir or folder).replace("%", "%%"))
        config.set_main_option("sqlalchemy.url", db_url.replace("%", "%%"))
        return config

    utils._get_alembic_config = alembic_config


@contextmanager
def _without_stray_folder(uri: str) -> Iterator[None]:
    """Remove the folder that MLflow makes for a database, where it has taken the path's escapes for its name."""
    literal = Path(uri.removeprefix(SQLITE)).parent
    made = [folder for folder in (literal, *literal.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in made:
            with suppress(OSError):  # not there, or in use
                folder.rmdir()


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables for a while, apart from those that the user has set."""
    ours = {key: value for key, value in values.items() if os.environ.get(key) == ENVIRONMENT[key]}
    os.environ.update(ours)
    try:
        yield
    finally:
        os.environ.update({key: ENVIRONMENT[key] for key in ours})


# Failures


def of_store(error: BaseException) -> bool:
    """Whether an error is the store's, by its kind or by whose code it passed; else it is a mistake in ours."""
    if isinstance(error, AgiqaError):
        return isinstance(error, StoreError)
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    passed = {
        str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _ in traceback.walk_tb(error.__traceback__)
    }
    return isinstance(error, OSError) or bool((kinds | passed) & STORE_CODE)


def _failure(uri: str, error: Exception) -> StoreError:
    """Return a store's failure in a line that says what to do, as far as that is known."""
    if isinstance(error, StoreError):
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, sqlite3.DatabaseError) and getattr(cause, "sqlite_errorcode", None) in DAMAGED:
            return StoreError(_no_database(Path(unquote(uri.removeprefix(SQLITE))), cause))
        cause = cause.__cause__ or cause.__context__
    return StoreError(f"the MLflow store {shown(uri)} fails: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """Return the beginning of an error's message: MLflow's may hold SQL, or a server's whole answer."""
    return shown(str(error).strip().partition("\n")[0][:300])


@contextmanager
def or_warn(what: str, *, strict: bool = False) -> Iterator[None]:
    """Turn a store's failure into a warning, one a process; a mistake in our own code stays an error."""
    try:
        yield
    except Exception as error:
        if strict or not of_store(error):
            raise
        if isinstance(error, StoreError):
            if error in _told:
                return
            _told.add(error)
        told = error if isinstance(error, StoreError) else f"{type(error).__name__}: {first_line(error)}"
        logger.warning(
            "MLflow does not show %s: %s. Nothing is lost, the files hold all of it, and this process tells MLflow no "
            "more; `python -m stages.mirror` adds it once the store can be written.",
            what, told,
        )  # fmt: skip
