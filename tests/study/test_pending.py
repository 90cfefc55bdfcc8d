"""What is said to run is what then runs: the oracle is DVC itself, whose commands tell a file that they ran."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.errors import AgiqaError
from pipeline.params import load_params
from pipeline.study.pending import Step, pending

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of DVC's own making
CODE = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from pipeline.code import code_of
from pipeline.files import write_json
for script in Path("stages").glob("*.py"):
    write_json(Path("data/code") / (script.stem + ".json"), code_of(script))
"""
INDEX = """
import hashlib, json, pathlib, sys, yaml
params = yaml.safe_load(open("params.yaml"))
split = hashlib.md5(open("data/splits/demo/round-0.csv", "rb").read()).hexdigest()
features = hashlib.md5(open("data/features/demo.npz", "rb").read()).hexdigest()
folder = pathlib.Path("data/index")
folder.mkdir(parents=True)
said = {"prepared": {"demo": "x"}, "splits": {"demo": split}, "evaluate": params["evaluate"]}
(folder / "round-0.json").write_text(json.dumps(said))
(folder / "features.json").write_text(features)
"""


def told(stage: str, command: str) -> str:
    """Return a command that also says that it ran, outside of what DVC looks at."""
    return f"echo {stage} >> ../ran.txt && {command}"


def one_run(stage: str, reads: str, value: str) -> str:
    folder = f"runs/demo/dcmpln/round-0/{stage}"
    return told(
        stage, f"mkdir -p {folder} && cat {reads} > {folder}/record.json && echo {value} >> {folder}/record.json"
    )


STAGES = {
    "code": {"cmd": told("code", f"{sys.executable} code.py"), "deps": ["stages"], "outs": ["data/code"]},
    "split": {
        "foreach": ["demo"],
        "do": {
            "cmd": told("split", "mkdir -p data/splits/demo && echo ${split.seed} > data/splits/demo/round-0.csv"),
            "deps": ["data/code/split.json"], "params": ["split"], "outs": ["data/splits/${item}"],
        },
    },
    "features": {
        "foreach": ["demo"],
        "do": {
            "cmd": told("features", "mkdir -p data/features && echo ${images.stride} > data/features/${item}.npz"),
            "deps": ["data/code/split.json"], "params": ["images.stride"], "outs": ["data/features/${item}.npz"],
        },
    },
    "train": {
        "matrix": {"dataset": ["demo"], "variant": ["dcmpln"], "round": [0]},
        "cmd": one_run("train", "data/splits/demo/round-0.csv", "${train.learning_rate}"),
        "deps": ["data/code/train.json", "data/splits/${item.dataset}/round-${item.round}.csv"],
        "params": ["train"], "outs": ["runs/demo/dcmpln/round-0/train"],
    },
    "index": {
        "cmd": told("index", f"{sys.executable} index.py"), "deps": ["data/features", "data/splits"],
        "params": ["evaluate"], "outs": ["data/index"],
    },
    "evaluate": {
        "matrix": {"dataset": ["demo"], "method": ["dcmpln"], "round": [0]},
        "cmd": one_run("evaluate", "runs/demo/dcmpln/round-0/train/record.json", "."),
        "deps": ["data/index/round-0.json", "runs/demo/dcmpln/round-0/train/record.json"],
        "outs": ["runs/demo/dcmpln/round-0/evaluate"],
    },
    "report": {
        "cmd": told("report", "mkdir -p reports/study && cat runs/*/*/*/*/record.json > reports/study/all"),
        "deps": ["data/code/report.json", "data/index", "runs"], "outs": ["reports/study"],
    },
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a repository of DVC's with stages like the study's, which run in no time."""
    from dvc.repo import Repo

    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Repo.init(no_scm=True).close()
    shutil.copy(ROOT / "params" / "smoke.yaml", "params.yaml")
    (folder / "stages").mkdir()
    for name in ("split", "train", "report"):
        (folder / "stages" / f"{name}.py").write_text("")
    (folder / "code.py").write_text(CODE.format(root=str(ROOT)))
    (folder / "index.py").write_text(INDEX)
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": STAGES}, sort_keys=False))
    return folder


def edit(key: str, value: object) -> None:
    section, name = key.split(".")
    raw = yaml.safe_load(Path("params.yaml").read_text())
    raw[section][name] = value
    Path("params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))


def reproduce() -> list[str]:
    """Let DVC run what it will; return the names of the stages whose command ran."""
    from dvc.repo import Repo

    told_in = Path("../ran.txt")
    told_in.write_text("")
    logging.getLogger("dvc").setLevel(logging.ERROR)
    with Repo(".") as repo:
        repo.reproduce()
    return told_in.read_text().split()


def names(steps: list[Step], *, cached: bool = False) -> list[str]:
    return [step.stage for step in steps if step.cached == cached]


def ask() -> list[Step]:
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and ".dvc" not in path.parts}
    steps = pending(load_params("params.yaml"))
    assert {path: path.read_bytes() for path in before} == before  # asking changes nothing
    return steps


@pytest.mark.slow
def test_what_is_said_to_run_is_what_then_runs(home: Path) -> None:
    everything = ["code", "split", "features", "train", "index", "evaluate", "report"]
    steps = ask()
    assert sorted(names(steps)) == sorted(everything)
    assert {step.stage: step.item for step in steps}["train"] == ("demo", "dcmpln", "0")
    assert sorted(reproduce()) == sorted(everything)
    assert ask() == []
    changes: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: edit("train.learning_rate", 0.5), ["train", "evaluate", "report"]),
        (lambda: edit("images.stride", 99), ["features", "index", "report"]),
        (lambda: edit("evaluate.gallery", 1), ["index", "evaluate", "report"]),
        (lambda: Path("stages/report.py").write_text("x = 1\n"), ["code", "report"]),
    ]
    for change, expected in changes:
        change()
        assert names(ask()) == expected
        assert reproduce() == expected
        assert ask() == []


@pytest.mark.slow
def test_what_the_cache_holds_is_told_apart(home: Path) -> None:
    reproduce()
    edit("train.learning_rate", 0.5)
    reproduce()
    edit("train.learning_rate", 0.005)
    steps = ask()
    assert names(steps, cached=True) == ["train", "evaluate"]
    assert names(steps) == ["report"]  # of all runs together: nobody can know before
    assert reproduce() == []  # the report came back, too
    shutil.rmtree("runs/demo/dcmpln/round-0/train")
    assert names(ask(), cached=True) == ["train"]
    assert reproduce() == []
    shutil.rmtree(".dvc/cache")
    shutil.rmtree("data/splits")
    assert "split" in names(ask())


def test_a_folder_that_is_none_of_dvcs_is_told(in_tmp: Path) -> None:
    with pytest.raises(AgiqaError, match=r"^DVC cannot say what it would run: you are not inside of a DVC repository"):
        pending(load_params(ROOT / "params" / "demo.yaml"))


def test_index_and_code_are_told_as_their_stages_write_them() -> None:
    """What is told without running them rests on what they write: see stages/index.py and stages/code.py."""
    index = (ROOT / "stages" / "index.py").read_text()
    assert '{"prepared": prepared, "splits": splits, "evaluate": params.evaluate.model_dump()}' in index
    assert 'f"round-{number}.json"' in index
    assert 'write_json(folder / f"{script.stem}.json", code_of(script))' in (ROOT / "stages" / "code.py").read_text()
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert json.dumps(stages["index"]["outs"]) == '["data/index"]'
