"""The runs of a study as MLflow's page shows them first: one link, whose view the experiment's own tag describes.

MLflow's page opens on a landing page or on language models' traces. Its table of runs takes columns, order and groups
from a shared view, which its button *Share* keeps as a tag of the experiment, and we as well. Its comparison of chosen
runs takes nothing from anywhere: it plots the params that differ and the first metric that a run was told.
"""

import argparse
import json
import logging
import os
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Sequence

from pipeline.layout import repository_root
from pipeline.params import load_params
from pipeline.tracking.store import ASKED_PATIENCE, open_store

logger = logging.getLogger("pipeline.tracking.view")

KEY = "study"  # of the shared view, in the link
GROUP = "group"  # the tag of runs whose mean says something: method, data set and leaks are theirs all
WIDTHS = {  # in pixels
    "tags.`method`": 110, "tags.`round`": 65, "metrics.`val/selected_srcc`": 140, "metrics.`test/srcc`": 95,
    "metrics.`test/plcc`": 85, "tags.`selected_epoch`": 120,
}  # fmt: skip
VIEW = {
    "searchFilter": "", "orderByKey": "metrics.`test/srcc`", "orderByAsc": False, "startTime": "ALL",
    "lifecycleFilter": "Active", "modelVersionFilter": "All Runs", "datasetsFilter": [],
    "selectedColumns": list(WIDTHS), "columnOrder": list(WIDTHS), "columnWidths": WIDTHS,
    "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": GROUP}]},
}  # fmt: skip
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",  # runs and models, not traces
    f"mlflow.sharedViewState.{KEY}": json.dumps(VIEW),
}

START_SECONDS = 180  # a server on a busy machine takes half a minute


def link(address: str, experiment_id: str) -> str:
    """Return the link to a study's runs on a server of MLflow's."""
    # Without `workflowType` the page beside the table offers what language models need.
    return f"{address}/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}&workflowType=machine_learning"


def answers(address: str, seconds: float = START_SECONDS) -> bool:
    """Whether a server answers within this time; asked no longer than the process lives that started this one."""
    parent, until = os.getppid(), time.monotonic() + seconds
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy leads to this machine
    while time.monotonic() < until and os.getppid() == parent:
        try:
            with local.open(f"{address}/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False


def has_display() -> bool:
    """Whether somebody sits before this terminal who may want a browser's window."""
    return sys.stdout.isatty() and any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def main(argv: Sequence[str] | None = None) -> None:
    """Wait for MLflow's server, tell the link to this study's runs and open it where there is a display."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--params", default="params.yaml")
    parser.add_argument("--address", default="http://127.0.0.1:5000")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    study = load_params(arguments.params).study.name
    with open_store(repository_root(), patience=ASKED_PATIENCE) as client:
        experiment = client.get_experiment_by_name(study)
    place = link(arguments.address, experiment.experiment_id) if experiment else f"{arguments.address}/#/experiments"
    if not answers(arguments.address):
        return  # the server has said why
    if experiment is None:
        logger.info("MLflow has no runs of study %r yet: run `make study` first", study)
    logger.info("\nThis study's runs (stop the server with Ctrl-C):\n  %s\n", place)
    if has_display():
        webbrowser.open(place)


if __name__ == "__main__":
    main()
