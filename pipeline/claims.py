"""One writer an output at a time, and none that outlives the `dvc repro` or the launcher that started it.

A repro that is killed can leave its stage at work. Such an orphan would end after the next repro's stage, put an old
result in the place of the new one, and nobody would see it. So a stage ends when its DVC is gone, and whoever writes an
output holds its lock from the beginning to the end.
"""

import hashlib
import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish", "busybox"}
EVERY = 0.5  # seconds between two looks at the parent
SAY_AFTER = 2.0  # seconds of waiting before it is said
GONE = 143  # exit status of a stage whose DVC is gone, as after SIGTERM


@contextmanager
def claim(out: str | Path) -> Iterator[None]:
    """Be the only writer of an output until the block ends; wait for another one to end.

    Claims of one process nest. They end with the process, however it ends.

    Args:
        out: File or folder. The lock lies in .work/locks of the working folder, or, for an output outside of it, among
            the machine's temporary files.
    """
    path = Path(out).resolve()
    base = Path.cwd().resolve()
    if path.is_relative_to(base):
        place, name = base / ".work" / "locks", path.relative_to(base).as_posix()
    else:
        place, name = Path(tempfile.gettempdir(), f"agiqa-locks-{os.getuid()}"), path.as_posix()
    place.mkdir(parents=True, exist_ok=True)
    short = re.sub(r"[^A-Za-z0-9.-]+", "_", name)[-80:]
    with alone(place / f"{short}-{hashlib.sha256(name.encode()).hexdigest()[:10]}.lock", out):
        yield


@contextmanager
def alone(lock_file: Path, what: object) -> Iterator[None]:
    """Hold a lock until the block ends, alone among processes; say so where another one has to end first.

    Args:
        lock_file: Its folder is there. Locks of one process nest.
        what: That nobody else writes meanwhile.
    """
    lock = FileLock(lock_file, is_singleton=True)
    try:
        lock.acquire(timeout=SAY_AFTER)
    except Timeout:
        logger.warning("another process writes %s: waiting until it ends", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def end_with_parent() -> None:
    """Let this process end soon after the DVC, or the launcher of several processes, that runs it, if one does.

    DVC says so by the environment variable DVC_ROOT, torch's launcher by TORCHELASTIC_RUN_ID. DVC runs a stage through
    a shell, which may or may not stand in between; whichever ancestor dies first, the stage ends. A stage that is run
    by hand is its caller's own affair.
    """
    launched = "TORCHELASTIC_RUN_ID" in os.environ
    if not launched and "DVC_ROOT" not in os.environ:
        return
    parent = "launcher" if launched else "dvc"
    import psutil  # imported here: a process without DVC need not have it

    watched = []
    for ancestor in psutil.Process().parents():
        watched.append(ancestor)
        if ancestor.name() not in SHELLS:
            break

    def gone(process: psutil.Process) -> bool:
        try:
            return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def watch() -> None:
        while not any(gone(process) for process in watched):
            time.sleep(EVERY)
        said = f"error: the {parent} that ran this stage is gone, and so is its wish for the result: stopping\n"
        if not launched or os.environ.get("RANK") == "0":  # of several processes, one says it
            os.write(2, said.encode())
        os._exit(GONE)

    threading.Thread(target=watch, name="end with parent", daemon=True).start()
