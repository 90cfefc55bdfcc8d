"""What is wrong with params.yaml, in words that name the key, its value and what would be right."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from pipeline.yaml_file import ParamsError


def shown(value: Any) -> str:
    """Return a value as an error shows it, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:80]}..."


def refusal(origin: str, faults: list[str]) -> ParamsError:
    """Return the error that tells one fault in a line, and several in a line each below a heading."""
    return ParamsError(f"{origin}: " + faults[0] if len(faults) == 1 else "\n  ".join([f"{origin}:", *faults]))


def nearest(word: str, known: list[str]) -> str:
    """Return the end of a sentence on an unknown word: the known one that it is like, or all of them."""
    match = difflib.get_close_matches(word, known, n=1, cutoff=0.3)
    return f"; did you mean {match[0]!r}?" if match else f"; known: {', '.join(sorted(known))}"


def fault(model: type[BaseModel], raw: Any, item: Mapping[str, Any]) -> str:
    """Turn one pydantic finding into a sentence that names key, value and remedy."""
    if item["type"] == "extra_forbidden":
        *section, word = item["loc"]
        return f"unknown key {'.'.join(map(str, item['loc']))!r}" + nearest(str(word), known_keys(model, section))
    if item["type"] == "invalid_key":  # a number, a list, or nothing
        *section, _ = item["loc"]
        return f"unknown key {shown(item['input'])}" + (f" in {'.'.join(map(str, section))}" if section else "")
    # pydantic marks a bad table key as `[key]`, and the branch of a choice of types as `literal[...]` or such
    key = ".".join(str(part) for part in item["loc"] if re.fullmatch(r"[\w.]+", str(part)))
    if item["type"] == "missing":
        return f"missing key {key!r}"
    message = item["msg"].removeprefix("Value error, ")
    value = item["input"]
    told = "" if isinstance(value, Mapping) else f" = {shown(value)}"
    return f"{key}{told}: {message[0].lower()}{message[1:]}"


def known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    """Return the keys that the section at `location` may hold."""
    section: Any = model
    for part in location:
        is_table = get_origin(section) is dict  # of named entries, as `variants`: any part is an entry's name
        section = get_args(section)[1] if is_table else section.model_fields[part].annotation
    return list(section.model_fields)
