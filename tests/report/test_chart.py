"""The chart of the headline: its order, its places, and what of others may stand in it."""

import math

import pytest
from made_study import made_runs

from pipeline.report.chart import Chart, Line, chart_of, spoken
from pipeline.report.published import (
    BEST_ON_TEST,
    ON_VALIDATION,
    PROMPT_DISJOINT,
    RANDOM,
    UNKNOWN,
    VERIFIED,
    Published,
)
from pipeline.report.summaries import summarise


def other(name: str, srcc: float, split: str, selection: str) -> Published:
    return Published(name, 2024, "demo", "quality", srcc, 0.9, split, selection, "its paper", VERIFIED)


OTHERS = [
    other("fair", 0.75, PROMPT_DISJOINT, ON_VALIDATION),
    other("picked", 0.9, PROMPT_DISJOINT, BEST_ON_TEST),
    other("mixed", 0.9, RANDOM, ON_VALIDATION),
    other("dark", 0.9, UNKNOWN, UNKNOWN),
]


def chart(origin: str = "pretrained", leaks: str = "", **srcc: list[float]) -> Chart:
    runs = made_runs(**(srcc or {"a": [0.6, 0.7], "b": [0.8, 0.82]})).assign(backbone_origin=origin, leaks=leaks)
    return chart_of(summarise(runs), runs, OTHERS)


def test_methods_stand_by_their_means_with_rounds_and_interval() -> None:
    found = chart()
    assert [line.method for line in found.lines] == ["b", "fair", "a"]
    assert found.lines[0].srcc == pytest.approx(0.81)
    assert found.lines[0].rounds == (0.8, 0.82)
    assert found.lines[0].low < 0.81 < found.lines[0].high
    assert found.interval == "corrected t over rounds"
    assert [line.method for line in chart(a=[math.nan], b=[0.1]).lines][-1] == "a"  # what has no value comes last


def test_a_published_result_stands_only_where_it_is_comparable_and_with_its_protocol() -> None:
    found = chart()
    (fair,) = [line for line in found.lines if line.kind == "published"]
    assert (fair.method, fair.remark) == ("fair", "published, prompt-disjoint, best epoch on validation")
    assert found.apart == 3
    assert "3 published results are not comparable: see the table." in found.note
    for origin, leaks in (("in-house", ""), ("random", ""), ("pretrained", "random split")):
        none = chart(origin, leaks)
        assert {line.kind for line in none.lines} == {"variant"}
        assert none.apart == 4


def test_a_leaking_line_says_so_wherever_it_stands() -> None:
    found = chart(leaks="random split")
    assert {line.remark for line in found.lines} == {"LEAKS: random split"}
    assert spoken(found).count("LEAKS: random split") == 2


def test_places_are_percents_between_round_ends_that_hold_everything() -> None:
    found = Chart("demo", [Line("a", "variant", 0.5, 0.21, 0.83, (0.3, 0.7))], "t", 0)
    low, high = found.ends
    assert low <= 0.21
    assert high >= 0.83
    assert [found.place(value) for value in (low, (low + high) / 2, high)] == pytest.approx([0, 50, 100])
    wide = Chart("demo", [Line("a", "control", 0.1, -0.43, 0.99, ())], "t", 0)
    assert wide.ends[1] == 1  # no correlation is above
    assert wide.ends[0] <= wide.ticks[0] < -0.2
    assert wide.ticks[-1] <= 1
    assert spoken(found) == "SRCC of every method on demo, best first: a (variant) 0.500 [0.210, 0.830]"
    assert Chart("demo", [Line("a", "variant", *[math.nan] * 3, ())], "t", 0).ticks[0] == 0
