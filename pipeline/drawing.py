"""One style for every figure: equal bytes for equal numbers, colours that colour-blind readers tell apart.

Figures are drawn without pyplot, so nothing global is touched and no display is needed.
"""

import io
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.files import write_atomically

# Okabe and Ito, "Color Universal Design", 2008. Their yellow is left out: it is too pale for points on white.
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#767676"
INK, PAPER = "#111111", "#FFFFFF"  # letters on a coloured ground, which stay dark in a page of any scheme; and white
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h")
STYLE = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib: the same glyphs on every machine
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 150,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.06,
    "svg.hashsalt": "agiqa-study",
    "path.simplify": False,
}
# Without these, matplotlib writes the date and its own version into the files.
_METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}


def save(figure: Figure, *paths: str | Path) -> None:
    """Write a figure, whole or not at all, with nothing in its metadata that changes between runs.

    Args:
        figure: The figure.
        paths: Files to write; each suffix (.png or .svg) says the format. Missing folders are made.

    Raises:
        ValueError: If a suffix is neither.
    """
    for path in map(Path, paths):
        kind = path.suffix.removeprefix(".")
        if kind not in _METADATA:
            raise ValueError(f"{path}: suffix {path.suffix!r} is no format of ours; give .png or .svg")
        buffer = io.BytesIO()
        with house_style():
            figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
        figure.set_layout_engine("none")  # the places found for the first file hold for all: finding them takes longest
        write_atomically(path, buffer.getvalue())


@contextmanager
def house_style() -> Iterator[None]:
    """Draw in the study's style, whatever the user's own matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the figures
        matplotlib.rcParams.update(STYLE)
        yield


def cycle_styles() -> list[dict[str, str]]:
    """Colour and shape of the first, second, ... category: 84 pairs before one repeats."""
    count = len(COLOURS) * len(MARKERS)
    return [{"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i in range(count)]


def put_title(figure: Figure, title: str) -> None:
    """Set the figure's title from the left edge, its lines broken to the figure's width."""
    fits = int(figure.get_figwidth() * 12.5)  # characters of 10 points in the mean; capitals are wider
    lines = [part for line in title.splitlines() for part in textwrap.wrap(line, fits)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)


def legend_key(label: str, **look: object) -> Line2D:
    """Return a key of a legend that no drawn thing stands behind."""
    return Line2D([], [], label=label, **look)
