"""What baselines read of every image: frozen image features, zero-shot scores and hand-crafted statistics.

A pass over the images that no baseline of the study reads is left out.
"""

import io
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pipeline.costs import Stopwatch, an_image
from pipeline.data.pixels import PixelPack, open_prepared
from pipeline.layout import PREPARED
from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import score_features
from pipeline.model.folded import image_scores
from pipeline.model.windows import WindowRule
from pipeline.params import Params
from pipeline.study import build
from pipeline.training import baselines, statistics


def compute(params: Params, dataset: str) -> tuple[bytes, dict[str, Any]]:
    """Return the file of features, and what each pass over the images cost.

    Args:
        params: Of the study; its baselines say which passes are needed.
        dataset: Whose prepared images are read.

    Returns:
        An npz: image_id (N,), and records of backbone and windows; of the tower image_features and
        image_features_deviation, each (N, E), clip_iqa (N,) and clip_iqa_text_features (2, E); of the statistics
        handcrafted (N, K) and handcrafted_names (K,). And the costs by pass, `tower` and `statistics`.
    """
    manifest, pack = open_prepared(PREPARED / dataset)
    passes = baselines.passes(params.study.baselines)
    columns: dict[str, np.ndarray] = {}
    times: dict[str, Any] = {}
    if "statistics" in passes:  # first, so that its peak of memory is without towers
        watch = Stopwatch()
        columns["handcrafted"] = statistics.extract((pack[row] for row in range(len(pack))), len(pack))
        columns["handcrafted_names"] = np.array(statistics.NAMES)
        times["statistics"] = an_image(watch.read(), len(pack))
    backbone = build.make_backbone(params)
    rule = build.make_window_rule(params, backbone)
    if "tower" in passes:
        made, times["tower"] = _tower(params, backbone, rule, pack, dataset)
        columns |= made
    buffer = io.BytesIO()
    np.savez(
        buffer,
        image_id=manifest["image_id"].to_numpy(dtype=str),
        backbone=np.array(json.dumps(backbone.record(), sort_keys=True)),
        windows=np.array(json.dumps(rule.record(), sort_keys=True)),
        **columns,
    )
    return buffer.getvalue(), times


@torch.no_grad()
def _tower(
    params: Params, backbone: Backbone, rule: WindowRule, pack: PixelPack, dataset: str
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what the frozen tower makes of every image, and what the pass cost."""
    device = build.prepare_torch(params.train.device, params.train.threads)
    backbone.to(device)
    texts = F.normalize(backbone.encode_text(backbone.tokenize(params.baselines.clip_iqa_texts)), dim=-1)

    def moments_and_score(windows: Tensor) -> Tensor:  # (N, 3, H, W) -> (N, 2 E + 1)
        features = backbone.encode_image(windows)
        score = score_features(features, texts, backbone.logit_scale)
        return torch.cat([features.double(), features.double().square(), score.double()[:, None]], dim=1)

    watch = Stopwatch()
    found = image_scores(
        moments_and_score, (pack[row] for row in range(len(pack))), len(pack), rule, device=device,
        label=f"{dataset}: image features",
    )  # fmt: skip
    cost = an_image(watch.read(on_cpu=device.type == "cpu"), len(pack))
    means, squares = np.split(found[:, :-1], 2, axis=1)
    return {
        "image_features": means.astype(np.float32),
        "image_features_deviation": np.sqrt(np.maximum(squares - means**2, 0)).astype(np.float32),
        "clip_iqa": found[:, -1],
        "clip_iqa_text_features": texts.float().cpu().numpy(),
    }, cost
