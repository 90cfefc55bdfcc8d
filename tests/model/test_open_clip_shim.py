"""open_clip beside timm: imported without it, and brought together once a tower of timm's is built."""

import subprocess
import sys

import pytest

from pipeline.model.open_clip_shim import import_open_clip

LATE = """
import sys
from pipeline.model.open_clip_shim import import_open_clip
open_clip = import_open_clip()
assert import_open_clip() is open_clip
tower = open_clip.timm_model.TimmModel
open_clip.transformer.VisionTransformer(32, 8, 64, 1, 1, 4)
for name in ("timm", "torch._dynamo", "torch._dynamo.utils"):
    assert name not in sys.modules, name
for _ in range(2):
    assert tower("test_vit", embed_dim=8).head.proj.out_features == 8
    assert tower is open_clip.timm_model.TimmModel is open_clip.model.TimmModel
assert "timm" in sys.modules
import torch._dynamo.utils
assert torch._dynamo.utils.__file__
assert sys.modules["torchvision.ops.roi_align"].is_compile_supported("cpu") is not None
"""
EARLY = """
import sys
from pipeline.model.torchvision_shim import ensure_torchvision_imports
ensure_torchvision_imports()
import timm
from pipeline.model.open_clip_shim import import_open_clip
open_clip = import_open_clip()
assert open_clip.timm_model.timm is timm
"""


@pytest.mark.parametrize("code", [LATE, EARLY], ids=["late", "early"])
def test_timm_comes_with_the_first_of_its_towers(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_it_is_open_clip() -> None:
    assert import_open_clip() is sys.modules["open_clip"]
