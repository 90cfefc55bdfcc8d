"""Writes the files of a finished study with made-up numbers, for the tests of tables and reports.

The metrics are computed here with scipy and numpy alone, so that they are an oracle and not a copy of the library.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy import stats

METHODS = ("dcmpln", "no_mpa", "clip_agiqa", "shuffled", "clip_iqa", "linear_probe", "handcrafted")
BASELINES = ("clip_iqa", "linear_probe", "handcrafted")
SKILL = {
    **{"dcmpln": 0.9, "no_mpa": 0.85, "no_adapter": 0.84, "clip_agiqa": 0.82, "main_only": 0.8, "shuffled": 0.02},
    **{"clip_iqa": 0.35, "linear_probe": 0.7, "handcrafted": 0.75},
}
PARTS = ("auxiliary", "mpa", "layer_f", "adapter")
LACKS = {"no_mpa": ("mpa",), "no_adapter": ("adapter",), "clip_agiqa": ("mpa", "adapter"), "main_only": PARTS[:3]}
IN_HOUSE = {"name": "demo-vit", "pretrained": None, "weights_sha256": "0" * 64, "origin": "in-house"}


def make_study(
    root: Path,
    datasets: Sequence[str] = ("demo",),
    methods: Sequence[str] = METHODS,
    rounds: Sequence[int] = (0, 1, 2),
    *,
    generators: Sequence[str] = ("gan", "early diffusion", "late diffusion"),
    images: int = 60,
    epochs: int = 6,
    seed: int = 0,
    leaks: Sequence[str] = (),
    backbone: dict[str, Any] | None = None,
    audited: Sequence[str] = (),
    gallery: int = 0,
    calibrated: bool = True,
) -> None:
    """Write runs/, data/splits/ and data/prepared/ of a study under `root`.

    `audited` names the variants that get a leak audit, `gallery` says how many pictures of each kind the reference
    variant's first round keeps, and `calibrated` whether the scores have what a user is told of them, which earlier
    versions left out.
    """
    for dataset in datasets:
        spawn = np.random.default_rng([seed, len(dataset)])
        raters = "simulated" if dataset == "demo" else "people"
        card = {"dataset": dataset, "mos_low": 0.0, "mos_high": 5.0, "raters": raters}
        _write(root / "data/prepared" / dataset / "card.json", card)
        counts = {"images": {"train": max(200, 3 * images), "validation": 20, "test": images}, "groups": {"test": 12}}
        split_audit = {
            "dataset": dataset,
            "rule": "grouped",
            "leaking": False,
            "rounds": {str(r): {**counts, "shared_prompts": 0, "shared_images": 0} for r in rounds},
            "random_rule_would_share": {str(r): {"shared_prompts": 11 + r, "shared_images": 3} for r in rounds},
        }
        _write(root / "data/splits" / dataset / "audit.json", split_audit)
        for number in rounds:
            level = {name: 1.5 + 2.0 * k / max(1, len(generators) - 1) for k, name in enumerate(generators)}
            who = np.array(generators)[np.arange(images) % len(generators)]
            mos = np.clip([level[name] for name in who] + spawn.normal(0, 0.6, images), 0, 5)
            for method in methods:
                noise = spawn.normal(0, 1, images) * np.sqrt(1 - SKILL[method] ** 2)
                raw = SKILL[method] * (mos - mos.mean()) / mos.std() + noise
                predictions = pd.DataFrame(
                    {
                        "image_id": [f"r{number}-{k:03d}.png" for k in range(images)],
                        "generator": who,
                        "generation_prompt": [f"a scene, number {k % 12}" for k in range(images)],
                        "group": [f"g{k % 12}" for k in range(images)],
                        "mos": mos,
                        "mos_std": 0.3 + 0.02 * (np.arange(images) % 12),
                        "predicted": 1 / (1 + np.exp(-raw)),
                    }
                )
                shown = with_told(predictions) if calibrated else predictions
                folder = root / "runs" / dataset / method / f"round-{number}"
                others = [name for name in datasets if name != dataset]
                write_run(folder, dataset, method, number, shown, epochs, leaks, backbone or IN_HOUSE, others)
                if gallery and method == "dcmpln" and number == rounds[0]:
                    write_gallery(folder / "evaluate/gallery", shown, gallery)
                if method in audited:
                    # A score that has seen test: the same images, the prediction nearer to the MOS.
                    picked, drawn = (
                        predictions.assign(predicted=predictions["predicted"] + k * mos) for k in (0.02, 0.1)
                    )
                    both = predictions.assign(predicted=predictions["predicted"] + 0.15 * mos)
                    write_leak_audit(folder / "audit", picked, "grouped", ["epoch selected on test"])
                    other = folder.with_name(f"random-{number}")
                    shown = with_told(drawn) if calibrated else drawn
                    write_run(other, dataset, method, number, shown, epochs, ["random split"], backbone or IN_HOUSE)
                    write_leak_audit(other / "audit", both, "random", ["random split", "epoch selected on test"])


def write_run(
    folder: Path,
    dataset: str,
    method: str,
    number: int,
    predictions: pd.DataFrame,
    epochs: int = 6,
    leaks: Sequence[str] = (),
    backbone: dict[str, Any] | None = None,
    others: Sequence[str] = (),
) -> None:
    """Write one run's train/ and evaluate/ files; `predictions` decides the test metrics."""
    baseline = method in BASELINES
    chosen = 0 if baseline else max(1, epochs - 1 - number % 2)
    record = {
        **{"dataset": dataset, "method": method, "kind": "baseline" if baseline else "variant", "round": number},
        **{"seed": 1, "split_rule": "random" if "random split" in leaks else "grouped"},
        "select_on": None if baseline else "test" if "epoch selected on test" in leaks else "validation",
        **{"selected_epoch": chosen, "epochs_run": 0 if baseline else epochs, "leaks": list(leaks)},
        **{"shuffled_labels": method == "shuffled", "target": "quality", "auxiliary_target": "alignment"},
        "backbone": backbone or IN_HOUSE,
        **{"trainable_parameters": None if baseline else 123456, "checkpoint_bytes": None if baseline else 800000},
        **{
            "params": {} if baseline else {f"variant.{part}": part not in LACKS.get(method, ()) for part in PARTS},
            "inputs": {"manifest_md5": "d" * 32},
            "images": {"train": max(200, 3 * len(predictions)), "validation": 20, "test": len(predictions)},
        },
    }
    _write(folder / "train/record.json", record)
    rng = np.random.default_rng([number, len(method)])
    if baseline:
        history = pd.DataFrame({"epoch": [0], "loss": [None], "train_srcc": [None], "validation_srcc": [None]})
    else:
        epoch = np.arange(1, epochs + 1)
        rise = SKILL[method] * (1 - np.exp(-epoch / 2.5))
        history = pd.DataFrame(
            {
                "epoch": epoch,
                "learning_rate": 0.001,
                "loss": 0.08 * np.exp(-epoch / 4) + 0.01,
                "train_srcc": rise + 0.05,
                "validation_srcc": rise - 0.03 + rng.normal(0, 0.015, epochs),
            }
        )
        seconds = {"epoch": epoch, "seconds": 2.5, "cpu_seconds": 4.5, "images_per_second": 80.0}
        pd.DataFrame(seconds | {"peak_memory_mb": 512.0, "under_load": 0}).to_csv(
            folder / "train/timing.csv", index=False
        )
    cost = {"seconds": 0.5, "cpu_seconds": 0.75} if baseline else {"seconds": 15.0, "cpu_seconds": 27.0}
    run = {"device": "cpu", "git_commit": "a" * 40, "git_dirty": False, "seconds": 16.0}
    run["cost"] = cost | {"under_load": False}
    _write(folder / "train/run.json", run)
    history.to_csv(folder / "train/history.csv", index=False)
    (folder / "evaluate").mkdir(parents=True, exist_ok=True)
    with_fit(predictions).to_csv(folder / "evaluate/predictions.csv", index=False)
    test = scores(predictions["predicted"].to_numpy(), predictions["mos"].to_numpy())
    metrics = {
        "test": {
            **{"n": len(predictions), "groups": predictions["group"].nunique(), **test},
            **{"srcc_low": test["srcc"] - 0.06, "srcc_high": min(1.0, test["srcc"] + 0.05)},
            **{"plcc_low": test["plcc"] - 0.06, "plcc_high": min(1.0, test["plcc"] + 0.05)},
            **told(predictions),
        },
        "generator": {
            str(name): {
                "n": len(rows),
                "srcc": float(stats.spearmanr(rows["predicted"], rows["mos"]).statistic),
                "mos_mean": float(rows["mos"].mean()),
                "predicted_mean": float(rows["predicted"].mean()),
                **({"score_mean": float(rows["score"].mean())} if "score" in rows else {}),
                **told(rows),
            }
            for name, rows in predictions.groupby("generator")
        },
        "cost": {
            "images_per_second": 200.0,
            "seconds": len(predictions) / 200,
            "cpu_seconds": len(predictions) / 120,
            "peak_memory_mb": 600.0,
            "under_load": False,
        },
        "validation": {"srcc": SKILL[method] - 0.04},
        "cross": {other: {"n": 300, **{key: 0.6 * value for key, value in test.items()}} for other in others},
    }
    _write(folder / "evaluate/metrics.json", metrics)


def write_leak_audit(folder: Path, predictions: pd.DataFrame, rule: str, leaks: Sequence[str]) -> None:
    """Write what the leak audit leaves of one training whose epoch was picked on test."""
    folder.mkdir(parents=True, exist_ok=True)
    with_fit(predictions).to_csv(folder / "predictions.csv", index=False)
    test = {"n": len(predictions), **scores(predictions["predicted"].to_numpy(), predictions["mos"].to_numpy())}
    metrics = {"selected_epoch": 3, "selected_on": "test", "split_rule": rule, "test": test, "leaks": list(leaks)}
    _write(folder / "metrics.json", metrics)


def write_gallery(folder: Path, predictions: pd.DataFrame, count: int) -> None:
    """Write `count` pictures each of the best predicted and the worst over- and under-rated images."""
    folder.mkdir(parents=True, exist_ok=True)
    table = with_fit(predictions)
    shown = "score" if "score" in table else "fitted"
    error = table[shown] - table["mos"]
    columns = list(dict.fromkeys(["image_id", "mos", "predicted", "fitted", shown, "generator", "generation_prompt"]))
    rows = []
    for kind, order in (("best", error.abs()), ("over", -error), ("under", error)):
        for rank, index in enumerate(order.sort_values(kind="stable").index[:count]):
            name = f"{kind}-{rank}"
            ramp = np.linspace(0, 255, 96, dtype=np.uint8)
            shape = (64, 96) if rank % 3 else (96, 60)  # wide and tall
            grey = np.resize(ramp, shape)
            Image.fromarray(np.dstack([grey, 255 - grey, np.full(shape, 60 + 20 * rank, np.uint8)])).save(
                folder / f"{name}.jpg"
            )
            overlay = np.dstack([np.full(shape, 213, np.uint8), np.full(shape, 94, np.uint8), grey * 0, grey])
            Image.fromarray(overlay).save(folder / f"{name}-map.png")
            row = table.loc[index, columns].to_dict()
            rows.append(row | {"kind": kind, "rank": rank, "picture": f"{name}.jpg", "map": f"{name}-map.png"})
    pd.DataFrame(rows).assign(map_low=0.2, map_high=0.8).to_csv(folder / "gallery.csv", index=False)


def with_fit(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions with their column `fitted`, a straight line here as in `scores`."""
    line = stats.linregress(predictions["predicted"], predictions["mos"])
    return predictions.assign(fitted=line.intercept + line.slope * predictions["predicted"])


def with_told(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions with what a user is told: a score, the ends of its band, and whether it is unfamiliar.

    The line is made up: no fit of these images, so that an error of it is not that of `with_fit`.
    """
    score = np.clip(0.9 + 3.3 * predictions["predicted"], 0, 5)
    band = {"low": np.maximum(score - 0.8, 0), "high": np.minimum(score + 0.8, 5)}
    return predictions.assign(score=score, **band, unfamiliar=np.arange(len(predictions)) % 19 == 7)


def told(predictions: pd.DataFrame) -> dict[str, float]:
    """Return how good what a user is told is; nothing without it."""
    if "score" not in predictions:
        return {}
    error = (predictions["score"] - predictions["mos"]).to_numpy()
    return {
        "rmse_calibrated": float(np.linalg.norm(error) / np.sqrt(len(error))),
        "mae_calibrated": float(np.mean(np.abs(error))),
        "coverage": float(predictions["mos"].between(predictions["low"], predictions["high"]).mean()),
        "band_width": float(predictions["high"].mean() - predictions["low"].mean()),
        "unfamiliar": float(predictions["unfamiliar"].mean()),
    }


def made_runs(**srcc: list[float]) -> pd.DataFrame:
    """Rows of `Results.runs` with the given SRCCs and no calibrated scores; 40 test images, 160 to train."""
    return pd.DataFrame(
        {
            **{"dataset": "demo", "method": method, "kind": "variant", "round": number, "leaks": ""},
            **{metric: value for metric in ("srcc", "plcc", "plcc_raw", "krcc", "rmse")},
            **{"srcc_low": value - 0.1, "srcc_high": value + 0.05, "selected_epoch": 2 + number},
            **{"test_images": 40, "train_images": 160, "backbone": "b", "backbone_origin": "random"},
            **{"trainable_parameters": 10, "checkpoint_bytes": 40, "validation_srcc": value},
            **dict.fromkeys(("rmse_calibrated", "mae_calibrated", "coverage", "band_width", "unfamiliar"), math.nan),
        }
        for method, values in srcc.items()
        for number, value in enumerate(values)
    )


def scores(predicted: np.ndarray, mos: np.ndarray) -> dict[str, float]:
    """Return correlations by scipy; the logistic fit is stood in for by a straight line, which leaves PLCC as it is."""
    line = stats.linregress(predicted, mos)
    return {
        "srcc": float(stats.spearmanr(predicted, mos).statistic),
        "krcc": float(stats.kendalltau(predicted, mos).statistic),
        "plcc": float(line.rvalue),
        "plcc_logistic": float(abs(line.rvalue)),
        "rmse": float(np.sqrt(np.mean((line.intercept + line.slope * predicted - mos) ** 2))),
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))
