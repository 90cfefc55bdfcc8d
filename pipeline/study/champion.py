"""The best checkpoint of a study, found from its files and chosen without a look at any test number.

One rule and one place: when a study is finished, its last stage chooses by `find_champion` among the study's own runs,
and leaves the choice in `layout.CHAMPIONS`. That is what `--checkpoint auto` scores with and what MLflow's alias
follows. Before a study has ended, or where a training has since replaced the chosen one, `auto` chooses among all that
lies there, and the alias stays where it is.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.errors import AgiqaError
from pipeline.layout import (
    CHAMPIONS,
    HOME,
    MODEL_CARD,
    MODELS,
    RECORD,
    RUNS,
    TRAIN,
    bars_champion,
    checkpoint_path,
    validation_numbers,
)


class ChampionError(AgiqaError):
    """No champion can be named."""


def find_champion(
    root: str | Path,
    dataset: str | None = None,
    names: Collection[str] | None = None,
    *,
    method: str | None = None,
) -> Path:
    """Return the checkpoint of the method, variant or baseline, with the best validation SRCC among clean runs.

    Where no data set is named, those that simulated raters scored are passed over: they make nobody's choice.

    A run is clean if nothing leaked into it (no test-selected epoch, no random split) and its labels were not shuffled:
    `layout.bars_champion`. A method is judged by its mean over the rounds, since their validation images differ, and
    gives the run of its best round. Of equals the first by name wins.

    Args:
        root: The folder that holds `runs/`.
        dataset: Only of models trained on this data set; None needs a study of one.
        names: Runs to choose from, as `<dataset>/<method>/round-<r>`; None takes the choice of the finished study, or
            else all runs that lie there.
        method: Only of this variant or baseline.

    Returns:
        runs/<dataset>/<method>/round-<r>/train/checkpoints/epoch-<selected>.safetensors; a baseline's epoch is 0.

    Raises:
        ChampionError: If there is no clean run with its checkpoint, or several data sets and none is named.
    """
    root = Path(root)
    chosen = finished_champions(root) if names is None and method is None else {}
    if dataset is None:
        chosen = {name: path for name, path in chosen.items() if not _simulated(path.parents[1])}
    if dataset in chosen or (dataset is None and chosen):
        return _of(chosen, dataset)
    found: dict[str, dict[str, list[tuple[float, Path]]]] = {}
    passed_over = set()
    for path in sorted((root / RUNS).glob(f"*/*/round-*/{TRAIN}/{RECORD}")):
        if names is not None and path.parents[1].relative_to(root / RUNS).as_posix() not in names:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if bars_champion(record) or (method is not None and record["method"] != method):
            continue
        if dataset is None and record.get("raters") == "simulated":
            passed_over.add(record["dataset"])
            continue
        srcc = validation_numbers(path.parent, record["selected_epoch"]).get("srcc")
        checkpoint = checkpoint_path(path.parent, record["selected_epoch"])
        if srcc is not None and checkpoint.is_file():
            found.setdefault(record["dataset"], {}).setdefault(record["method"], []).append((srcc, checkpoint))
    if not found and passed_over:
        raise ChampionError(
            f"all models of {root / RUNS} learned from simulated raters, so none of them is the choice for anybody's "
            f"images: name one, such as auto:{min(passed_over)}"
        )
    if not found and method is not None:
        tried = sorted({path.parents[2].name for path in (root / RUNS).glob(f"*/*/round-*/{TRAIN}/{RECORD}")})
        raise ChampionError(
            f"{root / RUNS} holds no model of method {method!r} that may score; it has runs of: {', '.join(tried)}"
        )
    if not found:
        raise ChampionError(
            f"{root / RUNS} holds no trained model, so there is no champion: run the study (`make study`), or name a "
            "checkpoint file"
        )
    return _of({name: _best(methods) for name, methods in found.items()}, dataset)


def _simulated(train: Path) -> bool:
    """Return whether a run's data set was scored by a formula and not by people."""
    return json.loads((train / RECORD).read_text(encoding="utf-8")).get("raters") == "simulated"


def find_shipped(root: str | Path, dataset: str | None = None, method: str | None = None) -> Path | None:
    """Return the model that came with a repository, the best by validation SRCC; None if there is none.

    Args:
        root: Of the repository, with `models/<data set>/card.json` by `agiqa publish`.
        dataset: Only of this data set.
        method: Only of this variant or baseline.

    Raises:
        ChampionError: If a card is damaged.
    """
    found = []
    for path in sorted((Path(root) / MODELS).glob(f"*/{MODEL_CARD}")):
        try:
            card = json.loads(path.read_text(encoding="utf-8"))
            if dataset in (None, card["dataset"]["dataset"]):
                found += [
                    (model["validation"]["srcc"], path.parent / model["file"])
                    for model in card["models"]
                    if method in (None, model["method"])
                ]
        except (ValueError, TypeError, KeyError) as error:
            raise ChampionError(f"{path} is damaged ({error}): restore it from git") from error
    return max(found, key=lambda entry: entry[0])[1] if found else None


def is_auto(checkpoint: str) -> bool:
    """Return whether a checkpoint is named as `find_auto` takes it."""
    return checkpoint == "auto" or checkpoint.startswith("auto:")


def find_auto(checkpoint: str, root: str | Path) -> Path:
    """Return the checkpoint that `auto`, `auto:<data set>` or `auto:<data set>:<method>` names.

    Args:
        checkpoint: One of these.
        root: Of the repository whose champion it is; where it has none, a model that came with it or with this code.

    Raises:
        ChampionError: As `find_champion`, if no model has come either.
    """
    dataset, _, method = checkpoint.removeprefix("auto").removeprefix(":").partition(":")
    try:
        return find_champion(root, dataset or None, method=method or None)
    except ChampionError:
        for folder in dict.fromkeys([Path(root), HOME]):
            if (shipped := find_shipped(folder, dataset or None, method or None)) is not None:
                return shipped
        raise


def _best(methods: Mapping[str, Sequence[tuple[float, Path]]]) -> Path:
    """Return the checkpoint of the best round of the best method, from each method's runs' SRCC and checkpoints."""
    runs = max(methods.values(), key=lambda runs: fmean(srcc for srcc, _ in runs))
    return max(runs, key=lambda run: run[0])[1]


def _of(champions: dict[str, Path], dataset: str | None) -> Path:
    """Return the champion of a data set, or the only one."""
    if dataset is None and len(champions) > 1:
        known = " or ".join(f"auto:{name}" for name in champions)
        raise ChampionError(f"the study has models of {len(champions)} data sets: say which champion, {known}")
    if dataset is not None and dataset not in champions:
        raise ChampionError(f"the study has no model of data set {dataset!r}; it has: {', '.join(champions)}")
    return champions[dataset] if dataset is not None else next(iter(champions.values()))


def choose_champions(root: str | Path, datasets: Sequence[str], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return what `layout.CHAMPIONS` says of a finished study: each data set's best run, its epoch and its weights.

    Args:
        root: The folder that holds `runs/`.
        datasets: The study's data sets; one without a clean run has no champion.
        names: The study's runs, as `<dataset>/<method>/round-<r>`.
    """
    chosen = {}
    for dataset in datasets:
        try:
            train = find_champion(root, dataset, names).parents[1]
        except ChampionError:
            continue  # a study of leaking runs alone
        record = json.loads((train / RECORD).read_text(encoding="utf-8"))
        chosen[dataset] = {
            "run": train.parent.relative_to(Path(root) / RUNS).as_posix(),
            "selected_epoch": record["selected_epoch"],
            "checkpoint_md5": record["checkpoint_md5"],
            "validation_srcc": validation_numbers(train, record["selected_epoch"])["srcc"],
        }
    return chosen


def finished_champions(root: str | Path) -> dict[str, Path]:
    """Return the checkpoints that `layout.CHAMPIONS` names, by data set, as far as they still lie there."""
    root = Path(root)
    try:
        chosen = json.loads((root / CHAMPIONS).read_text(encoding="utf-8"))
        found = {}
        for dataset, entry in chosen.items():
            train = root / RUNS / entry["run"] / TRAIN
            if not (train / RECORD).is_file():
                continue
            record = json.loads((train / RECORD).read_text(encoding="utf-8"))
            same = all(record.get(key) == entry[key] for key in ("selected_epoch", "checkpoint_md5"))
            checkpoint = checkpoint_path(train, entry["selected_epoch"])
            if same and checkpoint.is_file():
                found[dataset] = checkpoint
        return found
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ChampionError(f"{root / CHAMPIONS} is damaged ({error}): `dvc repro` writes it anew") from error
