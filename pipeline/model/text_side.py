"""The text side of a CLIP: where prompts stand among a text's tokens, and which token's feature is the text's.

With n slots a text is [first token][n slots][words][end][padding], or [n slots][words][end][padding] where its
tokenizer puts no token in front, as SigLIP's does not.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pipeline.model.image_side import BackboneError


class TextRules(NamedTuple):
    """How a text tower reads its tokens.

    Attributes:
        pool: Whose feature is the text's: that of the highest id, the end token, the last or the first place.
        eos_id: Of the end token, for `eos`.
        causal: Whether tokens see those before them alone.
    """

    pool: Literal["argmax", "eos", "last", "first"]
    eos_id: int
    causal: bool

    @property
    def cuts(self) -> bool:
        """Whether what follows the end token can be cut.

        Under a causal mask it cannot change the end token's feature. Without one padding is seen by every token, and
        the last place is often padding itself: such texts keep the whole context, as open_clip gives it.
        """
        return self.causal and self.pool in ("argmax", "eos")


def text_rules(clip: nn.Module, name: str) -> TextRules:
    """Return how an open_clip model's text tower reads its tokens.

    Args:
        clip: `open_clip.CLIP` or `CustomTextCLIP`.
        name: Of the model, for errors.

    Raises:
        BackboneError: If it is not open_clip's transformer, appends a class token, masks padding, or is read at no one
            token, or at the first one under a causal mask, where no prompt could reach it.
    """
    from open_clip.transformer import TextTransformer, Transformer

    text = clip.text if hasattr(clip, "text") else clip
    plain = isinstance(text, TextTransformer) or isinstance(getattr(text, "transformer", None), Transformer)
    if not plain:
        raise BackboneError(f"{name} has a {type(text).__name__} text tower; prompts need open_clip's own transformer")
    if getattr(text, "cls_emb", None) is not None or getattr(text, "use_pad_mask", False):
        raise BackboneError(f"{name} appends a class token to its texts or masks padding: prompts cannot be put in")
    pool = getattr(text, "text_pool_type", getattr(text, "pool_type", None))
    causal = text.attn_mask is not None
    if pool not in (("argmax", "eos", "last") if causal else ("argmax", "eos", "last", "first")):
        mask = "under a causal mask" if causal else "without a causal mask"
        raise BackboneError(f"{name} reads its texts by {pool!r} {mask}: prompts need one token that sees them")
    return TextRules(pool, getattr(text, "text_eos_id", getattr(text, "eos_id", None)), causal)


def encode(tokenizer: Any, text: str, context_length: int) -> list[int]:
    """Return a text's token ids with what its tokenizer puts around them, without padding and never cut short.

    Args:
        tokenizer: One of open_clip's.
        text: Any text.
        context_length: Of the tower; a text of more than twice as many tokens is cut there, and still too long.

    Raises:
        BackboneError: If the tokenizer pads on the left or puts a token behind the padding.
    """
    if hasattr(tokenizer, "sot_token_id"):  # CLIP's
        return [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
    inner = tokenizer.tokenizer
    if getattr(tokenizer, "tokenizer_mode", "") or getattr(inner, "padding_side", "right") != "right":
        raise BackboneError("the tokenizer pads on the left or ends texts with a class token: no prompts there")
    row = tokenizer([text], context_length=2 * context_length)[0].tolist()
    end = inner.pad_token_id
    while row and row[-1] == end:
        row.pop()
    return row + [end] * (end == inner.eos_token_id)  # SigLIP pads with the end token itself


def padding(tokenizer: Any) -> int:
    """Return the id of the padding."""
    return 0 if hasattr(tokenizer, "sot_token_id") else tokenizer.tokenizer.pad_token_id


def slot_start(tokenizer: Any, context_length: int) -> int:
    """Return the place of the first slot: 1 behind a first token that every text has, else 0."""
    if hasattr(tokenizer, "sot_token_id"):
        return 1
    inner, row = tokenizer.tokenizer, encode(tokenizer, "photo", context_length)
    firsts = {getattr(inner, "bos_token_id", None), getattr(inner, "cls_token_id", None)} - {None}
    return int(row[0] in firsts)


def decode(tokenizer: Any, token: int) -> str:
    """Return what a token id stands for."""
    own = tokenizer if hasattr(tokenizer, "decode") else tokenizer.tokenizer
    return own.decode([token]).strip()


def lay_out(rows: Sequence[Sequence[int]], slots: int, start: int, length: int, pad: int) -> list[list[int]]:
    """Return rows of token ids with room for prompts, each of `length`; the slots hold 0."""
    return [[*row[:start], *[0] * slots, *row[start:], *[pad] * (length - slots - len(row))] for row in rows]


def put_prompts(x: Tensor, prompts: Tensor, start: int) -> Tensor:
    """Return tokens with prompts (n, D_t) in the slots of every text, shape (T, N, D_t) as `x`."""
    return torch.cat([x[:, :start], prompts.expand(x.shape[0], -1, -1), x[:, start + prompts.shape[0] :]], dim=1)


def pooled_token(x: Tensor, tokens: Tensor, rules: TextRules, start: int, slots: int) -> Tensor:
    """Return the last layer's output at the token that stands for the text, never at a slot, shape (T, D_t).

    Args:
        x: The last layer's outputs, shape (T, N, D_t).
        tokens: Their ids, shape (T, N).
        rules: Of the tower.
        start: Place of the first slot.
        slots: n, or 0.

    Source: `text_global_pool` of open_clip; the norm that follows acts on every token alone, so it may come after.
    """
    if rules.pool == "last":
        return x[:, -1]
    if rules.pool == "first":
        return x[:, 0 if start else slots]
    words = torch.cat([tokens[:, :start], tokens.new_full((len(x), slots), -1), tokens[:, start + slots :]], dim=1)
    end = words.argmax(dim=1) if rules.pool == "argmax" else (words == rules.eos_id).int().argmax(dim=1)
    return x[torch.arange(len(x), device=x.device), end]
