"""One base for every error that a user can cause, told apart from our own faults."""

import importlib
import inspect

import pytest
from conftest import ROOT

from pipeline.errors import AgiqaError

ROOMS = [path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for path in ROOT.glob("pipeline/**/*.py")]


@pytest.mark.parametrize("room", sorted(name for name in ROOMS if not name.endswith(("__init__", "served"))))
def test_every_error_of_ours_is_one(room: str) -> None:
    module = importlib.import_module(room)
    ours = [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == room]
    for kind in ours:
        assert not issubclass(kind, Exception) or issubclass(kind, AgiqaError), kind
