"""The one style: equal numbers give equal bytes, whatever stands in a user's own settings."""

import re
from pathlib import Path

import matplotlib
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from pipeline import drawing


def drawn(values: tuple[float, ...] = (1, 3, 2)) -> Figure:
    with drawing.house_style():
        figure = Figure(figsize=(4.0, 3.0), layout="constrained")
        figure.subplots().plot(values, label="a line")
        drawing.put_title(figure, "title")
    return figure


def test_equal_numbers_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("1", "2"):
        drawing.save(drawn(), *(tmp_path / "new folder" / f"{name}{suffix}" for suffix in (".png", ".svg")))
    drawing.save(drawn((1, 3, 2.5)), tmp_path / "new folder" / "3.svg")
    first, second, other = ((tmp_path / "new folder" / f"{name}.svg").read_bytes() for name in "123")
    assert first == second != other
    assert (tmp_path / "new folder/1.png").read_bytes() == (tmp_path / "new folder/2.png").read_bytes()
    assert not re.search(rb"\d{4}-\d\d-\d\dT|Matplotlib v", first)  # neither a date nor a version
    with Image.open(tmp_path / "new folder/1.png") as picture:
        assert picture.size == (600, 450)  # 4 x 3 inches at 150 dots each
        assert picture.info.keys() <= {"dpi"}


def test_an_unknown_format_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape("s.jpeg: suffix '.jpeg' is no format of ours; give .png or .svg")):
        drawing.save(drawn(), tmp_path / "s.jpeg")
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_settings_neither_change_a_figure_nor_are_changed(tmp_path: Path) -> None:
    drawing.save(drawn(), tmp_path / "before.svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "axes.facecolor": "red", "font.size": 20}):
        drawing.save(drawn(), tmp_path / "after.svg")
        assert matplotlib.rcParams["lines.linewidth"] == 9
    assert (tmp_path / "before.svg").read_bytes() == (tmp_path / "after.svg").read_bytes()


def test_no_two_categories_look_alike_and_colours_stand_off_from_white() -> None:
    looks = [(look["color"], look["marker"]) for look in drawing.cycle_styles()]
    assert len(looks) == len(set(looks)) == 84
    assert len({colour for colour, _ in looks[:7]}) == 7
    assert len({marker for _, marker in looks[:12]}) == 12

    def luminance(colour: str) -> float:
        """WCAG 2.1, relative luminance."""
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(colour)]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    assert all(1.05 / (luminance(colour) + 0.05) > 2 for colour in drawing.COLOURS)


def test_a_long_title_is_broken_to_the_figures_width() -> None:
    figure = Figure(figsize=(2.0, 1.0))
    drawing.put_title(figure, "word " * 10 + "\nsecond line")
    lines = figure.get_suptitle().splitlines()
    assert max(map(len, lines)) <= 25
    assert lines[-1] == "second line"
    assert " ".join(lines[:-1]) == " ".join(["word"] * 10)


def test_a_legend_key_is_a_label_with_a_look() -> None:
    key = drawing.legend_key("mean", color=drawing.BLUE, marker="o")
    assert (key.get_label(), key.get_color(), key.get_marker()) == ("mean", drawing.BLUE, "o")
    assert len(key.get_xdata()) == 0
