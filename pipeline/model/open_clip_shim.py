"""open_clip without timm, which it imports whole at its start for the few models whose image tower is timm's.

timm's import costs two seconds, most of them for torch's compiler, and a plain ViT needs neither.
"""

import functools
import importlib
import sys
from types import ModuleType
from typing import Any

from pipeline.model.torchvision_shim import ensure_torchvision_imports


def import_open_clip() -> ModuleType:
    """Return open_clip, which brings timm in once the first tower of timm's is built, whoever builds it."""
    ensure_torchvision_imports()
    if "open_clip" in sys.modules or "timm" in sys.modules:
        return importlib.import_module("open_clip")
    sys.modules["timm"] = None  # so that its import fails in the way in which open_clip expects it to
    try:
        open_clip = importlib.import_module("open_clip")
    finally:
        del sys.modules["timm"]
    _bring_timm_late(open_clip.timm_model)
    return open_clip


def _bring_timm_late(timm_model: ModuleType) -> None:
    tower = timm_model.TimmModel
    plain = tower.__init__

    @functools.wraps(plain)
    def with_timm(self: Any, *args: Any, **kwargs: Any) -> None:
        if tower.__init__ is with_timm:
            importlib.reload(timm_model)  # in the same namespace, so that the class's methods find timm there
            timm_model.TimmModel = tower
            tower.__init__ = plain
        plain(self, *args, **kwargs)

    tower.__init__ = with_timm
