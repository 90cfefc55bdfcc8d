"""What the pre-training scripts of the in-house backbones share: the reduced vocabulary, the text tower, the export."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn


def import_open_clip() -> object:
    """Import open_clip beside a CPU build of torch; imported late: costs 2 s."""
    from pipeline.model.torchvision_shim import ensure_torchvision_imports

    ensure_torchvision_imports()
    import open_clip

    return open_clip


def token_rows(tokenizer: Callable[[str], Tensor], words: Iterable[str]) -> Tensor:
    """Return the sorted token ids of all words, with SOS and EOT."""
    rows: set[int] = set()
    for word in words:
        rows |= set(tokenizer(word)[0].tolist())
    return torch.tensor(sorted(rows - {0}))


def encode_texts(
    clip: nn.Module,
    rows: Tensor,
    tokenizer: Callable[[list[str]], Tensor],
    texts: Sequence[str],
    slots: Tensor | None = None,
) -> Tensor:
    """Return the texts' features before normalisation.

    Args:
        clip: open_clip's CLIP, its token embedding holding one row for each of `rows`.
        rows: Sorted token ids of the reduced vocabulary, shape (V,).
        tokenizer: open_clip's.
        texts: B texts.
        slots: Noise tokens after SOS, shape (n, D), as learned prompts will stand there downstream, or None.

    Returns:
        Shape (B, E).

    Raises:
        ValueError: If a text holds a token outside the vocabulary.
    """
    tokens = tokenizer(list(texts))
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length].contiguous().to(rows.device)
    ends = (tokens != 0).sum(1) - 1
    places = torch.searchsorted(rows, tokens).clamp_max(len(rows) - 1)
    if not torch.equal(rows[places] * (tokens != 0), tokens):
        raise ValueError(f"a text holds a token outside the vocabulary: {texts}")
    x = clip.token_embedding(places)  # (B, T, D)
    if slots is not None:
        x = torch.cat([x[:, :1], slots.expand(len(x), -1, -1), x[:, 1:]], 1)
        length, ends = length + len(slots), ends + len(slots)
    x = x + clip.positional_embedding[:length]
    x = clip.transformer(x, attn_mask=clip.attn_mask[:length, :length])
    x = clip.ln_final(x)
    return x[torch.arange(len(x)), ends] @ clip.text_projection


def write_towers(clip: nn.Module, rows: Tensor, path: Path) -> None:
    """Write the towers, fp16, with the token embedding cut to `token_embedding.rows`; atomic."""
    from safetensors.torch import save_file

    tensors = {
        name: value.detach().cpu().half().contiguous() if value.is_floating_point() else value.detach().cpu()
        for name, value in clip.state_dict().items()
        if name != "attn_mask"
    }
    tensors["token_embedding.rows"] = rows.to("cpu", torch.int32)
    half_done = path.with_name(path.name + ".part")
    save_file(tensors, half_done)
    os.replace(half_done, path)


def read_towers(clip: nn.Module, rows: Tensor, path: Path) -> None:
    """Put weights that `write_towers` wrote into the towers.

    Raises:
        ValueError: If the file's vocabulary is not `rows`.
    """
    from safetensors.torch import load_file

    tensors = {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    found = tensors.pop("token_embedding.rows").long()
    if not torch.equal(found, rows.cpu()):
        raise ValueError(f"{path} has {len(found)} words, and this script says {len(rows)}: they must be the same")
    masks = {name: value for name, value in clip.state_dict().items() if name == "attn_mask"}
    clip.load_state_dict(tensors | masks)
