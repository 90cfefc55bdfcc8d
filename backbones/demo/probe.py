"""Measure the demo backbone without training it; writes the numbers that README.md beside this file quotes.

Run from the repository root: `python backbones/demo/probe.py --archive AGIQA-3K.zip`. On the demo set it reports a
ridge probe on image features and the zero-shot antonym score against MOS. On pictures of a real data set it reports
only how well the features linearly decode hand-crafted statistics: no label of a real data set is read.
Uses our `pipeline.backbone` and `pipeline.demo`, and `pretrain.py` beside it for the statistics.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import GroupKFold, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pretrain  # noqa: E402

from pipeline.data import demo  # noqa: E402
from pipeline.model.backbone import Backbone  # noqa: E402
from pipeline.model.loading import load_backbone  # noqa: E402

CROP = 64


def cut(image: np.ndarray, windows: int, rng: np.random.Generator) -> np.ndarray:
    """Return random windows of an RGB picture, uint8, shape (windows, 3, 64, 64)."""
    tops = rng.integers(0, image.shape[0] - CROP + 1, windows)
    lefts = rng.integers(0, image.shape[1] - CROP + 1, windows)
    found = [image[top : top + CROP, left : left + CROP] for top, left in zip(tops, lefts, strict=True)]
    return np.stack(found).transpose(0, 3, 1, 2)


@torch.no_grad()
def describe(backbone: Backbone, crops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean feature (E,) and the mean zero-shot score over the windows of one picture."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (pretrain.MEAN, pretrain.STD))
    features = backbone.encode_image((torch.from_numpy(crops).float() / 255 - mean) / std)
    texts = normalize(backbone.encode_text(backbone.tokenize(["good photo.", "bad photo."])), dim=-1)
    logits = backbone.logit_scale.exp() * normalize(features, dim=-1) @ texts.T
    return features.mean(0).numpy(), logits.softmax(-1)[:, 0].mean().numpy()


def ridge() -> object:
    """Return the probe: standardised features, ridge with its strength chosen inside the training folds."""
    return make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 11)))


def probe_demo(backbone: Backbone, prompts: int) -> dict[str, float]:
    """Return SRCC with demo MOS: ridge on features (folds disjoint in prompts), zero-shot; seed 1, not the study's."""
    rng = np.random.default_rng(0)
    drawings = list(demo.draw_all(1, prompts, tuple(demo.GENERATORS), 160))
    mos, _ = demo.rate(np.array([drawing.quality for *_, drawing in drawings]), np.random.default_rng(1))
    aligned, _ = demo.rate(np.array([drawing.alignment for *_, drawing in drawings]), np.random.default_rng(2))
    features, zero_shot = zip(*(describe(backbone, cut(d[3].image, 9, rng)) for d in drawings), strict=True)
    groups = [text for _, text, _, _ in drawings]
    result = {"zero_shot_srcc": float(spearmanr(zero_shot, mos)[0])}
    for name, target in (("ridge_srcc", mos), ("ridge_alignment_srcc", aligned)):
        predicted = cross_val_predict(ridge(), np.array(features), target, groups=groups, cv=GroupKFold(5))
        result[name] = float(spearmanr(predicted, target)[0])
    return {name: round(value, 3) for name, value in result.items()}


def probe_real(backbone: Backbone, archive: Path, images: int) -> dict[str, float]:
    """Return the cross-validated R2 of ridges from features to hand-crafted statistics of unlabelled real pictures."""
    rng = np.random.default_rng(0)
    features, statistics = [], []
    with zipfile.ZipFile(archive) as stored:
        names = sorted(name for name in stored.namelist() if name.lower().endswith((".jpg", ".png")))
        for name in rng.permutation(names)[:images]:
            image = np.asarray(Image.open(io.BytesIO(stored.read(name))).convert("RGB"))
            crops = cut(image, 12, rng)
            features.append(describe(backbone, crops)[0])
            statistics.append(pretrain.crop_statistics(torch.from_numpy(crops).float() / 255).mean(0).numpy())
    wanted = np.array(statistics)
    predicted = cross_val_predict(ridge(), np.array(features), wanted, cv=KFold(5, shuffle=True, random_state=0))
    r2 = 1 - ((predicted - wanted) ** 2).mean(0) / wanted.var(0)
    return {"mean_r2": round(float(r2.mean()), 3), "median_r2": round(float(np.median(r2)), 3)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the probes of random and of pre-trained weights as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=HERE / "weights.safetensors")
    parser.add_argument("--archive", type=Path, default=None, help="zip of real pictures; its labels stay unread")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only-pretrained", action="store_true")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    result = {}
    for kind in ("pretrained",) if arguments.only_pretrained else ("random", "pretrained"):
        file, origin = (arguments.weights, "in-house") if kind == "pretrained" else (None, None)
        backbone = load_backbone("demo-vit", config=HERE / "demo-vit.json", file=file, origin=origin)
        result[kind] = {"demo": probe_demo(backbone, arguments.prompts)}
        if arguments.archive is not None:
            result[kind]["real_statistics"] = probe_real(backbone, arguments.archive, arguments.images)
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
