"""Baselines against scikit-learn's own predictions, and what they may read."""

import re
from pathlib import Path

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from pipeline import metrics
from pipeline.model.checkpoint_file import read_checkpoint, write_checkpoint
from pipeline.training import baselines

TEXTS = np.array([[0.6, 0.8], [-0.8, 0.6]])
SAID = {
    "mos_low": 0.0, "mos_high": 5.0, "dataset": "demo", "target": "quality", "leaks": [], "residual_ratio": None,
    "prompt_depth": 0, "prompt_length": 0,
}  # fmt: skip
BACKBONE = {
    "name": "tiny", "pretrained": None, "origin": "random", "weights_sha256": "5" * 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
WINDOWS = {
    "window_size": 32, "stride": 24, "cover": "all", "normalisation": "clip", "mean": [0.5] * 3, "std": [0.25] * 3
}  # fmt: skip


def saved(path: Path, method: str, model: dict[str, np.ndarray], statistics: int = 6) -> Path:
    """Write a fitted baseline's checkpoint."""
    whole = method == "handcrafted"
    record = SAID | {
        "method": method, "texts": ["good", "bad"] if method == "clip_iqa" else [],
        "backbone": None if whole else BACKBONE, "windows": None if whole else WINDOWS,
        "statistics": [f"s{number}" for number in range(statistics)] if whole else None,
    }  # fmt: skip
    write_checkpoint(path / "a.safetensors", baselines.arrays(method, model, TEXTS), record)
    return path / "a.safetensors"


@pytest.fixture
def data() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features and targets that depend on the first two features alone."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(160, 6)) * [1, 5, 1, 1, 30, 1] + [0, 100, 0, 0, 0, 0]
    targets = np.tanh(features[:, 0]) + 0.1 * (features[:, 1] - 100) + generator.normal(0, 0.1, 160)
    return {"train": (features[:100], targets[:100]), "validation": (features[100:], targets[100:])}


def test_the_probe_is_sklearns_ridge_of_the_best_alpha(data: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    alphas = [0.1, 10.0, 1e5]
    model = baselines.fit_linear_probe(data["train"], data["validation"], alphas)
    scaler = StandardScaler().fit(data["train"][0])
    train, held_out = (scaler.transform(data[name][0]) for name in ("train", "validation"))
    fitted = {alpha: Ridge(alpha=alpha).fit(train, data["train"][1]) for alpha in alphas}
    best = max(alphas, key=lambda alpha: metrics.srcc(fitted[alpha].predict(held_out), data["validation"][1]))
    assert model["alpha"] == best
    found = baselines.scores("linear_probe", model, {"image_features": data["validation"][0]})
    np.testing.assert_allclose(found, fitted[best].predict(held_out), atol=1e-6)


def test_the_probe_reads_deviations_too_where_it_was_fitted_on_them(
    data: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    whole, held_out = data["train"][0], data["validation"][0]
    train, other = ({"image_features": part[:, :4], baselines.DEVIATION: part[:, 4:]} for part in (whole, held_out))
    for probe, columns in (("mean", slice(4)), ("mean_and_deviation", slice(6))):
        read = baselines.reads("linear_probe", train, probe)
        np.testing.assert_array_equal(read, whole[:, columns])
        validation = (held_out[:, columns], data["validation"][1])
        model = baselines.fit_linear_probe((read, data["train"][1]), validation, [1.0])
        checkpoint = saved(tmp_path, "linear_probe", model)
        expected = held_out[:, columns] @ model["weights"] + model["bias"]
        np.testing.assert_allclose(baselines.predict(checkpoint, other), expected, atol=1e-4)
    fewer = other | {baselines.DEVIATION: other[baselines.DEVIATION][:, :1]}  # the model has six weights
    with pytest.raises(ValueError, match="was fitted on other features than the 5 given: rerun its stage"):
        baselines.predict(checkpoint, fewer)


def test_our_walk_of_the_trees_equals_sklearns(data: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    settings = {"learning_rate": 0.1, "max_depth": 3}
    model = baselines.fit_handcrafted(data["train"], max_iterations=40, seed=1, **settings)
    oracle = HistGradientBoostingRegressor(
        max_iter=40, random_state=1, early_stopping=False, min_samples_leaf=10, **settings
    )
    expected = oracle.fit(*data["train"]).predict(data["validation"][0])
    found = baselines.scores("handcrafted", model, {"handcrafted": data["validation"][0]})
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("count", [8, 17, 28, 39])
def test_few_images_still_get_different_scores(data: dict[str, tuple[np.ndarray, np.ndarray]], count: int) -> None:
    """By default 20 images stand in a leaf at least, so that fewer than 40 are never told apart."""
    train = tuple(part[:count] for part in data["train"])
    model = baselines.fit_handcrafted(train, learning_rate=0.05, max_iterations=50, max_depth=3, seed=0)
    found = baselines.scores("handcrafted", model, {"handcrafted": data["validation"][0]})
    assert metrics.srcc(found, data["validation"][1]) > 0.3


def test_validation_images_that_rank_nothing_leave_the_first_alpha(
    data: dict[str, tuple[np.ndarray, np.ndarray]],
) -> None:
    held_out = data["validation"][0]
    for validation in ((held_out[:1], np.array([0.5])), (held_out, np.full(60, 0.5))):
        assert baselines.fit_linear_probe(data["train"], validation, [10.0, 0.1])["alpha"] == 10.0


@pytest.mark.parametrize("method", ["linear_probe", "handcrafted"])
def test_a_saved_baseline_scores_the_same_and_refuses_other_features(
    method: str, data: dict[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    if method == "linear_probe":
        model = baselines.fit_linear_probe(data["train"], data["validation"], [1.0])
    else:
        model = baselines.fit_handcrafted(data["train"], learning_rate=0.1, max_iterations=9, max_depth=3, seed=0)
    checkpoint = saved(tmp_path, method, model)
    column = {baselines.READS[method]: data["validation"][0], baselines.DEVIATION: np.zeros((60, 0))}
    np.testing.assert_allclose(
        baselines.predict(checkpoint, column), baselines.scores(method, model, column), atol=1e-4
    )
    fewer = column | {baselines.READS[method]: data["validation"][0][:, :1]}
    with pytest.raises(ValueError, match="was fitted on other features than the 1 given: rerun its stage"):
        baselines.predict(checkpoint, fewer)


def test_zero_shot_is_saved_as_its_texts(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, "clip_iqa", {})
    record, arrays = read_checkpoint(checkpoint)
    assert record["texts"] == ["good", "bad"]
    np.testing.assert_allclose(arrays["text_features"], TEXTS, rtol=1e-6)
    column = {"clip_iqa": np.array([0.2, 0.9])}
    np.testing.assert_array_equal(baselines.predict(checkpoint, column), [0.2, 0.9])


def test_zero_shot_is_the_column_itself() -> None:
    column = np.array([0.2, 0.9])
    np.testing.assert_array_equal(baselines.scores("clip_iqa", {}, {"clip_iqa": column}), column)


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(ValueError, match=re.escape("baseline is 'niqe'; known: clip_iqa, linear_probe, handcrafted")):
        baselines.scores("niqe", {}, {})
