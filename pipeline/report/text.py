"""The report as Markdown, to read in a terminal, a README or a pull request."""

from collections.abc import Sequence

from pipeline.report import formats
from pipeline.report.answer import Headline
from pipeline.report.figures import Picture
from pipeline.report.sections import Block, Section

PAGE = "index.html"


def render(name: str, backbone: str, sections: Sequence[Section]) -> str:
    """Return the text. Pictures are named as they lie beside it; those of the gallery stand in the page alone.

    Args:
        name: Name of the study.
        backbone: What the study's backbones are, in words.
        sections: From `pipeline.report.sections.arrange`.
    """
    parts = [f"# {name}", f"{backbone}. The same report with the test images that it speaks of: [{PAGE}]({PAGE})."]
    for section in sections:
        parts += [f"## {section.title}", *(_written(block) for block in section.blocks if block[0] != "gallery")]
    return "\n\n".join(parts) + "\n"


def _written(block: Block) -> str:
    kind, content = block
    if kind == "text":
        return content
    if kind == "heading":
        return f"### {content}"
    if kind == "headline":
        return _headline(content)
    if kind == "facts":
        return "\n".join(f"- {term}: {text}" for term, text in content)
    if kind == "table":
        return formats.markdown(content).rstrip()
    if kind == "folded":
        title, blocks = content
        inside = "\n\n".join(map(_written, blocks))
        return f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>"
    if kind == "figure":
        return _picture(content)
    if kind == "code":
        return f"```\n{content}\n```"
    raise ValueError(f"a block of kind {kind!r} has no form in Markdown")


def _picture(picture: Picture) -> str:
    return f"![{picture.alt} {picture.backbone}.]({picture.name}.png)"


def _headline(headline: Headline) -> str:
    leads = [
        answer.verdict.lead + (f" ({answer.verdict.bounds})" if answer.verdict.bounds else "")
        for answer in headline.answers
    ]
    parts = ["\n".join(f"- {lead}" for lead in leads), *([_picture(headline.picture)] if headline.picture else [])]
    for answer in headline.answers:
        parts += [f"### {answer.dataset}"] if len(headline.answers) > 1 else []
        parts += [answer.chart.note] if answer.chart else []
        parts += [formats.markdown(answer.table).rstrip()] if answer.table else []
        parts.append("Not shown:\n\n" + "\n".join(f"- {lack}" for lack in answer.verdict.lacks))
        parts += answer.verdict.shown
    return "\n\n".join(parts)
