"""How far off a model's mean score of one generator's images typically is, as measured on test images.

More images make a mean more certain, and leave this error as it is: a model may like one generator's look, or dislike
another's. So it bounds how small a difference between two generators can be shown at all.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scipy.special import stdtrit

from pipeline.layout import EVALUATE, METRICS, RECORD, TRAIN, StudyError, checkpoint_path, validation_numbers

USUAL = 6  # generators, where a checkpoint does not say how many: so many have AGIQA-3K and AIGCIQA2023


class GeneratorError(NamedTuple):
    """What was measured.

    Attributes:
        value: Root mean square of the generators' errors of the mean, in MOS.
        generators: That it is of.
    """

    value: float
    generators: int

    def reach(self, level: float = 0.95) -> float:
        """Return how large a difference between two generators' means this error alone may make, in MOS.

        Each mean has the error, so the difference has its variance twice; and as the error was itself estimated on a
        few generators, Student's t with as many degrees of freedom stands in for the normal distribution.
        """
        return float(stdtrit(self.generators, (1 + level) / 2)) * math.sqrt(2) * self.value


def error_of(generators: Mapping[str, Mapping[str, Any]]) -> GeneratorError | None:
    """Return the typical error of a generator's mean.

    The sampling noise of the test images is left in. Subtracting it would be unbiased, and yet wrong here: of small
    errors nothing would remain half of the time, and the difference of two generators would be taken for shown in up to
    three of ten cases without one, where it is at most one in twenty so (tests/study/test_generators.py repeats it).

    Args:
        generators: Of each its mos_mean and score_mean, as `evaluation.by_generator` returns.

    Returns:
        None without calibrated scores, or with fewer than two generators, of which nothing follows for a third.
    """
    errors = [each["score_mean"] - each["mos_mean"] for each in generators.values() if "score_mean" in each]
    if len(errors) < 2:
        return None
    return GeneratorError(math.sqrt(math.fsum(error**2 for error in errors) / len(errors)), len(errors))


def generator_error(record: Mapping[str, Any], path: Path) -> GeneratorError | None:
    """Return the error that a checkpoint carries, or else that of the run of the study that it lies in.

    Args:
        record: Of the checkpoint.
        path: The checkpoint. If it is runs/<dataset>/<method>/round-<r>/train/checkpoints/epoch-<selected>, the
            evaluation of that very training counts.

    Returns:
        None if nobody measured it.

    Raises:
        StudyError: If the run's files are damaged.
    """
    if record.get("generator_error") is not None:
        return GeneratorError(record["generator_error"], record.get("generators") or USUAL)
    places = [place for place in (path.absolute(), path.resolve()) if place.parent.parent.name == TRAIN]
    if not places:  # as it is named, and where it is a link to
        return None
    train = places[0].parent.parent
    measured = train.parent / EVALUATE / METRICS
    if not (train / RECORD).is_file() or not measured.is_file():
        return None
    try:
        epoch = json.loads((train / RECORD).read_text(encoding="utf-8"))["selected_epoch"]
        metrics = json.loads(measured.read_text(encoding="utf-8"))
        if places[0] != checkpoint_path(train, epoch) or metrics["validation"] != validation_numbers(train, epoch):
            return None  # another epoch's weights, or an evaluation of an earlier training
        return error_of(metrics.get("generator", {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StudyError(f"{measured} or the run's record is damaged ({error}): `dvc repro` writes it anew") from error
