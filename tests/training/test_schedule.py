"""Learning rates, the choice of an epoch and early stopping, worked by hand."""

import math

import pytest

from pipeline.training.schedule import TrainingError, is_stuck, learning_rate_at, select_epoch


def test_schedule_by_hand() -> None:
    assert [learning_rate_at(step, 10, 2, 1.0, "constant") for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    assert learning_rate_at(6, 10, 2, 1.0, "cosine") == pytest.approx(0.5)
    assert learning_rate_at(2, 10, 2, 1.0, "cosine") == 1.0
    assert 0 < learning_rate_at(9, 10, 2, 1.0, "cosine") < 0.05


def test_an_epoch_without_a_finite_score_is_never_selected() -> None:
    history = [{"epoch": 1, "k": math.nan}, {"epoch": 2, "k": 0.3}, {"epoch": 3, "k": 0.3}]
    assert select_epoch(history, "k") == 2
    with pytest.raises(TrainingError, match="no epoch has a finite k"):
        select_epoch(history[:1], "k")


@pytest.mark.parametrize(
    ("values", "patience", "stuck"),
    [
        ([0.1, 0.5, 0.4, 0.3], None, False),
        ([0.5, 0.4], 2, False),  # two epochs, of which one may be the best
        ([0.5, 0.4, 0.3], 2, True),
        ([0.5, 0.4, 0.6], 2, False),
        ([0.5, 0.4, 0.5], 2, True),  # as good is no better
        ([math.nan, 0.1, math.nan], 2, False),  # a finite number beats none
        ([0.1, math.nan, math.nan], 2, True),
        ([math.nan] * 3, 2, True),
    ],
)
def test_patience_by_hand(values: list[float], patience: int | None, stuck: bool) -> None:
    assert is_stuck([{"k": value} for value in values], "k", patience) is stuck
