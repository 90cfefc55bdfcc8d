"""The baselines: what the same images, splits and labels give without prompt learning.

`clip_iqa` is zero-shot and learns nothing; `linear_probe` is ridge regression on frozen image features; `handcrafted`
is gradient boosting on image statistics without any network. `pyiqa_NAME` is a metric of pyiqa's, which learns nothing
here: see `pipeline.training.no_reference`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pipeline.errors import AgiqaError
from pipeline.layout import pyiqa_metric
from pipeline.model.checkpoint_file import TREES, read_checkpoint, trees_of

# The columns of the features file that each baseline reads.
READS = {"clip_iqa": "clip_iqa", "linear_probe": "image_features", "handcrafted": "handcrafted"}
METRIC = "metric"  # what stands in their place for a metric of pyiqa's: its scores, higher is better
# Those by which it tells what is unfamiliar; a metric of pyiqa's cannot.
SEES = {"clip_iqa": "image_features", "linear_probe": "image_features", "handcrafted": "handcrafted"}
# The pass of the features stage that makes what each baseline reads, by the name that its cost is kept under.
MADE_BY = {"clip_iqa": "tower", "linear_probe": "tower", "handcrafted": "statistics"}
DEVIATION = "image_features_deviation"  # what the probe may read as well


def passes(methods: Sequence[str]) -> set[str]:
    """Return the passes of the features stage that some baselines read; a metric of pyiqa's reads none."""
    return {MADE_BY[method] for method in methods if pyiqa_metric(method) is None}


def reads(method: str, features: Mapping[str, np.ndarray], probe: str = "mean") -> np.ndarray:
    """Return what a baseline reads of the features file, shape (n,) or (n, K), float64.

    Args:
        method: clip_iqa, linear_probe, handcrafted, or one of pyiqa's.
        features: Columns of the features file, each (n, ...), or of a metric of pyiqa's `METRIC`.
        probe: What linear_probe reads: `mean` over an image's windows, or `mean_and_deviation`.

    Raises:
        AgiqaError: If the method is unknown, or its column is not there.
    """
    if pyiqa_metric(method) is not None:
        return np.asarray(features[METRIC], dtype=np.float64)
    if method not in READS:
        raise AgiqaError(f"baseline is {method!r}; known: {', '.join(READS)}")
    if READS[method] not in features:
        raise AgiqaError(f"the features at hand hold no {READS[method]!r}, which {method} reads: run their stage anew")
    column = np.asarray(features[READS[method]], dtype=np.float64)
    if method != "linear_probe" or probe == "mean":
        return column
    return np.concatenate([column, np.asarray(features[DEVIATION], dtype=np.float64)], axis=1)


def learns_nothing(method: str) -> bool:
    """Return whether a baseline is taken as it is, zero-shot or another's metric."""
    return method == "clip_iqa" or pyiqa_metric(method) is not None


def fit_linear_probe(
    train: tuple[np.ndarray, np.ndarray], validation: tuple[np.ndarray, np.ndarray], alphas: Sequence[float]
) -> dict[str, np.ndarray]:
    """Fit ridge regression on standardised features, its strength chosen by SRCC on the validation images.

    Args:
        train: Features, shape (N, E), and targets, shape (N,).
        validation: Likewise; picks alpha and nothing else. The first of equals wins, also where SRCC has no value.
        alphas: Strengths to try.

    Returns:
        weights (E,), bias (), and alpha (), for `predict`.

    Source: scikit-learn's Ridge; the probe is the usual measure of what frozen features hold.
    """
    from sklearn.linear_model import Ridge

    from pipeline.metrics import srcc  # imported here: costs half a second, and scoring needs none of it

    features, targets = train
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    best, best_srcc = {}, -np.inf
    for alpha in alphas:
        fitted = Ridge(alpha=alpha).fit((features - mean) / scale, targets)
        weights = fitted.coef_ / scale
        candidate = {"weights": weights, "bias": np.array(fitted.intercept_ - mean @ weights), "alpha": np.array(alpha)}
        found = _linear(candidate, validation[0])
        reached = srcc(found, validation[1])
        if not best or reached > best_srcc:
            best, best_srcc = candidate, -1.0 if np.isnan(reached) else reached
    return best


def fit_handcrafted(
    train: tuple[np.ndarray, np.ndarray], *, learning_rate: float, max_iterations: int, max_depth: int, seed: int
) -> dict[str, np.ndarray]:
    """Fit gradient boosting on image statistics.

    Args:
        train: Statistics, shape (N, K), and targets, shape (N,).
        learning_rate: Shrinkage of each tree.
        max_iterations: Trees.
        max_depth: Of a tree.
        seed: Of scikit-learn.

    Returns:
        The trees as plain arrays for `predict`: a pickle could run code when it is loaded, and these cannot.

    Source: scikit-learn's HistGradientBoostingRegressor. Its 20 images at least in a leaf leave fewer than 40 no split
    at all, and so one score for every image; below 200, a leaf holds a tenth of the images at least.
    """
    from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        learning_rate=learning_rate,
        max_iter=max_iterations,
        max_depth=max_depth,
        min_samples_leaf=min(20, max(1, len(train[1]) // 10)),
        random_state=seed,
        early_stopping=False,
    ).fit(*train)
    trees = [predictors[0].nodes for predictors in model._predictors]
    nodes = np.concatenate(trees)
    return {
        "base": np.array(model._baseline_prediction).reshape(()),
        "sizes": np.array([len(tree) for tree in trees]),
        **{name: nodes[name] for name in ("value", "feature_idx", "num_threshold", "left", "right", "is_leaf")},
    }


def _linear(model: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    return features @ model["weights"] + model["bias"]


def tree_scores(model: Mapping[str, np.ndarray], features: np.ndarray) -> np.ndarray:
    """Return the sum of gradient-boosted trees, shape (n,).

    Args:
        model: Arrays by the names of `TREES`.
        features: Shape (n, K).
    """
    total = np.full(len(features), float(model["base"]))
    rows = np.arange(len(features))
    start = 0
    for size in model["sizes"]:
        tree = {name: model[name][start : start + size] for name in TREES if name not in ("base", "sizes")}
        place = np.zeros(len(features), dtype=np.int64)
        while not tree["is_leaf"][place].all():
            goes_left = features[rows, tree["feature_idx"][place]] <= tree["num_threshold"][place]
            onward = np.where(goes_left, tree["left"][place], tree["right"][place])
            place = np.where(tree["is_leaf"][place], place, onward)
        total += tree["value"][place]
        start += size
    return total


def arrays(method: str, model: Mapping[str, np.ndarray], text_features: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a checkpoint stores of a fitted baseline; see `pipeline.model.checkpoint_file`.

    Args:
        method: As `reads`.
        model: From its fit; empty for clip_iqa and pyiqa's.
        text_features: Of the zero-shot texts, the better first, shape (2, E).
    """
    if pyiqa_metric(method) is not None:
        return {}
    if method == "clip_iqa":
        return {"text_features": np.asarray(text_features, dtype=np.float32)}
    if method == "linear_probe":
        return {f"probe.{name}": np.asarray(model[name], dtype=np.float32) for name in ("weights", "bias")}
    return {f"trees.{name}": np.asarray(model[name]) for name in TREES}


def scores(
    method: str, model: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], probe: str = "mean"
) -> np.ndarray:
    """Return a fitted baseline's scores, shape (n,), higher is better.

    Args:
        method: As `reads`.
        model: From its fit; empty for clip_iqa and pyiqa's.
        features: Columns of the features file, each (n, ...).
        probe: As `reads`.

    Raises:
        AgiqaError: If the method is unknown.
    """
    column = reads(method, features, probe)
    if learns_nothing(method):
        return column
    return _linear(model, column) if method == "linear_probe" else tree_scores(model, column)


def predict(checkpoint: Path, features: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the scores, shape (n,), that a baseline's checkpoint gives images whose features are at hand.

    Args:
        checkpoint: Of the baseline.
        features: As `scores`.

    Raises:
        CheckpointError: If the file is damaged.
        AgiqaError: If the model was fitted on another number of features.
    """
    record, stored = read_checkpoint(checkpoint)
    method = record["method"]
    if learns_nothing(method):
        return scores(method, {}, features)
    if method == "handcrafted":
        width = reads(method, features).shape[1]
        if record["statistics"] is None or len(record["statistics"]) != width:
            raise AgiqaError(f"{checkpoint} was fitted on other features than the {width} given: rerun its stage")
        return scores(method, trees_of(checkpoint, stored, width), features)
    weights = stored["probe.weights"].astype(np.float64)
    probe = "mean" if len(weights) == np.asarray(features[READS[method]]).shape[1] else "mean_and_deviation"
    given = reads(method, features, probe).shape[1]
    if given != len(weights):
        raise AgiqaError(f"{checkpoint} was fitted on other features than the {given} given: rerun its stage")
    return scores(method, {"weights": weights, "bias": stored["probe.bias"].astype(np.float64)}, features, probe)
