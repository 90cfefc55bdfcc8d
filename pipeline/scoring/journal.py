"""What a long scoring has done so far, so that it goes on where it was killed."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from pipeline.errors import AgiqaError
from pipeline.scoring.gather import Item


class JournalError(AgiqaError):
    """A journal that belongs to another run."""


@dataclass(frozen=True)
class Row:
    """What came of one image.

    Attributes:
        image: Its path as the user wrote it.
        score: On the data set's MOS scale, or None.
        raw: Higher is better, or None.
        width, height: In pixels, or None.
        error: Why there is no score, or None.
        quality_map: The picture of its quality map, if one was asked for.
        low, high: Ends of the score's band, or None.
        unfamiliar: Whether the image is unlike those that the model was trained on, or None.
    """

    image: str
    score: float | None = None
    raw: float | None = None
    width: int | None = None
    height: int | None = None
    error: str | None = None
    quality_map: str | None = None
    low: float | None = None
    high: float | None = None
    unfamiliar: bool | None = None


class Journal:
    """Finished rows beside the output, so that a run that was killed goes on where it stopped."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Open the journal, or begin it.

        Args:
            path: The file.
            settings: All that scores depend on beside the images.

        Raises:
            JournalError: If it was written with other settings, or another run writes it now.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._stream: IO[bytes] = path.open("a+b")
        if not lock_descriptor(self._stream.fileno(), blocking=False):  # the system unlocks it when a run is killed
            self._stream.close()
            raise JournalError(f"{path}: another run writes to the same output; wait for it")
        self._rows: dict[tuple[str, tuple[int, int] | None], Row] = {}
        head = {"journal": 1, "settings": dict(settings)}
        good = self._read(head)
        self._stream.truncate(good)  # a line that was cut off by a kill
        if not good:
            self._write(head)
        self.resumed = len(self._rows)

    def _read(self, head: dict[str, Any]) -> int:
        """Take up the rows, and return how many bytes of the file are whole lines."""
        self._stream.seek(0)
        good = 0
        for number, line in enumerate(self._stream):
            if not line.endswith(b"\n"):
                break
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if number == 0 and entry != head:
                self._stream.close()
                raise JournalError(
                    f"{self.path} holds an unfinished run with another checkpoint or other settings: finish that one, "
                    "choose another output, or delete the file"
                )
            for row, state in zip(entry.get("rows", []), entry.get("states", []), strict=True):
                self._rows[row["image"], None if state is None else tuple(state)] = Row(**row)
            good += len(line)
        return good

    def _write(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry).encode() + b"\n")  # one write a block: whole, or not there
        self._stream.flush()

    def rows_of(self, block: Sequence[Item]) -> list[Row] | None:
        """Return a block's rows if all are there and no file has changed since, else None."""
        rows = [self._rows.get((item.path, journal_state(item.path))) for item in block]
        return None if None in rows else rows

    def add(self, rows: Sequence[Row], states: Sequence[tuple[int, int] | None]) -> None:
        """Keep a block's rows with their files' sizes and times, as they were when its turn came."""
        self._write({"rows": [asdict(row) for row in rows], "states": list(states)})

    def close(self, *, delete: bool) -> None:
        """Let go of the file; a finished run deletes it."""
        if delete:
            self.path.unlink()
        self._stream.close()


def journal_state(path: str) -> tuple[int, int] | None:
    """Return a file's size and time of change, by which a journal knows it again; None if it cannot be read."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns
