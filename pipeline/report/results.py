"""What the runs of one study wrote, gathered, checked and put in order.

Only the data sets, methods and rounds that the study names are read. Folders of earlier settings may stand beside them
and stay out; one that is named and missing is an error, never a gap in a table. Everything is a pandas frame, so that
any page can be made of the same numbers.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline import layout
from pipeline.layout import StudyError, backbone_label
from pipeline.report.summaries import CALIBRATED, HABITS, METRICS, REFERENCE

PAPER_ORDER = (REFERENCE, "no_mpa", "no_adapter", "clip_agiqa", "main_only")
# Reads no network: whatever backbone the study names has no part in it.
WITHOUT_BACKBONE = ("handcrafted",)
PREDICTED = ("image_id", "generator", "group", "mos", "mos_std", "predicted", "fitted")
TOLD = ("score", "low", "high", "unfamiliar")  # which earlier versions left out

WHOLE = ("selected_epoch", "epochs_run", "trainable_parameters", "checkpoint_bytes")

GALLERY = ("image_id", "kind", "rank", "mos", "predicted", "fitted", "generator", "generation_prompt", "picture", "map")
ORIGINS = ("random", "in-house", "pretrained")


class Results(NamedTuple):
    """Everything read from the runs of one study, tidy, in the order of its params.

    Attributes:
        runs: A row per data set x method x round: identity, leaks, backbone, inputs, test metrics, and
            validation_srcc, the selected epoch's, from all windows of an image.
        predictions: A row per data set x method x round x test image: image_id, generator, group, mos, mos_std,
            predicted (the method's own scale), fitted (on the MOS scale, after the round's logistic fit on these very
            images), and what a user is told: score, low and high (the calibrated score and the ends of its band, in
            MOS) and unfamiliar (0 or 1). NaN where earlier versions told nothing of the sort.
        history: A row per epoch of every variant: dataset, method, round, epoch, train_srcc, validation_srcc, loss;
            each epoch's correlations are from `validation.windows` windows an image.
        generators: A row per data set x method x round x generator: n, srcc, mos_mean, predicted_mean, fitted_mean
            (mean prediction on the MOS scale, after the round's logistic fit), score_mean (of the calibrated score) and
            `pipeline.report.summaries.CALIBRATED` of its images; NaN as for predictions.
        cross: A row per data set x method x round x other data set: tested_on, n and the metrics.
        timing: A row per variant's run: epochs, seconds, cpu_seconds, images_per_second, peak_memory_mb.
        costs: A row per data set x method x round: train_seconds, train_cpu_seconds and train_under_load of all epochs
            or of the fit, device, git_commit, git_dirty, and scoring_seconds, scoring_cpu_seconds, scoring_under_load,
            scoring_images_per_second and scoring_peak_memory_mb of the own test images. The features that a baseline
            reads are in it. NaN where earlier versions did not measure, and there nothing is known of a load.
        leaks: The leak audit. A row per data set x audited variant x round x split (grouped or random) x picked_on
            (validation or test, which chose the epoch): leaks, selected_epoch and the metrics. Empty without one, and
            where the study's own rounds leak.
        gallery: A row per picture of the reference variant's first round, as its gallery.csv (whose column score
            earlier versions left out), and its folder.
        settings: Of each method, the params of its first run on the first data set, by dotted key.
        split_audits: What the split stage counted of each data set: what its subsets share.
        cards: The data card of each data set.
    """

    runs: pd.DataFrame
    predictions: pd.DataFrame
    history: pd.DataFrame
    generators: pd.DataFrame
    cross: pd.DataFrame
    timing: pd.DataFrame
    costs: pd.DataFrame
    leaks: pd.DataFrame
    gallery: pd.DataFrame
    settings: dict[str, dict[str, Any]]
    split_audits: dict[str, dict[str, Any]]
    cards: dict[str, dict[str, Any]]


def read_results(
    datasets: Sequence[str],
    methods: Sequence[str],
    rounds: Sequence[int],
    runs: str | Path = "runs",
    splits: str | Path = "data/splits",
    prepared: str | Path = "data/prepared",
    audited: Sequence[str] = (),
) -> Results:
    """Read the results of exactly the named data sets, methods and rounds.

    Args:
        datasets: Names of the study's data sets.
        methods: Variants and baselines.
        rounds: Round numbers.
        runs: Folder of `<dataset>/<method>/round-<r>/{train,evaluate}`.
        splits: Folder of `<dataset>/audit.json`.
        prepared: Folder of `<dataset>/card.json`.
        audited: Those of the variants whose leak audit is to be read: `round-<r>/audit` and `random-<r>`.

    Returns:
        What is there, methods in the paper's order: its variants, other variants, shuffled-label controls, baselines.

    Raises:
        FileNotFoundError: If a named run, split audit or card is not there.
        StudyError: If a file is not what its place says, lacks a key, or holds a number that is not finite; if the
            methods of one round were not tested on the same images; a method changed its backbone between rounds; or
            a leak audit's run has another split than its folder says.
    """
    split_audits = {
        dataset: _read_json(Path(splits) / dataset / "audit.json", f"data set {dataset}") for dataset in datasets
    }
    cards = {dataset: _read_json(Path(prepared) / dataset / "card.json", f"data set {dataset}") for dataset in datasets}
    names = ("runs", "history", "generators", "cross", "timing", "costs", "leaks")
    tables: dict[str, list[Any]] = {name: [] for name in names}
    predicted: list[pd.DataFrame] = []
    settings: dict[str, dict[str, Any]] = {}
    tested: dict[tuple[str, int], tuple[str, set[str]]] = {}
    wanted = [(dataset, method, number) for dataset in datasets for method in methods for number in rounds]
    for dataset, method, number in tqdm(wanted, desc="reading runs", unit="run", disable=len(wanted) < 20):
        folder = Path(runs) / dataset / method / f"round-{number}"
        what = f"{method} on {dataset}, round {number}"
        record_path, metrics_path = folder / layout.TRAIN / layout.RECORD, folder / layout.EVALUATE / layout.METRICS
        record = _read_json(record_path, what)
        metrics = _read_json(metrics_path, what)
        place = {"dataset": dataset, "method": method, "round": number}
        for key, value in place.items():
            if _get(record, record_path, key) != value:
                raise StudyError(f"{folder}/train/record.json: {key} is {record[key]!r}, its folder says {value!r}")
        settings.setdefault(method, _get(record, record_path, "params"))
        tables["runs"].append(place | _run_row(record, metrics, folder, split_audits[dataset]))
        predictions = _read_csv(
            folder / layout.EVALUATE / layout.PREDICTIONS,
            list(PREDICTED),
            what,
            {"image_id": str, "generator": str, "group": str},
        )
        first, images = tested.setdefault((dataset, number), (method, set(predictions["image_id"])))
        if images != set(predictions["image_id"]):
            raise StudyError(
                f"{folder / 'evaluate' / 'predictions.csv'}: other test images than {first} in round {number} of "
                f"{dataset} ({len(images ^ set(predictions['image_id']))} differ); rerun the older of the two"
            )
        told = predictions.reindex(columns=list(TOLD)).astype(float)
        predicted.append(pd.concat([predictions[list(PREDICTED)], told], axis=1).assign(**place))
        tables["generators"] += [place | row for row in _generator_rows(predictions, metrics, metrics_path)]
        tables["costs"].append(place | _cost_row(folder, metrics, what))
        if method in audited and not tables["runs"][-1]["leaks"]:  # a study that leaks has no clean score to start from
            tables["leaks"] += [place | row for row in _leak_rows(folder, number, what)]
        tables["cross"] += [
            place | {"tested_on": other, "n": _get(values, metrics_path, "n")}
            | {ours: _number(values, metrics_path, theirs) for ours, theirs in METRICS.items()}
            for other, values in metrics.get("cross", {}).items()
            if other in datasets and other != dataset
        ]  # fmt: skip
        if record["kind"] == "variant":
            columns = ["epoch", "loss", "train_srcc", "validation_srcc"]
            history = _read_csv(folder / layout.TRAIN / layout.HISTORY, columns, what)[columns]
            tables["history"] += [place | row for row in history.to_dict("records")]
            columns = ["seconds", "images_per_second", "peak_memory_mb"]
            timing = _read_csv(folder / layout.TRAIN / layout.TIMING, columns, what)
            tables["timing"].append(
                place
                | {
                    "epochs": len(timing),
                    "seconds": timing["seconds"].sum(),
                    # Earlier versions did not measure it.
                    "cpu_seconds": timing["cpu_seconds"].sum() if "cpu_seconds" in timing else math.nan,
                    "images_per_second": timing["images_per_second"].mean(),
                    "peak_memory_mb": timing["peak_memory_mb"].max(),
                }
            )
    frames = {
        # Int64 holds whole numbers beside absent ones; a plain column would turn them all into floats.
        "runs": pd.DataFrame(tables["runs"]).astype(dict.fromkeys(WHOLE, "Int64")),
        "history": _frame(tables["history"], ["epoch", "train_srcc", "validation_srcc", "loss"]),
        "generators": _frame(
            tables["generators"],
            ["generator", "n", "srcc", "mos_mean", "predicted_mean", "fitted_mean", "score_mean", *CALIBRATED],
        ),
        "cross": _frame(tables["cross"], ["tested_on", "n", *METRICS]),
        "timing": _frame(tables["timing"], ["epochs", "seconds", "cpu_seconds", "images_per_second", "peak_memory_mb"]),
        "predictions": _frame([], [*PREDICTED, *TOLD]) if not predicted else pd.concat(predicted, ignore_index=True),
        "costs": pd.DataFrame(tables["costs"]),
        "leaks": _frame(tables["leaks"], ["split", "picked_on", "leaks", "selected_epoch", *METRICS]),
        "gallery": _gallery(tables["runs"], datasets, runs),
    }
    _same_backbone(frames["runs"])
    ranks = _ranks(frames["runs"], datasets)
    frames = {name: _in_order(frame, ranks) for name, frame in frames.items()}
    return Results(**frames, settings=settings, split_audits=split_audits, cards=cards)


# Reading


def shared(split_audit: dict[str, Any], number: int) -> tuple[int, int]:
    """Return how many generation prompts, and how many identical images, of test also stand in train or validation.

    Args:
        split_audit: One data set's audit.json.
        number: The round.

    Raises:
        StudyError: If it does not know the round, or lacks a key.
    """
    name = f"audit.json of {split_audit.get('dataset')}"
    rounds = _get(split_audit, Path(name), "rounds")
    if str(number) not in rounds:
        raise StudyError(f"{name}: no round {number}; it has {', '.join(rounds)}. Rerun the split stage")
    counts = rounds[str(number)]
    return _get(counts, Path(name), "shared_prompts"), _get(counts, Path(name), "shared_images")


def _read_json(path: Path, what: str) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(_missing(path, what)) from None
    except json.JSONDecodeError as error:
        raise StudyError(f"{path}: not valid JSON ({error}); rerun the stage that writes it") from None


def _read_csv(path: Path, columns: list[str], what: str, dtype: dict[str, type] | None = None) -> pd.DataFrame:
    try:
        # A generator may well be called "None" or "NA": only an empty cell is an absent value.
        frame = pd.read_csv(path, dtype=dtype, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise FileNotFoundError(_missing(path, what)) from None
    absent = [column for column in columns if column not in frame]
    if absent:
        raise StudyError(
            f"{path}: no column {absent[0]!r}; it has {', '.join(frame.columns)}. Run `dvc repro`, which writes it anew"
        )
    return frame


def _missing(path: Path, what: str) -> str:
    return f"{path} is missing: the study in params.yaml names {what}. Run `dvc repro`, or take it out of the study"


def _get(values: dict[str, Any], path: Path, key: str) -> Any:
    if key not in values:
        raise StudyError(f"{path}: no key {key!r}; it has {', '.join(values)}")
    return values[key]


def _number(values: dict[str, Any], path: Path, key: str) -> float:
    """A number; NaN for null, which is how an evaluation says that there is no value."""
    value = _get(values, path, key)
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise StudyError(f"{path}: {key} is {value!r}, which is no finite number; rerun the evaluation")
    return float(value)


def _known(values: dict[str, Any], path: Path, keys: Sequence[str]) -> dict[str, float]:
    """Numbers by key; NaN for those that are not there, as earlier versions left them out."""
    return {key: _number(values, path, key) if key in values else math.nan for key in keys}


def _run_row(
    record: dict[str, Any], metrics: dict[str, Any], folder: Path, split_audit: dict[str, Any]
) -> dict[str, Any]:
    path = folder / layout.TRAIN / layout.RECORD
    kind = "control" if _get(record, path, "shuffled_labels") else _get(record, path, "kind")
    name, origin = "none", "none"
    if record["method"] not in WITHOUT_BACKBONE and _get(record, path, "backbone") is not None:
        backbone = record["backbone"]
        origin = _get(backbone, path, "origin")
        if origin not in ORIGINS:
            raise StudyError(f"{path}: backbone.origin is {origin!r}; known are {', '.join(ORIGINS)}")
        name = backbone_label({key: _get(backbone, path, key) for key in ("name", "origin", "pretrained")})
    elif record.get("metric"):
        name = _get(record["metric"], path, "package")
    leaks = list(_get(record, path, "leaks"))
    # The split audit counts what the record only claims.
    if any(shared(split_audit, record["round"])) and not any("split" in leak for leak in leaks):
        leaks.append("test prompts or images shared")
    source = folder / layout.EVALUATE / layout.METRICS
    images, test = _get(record, path, "images"), _get(metrics, source, "test")
    return {
        "kind": kind,
        "split_rule": _get(record, path, "split_rule"),
        "select_on": _get(record, path, "select_on"),
        "leaks": "; ".join(leaks),
        "target": _get(record, path, "target"),
        "backbone": name,
        "backbone_origin": origin,
        "backbone_sha256": "" if origin == "none" else record["backbone"].get("weights_sha256") or "",
        "selected_epoch": _get(record, path, "selected_epoch") if record["kind"] == "variant" else None,
        "epochs_run": _get(record, path, "epochs_run") if record["kind"] == "variant" else None,
        "trainable_parameters": _get(record, path, "trainable_parameters"),
        "checkpoint_bytes": _get(record, path, "checkpoint_bytes"),
        "train_images": _get(images, path, "train"),
        "validation_images": _get(images, path, "validation"),
        "test_images": _get(images, path, "test"),
        "manifest_md5": _get(record, path, "inputs").get("manifest_md5", ""),
        "test_groups": _get(test, source, "groups"),
        **{ours: _number(test, source, theirs) for ours, theirs in METRICS.items()},
        "srcc_low": _number(test, source, "srcc_low"),
        "srcc_high": _number(test, source, "srcc_high"),
        **_known(test, source, CALIBRATED),
        "validation_srcc": _known(metrics.get("validation", {}), source, ["srcc"])["srcc"],
    }


def _generator_rows(predictions: pd.DataFrame, metrics: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    fitted_means = predictions.groupby("generator")["fitted"].mean()
    rows = []
    for name, values in _get(metrics, path, "generator").items():
        if name not in fitted_means:
            raise StudyError(f"{path}: generator {name!r} has no image in predictions.csv; rerun the evaluation")
        rows.append(
            {
                "generator": name,
                "n": _get(values, path, "n"),
                "srcc": _number(values, path, "srcc"),  # null for a few images, or ties only
                "mos_mean": _number(values, path, "mos_mean"),
                "predicted_mean": _number(values, path, "predicted_mean"),
                "fitted_mean": float(fitted_means[name]),
                **_known(values, path, ["score_mean", *CALIBRATED]),
            }
        )
    return rows


def _cost_row(folder: Path, metrics: dict[str, Any], run_of: str) -> dict[str, Any]:
    run = _read_json(folder / layout.TRAIN / layout.RUN, run_of)
    # Earlier versions knew of a training the time from its first start alone, and evaluations did not measure.
    seconds = _number(run, folder / layout.TRAIN / layout.RUN, "seconds")
    measured = {"train": run.get("cost") or {"seconds": seconds}, "scoring": metrics.get("cost", {})}
    row = {key: _get(run, folder / layout.TRAIN / layout.RUN, key) for key in ("device", "git_commit", "git_dirty")}
    for what, cost in measured.items():
        keys = ["seconds", "cpu_seconds", *(["images_per_second", "peak_memory_mb"] if what == "scoring" else [])]
        row |= {f"{what}_{key}": math.nan if cost.get(key) is None else float(cost[key]) for key in keys}
        row[f"{what}_under_load"] = bool(cost.get("under_load"))
    return row


def _leak_rows(folder: Path, number: int, what: str) -> list[dict[str, Any]]:
    """One round of the leak audit: the same variant under each split, with the epoch picked on each subset."""
    rows = []
    for split, picked_on in HABITS:
        place = folder if split == "grouped" else folder.with_name(f"random-{number}")
        record_path = place / layout.TRAIN / layout.RECORD
        record = _read_json(record_path, f"{what} in study.audit")
        if record["split_rule"] != split:
            raise StudyError(f"{record_path}: split_rule is {record['split_rule']!r}, its folder says {split!r}")
        path = place / (layout.EVALUATE if picked_on == "validation" else layout.AUDIT) / layout.METRICS
        metrics = _read_json(path, f"{what} in study.audit")
        source = record if picked_on == "validation" else metrics
        test = _get(metrics, path, "test")
        rows.append(
            {"split": split, "picked_on": picked_on, "leaks": "; ".join(_get(source, path, "leaks"))}
            | {"selected_epoch": _get(source, path, "selected_epoch")}
            | {ours: _number(test, path, theirs) for ours, theirs in METRICS.items()}
        )
    return rows


def _gallery(rows: list[dict[str, Any]], datasets: Sequence[str], runs: str | Path) -> pd.DataFrame:
    """The pictures of each data set's reference variant in its first round; none where evaluation left no gallery."""
    parts = []
    for dataset in datasets:
        able = [row for row in rows if row["dataset"] == dataset and row["kind"] == "variant"]
        if not able:
            continue
        method = REFERENCE if any(row["method"] == REFERENCE for row in able) else able[0]["method"]
        number = min(row["round"] for row in able if row["method"] == method)
        folder = Path(runs) / dataset / method / f"round-{number}" / layout.EVALUATE / "gallery"
        if not folder.is_dir():
            continue
        words = {"image_id": str, "generator": str, "generation_prompt": str}
        table = _read_csv(folder / "gallery.csv", list(GALLERY), f"{method} on {dataset}, round {number}", words)
        for name in (*table["picture"], *table["map"].dropna()):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is missing, and gallery.csv beside it names it; evaluate anew"
                )
        parts.append(table.assign(dataset=dataset, method=method, round=number, folder=str(folder)))
    return pd.concat(parts, ignore_index=True) if parts else _frame([], [*GALLERY, "folder"])


def _frame(rows: list[dict[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["dataset", "method", "round", *columns])


def _same_backbone(runs: pd.DataFrame) -> None:
    """Refuse to average over backbones."""
    for (dataset, method), group in runs.groupby(["dataset", "method"], sort=False):
        names = list(
            dict.fromkeys(group["backbone"] + group["backbone_sha256"].map(lambda name: f" {name[:8]}".rstrip()))
        )
        if len(names) > 1:
            raise StudyError(
                f"{method} on {dataset} mixes {len(names)} backbones over its rounds ({' and '.join(names)}): train "
                "its rounds anew with one of them"
            )


def _ranks(runs: pd.DataFrame, datasets: Sequence[str]) -> dict[tuple[str, str], int]:
    """Place of each data set x method: the study's data sets, in each the paper's order."""
    kinds = ("variant", "control", "baseline")
    pairs = runs[["dataset", "method", "kind"]].drop_duplicates().to_dict("records")

    def place(row: dict[str, Any]) -> tuple[int, int, int]:
        method = row["method"]
        paper = PAPER_ORDER.index(method) if method in PAPER_ORDER else len(PAPER_ORDER)
        return list(datasets).index(row["dataset"]), kinds.index(row["kind"]), paper

    return {(row["dataset"], row["method"]): rank for rank, row in enumerate(sorted(pairs, key=place))}


def _in_order(frame: pd.DataFrame, ranks: dict[tuple[str, str], int]) -> pd.DataFrame:
    if frame.empty:
        return frame
    rank = [ranks[pair] for pair in zip(frame["dataset"], frame["method"], strict=True)]
    return frame.iloc[np.argsort(rank, kind="stable")].reset_index(drop=True)
