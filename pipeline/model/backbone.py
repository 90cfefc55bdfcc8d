"""The frozen CLIP: open_clip's towers, and timm's image towers that open_clip puts into its models.

A `Backbone` encodes images and texts, with learned prompts in the transformer layers or without: without, its features
are open_clip's own. It owns the folded form of its image tower, which others use for speed; where it has none, as an
attention-pooled tower of timm's has none, it says so and the plain pass serves.

SigLIP's `logit_bias` is not kept: a score is a softmax over two logits, in which a bias on both cancels.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.model import text_side
from pipeline.model.image_side import BackboneError, image_features, image_sizes
from pipeline.model.image_weights import image_weights
from pipeline.model.record import without_tokenizer
from pipeline.model.tower import FastTower, ImageTowerWeights

__all__ = ["Backbone", "BackboneError", "Origin"]

Origin = Literal["random", "in-house", "pretrained"]


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
            clip: `open_clip.CLIP` or `CustomTextCLIP`, with a ViT of open_clip's or timm's and open_clip's text tower.
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
            BackboneError: If a tower is none that prompts can be put into.
        """
        super().__init__()
        sizes = image_sizes(clip.visual, name)
        self.text_rules = text_side.text_rules(clip, name)
        self.visual = clip.visual
        text = clip.text if hasattr(clip, "text") else clip  # CustomTextCLIP keeps its text tower apart
        self.text_transformer = text.transformer
        self.token_embedding = text.token_embedding
        self.text_positions = text.positional_embedding
        self.ln_final = text.ln_final
        self.text_projection = text.text_projection
        self.logit_scale = clip.logit_scale
        mask = text.attn_mask
        self.register_buffer("causal_mask", None if mask is None else mask.clone(), persistent=False)
        self._make_tokenizer = tokenizer
        self.vocabulary = None if vocabulary is None else frozenset(vocabulary.tolist())
        self.requires_grad_(False)
        super().train(False)

        self.name, self.pretrained, self.origin = name, pretrained, origin
        self.config, self.quick_gelu, self.file, self.seed = config, quick_gelu, file, seed
        self.image_size, self.patch_size, self.image_width, self.embed_dim, self.image_layers = sizes
        self.text_width: int = self.token_embedding.embedding_dim
        self.text_layers = len(self.text_transformer.resblocks)
        self.context_length: int = self.text_positions.shape[0]
        if (found := self._text_features_width()) != self.embed_dim:
            raise BackboneError(f"{name} has image features of {self.embed_dim} and text features of {found} numbers")
        self.weights_sha256 = _hash_tensors(clip.state_dict())

    @cached_property
    def tokenizer(self) -> Any:
        """The model's open_clip tokenizer."""
        return self._make_tokenizer()

    @cached_property
    def slot_start(self) -> int:
        """Place of the first prompt slot in a text: 1 behind a first token that the tokenizer puts there, else 0."""
        return text_side.slot_start(self.tokenizer, self.context_length)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in evaluation mode: the towers are frozen, whatever the model around them does."""
        return super().train(False)

    def record(self) -> dict[str, Any]:
        """Return what a checkpoint must know to refuse another backbone, and to build this one anew.

        The tokenizer is not among it: a checkpoint holds its texts' features, and scores where no tokenizer is.
        """
        keys = (
            "name", "pretrained", "weights_sha256", "origin", "image_size", "patch_size",
            "config", "quick_gelu", "file", "seed",
        )  # fmt: skip
        return {key: getattr(self, key) for key in keys} | {"config": without_tokenizer(self.config)}

    def tokenize(self, texts: Sequence[str], slots: int = 0) -> Tensor:
        """Turn texts into token ids with room for prompts.

        A causal tower's are cut at the longest text's end token, which is exact; others keep the whole context.

        Args:
            texts: T texts.
            slots: Prompt slots n, from `slot_start` on.

        Returns:
            Token ids [first token, if any][n slots][words][end][padding], shape (T, N), int64; slots hold 0.

        Raises:
            BackboneError: If a text does not fit the context, or uses a token that the weights have no embedding for.
        """
        rows = [text_side.encode(self.tokenizer, text, self.context_length) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            if len(row) + slots > self.context_length:
                raise BackboneError(
                    f"text {text!r} takes {len(row)} tokens and {slots} prompt slots, and {self.name} has room for "
                    f"{self.context_length}: shorten the text or model.prompt_length"
                )
            if max(row) >= self.token_embedding.num_embeddings:
                raise BackboneError(
                    f"the tokenizer gives text {text!r} the token {max(row)}, and {self.name} knows "
                    f"{self.token_embedding.num_embeddings}: it is another model's"
                )
            unknown = [] if self.vocabulary is None else [token for token in row if token not in self.vocabulary]
            if unknown:
                words = ", ".join(repr(text_side.decode(self.tokenizer, token)) for token in unknown)
                raise BackboneError(
                    f"text {text!r} uses {words}, which the reduced vocabulary of {self.name} ({self.pretrained}) does "
                    "not hold: use other words, or a backbone with its full vocabulary"
                )
        length = max(len(row) for row in rows) + slots if self.text_rules.cuts else self.context_length
        padded = text_side.lay_out(rows, slots, self.slot_start, length, text_side.padding(self.tokenizer))
        return torch.tensor(padded, dtype=torch.long, device=self.text_positions.device)

    def encode_text(self, tokens: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode texts, with prompts in the first L layers.

        Args:
            tokens: Token ids, shape (T, N), from `tokenize` with the same number of slots.
            prompts: Learned prompts, shape (L, n, D_t): the first fills the slots at the input, each later one replaces
                the slots' outputs before its layer. None: plain CLIP, which needs no tokenizer.

        Returns:
            Features of the token that stands for the text, after projection, not normalised, shape (T, E).

        Source: deep prompting as in MaPLe (Khattak et al., CVPR 2023), text side.
        """
        depth, slots, start = (0, 0, 0) if prompts is None else (*prompts.shape[:2], self.slot_start)
        x = self.token_embedding(tokens)  # (T, N, D_t)
        if prompts is not None:
            x = text_side.put_prompts(x, prompts[0], start)
        x = x + self.text_positions[: x.shape[1]]
        mask = None if self.causal_mask is None else self.causal_mask[: x.shape[1], : x.shape[1]]
        for layer, block in enumerate(self.text_transformer.resblocks):
            if 0 < layer < depth:
                x = text_side.put_prompts(x, prompts[layer], start)
            x = block(x, attn_mask=mask)
        x = self.ln_final(text_side.pooled_token(x, tokens, self.text_rules, start, slots))  # (T, D_t)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x if self.text_projection is None else x @ self.text_projection  # (T, E)

    def _text_features_width(self) -> int:
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection.out_features
        return self.text_width if self.text_projection is None else self.text_projection.shape[1]

    def encode_image(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Encode images, with prompts in the first L layers; see `pipeline.model.image_side.image_features`.

        Args:
            images: Normalised pixels, shape (B, 3, H, W) with H = W = `image_size`.
            prompts: Learned prompts, shape (L, n, D_v), after the patches. None: plain CLIP.

        Returns:
            Image features, after projection, not normalised, shape (B, E).
        """
        return image_features(self.visual, images, prompts)

    def image_tower(self) -> ImageTowerWeights | None:
        """Return the image tower as plain tensors; None where it does more than those say."""
        return image_weights(self.visual, self.image_size)

    def fast_tower(self) -> FastTower | None:
        """Return the folded image tower, or None where it cannot be folded; made at the first call.

        It is part of the backbone, so it moves between devices with it, and one copy serves every scorer and training,
        since the weights are frozen.
        """
        if "folded" not in self._modules:
            weights = self.image_tower()
            self.register_module("folded", None if weights is None else FastTower(weights))
        return self.folded


def _hash_tensors(state: dict[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()
