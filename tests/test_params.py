"""The strict view of params.yaml: every fault is named with its key, value and remedy."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import ParamsError, load_params, parse_params

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_ready_made_set_loads(path: Path) -> None:
    params = load_params(path)
    assert params.train.select_on == "validation"
    assert params.split.rule == "grouped"


def test_the_full_study_has_the_papers_values() -> None:
    params = load_params(ROOT / "params" / "full.yaml")
    train, model = params.train, params.model
    assert (train.learning_rate, train.batch_size, train.epochs, train.auxiliary_weight) == (1e-4, 64, 50, 0.1)
    assert (model.prompt_depth, model.prompt_length, params.backbone.name) == (12, 8, "ViT-B-32")
    assert len(params.study.rounds) == 10
    assert set(params.study.datasets) == {"agiqa3k", "agiqa1k", "aigciqa2023"}
    assert len(params.study.variants) == 5


def put(raw: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        raw = raw[section]
    raw[last] = value


def own(raw: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {**raw["datasets"]["demo"], "reader": "folder", "source": "photos", "scale": [0, 5], **changed}


def test_a_data_set_of_ones_own_has_labels_and_scale(raw: dict[str, Any]) -> None:
    put(raw, "datasets.mine", own(raw, labels="mos.csv"))
    put(raw, "study.datasets", ["mine"])
    mine = parse_params(raw).datasets["mine"]
    assert (mine.labels, mine.scale) == ("mos.csv", [0, 5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: put(raw, "train.lrr", 0.1), "unknown key 'train.lrr'; did you mean"),
        (lambda raw: put(raw, "train.learning_rates", 0.1), "did you mean 'learning_rate'?"),
        (lambda raw: raw["train"].pop("epochs"), "missing key 'train.epochs'"),
        (lambda raw: put(raw, "train.epochs", "6"), "train.epochs = '6': input should be a valid integer"),
        (lambda raw: put(raw, "train.epochs", 0), "train.epochs = 0: input should be greater than or equal to 1"),
        (lambda raw: put(raw, "train.flip", 1), "train.flip = 1: input should be a valid boolean"),
        (lambda raw: put(raw, "split.rule", "groped"), "split.rule = 'groped': input should be 'grouped' or 'random'"),
        (lambda raw: put(raw, "study.variants", ["dcmpln", "dcmplm"]), "names 'dcmplm', which section 'variants'"),
        (lambda raw: put(raw, "study.rounds", [0, 0]), "rounds names an entry twice: [0, 0]"),
        (lambda raw: put(raw, "datasets.demo.scale", [0, 5]), "scale is for `reader: folder`; the reader demo knows"),
        (lambda raw: put(raw, "datasets.demo", own(raw, scale=[5, 1])), "scale is [5.0, 1.0]: give the lowest, then"),
        (lambda raw: put(raw, "variants.dcmpln.auxiliary", False), "mpa is true without auxiliary"),
        (lambda raw: put(raw, "variants.dcmpln.train", {"lr": 0.1}), "unknown key 'variants.dcmpln.train.lr'"),
        (lambda raw: put(raw, "variants.dcmpln.train", {"epochs": -1}), "variants.dcmpln.train.epochs = -1"),
        (lambda raw: put(raw, "backbone.pretrained", "openai"), "pretrained and file are both set"),
        (lambda raw: put(raw, "targets.auxiliary", "quality"), "targets.auxiliary is 'quality', the same as"),
        (lambda raw: put(raw, "train.warmup_epochs", 4), "warmup_epochs is 4, which leaves none of 4 epochs"),
        (lambda raw: put(raw, "datasets.demo.sha256", "abc"), "datasets.demo.sha256 = 'abc'"),
    ],
)
def test_faults_are_named(raw: dict[str, Any], change: Callable[[dict[str, Any]], Any], message: str) -> None:
    change(raw)
    with pytest.raises(ParamsError, match=re.escape(message)):
        parse_params(raw)


def test_all_faults_come_at_once(raw: dict[str, Any]) -> None:
    put(raw, "train.epochs", 0)
    put(raw, "evaluate.galery", 5)
    with pytest.raises(ParamsError) as error:
        parse_params(raw)
    assert "train.epochs" in str(error.value)
    assert "did you mean 'gallery'?" in str(error.value)


def test_numbers_are_read_as_dvc_reads_them(tmp_path: Path) -> None:
    """YAML 1.1 would read 1e-4 as text."""
    text = (ROOT / "params" / "demo.yaml").read_text()
    assert "learning_rate: 0.005" in text
    (tmp_path / "params.yaml").write_text(text.replace("learning_rate: 0.005", "learning_rate: 5e-4"))
    assert load_params(tmp_path / "params.yaml").train.learning_rate == 5e-4


def test_off_is_a_word_and_true_is_not(tmp_path: Path) -> None:
    """YAML 1.1 would read off as false; `dvc exp run -S` writes the file without quotes."""
    text = (ROOT / "params" / "demo.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  amp: auto", "  amp: off"))
    train = load_params(tmp_path / "params.yaml").train
    assert (train.amp, train.compile, train.flip) == ("off", "off", True)


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    text = (ROOT / "params" / "demo.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("  epochs: 4\n", "  epochs: 4\n  epochs: 7\n"))
    with pytest.raises(ParamsError, match="key 'epochs' stands twice"):
        load_params(tmp_path / "params.yaml")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="does not exist: run from the repository root"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(ParamsError, match="is not valid YAML"):
        load_params(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="must be a mapping of sections, and is a list"):
        parse_params([])


def test_a_variants_own_training_values_win(raw: dict[str, Any]) -> None:
    put(raw, "variants.clip_agiqa.train", {"learning_rate": 0.02})
    params = parse_params(raw)
    assert params.train_for("clip_agiqa").learning_rate == 0.02
    assert params.train_for("dcmpln") == params.train
