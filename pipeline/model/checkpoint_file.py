"""A checkpoint as a file: one safetensors of named arrays, with what they mean in its metadata. No torch is needed.

Reading one runs no code, and nothing of a file is passed on before its record, the names, kinds and sizes of its arrays
and every value have been looked at: a checkpoint may come from anyone.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pipeline.calibration import Calibration
from pipeline.errors import AgiqaError
from pipeline.familiarity import PARTS, Familiarity
from pipeline.files import lfs_pointer, write_atomically
from pipeline.model.record import Record, faults

FORMAT = "agiqa-folded-1"
NETWORK = ("visual_prompts", "text_features", "adapter.down", "adapter.up", "probe.weights", "probe.bias")
TREES = {  # of a gradient boosting: the name of each array of its nodes, and the kinds of its values
    "base": "f", "sizes": "i", "value": "f", "feature_idx": "i", "num_threshold": "f", "left": "iu", "right": "iu",
    "is_leaf": "iub",
}  # fmt: skip
TENSORS = {*NETWORK, *(f"trees.{name}" for name in TREES), *(f"familiar.{name}" for name in PARTS)}
MOST_HEADER = 1 << 20  # bytes; a record takes 3,000
MOST_NUMBERS = 50_000_000  # of all tensors: the largest towers' prompts and adapter are a tenth of it


class CheckpointError(AgiqaError):
    """A checkpoint that is damaged, or does not fit what it is to be used with."""


def write_checkpoint(
    path: str | Path,
    arrays: Mapping[str, np.ndarray],
    record: Mapping[str, Any],
    calibration: Calibration | None = None,
    familiarity: Familiarity | None = None,
) -> None:
    """Write a checkpoint; equal contents give equal bytes.

    Args:
        path: The file to write; replaced as a whole.
        arrays: By names of `NETWORK`, or `trees.` and one of `TREES`.
        record: What `pipeline.model.record.Record` describes, but for `format`, and whatever else describes the run.
        calibration: From raw score to MOS; None where there is none yet.
        familiarity: How the training images lie; likewise.
    """
    arrays, record = dict(arrays), {"format": FORMAT, **record}
    if calibration is not None:
        record["calibration"] = calibration.record()
    if familiarity is not None:
        record["unfamiliar_beyond"] = familiarity.limit
        arrays |= {f"familiar.{name}": values for name, values in familiarity.tensors().items()}
    # One metadata entry: safetensors orders several at random, and equal models must give equal bytes.
    data = save({name: np.asarray(values, order="C") for name, values in arrays.items()},
                metadata={"agiqa": json.dumps(record, sort_keys=True)})  # fmt: skip
    write_atomically(Path(path), data)


def read_record(path: str | Path) -> dict[str, Any]:
    """Return a checkpoint's record; of the file its header alone is read.

    Raises:
        CheckpointError: If the file is missing, damaged, or not one of ours.
    """
    return _read(Path(path), whole=False)[0]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a checkpoint's record and its arrays by name.

    Raises:
        CheckpointError: As `read_record`; also if a value is not finite.
    """
    record, arrays = _read(Path(path), whole=True)
    for name, values in arrays.items():
        if values.dtype.kind == "f" and not name.endswith("num_threshold") and not np.isfinite(values).all():
            raise CheckpointError(f"{path} does not fit: {name} holds values that are not finite")
    return record, arrays


def calibration_of(record: Mapping[str, Any]) -> Calibration | None:
    """Return the calibration of a record that was read; None where the checkpoint has none."""
    found = record.get("calibration")
    return None if found is None else Calibration.from_record(found)


def familiarity_of(
    path: str | Path, record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], width: int
) -> Familiarity | None:
    """Return how a checkpoint's training images lie; None where it does not say.

    Args:
        path: Of the checkpoint, for errors.
        record: Of it.
        arrays: Likewise.
        width: Features that the model sees of an image.

    Raises:
        CheckpointError: If an array is missing, or of a wrong size or kind.
    """
    if record.get("unfamiliar_beyond") is None:
        return None
    found = {name: arrays.get(f"familiar.{name}") for name in PARTS}
    wrong = [f"it lacks familiar.{name}" for name, values in found.items() if values is None]
    if not wrong:
        kept = len(found["basis"]) if found["basis"].ndim == 2 else 0
        shapes = {"mean": (width,), "scale": (width,), "basis": (kept, width), "variances": (kept + 1,)}
        wrong = [
            f"familiar.{name} has shape {values.shape}, and {shapes[name]} fits"
            for name, values in found.items()
            if values.shape != shapes[name] or values.dtype.kind != "f"
        ]
        wrong += [
            f"familiar.{name} holds values that are not positive"
            for name in ("scale", "variances")
            if not wrong and not (found[name] > 0).all()
        ]
    if wrong:
        raise CheckpointError(f"{path} does not fit: " + "; ".join(wrong))
    return Familiarity.from_tensors(found, float(record["unfamiliar_beyond"]))


def trees_of(path: str | Path, arrays: Mapping[str, np.ndarray], width: int) -> dict[str, np.ndarray]:
    """Return the arrays of a checkpoint's trees by the names of `TREES`, after a look at where each branch leads.

    Args:
        path: Of the checkpoint, for errors.
        arrays: Of it.
        width: Features that a tree may ask for.

    Raises:
        CheckpointError: If an array is missing or of a wrong kind or length, or a branch leads back or out of its tree,
            in which scoring would never end.
    """
    trees = {name: arrays.get(f"trees.{name}") for name in TREES}
    wrong = [f"it lacks trees.{name}" for name, values in trees.items() if values is None]
    wrong += [
        f"trees.{name} holds {values.dtype}"
        for name, values in trees.items()
        if values is not None and values.dtype.kind not in TREES[name]
    ]
    if not wrong:
        count, sizes = trees["value"].size, trees["sizes"]
        shapes = {"base": (), "sizes": (sizes.size,)}
        wrong = [
            f"trees.{name} has shape {values.shape}, and {shapes.get(name, (count,))} fits"
            for name, values in trees.items()
            if values.shape != shapes.get(name, (count,))
        ]
    if not wrong and ((sizes < 1).any() or sizes.sum() != count):
        wrong = [f"trees.sizes adds up to {sizes.sum()} and there are {count} nodes"]
    if not wrong:
        inner = trees["is_leaf"] == 0
        own = np.arange(count) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of a node within its tree
        for side in ("left", "right"):
            to = trees[side].astype(np.int64)
            if (inner & ((to <= own) | (to >= np.repeat(sizes, sizes)))).any():
                wrong.append(f"trees.{side} leads back or out of its tree")
        asked = trees["feature_idx"][inner]
        if ((asked < 0) | (asked >= width)).any():
            wrong.append(f"trees.feature_idx asks for more than the {width} features")
        if np.isnan(trees["num_threshold"]).any():
            wrong.append("trees.num_threshold holds values that are no numbers")
    if wrong:
        raise CheckpointError(f"{path} does not fit: " + "; ".join(wrong[:3]))
    return trees


def _read(path: Path, *, whole: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return a checkpoint's record and, of the whole file, its arrays."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        _refuse_what_is_none(path)
        with safe_open(path, framework="np") as archive:
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
            arrays = {key: archive.get_tensor(key) for key in (keys if whole else [])}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from None
    return record, arrays


def _refuse_what_is_none(path: Path) -> None:
    """Look at the length that a safetensors file begins with, before anyone reserves that much memory."""
    with path.open("rb") as stream:
        start = stream.read(64)
    if pointer := lfs_pointer(start):
        raise CheckpointError(f"{path} {pointer}")
    length = int.from_bytes(start[:8], "little")
    if length > MOST_HEADER:
        raise CheckpointError(
            f"{path} is damaged or no safetensors file: its header would take {length:,} bytes, and ours stay below "
            f"{MOST_HEADER:,}"
        )
