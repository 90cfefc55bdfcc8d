"""The prompted image tower, rearranged to do only the work that reaches the score; tests hold it to the plain tower.

What is exact, and why:

- A prompt acts as a key and a value only: its outputs are thrown away before the next layer, which has prompts of its
  own. So prompts enter the attention as n further keys and values, and cost no query, no output map and no MLP. At the
  last prompted layer of a tower that goes on without prompts (L below the tower's layers) their outputs live on, and
  they become tokens there.
- The score reads the class token alone, so the last layer computes that token alone, and neither keys nor values.
- A layer norm's weight and bias, the layer scale and QuickGELU's 1.702 fold into the neighbouring matrices:
  x sigmoid(1.702 x) = silu(1.702 x) / 1.702.
- Windows whose offsets differ by multiples of the patch side share patch embeddings: they are computed once an image.
  Behind a convolutional stem they do not, since its edges differ; there each window is embedded alone, with every batch
  norm folded into its convolution, and once for both tasks.

Matrix products on CPUs are oneDNN's, which are faster there; see `frozen_linear`.

Both tasks of the model see the same images, so they run as one batch whose halves have prompts of their own; they part
behind the first layer's queries, keys and values.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from pipeline.errors import AgiqaError
from pipeline.model.linear import frozen_linear, int8_linear, pack

QUICK = 1.702


class LayerWeights(NamedTuple):
    """One transformer layer of the image tower: x += s_1 MHA(LN_1 x), then x += s_2 MLP(LN_2 x).

    Attributes:
        norm_1, norm_2: Weight and bias (D,) and epsilon of the layer norms.
        attention_in: Weight (3 D, D) and bias (3 D,) of query, key and value, stacked.
        attention_out: Weight (D, D) and bias (D,).
        expand, contract: Weight and bias of the MLP's two maps.
        quick: Whether the MLP's activation is QuickGELU, else GELU.
        scale_1, scale_2: Layer scale (D,), or None.
        heads: Attention heads.
    """

    norm_1: tuple[Tensor, Tensor, float]
    attention_in: tuple[Tensor, Tensor]
    attention_out: tuple[Tensor, Tensor]
    norm_2: tuple[Tensor, Tensor, float]
    expand: tuple[Tensor, Tensor]
    contract: tuple[Tensor, Tensor]
    quick: bool
    scale_1: Tensor | None
    scale_2: Tensor | None
    heads: int


class StemConv(NamedTuple):
    """One convolution of a convolutional stem, its batch norm folded in.

    Attributes:
        weight: Shape (out, in, k, k).
        bias: Shape (out,).
        stride: Down and across.
        padding: Likewise, in zeros.
        activation: What follows it.
    """

    weight: Tensor
    bias: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    activation: Literal["relu", "gelu"] | None


class ImageTowerWeights(NamedTuple):
    """The image tower as plain tensors.

    Attributes:
        patches: Weight (D, 3, P, P) of the patch embedding, which has no bias; None behind a stem.
        stem: The convolutions in its place, whose last one has D channels, or None.
        class_token: Shape (D,).
        positions: Shape (1 + patches, D).
        norm_pre: Weight, bias and epsilon before the first layer, or None.
        layers: In order.
        norm_post: Weight, bias and epsilon after the last layer.
        projection: Shape (D, E).
        projection_bias: Shape (E,), or None.
        image_size: Side of the square input in pixels.
    """

    patches: Tensor | None
    stem: tuple[StemConv, ...] | None
    class_token: Tensor
    positions: Tensor
    norm_pre: tuple[Tensor, Tensor, float] | None
    layers: tuple[LayerWeights, ...]
    norm_post: tuple[Tensor, Tensor, float]
    projection: Tensor
    projection_bias: Tensor | None
    image_size: int


class _Layer(nn.Module):
    """One layer with its norms, scales and activation folded into four matrices."""

    def __init__(self, weights: LayerWeights) -> None:
        super().__init__()
        width = len(weights.norm_1[0])
        self.heads, self.quick = weights.heads, weights.quick
        self.epsilons = (weights.norm_1[2], weights.norm_2[2])
        matrices = {
            "attention_in": _after_norm(weights.norm_1, weights.attention_in),
            "attention_out": _scaled(weights.attention_out, weights.scale_1),
            "expand": _after_norm(weights.norm_2, weights.expand),
            "contract": _scaled(weights.contract, weights.scale_2),
        }
        if self.quick:
            matrices["expand"] = tuple(part * QUICK for part in matrices["expand"])
            weight, bias = matrices["contract"]
            matrices["contract"] = (weight / QUICK, bias)
        for name, (weight, bias) in matrices.items():
            self.register_buffer(f"{name}_weight", weight.detach().clone().contiguous(), persistent=False)
            self.register_buffer(f"{name}_bias", bias.detach().clone(), persistent=False)
        self.width = width

    def _map(self, name: str, x: Tensor, rows: slice = slice(None)) -> Tensor:
        """Apply one of the matrices, or some of its outputs."""
        return frozen_linear(x, getattr(self, f"{name}_weight")[rows], getattr(self, f"{name}_bias")[rows])

    def forward(self, x: Tensor, prompts: Tensor | None, *, shared: bool = False) -> Tensor:
        """Return the layer's output, shape (G B, N, D).

        Args:
            x: Tokens, shape (G B, N, D); (B, N, D) if they are `shared`.
            prompts: Further keys and values before their norm, shape (G, n, D), or None.
            shared: All G groups of prompts see the same tokens.
        """
        joined = self._map("attention_in", self._norm_1(x))
        if shared:
            joined, x = joined.repeat(len(prompts), 1, 1), x.repeat(len(prompts), 1, 1)
        rows, tokens, width = x.shape
        query, key, value = joined.view(rows, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (GB, heads, N, 64)
        if prompts is not None:
            groups, count = prompts.shape[:2]
            pairs = F.linear(  # once a pass, and so in float in every tower
                self._norm_1(prompts), self.attention_in_weight[width:], self.attention_in_bias[width:]
            )
            more = pairs.view(groups, count, 2, self.heads, -1).permute(2, 0, 3, 1, 4)  # (2, G, heads, n, 64)
            more = more[:, :, None].expand(-1, -1, rows // groups, -1, -1, -1).flatten(1, 2)
            key, value = torch.cat([key, more[0]], dim=2), torch.cat([value, more[1]], dim=2)
        mixed = F.scaled_dot_product_attention(query, key, value)  # (GB, heads, N, 64)
        return self._rest(x, mixed.transpose(1, 2).reshape(rows, tokens, width))

    def class_token(self, x: Tensor, prompts: Tensor | None) -> Tensor:
        """Return the layer's output at the class token alone, shape (G B, 1, D), of tokens (G B, N, D).

        One query asks, so the key and value matrices need not meet every token: with y the normed tokens and prompts,
        q . (K y_i) = (q K) . y_i, and the sum of a_i (V y_i) is V (sum of a_i y_i). The keys' bias adds the same to
        every logit and so nothing to the softmax; the values' bias comes through whole, as the a_i sum to 1.
        """
        rows, _, width = x.shape
        seen = self._norm_1(x)
        query = self._map("attention_in", seen[:, 0], slice(0, width)).view(rows, self.heads, -1).transpose(0, 1)
        if prompts is not None:
            more = self._norm_1(prompts)[:, None].expand(-1, rows // len(prompts), -1, -1).flatten(0, 1)
            seen = torch.cat([seen, more.to(seen.dtype)], dim=1)  # (GB, N + n, D)
        _, key, value = self.attention_in_weight.view(3, self.heads, -1, width)  # (heads, 64, D)
        asked = (query @ key).transpose(0, 1) / query.shape[-1] ** 0.5  # (GB, heads, D)
        weights = (asked @ seen.transpose(1, 2)).softmax(dim=-1)
        mixed = (weights @ seen).transpose(0, 1) @ value.transpose(1, 2)  # (heads, GB, 64)
        mixed = mixed.transpose(0, 1).reshape(rows, 1, width) + self.attention_in_bias[2 * width :]
        return self._rest(x[:, :1], mixed)

    def _norm_1(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,), eps=self.epsilons[0])

    def _rest(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Return what follows the attention: its output map, and the MLP."""
        x = x + self._map("attention_out", mixed)
        wide = self._map("expand", F.layer_norm(x, (self.width,), eps=self.epsilons[1]))
        if torch.is_grad_enabled() and wide.requires_grad:
            wide = F.silu(wide) if self.quick else F.gelu(wide)
        else:
            wide = F.silu(wide, inplace=True) if self.quick else F.gelu(wide)
        return x + self._map("contract", wide)


class _Int8Layer(_Layer):
    """A layer whose matrices are int8 with a scale an output, and whose inputs become uint8 as they come.

    The scale of the inputs is one a call, from their smallest and largest value, so a score depends a little on what
    else is scored in the same pass.
    """

    def __init__(self, weights: LayerWeights, bits: int) -> None:
        super().__init__(weights)
        width, everything = self.width, slice(None)
        self._packed = {
            (name, *_ends(rows)): pack(getattr(self, f"{name}_weight")[rows], getattr(self, f"{name}_bias")[rows], bits)
            for name, rows in [
                ("attention_in", everything), ("attention_in", slice(0, width)),
                ("attention_out", everything), ("expand", everything), ("contract", everything),
            ]
        }  # fmt: skip

    def _map(self, name: str, x: Tensor, rows: slice = slice(None)) -> Tensor:
        return int8_linear(x, self._packed[(name, *_ends(rows))])


def _ends(rows: slice) -> tuple[int | None, int | None]:
    return rows.start, rows.stop  # a slice cannot be a key before Python 3.12


def _after_norm(norm: tuple[Tensor, Tensor, float], linear: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Fold a norm's weight and bias into the map that follows: W (g x + c) + b = (W g) x + (W c + b)."""
    (gain, shift, _), (weight, bias) = norm, linear
    return weight * gain, bias + weight @ shift


def _scaled(linear: tuple[Tensor, Tensor], scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return linear if scale is None else (linear[0] * scale[:, None], linear[1] * scale)


class FastTower(nn.Module):
    """The image tower of a backbone, folded; holds no gradient and adds nothing to a state dict.

    Source: equal to `Backbone.encode_image` up to float rounding.
    """

    def __init__(self, weights: ImageTowerWeights, *, weight_bits: int | None = None) -> None:
        """Fold the tower's weights.

        Args:
            weights: From `Backbone.image_tower`; they are copied.
            weight_bits: Hold and apply the layers' matrices in int8, of so many bits (see `pipeline.model.linear`): for
                scoring on a CPU, and not exact. None keeps float32.

        Raises:
            AgiqaError: If int8 is asked for on a GPU.
        """
        super().__init__()
        device = weights.projection.device
        if weight_bits is not None and device.type != "cpu":
            raise AgiqaError(f"int8 is for CPUs, and the backbone is on {device}: use bfloat16 there")
        with torch.no_grad():
            self.layers = nn.ModuleList(
                _Layer(layer) if weight_bits is None else _Int8Layer(layer, weight_bits) for layer in weights.layers
            )
            bias = weights.norm_post[1] @ weights.projection
            self._stem = [(part.stride, part.padding, part.activation) for part in weights.stem or ()]
            embedding = {
                f"stem_{number}_{name}": getattr(part, name)
                for number, part in enumerate(weights.stem or ())
                for name in ("weight", "bias")
            }
            if weights.patches is not None:
                embedding = {"patches": weights.patches.flatten(1)}  # (D, 3 P P)
            for name, tensor in {
                **embedding,
                "class_token": weights.class_token + weights.positions[0],
                "positions": weights.positions[1:],
                "projection": weights.norm_post[0][:, None] * weights.projection,
                "projection_bias": bias if weights.projection_bias is None else bias + weights.projection_bias,
            }.items():
                self.register_buffer(name, tensor.detach().clone().contiguous(), persistent=False)
            self.norm_pre = None if weights.norm_pre is None else weights.norm_pre[2]
            if weights.norm_pre is not None:
                self.register_buffer("pre_weight", weights.norm_pre[0].detach().clone(), persistent=False)
                self.register_buffer("pre_bias", weights.norm_pre[1].detach().clone(), persistent=False)
        self.image_size = weights.image_size
        self.patch_size = weights.image_size // math.isqrt(len(weights.positions) - 1)
        self.post_epsilon = weights.norm_post[2]
        self.requires_grad_(False)

    def embed(self, images: Tensor) -> Tensor:
        """Return patch embeddings, without positions, shape (B, h, w, D), of normalised images (B, 3, H, W).

        What is left over at the right and bottom beyond whole patches is cut off, as the convolution does.
        """
        if self._stem:
            return self._through_stem(images)
        size = self.patch_size
        count, _, height, width = images.shape
        rows, columns = height // size, width // size
        blocks = images[..., : rows * size, : columns * size].reshape(count, 3, rows, size, columns, size)
        return frozen_linear(blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, rows, columns, -1), self.patches)

    def _through_stem(self, x: Tensor) -> Tensor:
        for number, (stride, padding, activation) in enumerate(self._stem):
            weight, bias = getattr(self, f"stem_{number}_weight"), getattr(self, f"stem_{number}_bias")
            x = F.conv2d(x, weight, bias, stride, padding)
            if activation is not None:
                x = F.relu(x) if activation == "relu" else F.gelu(x)
        return x.permute(0, 2, 3, 1)

    def tokens(self, patches: Tensor) -> Tensor:
        """Return the first layer's input, shape (B, 1 + patches, D), from patch embeddings (B, h, w, D) of windows."""
        body = patches.flatten(1, 2) + self.positions
        first = self.class_token.to(body.dtype).expand(body.shape[0], 1, -1)  # len() would fix the batch on export
        return self._pre(torch.cat([first, body], dim=1))

    def window_tokens(self, image: Tensor, origins: Sequence[tuple[int, int]]) -> Tensor:
        """Return the first layer's input for windows of one image, embedding each patch once where windows share it.

        Args:
            image: Normalised pixels, shape (3, H, W).
            origins: (top, left) of each window, shape (n, 2).

        Returns:
            Tokens, shape (n, 1 + patches, D), in the order of `origins`.
        """
        if self._stem:
            windows = [image[:, top : top + self.image_size, left : left + self.image_size] for top, left in origins]
            return self.tokens(self.embed(torch.stack(windows)))
        size, side = self.patch_size, self.image_size // self.patch_size
        by_offset: dict[tuple[int, int], list[int]] = {}
        for number, (top, left) in enumerate(origins):
            by_offset.setdefault((top % size, left % size), []).append(number)
        steps = torch.arange(side)
        parts, order = [], []
        for numbers in by_offset.values():
            tops, lefts = zip(*(origins[number] for number in numbers), strict=True)
            bottom, end = max(tops) + self.image_size, max(lefts) + self.image_size
            top, left = min(tops), min(lefts)  # both lie on this offset's grid
            grid = self.embed(image[None, :, top:bottom, left:end])[0]  # (h, w, D)
            rows = (torch.tensor(tops) - top)[:, None] // size + steps  # (m, side)
            columns = (torch.tensor(lefts) - left)[:, None] // size + steps
            places = rows[:, :, None] * grid.shape[1] + columns[:, None, :]  # (m, side, side)
            parts.append(grid.flatten(0, 1)[places.to(image.device, non_blocking=True)])
            order += numbers
        found = torch.cat(parts)
        if order != sorted(order):
            found = found[torch.tensor(order).argsort().to(image.device)]
        return self.tokens(found)

    def forward(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        """Return image features, not normalised, shape (G B, E): every group of prompts sees the same B images.

        Args:
            tokens: From `tokens` or `window_tokens`, shape (B, 1 + patches, D).
            prompts: Each group's prompts, shape (G, L, n, D).
        """
        x, groups, depth = tokens, len(prompts), prompts.shape[1]
        last, apart = len(self.layers) - 1, groups == 1  # whether the groups have parted: x is (G B, N, D) from there
        for number, layer in enumerate(self.layers):
            own = None
            if number < depth:
                own = prompts[:, number]
                own = self._pre(own) if number == 0 else own
                lives_on = number == depth - 1 and number < last  # their outputs do: from here on they are tokens
                if not apart and (lives_on or number == last):
                    x, apart = x.repeat(groups, 1, 1), True
                if lives_on:
                    own = own.to(x.dtype)[:, None].expand(-1, x.shape[0] // groups, -1, -1).flatten(0, 1)
                    x, own = torch.cat([x, own], dim=1), None
            x = layer.class_token(x, own) if number == last else layer(x, own, shared=not apart)
            apart = True
        pooled = F.layer_norm(x[:, 0], (x.shape[-1],), eps=self.post_epsilon)
        return pooled @ self.projection + self.projection_bias

    def _pre(self, x: Tensor) -> Tensor:
        if self.norm_pre is None:
            return x
        return F.layer_norm(x, (x.shape[-1],), self.pre_weight, self.pre_bias, self.norm_pre)
