"""The models that come with the repository: their cards are true, and anyone can score with them before any study."""

import csv
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from pipeline.cli import main
from pipeline.files import file_md5
from pipeline.model.checkpoint_file import calibration_of, read_checkpoint
from pipeline.scoring.scorer import load_scorer
from pipeline.study.champion import find_shipped
from pipeline.study.publish import card_text

ROOT = Path(__file__).resolve().parent.parent
CARDS = sorted((ROOT / "models").glob("*/card.json"))
FOLDER = ROOT / "models" / "agiqa3k"


def test_there_are_models() -> None:
    assert FOLDER / "card.json" in CARDS


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.parent.name)
def test_a_card_fits_its_models(path: Path) -> None:
    card = json.loads(path.read_text())
    assert (path.parent / "README.md").read_text() == card_text(card)
    assert {"README.md", "card.json", *(model["file"] for model in card["models"])} == {
        file.name for file in path.parent.iterdir()
    }
    for model in card["models"]:
        assert model["md5"] == file_md5(path.parent / model["file"])
        record, _ = read_checkpoint(path.parent / model["file"])
        assert record["leaks"] == []
        assert record["raters"] == "people"
        assert record["unfamiliar_beyond"] > 0
        assert calibration_of(record).images == model["images"]["validation"]
        assert record["generator_error"] == model["generator_error"]
        assert model["test"]["n"] == model["images"]["test"] == len(card["split"]["test_images"])


def test_the_default_is_the_best_on_validation() -> None:
    models = json.loads((FOLDER / "card.json").read_text())["models"]
    best = max(models, key=lambda model: model["validation"]["srcc"])
    assert find_shipped(ROOT) == FOLDER / best["file"]


@pytest.fixture(scope="module")
def tested(agiqa_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Return a folder with every eighth test image of the card, and their labels."""
    folder = tmp_path_factory.mktemp("tested")
    wanted = json.loads((FOLDER / "card.json").read_text())["split"]["test_images"][::8]
    with zipfile.ZipFile(agiqa_data / "agiqa3k" / "AGIQA-3K.zip") as archive:
        labels = pd.read_csv(io.BytesIO(archive.read("data.csv"))).set_index("name").loc[wanted]
        for name in wanted:
            (folder / name).write_bytes(archive.read(f"img/{name}"))
    return folder, labels


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dcmpln", "linear_probe", "handcrafted"])
def test_models_do_on_test_images_what_their_card_says(tested: tuple[Path, pd.DataFrame], method: str) -> None:
    """A part of them: what differs from the card beyond chance is a model or a card of something else."""
    folder, labels = tested
    (model,) = (
        entry for entry in json.loads((FOLDER / "card.json").read_text())["models"] if entry["method"] == method
    )
    scores = load_scorer(FOLDER / model["file"], device="cpu").score([folder / name for name in labels.index])
    mos = labels["mos_quality"].to_numpy()
    assert abs(spearmanr(scores.mos, mos).statistic - model["test"]["srcc"]) < 0.2
    assert np.sqrt(np.mean((scores.mos - mos) ** 2)) < 1.25 * model["test"]["rmse_calibrated"]
    assert np.mean((scores.low <= mos) & (mos <= scores.high)) > 0.8
    assert scores.unfamiliar.mean() < 0.15


def test_anyone_scores_without_any_study(
    tested: tuple[Path, pd.DataFrame], in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp / "runs").mkdir()  # a study that has just begun
    names = [str(tested[0] / name) for name in tested[1].index[:20]]
    assert main(["score", *names, "--out", "scores.json"]) == 0
    document = json.loads(Path("scores.json").read_text())
    assert document["checkpoint"]["file"] == find_shipped(ROOT).name
    assert document["checkpoint"]["calibrated"]
    assert all(0 <= row["low"] <= row["score"] <= row["high"] <= 5 for row in document["images"])
    assert "warning" not in capsys.readouterr().err
    assert main(["score", *names[:2], "--format", "csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [float(row["score"]) for row in rows] == [row["score"] for row in document["images"][:2]]
