"""Completion of a command's words in a shell: commands, options, their choices, and files."""

import argparse
from collections.abc import Iterator
from pathlib import Path

# Arguments that are files and more, so that their type does not say it.
NAMES_FILES = ("paths", "first", "second", "out")


def script(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return what a shell reads to complete a command.

    Args:
        parser: With all options of all commands.
        shell: bash, zsh or tcsh.

    Source: shtab, which comes with DVC.
    """
    import shtab  # imported here: only this needs it

    for action in _actions(parser):
        if action.type is Path or action.dest in NAMES_FILES:
            action.complete = shtab.FILE
    return shtab.complete(parser, shell)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
