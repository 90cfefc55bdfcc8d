"""The study's cells: the parts that workers run apart, each a data set, a method and a round with its stages of DVC.

A cell reads what the shared stages make of the data (`dvc repro index` runs them all) and nothing of another cell, so
that any number of workers can run any of them, in any order.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import AgiqaError
from pipeline.params import Study, load_params


class Cell(NamedTuple):
    """One part of the study.

    Attributes:
        name: `<data set>/<variant>/round-<r>`, or `<data set>/<baseline>`, whose one stage serves all rounds.
        stages: Its stages as dvc.yaml names them, in the order in which they can run.
    """

    name: str
    stages: tuple[str, ...]


def cells(study: Study) -> list[Cell]:
    """Return the study's cells, trainings first; the same params give the same order, on any machine."""
    found = []
    for dataset in study.datasets:
        for variant in study.variants:
            audited = ("train_random", "audit") if variant in study.audit else ()
            for number in study.rounds:
                which = f"{dataset}-{variant}-{number}"
                stages = tuple(f"{stage}@{which}" for stage in ("train", "evaluate", *audited))
                found.append(Cell(f"{dataset}/{variant}/round-{number}", stages))
    for dataset in study.datasets:
        found += [Cell(f"{dataset}/{name}", (f"baseline@{dataset}-{name}",)) for name in study.baselines]
    return found


def share(found: Sequence[Cell], worker: int, workers: int) -> list[Cell]:
    """Return one worker's cells: every `workers`th, so that trainings and baselines are dealt out evenly.

    Raises:
        AgiqaError: If there is no such worker.
    """
    if not 0 <= worker < workers:
        raise AgiqaError(f"share {worker}/{workers}: of {workers} workers the first is 0 and the last {workers - 1}")
    return list(found[worker::workers])


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa cells` takes."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("numbers", type=int, nargs="*", default=[], metavar="N", help="print the stages of these cells")
    which.add_argument(
        "--share", type=_share, metavar="I/N", help="print the stages of the cells of worker I of N, the first being 0"
    )
    parser.add_argument("--params", default="params.yaml", metavar="FILE", help="default: params.yaml")
    parser.epilog = "Without N and --share: a table of all cells. With them, a line a cell, as `dvc repro` takes it."


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa cells` and return its exit status; errors are raised."""
    if not Path(arguments.params).is_file():
        raise AgiqaError(f"{arguments.params} does not exist: go to the folder of a study")
    found = cells(load_params(arguments.params).study)
    absent = [number for number in arguments.numbers if not 0 <= number < len(found)]
    if absent:
        raise AgiqaError(f"there is no cell {absent[0]}: the study has {len(found)}, 0 to {len(found) - 1}")
    if arguments.numbers or arguments.share:
        chosen = share(found, *arguments.share) if arguments.share else [found[number] for number in arguments.numbers]
        lines = [" ".join(cell.stages) for cell in chosen]
    else:
        width = max(len(cell.name) for cell in found)
        lines = [f"{number:4}  {cell.name:{width}}  {' '.join(cell.stages)}" for number, cell in enumerate(found)]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _share(text: str) -> tuple[int, int]:
    worker, slash, workers = text.partition("/")
    if not (slash and worker.isdecimal() and workers.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no share such as 0/8")
    return int(worker), int(workers)
