"""A study of the real dvc.yaml whose stages write a few words in place of their work, and clones that share it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from made_parts import write_params

ROOT = Path(__file__).resolve().parent.parent

# What each stage writes. HOST stands for when and where it ran, SKEW for a result that comes out otherwise.
STAGE = """
import json, os, pathlib, sys
which = dict(zip(sys.argv[1::2], sys.argv[2::2]))
dataset, number = which.get("--dataset"), which.get("--round")
method = which.get("--variant") or which.get("--method") or which.get("--baseline")
stage = pathlib.Path(__file__).stem
def write(path, **values):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
with open(os.environ["JOURNAL"], "a") as journal:
    journal.write(f"{stage} {dataset} {method} {number}\\n")
host, skew = os.environ["HOST"], os.environ.get("SKEW", "")
about = {"dataset": dataset, "method": method, "round": number}
run = f"runs/{dataset}/{method}/{which.get('--split', 'round')}-{number}"
if stage == "code":
    for script in pathlib.Path("stages").glob("[!_]*.py"):
        write(f"data/code/{script.stem}.json", code=script.read_text())
elif stage in ("download", "preprocess", "split"):
    folder = {"download": "raw", "preprocess": "prepared", "split": "splits"}[stage]
    for name in ("manifest.parquet", "round-0.csv", "round-1.csv", "random-0.csv", "random-1.csv"):
        write(f"data/{folder}/{dataset}/{name}", **about)
elif stage == "features":
    write(f"data/features/{dataset}.npz", **about)
    write(f"data/feature-times/{dataset}.json", host=host)
elif stage == "index":
    for number in (0, 1):
        write(f"data/index/round-{number}.json", number=number)
elif stage == "train":
    write(f"{run}/train/record.json", **about, skew=skew)
    write(f"{run}/train/run.json", host=host)
elif stage == "evaluate" and number is not None:
    write(f"{run}/evaluate/metrics.json", **about, cost=host)
elif stage == "baseline":
    write(f"runs/{dataset}/{method}/round-0/train/record.json", **about)
elif stage == "report":
    write("reports/study/srcc.json", runs=sorted(str(path) for path in pathlib.Path("runs").rglob("record.json")))
    write("reports/study/plots/x.csv")
elif stage == "mirror":
    write("reports/champions.json", host=host)
"""
NAMES = [
    "code", "download", "preprocess", "split", "features", "index", "train", "evaluate", "baseline", "audit", "report",
    "mirror",
]  # fmt: skip


def make_origin(folder: Path, config: Path, remote: str | None = None, **options: str) -> Path:
    """Return a git repository of the study, with a DVC remote, whose shared stages have run and are pushed.

    Its cells are demo/dcmpln/round-0, demo/dcmpln/round-1 and the baseline demo/handcrafted.

    Args:
        folder: That will hold it, and the clones.
        config: Of its towers, for its params.
        remote: The remote's URL; None: a folder beside it.
        options: Of the remote.
    """
    origin = folder / "origin"
    (origin / "stages").mkdir(parents=True)
    (origin / "pipeline").mkdir()
    (origin / "pipeline/__init__.py").write_text("")
    (origin / "stages/__init__.py").write_text("")
    for name in NAMES:
        (origin / f"stages/{name}.py").write_text(STAGE)
    for name in ("dvc.yaml", "CITATION.cff", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, origin / name)
    changes = {"variants": ["dcmpln"], "baselines": ["handcrafted"], "audit": []}
    write_params(origin, config, **{f"study__{key}": value for key, value in changes.items()})
    git(origin, "init", "--quiet")
    dvc(origin, "init", "--quiet")
    shutil.copy(ROOT / ".dvc/config", origin / ".dvc/config")
    dvc(origin, "remote", "add", "--quiet", "-d", "store", remote or str(folder / "store"))
    for key, value in options.items():
        dvc(origin, "remote", "modify", "--quiet", "store", key, value)
    dvc(origin, "repro", "--quiet", "index")
    dvc(origin, "push", "--quiet", "--run-cache")
    git(origin, "add", "-A")
    git(origin, "commit", "--quiet", "-m", "the data, prepared")
    return origin


def clone(origin: Path, name: str) -> Path:
    """Return a clone of the study beside it."""
    place = origin.parent / name
    git(origin, "clone", "--quiet", str(origin), str(place))
    return place


def work(place: Path, *stages: str, skew: str = "", push: bool = True) -> None:
    """Run stages in a clone as a worker does, which is called by its folder's name, and push what they made."""
    dvc(place, "repro", "--quiet", "--pull", *stages, skew=skew)
    if push:
        dvc(place, "push", "--quiet", "--run-cache")


def journal(place: Path) -> list[str]:
    """Return which stages have run in a clone."""
    path = place.parent / f"{place.name}.journal"
    return path.read_text().splitlines() if path.is_file() else []


def environment(place: Path, skew: str = "") -> dict[str, str]:
    """Return the environment in which the stages of a clone run."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    about = {"HOST": place.name, "SKEW": skew, "JOURNAL": str(place.parent / f"{place.name}.journal")}
    return {**kept, **about, "PATH": path, "PYTHONPATH": ""}


def dvc(place: Path, *words: str, skew: str = "") -> None:
    """Run DVC in a clone."""
    subprocess.run([sys.executable, "-m", "dvc", *words], cwd=place, env=environment(place, skew), check=True)


def git(place: Path, *words: str) -> None:
    """Run git in a folder, as somebody."""
    somebody = ("-c", "user.name=somebody", "-c", "user.email=somebody@localhost")
    subprocess.run(["git", *somebody, *words], cwd=place, check=True, stdout=subprocess.DEVNULL)
