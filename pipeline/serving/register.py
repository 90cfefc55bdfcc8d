"""The champion of each data set as an MLflow model version with the alias `champion`, ready to load and serve."""

import logging
from collections.abc import Mapping
from pathlib import Path

from pipeline.tracking.models import log_champion
from pipeline.tracking.store import ASKED_PATIENCE, PATIENCE, or_warn

logger = logging.getLogger(__name__)


def register_champions(
    root: str | Path, study: str, champions: Mapping[str, Path], *, strict: bool = False
) -> dict[str, str]:
    """Register each data set's champion; one that is registered already stays.

    Args:
        root: Of the main repository, where MLflow's store lies.
        study: Name of the study.
        champions: Their checkpoints by data set: `pipeline.study.champion.finished_champions`.
        strict: Somebody asked for it: wait longer for other writers, and raise if the store cannot be written, where
            otherwise a warning does.

    Returns:
        The version that carries the alias, by registered model.
    """
    versions = {}
    patience = ASKED_PATIENCE if strict else PATIENCE
    for dataset, checkpoint in champions.items():
        with or_warn(f"the champion of {dataset}", strict=strict):
            train = checkpoint.parents[1]
            versions[f"agiqa-{dataset}"] = log_champion(root, study, train, _write_program, patience=patience)
    return versions


def _write_program(checkpoint: Path, out: Path) -> None:
    # imported here: brings in torch, which a champion of old does not need
    from pipeline.scoring.scorer import load_scorer
    from pipeline.serving.program import export_scorer

    logger.info("registering %s as a model to serve (some seconds)", checkpoint)
    scorer = load_scorer(checkpoint, device="cpu")
    if scorer.folded is not None:
        export_scorer(scorer, out)
