"""A YAML file of a user's as plain values, read as DVC reads it and within bounds.

The reader is ruamel.yaml, which is DVC's own (YAML 1.2): `1e-4` is a number, `off` is a word and not False, and a key
that stands twice is refused. Another reader could see other values than those by which DVC knows what is stale.
"""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, ScalarEvent

from pipeline.errors import AgiqaError

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1 << 20, 100_000, 50  # of a file of params; ours have 6 kB, 180 values, depth 5


class ParamsError(AgiqaError):
    """params.yaml holds a key or value that no stage can use."""


def read_yaml(path: Path) -> Any:
    """Return a file's plain values.

    Raises:
        ParamsError: If it is no UTF-8 text, no valid YAML, holds a key twice, or would exhaust the machine.
    """
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ParamsError(
            f"{path} is no UTF-8 text (line {line} holds the byte 0x{content[error.start]:02X}): save it as UTF-8"
        ) from None
    try:
        _check_shape(path, text)
        raw = YAML(typ="safe").load(text)
    except DuplicateKeyError as error:
        key = re.sub(r'^found duplicate key "(.*)" with value ".*$', r"\1", str(error.problem), flags=re.S)
        line = error.problem_mark.line + 1
        raise ParamsError(f"{path}: key {key!r} stands twice (again in line {line}): keep one") from None
    except ParamsError:
        raise
    except (YAMLError, ValueError) as error:  # ValueError: a date that there never was, or a number of 5,000 digits
        reason = " ".join(str(error).split()).replace('"<unicode string>", ', "")
        raise ParamsError(f"{path} is not valid YAML: {reason}") from None
    return raw


def _check_shape(path: Path, text: str) -> None:
    """Refuse a file that would exhaust the machine: too long, too deep, or grown without end by its aliases."""
    if len(text) > MOST_BYTES:
        raise ParamsError(f"{path} has {len(text):,} letters, and a file of params at most {MOST_BYTES:,}")
    sizes: dict[str, int] = {}  # of what an anchor names, with all that is in it
    opened: list[tuple[str | None, int]] = []
    total = 0
    for event in YAML(typ="safe").parse(text):
        line = event.start_mark.line + 1
        if isinstance(event, CollectionEndEvent):
            anchor, before = opened.pop()
            sizes |= {anchor: total - before} if anchor else {}
        elif isinstance(event, CollectionStartEvent):
            opened.append((event.anchor, total))
            total += 1
        elif isinstance(event, ScalarEvent):
            total += 1
            sizes |= {event.anchor: 1} if event.anchor else {}
        elif isinstance(event, AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                raise ParamsError(f"{path}: line {line} holds *{event.anchor} within what &{event.anchor} names")
            total += sizes.get(event.anchor, 0)
        if len(opened) > MOST_DEPTH:
            raise ParamsError(f"{path}: line {line} lies more than {MOST_DEPTH} levels deep")
        if total > MOST_VALUES:
            raise ParamsError(f"{path} holds more than {MOST_VALUES:,} values once its aliases are written out")
