"""What the tests of this wing share."""

from pathlib import Path

import pytest

from pipeline.scoring.scorer import Scorer, load_scorer


@pytest.fixture(scope="session")
def scorer(tiny_checkpoint: Path) -> Scorer:
    """Return the scorer of the tiny checkpoint; it never changes, so sharing is safe."""
    return load_scorer(tiny_checkpoint, device="cpu")
