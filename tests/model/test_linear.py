"""Products through oneDNN against torch's own and against whole numbers worked by hand."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import AgiqaError
from pipeline.model import linear
from pipeline.model.linear import frozen_linear, int8_bits, int8_linear, pack, to_int8

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("shape", [(6, 12), (4, 7, 12), (0, 12)])
@pytest.mark.parametrize("biased", [True, False])
def test_a_frozen_linear_map_and_its_gradient_are_torchs(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(20, 12)[4:], torch.randn(16) if biased else None
    ends = []
    for product in (frozen_linear, torch.nn.functional.linear):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
        found = product(x[::2], weight, bias)  # not contiguous
        found.square().sum().backward()
        ends.append((found, x.grad))
    torch.testing.assert_close(*ends, atol=1e-5, rtol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert frozen_linear(torch.randn(shape), weight, bias).dtype == torch.bfloat16


def saturating_product(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Multiply as AVX2's vpmaddubsw does: neighbouring pairs of products are summed in 16 bits, and those in 32."""
    products = x[:, None, :].astype(np.int64) * weights  # (rows, out, in)
    pairs = products.reshape(*products.shape[:2], -1, 2).sum(axis=-1)
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(axis=-1)


def test_a_saturating_product_by_hand() -> None:
    x, weights = np.full((1, 512), 200), np.full((1, 512), 120)
    assert saturating_product(x, weights).item() == 256 * 32_767 == 8_388_352  # not 512 * 200 * 120 = 12,288,000
    assert saturating_product(np.array([[100, 100]]), np.array([[120, 43]])).item() == 16_300  # small sums are right


def test_seven_bits_never_saturate_and_eight_may() -> None:
    generator = np.random.default_rng(0)
    rows = np.concatenate([generator.integers(0, 256, (20, 64)), np.full((1, 64), 255), np.tile([255, 0], (1, 32))])
    weight = torch.from_numpy(generator.normal(size=(30, 64)).astype(np.float32))
    weight[0], weight[1], weight[2, ::2] = 1.0, -1.0, -1.0  # every weight at the end of the scale
    exact = {}
    for bits, largest in ((8, 127), (7, 63)):
        small, scales = (part.numpy() for part in to_int8(weight, bits))
        assert (small.min(), small.max()) == (-largest, largest)
        np.testing.assert_allclose(small * scales[:, None], weight.numpy(), atol=0.5001 * scales.max())
        exact[bits] = (saturating_product(rows, small) == rows @ small.T.astype(np.int64)).all()
    assert exact == {8: False, 7: True}


@pytest.mark.parametrize("bits", [8, 7])
def test_an_int8_map_is_the_product_of_the_rounded_numbers(bits: int) -> None:
    if bits > int8_bits():
        pytest.skip("products of eight bits saturate on this processor")
    generator = np.random.default_rng(0)
    weight, bias, x = (generator.normal(size=size).astype(np.float32) for size in ((20, 48), 20, (3, 5, 48)))
    found = int8_linear(torch.from_numpy(x), pack(torch.from_numpy(weight), torch.from_numpy(bias), bits)).numpy()
    step, steps = (x.max() - x.min()) / 255, np.abs(weight).max(axis=1, keepdims=True) / (127 if bits == 8 else 63)
    zero = np.round(-x.min() / step)
    rounded = (np.clip(np.round(x / step) + zero, 0, 255) - zero) * step
    np.testing.assert_allclose(found, rounded @ (np.round(weight / steps) * steps).T + bias, atol=1e-4)


@pytest.mark.parametrize(("limit", "expected"), [(2**15, 7), (2**20, 8)])
def test_the_number_of_bits_is_found_by_trying(limit: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def product(small: torch.Tensor, scale: float, zero: int, packed: tuple[torch.Tensor, ...]) -> torch.Tensor:
        pair = 2 * int(small[0, 0]) * int(packed[0][0, 0])
        return torch.full((64, 64), 256.0 * min(pair, limit - 1))

    monkeypatch.setattr(linear, "_int8_product", product)
    monkeypatch.setattr(linear, "pack", lambda weight, bias, bits: to_int8(weight, bits))
    assert int8_bits.__wrapped__() == expected


def test_without_right_products_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_int8_product", lambda *_: torch.zeros(64, 64))
    with pytest.raises(AgiqaError, match="int8 products of this torch are wrong on this processor: score in float32"):
        int8_bits.__wrapped__()
    monkeypatch.setattr(linear, "ONEDNN", False)
    with pytest.raises(AgiqaError, match="int8 needs a torch with oneDNN"):
        int8_bits.__wrapped__()


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="needs a processor with AVX2")
def test_kernels_of_avx2_alone_saturate_and_get_seven_bits() -> None:
    """oneDNN reads the limit when it is first used, and so in a process of its own."""
    code = (
        "import torch; from pipeline.model.linear import int8_bits, int8_linear, pack\n"
        "weight, x = torch.full((8, 512), 120 / 127), torch.full((4, 512), 200.0); weight[:, -1] = 1; x[:, 0] = 255\n"
        "exact = float((x @ weight.T)[0, 0])\n"
        "print(int8_bits(), *(float(int8_linear(x, pack(weight, torch.zeros(8), b))[0, 0]) / exact for b in (8, 7)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True,
        text=True, check=True, timeout=120,
    )  # fmt: skip
    bits, of_eight, of_seven = done.stdout.split()
    assert bits == "7"
    assert float(of_eight) == pytest.approx(8_388_352 / 12_288_000, abs=0.01)
    assert float(of_seven) == pytest.approx(1, abs=0.01)
