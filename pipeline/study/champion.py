"""The best checkpoint of a study, found from its files and chosen without a look at any test number."""

import json
from collections.abc import Collection
from pathlib import Path

from pipeline.errors import AgiqaError
from pipeline.layout import RECORD, RUNS, TRAIN, bars_champion, checkpoint_path, validation_numbers


class ChampionError(AgiqaError):
    """No champion can be named."""


def find_champion(root: str | Path, dataset: str | None = None, names: Collection[str] | None = None) -> Path:
    """Return the checkpoint with the best validation SRCC among a study's clean runs.

    A run is clean if nothing leaked into it (no test-selected epoch, no random split), its labels were not shuffled and
    it was trained: `layout.bars_champion`. Of equal runs the first by name wins.

    Args:
        root: The folder that holds `runs/`.
        dataset: Only of models trained on this data set; None needs a study of one.
        names: Runs to choose from, as `<dataset>/<method>/round-<r>`; None takes all that lie there.

    Returns:
        runs/<dataset>/<variant>/round-<r>/train/checkpoints/epoch-<selected>.safetensors.

    Raises:
        ChampionError: If there is no clean run with its checkpoint, or several data sets and none is named.
    """
    root = Path(root)
    found: dict[str, list[tuple[float, Path]]] = {}
    for path in sorted((root / RUNS).glob(f"*/*/round-*/{TRAIN}/{RECORD}")):
        if names is not None and path.parents[1].relative_to(root / RUNS).as_posix() not in names:
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        if bars_champion(record):
            continue
        srcc = validation_numbers(path.parent, record["selected_epoch"]).get("srcc")
        checkpoint = checkpoint_path(path.parent, record["selected_epoch"])
        if srcc is not None and checkpoint.is_file():
            found.setdefault(record["dataset"], []).append((srcc, checkpoint))
    if not found:
        raise ChampionError(
            f"{root / RUNS} holds no trained model, so there is no champion: run the study (`make study`), or name a "
            "checkpoint file"
        )
    if dataset is None and len(found) > 1:
        known = " or ".join(f"auto:{name}" for name in found)
        raise ChampionError(f"the study has models of {len(found)} data sets: say which champion, {known}")
    if dataset is not None and dataset not in found:
        raise ChampionError(f"the study has no model of data set {dataset!r}; it has: {', '.join(found)}")
    runs = found[dataset] if dataset is not None else next(iter(found.values()))
    return max(runs, key=lambda run: run[0])[1]
