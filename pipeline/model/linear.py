"""Products with frozen weights through oneDNN: the only place that calls private operators of torch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

ONEDNN = torch.backends.mkldnn.is_available()


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W' + b for a weight without gradient; see `torch.nn.functional.linear`.

    On CPUs the product is oneDNN's, which on the AMD machine of our benchmarks is a tenth faster than the MKL that
    torch takes by itself, and adds the bias as it goes. Elsewhere, under autocast and in a traced graph it is torch's.
    """
    elsewhere = x.device.type != "cpu" or x.dtype != torch.float32 or not ONEDNN
    if elsewhere or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and x.requires_grad:
        return _FrozenLinear.apply(x, weight, bias)
    return _product(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, "none", [], "")


class _FrozenLinear(torch.autograd.Function):
    """torch has no gradient for oneDNN's product, and a frozen weight needs none of its own: dx = dy W is all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _product(gradient, ctx.weight.t(), None), None, None


def pack(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a matrix (out, in) as oneDNN wants it, with each output's scale and zero point, and the bias."""
    scales = weight.abs().amax(dim=1).clamp_min(1e-12) / 127
    small = (weight / scales[:, None]).round().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(small, None)
    return packed, scales, torch.zeros(len(scales), dtype=torch.int32), bias.clone()
