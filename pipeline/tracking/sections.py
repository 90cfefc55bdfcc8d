"""What MLflow calls the numbers of a run: `<section>/<name>`, since it folds its charts by what precedes the slash.

MLflow cannot rename or delete a metric. So a run that an earlier version wrote keeps its old names beside these.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from pipeline import layout

# Part of the hashes that tell what MLflow holds of a run already: raised when the same files are told otherwise, so
# that the next mirror tells every run anew.
EDITION = "2"

# What the metrics of a study's runs are; its parent run shows it.
NOTE = """One run per data set, method and round; what each computed stands in its own description.

- `train/...`: loss, learning rate and training images of every epoch; `prompts/...`: how far the visual prompts have
  spread.
- `val/srcc` ...: of every epoch, a variant's from `validation.windows` windows a validation image. `val/selected_srcc`
  ...: of the selected epoch, from all windows; its mean over the rounds chooses the champion.
- `test/srcc`, `test/krcc`, `test/plcc`: of raw scores. `test/plcc_logistic`, `test/rmse`: by the field's convention
  after a logistic fit to the MOS of the very test images, which no user has.
- `test/rmse_calibrated`, `test/mae_calibrated`: of the score that a user is told, whose curve was fitted on validation
  images alone. `test/coverage`: the share of test images whose MOS lies in the band of LEVEL %; `test/band_width`: the
  mean width of that band, in MOS; `test/unfamiliar`: the share of images unlike the training images.
- `generator/<name>/...`: the same of one generator's test images. `cross/<data set>/...`: of another data set's.
- `cost/train_...`, `cost/evaluate_...`: of the whole stage; `cost/epoch_...`: of one epoch. `images/...`: how many.

In a search, a name with a slash stands in backticks: metrics.`test/srcc` > 0.5
""".replace("LEVEL", str(layout.LEVEL))

_SECTIONS = (
    (r"validation_(.+)", r"val/\1"),
    (r"train_(.+)", r"train/\1"),
    (r"test_(.+)", r"test/epoch_\1"),  # of a leaking variant: apart from the selected epoch's, which is the result
    (r"((?:main|auxiliary)_prompt_.+)", r"prompts/\1"),
    (r"(.+)", r"train/\1"),
)


def of_epoch(history: Mapping[str, Any], timing: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an epoch from its rows of history.csv and timing.csv; empty and NaN values are left out."""
    told = {_in_section(key): value for key, value in finite_numbers(history).items() if key != "epoch"}
    # The comparison of runs plots the metric that came first.
    told = dict(sorted(told.items(), key=lambda entry: entry[0] != "val/srcc"))
    return told | {f"cost/epoch_{key}": value for key, value in finite_numbers(timing).items() if key != "epoch"}


def of_training(record: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a training as a whole from its record.json and run.json."""
    costs = about.get("cost") or {"seconds": about.get("seconds")}  # as earlier versions wrote it
    values = {f"cost/train_{key}": value for key, value in costs.items()}
    values |= {f"cost/{key}": record.get(key) for key in ("trainable_parameters", "checkpoint_bytes")}
    return finite_numbers(values | {f"images/{subset}": count for subset, count in record.get("images", {}).items()})


def of_evaluation(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of an evaluation from its metrics.json; `validation` there is the selected epoch's."""
    values = {key: value for key, value in metrics.items() if key not in ("validation", "cost")}
    values["val"] = {f"selected_{key}": value for key, value in metrics.get("validation", {}).items()}
    values["cost"] = {f"evaluate_{key}": value for key, value in metrics.get("cost", {}).items()}
    return finite_numbers(values)


def of_report(means: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a study from its report's metrics.json: mean/<data set>/<method>/srcc ..."""
    return finite_numbers({"mean": means})


def finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of nested values as one level, `outer/inner`."""
    numbers: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = finite_numbers({_as_part(name): number for name, number in value.items()})
            numbers |= {f"{key}/{name}": number for name, number in inner.items()}
        elif value is not None and value != "":
            try:
                number = float(value)
            except (TypeError, ValueError):  # a word is no measurement
                continue
            if math.isfinite(number):
                numbers[key] = number
    return numbers


def _in_section(column: str) -> str:
    """Return the metric of a column of history.csv."""
    pattern, name = next(pair for pair in _SECTIONS if re.fullmatch(pair[0], column))
    return re.sub(f"^{pattern}$", name, column)


def _as_part(name: str) -> str:
    """Return a generator's or data set's name as a part of a path, which MLflow refuses if it is not canonical."""
    return "_" if not name.strip(".") else name.replace("/", "_")
