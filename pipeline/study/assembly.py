"""One study from what many workers made: their results into dvc.lock, the workspace and MLflow, with nothing computed.

A result is taken if its inputs are those of this folder, to the last hash. What nobody has made is named and left to be
made; two results of the same inputs that say different things are named and neither is taken. Done again, nothing
changes.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from pipeline.errors import AgiqaError
from pipeline.layout import CHAMPIONS, LOCK
from pipeline.params import load_params
from pipeline.study import runcache
from pipeline.study.cells import cells

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

    from pipeline.study.runcache import Result

LAST = ("report", "mirror")  # they train nothing, and tell of all cells
SHOWN = 8  # digits of a result's name, as `--take` gives it; and files or inputs in a line


@dataclass
class Assembly:
    """What came of it, stages by the names of dvc.yaml.

    Attributes:
        kept: Were here already.
        restored: Came from a source, with its name.
        alike: Of several results that differ in times alone: which is kept.
        missing: Nobody has made them, with what is known of why.
        waiting: What they need is missing or contradicted, with its name.
        contradicted: There are results that differ, with what differs and how to take one.
    """

    kept: list[str] = field(default_factory=list)
    restored: dict[str, str] = field(default_factory=dict)
    alike: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    contradicted: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every stage but the last ones has its one result."""
        return not (self.missing or self.waiting or self.contradicted)


def assemble(sources: Sequence[str] = (), take: Mapping[str, str] | None = None) -> Assembly:
    """Bring every result of the working folder's study from remotes and clones here; run no stage.

    Args:
        sources: Names of DVC remotes, or folders of other clones; none: the default remote.
        take: Of stages whose results contradict each other, the beginning of the name of the one to take.

    Raises:
        AgiqaError: If a source cannot be read, `take` names nothing that is there, or files would be overwritten that
            no cache has.
    """
    take, made = dict(take or {}), Assembly()
    with runcache.opened(sources) as (repo, called):
        results = runcache.read_results(repo, called)
        called |= {runcache.HERE: runcache.HERE}
        stages = [stage for stage in _in_order(repo) if stage.name not in LAST]
        unknown = take.keys() - {stage.addressing for stage in stages}
        if unknown:
            raise AgiqaError(f"--take {min(unknown)}: the study has no such stage; `agiqa cells` lists them")
        upstream = repo.index.graph
        for stage in tqdm(stages, "gather", unit="stage", delay=1, dynamic_ncols=True):
            without = made.missing.keys() | made.waiting.keys() | made.contradicted.keys()
            needed = next((need.addressing for need in upstream.successors(stage) if need.addressing in without), None)
            if needed:
                made.waiting[stage.addressing] = made.waiting.get(needed, needed)
            else:
                _bring(repo, stage, results, called, take.get(stage.addressing), made)
    return made


def _in_order(repo: "Repo") -> list["PipelineStage"]:
    import networkx as nx

    return list(nx.dfs_postorder_nodes(repo.index.graph))


def _bring(
    repo: "Repo",
    stage: "PipelineStage",
    results: Mapping[str, Sequence["Result"]],
    called: Mapping[str, str],
    wanted: str | None,
    made: Assembly,
) -> None:
    """Bring one stage, whose inputs are here, and note what came of it."""
    name = stage.addressing
    key, ours = runcache.inputs_of(stage)
    found = list(results.get(key, []))
    if ours:
        if all(result.outputs != ours.outputs for result in found):
            found.append(ours)
        # What only this folder has made and then made again, it has decided upon itself.
        found = [one for one in found if one.sources != (runcache.HERE,) or one.outputs == ours.outputs]
    whole = [result for result in found if runcache.fetched(repo, result)]
    if not whole:
        made.missing[name] = _why(stage, found, results, called)
        return
    # What is here stays where results are alike; else the same one is taken wherever this runs.
    chosen = next((one for one in whole if ours and one.outputs == ours.outputs), min(whole, key=lambda one: one.name))
    if wanted:
        chosen = _taken(name, wanted, whole)
    others = [result for result in whole if result.outputs != chosen.outputs]
    differing = {path for other in others for path in runcache.differences(repo, chosen, other)}
    if differing and not wanted:
        made.contradicted[name] = _told(name, sorted(differing), [chosen, *others], called)
        return
    if others:
        made.alike[name] = f"{chosen.name[:SHOWN]} of {called[chosen.sources[0]]}"
    if ours and chosen.outputs == ours.outputs and not stage.changed():
        made.kept.append(name)
        return
    runcache.restore(repo, stage, chosen)
    made.restored[name] = called[chosen.sources[0]]


def _taken(stage: str, wanted: str, results: Sequence["Result"]) -> "Result":
    fitting = [result for result in results if result.name.startswith(wanted)]
    if len(fitting) != 1:
        known = ", ".join(result.name[:SHOWN] for result in results)
        raise AgiqaError(f"--take {stage}={wanted}: that names {len(fitting)} of its results; they are {known}")
    return fitting[0]


def _told(stage: str, files: Sequence[str], results: Sequence["Result"], called: Mapping[str, str]) -> str:
    which = "; ".join(
        f"{result.name[:SHOWN]} of {', '.join(called[source] for source in result.sources)}" for result in results
    )
    return (
        f"results of the same inputs differ in {_some(files)}: {which}. Look into it, then take one: "
        f"--take {stage}={results[0].name[:SHOWN]}"
    )


def _why(
    stage: "PipelineStage",
    lost: Sequence["Result"],
    results: Mapping[str, Sequence["Result"]],
    called: Mapping[str, str],
) -> str:
    """Return what is known of a result that is not there."""
    from dvc.stage.serialize import to_single_stage_lockfile

    if lost:
        source = called[lost[0].sources[-1]]
        return f"{source} names a result whose files are nowhere: let its worker do `dvc push --run-cache` again"
    wanted = to_single_stage_lockfile(stage)
    near = [
        (runcache.changed_inputs(wanted, result.locked), called[result.sources[-1]])
        for of_key in results.values()
        for result in of_key
        if result.locked["cmd"] == wanted["cmd"]
    ]
    if not near:
        return "nobody has made it"
    names, source = min(near, key=lambda one: len(one[0]))
    return f"nobody has made it of these inputs; that of {source} is of another {_some(names)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


# The command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `agiqa gather` takes."""
    parser.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="a DVC remote, or a clone's folder; default: the default remote"
    )
    parser.add_argument(
        "--take",
        action="append",
        default=[],
        metavar="STAGE=HASH",
        help="which of contradicting results to take, as the message of the contradiction names them; again for more",
    )
    parser.epilog = (
        "Trains nothing, ever: what is missing is named. Safe to run at any time, and again. Exit status 0: the study\n"
        "is whole, its report and MLflow are up to date; 1: something is missing or contradicted."
    )


def run(arguments: argparse.Namespace) -> int:
    """Do `agiqa gather` and return its exit status; errors are raised."""
    params = Path("params.yaml")
    if not Path("dvc.yaml").is_file() or not params.is_file():
        raise AgiqaError(f"{Path.cwd()} holds no dvc.yaml and params.yaml: go to the folder of a study")
    cell_of = {stage: cell.name for cell in cells(load_params(params).study) for stage in cell.stages}
    pairs = [text.partition("=")[::2] for text in arguments.take]
    wrong = next((text for text, (_, name) in zip(arguments.take, pairs, strict=True) if not name), None)
    if wrong is not None:
        raise AgiqaError(f"--take {wrong}: give a stage and the beginning of a result, as train@demo-dcmpln-0=1a2b3c4d")
    made = assemble(arguments.sources, dict(pairs))
    for kind in ("contradicted", "missing", "waiting"):
        for stage, why in getattr(made, kind).items():
            cell = f" ({cell_of[stage]})" if stage in cell_of else ""
            sys.stdout.write(f"{kind:12} {stage}{cell}: {f'needs {why}' if kind == 'waiting' else why}\n")
    for stage, which in made.alike.items():
        _say(f"{stage}: several results, which differ in times alone; kept {which}")
    whose = {source: list(made.restored.values()).count(source) for source in sorted(set(made.restored.values()))}
    told = ", ".join(f"{count} from {source}" for source, count in whose.items())
    _say(f"{len(made.restored)} stages restored{f' ({told})' if told else ''}, {len(made.kept)} were here; nothing ran")
    if not made.complete:
        lacking = {cell_of.get(stage, stage) for stage in (*made.missing, *made.waiting, *made.contradicted)}
        _say(f"the study is not whole, and nothing was trained for what it lacks: {', '.join(sorted(lacking))}")
        return 1
    # `--single-item`: these two and nothing that they depend on, whatever DVC may think of it.
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *LAST]
    done = subprocess.run(command, stdout=2, check=False)  # to standard error: what is found goes to output
    if done.returncode:
        raise AgiqaError(f"{' and '.join(LAST)} failed, as told above; all results are here: `dvc repro` goes on")
    _say(f"the study is whole: {LOCK}, runs/, reports/study and {CHAMPIONS}, and MLflow shows it")
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"agiqa: {text}\n")
