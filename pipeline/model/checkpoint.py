"""A folded scorer to and from its checkpoint: what is saved of a trained model, and what refuses to load.

The folded constants, and in the metadata the preprocessing record (backbone and weights' hash, window rule, texts,
prompt sizes, MOS scale), which is compared on loading. The file itself is `pipeline.model.checkpoint_file`'s.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.calibration import Calibration
from pipeline.familiarity import Familiarity
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint_file import NETWORK, CheckpointError, read_checkpoint, read_record, write_checkpoint
from pipeline.model.dcmpln import ImageAdapter
from pipeline.model.folded import FoldedScorer
from pipeline.model.windows import WindowRule

__all__ = ["CheckpointError", "load_checkpoint", "read_record", "save_checkpoint"]


def save_checkpoint(
    path: str | Path,
    scorer: FoldedScorer,
    record: dict[str, Any],
    calibration: Calibration | None = None,
    familiarity: Familiarity | None = None,
) -> None:
    """Save a folded scorer.

    Args:
        path: The file to write; replaced as a whole.
        scorer: The folded model.
        record: What the scores depend on beside the constants: `windows` (a `WindowRule.record()`), `texts`, `method`,
            `target`, `mos_low`, `mos_high`, `raters`, and whatever else describes the run. The backbone's own record
            is added.
        calibration: From raw score to MOS; None where there is none yet.
        familiarity: How the training images lie; likewise.
    """
    depth, length = scorer.visual_prompts.shape[:2]
    whole = {
        **record, "backbone": scorer.backbone.record(), "prompt_depth": depth, "prompt_length": length,
        "residual_ratio": None if scorer.adapter is None else scorer.adapter.residual_ratio,
    }  # fmt: skip
    arrays = {name: tensor.numpy() for name, tensor in scorer.constants().items()}
    write_checkpoint(path, arrays, whole, calibration, familiarity)


def load_checkpoint(
    path: str | Path, backbone: Backbone, windows: WindowRule | None = None
) -> tuple[FoldedScorer, WindowRule, dict[str, Any]]:
    """Load a folded scorer onto a backbone.

    Args:
        path: The checkpoint.
        backbone: The backbone to put it on; must be the one it was trained on.
        windows: The rule that the caller means to use; None takes the checkpoint's own.

    Returns:
        The scorer, the window rule that it was trained with, and the whole record.

    Raises:
        CheckpointError: If the file is damaged, or backbone, weights, or window rule differ; names each difference.
    """
    path = Path(path)
    record, arrays = read_checkpoint(path)
    if record["backbone"] is None:
        raise CheckpointError(f"{path} does not fit: {record['method']} reads no features of a backbone")
    arrays = {name: values for name, values in arrays.items() if name in NETWORK}
    saved, given = record["backbone"], backbone.record()
    # Earlier versions did not record the activation, which the hash of the weights does not cover.
    compared = ["name", "weights_sha256", "image_size", "patch_size"] + ["quick_gelu"] * ("quick_gelu" in saved)
    differing = [key for key in compared if saved[key] != given[key]]
    wrong = [f"backbone {key} is {given[key]!r}, and it was trained with {saved[key]!r}" for key in differing]
    rule_record = record["windows"]
    rule = WindowRule.from_record(rule_record)
    if windows is not None:
        wrong += [
            f"images {key} is {given!r}, and it was trained with {rule_record.get(key)!r}"
            for key in {**windows.record(), **rule_record}
            if rule_record.get(key) != (given := windows.record().get(key))
        ]
    if record["prompt_depth"] > backbone.image_layers:
        wrong.append(
            f"prompt_depth is {record['prompt_depth']}, and the image tower has {backbone.image_layers} layers"
        )
    if rule.size != backbone.image_size:
        wrong.append(f"windows.window_size is {rule.size}, and the image tower takes {backbone.image_size}")
    wrong += _array_faults(record, arrays, backbone)
    if wrong:
        raise CheckpointError(f"{path} does not fit: " + "; ".join(wrong))

    tensors = {name: torch.from_numpy(np.array(values, dtype=np.float32)) for name, values in arrays.items()}
    adapter = None
    if record["residual_ratio"] is not None:
        inner = len(tensors["adapter.down"])
        adapter = ImageAdapter(backbone.embed_dim, backbone.embed_dim // inner, record["residual_ratio"])
        adapter.load_state_dict({"down.weight": tensors["adapter.down"], "up.weight": tensors["adapter.up"]})
    probe = (tensors["probe.weights"], tensors["probe.bias"]) if "probe.weights" in tensors else None
    prompts = tensors.get("visual_prompts", torch.zeros(0, 0, backbone.image_width))
    scorer = FoldedScorer(backbone, prompts, tensors.get("text_features"), adapter, probe)
    return scorer.to(backbone.logit_scale.device), rule, record


def _array_faults(record: dict[str, Any], arrays: dict[str, np.ndarray], backbone: Backbone) -> list[str]:
    """Return what is wrong with a checkpoint's arrays: absent, of another size or kind, or of another kind of model."""
    width = backbone.embed_dim
    expected: dict[str, tuple[int, ...]] = {}
    found = []
    if record["prompt_depth"] or "visual_prompts" in arrays:
        expected["visual_prompts"] = (record["prompt_depth"], record["prompt_length"], backbone.image_width)
    if "probe.weights" in arrays:
        read = 2 if len(arrays["probe.weights"].shape) == 1 and len(arrays["probe.weights"]) == 2 * width else 1
        expected |= {"probe.weights": (read * width,), "probe.bias": ()}
    else:
        expected["text_features"] = (2, width)
    if record["residual_ratio"] is not None:
        down = arrays.get("adapter.down")
        inner = len(down) if down is not None and down.ndim else 0
        if not 0 < inner <= width or width // (width // inner) != inner:
            found.append(f"adapter.down has {inner} rows, which is no part of the {width} of the joint embedding")
        expected |= {"adapter.down": (inner, width), "adapter.up": (width, inner)}
    for key, shape in expected.items():
        if key not in arrays:
            found.append(f"it lacks {key}")
        elif arrays[key].shape != shape:
            found.append(f"{key} has shape {arrays[key].shape}, and {shape} fits this backbone")
        elif arrays[key].dtype.kind != "f":
            found.append(f"{key} holds {arrays[key].dtype}, and ours are floats")
    for key in sorted(arrays.keys() - expected.keys()):
        found.append(
            f"{key} is there, and there is no residual_ratio"
            if key.startswith("adapter.")
            else f"{key} is there, and has no place in this kind of model"
        )
    return found
