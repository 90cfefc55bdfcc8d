"""How the command reads its words: a mistake is told in one line, with the command, option or value that was meant."""

import argparse
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

UNUSABLE = 2  # the exit status of a command that could not be carried out


class Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, with the command or the value that was meant."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with status 2."""
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            message += near(found[1], re.findall(r"[\w-]+", found[2]))
        self.exit(UNUSABLE, f"{self.prog}: error: {message} ({self.prog} --help says more)\n")


def near(word: str, known: Sequence[str]) -> str:
    """Return a hint at the nearest known word, or nothing if none is near."""
    import difflib

    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps a description's lines, and has room for long names of options."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=110)


def positive(text: str) -> int:
    """Return a whole number from 1 on.

    Raises:
        ArgumentTypeError: If the text is none; argparse tells it with the argument.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def number(text: str) -> float:
    """Return a finite number; errors as `positive`."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return value


def place(text: str) -> Path | str:
    """Return a path; or an address such as s3://bucket/folder as it stands, which a path would change."""
    return text if "://" in text else Path(text)
