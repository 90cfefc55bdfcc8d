"""Change single values of a YAML file of a user's, and leave every other letter of it as it stands.

A library that writes a file anew keeps comments and loses how they are aligned. Here the reader (`ruamel.yaml`, as in
`pipeline.yaml_file`) says where each value stands, only those places are written, and the result is read back and held
to what it should say.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.yaml_file import ParamsError

Path = tuple[str, ...]


def with_values(text: str, changes: Mapping[Path, Any]) -> str:
    """Return a YAML text in which some values are others.

    Args:
        text: Of the file; a mapping.
        changes: Plain values by the keys that lead to them, such as ("study", "name"). A key that is not there is added
            at the end of its section, which must be there. A mapping within a block becomes a block itself, and the
            comments within a block that is replaced go with it; a list in block style that only grows keeps its.

    Returns:
        The text, which reads as before but for these values.

    Raises:
        ParamsError: If the file is written so that a value cannot be changed in its place (by anchors, say); names it.
    """
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    edited = text.removeprefix(mark)
    for path, value in changes.items():
        expected = _plain(edited)
        section = expected
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = value
        edited = _changed(edited, path, value)
        if _plain(edited) != expected:
            raise ParamsError(f"{'.'.join(path)} cannot be changed in its place: write it by hand: {_flow(value)}")
    return mark + edited


def _plain(text: str) -> Any:
    return _apart(YAML(typ="safe", pure=True).load(text))


def _apart(value: Any) -> Any:
    """Return plain values of which none stands in two places, as an alias makes them."""
    if isinstance(value, Mapping):
        return {key: _apart(inner) for key, inner in value.items()}
    return [_apart(inner) for inner in value] if isinstance(value, list) else value


def _changed(text: str, path: Path, value: Any) -> str:
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    section: Node = YAML().compose(text)
    for key in path[:-1]:
        section = _entry(section, key)[1]
    found = _entry(section, path[-1])
    if found is None:
        return _added(text, section, path[-1], value, end_of_line)
    key, node = found
    start, end = node.start_mark.index, _end(node)
    if isinstance(node, MappingNode) and not node.flow_style and isinstance(value, Mapping):
        lines = list(_block(value, node.start_mark.column))
        return text[:start] + end_of_line.join(lines).lstrip() + text[_line_end(text, end) :]
    if isinstance(node, SequenceNode) and not node.flow_style and isinstance(value, Sequence):
        kept = [_plain(text[item.start_mark.index : _end(item)]) for item in node.value]
        if list(value[: len(kept)]) == kept:
            place, pad = _line_end(text, end), " " * node.start_mark.column
            return _inserted(text, place, [f"{pad}- {_flow(item)}" for item in value[len(kept) :]], end_of_line)
    if start == end or (isinstance(node, SequenceNode | MappingNode) and not node.flow_style):
        start = (
            text.index(":", key.end_mark.index) + 1
        )  # nothing stands there, or what does begins in a line of its own
        return text[:start] + " " + _flow(value) + text[end if node.value else start :]
    return text[:start] + _flow(value) + text[end:]


def _added(text: str, section: Node, key: str, value: Any, end_of_line: str) -> str:
    if not isinstance(section, MappingNode):
        raise ParamsError(f"{key} cannot be added to what is no section")
    if section.flow_style:
        place = _end(section) - 1
        return text[:place].rstrip() + (", " if section.value else "") + f"{key}: {_flow(value)}" + text[place:]
    column = section.value[0][0].start_mark.column
    place = _line_end(text, _end(section))
    # Comments that stand as deep as the section's entries, or deeper, still belong to its last one.
    while (below := text[place:].lstrip("\r\n")).lstrip(" ").startswith("#") and (
        len(below) - len(below.lstrip(" ")) >= max(column, 1)
    ):
        place = _line_end(text, len(text) - len(below.lstrip()) + 1)
    return _inserted(text, place, list(_block({key: value}, column)), end_of_line)


def _inserted(text: str, place: int, lines: Sequence[str], end_of_line: str) -> str:
    """Return a text with lines more after the line that ends at `place`."""
    if text[place - 1 : place] == "\n":  # a block scalar ends with its line
        return text[:place] + "".join(line + end_of_line for line in lines) + text[place:]
    return text[:place] + "".join(end_of_line + line for line in lines) + text[place:]


def _entry(section: Node, key: str) -> tuple[Node, Node] | None:
    if not isinstance(section, MappingNode):
        raise ParamsError(f"{key} cannot be found in what is no section")
    return next(((name, node) for name, node in section.value if name.value == key), None)


def _end(node: Node) -> int:
    """Return where a node's last letter stands; a block's own mark lies behind the comments that follow it."""
    if isinstance(node, ScalarNode) or node.flow_style or not node.value:
        return node.end_mark.index
    last = node.value[-1]
    return _end(last[1] if isinstance(node, MappingNode) else last)


def _line_end(text: str, place: int) -> int:
    if text[place - 1 : place] == "\n":
        return place
    found = text.find("\n", place)
    end = len(text) if found < 0 else found
    return end - (text[end - 1 : end] == "\r")


def _block(mapping: Mapping[str, Any], column: int) -> Iterator[str]:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            yield " " * column + f"{key}:"
            yield from _block(value, column + 2)
        else:
            yield " " * column + f"{key}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Return a value as it stands in one line."""
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.width, writer.allow_unicode = True, 1 << 20, True
    stream = io.StringIO()
    writer.dump(value, stream)
    return stream.getvalue().removesuffix("\n").removesuffix("...").removesuffix("\n")
