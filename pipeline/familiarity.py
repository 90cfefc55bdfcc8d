"""Whether an image is like those that a model was trained on, by what the model sees of it.

A score is worth what its band says for images like the training images; of others nobody knows. So a checkpoint holds
how the features of training images lie, and from which distance on an image counts as unfamiliar.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

DIRECTIONS = 32  # of the features' spread at most
PARTS = ("mean", "scale", "basis", "variances")  # that a checkpoint stores
SHARE = 0.98  # of validation images that are to count as familiar


@dataclass(frozen=True)
class Familiarity:
    """How the features of training images lie: a Gaussian with few directions of its own spread, and one of the rest.

    Attributes:
        mean, scale: Of each feature, shape (F,).
        basis: Orthonormal directions of most spread of the standardised features, shape (k, F).
        variances: Along these directions and, last, along each other one, shape (k + 1,).
        limit: The distance from which on an image is unfamiliar.
    """

    mean: np.ndarray
    scale: np.ndarray
    basis: np.ndarray
    variances: np.ndarray
    limit: float

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Return each image's distance from the training images, shape (n,), 1 on average for those themselves.

        Args:
            features: Shape (n, F).
        """
        standard = (np.asarray(features, dtype=np.float64) - self.mean) / self.scale
        along = standard @ self.basis.T
        rest = np.maximum((standard**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        squares = (along**2 / self.variances[:-1]).sum(axis=1) + rest / self.variances[-1]
        return np.sqrt(squares / standard.shape[1])

    def is_unfamiliar(self, features: np.ndarray) -> np.ndarray:
        """Return whether each image lies beyond the limit, shape (n,), bool."""
        return self.distance(features) > self.limit

    def tensors(self) -> dict[str, np.ndarray]:
        """Return what a checkpoint stores, but for the limit, which stands in its record."""
        return {name: getattr(self, name).astype(np.float32) for name in PARTS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], limit: float) -> "Familiarity":
        """Return what `tensors` gave."""
        return cls(**{name: np.asarray(values, dtype=np.float64) for name, values in tensors.items()}, limit=limit)


def familiarise(train: np.ndarray, validation: np.ndarray) -> Familiarity:
    """Fit the Gaussian on training images, and the limit on validation images.

    Args:
        train: Features, shape (N, F).
        validation: Likewise, shape (M, F); about one in fifty of images like these will count as unfamiliar.

    Source: Mahalanobis distance to probabilistic PCA (Tipping and Bishop, J. Royal Statistical Society B 61, 1999), as
        Lee et al., "A simple unified framework for detecting out-of-distribution samples", NeurIPS 2018, use it; the
        limit is conformal: the ceil(.98 (M + 1))-th smallest distance of validation, or the largest.
    """
    train = np.asarray(train, dtype=np.float64)
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale = np.where(scale > 1e-6 * max(scale.max(), 1e-12), scale, 1.0)  # one that is constant tells nothing
    # What a checkpoint stores is rounded, so the limit must be that of the rounded numbers.
    mean, scale = (values.astype(np.float32).astype(np.float64) for values in (mean, scale))
    standard = (train - mean) / scale
    count, width = standard.shape
    kept = max(1, min(DIRECTIONS, count // 10, width - 1)) if width > 1 else 0
    _, spreads, directions = np.linalg.svd(standard, full_matrices=False)
    variances = spreads**2 / max(count - 1, 1)
    rest = variances[kept:].sum() / max(width - kept, 1)
    found = Familiarity(
        mean,
        scale,
        directions[:kept].astype(np.float32).astype(np.float64),
        np.maximum([*variances[:kept], rest], 1e-3).astype(np.float32).astype(np.float64),
        np.inf,
    )
    distances = np.sort(found.distance(validation))
    place = min(int(np.ceil(SHARE * (len(distances) + 1))), len(distances)) - 1
    return Familiarity(found.mean, found.scale, found.basis, found.variances, float(distances[place]))
