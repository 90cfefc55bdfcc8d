"""torchvision beside a torch without CUDA: what is defined, when, and what then imports."""

import subprocess
import sys

import pytest
import torch

from pipeline.model import torchvision_shim
from pipeline.model.torchvision_shim import ensure_torchvision_imports


def test_open_clip_imports_in_a_fresh_process() -> None:
    code = "from pipeline.model.torchvision_shim import ensure_torchvision_imports as e; e(); e()"
    code += "; import open_clip, torchvision"
    subprocess.run([sys.executable, "-W", "error::ImportWarning", "-c", code], check=True, timeout=120)


@pytest.mark.parametrize(
    ("cuda", "loads", "names"), [("12.8", False, []), (None, True, []), (None, False, ["nms", "qnms"])]
)
def test_operators_are_defined_once_and_only_where_the_extension_cannot_load(
    cuda: str | None, loads: bool, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    defined = []
    monkeypatch.setattr(torchvision_shim, "_defined", False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torchvision_shim, "_extension_loads", lambda: loads)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: defined.append(name))
    ensure_torchvision_imports()
    ensure_torchvision_imports()
    assert defined == [f"torchvision::{name}" for name in names]
