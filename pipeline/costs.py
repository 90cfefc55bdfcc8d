"""What a computation cost: seconds on the clock and of processors, its memory, and whether the machine was under load.

Seconds on the clock are what one waits, and tell of the machine's other work as well; seconds of processors hardly do,
so both stand side by side, and where other work must have stretched the clock, that is said.
"""

import os
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

SLACK = 1.25  # how far above its bound a figure must be before it counts: a study's own stages come close to both
LEAST_SECONDS = 0.5  # on the clock; in a shorter span the first look at a file weighs more than any other work


class Spent(NamedTuple):
    """What one span of a process took.

    Attributes:
        seconds: On the clock.
        cpu_seconds: Of processors, user and system, all threads of the process.
        under_load: Whether the machine was busy with other work meanwhile; see `under_load`.
    """

    seconds: float
    cpu_seconds: float
    under_load: bool


class Stopwatch:
    """Runs from the moment it is made."""

    def __init__(self) -> None:
        self._load = load_average()
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def read(self, *, on_cpu: bool = True) -> Spent:
        """Return what was spent so far.

        Args:
            on_cpu: Whether processors did the work; a process that waits for a GPU is not under load for that.
        """
        seconds, cpu_seconds = time.perf_counter() - self._clock, time.process_time() - self._cpu
        load = max(self._load, load_average())
        return Spent(seconds, cpu_seconds, under_load(seconds, cpu_seconds, load, os.cpu_count() or 1, on_cpu=on_cpu))


def load_average() -> float:
    """Return how many tasks wanted a processor, on average of the last minute; 0 where the system does not tell."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def under_load(seconds: float, cpu_seconds: float, load: float, cores: int, *, on_cpu: bool = True) -> bool:
    """Return whether a span's seconds on the clock tell of other work on the machine.

    They do if more tasks wanted a processor than there are (`load` above SLACK x `cores`), or if the process cannot
    have had a processor to itself: at work it keeps one busy at least, so a clock that ran longer than SLACK x
    `cpu_seconds` shows that it waited, for processors or for a disk. Other threads of its own are no bound here, since
    parts of every computation run on one.

    Args:
        seconds: On the clock.
        cpu_seconds: Of processors.
        load: The higher of the load averages at both ends.
        cores: Of the whole machine, as the load average is.
        on_cpu: As `Stopwatch.read`.
    """
    waited = on_cpu and seconds >= LEAST_SECONDS and seconds > SLACK * cpu_seconds
    return load > SLACK * cores or waited


def total(spans: Sequence[Mapping[str, Any]]) -> Spent:
    """Return several spans as one, such as the rows of timing.csv; under load if one of them was."""
    return Spent(
        sum(float(span["seconds"]) for span in spans),
        sum(float(span["cpu_seconds"]) for span in spans),
        any(bool(span["under_load"]) for span in spans),
    )


def an_image(spent: Spent, images: int) -> dict[str, Any]:
    """Return a pass over so many images as its cost an image, beside the process's peak of memory so far."""
    return {
        "seconds_per_image": spent.seconds / images,
        "cpu_seconds_per_image": spent.cpu_seconds / images,
        "under_load": spent.under_load,
        "peak_memory_mb": peak_memory_mb(),
    }


def charged(spent: Spent, images: int, features: Mapping[str, Any]) -> Spent:
    """Return what a method costs by itself: its own span, and the features of so many images that it reads.

    Args:
        spent: Its own.
        images: Whose features it reads.
        features: From `an_image`, of the pass that made them.
    """
    return Spent(
        spent.seconds + images * features["seconds_per_image"],
        spent.cpu_seconds + images * features["cpu_seconds_per_image"],
        spent.under_load or (images > 0 and features["under_load"]),
    )


def peak_memory_mb() -> float:
    """Return the most memory that this process has held so far, in MB (2**20 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
