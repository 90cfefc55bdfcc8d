"""Costs: spans that are known, and the rule of load on made numbers."""

import time

import pytest

from pipeline import costs
from pipeline.costs import Spent, Stopwatch, an_image, charged, total, under_load


@pytest.mark.parametrize(
    ("seconds", "cpu_seconds", "load", "cores", "on_cpu", "expected"),
    [
        (10, 19, 2.0, 2, True, False),  # two threads at work on two idle cores
        (10, 9.9, 1.0, 2, True, False),  # one thread: serial work is no load
        (10, 19, 2.5, 2, True, False),  # a study's own stage before this one, and DVC
        (10, 13, 2.6, 2, True, True),  # a third task wants a core
        (10, 19, 3.17, 2, True, True),
        (10, 150, 18.0, 16, True, False),
        (10, 7.9, 0.1, 2, True, True),  # it cannot have had a core to itself
        (10, 8.1, 0.1, 2, True, False),
        (0.4, 0.01, 0.1, 2, True, False),  # the first look at a file
        (10, 3, 0.1, 2, False, False),  # it waits for a GPU
        (10, 3, 3.0, 2, False, True),  # and for others
    ],
)
def test_load_is_more_tasks_than_cores_or_a_clock_that_runs_away(
    seconds: float, cpu_seconds: float, load: float, cores: int, on_cpu: bool, expected: bool
) -> None:
    assert under_load(seconds, cpu_seconds, load, cores, on_cpu=on_cpu) is expected


def test_a_stopwatch_tells_waiting_from_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "load_average", lambda: 0.0)
    watch = Stopwatch()
    time.sleep(0.6)
    waited = watch.read()
    assert waited.seconds >= 0.6
    assert waited.cpu_seconds < 0.3
    assert waited.under_load
    assert not watch.read(on_cpu=False).under_load
    watch, end = Stopwatch(), time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert watch.read().cpu_seconds == pytest.approx(0.2, abs=0.1)


def test_the_higher_load_of_both_ends_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs.os, "cpu_count", lambda: 2)
    loads = iter([0.3, 4.0, 4.0, 0.3])
    monkeypatch.setattr(costs, "load_average", lambda: next(loads))
    assert Stopwatch().read().under_load
    assert Stopwatch().read().under_load


def test_a_system_without_load_averages_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> tuple[float, float, float]:
        raise OSError

    monkeypatch.setattr(costs.os, "getloadavg", unknown)
    assert costs.load_average() == 0.0


def test_epochs_add_up_and_one_under_load_is_enough() -> None:
    rows = [{"epoch": k, "seconds": 2.0, "cpu_seconds": 3.0, "under_load": 0} for k in (1, 2)]
    assert total(rows) == (4.0, 6.0, False)
    assert total([*rows, {"seconds": 1.0, "cpu_seconds": 1.0, "under_load": 1}]) == (5.0, 7.0, True)


def test_a_charge_is_never_below_the_features_that_it_is_for() -> None:
    features = an_image(Spent(30.0, 55.0, False), 10)
    assert (features["seconds_per_image"], features["cpu_seconds_per_image"]) == (3.0, 5.5)
    assert features["peak_memory_mb"] > 5
    assert charged(Spent(0.5, 0.25, False), 4, features) == (12.5, 22.25, False)
    assert charged(Spent(0.5, 0.25, False), 4, features | {"under_load": True}).under_load
    assert charged(Spent(0.5, 0.25, False), 0, features | {"under_load": True}) == (0.5, 0.25, False)
