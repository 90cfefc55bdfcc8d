"""Measuring: what a clock of our own says, and that each part of the real work is timed."""

from pathlib import Path

import pytest
from made_parts import write_params

from pipeline.params import load_params
from pipeline.study import rates as measuring
from pipeline.study.pending import Step
from pipeline.study.rates import Rates, batch_seconds, timed
from pipeline.study.sizes import Size


class Clock:
    """A clock that moves when work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def work(self, seconds: float, units: int) -> int:
        self.now += seconds
        return units


@pytest.mark.parametrize(
    ("seconds", "units", "first", "calls"),
    [(0.5, 4, 0.5, 5), (3.0, 2, 3.0, 1), (0.25, 1, 1.5, 9)],  # repeated; long enough at once; slow at first
)
def test_a_units_time_is_the_mean_after_the_first_call(
    monkeypatch: pytest.MonkeyPatch, seconds: float, units: int, first: float, calls: int
) -> None:
    clock, done = Clock(), []
    monkeypatch.setattr(measuring.time, "perf_counter", clock.perf_counter)

    def work() -> int:
        done.append(1)
        return clock.work(seconds if len(done) > 1 else first, units)

    assert timed(work, 2.0) == pytest.approx(seconds / units)
    assert len(done) == calls


@pytest.mark.parametrize(
    ("seconds", "sizes", "expected"),
    [
        (100.0, [4, 8, 16, 32, 50], 3 + 0.5 * 50),  # all of the batch
        (13.0, [4, 8, 16], 3 + 0.5 * 50),  # 5 + 7 seconds, and one step more: from there by the line
        (1.0, [4], 5 * 50 / 4),  # one step was too much: nothing tells its constant part
    ],
)
def test_a_whole_batchs_step_is_told_from_parts_of_it(seconds: float, sizes: list[int], expected: float) -> None:
    asked: list[int] = []

    def step(size: int) -> float:
        asked.append(size)
        return 3 + 0.5 * size

    assert batch_seconds(step, 50, seconds) == pytest.approx(expected)
    assert asked == sizes
    assert batch_seconds(lambda size: 7.0, 3, 100.0) == 7.0  # a batch below the first part


def test_every_part_of_the_work_is_measured(tmp_path: Path, tiny_config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_params(tmp_path, tiny_config)
    params = load_params(tmp_path / "params.yaml")
    monkeypatch.setattr(measuring, "STARTED", "pass")
    sizes = {"demo": Size(40, {(64, 64): 1.0}, 1000, None, "")}
    stages = ("download", "preprocess", "features", "baseline", "evaluate")
    steps = [Step(stage, ("demo", "handcrafted", "0"), cached=False) for stage in stages]
    steps += [Step("train", ("demo", variant, "0"), cached=False) for variant in ("dcmpln", "clip_agiqa", "shuffled")]
    found = measuring.measure(params, steps, sizes, 0.01)
    for name in ("start", "window", "tower", "statistics", "decode", "draw", "tree"):
        assert getattr(found, name) > 0, name
    assert set(found.step) == {"dcmpln", "clip_agiqa", "shuffled"}
    assert found.step["shuffled"] == found.step["dcmpln"]  # one model with other labels
    assert found.step["clip_agiqa"] > 0
    assert found.checkpoint > 1000
    assert found.windows(sizes["demo"]) == 9
    assert found.device.endswith("CPU thread")


def test_without_a_network_no_tower_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_config: Path
) -> None:
    write_params(tmp_path, tiny_config)
    monkeypatch.setattr(measuring, "STARTED", "pass")
    monkeypatch.delattr(measuring, "Towers")
    sizes = {"demo": Size(40, {(64, 64): 1.0}, 1000, None, "")}
    found = measuring.measure(load_params(tmp_path / "params.yaml"), [Step("report", (), cached=False)], sizes, 0.01)
    assert (found.rule, found.windows(sizes["demo"])) == (None, 0.0)
    assert found == Rates(start=found.start)
