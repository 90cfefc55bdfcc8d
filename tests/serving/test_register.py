"""That every champion is registered, and what a store that fails does to it."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.serving import register
from pipeline.tracking.store import ASKED_PATIENCE, PATIENCE

CHAMPIONS = {"demo": Path("runs/demo/dcmpln/round-1/train/checkpoints/epoch-001.safetensors")}


def test_the_training_of_each_champion_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Any, ...]] = []
    monkeypatch.setattr(register, "log_champion", lambda *words, **options: given.append((*words, options)) or "3")
    for strict, patience in ((False, PATIENCE), (True, ASKED_PATIENCE)):
        given.clear()
        assert register.register_champions("root", "study", CHAMPIONS, strict=strict) == {"agiqa-demo": "3"}
        ((*words, _, options),) = given
        assert (words, options) == (["root", "study", Path("runs/demo/dcmpln/round-1/train")], {"patience": patience})
    assert register.register_champions("root", "study", {}) == {}


def test_a_store_that_cannot_be_written_is_a_warning_or_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*words: object, **options: object) -> str:
        raise OSError("no space left")

    monkeypatch.setattr(register, "log_champion", fails)
    assert register.register_champions("root", "study", CHAMPIONS) == {}
    assert "the champion of demo" in caplog.text
    with pytest.raises(OSError, match="no space left"):
        register.register_champions("root", "study", CHAMPIONS, strict=True)
