"""Where every file of the study lies and what it is called, and the few words that all wings share.

Paths are relative to the repository root, which is a stage's working folder.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import AgiqaError

SUBSETS = ("train", "validation", "test")
PERCENTS, LEVEL = tuple(range(50, 100)), 90  # the levels at which bands around scores are kept, and the usual one
LOCK = "dvc.lock"
RAW, PREPARED, SPLITS = Path("data", "raw"), Path("data", "prepared"), Path("data", "splits")
FEATURES, INDEX, CODE = Path("data", "features"), Path("data", "index"), Path("data", "code")
FEATURE_TIMES = Path("data", "feature-times")  # apart from the features, whose bytes must be equal for equal inputs
MANIFEST, PIXELS, CARD = "manifest.parquet", "pixels.bin", "card.png"  # in a data set's folder of PREPARED
RUNS = Path("runs")
CHAMPIONS = Path("reports", "champions.json")  # of the finished study: which checkpoint is the best of each data set
# Where models/ and backbones/ lie: in the clone that this code is of, or with the package that was installed from one.
_PACKAGE = Path(__file__).resolve().parent
INSTALLED = (_PACKAGE / "shipped").is_dir()
HOME = _PACKAGE / "shipped" if INSTALLED else _PACKAGE.parent
MODELS, MODEL_CARD = Path("models"), "card.json"  # that come with the repository: a folder a data set, each with a card
# The folders of a run: what made its result, how that does on test images, and how the epoch that is best there does.
TRAIN, EVALUATE, AUDIT = "train", "evaluate", "audit"
# In TRAIN: what was computed; when, where and by which code; a row an epoch of numbers, and of times; the weights.
RECORD, RUN, HISTORY, TIMING = "record.json", "run.json", "history.csv", "timing.csv"
CHECKPOINTS = "checkpoints"  # a baseline has one, of epoch 0
# In EVALUATE and AUDIT: numbers, and a row an image.
METRICS, PREDICTIONS = "metrics.json", "predictions.csv"

PYIQA = "pyiqa_"  # what the name of a baseline begins with that is a metric of pyiqa's, whose name follows

# Who gave the scores of a data set, by what its manifest, card and records say; and what every text calls them.
Raters = Literal["people", "simulated"]  # simulated: a formula in the place of people
RATERS: dict[str, str] = {"people": "people", "simulated": "simulated raters"}


class StudyError(AgiqaError):
    """Files of the study that do not fit each other."""


def input_paths(dataset: str, round_index: int, split: str = "round") -> tuple[Path, Path]:
    """Return a data set's manifest and one round's split, relative to the repository root.

    Args:
        dataset: Its name.
        round_index: The round.
        split: `round` for the study's own split, `random` for the leaking one that the audit compares it with.
    """
    return PREPARED / dataset / MANIFEST, SPLITS / dataset / f"{split}-{round_index}.csv"


def features_path(dataset: str) -> Path:
    """Return the file of what baselines read of a data set's images."""
    return FEATURES / f"{dataset}.npz"


def feature_times_path(dataset: str) -> Path:
    """Return the file of what the features of a data set's images cost, by the pass that made them."""
    return FEATURE_TIMES / f"{dataset}.json"


def locked_stages(lock: str | Path) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.lock by name, each with its deps, params and outs as DVC took them up.

    Raises:
        StudyError: If the file is no lock of DVC's.
    """
    import yaml  # imported here: few stages need it

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one takes a tenth of the time
    try:
        return dict((yaml.load(Path(lock).read_bytes(), loader) or {}).get("stages", {}))
    except (yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
        raise StudyError(f"{lock} is no lock of DVC's ({type(error).__name__}): restore it from git") from None


def validation_numbers(train_folder: Path, selected_epoch: int) -> dict[str, float]:
    """Return the selected epoch's validation SRCC, PLCC and KRCC; empty for a method that has none.

    They stand in the record, from all windows of an image. Records of earlier versions lack them: then they are the
    history's, which a trained model has from `validation.windows` windows an image.
    """
    import pandas as pd  # imported here: paths and names are for stages that start in no time, too

    record = train_folder / RECORD
    known = json.loads(record.read_text(encoding="utf-8")).get("validation") if record.is_file() else None
    if known is not None:
        return {key: value for key, value in known.items() if value is not None}
    history = pd.read_csv(train_folder / HISTORY).set_index("epoch")
    row = history.loc[selected_epoch] if selected_epoch in history.index else pd.Series(dtype=float)
    prefix = "validation_"
    return {
        key.removeprefix(prefix): float(row[key]) for key in row.index if key.startswith(prefix) and pd.notna(row[key])
    }


def backbone_label(backbone: Mapping[str, Any]) -> str:
    """Return a backbone's name with whose weights it has, as every result must show it: `ViT-B-32 (openai weights)`.

    Args:
        backbone: As a record holds it; its `pretrained` is the tag or file of published weights.
    """
    published = backbone["origin"] == "pretrained" and backbone["pretrained"]
    return f"{backbone['name']} ({published or backbone['origin']} weights)"


def made_with(record: Mapping[str, Any]) -> str:
    """Return what a figure says that a run's scores are made with: the backbone, or the package of a metric."""
    if record.get("metric"):
        return str(record["metric"]["package"])
    return f"backbone {backbone_label(record['backbone'])}"


def rated_by(about: Mapping[str, Any]) -> str:
    """Return in words who rated a data set, `people` or `simulated raters`: what may stand beside its scores.

    Args:
        about: The data set's card, or the record of a run or a checkpoint. Earlier versions wrote no `raters`; then it
            is people.
    """
    return RATERS[about.get("raters") or "people"]


def mos_label(target: str, about: Mapping[str, Any]) -> str:
    """Return what a figure calls the MOS, and whose it is where no people gave it; `about` as `rated_by`."""
    return f"{target} MOS" + ("" if rated_by(about) == "people" else f" of {rated_by(about)}")


def pyiqa_metric(method: str) -> str | None:
    """Return the name that pyiqa gives a baseline of its metrics; None for any other method."""
    return method.removeprefix(PYIQA) if method.startswith(PYIQA) else None


def run_folder(dataset: str, method: str, round_index: int, split: str = "round") -> Path:
    """Return the folder of one run, relative to the repository root; `split` is `random` for the audit's runs."""
    return RUNS / dataset / method / f"{split}-{round_index}"


def repository_root() -> Path:
    """Return the main repository's root: DVC_ROOT under DVC (also in its temporary copies), else the working folder."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def leaks(split_rule: str, select_on: str | None) -> list[str]:
    """Return in words what test data a run's result has seen; empty for a clean run."""
    found = ["random split"] if split_rule == "random" else []
    return [*found, "epoch selected on test"] if select_on == "test" else found


def bars_champion(record: Mapping[str, Any]) -> list[str]:
    """Return in words what keeps a run from being its data set's champion, by its record; empty if nothing does."""
    barred = list(record["leaks"]) + (["shuffled labels"] if record["shuffled_labels"] else [])
    return barred + ([f"a metric of {record['metric']['package']}, others' work"] if record.get("metric") else [])


def checkpoint_name(epoch: int) -> str:
    """Return the file name of an epoch's folded checkpoint."""
    return f"epoch-{epoch:03d}.safetensors"


def checkpoint_path(train_folder: Path, epoch: int) -> Path:
    """Return where an epoch's folded checkpoint lies in a run's train folder."""
    return train_folder / CHECKPOINTS / checkpoint_name(epoch)


def weights_files(train_folder: Path) -> dict[int, Path]:
    """Return the checkpoints in a run's train folder by epoch; a baseline's one is of epoch 0."""
    found = {}
    for path in sorted((train_folder / CHECKPOINTS).glob("*")):
        match = re.fullmatch(r"epoch-(\d+)\.safetensors", path.name)
        found |= {int(match[1]): path} if match else {}
    return found
