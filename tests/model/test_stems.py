"""The towers that timm learns from us: built by name through open_clip, equal to a pass written by hand."""

import json
from pathlib import Path

import pytest
import torch
from made_parts import plain_clip

from pipeline.model.loading import load_backbone, rebuild_backbone
from pipeline.model.stems import NAME, know_stems, vit_192_convstem_128

CONFIG = {
    "embed_dim": 192,
    "vision_cfg": {
        "timm_model_name": NAME, "timm_model_pretrained": False, "timm_pool": "token", "timm_proj": "linear",
        "image_size": 128,
    },
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
}  # fmt: skip


def test_open_clip_builds_the_tower_and_a_record_brings_it_back(tmp_path: Path) -> None:
    path = tmp_path / "own-vit.json"
    path.write_text(json.dumps(CONFIG))
    backbone = load_backbone("own-vit", config=path, seed=3)
    assert (backbone.image_size, backbone.patch_size, backbone.image_width, backbone.image_layers) == (128, 16, 192, 6)
    images = torch.randn(2, 3, 128, 128)
    trunk = backbone.visual.trunk
    with torch.no_grad():
        torch.testing.assert_close(
            backbone.encode_image(images), plain_clip(path, 3).encode_image(images), atol=1e-5, rtol=0
        )
        grid = trunk.patch_embed.backbone(images).flatten(2).transpose(1, 2)  # (2, 64, 192)
        tokens = torch.cat([trunk.cls_token.expand(2, 1, -1), grid], 1) + trunk.pos_embed
        expected = backbone.visual.head.proj(trunk.norm(trunk.blocks(tokens))[:, 0])
        torch.testing.assert_close(backbone.encode_image(images), expected, atol=1e-5, rtol=0)
    record = json.loads(json.dumps(backbone.record()))
    assert rebuild_backbone(record).weights_sha256 == backbone.weights_sha256


def test_it_is_made_known_once_and_has_no_weights() -> None:
    know_stems()
    know_stems()  # a second time would warn, and warnings are errors
    with pytest.raises(ValueError, match="vit_192_convstem_128 has no weights in timm"):
        vit_192_convstem_128(pretrained=True)
