"""The report as a page: one HTML file that needs no network. Its shape stands in page.html.j2 beside this file."""

import base64
import re
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from pipeline.report.chart import spoken
from pipeline.report.figures import Picture
from pipeline.report.formats import numeric_columns
from pipeline.report.plots import inline
from pipeline.report.sections import Section

TEMPLATE = Path(__file__).with_name("page.html.j2")


def render(out: str | Path, name: str, backbone: str, sections: Sequence[Section]) -> str:
    """Return the page.

    Args:
        out: Folder that holds the figures' SVG.
        name: Name of the study.
        backbone: What the study's backbones are, in words; the page names them here alone.
        sections: From `pipeline.report.sections.arrange`.

    Returns:
        HTML; equal for equal arguments.
    """

    def svg(picture: Picture) -> Markup:
        text = (Path(out) / f"{picture.name}.svg").read_text(encoding="utf-8")
        return Markup(inline(text, picture.name.replace(".", "-")))

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters |= {"prose": _prose, "cell": _cell, "numeric_columns": numeric_columns}
    environment.filters |= {"svg": svg, "data_uri": _data_uri, "spoken": spoken, "known": lambda value: value == value}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render(name=name, backbone=backbone, sections=sections) + "\n"


def _prose(text: str) -> Markup:
    """Escape plain text, and turn `code` and **strong** into elements."""
    safe = str(escape(text))
    safe = re.sub(r"`([^`]+)`", r"<code>\1</code>", safe)
    safe = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", safe)
    return Markup(re.sub(r"\bLEAKS\b", '<span class="leak">LEAKS</span>', safe))


def _cell(text: str) -> Markup:
    """A cell's text, an interval behind a number on a line of its own."""
    mean, bracket, rest = text.partition(" [")
    if bracket and re.match(r"[-+\d.n]", mean) and re.fullmatch(r"[^\[\]]+\]", rest):
        return _prose(mean) + Markup("<small>[{}</small>").format(rest)
    return _prose(text)


def _data_uri(path: Path) -> str:
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
