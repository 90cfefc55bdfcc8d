"""From params.yaml and files on disk to the library's plain arguments: the door of the stages that use the network.

In this wing alone, beside the stages, is the params object seen.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from pipeline.calibration import calibrate
from pipeline.data.pixels import PixelPack, open_prepared
from pipeline.familiarity import familiarise
from pipeline.files import file_md5
from pipeline.layout import SUBSETS, checkpoint_name, input_paths, leaks
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import FoldedScorer, window_scores
from pipeline.model.windows import WindowRule
from pipeline.params import Params, Train
from pipeline.study.build import describe_machine, make_backbone, make_model, make_window_rule, prepare_torch
from pipeline.study.runs import agreement, used_params
from pipeline.study.subsets import (
    open_split,
    raters_of,
    refuse_unlabelled,
    round_seed,
    scaled_mos,
    unscaled_mos,
)
from pipeline.training.crops import Subset
from pipeline.training.fit import Fitted, Settings, fit
from pipeline.training.ranks import ALONE, Ranks


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
        refuse_unlabelled(main[labelled], targets.main, name)
        dealt = labelled
        if params.variants[variant].shuffle_labels:
            dealt = np.random.default_rng([seed, number]).permutation(labelled)
        subsets[name] = Subset(pack, labelled, main[dealt], auxiliary[dealt])
    return subsets


# The keys of params.yaml that a run uses, which its record repeats.
VARIANT_KEYS = ["backbone", "images", "model", "split.rule", "targets", "train", "validation"]


FAMILIAR_IMAGES = 1000  # of training whose features say what is familiar; more change nothing


@dataclass(frozen=True)
class TrainingPlan:
    """A training that is ready to run.

    Attributes:
        record: record.json as far as it is known before the training.
        inputs: Files that the training reads.
        machine: Device, processes and threads, for run.json.
        model: With its learned parts freshly drawn.
        train: Images to learn from.
        selectors: Subsets that are scored after each epoch, by name.
        rule: The window rule.
        checkpoint_record: What each checkpoint says of itself.
        validation_groups: Prompt group of each validation image, shape (M,).
        settings: How to train.
        label: Shown at the progress bar.
        ranks: The processes that train together, each with this plan.
    """

    record: dict[str, Any]
    inputs: list[Path]
    machine: dict[str, Any]
    model: DCMPLN
    train: Subset
    selectors: dict[str, Subset]
    rule: WindowRule
    checkpoint_record: dict[str, Any]
    validation_groups: np.ndarray
    settings: Settings
    label: str
    ranks: Ranks = ALONE

    def fit(
        self, folder: Path, on_epoch: Callable[[dict[str, float], dict[str, float], Path], None] | None = None
    ) -> Fitted:
        """Train; see `pipeline.training.fit.fit`."""
        return fit(
            self.model, self.train, self.selectors, self.rule, folder, self.checkpoint_record, self.settings,
            on_epoch=on_epoch, label=self.label, ranks=self.ranks,
        )  # fmt: skip

    def calibrate(self, checkpoint: Path) -> dict[str, float | None]:
        """Give a checkpoint its calibration and its idea of what is familiar, and return its validation numbers.

        Every window of the validation images is scored, as users' images will be; of training images a few windows of
        at most `FAMILIAR_IMAGES` suffice for how their features lie. All processes share the images; the first writes.
        """
        scorer, _, told = load_checkpoint(checkpoint, self.model.backbone, self.rule)
        validation = self.selectors["validation"]
        raw, features = self._scored(scorer, validation, None, "calibrate")
        low, high = self.checkpoint_record["mos_low"], self.checkpoint_record["mos_high"]
        mos = unscaled_mos(validation.main, low, high)
        calibration = calibrate(raw, mos, self.validation_groups, low, high)
        few = self.train.rows[:: max(1, -(-len(self.train.rows) // FAMILIAR_IMAGES))]
        few = replace(self.train, rows=few)
        _, seen = self._scored(scorer, few, self.settings.validation_windows, "what it has seen")
        familiarity = familiarise(seen, features)
        record = {**self.checkpoint_record, "epoch": told["epoch"]}
        if self.ranks.first:
            save_checkpoint(checkpoint, scorer, record, calibration, familiarity)
        return agreement(raw, validation.main)

    def _scored(
        self, scorer: FoldedScorer, subset: Subset, windows: int | None, what: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the images' scores, shape (N,), and features, shape (N, E); each process scores its share."""
        start, stop = self.ranks.share(len(subset.rows))
        shown = tqdm(
            subset.rows[start:stop], desc=f"{self.label}: {what}", unit="image", delay=1, dynamic_ncols=True,
            disable=not self.ranks.first,
        )  # fmt: skip
        found = window_scores(
            scorer, (subset.pack[row] for row in shown), self.rule, windows=windows, device=self.settings.device,
            autocast=self.settings.amp,
        )  # fmt: skip
        own = np.zeros((stop - start, 1 + scorer.backbone.embed_dim))
        for row, one in zip(own, found, strict=True):
            row[0], row[1:] = one.raw, one.features
        whole = self.ranks.joined(own, len(subset.rows), self.settings.device)
        return whole[:, 0], whole[:, 1:]

    def finished_record(
        self, fitted: Fitted, checkpoints: Path, validation: Mapping[str, float | None]
    ) -> dict[str, Any]:
        """Return the whole record.json, which names the selected checkpoint's content: `evaluate` depends on it.

        Args:
            fitted: From `fit`.
            checkpoints: Their folder.
            validation: From `calibrate`.
        """
        selected = checkpoints / checkpoint_name(fitted.selected_epoch)
        return self.record | {
            "validation": dict(validation),
            "selected_epoch": fitted.selected_epoch,
            "epochs_run": len(fitted.history),
            "checkpoint_bytes": selected.stat().st_size,
            "checkpoint_md5": file_md5(selected),
        }


def plan_training(
    params: Params, dataset: str, variant: str, round_index: int, split: str = "round", ranks: Ranks = ALONE
) -> TrainingPlan:
    """Read all that one training needs; `split` as `pipeline.layout.input_paths`.

    Every process of several that train together needs it.
    """
    section = params.train_for(variant)
    split_rule = "random" if split == "random" else params.split.rule
    device = prepare_torch(section.device, section.threads, ranks)
    manifest_path, split_path = input_paths(dataset, round_index, split)
    manifest, pack = open_prepared(manifest_path.parent)
    rows, groups = open_split(split_path, manifest)
    backbone = make_backbone(params)
    rule = make_window_rule(params, backbone)
    seed = round_seed(section.seed, round_index)
    model = make_model(params, variant, backbone, seed)
    subsets = training_subsets(params, variant, manifest, pack, rows, seed)
    switches = params.variants[variant]
    used = used_params(params.model_dump() | {"train": section.model_dump()}, VARIANT_KEYS)
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
        "select_on": section.select_on,
        "leaks": leaks(split_rule, section.select_on),
        "shuffled_labels": switches.shuffle_labels,
        "target": params.targets.main,
        "auxiliary_target": params.targets.auxiliary if has_auxiliary else None,
        "raters": raters_of(manifest),
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
        "raters": record["raters"],
        "texts": list(params.model.texts.main),
        "windows": rule.record(),
        "mos_low": float(manifest["mos_low"].iloc[0]),
        "mos_high": float(manifest["mos_high"].iloc[0]),
    }
    return TrainingPlan(
        record=record,
        inputs=[manifest_path, split_path],
        machine=describe_machine(device, ranks),
        model=model,
        train=subsets.pop("train"),
        selectors=subsets,
        rule=rule,
        checkpoint_record=checkpoint_record,
        validation_groups=groups.iloc[rows["validation"]].to_numpy(),
        settings=training_settings(section, params.validation.windows, device, seed),
        label=f"{dataset}/{variant}/{split}-{round_index}",
        ranks=ranks,
    )


def training_settings(section: Train, windows: int, device: torch.device, seed: int) -> Settings:
    """Return what `train` of params.yaml asks for, on a device.

    Args:
        section: With the variant's own overrides.
        windows: Of each validation image.
        device: Where to train.
        seed: Of the round.
    """
    return Settings(
        select_on=section.select_on,
        optimiser=section.optimiser,
        learning_rate=section.learning_rate,
        map_rate=section.map_rate,
        visual_rate=section.visual_rate,
        schedule=section.schedule,
        warmup_epochs=section.warmup_epochs,
        weight_decay=section.weight_decay,
        batch_size=section.batch_size,
        micro_batch=section.micro_batch,
        epochs=section.epochs,
        patience=section.patience,
        auxiliary_weight=section.auxiliary_weight,
        ranking_weight=section.ranking_weight,
        windows=section.windows,
        flip=section.flip,
        seed=seed,
        validation_windows=windows,
        device=device,
        amp=section.amp == "auto" and device.type == "cuda",
        compiled=section.compile == "auto",
    )
