"""From params.yaml and files on disk to the library's plain arguments: the door that the stages share.

The only module beside the stages that sees the params object. Imports pipeline.backbone, pipeline.baselines,
pipeline.checkpoint, pipeline.files, pipeline.folding, pipeline.images, pipeline.model, pipeline.params, pipeline.runs,
pipeline.training.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pipeline.backbone import NORMALISATION, Backbone, load_backbone
from pipeline.checkpoint import load_checkpoint
from pipeline.files import file_md5
from pipeline.folding import image_scores
from pipeline.images import PixelPack, WindowRule
from pipeline.model import DCMPLN
from pipeline.params import Params
from pipeline.runs import leaks, used_params
from pipeline.training import Fitted, Subset, checkpoint_name

SUBSETS = ("train", "validation", "test")


class StudyError(ValueError):
    """Files of the study that do not fit each other."""


def make_backbone(params: Params) -> Backbone:
    """Load the study's backbone."""
    section = params.backbone
    return load_backbone(
        section.name,
        config=section.config,
        pretrained=section.pretrained,
        file=section.file,
        origin=section.origin,
        activation=section.activation,
        seed=section.seed,
    )


def make_window_rule(params: Params, backbone: Backbone) -> WindowRule:
    """Return how images become windows of the backbone's size."""
    mean, std = NORMALISATION[params.images.normalisation]
    return WindowRule(
        size=backbone.image_size,
        stride=params.images.stride,
        cover=params.images.cover,
        normalisation=params.images.normalisation,
        mean=mean,
        std=std,
    )


def make_model(params: Params, variant: str, backbone: Backbone, seed: int) -> DCMPLN:
    """Build one variant with freshly drawn learned parts; the draw depends on `seed` alone."""
    section, switches = params.model, params.variants[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DCMPLN(
            backbone,
            auxiliary=switches.auxiliary,
            mpa=switches.mpa,
            layer_f=switches.layer_f,
            adapter=switches.adapter,
            prompt_depth=section.prompt_depth,
            prompt_length=section.prompt_length,
            prompt_std=section.prompt_std,
            main_texts=tuple(section.texts.main),
            auxiliary_texts=tuple(section.texts.auxiliary),
            mpa_shared=section.mpa.shared,
            adapter_reduction=section.adapter.reduction,
            residual_ratio=section.adapter.residual_ratio,
            adapter_shared=section.adapter.shared,
        )


def round_seed(seed: int, round_index: int) -> int:
    """Return the seed of one round; neighbouring (seed, round) pairs give unrelated numbers."""
    return int(np.random.SeedSequence([seed, round_index]).generate_state(1)[0])


def open_prepared(folder: str | Path) -> tuple[pd.DataFrame, PixelPack]:
    """Return a prepared data set: its manifest, a row an image, and the decoded pixels in the same order."""
    folder = Path(folder)
    path = folder / "manifest.parquet"
    if not path.is_file():
        raise StudyError(f"{path} does not exist: run `dvc repro` for the preprocess stage of this data set first")
    manifest = pd.read_parquet(path)
    pack = PixelPack(folder / "pixels.bin", manifest["pixel_offset"], manifest["height"], manifest["width"])
    return manifest, pack


def open_split(path: str | Path, manifest: pd.DataFrame) -> tuple[dict[str, np.ndarray], pd.Series]:
    """Read one round's split.

    Args:
        path: round-<r>.csv with columns image_id, group, subset.
        manifest: Of the same data set.

    Returns:
        The manifest rows of each subset, in manifest order, and the group of every image, indexed by manifest row.

    Raises:
        StudyError: If the split and the manifest do not name the same images, or a subset is empty.
    """
    split = pd.read_csv(path, dtype=str).set_index("image_id")
    if not split.index.is_unique or set(split.index) != set(manifest["image_id"]):
        differing = sorted(set(split.index) ^ set(manifest["image_id"]))
        raise StudyError(
            f"{path} and the manifest differ in {len(differing)} images, such as {differing[:1]}: "
            "run the split stage anew"
        )
    split = split.loc[manifest["image_id"]].reset_index()
    rows = {name: np.flatnonzero(split["subset"] == name) for name in SUBSETS}
    empty = [name for name in SUBSETS if not len(rows[name])]
    if empty:
        raise StudyError(f"{path} leaves no image for {', '.join(empty)}: raise the fraction under `split`")
    return rows, split["group"]


def scaled_mos(manifest: pd.DataFrame, attribute: str) -> np.ndarray:
    """Return a mean opinion score scaled to 0..1 by its declared scale, NaN where there is none, shape (N,)."""
    low, high = manifest["mos_low"], manifest["mos_high"]
    return ((manifest[attribute] - low) / (high - low)).to_numpy(dtype=np.float64)


def choose_device(device: str, threads: int | None) -> torch.device:
    """Return the device to train on, and make the CPU deterministic.

    Args:
        device: `auto` takes a GPU where there is one.
        threads: CPU threads; None leaves torch's choice. Bits are equal for equal numbers of threads.

    Raises:
        StudyError: If `cuda` is asked for and there is none.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "cuda" and not torch.cuda.is_available():
        raise StudyError("train.device is 'cuda', and torch sees no GPU here: use 'auto' or 'cpu'")
    chosen = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
    if chosen.type == "cpu":
        torch.use_deterministic_algorithms(True)
    return chosen


def training_subsets(
    params: Params, variant: str, manifest: pd.DataFrame, pack: PixelPack, rows: Mapping[str, np.ndarray], seed: int
) -> dict[str, Subset]:
    """Return the labelled subsets that training may see, by name.

    The test subset is among them under `train.select_on: test` alone. A variant with `shuffle_labels` gets the labels
    of each subset dealt out anew: a control that must learn nothing.

    Raises:
        StudyError: If images lack the main score.
    """
    settings, targets = params.train_for(variant), params.targets
    main = scaled_mos(manifest, targets.main)
    auxiliary = scaled_mos(manifest, targets.auxiliary)
    if targets.fallback == "main" and np.isnan(auxiliary).all():
        auxiliary = main
    names = SUBSETS if settings.select_on == "test" else SUBSETS[:2]
    subsets = {}
    for number, name in enumerate(names):
        labelled = rows[name]
        if np.isnan(main[labelled]).any():
            raise StudyError(f"targets.main is {targets.main!r}, which {name} images of this data set do not have")
        dealt = labelled
        if params.variants[variant].shuffle_labels:
            dealt = np.random.default_rng([seed, number]).permutation(labelled)
        subsets[name] = Subset(pack, labelled, main[dealt], auxiliary[dealt])
    return subsets


# The keys of params.yaml that a run uses, which its record repeats.
VARIANT_KEYS = ["backbone", "images", "model", "split.rule", "targets", "train", "validation"]
BASELINE_KEYS = ["backbone", "images", "split.rule", "targets.main", "baselines"]


@dataclass(frozen=True)
class TrainingPlan:
    """A training that is ready to run.

    Attributes:
        record: record.json as far as it is known before the training.
        inputs: Files that the training reads.
        machine: Device and threads, for run.json.
        arguments: For `pipeline.training.fit`.
    """

    record: dict[str, Any]
    inputs: list[Path]
    machine: dict[str, Any]
    arguments: dict[str, Any]

    def finished_record(self, fitted: Fitted, checkpoints: Path) -> dict[str, Any]:
        """Return the whole record.json."""
        selected = checkpoints / checkpoint_name(fitted.selected_epoch)
        return self.record | {
            "selected_epoch": fitted.selected_epoch,
            "epochs_run": len(fitted.history),
            "checkpoint_bytes": selected.stat().st_size,
        }


def plan_training(params: Params, dataset: str, variant: str, round_index: int) -> TrainingPlan:
    """Read all that one training needs."""
    settings = params.train_for(variant)
    device = choose_device(settings.device, settings.threads)
    manifest_path, split_path = input_paths(dataset, round_index)
    manifest, pack = open_prepared(manifest_path.parent)
    rows, _ = open_split(split_path, manifest)
    backbone = make_backbone(params)
    rule = make_window_rule(params, backbone)
    seed = round_seed(settings.seed, round_index)
    model = make_model(params, variant, backbone, seed)
    subsets = training_subsets(params, variant, manifest, pack, rows, seed)
    switches = params.variants[variant]
    used = used_params(params.model_dump() | {"train": settings.model_dump()}, VARIANT_KEYS)
    used |= {f"variant.{switch}": value for switch, value in switches.model_dump(exclude={"train"}).items()}
    has_auxiliary = switches.auxiliary and bool(np.isfinite(subsets["train"].auxiliary).any())
    record = {
        "dataset": dataset,
        "method": variant,
        "kind": "variant",
        "round": round_index,
        "seed": seed,
        "split_rule": params.split.rule,
        "select_on": settings.select_on,
        "leaks": leaks(params.split.rule, settings.select_on),
        "shuffled_labels": switches.shuffle_labels,
        "target": params.targets.main,
        "auxiliary_target": params.targets.auxiliary if has_auxiliary else None,
        "backbone": backbone.record(),
        "trainable_parameters": sum(parameter.numel() for parameter in model.trainable_parameters()),
        "params": used,
        "inputs": {"manifest_md5": file_md5(manifest_path), "splits_md5": file_md5(split_path)},
        "images": {name: len(indices) for name, indices in rows.items()},
    }
    checkpoint_record = {
        "dataset": dataset,
        "method": variant,
        "round": round_index,
        "leaks": record["leaks"],
        "target": params.targets.main,
        "texts": list(params.model.texts.main),
        "windows": rule.record(),
        "mos_low": float(manifest["mos_low"].iloc[0]),
        "mos_high": float(manifest["mos_high"].iloc[0]),
    }
    arguments = {
        "model": model,
        "train": subsets.pop("train"),
        "selectors": subsets,
        "rule": rule,
        "record": checkpoint_record,
        "label": f"{dataset}/{variant}/round-{round_index}",
        "validation_windows": params.validation.windows,
        "device": device,
        "amp": settings.amp == "auto" and device.type == "cuda",
        "seed": seed,
    } | settings.model_dump(
        include={
            "select_on", "learning_rate", "schedule", "warmup_epochs", "weight_decay", "batch_size", "micro_batch",
            "epochs", "patience", "auxiliary_weight", "flip",
        }
    )  # fmt: skip
    return TrainingPlan(record, [manifest_path, split_path], describe_machine(device), arguments)


@dataclass(frozen=True)
class BaselinePlan:
    """A baseline that is ready to be fitted.

    Attributes:
        record: record.json as far as it is known before the fit.
        machine: Device and threads, for run.json.
        targets: Main target scaled to 0..1, shape (N,), of the train and validation images.
        rows: Manifest rows of those images, each (N,).
        columns: What the features stage computed, a row an image of the manifest.
    """

    record: dict[str, Any]
    machine: dict[str, Any]
    targets: dict[str, np.ndarray]
    rows: dict[str, np.ndarray]
    columns: dict[str, np.ndarray]

    def features(self, subset: str) -> dict[str, np.ndarray]:
        """Return the features of one subset's images."""
        return {name: values[self.rows[subset]] for name, values in self.columns.items()}

    def finished_record(self, model_file: Path) -> dict[str, Any]:
        """Return the whole record.json."""
        size = model_file.stat().st_size if model_file.is_file() else None
        return self.record | {"selected_epoch": 0, "epochs_run": 0, "checkpoint_bytes": size}


def plan_baseline(params: Params, dataset: str, method: str, round_index: int) -> BaselinePlan:
    """Read all that one baseline needs; no label of a test image is among it."""
    manifest_path, split_path = input_paths(dataset, round_index)
    manifest = pd.read_parquet(manifest_path)
    rows, _ = open_split(split_path, manifest)
    main = scaled_mos(manifest, params.targets.main)
    targets = {name: main[rows[name]] for name in SUBSETS[:2]}
    for name, values in targets.items():
        if np.isnan(values).any():
            raise StudyError(
                f"targets.main is {params.targets.main!r}, which {name} images of this data set do not have"
            )
    record = {
        "dataset": dataset,
        "method": method,
        "kind": "baseline",
        "round": round_index,
        "seed": round_seed(params.baselines.seed, round_index),
        "split_rule": params.split.rule,
        "select_on": None,
        "leaks": leaks(params.split.rule, None),
        "shuffled_labels": False,
        "target": params.targets.main,
        "auxiliary_target": None,
        "backbone": features_backbone(dataset),
        "trainable_parameters": None,
        "params": used_params(params.model_dump(), BASELINE_KEYS),
        "inputs": {"manifest_md5": file_md5(manifest_path), "splits_md5": file_md5(split_path)},
        "images": {name: len(indices) for name, indices in rows.items()},
    }
    machine = describe_machine(torch.device("cpu"))
    return BaselinePlan(
        record, machine, targets, {name: rows[name] for name in targets}, read_features(dataset, manifest)
    )


def input_paths(dataset: str, round_index: int) -> tuple[Path, Path]:
    """Return a data set's manifest and one round's split, relative to the repository root."""
    return (
        Path("data", "prepared", dataset, "manifest.parquet"),
        Path("data", "splits", dataset, f"round-{round_index}.csv"),
    )


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what run.json says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def test_scores(
    params: Params, record: Mapping[str, Any], train_folder: Path
) -> Callable[[str, pd.DataFrame, np.ndarray], np.ndarray]:
    """Return what scores the images of any data set with a run's result.

    Args:
        params: Of the study.
        record: The run's record.json.
        train_folder: The run's `train` folder.

    Returns:
        A function of a data set's name, its manifest and manifest rows (n,), which returns raw scores (n,).
    """
    if record["kind"] == "baseline":
        from pipeline import baselines  # imported here: brings in scikit-learn, 1 s

        def from_features(dataset: str, manifest: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
            features = read_features(dataset, manifest)
            return baselines.predict(train_folder, {key: value[rows] for key, value in features.items()})

        return from_features

    device = choose_device(params.train.device, params.train.threads)
    backbone = make_backbone(params).to(device)
    checkpoint = train_folder / "checkpoints" / checkpoint_name(record["selected_epoch"])
    scorer, rule, _ = load_checkpoint(checkpoint, backbone, make_window_rule(params, backbone))

    def from_pixels(dataset: str, manifest: pd.DataFrame, rows: np.ndarray) -> np.ndarray:
        _, pack = open_prepared(input_paths(dataset, record["round"])[0].parent)
        images = (pack[row] for row in rows)
        label = f"{record['dataset']}/{record['method']}/round-{record['round']} scores {dataset}"
        return image_scores(scorer, images, len(rows), rule, device=device, label=label)

    return from_pixels


def features_backbone(dataset: str) -> dict[str, Any]:
    """Return the record of the backbone that a data set's image features were computed with."""
    with np.load(Path("data", "features", f"{dataset}.npz")) as archive:
        return json.loads(str(archive["backbone"]))


def read_features(dataset: str, manifest: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return what the features stage computed, in manifest order: image_features, clip_iqa and handcrafted.

    Raises:
        StudyError: If the features belong to other images than the manifest.
    """
    path = Path("data", "features", f"{dataset}.npz")
    with np.load(path) as archive:
        if archive["image_id"].tolist() != manifest["image_id"].tolist():
            raise StudyError(f"{path} and the manifest name different images: run the features stage anew")
        return {key: archive[key] for key in ("image_features", "clip_iqa", "handcrafted")}


def validation_numbers(train_folder: Path, selected_epoch: int) -> dict[str, float]:
    """Return the selected epoch's validation SRCC, PLCC and KRCC; empty for a method that has none."""
    history = pd.read_csv(train_folder / "history.csv").set_index("epoch")
    row = history.loc[selected_epoch] if selected_epoch in history.index else pd.Series(dtype=float)
    prefix = "validation_"
    return {
        key.removeprefix(prefix): float(row[key]) for key in row.index if key.startswith(prefix) and pd.notna(row[key])
    }


def backbone_label(backbone: Mapping[str, Any]) -> str:
    """Return a backbone's name with whose weights it has, as every result must show it."""
    weights = {"random": "random weights", "in-house": "in-house weights"}.get(
        backbone["origin"], backbone["pretrained"]
    )
    return f"{backbone['name']} ({weights})"
