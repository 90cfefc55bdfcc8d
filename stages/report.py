"""Report the study: one page, its tables and figures, and README-ready text, beside what others published.

Reads exactly the data sets, methods and rounds that params.yaml names.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from pipeline.files import sweep
from pipeline.params import load_params
from pipeline.report.citation import lock_md5
from pipeline.report.report import write_report

CITATION = Path("CITATION.cff")
logger = logging.getLogger("stages.report")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--out", type=Path, default=Path("reports/study"))
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    params = load_params(arguments.params)
    study = params.study
    sweep(arguments.runs)
    written = write_report(
        arguments.out,
        study.name,
        study.datasets,
        study.methods,
        study.rounds,
        generated=[name for name in study.datasets if params.datasets[name].reader == "demo"],
        runs=arguments.runs,
        splits=arguments.data / "splits",
        prepared=arguments.data / "prepared",
        audited=study.audit,
        lock=lock_md5("dvc.lock"),
        citation=CITATION.read_text(encoding="utf-8") if CITATION.is_file() else None,
    )
    logger.info("%d files in %s; open index.html", len(written), arguments.out)


if __name__ == "__main__":
    main()
