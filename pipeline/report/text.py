"""The report as Markdown, to read in a terminal, a README or a pull request."""

from collections.abc import Sequence

from pipeline.report import formats
from pipeline.report.sections import Answer, Block, Section

PAGE = "index.html"


def render(name: str, sections: Sequence[Section]) -> str:
    """Return the text. Pictures are named as they lie beside it; those of the gallery stand in the page alone.

    Args:
        name: Name of the study.
        sections: From `pipeline.report.sections.arrange`.
    """
    parts = [f"# Study: {name}", f"The same report with the test images that it speaks of: [{PAGE}]({PAGE})."]
    for section in sections:
        parts += [f"## {section.title}", *(_written(block) for block in section.blocks if block[0] != "gallery")]
    return "\n\n".join(parts) + "\n"


def _written(block: Block) -> str:
    kind, content = block
    if kind == "text":
        return content
    if kind == "heading":
        return f"### {content}"
    if kind == "answers":
        return "\n\n".join(map(_answer, content))
    if kind == "facts":
        return "\n".join(f"- {term}: {text}" for term, text in content)
    if kind == "table":
        return formats.markdown(content).rstrip()
    if kind == "folded":
        title, table = content
        return f"<details><summary>{title}</summary>\n\n{formats.markdown(table).rstrip()}\n\n</details>"
    if kind == "figure":
        return f"![{content.alt}]({content.name}.png)"
    if kind == "code":
        return f"```\n{content}\n```"
    raise ValueError(f"a block of kind {kind!r} has no form in Markdown")


def _answer(answer: Answer) -> str:
    head = f"**{answer.dataset}**: "
    if answer.score:
        head += f"`{answer.method}`, {answer.score}, {answer.bounds}. "
    return head + " ".join(answer.sentences)
