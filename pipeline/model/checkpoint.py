"""What is saved of a trained model, and what refuses to load.

A checkpoint is one small safetensors file: the folded constants, and in its metadata the preprocessing record (backbone
and weights' hash, window rule, texts, prompt sizes, MOS scale), which is compared on loading. Reading one runs no code.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pipeline.errors import AgiqaError
from pipeline.files import write_atomically
from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import ImageAdapter
from pipeline.model.folded import FoldedScorer
from pipeline.model.record import Record, faults
from pipeline.model.windows import WindowRule

FORMAT = "agiqa-folded-1"
TENSORS = {"visual_prompts", "text_features", "adapter.down", "adapter.up"}
MOST_HEADER = 1 << 20  # bytes; a record takes 2,000
MOST_NUMBERS = 50_000_000  # of all tensors: the largest towers' prompts and adapter are a tenth of it


class CheckpointError(AgiqaError):
    """A checkpoint that is damaged, or does not fit what it is to be used with."""


def save_checkpoint(path: str | Path, scorer: FoldedScorer, record: dict[str, Any]) -> None:
    """Save a folded scorer.

    Args:
        path: The file to write; replaced as a whole.
        scorer: The folded model.
        record: What the scores depend on beside the constants: `windows` (a `WindowRule.record()`), `texts`, `variant`,
            `target`, `mos_low`, `mos_high`, `raters`, and whatever else describes the run. The backbone's own
            record is added.
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
    """Return a checkpoint's record; of the file its header alone is read.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.
    """
    return _read(Path(path), whole=False)[0]


def _read(path: Path, *, whole: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a checkpoint's record and, of the whole file, its tensors."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        _refuse_a_large_header(path)
        with safe_open(path, framework="pt") as archive:
            record = json.loads((archive.metadata() or {}).get("agiqa", "{}"))
            if not isinstance(record, dict) or record.get("format") != FORMAT:
                found = record.get("format") if isinstance(record, dict) else type(record).__name__
                raise CheckpointError(
                    f"{path} has format {found!r}, and {FORMAT!r} is read here: it was not written by this study"
                )
            if wrong := faults(Record, record):
                raise CheckpointError(f"{path} cannot be trusted: its record says {'; '.join(wrong[:3])}")
            keys = list(archive.keys())
            if foreign := sorted(set(keys) - TENSORS):
                raise CheckpointError(
                    f"{path} cannot be trusted: it holds a tensor {foreign[0]!r}, which is none of ours"
                )
            shapes = {key: tuple(archive.get_slice(key).get_shape()) for key in keys}
            if sum(math.prod(shape) for shape in shapes.values()) > MOST_NUMBERS:
                raise CheckpointError(f"{path} cannot be trusted: it holds more than {MOST_NUMBERS:,} numbers")
            tensors = {key: archive.get_tensor(key) for key in (keys if whole else [])}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    return record, tensors


def _refuse_a_large_header(path: Path) -> None:
    """Look at the length that a safetensors file begins with, before anyone reserves that much memory."""
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
    if length > MOST_HEADER:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: its header would take {length:,} bytes, and ours stay below "
            f"{MOST_HEADER:,}"
        )


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
    record, tensors = _read(path, whole=True)
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
    wrong += _tensor_faults(record, tensors, backbone)
    if wrong:
        raise CheckpointError(f"{path} does not fit: " + "; ".join(wrong))

    adapter = None
    if record["residual_ratio"] is not None:
        inner = len(tensors["adapter.down"])
        adapter = ImageAdapter(backbone.embed_dim, backbone.embed_dim // inner, record["residual_ratio"])
        adapter.load_state_dict({"down.weight": tensors["adapter.down"], "up.weight": tensors["adapter.up"]})
    scorer = FoldedScorer(backbone, tensors["visual_prompts"], tensors["text_features"], adapter)
    return scorer.to(backbone.logit_scale.device), rule, record


def _tensor_faults(record: dict[str, Any], tensors: dict[str, Tensor], backbone: Backbone) -> list[str]:
    """Return what is wrong with a checkpoint's tensors: absent, of another size or kind, or not finite."""
    width = backbone.embed_dim
    expected: dict[str, tuple[int, ...]] = {
        "visual_prompts": (record["prompt_depth"], record["prompt_length"], backbone.image_width),
        "text_features": (2, width),
    }
    found = []
    if record["residual_ratio"] is not None:
        inner = len(tensors["adapter.down"]) if "adapter.down" in tensors and tensors["adapter.down"].ndim else 0
        if not 0 < inner <= width or width // (width // inner) != inner:
            found.append(f"adapter.down has {inner} rows, which is no part of the {width} of the joint embedding")
        expected |= {"adapter.down": (inner, width), "adapter.up": (width, inner)}
    for key, shape in expected.items():
        if key not in tensors:
            found.append(f"it lacks {key}")
        elif tuple(tensors[key].shape) != shape:
            found.append(f"{key} has shape {tuple(tensors[key].shape)}, and {shape} fits this backbone")
        elif not tensors[key].is_floating_point():
            found.append(f"{key} holds {tensors[key].dtype}, and ours are floats")
        elif not torch.isfinite(tensors[key]).all():
            found.append(f"{key} holds values that are not finite")
    return found + [
        f"{key} is there, and there is no residual_ratio" for key in sorted(tensors.keys() - expected.keys())
    ]
