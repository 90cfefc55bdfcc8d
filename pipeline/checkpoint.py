"""What is saved of a trained model, and what refuses to load.

A checkpoint is one small safetensors file: the folded constants, and in its metadata the preprocessing record (backbone
and weights' hash, window rule, texts, prompt sizes, MOS scale), which is compared on loading. Reading one runs no code.

Imports pipeline.backbone, pipeline.files, pipeline.folding, pipeline.images, pipeline.model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.backbone import Backbone
from pipeline.files import write_atomically
from pipeline.folding import FoldedScorer
from pipeline.images import WindowRule
from pipeline.model import DCMPLN, ImageAdapter

FORMAT = "agiqa-folded-1"


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or does not fit what it is to be used with."""


def save_checkpoint(path: str | Path, scorer: FoldedScorer, record: dict[str, Any]) -> None:
    """Save a folded scorer.

    Args:
        path: The file to write; replaced as a whole.
        scorer: The folded model.
        record: What the scores depend on beside the constants: `windows` (a `WindowRule.record()`), `texts`, `variant`,
            `target`, `mos_low`, `mos_high`, and whatever else describes the run. The backbone's own record is added.
    """
    metadata = {
        "format": FORMAT, **record, "backbone": scorer.backbone.record(),
        "prompt_depth": scorer.visual_prompts.shape[0], "prompt_length": scorer.visual_prompts.shape[1],
        "residual_ratio": None if scorer.adapter is None else scorer.adapter.residual_ratio,
    }  # fmt: skip
    # One metadata entry: safetensors orders several at random, and equal models must give equal bytes.
    data = save(scorer.constants(), metadata={"agiqa": json.dumps(metadata, sort_keys=True)})
    write_atomically(Path(path), data)


def read_record(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's record without loading its tensors.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        with safe_open(path, framework="pt") as archive:
            metadata = json.loads((archive.metadata() or {}).get("agiqa", "{}"))
            tensors = {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {metadata.get('format')!r}, and {FORMAT!r} is read here: "
            "it was not written by this study"
        )
    return metadata, tensors


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
    record, tensors = _read(path)
    saved, given = record["backbone"], backbone.record()
    # Earlier versions did not record the activation, which the hash of the weights does not cover.
    compared = ["name", "weights_sha256", "image_size", "patch_size"] + ["quick_gelu"] * ("quick_gelu" in saved)
    differing = [key for key in compared if saved[key] != given[key]]
    faults = [f"backbone {key} is {given[key]!r}, and it was trained with {saved[key]!r}" for key in differing]
    rule_record = record["windows"]
    rule = WindowRule.from_record(rule_record)
    if windows is not None:
        faults += [
            f"images {key} is {value!r}, and it was trained with {rule_record[key]!r}"
            for key, value in windows.record().items()
            if rule_record[key] != value
        ]
    expected = {
        "visual_prompts": (record["prompt_depth"], record["prompt_length"], backbone.image_width),
        "text_features": (2, backbone.embed_dim),
    }
    for key, shape in expected.items():
        if key not in tensors:
            faults.append(f"it lacks {key}")
        elif tuple(tensors[key].shape) != shape:
            faults.append(f"{key} has shape {tuple(tensors[key].shape)}, and {shape} fits this backbone")
        elif not torch.isfinite(tensors[key]).all():
            faults.append(f"{key} holds values that are not finite")
    if faults:
        raise CheckpointError(f"{path} does not fit: " + "; ".join(faults))

    adapter = None
    if record["residual_ratio"] is not None:
        inner = tensors["adapter.down"].shape[0]
        adapter = ImageAdapter(backbone.embed_dim, backbone.embed_dim // inner, record["residual_ratio"])
        adapter.load_state_dict({"down.weight": tensors["adapter.down"], "up.weight": tensors["adapter.up"]})
    scorer = FoldedScorer(backbone, tensors["visual_prompts"], tensors["text_features"], adapter)
    return scorer.to(backbone.logit_scale.device), rule, record


def load_released_auxiliary(path: str | Path, model: DCMPLN) -> list[str]:
    """Load the authors' early auxiliary-prompt checkpoint into a model's freely learned auxiliary prompts.

    The release holds `ctx` (text prompts of layer 0), `prompts_text.0` .. for the text layers 1.., `prompts_vis.0` ..
    for all visual layers, and token buffers that this model makes itself.

    Args:
        path: The released file; read with weights_only, so that it cannot run code.
        model: A variant with auxiliary prompts and without MPA, such as clip_agiqa.

    Returns:
        The names in the file that were not needed.

    Raises:
        CheckpointError: If the file lacks a prompt, or its shapes or depth do not fit the model.
        ValueError: If the model has no freely learned auxiliary prompts.
    """
    if model.auxiliary_prompts is None or model.mpa is not None:
        raise ValueError("only a variant with auxiliary prompts and without MPA can take them: clip_agiqa or no_mpa")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is not a plain torch state dict: {error}") from error
    return copy_auxiliary(state, model, str(path))


def copy_auxiliary(state: Mapping[str, Tensor], model: DCMPLN, path: str) -> list[str]:
    """Copy released auxiliary prompts into a model; see `load_released_auxiliary`.

    Args:
        state: The released names and tensors.
        model: As there, with auxiliary prompts and without MPA.
        path: Where they come from, for errors.
    """
    names = {
        "text": ["ctx", *(f"prompts_text.{layer}" for layer in range(model.depth - 1))],
        "visual": [f"prompts_vis.{layer}" for layer in range(model.depth)],
    }
    for side, keys in names.items():
        target: Tensor = getattr(model.auxiliary_prompts, side)
        missing = [key for key in keys if key not in state]
        if missing:
            raise CheckpointError(f"{path} lacks {', '.join(missing)}: a prompt depth of {model.depth} needs them")
        shapes = {tuple(state[key].shape) for key in keys}
        if shapes != {tuple(target.shape[1:])}:
            raise CheckpointError(f"{path} has {side} prompts of shape {sorted(shapes)}, not {tuple(target.shape[1:])}")
    used = {key for keys in names.values() for key in keys}
    deeper = sorted(key for key in state if key.startswith("prompts_") and key not in used)
    if deeper:
        raise CheckpointError(
            f"{path} has prompts beyond depth {model.depth} ({', '.join(deeper)}): raise prompt_depth"
        )
    with torch.no_grad():
        for side, keys in names.items():
            getattr(model.auxiliary_prompts, side).copy_(torch.stack([state[key].float() for key in keys]))
    return sorted(state.keys() - used)
