"""Each figure shows the numbers that it is given, read back from the drawn figure."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline import drawing
from pipeline.report import plots
from pipeline.report.chart import Chart, Line

Draw = Callable[..., Figure]


@pytest.fixture
def draw(monkeypatch: pytest.MonkeyPatch) -> Draw:
    """Return what draws a plot and hands its figure back instead of writing it."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, *paths: figures.append(figure))

    def run(plot: Callable[..., None], *values: Any, **more: Any) -> Figure:
        plot(*values, paths=[], title="a title", **more)
        return figures[-1]

    return run


def points(axes: Axes) -> list[list[list[float]]]:
    """The x and y of every line and marker of a panel."""
    return [[np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()] for line in axes.lines]


def keys(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_comparison_shows_rounds_mean_and_interval(draw: Draw) -> None:
    lines = [
        Line("a", "variant", 0.6, 0.4, 0.7, (0.55, 0.65)),
        Line("b", "baseline", 0.5, 0.3, 0.8, (0.5,), leaks="random split"),
    ]
    figure = draw(plots.comparison, [Chart("demo", lines, "t", 0)])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b\nLEAKS: random split"]
    assert [segment.get_segments()[0][:, 0].tolist() for segment in axes.collections] == [[0.4, 0.7], [0.3, 0.8]]
    assert points(axes) == [[[0.55, 0.65], [0.25] * 2], [[0.6], [0]], [[0.5], [1.25]], [[0.5], [1]]]
    assert [line.get_markerfacecolor() for line in axes.lines[1::2]] == [drawing.BLUE, "white"]  # what leaks is hollow
    assert keys(figure) == ["variant", "baseline", "leaks", "one round", "95 % interval (t)"]


def test_the_mean_curve_stops_where_the_first_round_stopped(draw: Draw) -> None:
    history = pd.DataFrame(
        {
            "method": "a", "round": [0, 0, 0, 1, 1], "epoch": [1, 2, 3, 1, 2],
            "train_srcc": [0.1, 0.2, 0.9, 0.3, 0.4], "validation_srcc": [0.2, 0.3, 0.1, 0.4, 0.5],
        }
    )  # fmt: skip
    selected = pd.DataFrame({"method": "a", "round": [0, 1], "selected_epoch": [2, 2]})
    (axes,) = draw(plots.training_curves, history, selected).axes
    thick = [line for line in axes.lines if line.get_linewidth() == 2]
    assert [np.asarray(line.get_xdata()).tolist() for line in thick] == [[1, 2], [1, 2]]
    assert np.asarray(thick[0].get_ydata()) == pytest.approx([0.2, 0.3])
    assert np.asarray(thick[1].get_ydata()) == pytest.approx([0.3, 0.4])
    assert points(axes)[-2:] == [[[2], [0.3]], [[2], [0.5]]]  # the rings


def test_generators_stand_by_their_means(draw: Draw) -> None:
    means = pd.DataFrame(
        {
            "method": ["a", "a", "b", "b"], "generator": ["x", "y"] * 2, "mos_mean": [2.0, 4.0] * 2,
            "fitted_mean": [2.5, 3.5, 3.0, 3.1],
        }
    )  # fmt: skip
    looks = {"x": {"color": drawing.GREEN, "marker": "s"}, "y": {"color": drawing.BLUE, "marker": "v"}}
    figure = draw(plots.generators, means, mos_label="quality MOS (0 to 5)", looks=looks)
    assert [line.get_marker() for line in figure.axes[0].lines[1:]] == ["s", "v"]
    assert [axes.get_title("left") for axes in figure.axes] == ["a", "b"]
    assert [points(axes)[1:] for axes in figure.axes] == [
        [[[2.0], [2.5]], [[4.0], [3.5]]], [[[2.0], [3.0]], [[4.0], [3.1]]],
    ]  # fmt: skip
    assert keys(figure) == ["y", "x", "perfect agreement"]  # the best generator first
    assert "Both axes: quality MOS (0 to 5)" in figure.get_suptitle()


def test_every_pair_stands_from_both_sides(draw: Draw) -> None:
    pairs = pd.DataFrame(
        {
            "first": ["a", "a", "b"], "second": ["b", "c", "c"], "difference": [0.2, -0.0001, -0.3], "low": 0.0,
            "high": 0.0, "outcome": ["win", "tie", "behind"],
        }
    )  # fmt: skip
    (axes,) = draw(plots.outcomes, pairs).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}  # column, row
    assert cells == {
        (1, 0): "win\n+0.200", (0, 1): "loss\n-0.200", (2, 0): "tie\n-0.000", (0, 2): "tie\n+0.000",
        (2, 1): "behind\n-0.300", (1, 2): "ahead\n+0.300",
    }  # fmt: skip
    hatched = {tuple(np.add(patch.get_xy(), 0.5).astype(int)) for patch in axes.patches if patch.get_hatch()}
    assert hatched == {(2, 1), (1, 2)}


def test_the_matrix_of_data_sets_leaves_untested_pairs_empty(draw: Draw) -> None:
    scores = pd.DataFrame(
        {"method": "a", "trained_on": ["d", "d", "e"], "tested_on": ["d", "e", "e"], "srcc": [0.9, np.nan, -0.1]}
    )
    (axes,) = draw(plots.cross_matrix, scores).axes
    cells = {tuple(map(int, text.get_position())): text.get_text() for text in axes.texts}  # tested on, trained on
    assert cells == {(0, 0): "0.90", (1, 0): "—", (1, 1): "-0.10"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("tested on", "trained on")


def test_every_image_is_a_point_and_the_fit_a_line_in_order(draw: Draw) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"method": np.repeat(["a", "b"], 30), "generator": ["x", "y", "z"] * 20, "predicted": rng.normal(0, 1, 60)}
    ).assign(mos=rng.uniform(0, 5, 60), fitted=lambda rows: 2 + rows["predicted"])
    looks = dict(zip("xyz", drawing.cycle_styles(), strict=False))
    figure = draw(plots.scatters, table, mos_label="MOS", looks=looks)
    for axes, method in zip(figure.axes, ("a", "b"), strict=True):
        mine = table[table["method"] == method]
        shown = np.concatenate([cloud.get_offsets() for cloud in axes.collections])
        assert sorted(shown.tolist()) == sorted(mine[["predicted", "mos"]].to_numpy().tolist())
        assert points(axes) == [[sorted(mine["predicted"]), sorted(mine["fitted"])]]


@pytest.mark.parametrize("identity", [True, False])
def test_bins_have_twice_their_standard_error(draw: Draw, identity: bool) -> None:
    bins = pd.DataFrame({"method": "a", "x": [1.0, 2.0], "y": [1.5, 2.5], "error": [0.1, 0.2]})
    figure = draw(plots.binned, bins, labels=("prediction", "MOS"), identity=identity)
    (axes,) = figure.axes
    bars = axes.collections[0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [pytest.approx([1.3, 1.7]), pytest.approx([2.1, 2.9])]
    assert points(axes)[-1] == [[1.0, 2.0], [1.5, 2.5]]
    assert (points(axes)[0] == [[1.0, 2.5], [1.0, 2.5]]) == identity  # the line where both are equal
    assert ("perfect calibration" in keys(figure)) == identity


def test_a_band_shows_what_lies_outside_and_each_generators_share(draw: Draw) -> None:
    table = pd.DataFrame({"score": [3.0, 1.0, 2.0], "mos": [3.2, 2.6, 2.0]})
    table = table.assign(low=table["score"] - 1, high=table["score"] + 1)
    coverage = pd.DataFrame({"generator": ["x", "x", "y"], "coverage": [0.9, 1.0, 0.5]})
    looks = dict(zip("xy", drawing.cycle_styles(), strict=False))
    figure = draw(plots.bands, table, coverage, mos_label="quality MOS (0 to 5)", looks=looks)
    left, right = figure.axes
    band, inside, outside = left.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert {(1.0, 0.0), (1.0, 2.0), (3.0, 2.0), (3.0, 4.0)} <= corners
    assert inside.get_offsets().tolist() == [[2.0, 2.0], [3.0, 3.2]]
    assert outside.get_offsets().tolist() == [[1.0, 2.6]]
    assert points(left) == [[[1.0, 2.0, 3.0]] * 2]  # where score and MOS are equal
    assert points(right)[:4] == [[[90.0, 100.0], [0, 0]], [[95.0], [0]], [[50.0], [1]], [[50.0], [1]]]
    assert points(right)[4][0] == [90, 90]
    assert [label.get_text() for label in right.get_yticklabels()] == ["x", "y"]
    assert right.get_xlim()[0] < 50
    assert "90 %, promised" in keys(figure)


def test_places_left_over_in_a_grid_stay_empty(draw: Draw) -> None:
    bins = pd.DataFrame({"method": list("abcdefg"), "x": 1.0, "y": 1.0, "error": 0.1})
    figure = draw(plots.binned, bins, labels=("x", "y"), identity=False)
    assert [axes.get_title("left") for axes in figure.axes] == list("abcdefg")
    assert [axes.get_xlabel() for axes in figure.axes] == ["", "", "", *["x"] * 4]
    five = draw(plots.binned, bins[:5], labels=("x", "y"), identity=False)
    assert [axes.get_subplotspec().colspan.start for axes in five.axes] == [0, 1, 2, 0, 1]


def test_the_label_of_an_axis_is_no_longer_than_its_panel(tmp_path: Path, draw: Draw) -> None:
    label = "quality MOS of simulated raters (0 to 5)"
    table = pd.DataFrame({"score": [1.0, 2.0, 3.0], "mos": [1.0, 2.0, 3.0], "low": 0.0, "high": 5.0})
    bins = pd.DataFrame({"method": list("abcde"), "x": 1.0, "y": 1.0, "error": 0.1})
    coverage, looks = pd.DataFrame({"generator": ["x"], "coverage": [0.9]}), {"x": drawing.cycle_styles()[0]}
    for figure in (
        draw(plots.bands, table, coverage, mos_label=label, looks=looks),
        draw(plots.binned, bins, labels=("x", label), identity=True),
        draw(plots.binned, bins, labels=("x", label), identity=False),
    ):
        drawing.save(figure, tmp_path / "figure.png")
        for axes in figure.axes:
            assert axes.yaxis.label.get_window_extent().height <= 1.15 * axes.get_window_extent().height


def test_all_figures_have_one_width_and_letters_of_one_size(draw: Draw) -> None:
    """A page as wide as a figure then shows letters of 9 points at 9 / 72 of an inch, whatever the figure."""
    bins = pd.DataFrame({"method": list("abcdef"), "x": 1.0, "y": 1.0, "error": 0.1})
    pairs = pd.DataFrame(
        {"first": ["a"], "second": ["b"], "difference": 0.2, "low": 0.1, "high": 0.3, "outcome": "win"}
    )
    lines = [Line("a", "variant", 0.6, 0.4, 0.7, ())]
    scores = pd.DataFrame({"method": "a", "trained_on": ["d"], "tested_on": ["d"], "srcc": [0.9]})
    for figure in (
        draw(plots.binned, bins, labels=("x", "y"), identity=True),
        draw(plots.binned, bins[:1], labels=("x", "y"), identity=False),
        draw(plots.outcomes, pairs),
        draw(plots.comparison, [Chart("demo", lines, "t", 0)] * 3),
        draw(plots.cross_matrix, scores),
    ):
        assert figure.get_figwidth() == 9
        texts = [text for axes in figure.axes for text in axes.texts]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        assert all(text.get_fontsize() >= 9 for text in texts)


def test_an_inlined_figure_takes_the_pages_colours_and_keeps_its_ids_apart(tmp_path: Path) -> None:
    bins = pd.DataFrame({"method": ["a", "b"], "x": 1.0, "y": 1.0, "error": 0.1})
    plots.binned(bins, [tmp_path / "bins.svg"], "a title", ("x", "y"), identity=True)
    text = plots.inline((tmp_path / "bins.svg").read_text(), "bins")
    assert text.startswith("<svg ")
    assert "<!--" not in text  # where matplotlib repeats every text
    whole, top, width, _ = re.search(r'viewBox="([\d.]+) ([\d.]+) ([\d.]+) ([\d.]+)"', text).groups()
    assert float(whole) == 0
    assert 10 < float(top) < 30  # a line of title is cut off
    assert float(width) == 9 * 72
    assert "<style" not in text
    assert "currentColor" in text
    assert not re.search(r"(fill|stroke): #(000000|333333|ffffff)", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert all(name.startswith("bins-") for name in ids)
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
    assert used
    assert set(used) <= set(ids)
    assert drawing.BLUE.lower() in text
