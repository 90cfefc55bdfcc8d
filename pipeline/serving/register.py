"""The best model of each data set as an MLflow model version with the alias `champion`, ready to load and serve."""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.study.champion import ChampionError, find_champion
from pipeline.tracking.models import log_champion
from pipeline.tracking.store import or_warn

logger = logging.getLogger(__name__)


def register_champions(
    root: str | Path,
    study: str,
    datasets: Sequence[str],
    names: Collection[str],
    *,
    folder: str | Path = "",
    strict: bool = False,
) -> dict[str, str]:
    """Register each data set's best validation-selected checkpoint; a champion that is registered already stays.

    Args:
        root: Of the main repository, where MLflow's store lies.
        study: Name of the study.
        datasets: The study's data sets.
        names: The study's runs, as `<dataset>/<method>/round-<r>`.
        folder: Holds `runs/`: the working folder, which under `dvc exp run --temp` is not the main repository.
        strict: Raise if the store cannot be written, where otherwise a warning does.

    Returns:
        The version that carries the alias, by registered model; data sets without a clean trained variant have none.
    """
    versions = {}
    for dataset in datasets:
        try:
            checkpoint = find_champion(folder, dataset, names)
        except ChampionError:
            continue  # a study of baselines alone, or of leaking runs, has no champion
        with or_warn(f"the champion of {dataset}", strict=strict):
            versions[f"agiqa-{dataset}"] = log_champion(root, study, checkpoint.parents[1], _write_program)
    return versions


def _write_program(checkpoint: Path, out: Path) -> None:
    # imported here: brings in torch, which a champion of old does not need
    from pipeline.scoring.scorer import load_scorer
    from pipeline.serving.program import export_scorer

    logger.info("registering %s as a model to serve (some seconds)", checkpoint)
    export_scorer(load_scorer(checkpoint, device="cpu"), out)
