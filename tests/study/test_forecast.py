"""A forecast is a sum by hand, and a study that is up to date costs no measurement."""

import argparse
import shutil
import sys
from pathlib import Path

import pytest
from made_parts import RULE

from pipeline.params import load_params
from pipeline.study import forecast as forecasting
from pipeline.study.forecast import forecast
from pipeline.study.pending import Step
from pipeline.study.rates import Rates
from pipeline.study.sizes import Size

ROOT = Path(__file__).resolve().parents[2]
PARAMS = load_params(ROOT / "params" / "demo.yaml")  # 4 epochs, 5 validation windows, 6 pictures of a kind
# 100 images of 64x64 are 72 to train, 8 to validate and 20 to test; 4 windows of 32 at stride 32 each.
SIZES = {"demo": Size(100, {(64, 64): 1.0}, 10**6, None, "made up")}
RATES = Rates(
    start=10.0, step={"dcmpln": 0.5}, window=0.01, tower=0.02, statistics=0.3, decode=0.1, draw=0.2, tree=0.05,
    checkpoint=1000, rule=RULE, device="2 CPU threads",
)  # fmt: skip


@pytest.mark.parametrize(
    ("step", "seconds", "disk"),
    [
        (("code", ()), 4, 0),
        (("download", ("demo",)), 4 + 100 * 0.2 + 3 * 0.01, 2e6),
        (("preprocess", ("demo",)), 10 + 100 * 0.1 + 3 * 100 * 3 * 64 * 64 / 1e8, 2 * 100 * 3 * 64 * 64),
        (("features", ("demo",)), 10 + 100 * 0.3 + 100 * 4 * 0.02, 1.6e6),
        (
            ("train", ("demo", "dcmpln", "0")),
            10 + 4 * (72 * 0.5 + 8 * 4 * 0.01) + (8 * 4 + 72 * 4) * 0.01,
            2 * 4 * 1000,
        ),
        (("evaluate", ("demo", "dcmpln", "0")), 10 + (20 * 4 + 18 * 4) * 0.01, 1e6),
        (("audit", ("demo", "dcmpln", "0")), 20 + 20 * (3 * 4 + 2 * 4 * 4) * 0.01, 1e6),
        (("baseline", ("demo", "handcrafted")), 8 + 3 * (2 + 500 * 0.05), 0),
    ],
)
def test_a_stage_costs_what_it_does(step: tuple[str, tuple[str, ...]], seconds: float, disk: float) -> None:
    (line,) = forecast(PARAMS, [Step(*step, cached=False)], SIZES, RATES)
    assert (line.stage, line.runs, line.cached) == (step[0], 1, 0)
    assert line.seconds == pytest.approx(seconds)
    assert line.disk == pytest.approx(disk)


def test_what_comes_from_the_cache_costs_nothing_and_lines_stand_in_order() -> None:
    steps = [
        Step("evaluate", ("demo", "dcmpln", "0"), cached=True),
        Step("train", ("demo", "dcmpln", "0"), cached=False),
        Step("train", ("demo", "dcmpln", "1"), cached=True),
    ]
    train, evaluate = forecast(PARAMS, steps, SIZES, RATES)
    assert (train.stage, train.runs, train.cached) == ("train", 1, 1)
    assert (evaluate.stage, evaluate.runs, evaluate.cached, evaluate.seconds) == ("evaluate", 0, 1, 0.0)
    assert train.work == {"epochs": 4, "training images": 288}


def test_the_plan_is_told(monkeypatch: pytest.MonkeyPatch, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:

    from pipeline.study import rates, sizes

    shutil.copy(ROOT / "params" / "demo.yaml", "params.yaml")
    steps = [Step("train", ("demo", "dcmpln", "0"), cached=False), Step("report", (), cached=True)]
    monkeypatch.setattr(forecasting, "pending", lambda params: steps)
    monkeypatch.setattr(rates, "measure", lambda *given: RATES)
    monkeypatch.setattr(sizes, "size_of", lambda params, name: SIZES["demo"])
    assert forecasting.run(argparse.Namespace(short=True)) == 0
    short = capsys.readouterr().out
    assert short == "study demo: 1 stage to run, 1 from DVC's cache; about 1.8 to 4 min, 0 MB of disk\n"
    assert forecasting.run(argparse.Namespace(short=False)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "  train            1   2.6 min  4 epochs, 288 training images",
        "  report                        1 from the cache",
        "  demo: 100 images (made up), 4 windows each",
        "  measured on 2 CPU threads: dcmpln trains with 2.0 images/s, scoring 100 windows/s",
        short.strip(),
    ]


def test_where_nothing_waits_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    shutil.copy(ROOT / "params" / "demo.yaml", "params.yaml")
    monkeypatch.setitem(sys.modules, "pipeline.study.rates", None)  # an import would fail
    for steps, told in (
        ([], ""),
        ([Step("train", ("demo", "dcmpln", "0"), cached=True)], ": 1 stage from DVC's cache"),
    ):
        monkeypatch.setattr(forecasting, "pending", lambda params, steps=steps: steps)
        assert forecasting.run(argparse.Namespace(short=False)) == 0
        assert capsys.readouterr().out.startswith(f"study demo: nothing to compute{told}")
