"""Image towers of our own that timm builds by name once they are made known to it."""

from functools import partial
from typing import Any

from torch import nn

NAME = "vit_192_convstem_128"


def know_stems() -> None:
    """Make the towers known to timm, and so to open_clip; where they are known already, nothing happens."""
    from timm.models import is_model, register_model

    if not is_model(NAME):
        register_model(vit_192_convstem_128)


def vit_192_convstem_128(pretrained: bool = False, **changes: Any) -> nn.Module:
    """Return a ViT of width 192, 6 layers and 3 heads on the 64 tokens that four strided convolutions make of 128 px.

    The stem is timm's, put in as its `vit_base_mci_224` does it; small networks see fine detail through it that a
    linear patch embedding of the same size misses.

    Args:
        pretrained: Must be false, since timm has no weights of it.
        **changes: What `timm.create_model` and open_clip hand on, over the values here.

    Returns:
        A `timm.models.vision_transformer.VisionTransformer`.

    Raises:
        ValueError: If `pretrained`.

    Source: Xiao et al., "Early convolutions help transformers see better", NeurIPS 2021.
    """
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    if pretrained:
        raise ValueError(f"{NAME} has no weights in timm: load them from backbones/agiqa-vit")
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):  # timm.create_model hands these to every one
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
