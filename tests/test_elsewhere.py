"""The examples of docs/ecosystem.md on the Hub, torchmetrics and pyiqa run as they are written there."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from made_hub import Hub

from pipeline.params import parse_params
from pipeline.yaml_file import read_yaml

PAGE = (ROOT / "docs" / "ecosystem.md").read_text()


def blocks(heading: str, language: str) -> list[str]:
    """Return the blocks of a language in a section of the page."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    return re.findall(rf"```{language}\n(.*?)```", section, re.S)


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def folder(in_tmp: Path, pictures: list[Path]) -> Path:
    """Return a working folder with a picture and the models that come with the repository."""
    (in_tmp / "photos").mkdir()
    shutil.copyfile(pictures[2], in_tmp / "photos" / "one.png")
    shutil.copytree(ROOT / "models", in_tmp / "models")
    return in_tmp


def test_a_model_is_pushed_and_scores_from_the_hub(hub: Hub, folder: Path) -> None:
    score, push = blocks("Models on the Hugging Face Hub", "bash")
    (python,) = blocks("Models on the Hugging Face Hub", "python")
    agiqa = [sys.executable, "-m", "pipeline.cli"]
    run([*agiqa, *push.split()[1:]], folder)
    assert hub.repos["me/my-model"].private
    assert "v1" in hub.repos["me/my-model"].refs
    header, row = run([*agiqa, *score.split()[1:]], folder).splitlines()
    told = dict(zip(header.split(","), row.split(","), strict=True))
    printed = run([sys.executable, "-c", python], folder).strip().strip("[]")
    assert float(printed) == pytest.approx(float(told["score"]), abs=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("torchmetrics") is None, reason="the extra `metrics` is not installed")
def test_the_metric_of_the_page_is_a_mos(folder: Path) -> None:
    (python,) = blocks("A metric for torchmetrics", "python")
    value = float(re.search(r"tensor\(([\d.]+)", run([sys.executable, "-c", python], folder))[1])
    assert 0 <= value <= 5


def test_the_baselines_of_the_page_are_params() -> None:
    (block,) = blocks("Metrics of pyiqa as baselines", "yaml")
    raw = read_yaml(ROOT / "params.yaml")
    raw["study"]["baselines"] = yaml.safe_load(block)["study"]["baselines"]
    assert parse_params(raw).study.baselines[-2:] == ["pyiqa_piqe", "pyiqa_brisque"]
