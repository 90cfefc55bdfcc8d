"""A trained model without all that does not depend on the image, and how it scores images of any size.

No prompt depends on the image, so after training everything but the image tower folds into constants: L x n x D_v
visual prompts, two text features and one adapter. The auxiliary branch, MPA, Layer F and the text tower vanish, and the
score is the same up to float rounding.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.errors import AgiqaError
from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN, ImageAdapter, score_features
from pipeline.model.linear import int8_bits
from pipeline.model.tower import FastTower
from pipeline.model.windows import WindowRule, normalise, resize, spread, window_batches, window_origins

SCORING_BATCH = {"cpu": 64, "cuda": 1024}  # windows a forward pass; larger ones gain nothing on CPUs
PART_PIXELS = 1 << 22  # of an image that are normalised at once, unless a single row of windows takes more


class Scored(NamedTuple):
    """What scoring finds in one image.

    Attributes:
        raw: The image's score, higher is better; in (0, 1) but for a linear probe's.
        windows: Scores of its windows, in the order of `window_origins`, shape (n,), float64.
        features: Mean over the windows of the image tower's features, shape (E,), float64.
    """

    raw: float
    windows: np.ndarray
    features: np.ndarray


class FoldedScorer(nn.Module):
    """Scores windows with one prompted image-tower pass.

    The zero-shot baseline is the same without prompts and adapter. A linear probe has no prompts and no texts: it reads
    the features themselves.

    Attributes:
        visual_prompts: Shape (L, n, D_v); L is 0 without prompts.
        text_features: Unit length, the better text first, shape (2, E); None with a probe.
        adapter: The task's Image Adapter, or None.
        probe_weights: Of a linear probe, on the mean of the features over an image's windows, shape (E,), or on mean
            and deviation, shape (2 E,); None without one.
        probe_bias: Likewise, shape ().
    """

    def __init__(
        self,
        backbone: Backbone,
        visual_prompts: Tensor,
        text_features: Tensor | None,
        adapter: ImageAdapter | None,
        probe: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Hold the constants beside the backbone, which is shared and not copied; `probe` is weights and bias."""
        super().__init__()
        self.backbone = backbone
        weights, bias = (None, None) if probe is None else probe
        self.register_buffer("visual_prompts", visual_prompts)
        self.register_buffer("text_features", text_features)
        self.register_buffer("probe_weights", weights)
        self.register_buffer("probe_bias", bias)
        self.adapter = adapter
        self._own_tower: FastTower | None = None  # set by `quantise`
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, windows: Tensor) -> Tensor:
        """Return scores, shape (N,), of normalised windows (N, 3, H, W)."""
        tower = self._tower()
        return self.score_prepared(windows if tower is None else tower.tokens(tower.embed(windows)))[0]

    @torch.no_grad()
    def prepare(self, image: Tensor, origins: Sequence[tuple[int, int]]) -> Tensor:
        """Return what `score_prepared` takes, for windows of one normalised image (3, H, W), cut at n (top, left).

        Windows of one image share patch embeddings; the results of several images may be joined along the first axis.
        """
        tower, size = self._tower(), self.backbone.image_size
        if tower is None:
            return torch.stack([image[:, top : top + size, left : left + size] for top, left in origins])
        return tower.window_tokens(image, origins)

    @torch.no_grad()
    def score_prepared(self, prepared: Tensor, *, autocast: bool = False) -> tuple[Tensor, Tensor]:
        """Return scores, shape (n,), and the tower's features, shape (n, E), of windows from `prepare`.

        Args:
            prepared: One or more results of `prepare`, joined along the first axis.
            autocast: Run the tower in bfloat16; the score itself stays in float32.
        """
        tower = self._tower()
        with torch.autocast(prepared.device.type, torch.bfloat16, enabled=autocast):
            if tower is None:
                prompts = self.visual_prompts if len(self.visual_prompts) else None
                features = self.backbone.encode_image(prepared, prompts)
            else:
                features = tower(prepared, self.visual_prompts[None])
        features = features.float()
        if self.probe_weights is not None:
            return features @ self.probe_weights[: features.shape[1]] + self.probe_bias, features
        return score_features(features, self.text_features, self.backbone.logit_scale, self.adapter), features

    @property
    def deviation_weights(self) -> np.ndarray | None:
        """What a probe makes of the features' deviation over an image's windows, shape (E,), float64, or None."""
        width = self.backbone.embed_dim
        if self.probe_weights is None or len(self.probe_weights) == width:
            return None
        return self.probe_weights[width:].double().cpu().numpy()

    def _tower(self) -> FastTower | None:
        return self.backbone.fast_tower() if self._own_tower is None else self._own_tower

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint stores, on the CPU, in float32."""
        state = {
            "visual_prompts": self.visual_prompts,
            "text_features": self.text_features,
            "probe.weights": self.probe_weights,
            "probe.bias": self.probe_bias,
        }
        if self.adapter is not None:
            state |= {"adapter.down": self.adapter.down.weight, "adapter.up": self.adapter.up.weight}
        return {key: value.detach().float().cpu().contiguous() for key, value in state.items() if value is not None}


def fold(model: DCMPLN, task: Literal["main", "auxiliary"] = "main") -> FoldedScorer:
    """Fold one task of a trained model into constants.

    Args:
        model: The model; it is not changed, and later training does not change the result.
        task: `main` scores quality, `auxiliary` alignment.

    Returns:
        A scorer on the same backbone whose scores equal the model's within 1e-5 in float32.

    Raises:
        ValueError: If the model has no auxiliary task to fold.
    """
    with torch.no_grad():
        main, auxiliary = model.constants()
    constants, adapter = (main, model.main_adapter) if task == "main" else (auxiliary, model.auxiliary_adapter)
    if constants is None:
        raise ValueError("this variant has no auxiliary task to fold: fold the main one")
    own = copy.deepcopy(adapter)  # so that training on does not change the folded scores
    return FoldedScorer(model.backbone, constants.visual_prompts.clone(), constants.text_features.clone(), own)


def quantise(scorer: FoldedScorer, weight_bits: int | None = None) -> FoldedScorer:
    """Return the scorer with an int8 image tower: faster on CPUs with int8 units, and not exact.

    Weights have a scale an output and activations one a pass. Embedding, norms, attention, adapter and score stay in
    float32. The largest drift measured, with weights of eight bits and of seven: .0019 and .0026 of 200 windows of
    noise (ViT-B/32, random weights), .0018 and .0016 of 60 images (trained on the demo).

    Args:
        scorer: On a CPU; it is not changed.
        weight_bits: 8, or 7 where larger products saturate; None takes what is right on this processor.

    Raises:
        AgiqaError: If the scorer is on a GPU, torch's int8 products are missing or wrong here, or the backbone's layers
            cannot be folded.
    """
    weights = scorer.backbone.image_tower()
    if weights is None:
        raise AgiqaError(f"the image tower of {scorer.backbone.name} has layers that cannot be folded: no int8 for it")
    probe = None if scorer.probe_weights is None else (scorer.probe_weights, scorer.probe_bias)
    small = FoldedScorer(scorer.backbone, scorer.visual_prompts, scorer.text_features, scorer.adapter, probe)
    small._own_tower = FastTower(weights, weight_bits=weight_bits or int8_bits())
    return small


def image_scores(
    scorer: Callable[[Tensor], Tensor],
    images: Iterable[np.ndarray],
    total: int,
    rule: WindowRule,
    *,
    windows: int | None = None,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    autocast: bool = False,
    label: str | None = None,
) -> np.ndarray:
    """Return the mean over each image's windows of what `scorer` gives for a window.

    Args:
        scorer: Maps normalised windows (N, 3, H, W) to scores (N,), or to features (N, E).
        images: `total` images, each (H, W, 3), uint8, of any size.
        total: Number of images.
        rule: The window rule that the scorer was trained with.
        windows: Windows an image, evenly spread; None means all.
        device: Where the scorer stands.
        batch: Windows a forward pass; None takes what suits the device.
        autocast: Run a folded scorer's tower in bfloat16.
        label: Shows a progress bar of this name.

    Returns:
        Scores, shape (total,), or features, shape (total, E), float64.
    """
    batch = batch or SCORING_BATCH[torch.device(device).type]
    sums, counts = None, np.zeros(total)
    shown = tqdm(images, desc=label, total=total, unit="image", disable=label is None, dynamic_ncols=True)
    if isinstance(scorer, FoldedScorer):
        found = window_scores(scorer, shown, rule, windows=windows, device=device, batch=batch, autocast=autocast)
        if len(found) != total or not total:
            raise ValueError(f"{total} images were announced, and {len(found)} came")
        return np.array([one.raw for one in found])
    for cut_windows, owners in window_batches(shown, rule, batch, windows):
        scores = scorer(normalise(cut_windows, rule, device)).double().cpu().numpy()
        if sums is None:
            sums = np.zeros((total, *scores.shape[1:]))
        np.add.at(sums, owners, scores)
        np.add.at(counts, owners, 1)
    if sums is None:
        raise ValueError("there is no image to score")
    return (sums.T / counts).T


def window_scores(
    scorer: FoldedScorer,
    images: Iterable[np.ndarray],
    rule: WindowRule,
    *,
    windows: int | None = None,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    autocast: bool = False,
) -> list[Scored]:
    """Return what each image scores, window by window.

    An image is taken in parts, so that its windows share patch embeddings and a huge one is never normalised whole;
    windows of several images share a forward pass.

    Args:
        scorer: A folded scorer.
        images: Each (H, W, 3), uint8, of any size.
        rule: The window rule that the scorer was trained with.
        windows: Windows an image, evenly spread; None means all.
        device: Where the scorer stands.
        batch: Windows a forward pass; None takes what suits the device.
        autocast: Run the tower in bfloat16.

    Source: an image's score is the mean of its windows' (CLIP-AGIQA); a probe on mean and deviation adds what it makes
        of the latter.
    """
    batch = batch or SCORING_BATCH[torch.device(device).type]
    scores: list[Tensor] = []
    sums: list[Tensor] = []  # of features and of their squares, each (2, E): one a part of an image
    parts: list[tuple[int, Tensor]] = []  # whose image, and its windows
    owners: list[int] = []
    counts: list[int] = []

    def flush() -> None:
        if not parts:
            return
        found, features = scorer.score_prepared(torch.cat([part for _, part in parts]), autocast=autocast)
        scores.append(found.double())
        for own in features.double().split([len(part) for _, part in parts]):
            sums.append(torch.stack([own.sum(dim=0), own.square().sum(dim=0)]))
        owners.extend(image for image, _ in parts)
        parts.clear()

    for pixels in images:
        fitting = resize(pixels, rule)
        origins = window_origins(*fitting.shape[:2], rule)
        origins = origins if windows is None else spread(origins, windows)
        counts.append(len(origins))
        for part in _parts(origins, batch, rule.size):
            if sum(len(waiting) for _, waiting in parts) + len(part) > batch:
                flush()
            top, left, bottom, right = _box(part, rule.size)
            image = normalise(fitting[None, top:bottom, left:right], rule, device)[0]
            places = [(row - top, column - left) for row, column in part]
            parts.append((len(counts) - 1, scorer.prepare(image, places)))
    flush()
    if not counts:
        return []
    by_image = np.split(torch.cat(scores).cpu().numpy(), np.cumsum(counts)[:-1])
    moments = np.zeros((len(counts), *sums[0].shape))
    np.add.at(moments, owners, torch.stack(sums).cpu().numpy())
    means, squares = moments.transpose(1, 0, 2) / np.array(counts)[:, None]
    raws = np.array([own.mean() for own in by_image])
    if (weights := scorer.deviation_weights) is not None:
        raws += np.sqrt(np.maximum(squares - means**2, 0)) @ weights
    return [Scored(float(raw), own, mean) for raw, own, mean in zip(raws, by_image, means, strict=True)]


def _box(origins: Sequence[tuple[int, int]], size: int) -> tuple[int, int, int, int]:
    """Return the top, left, bottom and right of the pixels that windows cover together."""
    tops, lefts = zip(*origins, strict=True)
    return min(tops), min(lefts), max(tops) + size, max(lefts) + size


def _parts(origins: list[tuple[int, int]], batch: int, size: int) -> Iterator[list[tuple[int, int]]]:
    """Cut an image's windows, in their order, into parts of at most `batch` windows that lie in few pixels."""
    part: list[tuple[int, int]] = []
    start = end = 0
    for top, left in origins:
        if part:
            start, end = min(start, left), max(end, left + size)
            too_large = top > part[0][0] and (top + size - part[0][0]) * (end - start) > PART_PIXELS
            if len(part) == batch or too_large:
                yield part
                part = []
        if not part:
            start, end = left, left + size
        part.append((top, left))
    yield part


def quality_map(
    scorer: nn.Module,
    pixels: np.ndarray,
    rule: WindowRule,
    device: torch.device | str = "cpu",
    *,
    batch: int | None = None,
) -> np.ndarray:
    """Return the window scores laid back on the image, averaged where windows overlap.

    Args:
        scorer: Maps normalised windows (N, 3, H, W) to scores (N,).
        pixels: Shape (H, W, 3), uint8, of any size.
        rule: The window rule; pixels that no window covers (cover: reference) are NaN.
        device: Where the scorer stands.
        batch: Windows a forward pass; None takes what suits the device.

    Returns:
        Scores in (0, 1), shape (H', W'), float32, where H', W' are the sides after `pipeline.model.windows.resize`.
    """
    fitting = resize(pixels, rule)
    if isinstance(scorer, FoldedScorer):
        scores = window_scores(scorer, [fitting], rule, device=device, batch=batch)[0].windows
    else:
        batch = batch or SCORING_BATCH[torch.device(device).type]
        parts = window_batches([fitting], rule, batch)
        scores = np.concatenate([scorer(normalise(part, rule, device)).double().cpu().numpy() for part, _ in parts])
    return lay_out(scores, *fitting.shape[:2], rule)


def lay_out(scores: np.ndarray, height: int, width: int, rule: WindowRule, step: int = 1) -> np.ndarray:
    """Return one image's window scores laid back on it; see `quality_map`.

    Args:
        scores: Shape (n,), in the order of `window_origins`.
        height: Of the image in pixels, after resizing.
        width: Likewise.
        rule: The window rule.
        step: Take every so many-th row and column only, which spares memory; shape (ceil(H' / step), ceil(W' / step)).
    """
    origins = window_origins(height, width, rule)
    tops, lefts = sorted({top for top, _ in origins}), sorted({left for _, left in origins})
    # Windows stand on a grid, so how many cover a pixel is a product of two counts, and sums grow by whole rows.
    sums = np.zeros((-(-height // step), -(-width // step)), np.float32)
    down, across = (np.zeros(side, np.float32) for side in sums.shape)

    def covered(start: int) -> slice:
        return slice(-(-start // step), -(-(start + rule.size) // step))

    for left in lefts:
        across[covered(left)] += 1
    for top, row in zip(tops, np.reshape(scores, (len(tops), len(lefts))), strict=True):
        line = np.zeros(len(across))
        for left, score in zip(lefts, row, strict=True):
            line[covered(left)] += score
        sums[covered(top)] += line
        down[covered(top)] += 1
    with np.errstate(invalid="ignore"):
        sums /= down[:, None]
        sums /= across
    return sums
