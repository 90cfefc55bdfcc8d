"""The image side of a CLIP: one prompted pass over open_clip's own ViT, or over a ViT of timm's in its place.

Prompts stand behind the tokens of the image, [prefix tokens][patches][n slots], and are no part of what is pooled:
their last outputs are dropped, so that a class token, a mean and an attention pool all read the image's tokens alone.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.errors import AgiqaError


class BackboneError(AgiqaError):
    """A backbone that cannot be built, loaded or prompted."""


class ImageSizes(NamedTuple):
    """What the rest of the model must know of an image tower.

    Attributes:
        image_size: Side of the square input in pixels.
        patch_size: Side in pixels of what a token stands for, behind a convolutional stem, too.
        width: D_v of the tokens.
        embed_dim: E of the features.
        layers: Transformer layers.
    """

    image_size: int
    patch_size: int
    width: int
    embed_dim: int
    layers: int


def image_sizes(visual: nn.Module, name: str) -> ImageSizes:
    """Return an image tower's sizes, read from the tower itself.

    Args:
        visual: `open_clip.CLIP.visual`.
        name: Of the model, for errors.

    Raises:
        BackboneError: If it is neither open_clip's ViT with a class token nor a `TimmModel` around timm's ViT, or
            its input is not square.
    """
    if hasattr(visual, "trunk"):
        return _timm_sizes(visual, name)
    from open_clip.transformer import VisionTransformer

    if not isinstance(visual, VisionTransformer):
        raise BackboneError(
            f"{name} has a {type(visual).__name__} image tower; prompts need open_clip's VisionTransformer, or timm's"
        )
    pool = getattr(visual, "pool_type", None)
    if visual.attn_pool is not None or pool != "tok" or visual.proj is None:
        raise BackboneError(f"{name} pools its image tokens by {pool!r} or attention; prompts need a class token")
    return ImageSizes(
        visual.image_size[0], visual.patch_size[0], visual.conv1.out_channels, visual.output_dim,
        len(visual.transformer.resblocks),
    )  # fmt: skip


def _timm_sizes(visual: nn.Module, name: str) -> ImageSizes:
    from timm.models.vision_transformer import VisionTransformer

    trunk = visual.trunk
    if type(trunk) is not VisionTransformer:  # what derives from it may run its layers in another way
        raise BackboneError(
            f"{name} has a {type(trunk).__name__} of timm's as its image tower; prompts need timm's VisionTransformer"
        )
    if trunk.global_pool == "":
        raise BackboneError(f"{name} pools its image tokens outside timm's VisionTransformer: prompts need it inside")
    sides, patches = tuple(trunk.patch_embed.img_size), tuple(trunk.patch_embed.feat_ratio(as_scalar=False))
    if len({*sides}) > 1 or len({*patches}) > 1:
        raise BackboneError(f"{name} takes images of {sides} in patches of {patches}: both must be square here")
    if tuple(visual.image_size) != sides:
        raise BackboneError(
            f"{name} says image_size {visual.image_size[0]}, and its tower of timm's takes {sides[0]}: "
            f"say {sides[0]}, or name a tower of that size"
        )
    embed_dim = trunk.num_features
    heads = [part for part in (trunk.head, *visual.head.modules()) if isinstance(part, nn.Linear)]
    if heads:
        embed_dim = heads[-1].out_features
    return ImageSizes(sides[0], patches[0], trunk.embed_dim, embed_dim, len(trunk.blocks))


def image_features(visual: nn.Module, images: Tensor, prompts: Tensor | None = None) -> Tensor:
    """Encode images, with prompts in the first L layers.

    Args:
        visual: A tower that `image_sizes` takes, in evaluation mode.
        images: Normalised pixels, shape (B, 3, H, W).
        prompts: Learned prompts, shape (L, n, D_v). None: the tower as it is.

    Returns:
        Features, not normalised, shape (B, E).

    Source: VPT-Deep (Jia et al., ECCV 2022). As in MaPLe's code the first prompts pass the norm before the first layer
        with the patches, where there is one, and carry no positional embedding.
    """
    depth = 0 if prompts is None else prompts.shape[0]
    x = _first_tokens(visual, images)  # (B, prefix + patches, D_v)
    body = x.shape[1]
    if prompts is not None:
        first = _norm_pre(visual)(prompts[0])
        x = torch.cat([x, first.expand(x.shape[0], -1, -1)], dim=1)  # len() would fix the batch on export
    for layer, block in enumerate(_layers(visual)):
        if 0 < layer < depth:
            x = torch.cat([x[:, :body], prompts[layer].expand(x.shape[0], -1, -1)], dim=1)
        x = block(x)
    x = x[:, :body]
    if hasattr(visual, "trunk"):
        return visual.head(visual.trunk.forward_head(visual.trunk.norm(x)))  # (B, E)
    pooled, _ = visual._pool(x)  # (B, D_v)
    return pooled if visual.proj is None else pooled @ visual.proj  # (B, E)


def _first_tokens(visual: nn.Module, images: Tensor) -> Tensor:
    """Return the first layer's input without prompts, shape (B, prefix + patches, D_v)."""
    if not hasattr(visual, "trunk"):
        return visual._embeds(images)
    trunk = visual.trunk
    return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))


def _norm_pre(visual: nn.Module) -> nn.Module:
    return visual.trunk.norm_pre if hasattr(visual, "trunk") else visual.ln_pre


def _layers(visual: nn.Module) -> Iterable[nn.Module]:
    return visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks
