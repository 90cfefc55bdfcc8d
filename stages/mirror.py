"""Bring every run and report on disk into MLflow: after its database was deleted, or in a clone that pulled results.

Not a stage of dvc.yaml, and safe to run at any time: what MLflow already shows is left alone.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.layout import repository_root
from pipeline.params import load_params
from pipeline.serving.register import register_champions
from pipeline.tracking.mirror import mirror
from pipeline.tracking.store import tracking_uri

logger = logging.getLogger("stages.mirror")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--report", type=Path, default=Path("reports/study"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study, root = load_params(arguments.params).study, repository_root()
    names = study.run_names()
    counts = mirror(root, study.name, arguments.runs, arguments.report, names=names, strict=True)
    if not counts["runs"]:
        raise SystemExit(f"{arguments.runs}/ holds no run of study {study.name!r}: run `dvc pull` or `dvc repro` first")
    added = ", ".join(f"{counts[key]} {key}" for key in ("created", "epochs", "evaluations", "reports"))
    logger.info(
        "experiment %r in %s: %d runs on disk, added: %s", study.name, tracking_uri(root), counts["runs"], added
    )
    for name, version in register_champions(root, study.name, study.datasets, names, strict=True).items():
        logger.info("models:/%s@champion is version %s", name, version)


if __name__ == "__main__":
    main()
