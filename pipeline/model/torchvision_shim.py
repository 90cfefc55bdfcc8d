"""Make `import torchvision` work beside a CPU build of torch.

open_clip and timm import torchvision. The published torchvision wheel is built for CUDA; beside a torch without CUDA
its compiled extension cannot load, and its Python code then dies on `operator torchvision::nms does not exist` when it
registers shape rules for two compiled operators. Nothing here calls a compiled torchvision operator, so it is enough
that those two names are known to torch. Where torch has CUDA, or the extension loads, nothing is done.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_defined = False


def ensure_torchvision_imports() -> None:
    """Define the operators that torchvision expects, once, where its extension cannot be loaded.

    Call before the first import of torchvision, open_clip or timm.
    """
    global _defined
    if _defined or torch.version.cuda is not None or _extension_loads():
        return
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", _SCHEMA)
    _defined = True


def _extension_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False
