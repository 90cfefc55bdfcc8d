"""The image tower of agiqa-vit, made known to timm: a small ViT behind a convolutional stem.

Importing registers `vit_192_convstem_128`, after which timm and open_clip build it by name.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers import HybridEmbed
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem


@register_model
def vit_192_convstem_128(pretrained: bool = False, **changes: Any) -> VisionTransformer:
    """Return a ViT of width 192, 6 layers and 3 heads on the 64 tokens that four strided convolutions make of 128 px.

    The stem is timm's, put in as its `vit_base_mci_224` does it; small networks see fine detail through it that a
    linear patch embedding of the same size misses.

    Raises:
        ValueError: If `pretrained`: timm has no weights of it.
    """
    if pretrained:
        raise ValueError("vit_192_convstem_128 has no weights in timm: load them from backbones/agiqa-vit")
    for name in (
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "cache_dir",
    ):  # timm.create_model hands these to every maker
        changes.pop(name, None)
    stem = ConvStem(channels=(32, 64, 128, 192), depth=4, kernel_size=3, stride=(2, 2, 2, 2))
    given = {
        "img_size": 128,
        "patch_size": 1,  # of the stem's map, whose cells are 16 px wide
        "embed_dim": 192,
        "depth": 6,
        "num_heads": 3,
        "embed_layer": partial(HybridEmbed, backbone=stem, proj=False),
    }
    tower = VisionTransformer(**given | changes)
    tower.default_cfg = tower.pretrained_cfg = {"input_size": (3, 128, 128), "classifier": "head", "pool_size": None}
    return tower
