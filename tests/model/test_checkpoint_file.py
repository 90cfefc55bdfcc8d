"""A checkpoint as a file: what comes back equals what went in, and what must not be passed on to anyone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from pipeline.calibration import calibrate
from pipeline.familiarity import familiarise
from pipeline.model.checkpoint_file import (
    TREES,
    CheckpointError,
    calibration_of,
    familiarity_of,
    read_checkpoint,
    read_record,
    trees_of,
    write_checkpoint,
)
from pipeline.training import baselines

RNG = np.random.default_rng(0)
FEATURES, TARGETS = RNG.normal(size=(90, 4)), RNG.uniform(size=90)
RECORD = {
    "method": "handcrafted", "dataset": "demo", "target": "quality", "leaks": [], "texts": [], "mos_low": 0.0,
    "mos_high": 5.0, "backbone": None, "windows": None, "statistics": ["a", "b", "c", "d"], "residual_ratio": None,
    "prompt_depth": 0, "prompt_length": 0,
}  # fmt: skip
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    model = baselines.fit_handcrafted((FEATURES, TARGETS), learning_rate=0.1, max_iterations=6, max_depth=3, seed=0)
    return baselines.arrays("handcrafted", model, np.zeros((2, 2)))


def test_everything_comes_back_and_equal_contents_are_equal_bytes(arrays: Arrays, tmp_path: Path) -> None:
    calibration = calibrate(TARGETS, 5 * TARGETS, np.arange(90), 0, 5)
    familiarity = familiarise(FEATURES, FEATURES[:30])
    path, twin = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_checkpoint(path, arrays, RECORD, calibration, familiarity)
    write_checkpoint(twin, dict(reversed(arrays.items())), dict(reversed(RECORD.items())), calibration, familiarity)
    assert path.read_bytes() == twin.read_bytes()
    record, found = read_checkpoint(path)
    assert {key: record[key] for key in RECORD} == RECORD
    assert read_record(path) == record
    assert calibration_of(record) == calibration
    back = familiarity_of(path, record, found, 4)
    np.testing.assert_array_equal(back.distance(FEATURES), familiarity.distance(FEATURES))
    trees = trees_of(path, found, 4)
    for name in TREES:
        np.testing.assert_array_equal(trees[name], arrays[f"trees.{name}"])


def test_what_is_not_there_is_none(arrays: Arrays, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.safetensors", arrays, RECORD)
    record, found = read_checkpoint(tmp_path / "a.safetensors")
    assert calibration_of(record) is None
    assert familiarity_of(tmp_path, record, found, 4) is None


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: arrays | {name: change(arrays[name].copy())}


def put(place: int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed("trees.left", put(0, 0)), r"trees\.left leads back or out of its tree"),  # would never end
        (changed("trees.right", put(0, 9999)), r"trees\.right leads back or out of its tree"),
        (changed("trees.feature_idx", put(0, 4)), r"trees\.feature_idx asks for more than the 4 features"),
        (changed("trees.sizes", put(0, 1)), r"trees\.sizes adds up to"),
        (changed("trees.sizes", lambda x: x.astype(np.float32)), r"trees\.sizes holds float32"),
        (changed("trees.value", lambda x: x[:-1]), r"trees\.\w+ has shape"),
        (changed("trees.num_threshold", put(0, np.nan)), r"trees\.num_threshold holds values that are no numbers"),
        (lambda arrays: {name: arrays[name] for name in arrays if name != "trees.base"}, r"it lacks trees\.base"),
    ],
)
def test_trees_that_lead_astray_are_refused(
    arrays: Arrays, tmp_path: Path, change: Callable[[Arrays], Arrays], told: str
) -> None:
    path = tmp_path / "a.safetensors"
    write_checkpoint(path, change(arrays), RECORD)
    with pytest.raises(CheckpointError, match=rf"a\.safetensors does not fit: .*{told}"):
        trees_of(path, read_checkpoint(path)[1], 4)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed("familiar.scale", put(0, 0)), r"familiar\.scale holds values that are not positive"),
        (changed("familiar.variances", put(-1, -1)), r"familiar\.variances holds values that are not positive"),
        (changed("familiar.basis", lambda x: x[:, :3]), r"familiar\.basis has shape \(3, 3\), and \(3, 4\) fits"),
        (changed("familiar.mean", lambda x: x.astype(np.int32)), r"familiar\.mean has shape"),
        (lambda arrays: {n: arrays[n] for n in arrays if n != "familiar.mean"}, r"it lacks familiar\.mean"),
    ],
)
def test_a_strange_idea_of_what_is_familiar_is_refused(
    arrays: Arrays, tmp_path: Path, change: Callable[[Arrays], Arrays], told: str
) -> None:
    path, known = tmp_path / "a.safetensors", familiarise(FEATURES, FEATURES[:30])
    whole = arrays | {f"familiar.{name}": values for name, values in known.tensors().items()}
    write_checkpoint(path, change(whole), RECORD | {"unfamiliar_beyond": 1.0})
    record, found = read_checkpoint(path)
    with pytest.raises(CheckpointError, match=told):
        familiarity_of(path, record, found, 4)


@pytest.mark.parametrize("name", ["trees.value", "familiar.mean"])
def test_what_is_not_finite_is_refused(arrays: Arrays, tmp_path: Path, name: str) -> None:
    whole = arrays | {"familiar.mean": np.zeros(4, np.float32)}
    write_checkpoint(tmp_path / "a.safetensors", changed(name, put(1, np.inf))(whole), RECORD)
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
        read_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"calibration": {"offset": 0.0}}, r"calibration\.slope: Field required"),
        (
            {"statistics": None},
            "it reads a backbone, with windows, or statistics, without, or is a metric: one",
        ),
        ({"unfamiliar_beyond": -1.0}, "unfamiliar_beyond: "),
    ],
)
def test_a_record_that_does_not_add_up_is_refused(
    arrays: Arrays, tmp_path: Path, said: dict[str, object], told: str
) -> None:
    write_checkpoint(tmp_path / "a.safetensors", arrays, RECORD | said)
    with pytest.raises(CheckpointError, match=told):
        read_record(tmp_path / "a.safetensors")


def test_a_calibration_falls_never_and_is_on_the_scale(arrays: Arrays, tmp_path: Path) -> None:
    good = calibrate(TARGETS, 5 * TARGETS, np.arange(90), 0, 5).record()
    for said, told in (
        ({"slope": -1.0}, r"calibration\.slope"),
        ({"high": 4.0}, "its calibration is on another MOS scale"),
        ({"half_widths": [0.1] * 49}, r"calibration\.half_widths"),
        ({"offset": float("nan")}, r"calibration\.offset"),
    ):
        write_checkpoint(tmp_path / "a.safetensors", arrays, RECORD | {"calibration": good | said})
        with pytest.raises(CheckpointError, match=told):
            read_record(tmp_path / "a.safetensors")


def test_the_record_stands_in_one_entry_of_the_metadata(arrays: Arrays, tmp_path: Path) -> None:
    """Safetensors orders several at random."""
    write_checkpoint(tmp_path / "a.safetensors", arrays, RECORD)
    with safe_open(tmp_path / "a.safetensors", framework="np") as archive:
        assert list(archive.metadata()) == ["agiqa"]
        assert json.loads(archive.metadata()["agiqa"])["statistics"] == ["a", "b", "c", "d"]
