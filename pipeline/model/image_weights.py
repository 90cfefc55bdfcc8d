"""An image tower's weights as the plain tensors that `pipeline.model.tower` folds, read from open_clip's ViT or timm's.

Each reader names all that it relies on and returns None for a tower with anything else: then the plain pass serves.
"""

import torch
from torch import Tensor, nn

from pipeline.model.tower import ImageTowerWeights, LayerWeights, StemConv


def image_weights(visual: nn.Module, image_size: int) -> ImageTowerWeights | None:
    """Return an image tower's weights, or None where it does more than those say.

    Args:
        visual: A tower that `pipeline.model.image_side.image_sizes` takes, in evaluation mode.
        image_size: Side of its input in pixels.
    """
    return (_of_timm if hasattr(visual, "trunk") else _of_open_clip)(visual, image_size)


def _of_open_clip(visual: nn.Module, image_size: int) -> ImageTowerWeights | None:
    layers = [_open_clip_layer(block) for block in visual.transformer.resblocks]
    pre = visual.ln_pre
    if visual.conv1.bias is not None or not isinstance(pre, nn.LayerNorm | nn.Identity) or None in layers:
        return None
    return ImageTowerWeights(
        patches=visual.conv1.weight,
        stem=None,
        class_token=visual.class_embedding,
        positions=visual.positional_embedding,
        norm_pre=_norm_or_none(pre),
        layers=tuple(layers),
        norm_post=_norm(visual.ln_post),
        projection=visual.proj,
        projection_bias=None,
        image_size=image_size,
    )


def _open_clip_layer(block: nn.Module) -> LayerWeights | None:
    """Return one layer's weights, or None if it is not open_clip's plain residual attention block."""
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return None
    attention, expand, activation, contract = block.attn, block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj
    quick = isinstance(activation, QuickGELU)
    if not quick and not _is_gelu(activation):
        return None
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        return None
    return LayerWeights(
        norm_1=_norm(block.ln_1),
        attention_in=(attention.in_proj_weight, attention.in_proj_bias),
        attention_out=(attention.out_proj.weight, attention.out_proj.bias),
        norm_2=_norm(block.ln_2),
        expand=(expand.weight, expand.bias),
        contract=(contract.weight, contract.bias),
        quick=quick,
        scale_1=_scale_or_none(block.ls_1),
        scale_2=_scale_or_none(block.ls_2),
        heads=attention.num_heads,
    )


def _of_timm(visual: nn.Module, image_size: int) -> ImageTowerWeights | None:
    trunk, head = visual.trunk, [part for part in visual.head if not isinstance(part, nn.Dropout)]
    maps = [part for part in (trunk.head, *head) if not isinstance(part, nn.Identity)]
    if trunk.global_pool != "token" or trunk.cls_token is None or trunk.num_prefix_tokens != 1:
        return None  # such as SigLIP's attention pool, which reads every token
    plain = isinstance(trunk.fc_norm, nn.Identity) and isinstance(trunk.norm, nn.LayerNorm)
    if not plain or trunk.pos_embed is None or not isinstance(trunk.norm_pre, nn.LayerNorm | nn.Identity):
        return None
    layers, embedding = [_timm_layer(block) for block in trunk.blocks], _timm_embedding(trunk.patch_embed)
    if None in layers or embedding is None or len(maps) != 1 or type(maps[0]) is not nn.Linear:
        return None
    patches, bias, stem = embedding
    positions = trunk.pos_embed[0]
    if trunk.no_embed_class:
        positions = torch.cat([torch.zeros_like(positions[:1]), positions])
    if bias is not None:  # every patch gets it, and so may its place
        positions = torch.cat([positions[:1], positions[1:] + bias])
    return ImageTowerWeights(
        patches=patches,
        stem=stem,
        class_token=trunk.cls_token[0, 0],
        positions=positions,
        norm_pre=_norm_or_none(trunk.norm_pre),
        layers=tuple(layers),
        norm_post=_norm(trunk.norm),
        projection=maps[0].weight.T,
        projection_bias=maps[0].bias,
        image_size=image_size,
    )


def _timm_layer(block: nn.Module) -> LayerWeights | None:
    """Return one layer's weights, or None if it is not timm's plain pre-norm block."""
    from timm.layers import LayerScale, Mlp
    from timm.models.vision_transformer import Attention, Block

    if type(block) is not Block or type(block.attn) is not Attention or type(block.mlp) is not Mlp:
        return None
    attention, mlp = block.attn, block.mlp
    unused = [attention.q_norm, attention.k_norm, getattr(attention, "norm", nn.Identity()), mlp.norm]
    if not all(isinstance(part, nn.Identity) for part in unused) or getattr(attention, "gate", None) is not None:
        return None  # older releases of timm have neither norm nor gate
    if attention.qkv.bias is None or attention.proj.bias is None or mlp.fc1.bias is None or not _is_gelu(mlp.act):
        return None
    if not all(isinstance(scale, LayerScale | nn.Identity) for scale in (block.ls1, block.ls2)):
        return None
    return LayerWeights(
        norm_1=_norm(block.norm1),
        attention_in=(attention.qkv.weight, attention.qkv.bias),
        attention_out=(attention.proj.weight, attention.proj.bias),
        norm_2=_norm(block.norm2),
        expand=(mlp.fc1.weight, mlp.fc1.bias),
        contract=(mlp.fc2.weight, mlp.fc2.bias),
        quick=False,
        scale_1=_scale_or_none(block.ls1),
        scale_2=_scale_or_none(block.ls2),
        heads=attention.num_heads,
    )


def _timm_embedding(
    embedding: nn.Module,
) -> tuple[Tensor | None, Tensor | None, tuple[StemConv, ...] | None] | None:
    """Return weight and bias of a patch embedding, or the convolutions of a stem; None if it is neither."""
    from timm.layers import HybridEmbed, PatchEmbed
    from timm.models.vision_transformer_hybrid import ConvStem

    if type(embedding) is PatchEmbed and isinstance(embedding.norm, nn.Identity):
        return embedding.proj.weight, embedding.proj.bias, None
    stem = getattr(embedding, "backbone", None)
    if type(embedding) is not HybridEmbed or type(stem) is not ConvStem or type(embedding.proj) is not nn.Identity:
        return None
    convolutions = [_stem_conv(part) for part in stem]
    return None if None in convolutions else (None, None, tuple(convolutions))


def _stem_conv(part: nn.Module) -> StemConv | None:
    """Return a convolution of a stem with its batch norm folded in: g (W x + b - m) / s + c = (g W / s) x + ..."""
    from timm.layers import BatchNormAct2d

    convolution, norm = part.conv, part.bn
    plain = type(convolution) is nn.Conv2d and convolution.groups == 1 and set(convolution.dilation) == {1}
    if not plain or convolution.padding_mode != "zeros" or getattr(part, "aa", None) is not None:
        return None
    weight, bias = convolution.weight, convolution.bias
    bias = torch.zeros_like(weight[:, 0, 0, 0]) if bias is None else bias
    activation = nn.Identity()
    if isinstance(norm, BatchNormAct2d):
        activation = norm.act
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight, bias = weight * gain[:, None, None, None], (bias - norm.running_mean) * gain + norm.bias
    elif len(norm):
        return None
    names = {nn.Identity: None, nn.ReLU: "relu", nn.GELU: "gelu"}
    if type(activation) not in names or (type(activation) is nn.GELU and not _is_gelu(activation)):
        return None
    return StemConv(weight, bias, convolution.stride, convolution.padding, names[type(activation)])


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _norm_or_none(norm: nn.Module) -> tuple[Tensor, Tensor, float] | None:
    return _norm(norm) if isinstance(norm, nn.LayerNorm) else None


def _scale_or_none(scale: nn.Module) -> Tensor | None:
    return None if isinstance(scale, nn.Identity) else scale.gamma


def _is_gelu(activation: nn.Module) -> bool:
    return type(activation) is nn.GELU and activation.approximate == "none"
