"""No-reference metrics of the package pyiqa, each a baseline as its authors left it: nothing of it is trained here.

pyiqa fetches a metric's weights when it is first made, from where its authors keep them, and reads some of them by
unpickling. So one is made for a study whose params name it, and never because a checkpoint says so.

Source: IQA-PyTorch (Chen and Mo, 2022), https://github.com/chaofengc/IQA-PyTorch.
"""

import difflib
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from pipeline.errors import AgiqaError
from pipeline.layout import PYIQA

# Of these pyiqa says that they take no reference image, and they take more than an image: a set of them, or a text.
TAKE_MORE = ("clipscore", "fid", "inception_score")


class MetricError(AgiqaError):
    """A metric of pyiqa's that cannot be had, or does not judge an image by itself."""


@dataclass(frozen=True)
class Metric:
    """A metric that is ready to score.

    Attributes:
        name: Of the metric in pyiqa.
        lower_better: Whether it counts faults; its scores are turned around here.
        seed: Of what it draws at random, anew for each image.
        device: Where it runs.
    """

    name: str
    lower_better: bool
    seed: int
    device: str
    _net: Any

    def score(self, pixels: np.ndarray) -> float:
        """Return the score of one image, higher is better.

        Args:
            pixels: Shape (H, W, 3), uint8.

        Raises:
            MetricError: If the metric gives something else than one number.
        """
        import torch

        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
        with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(self.seed)
            found = self._net(image.to(self.device))
        values = found.double().cpu().reshape(-1) if isinstance(found, torch.Tensor) else torch.zeros(0)
        if len(values) != 1:
            raise MetricError(f"{PYIQA}{self.name} gives {len(values)} numbers an image, and a score is one")
        return -float(values[0]) if self.lower_better else float(values[0])


def installed() -> str:
    """Return pyiqa's name with its version, without importing it.

    Raises:
        MetricError: If it is not installed.
    """
    try:
        return f"pyiqa {version('pyiqa')}"
    except PackageNotFoundError:
        raise MetricError(
            f"a baseline {PYIQA}NAME needs the package pyiqa, which is not here: pip install pyiqa, the extra `pyiqa`"
        ) from None


def load_metric(name: str, *, device: str = "auto", threads: int | None = None, seed: int = 0) -> Metric:
    """Make a metric; its weights are downloaded by pyiqa on first use.

    Args:
        name: That pyiqa gives it.
        device: Where it runs; `auto` takes a GPU where there is one.
        threads: Of the CPU; None leaves torch's choice.
        seed: Of what it draws at random.

    Raises:
        MetricError: If pyiqa is not installed, knows no such no-reference metric, or cannot make it, as without a
            network for its weights.
    """
    package = installed()
    import torch  # imported here: what is kept of a metric needs none of it

    from pipeline.model.torchvision_shim import ensure_torchvision_imports

    ensure_torchvision_imports()
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import pyiqa
        except ImportError as error:
            raise MetricError(f"{package} cannot be imported ({error}): install the extra `pyiqa`") from error
        known = [metric for metric in pyiqa.list_models(metric_mode="NR") if not metric.startswith(TAKE_MORE)]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {PYIQA}{near[0]}?" if near else "pyiqa.list_models('NR') lists those it has"
            raise MetricError(f"{PYIQA}{name} is no metric of {package} that judges an image by itself; {hint}")
        try:
            net = pyiqa.create_metric(name, device=device)
        except OSError as error:
            raise MetricError(
                f"{PYIQA}{name} needs weights that {package} downloads on first use, and could not "
                f"({_first_line(error)}): run once with a network, or choose a metric without weights, such as "
                f"{PYIQA}piqe"
            ) from error
        except Exception as error:  # whatever its hundred makers raise; each needs other packages and files
            raise MetricError(f"{package} cannot make its metric {name}: {_first_line(error)}") from error
    return Metric(name, bool(net.lower_better), seed, device, net)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
