"""Make `import torchvision` work beside a CPU build of torch, and cost no more than it must.

open_clip and timm import torchvision. The published torchvision wheel is built for CUDA; beside a torch without CUDA
its compiled extension cannot load, and its Python code then dies on `operator torchvision::nms does not exist` when it
registers shape rules for two compiled operators. Nothing here calls a compiled torchvision operator, so it is enough
that those two names are known to torch. Where torch has CUDA, or the extension loads, nothing is defined.

`torchvision.ops` imports torch's whole compiler, two seconds, for one question that it asks when boxes are pooled on a
GPU. Here the compiler is imported when that question is asked.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_COMPILER = "torch._dynamo.utils"
_defined = False


def ensure_torchvision_imports() -> None:
    """Import torchvision, with the operators that it expects where its extension cannot be loaded.

    Call before the first import of torchvision, open_clip or timm.
    """
    _define_operators()
    if "torchvision" in sys.modules or _COMPILER in sys.modules:
        return
    stand_in = ModuleType(_COMPILER)
    stand_in.is_compile_supported = _is_compile_supported
    sys.modules[_COMPILER] = stand_in
    try:
        importlib.import_module("torchvision")
    finally:
        del sys.modules[_COMPILER]


def _is_compile_supported(device: str) -> bool:
    return importlib.import_module(_COMPILER).is_compile_supported(device)


def _define_operators() -> None:
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
