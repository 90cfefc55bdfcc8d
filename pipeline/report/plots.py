"""Figures of the study, in one style: equal bytes for equal numbers, colours that colour-blind readers tell apart.

Figures are drawn without pyplot, so nothing global is touched and no display is needed. Colour never carries a meaning
alone: shapes, line styles or labels say the same.
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from pipeline.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    STYLE,
    VERMILLION,
    house_style,
    legend_key,
    put_title,
    save,
)
from pipeline.layout import LEVEL
from pipeline.report.chart import PUBLISHED, Chart
from pipeline.report.significance import turned

# Inches and points of every figure: at the width of a page of 1280 pixels its letters are no smaller than the page's.
WIDTH, LETTERS = 9.0, 9
TITLE = "title"  # id of a figure's title in its SVG
Looks = Mapping[str, dict[str, str]]  # by generator its colour and marker, the same in all figures of a study

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def comparison(charts: Sequence[Chart], paths: Sequence[str | Path], title: str) -> None:
    """Draw a panel per data set: for every method its rounds, their mean, and the mean's 95 % interval, best on top.

    Args:
        charts: From `pipeline.report.chart`, a panel each.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: what is shown and with which backbone.
    """
    looks = {"variant": (BLUE, "o"), "baseline": (GREEN, "D"), "control": (GREY, "X"), PUBLISHED: (BLACK, "|")}
    columns, most = min(len(charts), 2), max(len(chart.lines) for chart in charts)
    rows = -(-len(charts) // columns)
    with house_style():
        figure = Figure(figsize=(WIDTH, 1.3 + rows * (0.7 + 0.34 * most)), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        for axes, chart in zip(panels, charts, strict=False):
            for place, line in enumerate(chart.lines):
                colour, marker = looks[line.kind]
                face = "white" if line.leaks else colour
                axes.hlines(place, line.low, line.high, color=colour, lw=2, alpha=0.55)
                axes.plot(line.rounds, [place + 0.25] * len(line.rounds), ls="", marker="|", ms=6, color=colour)
                axes.plot(line.srcc, place, ls="", marker=marker, ms=7, mec=colour, mfc=face, mew=1.5)
            names = ["\n".join(part for part in (line.method, line.remark) if part) for line in chart.lines]
            axes.set(title=chart.dataset, xlabel="SRCC", ylim=(len(names) - 0.4, -0.6))
            axes.set_yticks(range(len(names)), names)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        for axes in panels[len(charts) :]:
            axes.remove()
        lines = [line for chart in charts for line in chart.lines]
        shown = [kind for kind in looks if any(line.kind == kind for line in lines)]
        handles = [legend_key(kind, ls="", marker=looks[kind][1], color=looks[kind][0]) for kind in shown]
        if any(line.leaks for line in lines):
            handles.append(legend_key("leaks", ls="", marker="o", mec=BLUE, mfc="white", mew=1.5))
        handles.append(legend_key("one round", ls="", marker="|", ms=8, color=BLACK))
        kinds = ", ".join(dict.fromkeys(chart.interval for chart in charts))
        handles.append(legend_key(f"95 % interval ({kinds})", lw=2, color=BLACK, alpha=0.55))
        _finish(figure, paths, title, handles)


def training_curves(history: pd.DataFrame, selected: pd.DataFrame, paths: Sequence[str | Path], title: str) -> None:
    """Draw a panel per variant: SRCC against the epoch, every round thin, their mean thick, the chosen epochs ringed.

    Args:
        history: Columns method, round, epoch, train_srcc, validation_srcc of one data set, methods in order to draw.
        selected: Columns method, round, selected_epoch.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: data set and backbone.
    """
    chosen = {(row["method"], row["round"]): row["selected_epoch"] for row in selected.to_dict("records")}
    lines = (("train_srcc", ORANGE, "--"), ("validation_srcc", BLUE, "-"))
    with house_style():
        methods = list(dict.fromkeys(history["method"]))
        figure, panels = _grid(len(methods), "epoch", "SRCC")
        for axes, method in zip(panels, methods, strict=True):
            rows = history[history["method"] == method]
            for column, colour, line in lines:
                wide = rows.pivot(index="epoch", columns="round", values=column)
                axes.plot(wide.index, wide, color=colour, ls=line, lw=0.8, alpha=0.45)
                whole = wide.dropna()  # the mean stops where the first round stopped: later it would be of other rounds
                axes.plot(whole.index, whole.mean(axis=1), color=colour, ls=line, lw=2)
            for row in rows.to_dict("records"):
                if chosen[(method, row["round"])] == row["epoch"]:
                    axes.plot(row["epoch"], row["validation_srcc"], marker="o", ms=6, mfc="none", mec=BLACK)
            axes.set_title(method)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        handles = [
            legend_key("train", color=ORANGE, ls="--", lw=2),
            legend_key("validation", color=BLUE, lw=2),
            legend_key("one round", color=GREY, lw=0.8),
            legend_key("chosen epoch", ls="", marker="o", mfc="none", mec=BLACK),
        ]
        _finish(figure, paths, title, handles)


def generators(means: pd.DataFrame, paths: Sequence[str | Path], title: str, mos_label: str, looks: Looks) -> None:
    """Draw a panel per method: each generator's mean prediction, on the MOS scale, against its mean MOS.

    Args:
        means: Columns method, generator, mos_mean, fitted_mean (predictions after the logistic fit) of one data set, a
            row per method x generator, methods in the order to draw.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: data set and backbone.
        mos_label: What the MOS is and its scale: "quality MOS (0 to 5)".
        looks: Of the generators.
    """
    with house_style():
        methods = list(dict.fromkeys(means["method"]))
        names = list(means.groupby("generator")["mos_mean"].mean().sort_values(ascending=False, kind="stable").index)
        figure, panels = _grid(len(methods), "mean MOS", "mean prediction", square=True)
        both = means[["mos_mean", "fitted_mean"]].to_numpy()
        margin = 0.06 * float(np.ptp(both)) or 0.5
        limits = (float(both.min()) - margin, float(both.max()) + margin)
        for axes, method in zip(panels, methods, strict=True):
            axes.plot(limits, limits, color=GREY, lw=1, ls=":")
            for row in means[means["method"] == method].to_dict("records"):
                look = looks[row["generator"]]
                axes.plot(row["mos_mean"], row["fitted_mean"], ls="", ms=7, mec="white", mew=0.6, **look)
            axes.set(title=method, xlim=limits, ylim=limits, aspect="equal")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        handles = [legend_key(name, ls="", ms=7, **looks[name]) for name in names]
        handles.append(legend_key("perfect agreement", color=GREY, lw=1, ls=":"))
        title = f"{title}\nBoth axes: {mos_label}; predictions after the logistic fit."
        _finish(figure, paths, title, handles)


def outcomes(pairs: pd.DataFrame, paths: Sequence[str | Path], title: str) -> None:
    """Draw the matrix of wins, ties and losses: each row's method against each column's, with the SRCC difference.

    What holds on these trainings alone is paler, hatched, and called ahead or behind.

    Args:
        pairs: From `pipeline.report.significance.compare`; the methods in its order.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: data set and backbone.
    """
    looks = {"win": "#7FBFE8", "ahead": "#CFE6F6", "loss": "#F2B84B", "behind": "#FAE3B8"}
    methods = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    with house_style():
        figure = Figure(figsize=(WIDTH, 0.5 * len(methods) + 1.8), layout="constrained")
        axes = figure.subplots()
        for row in (side for pair in pairs.to_dict("records") for side in (pair, turned(pair))):
            x, y = methods.index(row["second"]), methods.index(row["first"])
            hatch = "//" if row["outcome"] in ("ahead", "behind") else None
            difference = "" if np.isnan(row["difference"]) else f"{row['difference'] + 0.0:+.3f}"
            text = f"{'no score' if row['outcome'] == 'none' else row['outcome']}\n{difference}"
            colour = looks.get(row["outcome"], "#E6E6E6")
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec=PAPER, lw=1.5, hatch=hatch))
            axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=LETTERS)
        axes.set(xlim=(-0.5, len(methods) - 0.5), ylim=(len(methods) - 0.5, -0.5))
        axes.set_xticks(range(len(methods)), methods, rotation=30, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(methods)), methods)
        _bare(axes)
        axes.set(xlabel="against", ylabel="this method")
        _finish(figure, paths, title)


def cross_matrix(scores: pd.DataFrame, paths: Sequence[str | Path], title: str) -> None:
    """Draw a heat map per method: SRCC by the data set it was trained on (rows) and tested on (columns).

    Args:
        scores: Columns method, trained_on, tested_on and srcc, methods and data sets in the order to draw. A pair that
            is not there stays empty.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure, with the backbone.
    """
    shades = LinearSegmentedColormap.from_list("light blues", ["#F7FBFF", "#5AA5D6"])  # dark letters read on all of it
    datasets = list(dict.fromkeys([*scores["trained_on"], *scores["tested_on"]]))
    with house_style():
        methods = list(dict.fromkeys(scores["method"]))
        figure, panels = _grid(len(methods), "tested on", "trained on", height=0.62 * len(datasets) + 1.0)
        for axes, method in zip(panels, methods, strict=True):
            for row in scores[scores["method"] == method].to_dict("records"):
                x, y = datasets.index(row["tested_on"]), datasets.index(row["trained_on"])
                known = not np.isnan(row["srcc"])
                shade = shades(min(max(row["srcc"], 0.0), 1.0)) if known else PAPER
                axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, fc=shade, ec=PAPER, lw=1.5))
                text = f"{row['srcc']:.2f}" if known else "—"
                axes.text(x, y, text, ha="center", va="center", color=INK, fontsize=LETTERS)
            axes.set(title=method, xlim=(-0.5, len(datasets) - 0.5), ylim=(len(datasets) - 0.5, -0.5))
            axes.set_xticks(range(len(datasets)), datasets, rotation=30, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(datasets)), datasets)
            _bare(axes)
        _finish(figure, paths, title)


def scatters(predictions: pd.DataFrame, paths: Sequence[str | Path], title: str, mos_label: str, looks: Looks) -> None:
    """Draw a panel per method: predicted score against MOS for every image, and the logistic fit.

    The points are drawn as one picture, so that thousands of them make no heavy file.

    Args:
        predictions: Columns method, generator, predicted, fitted and mos of one round, methods in the order to draw.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: data set, round and backbone.
        mos_label: Label of the MOS axis, with its scale: "quality MOS (0 to 5)".
        looks: Of the generators.
    """
    with house_style():
        methods = list(dict.fromkeys(predictions["method"]))
        names = sorted(set(predictions["generator"]))
        figure, panels = _grid(len(methods), "predicted score", mos_label, sharex=False)
        for axes, method in zip(panels, methods, strict=True):
            rows = predictions[predictions["method"] == method].sort_values("predicted", kind="stable")
            for name in names:
                part = rows[rows["generator"] == name]
                axes.scatter(
                    part["predicted"], part["mos"], s=14, alpha=0.6, linewidths=0, rasterized=True, **looks[name]
                )
            axes.plot(rows["predicted"], rows["fitted"], color=BLACK, lw=1.6)
            axes.set_title(method)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        handles = [legend_key(name, ls="", ms=6, **looks[name]) for name in names]
        _finish(figure, paths, title, [*handles, legend_key("logistic fit", color=BLACK, lw=1.6)])


def binned(
    bins: pd.DataFrame, paths: Sequence[str | Path], title: str, labels: tuple[str, str], identity: bool
) -> None:
    """Draw a panel per method: the mean of something in bins of something else, with twice its standard error.

    Args:
        bins: Columns method, x, y and error (standard error of y), a row a bin, methods in the order to draw.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: data set and backbone.
        labels: Of the x and y axis.
        identity: Whether to draw the line where both are equal, on equal axes.
    """
    with house_style():
        methods = list(dict.fromkeys(bins["method"]))
        figure, panels = _grid(len(methods), *labels, square=identity)
        ends = float(bins[["x", "y"]].min(axis=None)), float(bins[["x", "y"]].max(axis=None))
        for axes, method in zip(panels, methods, strict=True):
            rows = bins[bins["method"] == method]
            if identity:
                axes.plot(ends, ends, color=GREY, lw=1, ls=":")
                axes.set_aspect("equal")
            axes.errorbar(rows["x"], rows["y"], 2 * rows["error"], color=BLUE, marker="o", ms=4, lw=1.4, elinewidth=1)
            axes.set_title(method)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        handles = [legend_key("mean of a bin, ± 2 standard errors", color=BLUE, marker="o", ms=4, lw=1.4)]
        handles += [legend_key("perfect calibration", color=GREY, lw=1, ls=":")] if identity else []
        _finish(figure, paths, title, handles)


def bands(
    predictions: pd.DataFrame,
    coverage: pd.DataFrame,
    paths: Sequence[str | Path],
    title: str,
    mos_label: str,
    looks: Looks,
) -> None:
    """Draw one method's score against MOS with its band, and beside it how much of each generator the band holds.

    Args:
        predictions: Columns score, low, high and mos of one round, a row an image.
        coverage: Columns generator and coverage (share of its images whose MOS the band holds), a row per generator x
            round, generators in the order to draw, top to bottom.
        paths: Files to write; each suffix (.png or .svg) says the format.
        title: Title of the figure: data set, method, round and backbone.
        mos_label: What the MOS is and its scale: "quality MOS (0 to 5)".
        looks: Of the generators.
    """
    names = list(dict.fromkeys(coverage["generator"]))
    rows = predictions.sort_values("score", kind="stable")
    inside = rows["mos"].between(rows["low"], rows["high"])
    with house_style():
        figure = Figure(figsize=(WIDTH, max(3.9, 1.6 + 0.3 * len(names))), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        left.fill_between(rows["score"], rows["low"], rows["high"], color=BLUE, alpha=0.16, lw=0)
        left.plot(rows["score"], rows["score"], color=GREY, lw=1, ls=":")
        points = {"s": 10, "alpha": 0.7, "rasterized": True}
        left.scatter(*rows.loc[inside, ["score", "mos"]].to_numpy().T, color=BLUE, marker="o", linewidths=0, **points)
        left.scatter(*rows.loc[~inside, ["score", "mos"]].to_numpy().T, color=VERMILLION, marker="x", lw=1, **points)
        left.set(xlabel="score", ylabel=_wrapped(mos_label, figure.get_figheight() - 1))
        for place, name in enumerate(names):
            each = 100 * coverage.loc[coverage["generator"] == name, "coverage"]
            right.plot(each, [place] * len(each), ls="", marker="|", ms=9, color=looks[name]["color"])
            right.plot(each.mean(), place, ls="", ms=6, **looks[name])
        right.axvline(LEVEL, color=BLACK, lw=1.2, ls="--")
        # What is promised stands away from the edge, also where all generators keep it.
        least = min(LEVEL - 10, 100 * float(coverage["coverage"].min()) - 3)
        right.set(xlabel="MOS within the band, % of images", ylim=(len(names) - 0.5, -0.5), xlim=(least, 101))
        right.set_yticks(range(len(names)), names)
        handles = [
            legend_key("inside the band", ls="", marker="o", ms=4, color=BLUE),
            legend_key("outside", ls="", marker="x", ms=5, color=VERMILLION),
            legend_key(f"{LEVEL} % band", lw=7, color=BLUE, alpha=0.16),
            legend_key("score = MOS", color=GREY, lw=1, ls=":"),
            legend_key("generator, mean", ls="", marker="o", ms=6, color=GREY),
            legend_key("one round", ls="", marker="|", ms=8, color=GREY),
            legend_key(f"{LEVEL} %, promised", color=BLACK, lw=1.2, ls="--"),
        ]
        _finish(figure, paths, title, handles)


def inline(svg: str, name: str) -> str:
    """Return a figure's SVG to stand inside a page: text and paper in the page's colours, ids that meet no other's.

    Args:
        svg: Text of a file that `save` wrote.
        name: Of the figure, unique in the page.

    Returns:
        The svg element. Black becomes `currentColor`, white the CSS variable `--paper` and the grid `--grid`, so that a
        page in a dark scheme stays readable; the colours of data are as they were. The title, which the page gives in
        letters of its own and without the backbone, is cut off.
    """
    element = _without_title(svg[svg.index("<svg") :])
    element = re.sub(r"<metadata>.*?</metadata>\s*|<!--.*?-->\s*", "", element, flags=re.S)
    # A style element inside would hold for the whole page, which sets the same for all figures.
    element = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>\s*", "", element, flags=re.S)
    element = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", element)
    for colour, ours in (("#000000", "currentColor"), ("#333333", "currentColor"), ("#ffffff", "var(--paper)")):
        element = re.sub(rf"\b(fill|stroke): {colour}", rf"\1: {ours}", element)
    element = element.replace(f"stroke: {STYLE['grid.color'].lower()}", "stroke: var(--grid)")
    element = re.sub(r'(<svg[^>]*?) width="([\d.]+)pt" height="[\d.]+pt"', r'\1 style="--width: \2"', element, count=1)
    return re.sub(r"\n\s*", "\n", element.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)).strip()


def _without_title(element: str) -> str:
    """Return the svg element from below its title on; the title's letters stay, since later ones are drawn by them."""
    found = re.search(rf'<g id="{TITLE}">(.*?)(?=<g id="|</svg>)', element, re.S)
    lines = [float(y) for y in re.findall(r"translate\([\d.]+ ([\d.]+)\)", found.group(1))] if found else []
    if not lines:
        return element
    top = max(lines) + 5
    view = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', element)
    width, height = float(view.group(1)), float(view.group(2)) - top
    return element.replace(view.group(0), f'viewBox="0 {top:g} {width:g} {height:g}"', 1)


def _finish(figure: Figure, paths: Sequence[str | Path], title: str, handles: Sequence[Line2D] = ()) -> None:
    """Set title and legend, and write the figure."""
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=LETTERS)
    put_title(figure, title)
    for text in figure.texts:
        text.set_gid(TITLE)
    save(figure, *paths)


def _grid(
    count: int, xlabel: str, ylabel: str, *, square: bool = False, height: float | None = None, sharex: bool = True
) -> "tuple[Figure, list[Axes]]":
    """A grid of `count` panels that share their axes, up to four to a row; the places left over stay empty.

    Few panels are larger, and rows are as even as they can be. `height` is that of a panel in inches, where it is not
    to follow from their number.
    """
    rows = -(-count // 4)
    columns = -(-count // rows)
    side = (WIDTH - 0.6) / columns
    height = height or min(side, 3.4 if square else 2.6)
    size = (WIDTH, height * rows + 1.1)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=sharex, sharey=True, squeeze=False).ravel().tolist()
    for axes in panels[count:]:
        axes.remove()
    for axes in panels[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)  # the lowest panel of its column, also where the last row is short
        axes.set_xlabel(xlabel)
    for axes in panels[:count:columns]:
        axes.set_ylabel(_wrapped(ylabel, height))
    return figure, panels[:count]


def _wrapped(label: str, height: float) -> str:
    """Break the label of a y axis so that it is no longer than the axis of a panel of this height in inches."""
    return textwrap.fill(label, int(10 * height))


def _bare(axes: "Axes") -> None:
    """Leave a matrix of cells its labels alone."""
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
