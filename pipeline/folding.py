"""A trained model without all that does not depend on the image, and how it scores images of any size.

No prompt depends on the image, so after training everything but the image tower folds into constants: L x n x D_v
visual prompts, two text features and one adapter. The auxiliary branch, MPA, Layer F and the text tower vanish, and the
score is the same up to float rounding.

Imports pipeline.backbone, pipeline.fast, pipeline.images, pipeline.model.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pipeline.backbone import Backbone
from pipeline.fast import FastTower, fast_tower
from pipeline.images import WindowRule, cut, enlarge, normalise, spread, window_batches, window_origins
from pipeline.model import DCMPLN, ImageAdapter, antonym_score

SCORING_BATCH = {"cpu": 64, "cuda": 1024}  # windows a forward pass; larger ones gain nothing on CPUs


class FoldedScorer(nn.Module):
    """Scores windows with one prompted image-tower pass.

    Attributes:
        visual_prompts: Shape (L, n, D_v).
        text_features: Unit length, the better text first, shape (2, E).
        adapter: The task's Image Adapter, or None.
    """

    def __init__(
        self, backbone: Backbone, visual_prompts: Tensor, text_features: Tensor, adapter: ImageAdapter | None
    ) -> None:
        """Hold the constants beside the backbone, which is shared and not copied."""
        super().__init__()
        self.backbone = backbone
        self.register_buffer("visual_prompts", visual_prompts)
        self.register_buffer("text_features", text_features)
        self.adapter = adapter
        self._own_tower: FastTower | None = None  # set by `quantise`
        self.requires_grad_(False)
        self.eval()

    @torch.no_grad()
    def forward(self, windows: Tensor) -> Tensor:
        """Return scores in (0, 1), shape (N,), of normalised windows (N, 3, H, W)."""
        tower = self._tower()
        return self.score_prepared(windows if tower is None else tower.tokens(tower.embed(windows)))

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
    def score_prepared(self, prepared: Tensor, *, autocast: bool = False) -> Tensor:
        """Return scores in (0, 1), shape (n,), of windows from `prepare`.

        Args:
            prepared: One or more results of `prepare`, joined along the first axis.
            autocast: Run the tower in bfloat16; the score itself stays in float32.
        """
        tower = self._tower()
        with torch.autocast(prepared.device.type, torch.bfloat16, enabled=autocast):
            if tower is None:
                features = self.backbone.encode_image(prepared, self.visual_prompts)
            else:
                features = tower(prepared, self.visual_prompts[None])
        return self._score(features.float())

    def _tower(self) -> FastTower | None:
        return fast_tower(self.backbone) if self._own_tower is None else self._own_tower

    def _score(self, features: Tensor) -> Tensor:
        if self.adapter is not None:
            features = self.adapter(features)
        return antonym_score(features, self.text_features, self.backbone.logit_scale)

    def constants(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint stores, on the CPU, in float32."""
        state = {"visual_prompts": self.visual_prompts, "text_features": self.text_features}
        if self.adapter is not None:
            state |= {"adapter.down": self.adapter.down.weight, "adapter.up": self.adapter.up.weight}
        return {key: value.detach().float().cpu().contiguous() for key, value in state.items()}


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


def quantise(scorer: FoldedScorer) -> FoldedScorer:
    """Return the scorer with an int8 image tower: faster on CPUs with int8 units, and not exact.

    Weights have a scale an output and activations one a pass. Embedding, norms, attention, adapter and score stay in
    float32. Measured drift stands in the README's performance section.

    Args:
        scorer: On a CPU; it is not changed.

    Raises:
        ValueError: If the scorer is on a GPU, torch lacks oneDNN, or the backbone's layers cannot be folded.
    """
    small = FoldedScorer(scorer.backbone, scorer.visual_prompts, scorer.text_features, scorer.adapter)
    small._own_tower = FastTower(scorer.backbone, int8=True)
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
    shown = tqdm(
        images, desc=label, total=total, unit="image", disable=label is None, mininterval=1.0, dynamic_ncols=True
    )
    if isinstance(scorer, FoldedScorer):
        return _folded_scores(scorer, shown, total, rule, windows, device, batch, autocast)
    for cut_windows, owners in window_batches(shown, rule, batch, windows):
        scores = scorer(normalise(cut_windows, rule, device)).double().cpu().numpy()
        if sums is None:
            sums = np.zeros((total, *scores.shape[1:]))
        np.add.at(sums, owners, scores)
        np.add.at(counts, owners, 1)
    if sums is None:
        raise ValueError("there is no image to score")
    return (sums.T / counts).T


def _folded_scores(
    scorer: FoldedScorer,
    images: Iterable[np.ndarray],
    total: int,
    rule: WindowRule,
    windows: int | None,
    device: torch.device | str,
    batch: int,
    autocast: bool,
) -> np.ndarray:
    """As `image_scores`, an image at a time, so that its windows share patch embeddings."""
    sums, owners, waiting, held = torch.zeros(total, dtype=torch.float64, device=device), [], [], 0
    counts = torch.zeros_like(sums)

    def flush() -> None:
        scores = scorer.score_prepared(torch.cat(waiting), autocast=autocast).double()
        whose = torch.tensor(owners, device=device)
        sums.index_add_(0, whose, scores)
        counts.index_add_(0, whose, torch.ones_like(scores))
        owners.clear()
        waiting.clear()

    for number, pixels in enumerate(images):
        large = enlarge(pixels, rule.size)
        origins = window_origins(*large.shape[:2], rule)
        origins = origins if windows is None else spread(origins, windows)
        image = normalise(large[None], rule, device)[0]
        for start in range(0, len(origins), batch):
            part = origins[start : start + batch]
            if held + len(part) > batch and waiting:
                flush()
                held = 0
            waiting.append(scorer.prepare(image, part))
            owners += [number] * len(part)
            held += len(part)
    if waiting:
        flush()
    if not counts.all() or not total:
        raise ValueError(f"{total} images were announced, and {int((counts > 0).sum())} came")
    return (sums / counts).cpu().numpy()


def quality_map(
    scorer: nn.Module, pixels: np.ndarray, rule: WindowRule, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Return the window scores laid back on the image, averaged where windows overlap.

    Args:
        scorer: Maps normalised windows (N, 3, H, W) to scores (N,).
        pixels: Shape (H, W, 3), uint8, of any size.
        rule: The window rule; pixels that no window covers (cover: reference) are NaN.
        device: Where the scorer stands.

    Returns:
        Scores in (0, 1), shape (H', W'), float64, where H', W' are the sides after enlarging to the window size.
    """
    large = enlarge(pixels, rule.size)
    origins = window_origins(*large.shape[:2], rule)
    sums, counts = np.zeros(large.shape[:2]), np.zeros(large.shape[:2])
    batch = SCORING_BATCH[torch.device(device).type]
    for start in range(0, len(origins), batch):
        part = origins[start : start + batch]
        scores = scorer(normalise(cut(large, part, rule.size), rule, device)).double().cpu().numpy()
        for (top, left), score in zip(part, scores, strict=True):
            sums[top : top + rule.size, left : left + rule.size] += score
            counts[top : top + rule.size, left : left + rule.size] += 1
    with np.errstate(invalid="ignore"):
        return sums / counts
