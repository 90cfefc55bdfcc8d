"""A package that calls itself pyiqa and has a few metrics of two lines, for machines without the real one."""

import sys
from pathlib import Path

import pytest

CODE = """
import urllib.error
import torch

CALLS = []
# lower is better, and what an image scores
METRICS = {
    "grain": (True, lambda image: (image[..., 1:] - image[..., :-1]).abs().mean() * 100),
    "light": (False, lambda image: image.mean()),
    "dice": (False, lambda image: torch.rand(1, 1)),
    "twice": (False, lambda image: torch.zeros(2)),
    "lost": (False, lambda image: image.mean() * float("nan")),
    "far": (False, None),
    "broken": (False, None),
    "fid": (True, None),
}


def list_models(metric_mode=None):
    assert metric_mode == "NR"
    return sorted(METRICS)


class Net(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name, (self.lower_better, self.judge) = name, METRICS[name]

    def forward(self, image):
        assert image.ndim == 4 and image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1
        CALLS.append(self.name)
        return self.judge(image)


def create_metric(name, device=None):
    if name == "far":
        raise urllib.error.URLError("[Errno -2] Name or service not known")
    if name == "broken":
        raise KeyError("state_dict\\nof another version")
    return Net(name).to(device)
"""


def install(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write the package into a folder, and let this process import it from there, whatever else is installed."""
    (folder / "pyiqa").mkdir(parents=True)
    (folder / "pyiqa" / "__init__.py").write_text(CODE)
    about = folder / "pyiqa-9.9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: pyiqa\nVersion: 9.9\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyiqa"]:
        patch.delitem(sys.modules, name)
    patch.syspath_prepend(str(folder))
    patch.delitem(sys.modules, "pyiqa", raising=False)
