"""Measure what every start costs: `dvc repro` with nothing to do, and a train stage before and after its epochs.

Run from the repository root: `python benchmarks/startup.py`. Both are tried in clones of the repository's last commit,
in a temporary folder, so nothing of this checkout is touched. Writes benchmarks/startup.md.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # so that the script runs without the package installed

from pipeline.layout import checkpoint_name  # noqa: E402

CHECKPOINTS = 50  # of each training of the full study


class Cost(NamedTuple):
    """Seconds of a process: on the clock, and of processor time, which other programs disturb least; and its output."""

    wall: float
    processor: float
    output: str


def run(folder: Path, *arguments: str) -> Cost:
    """Run a module with this Python in a folder, and fail with what it said if it fails."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "HF_HUB_OFFLINE": "1", "DVC_NO_ANALYTICS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    started, before = time.perf_counter(), os.times()
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Cost(time.perf_counter() - started, processor, done.stdout)


def clone(folder: Path, params: str) -> Path:
    """Clone the repository's last commit, with one of the ready-made sets of parameters."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    shutil.copy(folder / "params" / params, folder / "params.yaml")
    return folder


def finished_study(folder: Path, audit: bool) -> int:
    """Give a clone every output that the full study would leave, as many but small; return its number of stages."""
    from dvc.repo import Repo

    clone(folder, "full.yaml")
    if not audit:
        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(re.sub(r"^  audit: .*$", "  audit: []", text, flags=re.MULTILINE))
    run(folder, "stages.code")
    with Repo(str(folder)) as repo:
        stages = list(repo.index.stages)
        for stage in stages:
            for out in stage.outs:
                path = Path(out.fs_path)
                if path.suffix in (".json", ".npz"):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(path.name)
                    continue
                path.mkdir(parents=True, exist_ok=True)
                if path.name == "train":
                    (path / "checkpoints").mkdir()
                    for epoch in range(1, CHECKPOINTS + 1):
                        (path / "checkpoints" / checkpoint_name(epoch)).write_text(f"{path} {epoch}")
                (path / "files.txt").write_text(str(path))
        for stage in stages:
            for dependency in stage.deps:
                path = Path(dependency.fs_path)
                if not path.exists():
                    path.write_text(str(path))
    run(folder, "dvc", "commit", "--force", "--quiet")
    return len(stages)


def repro_cost(audit: bool, repeats: int = 5) -> tuple[int, Cost]:
    """Return the full study's stages and the median of idle `dvc repro`.

    The study: 3 data sets, 5 variants, 3 baselines, 10 rounds; with `audit` also 30 trainings on random splits.
    """
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "study"
        stages = finished_study(study, audit)
        costs = [run(study, "dvc", "repro") for _ in range(repeats)]
    for cost in costs:
        if "Data and pipelines are up to date." not in cost.output:
            raise RuntimeError(f"dvc found something to do:\n{cost.output[-2000:]}")
    return stages, sorted(costs)[repeats // 2]


def train_stage_seconds(repeats: int = 5) -> float:
    """Return the seconds on the clock of a train stage of the smoke study beyond its epochs.

    Imports, loading, MLflow, copying. It says something on a quiet machine only.
    """
    with tempfile.TemporaryDirectory() as folder:
        study = clone(Path(folder) / "study", "smoke.yaml")
        section = yaml.safe_load((study / "params.yaml").read_text())["study"]
        dataset, variant, number = section["datasets"][0], section["variants"][0], section["rounds"][0]
        for stage in ("download", "preprocess", "split"):
            run(study, f"stages.{stage}", "--dataset", dataset)
        out = study / "runs" / dataset / variant / f"round-{number}" / "train"
        seconds = []
        for _ in range(repeats + 1):  # the first one creates MLflow's database
            shutil.rmtree(study / ".work" / "train", ignore_errors=True)
            arguments = ("--dataset", dataset, "--variant", variant, "--round", str(number))
            whole = run(study, "stages.train", *arguments)
            epochs = pd.read_csv(out / "timing.csv")["seconds"].sum()
            seconds.append(float(whole.wall - epochs))
    return sorted(seconds[1:])[repeats // 2]


if __name__ == "__main__":
    lines = ["| start | wall, s | processor, s |", "| --- | ---: | ---: |"]
    for audit in (False, True):
        count, repro = repro_cost(audit)
        what = f"{count} stages: 3 data sets x 5 variants x 10 rounds{', and the audit of leaks' if audit else ''}"
        lines.append(f"| `dvc repro` without work, {what} | {repro.wall:.1f} | {repro.processor:.1f} |")
    lines.append(f"| a train stage beyond its epochs | {train_stage_seconds():.1f} | |")
    table = "\n".join(lines) + "\n"
    (ROOT / "benchmarks" / "startup.md").write_text(table)
    sys.stdout.write(table)
