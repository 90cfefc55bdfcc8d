"""Checkpoints that others published: fetched, and turned into one that scores.

The code of CLIP-AGIQA (Fu et al., IEEE SPL 2024), from which DCMPLN's authors started, saves two state dicts:
`*_aux_best.pth`, the auxiliary prompt learner, and `*_tar_best.pth`, the target's, which fuses the auxiliary visual
prompts into its own. Both are needed for a score. The one file that DCMPLN's authors released is the first kind.

That code rounds prompts to half precision on their way into towers of single precision; so does what is imported here
(see `fold_released`).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pipeline.data.archives import download
from pipeline.files import lfs_pointer_at
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import CheckpointError, save_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.folded import FoldedScorer
from pipeline.model.windows import NORMALISATION, WindowRule

RELEASE_ID, RELEASE_NAME = "1WnYMxHxnkMYgYNZiTVl0Xczl5LmehszN", "DCMPLN-release.pth"  # README of DCMPLN's authors
# What the published code does: its texts, its normalisation, and windows that leave out what the stride does not reach.
TEXTS = ("Good photo.", "Bad photo.")
STRIDE, COVER, NORM = 64, "reference", "imagenet"
_PREFIXES = ("module.", "model.")
_PARTS = {"auxiliary": "prompt_learner_aux.", "target": "prompt_learner_tar."}
_TOKENS = ("token_prefix", "token_suffix")


def fetch_release(folder: Path) -> Path:
    """Download what DCMPLN's authors released into `folder`, unless it is there; a broken download goes on.

    Raises:
        ArchiveError: If it cannot be downloaded; says where to get it by hand.
    """
    return download(
        "DCMPLN release", RELEASE_NAME, RELEASE_ID, folder, by_hand=f"Put the file into {folder} as {RELEASE_NAME}."
    )


def read_released(files: Sequence[Path]) -> dict[str, dict[str, Tensor]]:
    """Return the parts (`auxiliary`, `target`) that files hold, each a state dict with the names of its own class.

    A file may hold one part, or both under the names that the whole model gives them.

    Args:
        files: State dicts; read with weights_only, so that they cannot run code.

    Raises:
        CheckpointError: If a file is no state dict, holds nothing that is known, or two hold the same part.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for path in files:
        for part, state in _parts(path).items():
            if part in found:
                raise CheckpointError(f"{path} holds the {part} prompts, and so does a file before it: give each once")
            found[part] = state
    return found


def _parts(path: Path) -> dict[str, dict[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's own advice takes lines, and would run the file's code
        wrong = lfs_pointer_at(path) or f"is cut off, damaged or no plain torch state dict ({type(error).__name__})"
        raise CheckpointError(f"{path} {wrong}") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(f"{path} is not a plain torch state dict of tensors")
    for prefix in _PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    parts = {
        part: {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        for part, prefix in _PARTS.items()
    }
    parts = {part: tensors for part, tensors in parts.items() if tensors}
    if parts:
        return parts
    if "ctx" not in state:
        shown = ", ".join(list(state)[:3]) or "nothing"
        raise CheckpointError(f"{path} holds no prompts of CLIP-AGIQA's layout (such as `ctx`); it holds {shown} ...")
    return {"target" if any(key.startswith(("proj.", "compound_")) for key in state) else "auxiliary": state}


def load_released(files: Sequence[Path], model: DCMPLN) -> list[str]:
    """Load published prompts into a model, all of them or none.

    Args:
        files: As `read_released`.
        model: The variant clip_agiqa: auxiliary prompts and Layer F, neither MPA nor adapter.

    Returns:
        The names in the files that were not needed, since the model makes them itself.

    Raises:
        CheckpointError: If a tensor is missing, unknown or of another shape: names every one.
        ValueError: If the model is another variant.
    """
    if model.mpa is not None or model.layer_f is None or model.main_adapter is not None:
        raise ValueError("published prompts make the variant clip_agiqa alone: Layer F, neither MPA nor adapter")
    parts = read_released(files)
    depth, length = model.depth, model.length
    text, image = model.main_prompts.text.shape[-1], model.main_prompts.visual.shape[-1]
    prompts = {"ctx": (length, text)}
    prompts |= {f"prompts_text.{layer}": (length, text) for layer in range(depth - 1)}
    prompts |= {f"prompts_vis.{layer}": (length, image) for layer in range(depth)}
    maps = ["proj", *(f"compound_prompt_projections.{layer}" for layer in range(depth - 1))]
    shapes = {"weight": (image, 2 * image), "bias": (image,)}
    fusing = {f"{name}.{kind}": shape for name in maps for kind, shape in shapes.items()}
    faults: list[str] = []
    for part, expected in {"auxiliary": prompts, "target": prompts | fusing}.items():
        state = parts.get(part, {})
        missing = [key for key in expected if key not in state]
        if missing:
            faults.append(f"the {part} part lacks {len(missing)} tensors: {', '.join(missing)}")
        unknown = [key for key in state if key not in expected and key not in _TOKENS]
        if unknown:
            faults.append(f"the {part} part holds unknown tensors: {', '.join(unknown)}")
        for key in [key for key in expected if key in state and tuple(state[key].shape) != expected[key]]:
            faults.append(f"{key} of the {part} part has shape {tuple(state[key].shape)}, not {expected[key]}")
    if faults:
        names = ", ".join(map(str, files))
        raise CheckpointError(f"{names} cannot make a scorer: " + "; ".join(faults))

    text_keys = ["ctx", *(f"prompts_text.{layer}" for layer in range(depth - 1))]
    visual_keys = [f"prompts_vis.{layer}" for layer in range(depth)]
    with torch.no_grad():
        for part, learner in (("auxiliary", model.auxiliary_prompts), ("target", model.main_prompts)):
            learner.text.copy_(torch.stack([parts[part][key].float() for key in text_keys]))
            learner.visual.copy_(torch.stack([parts[part][key].float() for key in visual_keys]))
        for fuse, name in zip(model.layer_f.maps, maps, strict=True):
            fuse.weight.copy_(parts["target"][f"{name}.weight"])
            fuse.bias.copy_(parts["target"][f"{name}.bias"])
    return sorted({key for state in parts.values() for key in state if key in _TOKENS})


def fold_released(model: DCMPLN) -> FoldedScorer:
    """Fold published prompts into a scorer, rounded to half precision where the published code rounds them.

    Its towers run in single precision (`PREC: "fp32"` in its config, on which it calls `.float()`), but they take no
    prompt without `.half()`, and joining the result to the tokens makes it single again. So these are rounded:

    - the visual prompts of every depth, as Layer F made them: the first in `VisionTransformer_MaPLe.forward`, ahead of
      the norm before the first layer, later ones in `ResidualAttentionBlock_MaPLe.forward`;
    - the text prompts of all depths but the first, likewise in `ResidualAttentionBlock_MaPLe.forward`.

    These are not: the text prompts of the first depth, `ctx`, which the prompt learners join to the words before any
    tower sees them, and what Layer F reads. Beside that code itself, on ViT-B/32 with random weights and prompts,
    scores are at most 1e-6 off; without the rounding they would be 1e-5 to 1e-4.

    Args:
        model: With what `load_released` loaded; it is not changed.

    Returns:
        A scorer of the main task on the model's backbone.

    Raises:
        CheckpointError: If one of those rounded is not finite, or too large for half precision (65504).

    Source: the public code of CLIP-AGIQA (JunFu1995/CLIP-AGIQA, e73cec6), clip/maple.py and models/AGIQA.py.
    """
    main = model.main_prompts
    with torch.no_grad():
        visual = _through_half(model.layer_f(main.visual, model.auxiliary_prompts.visual), "visual")  # (L, n, D_v)
        text = torch.cat([main.text[:1], _through_half(main.text[1:], "text")])  # (L, n, D_t)
        features = F.normalize(model.backbone.encode_text(model.main_tokens, text), dim=-1)  # (2, E)
    return FoldedScorer(model.backbone, visual, features, None)


def _through_half(prompts: Tensor, side: str) -> Tensor:
    rounded = prompts.half().float()
    if not rounded.isfinite().all():
        raise CheckpointError(
            f"the {side} prompts reach {prompts.abs().max():g}, and half precision, through which the published code "
            "passes them, ends at 65504"
        )
    return rounded


def import_release(
    files: Sequence[Path], out: Path, backbone: Backbone, *, dataset: str, scale: tuple[float, float]
) -> list[str]:
    """Turn prompts that CLIP-AGIQA's code saved into a checkpoint of ours that scores as that code does.

    Args:
        files: As `read_released`.
        out: The checkpoint to write.
        backbone: Of the published code: ViT-B/32 with OpenAI's weights.
        dataset: What the prompts were trained on.
        scale: Lowest and highest MOS of that data set.

    Returns:
        As `load_released`.

    Raises:
        CheckpointError: As `load_released` and `fold_released`, or if a scale is no scale.
    """
    if not scale[0] < scale[1]:
        raise CheckpointError(f"the scale is {scale[0]:g} to {scale[1]:g}: give the lowest MOS, then the highest")
    parts = read_released(files)
    prompts = next(iter(parts.values()))
    context = prompts.get("ctx")
    model = DCMPLN(
        backbone,
        mpa=False,
        adapter=False,
        prompt_depth=sum(key.startswith("prompts_vis.") for key in prompts) or 12,
        prompt_length=len(context) if context is not None and context.ndim and len(context) else 8,
        main_texts=TEXTS,
    )
    unused = load_released(files, model)
    try:
        scorer = fold_released(model)
    except CheckpointError as error:
        raise CheckpointError(f"{', '.join(map(str, files))} cannot make a scorer: {error}") from None
    mean, std = NORMALISATION[NORM]
    rule = WindowRule(backbone.image_size, STRIDE, COVER, NORM, mean, std)
    record = {
        "dataset": dataset,
        "method": "clip_agiqa",
        "round": None,
        "leaks": ["epoch selected on test"],  # as the published code does
        "target": "quality",
        "texts": list(TEXTS),
        "windows": rule.record(),
        "mos_low": float(scale[0]),
        "mos_high": float(scale[1]),
        "imported_from": [path.name for path in files],
    }
    save_checkpoint(out, scorer, record)
    return unused
