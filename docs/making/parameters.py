"""Write the tables of docs/params.md from what stands beside the types: `python docs/making/parameters.py`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DOCS.parent), str(DOCS / "making")]  # so that the script runs without the package installed

import marked  # noqa: E402

from pipeline.params import Params  # noqa: E402

PAGE, OWNER = DOCS / "params.md", "docs/making/parameters.py"


def keys(section: type[BaseModel], name: str) -> Iterator[tuple[str, FieldInfo]]:
    """Give the full name of every key of a section that holds a value, sections within it unfolded."""
    for key, field in section.model_fields.items():
        full, inner = f"{name}.{key}", field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from keys(inner, full)
        else:
            yield full, field


def sections() -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Give each section: its heading, what its keys begin with, and its type."""
    for name, field in Params.model_fields.items():
        if get_origin(field.annotation) is dict:
            yield name, f"{name}.<name>", get_args(field.annotation)[1]
        else:
            yield name, name, field.annotation


def text() -> str:
    """Return the tables."""
    parts = []
    for heading, name, section in sections():
        parts += [
            f"## {heading}",
            "",
            (section.__doc__ or "").strip().splitlines()[0],
            "",
            "| key | | one of |",
            "| --- | --- | --- |",
        ]
        parts += [f"| `{key}` | {_said(field)} | {_choice(field)} |" for key, field in keys(section, name)]
        parts.append("")
    return "\n".join(parts)


def _said(field: FieldInfo) -> str:
    optional = "" if field.is_required() else f" May be left out: {_value(field.default)}."
    return (field.description or "").replace("|", "\\|") + optional


def _choice(field: FieldInfo) -> str:
    return ", ".join(f"`{value}`" for value in _choices(field.annotation) if value is not None)


def _choices(annotation: Any) -> list[Any]:
    """Return the words that a key may hold, where they are fixed."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) if part is not type(None) for value in _choices(part)]


def _value(default: Any) -> str:
    return "null" if default is None else str(default).lower() if isinstance(default, bool) else str(default)


if __name__ == "__main__":
    marked.write(PAGE, OWNER, text())
