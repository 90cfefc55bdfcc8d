"""The frozen CLIP: the room that knows open_clip's towers from inside.

A `Backbone` encodes images and texts, with learned prompts in the transformer layers or without: without, its features
are open_clip's own. It owns the folded form of its image tower, which others use for speed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.errors import AgiqaError
from pipeline.model.tower import FastTower, ImageTowerWeights, LayerWeights

Origin = Literal["random", "in-house", "pretrained"]


class BackboneError(AgiqaError):
    """A backbone that cannot be built, loaded or prompted."""


class Backbone(nn.Module):
    """Two frozen CLIP towers that accept deep prompts.

    Attributes:
        name: open_clip's name of the model.
        pretrained: Tag or file name of the weights, or None for random ones.
        origin: Whose weights: `random`, `in-house` or `pretrained`.
        weights_sha256: Hash of every tensor that was really loaded.
        config: The open_clip configuration of the towers, as plain values.
        quick_gelu: Whether the towers use QuickGELU, whatever `config` says.
        file: Path of the weights as it was given, or None for a tag or random weights.
        seed: Of random weights, else None.
        image_size: Side of the square input in pixels.
        patch_size: Side of a patch in pixels.
        image_width, text_width: Widths D_v, D_t of the towers.
        embed_dim: Width E of the joint embedding.
        image_layers, text_layers: Transformer layers of the towers.
    """

    def __init__(
        self,
        clip: nn.Module,
        tokenizer: Callable[[], Any],
        *,
        name: str,
        pretrained: str | None,
        origin: Origin,
        config: dict[str, Any],
        quick_gelu: bool,
        file: str | None = None,
        seed: int | None = None,
        vocabulary: Tensor | None = None,
    ) -> None:
        """Freeze and wrap an open_clip model.

        Args:
            clip: `open_clip.CLIP`, or `CustomTextCLIP` with the standard towers.
            tokenizer: Makes the model's open_clip tokenizer once the first text comes; scoring needs none.
            name: open_clip's name of the model.
            pretrained: Tag or file name of the weights; None for random ones.
            origin: Whose weights these are.
            config: The open_clip configuration of the towers.
            quick_gelu: Whether they use QuickGELU.
            file: Path of the weights as it was given.
            seed: Of random weights.
            vocabulary: Token ids that have an embedding, shape (V,); None means all.

        Raises:
            BackboneError: If the towers are not the standard ViT and causal text transformer.
        """
        super().__init__()
        _refuse_other_towers(clip, name)
        self.visual = clip.visual
        text = clip.text if hasattr(clip, "text") else clip  # CustomTextCLIP keeps its text tower apart
        self.text_transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.text_positions = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.logit_scale = clip.logit_scale
        self.register_buffer("causal_mask", text.attn_mask.clone(), persistent=False)
        self._make_tokenizer = tokenizer
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary.tolist())
        self.requires_grad_(False)
        super().train(False)

        self.name, self.pretrained, self.origin = name, pretrained, origin
        self.config, self.quick_gelu, self.file, self.seed = config, quick_gelu, file, seed
        self.image_size: int = self.visual.image_size[0]
        self.patch_size: int = self.visual.patch_size[0]
        self.image_width: int = self.visual.conv1.out_channels
        self.text_width: int = self.token_embedding.embedding_dim
        self.embed_dim: int = self.visual.output_dim
        self.image_layers = len(self.visual.transformer.resblocks)
        self.text_layers = len(self.text_transformer.resblocks)
        self.context_length: int = self.text_positions.shape[0]
        self.weights_sha256 = _hash_tensors(clip.state_dict())

    @cached_property
    def tokenizer(self) -> Any:
        """The model's open_clip tokenizer."""
        return self._make_tokenizer()

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: the towers are frozen, whatever the model around them does."""
        return super().train(False)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint must know to refuse another backbone, and to build this one anew."""
        keys = (
            "name", "pretrained", "weights_sha256", "origin", "image_size", "patch_size",
            "config", "quick_gelu", "file", "seed",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys}

    def tokenize(self, texts: Sequence[str], slots: int = 0) -> Tensor:
        """Turn texts into token ids with room for prompts, cut at the longest text's EOT token.

        Causal attention keeps tokens after EOT from changing the EOT feature, so cutting them is exact.

        Args:
            texts: T texts.
            slots: Prompt slots n between the SOS token and the first word.

        Returns:
            Token ids [SOS][n slots][words][EOT][padding], shape (T, longest), int64; slots hold 0.

        Raises:
            BackboneError: If a text does not fit the context, or uses a token that the weights have no embedding for.
        """
        rows = [self._encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) + slots > self.context_length:
                raise BackboneError(
                    f"text {text!r} takes {len(row)} tokens and {slots} prompt slots, and {self.name} has room for "
                    f"{self.context_length}: shorten the text or model.prompt_length"
                )
            unknown = [] if self.vocabulary is None else [token for token in row if token not in self.vocabulary]
            if unknown:
                words = ", ".join(repr(self.tokenizer.decode([token]).strip()) for token in unknown)
                raise BackboneError(
                    f"text {text!r} uses {words}, which the reduced vocabulary of {self.name} ({self.pretrained}) does "
                    "not hold: use other words, or a backbone with its full vocabulary"
                )
        longest = max(len(row) for row in rows) + slots
        padded = [row[:1] + [0] * slots + row[1:] + [0] * (longest - slots - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long, device=self.text_positions.device)

    def _encode(self, text: str) -> list[int]:
        return [self.tokenizer.sot_token_id, *self.tokenizer.encode(text), self.tokenizer.eot_token_id]

    def encode_text(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode texts, with prompts in the first L layers.

        Args:
            tokens: Token ids, shape (T, N), from `tokenize` with the same number of slots.
            prompts: Learned prompts, shape (L, n, D_t): the first fills the slots at the input, each later one replaces
                the slots' outputs before its layer. None: plain CLIP.

        Returns:
            Text features at the EOT token, after projection, not normalised, shape (T, E).

        Source: deep prompting as in MaPLe (Khattak et al., CVPR 2023), text side.
        """
        depth, slots = (0, 0) if prompts is None else prompts.shape[:2]
        x = self.token_embedding(tokens)  # (T, N, D_t)
        if prompts is not None:
            x = torch.cat([x[:, :1], prompts[0].expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1)
        x = x + self.text_positions[: x.shape[1]]
        mask = self.causal_mask[: x.shape[1], : x.shape[1]]
        for layer, block in enumerate(self.text_transformer.resblocks):
            if 0 < layer < depth:
                x = torch.cat([x[:, :1], prompts[layer].expand(len(x), -1, -1), x[:, 1 + slots :]], dim=1)
            x = block(x, attn_mask=mask)
        end = (tokens == self.tokenizer.eot_token_id).int().argmax(dim=1)
        x = self.ln_final(x[torch.arange(len(x), device=x.device), end])  # (T, D_t)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection  # (T, E)

    def encode_image(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode images, with prompts in the first L layers.

        Args:
            images: Normalised pixels, shape (B, 3, H, W) with H = W = `image_size`.
            prompts: Learned prompts, shape (L, n, D_v), after the patches: [CLS][patches][n slots]. None: plain CLIP.

        Returns:
            Image features of the class token, after projection, not normalised, shape (B, E).

        Source: VPT-Deep (Jia et al., ECCV 2022). As in MaPLe's code the first prompts pass `ln_pre` with the patches,
            and carry no positional embedding.
        """
        depth = 0 if prompts is None else len(prompts)
        x = self.visual._embeds(images)  # (B, 1 + patches, D_v), after ln_pre
        body = x.shape[1]
        if prompts is not None:
            x = torch.cat([x, self.visual.ln_pre(prompts[0]).expand(len(x), -1, -1)], dim=1)
        for layer, block in enumerate(self.visual.transformer.resblocks):
            if 0 < layer < depth:
                x = torch.cat([x[:, :body], prompts[layer].expand(len(x), -1, -1)], dim=1)
            x = block(x)
        pooled, _ = self.visual._pool(x[:, :body])  # (B, D_v)
        return pooled if self.visual.proj is None else pooled @ self.visual.proj  # (B, E)

    def image_tower(self) -> ImageTowerWeights | None:
        """Return the image tower as plain tensors, or None where its layers are not CLIP's plain ones."""
        layers = [_layer_weights(block) for block in self.visual.transformer.resblocks]
        pre = self.visual.ln_pre
        plain = self.visual.conv1.bias is None and isinstance(pre, nn.LayerNorm | nn.Identity)
        if not plain or None in layers:
            return None
        return ImageTowerWeights(
            patches=self.visual.conv1.weight,
            class_token=self.visual.class_embedding,
            positions=self.visual.positional_embedding,
            norm_pre=_norm(pre) if isinstance(pre, nn.LayerNorm) else None,
            layers=tuple(layers),
            norm_post=_norm(self.visual.ln_post),
            projection=self.visual.proj,
            image_size=self.image_size,
        )

    def fast_tower(self) -> FastTower | None:
        """Return the folded image tower, or None where it cannot be folded; made at the first call.

        It is part of the backbone, so it moves between devices with it, and one copy serves every scorer and training,
        since the weights are frozen.
        """
        if "folded" not in self._modules:
            weights = self.image_tower()
            self.register_module("folded", None if weights is None else FastTower(weights))
        return self.folded


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return norm.weight, norm.bias, norm.eps


def _layer_weights(block: nn.Module) -> LayerWeights | None:
    """Return one layer's weights, or None if it is not open_clip's plain residual attention block."""
    from open_clip.transformer import QuickGELU, ResidualAttentionBlock

    if type(block) is not ResidualAttentionBlock or hasattr(block, "ln_1_kv"):
        return None
    attention, expand, activation, contract = block.attn, block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj
    quick = isinstance(activation, QuickGELU)
    if not quick and not (type(activation) is nn.GELU and activation.approximate == "none"):
        return None
    if attention.in_proj_weight is None or attention.bias_k is not None or attention.add_zero_attn:
        return None
    scales = [None if isinstance(scale, nn.Identity) else scale.gamma for scale in (block.ls_1, block.ls_2)]
    return LayerWeights(
        norm_1=_norm(block.ln_1),
        attention_in=(attention.in_proj_weight, attention.in_proj_bias),
        attention_out=(attention.out_proj.weight, attention.out_proj.bias),
        norm_2=_norm(block.ln_2),
        expand=(expand.weight, expand.bias),
        contract=(contract.weight, contract.bias),
        quick=quick,
        scale_1=scales[0],
        scale_2=scales[1],
        heads=attention.num_heads,
    )


def _refuse_other_towers(clip: nn.Module, name: str) -> None:
    from open_clip.transformer import TextTransformer, Transformer, VisionTransformer

    text = clip.text if hasattr(clip, "text") else clip
    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise BackboneError(
            f"{name} has a {type(visual).__name__} image tower; prompts need open_clip's VisionTransformer"
        )
    pool = getattr(visual, "pool_type", None)
    if visual.attn_pool is not None or pool != "tok" or visual.proj is None:
        raise BackboneError(f"{name} pools its image tokens by {pool!r} or attention; prompts need a class token")
    plain = isinstance(text, TextTransformer) or isinstance(getattr(text, "transformer", None), Transformer)
    pools_at_eot = getattr(text, "text_pool_type", getattr(text, "pool_type", None)) in ("argmax", "eos")
    if not plain or getattr(text, "cls_emb", None) is not None or text.attn_mask is None or not pools_at_eot:
        raise BackboneError(f"{name} has no causal text tower read at the EOT token, which prompts need")


def _hash_tensors(state: dict[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()
