"""Where prompts stand in texts of every kind of tower and tokenizer, and which token is read."""

import builtins
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from made_parts import TIMM_KINDS, plain_clip, timm_config, timm_towers

from pipeline.model.backbone import Backbone, BackboneError
from pipeline.model.loading import load_backbone
from pipeline.model.text_side import TextRules, encode, pooled_token, slot_start
from pipeline.model.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()
import open_clip  # noqa: E402 (the line above must come first)

TEXTS = ["good photo.", "a far longer photo of something bad."]
LONE = TextRules("last", 2, causal=False)


class HuggingFace:
    """Stands for open_clip's HFTokenizer: a word is its length + 10, an end token follows, a first one may precede."""

    def __init__(self, *, first: int | None = None, end: int = 1, pad: int = 0, side: str = "right") -> None:
        self.first, self.end = first, end
        self.tokenizer = SimpleNamespace(
            bos_token_id=first, cls_token_id=None, eos_token_id=end, pad_token_id=pad, padding_side=side,
            decode=lambda tokens: "word " * len(tokens),
        )  # fmt: skip

    def __call__(self, texts: list[str], context_length: int) -> torch.Tensor:
        firsts = [] if self.first is None else [self.first]
        rows = [[*firsts, *[len(word) + 10 for word in text.split()]][: context_length - 1] for text in texts]
        rows = [[*row, self.end] for row in rows]
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (context_length - len(row)) for row in rows])


def towers(name: str, tokenizer: Any, **text: Any) -> Backbone:
    config = timm_config("map")
    config["text_cfg"] |= {"vocab_size": 64, **text}
    backbone = load_backbone(name, config=config, seed=2)
    backbone._make_tokenizer = lambda: tokenizer
    return backbone


@pytest.mark.parametrize("kind", TIMM_KINDS)
def test_without_prompts_features_are_open_clips_own(kind: str, tmp_path: Path) -> None:
    backbone, clip = timm_towers(tmp_path, kind), plain_clip(tmp_path / f"made-{kind}.json", seed=1)
    tokens = open_clip.get_tokenizer(f"made-{kind}")(TEXTS)
    with torch.no_grad():
        expected = clip.encode_text(tokens)
        torch.testing.assert_close(backbone.encode_text(tokens), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(backbone.encode_text(backbone.tokenize(TEXTS)), expected, atol=1e-5, rtol=0)
    longest = 24 if kind == "map" else max(int((row > 0).sum()) for row in tokens)
    assert backbone.tokenize(TEXTS).shape[1] == longest  # padding is cut under a causal mask alone


@pytest.mark.parametrize(
    "text",
    [
        {"pool_type": "first", "proj_bias": False},
        {"pool_type": "last", "proj_type": "none"},
        {"pool_type": "eos", "eos_id": 1},
        {"pool_type": "argmax"},
        {"pool_type": "last", "no_causal_mask": False},
        {"pool_type": "eos", "eos_id": 1, "no_causal_mask": False},
    ],
)
@pytest.mark.parametrize("custom", [False, True])
def test_every_pool_and_projection_equals_open_clips(text: dict[str, Any], custom: bool) -> None:
    name = "pool-" + "-".join(map(str, [*text.values(), custom]))
    config = timm_config("map") | {"custom_text": custom}
    config["text_cfg"] |= {"vocab_size": 64, **text}
    backbone = load_backbone(name, config=config, seed=2)
    tokens = HuggingFace(first=3)(TEXTS, context_length=24)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        expected = open_clip.create_model(name).eval().encode_text(tokens)
        torch.testing.assert_close(backbone.encode_text(tokens), expected, atol=1e-5, rtol=0)
        backbone._make_tokenizer = lambda: HuggingFace(first=3)
        torch.testing.assert_close(backbone.encode_text(backbone.tokenize(TEXTS)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", ["last", "first", "eos", "argmax"])
@pytest.mark.parametrize("first", [None, 3])
def test_prompts_that_repeat_words_change_nothing(pool: str, first: int | None) -> None:
    """Prompts equal to a word's embedding, at depth 1, give the feature of the text that begins with that word."""
    backbone = towers(f"repeats-{pool}", HuggingFace(first=first), pool_type=pool, eos_id=1)
    words, start = backbone.tokenize(["photo photo good photo."]), 0 if first is None else 1
    prompts = backbone.token_embedding(words[0, start : start + 2])[None]  # (1, 2, D_t)
    tokens = backbone.tokenize(["good photo."], slots=2)
    assert (backbone.slot_start, tokens.shape[1]) == (start, 24)
    assert tokens[0, start : start + 2].tolist() == [0, 0]
    with torch.no_grad():
        if pool == "first" and first is None:  # the first token is then a prompt, which is not what a text is read at
            words_read = pooled_token(torch.arange(24.0)[None, :, None], tokens, backbone.text_rules, 0, 2)
            assert words_read.item() == 2
        elif pool != "argmax":  # whose highest id may be one of the words that the slots now stand for
            torch.testing.assert_close(
                backbone.encode_text(tokens, prompts), backbone.encode_text(words), atol=1e-6, rtol=0
            )


def test_deep_prompts_equal_a_hand_written_pass_without_a_mask() -> None:
    backbone = towers("deep", HuggingFace())
    tokens, prompts = backbone.tokenize(TEXTS, slots=2), torch.randn(2, 2, 64)
    blocks = backbone.text_transformer.resblocks
    with torch.no_grad():
        x = torch.cat([prompts[0].expand(2, -1, -1), backbone.token_embedding(tokens[:, 2:])], 1)
        x = blocks[0](x + backbone.text_positions)
        x = blocks[2](blocks[1](torch.cat([prompts[1].expand(2, -1, -1), x[:, 2:]], 1)))
        expected = backbone.text_projection(backbone.ln_final(x)[:, -1])
        torch.testing.assert_close(backbone.encode_text(tokens, prompts), expected, atol=1e-5, rtol=0)


def test_tokens_of_hugging_face_are_whole_and_padded_as_theirs() -> None:
    assert encode(HuggingFace(), "a bc def", 24) == [11, 12, 13, 1]
    assert encode(HuggingFace(first=3, end=1, pad=1), "a bc", 24) == [3, 11, 12, 1]  # SigLIP pads with its end token
    backbone = towers("ends", HuggingFace(end=1, pad=1))
    assert backbone.tokenize(["a bc"], slots=2)[0].tolist() == [0, 0, 11, 12, *[1] * 20]
    with pytest.raises(BackboneError, match="takes 31 tokens and 2 prompt slots, and ends has room for 24: shorten"):
        backbone.tokenize(["word " * 30], slots=2)
    with pytest.raises(BackboneError, match="the tokenizer pads on the left or ends texts with a class token"):
        slot_start(HuggingFace(side="left"), 24)


def test_the_token_that_is_read_is_never_a_slot() -> None:
    x = torch.arange(6.0)[None, :, None]
    tokens = torch.tensor([[0, 0, 7, 0, 2, 2]])
    assert pooled_token(x, tokens, TextRules("eos", 0, causal=False), 0, 2).item() == 3  # though slots hold a 0, too
    assert pooled_token(x, tokens, TextRules("argmax", 0, causal=False), 0, 2).item() == 2
    assert pooled_token(x, tokens, LONE, 0, 2).item() == 5


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = timm_config("map")
    config["text_cfg"] |= {"hf_tokenizer_name": "someone/words"}
    backbone = load_backbone("foreign-words", config=config)  # scoring needs no tokenizer
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError("No module named 'transformers'", name=name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    message = "the tokenizer of foreign-words needs a package that is missing (transformers): pip install transformers"
    with pytest.raises(BackboneError, match=re.escape(message)):
        backbone.tokenize(TEXTS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_cls": True, "no_causal_mask": False}, "appends a class token to its texts or masks padding"),
        ({"pool_type": "none"}, "reads its texts by 'none' without a causal mask: prompts need one token that sees"),
        ({"pool_type": "first", "no_causal_mask": False}, "reads its texts by 'first' under a causal mask"),
    ],
)
def test_text_towers_that_prompts_cannot_use_are_refused(changes: dict[str, Any], message: str) -> None:
    config = json.loads(json.dumps(timm_config("map")))
    config["text_cfg"] |= changes
    with pytest.raises(BackboneError, match=message):
        load_backbone("refused", config=config)
