"""Products with frozen weights through oneDNN: the only place that calls private operators of torch.

Its int8 products multiply activations in 0..255 by weights in -127..127. Processors without VNNI (AVX2, and AVX-512 of
the first generation) add two such products in 16 bits, where the sum saturates in silence: 2 x 255 x 127 = 64770
becomes 32767. With weights of seven bits, -63..63, the largest sum is 2 x 255 x 63 = 32130, and all are right. Weights
give up the bit and not activations, which have one scale a pass and so would lose more: see `quantise`.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pipeline.errors import AgiqaError

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


def to_int8(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return a matrix (out, in) in whole numbers of so many bits, int8, and each output's scale, shape (out,)."""
    scales = weight.abs().amax(dim=1).clamp_min(1e-12) / (2 ** (bits - 1) - 1)
    return (weight / scales[:, None]).round().to(torch.int8), scales


Packed = tuple[Tensor, Tensor, Tensor, Tensor]


def pack(weight: Tensor, bias: Tensor, bits: int) -> Packed:
    """Return a matrix (out, in) as oneDNN wants it, with each output's scale and zero point, and the bias."""
    small, scales = to_int8(weight, bits)
    packed = torch.ops.onednn.qlinear_prepack(small, None)
    return packed, scales, torch.zeros(len(scales), dtype=torch.int32), bias.clone()


def int8_linear(x: Tensor, packed: Packed) -> Tensor:
    """Return x W' + b, shape (..., out), float32, by a matrix from `pack`; x (..., in) becomes uint8 by its range."""
    flat = x.reshape(-1, x.shape[-1])
    low, high = (float(end) for end in flat.aminmax())
    scale = max(max(high, 0.0) - min(low, 0.0), 1e-12) / 255
    zero = round(-min(low, 0.0) / scale)
    small = flat.mul(1 / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8)
    return _int8_product(small, scale, zero, packed).view(*x.shape[:-1], -1)


def _int8_product(small: Tensor, scale: float, zero: int, packed: Packed) -> Tensor:
    matrix, scales, zeros, bias = packed
    return torch.ops.onednn.qlinear_pointwise(
        small, scale, zero, matrix, scales, zeros, bias, 1.0, 0, torch.float32, "none", [], ""
    )


@cache  # once a process
def int8_bits() -> int:
    """Return of how many bits weights may be here: 8, or 7 where larger products saturate; found by trying.

    Raises:
        AgiqaError: If this torch has no oneDNN, or its int8 products are wrong whatever the weights.
    """
    if not ONEDNN:
        raise AgiqaError("int8 needs a torch with oneDNN, which this one is built without: score in float32")
    x = torch.full((64, 512), 255, dtype=torch.uint8)
    for bits in (8, 7):
        largest = 2.0 ** (bits - 1) - 1
        weights = pack(torch.full((64, 512), largest), torch.zeros(64), bits)
        if bool((_int8_product(x, 1.0, 0, weights) == 512 * 255 * largest).all()):
            return bits
    raise AgiqaError("int8 products of this torch are wrong on this processor: score in float32")
