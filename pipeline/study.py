"""From params.yaml and files on disk to the library's plain arguments: the door of the stages that use the network.

With `pipeline.rounds`, the only module beside the stages that sees the params object. Imports pipeline.backbone,
pipeline.checkpoint, pipeline.files, pipeline.folding, pipeline.images, pipeline.model, pipeline.params,
pipeline.rounds, pipeline.runs, pipeline.training.
"""

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
from pipeline.folding import FoldedScorer, image_scores, quality_map
from pipeline.images import PixelPack, WindowRule, open_prepared
from pipeline.model import DCMPLN
from pipeline.params import Params
from pipeline.rounds import SUBSETS, StudyError, input_paths, open_split, round_seed, scaled_mos
from pipeline.runs import leaks, used_params
from pipeline.training import Fitted, Subset, checkpoint_name


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
        """Return the whole record.json, which names the selected checkpoint's content: `evaluate` depends on it."""
        selected = checkpoints / checkpoint_name(fitted.selected_epoch)
        return self.record | {
            "selected_epoch": fitted.selected_epoch,
            "epochs_run": len(fitted.history),
            "checkpoint_bytes": selected.stat().st_size,
            "checkpoint_md5": file_md5(selected),
        }


def plan_training(params: Params, dataset: str, variant: str, round_index: int, split: str = "round") -> TrainingPlan:
    """Read all that one training needs; `split` as `pipeline.rounds.input_paths`."""
    settings = params.train_for(variant)
    split_rule = "random" if split == "random" else params.split.rule
    device = choose_device(settings.device, settings.threads)
    manifest_path, split_path = input_paths(dataset, round_index, split)
    manifest, pack = open_prepared(manifest_path.parent)
    rows, _ = open_split(split_path, manifest)
    backbone = make_backbone(params)
    rule = make_window_rule(params, backbone)
    seed = round_seed(settings.seed, round_index)
    model = make_model(params, variant, backbone, seed)
    subsets = training_subsets(params, variant, manifest, pack, rows, seed)
    switches = params.variants[variant]
    used = used_params(params.model_dump() | {"train": settings.model_dump()}, VARIANT_KEYS)
    used["split.rule"] = split_rule
    used |= {f"variant.{switch}": value for switch, value in switches.model_dump(exclude={"train"}).items()}
    has_auxiliary = switches.auxiliary and bool(np.isfinite(subsets["train"].auxiliary).any())
    record = {
        "dataset": dataset,
        "method": variant,
        "kind": "variant",
        "round": round_index,
        "split": split,
        "seed": seed,
        "split_rule": split_rule,
        "select_on": settings.select_on,
        "leaks": leaks(split_rule, settings.select_on),
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
        "label": f"{dataset}/{variant}/{split}-{round_index}",
        "validation_windows": params.validation.windows,
        "device": device,
        "amp": settings.amp == "auto" and device.type == "cuda",
        "compiled": settings.compile == "auto",
        "seed": seed,
    } | settings.model_dump(
        include={
            "select_on", "learning_rate", "schedule", "warmup_epochs", "weight_decay", "batch_size", "micro_batch",
            "epochs", "patience", "auxiliary_weight", "flip",
        }
    )  # fmt: skip
    return TrainingPlan(record, [manifest_path, split_path], describe_machine(device), arguments)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return what run.json says of the machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


@dataclass(frozen=True)
class Judge:
    """A training's checkpoints, ready to score the images of any data set.

    Attributes:
        params: Of the study.
        record: The run's record.json.
        train_folder: The run's `train` folder.
        backbone: Of the study, on its device.
        rule: The window rule.
    """

    params: Params
    record: Mapping[str, Any]
    train_folder: Path
    backbone: Backbone
    rule: WindowRule

    @classmethod
    def of(cls, params: Params, record: Mapping[str, Any], train_folder: Path) -> "Judge":
        """Load the backbone on the study's device."""
        backbone = make_backbone(params).to(choose_device(params.train.device, params.train.threads))
        return cls(params, record, train_folder, backbone, make_window_rule(params, backbone))

    def images(self) -> Callable[[str], np.ndarray]:
        """Return what gives an image of the training's own data set, shape (H, W, 3), uint8, by its id."""
        manifest, pack = open_prepared(input_paths(self.record["dataset"], self.record["round"])[0].parent)
        rows = {name: row for row, name in enumerate(manifest["image_id"])}
        return lambda image_id: pack[rows[image_id]]

    def quality_maps(self) -> Callable[[np.ndarray], np.ndarray]:
        """Return what lays the selected epoch's scores on an image; see `pipeline.folding.quality_map`."""
        scorer, device = self.scorer(), self.backbone.logit_scale.device
        return lambda pixels: quality_map(scorer, pixels, self.rule, device)

    def scorer(self, epoch: int | None = None) -> FoldedScorer:
        """Return the scorer of an epoch; None takes the selected one."""
        name = checkpoint_name(self.record["selected_epoch"] if epoch is None else epoch)
        return load_checkpoint(self.train_folder / "checkpoints" / name, self.backbone, self.rule)[0]

    def scores(
        self, dataset: str, rows: np.ndarray, *, epoch: int | None = None, windows: int | None = None
    ) -> np.ndarray:
        """Return raw scores, shape (n,), of manifest rows (n,) of a data set.

        Args:
            dataset: Its name.
            rows: Manifest rows, shape (n,).
            epoch: None takes the selected one.
            windows: Windows an image; None takes all.
        """
        _, pack = open_prepared(input_paths(dataset, self.record["round"])[0].parent)
        device = self.backbone.logit_scale.device
        label = f"{self.record['dataset']}/{self.record['method']}/{self.train_folder.parent.name} scores {dataset}"
        return image_scores(
            self.scorer(epoch), (pack[row] for row in rows), len(rows), self.rule, windows=windows, device=device,
            autocast=self.params.train.amp == "auto" and device.type == "cuda",
            label=label if epoch is None else f"{label}, epoch {epoch}",
        )  # fmt: skip
