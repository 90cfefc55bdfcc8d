"""MLflow's alias `champion` as DVC itself moves it: with the finished study, and with nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from made_runs import STUDY, client_of, experiment_of

from pipeline.study.champion import find_champion
from pipeline.tracking import entries, models

PLAY = """
import json, sys, uuid
from pathlib import Path
import yaml
from made_runs import make_record, write_train
from pipeline.serving import register
from pipeline.tracking import models
import stages.mirror

def save(path, artifacts):
    path.mkdir()
    (path / "epoch-002.safetensors").write_bytes(artifacts["checkpoint"].read_bytes())

word = sys.argv[1]
if word == "mirror":  # without the seconds that a real model takes to be exported
    register._write_program = lambda checkpoint, out: None
    models._save_served_model = save
    stages.mirror.main(sys.argv[2:])
else:
    rate = yaml.safe_load(Path("params.yaml").read_text())["train"]["learning_rate"]
    if word == "train":
        record = make_record() | {"leaks": [], "checkpoint_md5": f"of {rate}", "params": {"train.learning_rate": rate}}
        run = write_train(Path(), record, uuid.uuid4().hex)
        (run / "train/checkpoints/epoch-002.safetensors").write_text(f"learned at {rate}")
    else:
        Path("reports/study").mkdir(parents=True)
        Path("reports/study/metrics.json").write_text(json.dumps({"rate": rate}))
"""


class Workspace:
    """A git clone with three stages, the last one ours: `dvc` runs it, and MLflow's alias is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        params = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())
        params["study"] |= {"name": STUDY, "variants": ["dcmpln"], "baselines": [], "rounds": [0], "audit": []}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        ours = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["mirror"]
        assert ours["cmd"] == "python -m stages.mirror --finished"
        ours |= {"cmd": "python play.py mirror --finished", "deps": ["reports/study", "runs"]}
        train = {"params": ["train.learning_rate"], "outs": ["runs/demo/dcmpln/round-0/train"]}
        report = {"params": ["study"], "deps": ["runs"], "outs": ["reports/study"]}
        stages = {"train": train, "report": report}
        stages = {name: {"cmd": f"python play.py {name}", **stage} for name, stage in stages.items()}
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages | {"mirror": ours}}))
        (folder / "play.py").write_text(PLAY)
        for name in (".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        for words in (["git", "init", "-q"], ["dvc", "init", "-q"]):
            self.run(*words)
        shutil.copy(ROOT / ".dvc" / "config", folder / ".dvc" / "config")
        self.commit()

    def run(self, *words: str) -> str:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        }  # fmt: skip
        words = (sys.executable, "-m", *words) if words[0] == "dvc" else words
        done = subprocess.run(
            words, cwd=self.folder, env=environment, check=False, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "-qm", "state")

    def repro(self, rate: float) -> str:
        path = self.folder / "params.yaml"
        params = yaml.safe_load(path.read_text())
        params["train"]["learning_rate"] = rate
        path.write_text(yaml.safe_dump(params))
        return self.run("dvc", "repro")

    def champion(self) -> str:
        """Return what the alias leads to, which must be what `--checkpoint auto` scores with where both are asked."""
        return models.fetch_checkpoint("models:/agiqa-demo@champion", self.folder).read_text()

    def auto(self) -> str:
        return find_champion(self.folder).read_text()


@pytest.mark.slow
def test_the_champion_follows_the_finished_study_and_no_experiment_beside_it(
    make_root: Callable[[str], Path],
) -> None:
    root = make_root("workspace")  # under a name with a number sign, DVC itself starts no experiments
    here = Workspace(root)
    here.repro(0.1)
    assert here.champion() == here.auto() == "learned at 0.1"
    here.repro(0.2)
    assert here.champion() == here.auto() == "learned at 0.2"
    printed = here.repro(0.1)  # all but the mirror comes back from DVC's cache
    assert [f"Stage '{name}' is cached - skipping run" in printed for name in ("train", "report", "mirror")] == [
        True, True, False
    ]  # fmt: skip
    assert here.champion() == here.auto() == "learned at 0.1"
    assert "Data and pipelines are up to date." in here.run("dvc", "repro")

    here.commit()
    here.run("dvc", "exp", "run", "--temp", "-S", "train.learning_rate=0.3")
    assert here.champion() == here.auto() == "learned at 0.1"
    client = client_of(root)
    shown = client.search_runs([experiment_of(root)], "params.`train.learning_rate` = '0.3'")
    assert len(shown) == 1  # it is to be seen beside the others
    parent = client.search_runs([experiment_of(root)], f"tags.`{entries.KIND}` = 'study'")[0]
    assert (parent.info.status, parent.data.metrics["mean/rate"]) == ("FINISHED", 0.1)  # the workspace's report

    # Another clone, with a store of its own, that got the results by `dvc pull`.
    here.run("dvc", "remote", "add", "-q", "-d", "store", str(root.parent / "remote"))
    here.run("dvc", "push", "-q")
    here.commit()
    other = make_root("other")
    here.run("git", "clone", "-q", ".", str(other / "clone"))
    there = object.__new__(Workspace)
    there.folder = other / "clone"
    there.run("dvc", "pull", "-q")
    assert "Data and pipelines are up to date." in there.run("dvc", "repro")
    shutil.move(other / "mlflow.db", there.folder)
    there.run(sys.executable, "play.py", "mirror")
    assert there.champion() == there.auto() == "learned at 0.1"


@pytest.mark.slow
def test_a_store_that_fails_does_not_fail_the_study(root: Path) -> None:
    here = Workspace(root)
    (root / "mlflow.db").write_text("no database")
    printed = here.repro(0.1)
    assert "MLflow does not show what is on disk: " in printed
    assert (root / "reports/champions.json").is_file()
    (root / "mlflow.db").unlink()
    assert "models:/agiqa-demo@champion is version 1" in here.run(sys.executable, "play.py", "mirror")
    assert here.champion() == here.auto() == "learned at 0.1"
