"""Bring every run and the report into MLflow, and let the alias `champion` follow the finished study.

The last stage of dvc.yaml, since a stage that DVC restored from its cache has told MLflow nothing. By hand, as `make
mirror`, it serves a database that was deleted and a clone that pulled its results. It is safe to run at any time: what
MLflow already shows is left alone.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import write_json
from pipeline.layout import CHAMPIONS, repository_root
from pipeline.params import load_params
from pipeline.serving.register import register_champions
from pipeline.study.champion import choose_champions, finished_champions
from pipeline.tracking.mirror import mirror
from pipeline.tracking.store import shown, tracking_uri

logger = logging.getLogger("stages.mirror")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--report", type=Path, default=Path("reports/study"))
    parser.add_argument(
        "--finished",
        action="store_true",
        help=f"as the last stage of a study: choose the champions, into {CHAMPIONS}, and let a store that fails be a "
        "warning",
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study, root, strict = load_params(arguments.params).study, repository_root(), not arguments.finished
    names = study.run_names()
    if arguments.finished:
        write_json(CHAMPIONS, choose_champions(Path(), study.datasets, names))
    # DVC runs an experiment of `--temp` or of a queue in a copy: its runs are shown, but the workspace has the study.
    in_workspace = Path.cwd().resolve() == root
    counts = mirror(
        root, study.name, arguments.runs, arguments.report if in_workspace else None, names=names, strict=strict
    )
    if strict and not counts["runs"]:
        raise SystemExit(f"{arguments.runs}/ holds no run of study {study.name!r}: run `dvc pull` or `dvc repro` first")
    added = ", ".join(f"{counts[key]} {key}" for key in ("created", "epochs", "evaluations", "reports"))
    place = shown(tracking_uri(root))
    logger.info("experiment %r in %s: %d runs on disk, added: %s", study.name, place, counts["runs"], added)
    champions = finished_champions(Path()) if in_workspace else {}
    for name, version in register_champions(root, study.name, champions, strict=strict).items():
        logger.info("models:/%s@champion is version %s", name, version)


if __name__ == "__main__":
    main()
