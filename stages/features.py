"""Compute what the baselines read: frozen image features, zero-shot scores and hand-crafted statistics of every image.

None of them depends on a label or a split, so one pass serves all rounds. What the two passes cost an image stands in a
file of its own: each baseline is charged for the one that it needs, and the features stay equal bytes for equal inputs.
"""

import argparse
import io
import json
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pipeline.claims import claim
from pipeline.costs import Stopwatch, an_image
from pipeline.data.pixels import open_prepared
from pipeline.files import write_atomically, write_json
from pipeline.layout import PREPARED, feature_times_path, features_path
from pipeline.model.dcmpln import score_features
from pipeline.model.folded import image_scores
from pipeline.params import Params, load_params
from pipeline.study import build
from pipeline.training import statistics


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--params", default="params.yaml")
    arguments = parser.parse_args(argv)
    params, out = load_params(arguments.params), features_path(arguments.dataset)
    with claim(out):
        features, times = _features(params, arguments.dataset)
        write_json(feature_times_path(arguments.dataset), times)
        write_atomically(out, features)


@torch.no_grad()
def _features(params: Params, dataset: str) -> tuple[bytes, dict[str, object]]:
    """Return the file of features, and what each pass over the images cost."""
    manifest, pack = open_prepared(PREPARED / dataset)
    watch = Stopwatch()
    handcrafted = statistics.extract((pack[row] for row in range(len(pack))), len(pack))
    times = {"statistics": an_image(watch.read(), len(pack))}  # first, so that its peak of memory is without towers
    backbone = build.make_backbone(params)
    rule = build.make_window_rule(params, backbone)
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
    times["tower"] = an_image(watch.read(on_cpu=device.type == "cpu"), len(pack))
    means, squares = np.split(found[:, :-1], 2, axis=1)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        image_id=manifest["image_id"].to_numpy(dtype=str),
        image_features=means.astype(np.float32),
        image_features_deviation=np.sqrt(np.maximum(squares - means**2, 0)).astype(np.float32),
        clip_iqa=found[:, -1],
        handcrafted=handcrafted,
        backbone=np.array(json.dumps(backbone.record(), sort_keys=True)),
        windows=np.array(json.dumps(rule.record(), sort_keys=True)),
        clip_iqa_text_features=texts.float().cpu().numpy(),
        handcrafted_names=np.array(statistics.NAMES),
    )
    return buffer.getvalue(), times


if __name__ == "__main__":
    main()
