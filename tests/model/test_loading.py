"""Backbones by name, tag, file and record, against plain open_clip; and what is refused."""

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from made_parts import RULE, SAID, model_of, plain_clip, timm_config
from safetensors.torch import save_file

from pipeline.model.backbone import Backbone, BackboneError
from pipeline.model.checkpoint import load_checkpoint, read_record, save_checkpoint
from pipeline.model.folded import fold
from pipeline.model.loading import _trusted_config, load_backbone, rebuild_backbone
from pipeline.model.record import without_tokenizer
from pipeline.model.torchvision_shim import ensure_torchvision_imports

ensure_torchvision_imports()
import open_clip  # noqa: E402 (the line above must come first)


def test_random_weights_follow_the_seed_and_leave_the_global_one_alone(tiny_config: Path) -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = load_backbone("tiny-vit", config=tiny_config, seed=1)
    assert torch.rand(1) == expected
    assert first.weights_sha256 == load_backbone("tiny-vit", config=tiny_config, seed=1).weights_sha256
    assert first.weights_sha256 != load_backbone("tiny-vit", config=tiny_config, seed=2).weights_sha256
    assert first.origin == "random"


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_file_round_trip(tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path, suffix: str) -> None:
    state = {key: value.contiguous() for key, value in plain_clip(tiny_config, seed=1).state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    loaded = load_backbone("tiny-vit", config=tiny_config, file=path, origin="in-house", seed=9)
    assert loaded.weights_sha256 == tiny_backbone.weights_sha256
    told_apart = {"pretrained": None, "origin": "random", "file": None, "seed": 1}
    assert loaded.record()["file"] == str(path)
    assert loaded.record() | told_apart == tiny_backbone.record()


def test_reduced_vocabulary_is_expanded_and_guarded(tiny_config: Path, tmp_path: Path) -> None:
    state = plain_clip(tiny_config, seed=1).state_dict()
    rows = open_clip.get_tokenizer("tiny-vit")(["good bad photo."])[0].unique()
    full = state["token_embedding.weight"]
    save_file(
        {**{key: value.contiguous() for key, value in state.items()},
         "token_embedding.weight": full[rows].contiguous(), "token_embedding.rows": rows.int()},
        tmp_path / "small.safetensors",
    )  # fmt: skip
    backbone = load_backbone("tiny-vit", config=tiny_config, file=tmp_path / "small.safetensors", origin="in-house")
    torch.testing.assert_close(backbone.token_embedding.weight[rows], full[rows])
    message = "text 'good elephant' uses 'elephant', which the reduced vocabulary of tiny-vit (small.safetensors)"
    with pytest.raises(BackboneError, match=re.escape(message)):
        backbone.tokenize(["good elephant"])


def test_refusals_say_what_would_be_right(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"backbone\.name is 'ViT-Z', which open_clip does not know"):
        load_backbone("ViT-Z")
    with pytest.raises(
        BackboneError, match=r"backbone\.pretrained is 'opnai', which ViT-B-32 does not have; it has: .*openai"
    ):
        load_backbone("ViT-B-32", pretrained="opnai")
    with pytest.raises(BackboneError, match="ViT-B-32 openai was trained with 'quickgelu': use that, or null"):
        load_backbone("ViT-B-32", pretrained="openai", activation="gelu")
    (tmp_path / "other.json").write_text(json.dumps(TINY))
    with pytest.raises(BackboneError, match=re.escape("backbone.config is other.json, and backbone.name 'tiny-vit'")):
        load_backbone("tiny-vit", config=tmp_path / "other.json")
    save_file({"visual.proj": torch.zeros(2, 2)}, tmp_path / "bad.safetensors")
    with pytest.raises(
        BackboneError, match=r"does not fit the towers: it lacks .*; it has other shapes of visual\.proj"
    ):
        load_backbone("tiny-vit", config=tiny_config, file=tmp_path / "bad.safetensors", origin="in-house")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda whole: whole[: len(whole) // 2], "is cut off, damaged or no file of weights ("),
        (lambda whole: b"", "is cut off, damaged or no file of weights ("),
        (lambda whole: b"<!DOCTYPE html><html>", "is cut off, damaged or no file of weights ("),
        (
            lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a pointer of Git LFS in place",
        ),
    ],
    ids=["half", "empty", "page", "pointer"],
)
def test_a_file_that_holds_no_weights_is_one_line(
    tiny_config: Path, tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    file = tmp_path / f"weights{suffix}"
    state = {key: value.contiguous() for key, value in plain_clip(tiny_config, seed=1).state_dict().items()}
    save_file(state, file) if suffix == ".safetensors" else torch.save(state, file)
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(BackboneError, match=f"^backbone.file is {re.escape(f'{file}, which {message}')}") as error:
        load_backbone("tiny-vit", config=tiny_config, file=file)
    assert "\n" not in str(error.value)


def test_a_file_that_holds_other_things_than_tensors_is_refused(tiny_config: Path, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "other.pt")
    with pytest.raises(BackboneError, match=r"which holds no tensor as epoch, lr: no weights$"):
        load_backbone("tiny-vit", config=tiny_config, file=tmp_path / "other.pt")


def test_published_weights_without_network_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", no_network)
    message = (
        r"the weights of ViT-B-32 openai could not be downloaded .*set backbone\.file to .*activation to quickgelu"
    )
    with pytest.raises(BackboneError, match=message):
        load_backbone("ViT-B-32", pretrained="openai")


def test_a_backbone_is_rebuilt_from_its_record(tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path) -> None:
    random = json.loads(json.dumps(tiny_backbone.record()))
    assert rebuild_backbone(random).weights_sha256 == tiny_backbone.weights_sha256
    state = {key: value.contiguous() for key, value in plain_clip(tiny_config, seed=4).state_dict().items()}
    (tmp_path / "here").mkdir()
    save_file(state, tmp_path / "here" / "w.safetensors")
    trained = load_backbone(
        "tiny-vit", config=tiny_config, file=tmp_path / "here" / "w.safetensors", origin="in-house", activation="gelu"
    )
    record = json.loads(json.dumps(trained.record())) | {"file": "here/w.safetensors"}
    rebuilt = rebuild_backbone(record, folders=[tmp_path / "nowhere", tmp_path])
    assert rebuilt.record() == trained.record()  # the activation, too, though the configuration says QuickGELU
    assert rebuild_backbone(record, file=tmp_path / "here" / "w.safetensors").weights_sha256 == record["weights_sha256"]
    message = f"trained with here/w.safetensors, and there is no {tmp_path}/nowhere/here/w.safetensors. Give the file"
    with pytest.raises(BackboneError, match=re.escape(message)):
        rebuild_backbone(record, folders=[tmp_path / "nowhere"])
    save_file(plain_clip(tiny_config, seed=5).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"other\.safetensors are not those that the checkpoint was trained with"):
        rebuild_backbone(record, file=tmp_path / "other.safetensors")
    with pytest.raises(BackboneError, match=r"cannot be built: the weights of ViT-B-32 openai could not be downloaded"):
        rebuild_backbone(
            {
                "name": "ViT-B-32", "pretrained": "openai", "origin": "pretrained", "quick_gelu": True,
                "weights_sha256": "0" * 64, "image_size": 224, "patch_size": 32,
            }
        )  # fmt: skip


def test_records_of_earlier_versions_find_the_backbones_folder(tiny_config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backbones" / "own"
    folder.mkdir(parents=True)
    (folder / "tiny-vit.json").write_text(tiny_config.read_text())
    save_file(plain_clip(tiny_config, seed=6).state_dict(), folder / "w.safetensors")
    trained = load_backbone(
        "tiny-vit", config=folder / "tiny-vit.json", file=folder / "w.safetensors", origin="in-house"
    )
    new = ("config", "quick_gelu", "file", "seed")
    old = {key: value for key, value in trained.record().items() if key not in new}
    assert rebuild_backbone(old, folders=[tmp_path]).record() == trained.record()
    old |= {"name": "ViT-B-32"}
    with pytest.raises(BackboneError, match="did not record the activation"):
        rebuild_backbone(old, file=folder / "w.safetensors")


def foreign(**text: Any) -> dict[str, Any]:
    """Return small towers of SigLIP's kind that name a tokenizer on a hub."""
    config = timm_config("map")
    config["text_cfg"] |= {"vocab_size": 300, "hf_tokenizer_name": "someone/words", **text}
    return config


def save_tokenizer(folder: Path, pad: str) -> Any:
    """Write a tokenizer as small as can be, which ends texts like SigLIP's, and return it; pad is <pad> or </s>."""
    transformers = pytest.importorskip("transformers", reason="it is no dependency: `pip install transformers`")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(["good photo. bad photo. aligned misaligned"], trainers.BpeTrainer(special_tokens=special))
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    whole = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", pad_token=pad, eos_token="</s>", padding_side="right"
    )
    whole.save_pretrained(folder)
    return whole


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])  # SigLIP 2's and SigLIP's
def test_a_tokenizer_in_a_folder_is_read_as_open_clip_reads_it(pad: str, tmp_path: Path) -> None:
    own = save_tokenizer(tmp_path / "words", pad)
    name = f"words-{own.pad_token_id}"
    backbone = load_backbone(name, config=foreign(), tokenizer=tmp_path / "words", seed=2)
    texts = ["good photo.", "misaligned photo."]
    ids = own(texts, padding="max_length", max_length=24).input_ids
    assert backbone.tokenize(texts).tolist() == ids
    assert backbone.slot_start == 0
    with torch.random.fork_rng():
        torch.manual_seed(2)
        clip = open_clip.create_model(name).eval()
    with torch.no_grad():
        expected = clip.encode_text(open_clip.tokenizer.HFTokenizer(str(tmp_path / "words"), context_length=24)(texts))
        torch.testing.assert_close(backbone.encode_text(backbone.tokenize(texts)), expected, atol=1e-5, rtol=0)
    slots = backbone.tokenize(texts, slots=2).tolist()
    assert slots == [[0, 0, *row[:22]] for row in ids]


def test_a_checkpoint_names_no_tokenizer_and_scores_without_one(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "words", "<pad>")
    backbone = load_backbone("words-kept", config=foreign(), tokenizer=tmp_path / "words", seed=2)
    path, scorer = tmp_path / "epoch-001.safetensors", fold(model_of(backbone))
    save_checkpoint(path, scorer, {"windows": RULE.record(), **SAID})
    assert str(tmp_path) not in path.read_bytes().decode("latin-1")
    rebuilt = rebuild_backbone(read_record(path)["backbone"])
    loaded, _, _ = load_checkpoint(path, rebuilt)
    assert "tokenizer" not in vars(rebuilt)  # a cached property: nobody asked for it
    assert torch.equal(loaded.text_features, scorer.text_features)


def test_what_is_wrong_with_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "words", "<pad>")
    small = load_backbone("few-words", config=foreign(vocab_size=8), tokenizer=tmp_path / "words")
    with pytest.raises(
        BackboneError, match=r"^the tokenizer gives text 'good photo.' the token \d+, and few-words knows 8: "
    ):
        small.tokenize(["good photo."])
    (tmp_path / "words" / "tokenizer.json").write_text("{")
    backbone = load_backbone("torn-words", config=foreign(), tokenizer=tmp_path / "words")
    with pytest.raises(BackboneError, match=r"^backbone\.tokenizer is .*, whose files cannot be read as a .* \(\w+\)$"):
        backbone.tokenize(["good photo."])
    hub = load_backbone("hub-words", config=foreign())  # conftest.py says HF_HUB_OFFLINE
    message = (
        r"^the tokenizer someone/words of hub-words is neither here nor downloadable: fetch its tokenizer\.json and "
        r"tokenizer_config\.json on a machine with network, and name their folder under backbone\.tokenizer$"
    )
    with pytest.raises(BackboneError, match=message):
        hub.tokenize(["good photo."])


def test_a_tokenizer_that_cannot_serve_is_refused_before_anything_is_built(tiny_config: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BackboneError, match=r"backbone\.tokenizer is .*, and tiny-vit has CLIP's own tokenizer: say null"
    ):
        load_backbone("tiny-vit", config=tiny_config, tokenizer=tmp_path)
    with pytest.raises(
        BackboneError, match=r"backbone\.tokenizer is .*/no, which holds no tokenizer_config\.json: name"
    ):
        load_backbone("no-words", config=foreign(), tokenizer=tmp_path / "no")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="transformers is here")
@pytest.mark.parametrize("folder", [True, False])
def test_without_transformers_one_line_says_what_to_install(folder: bool, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    backbone = load_backbone("absent", config=foreign(), tokenizer=tmp_path if folder else None)
    message = "the tokenizer of absent needs a package that is missing (transformers): pip install transformers"
    with pytest.raises(BackboneError, match=f"^{re.escape(message)}$"):
        backbone.tokenize(["good photo."])


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP2", "MobileCLIP-B"])
def test_a_record_of_open_clips_own_towers_takes_their_configuration_whatever_the_tokenizer(name: str) -> None:
    config = open_clip.get_model_config(name)
    assert _trusted_config(name, config, None, known=False) is None
    assert _trusted_config(name, without_tokenizer(config), None, known=False) is None
    config["text_cfg"]["layers"] = 11
    with pytest.raises(BackboneError, match=f"calls its towers {name}, and they are not those of open_clip's {name}"):
        _trusted_config(name, config, None, known=False)
