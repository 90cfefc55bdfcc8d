"""What a checkpoint from anywhere may say: hostile and damaged ones as data, each told in one line by the command."""

import copy
import importlib.util
import json
import os
import re
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.cli import main
from pipeline.model.record import (
    MOST_RANDOM,
    BackboneRecord,
    Record,
    TowersConfig,
    VisionConfig,
    faults,
    too_large,
)
from pipeline.model.torchvision_shim import ensure_torchvision_imports

Tensors = dict[str, torch.Tensor]
Change = Callable[[dict[str, Any], Tensors], None]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path) -> tuple[dict[str, Any], Tensors]:
    """Return the record and the tensors of a good checkpoint."""
    with safe_open(tiny_checkpoint, framework="pt") as archive:
        return json.loads(archive.metadata()["agiqa"]), {key: archive.get_tensor(key) for key in archive.keys()}  # noqa: SIM118


def put(path: str, value: object) -> Change:
    """Return a change that sets a field of the record, named by its path."""

    def change(record: dict[str, Any], tensors: Tensors) -> None:
        *places, last = path.split(".")
        for place in places:
            record = record[place]
        record[last] = value

    return change


def drop(path: str) -> Change:
    def change(record: dict[str, Any], tensors: Tensors) -> None:
        *places, last = path.split(".")
        for place in places:
            record = record[place]
        del record[last]

    return change


def tensor(key: str, make: Callable[[torch.Tensor], torch.Tensor | None]) -> Change:
    def change(record: dict[str, Any], tensors: Tensors) -> None:
        made = make(tensors[key])
        if made is None:
            del tensors[key]
        else:
            tensors[key] = made.contiguous()

    return change


def spoilt(values: torch.Tensor, value: float) -> torch.Tensor:
    values = values.clone()
    values.view(-1)[0] = value
    return values


def giant() -> dict[str, Any]:
    """Return the record of towers that open_clip knows, of 2.5 billion parameters."""
    place = Path(importlib.util.find_spec("open_clip").origin).with_name("model_configs")
    return {
        "name": "ViT-bigG-14", "pretrained": None, "origin": "random", "weights_sha256": "0" * 64, "image_size": 224,
        "patch_size": 14, "quick_gelu": False, "seed": 0,
        "config": json.loads((place / "ViT-bigG-14.json").read_text()),
    }  # fmt: skip


TEXT, VISION = "backbone.config.text_cfg", "backbone.config.vision_cfg"
HOSTILE: dict[str, tuple[Change, str]] = {
    # what would run code, reach the network or touch files
    "a tokenizer that runs code": (
        put(f"{TEXT}.tokenizer_kwargs", {"trust_remote_code": True}), r"text_cfg\.tokenizer_kwargs\.trust_remote_code: "
    ),
    "a tokenizer in a folder": (put(f"{TEXT}.hf_tokenizer_name", "../tok"), r"text_cfg\.hf_tokenizer_name: "),
    "a tokenizer by absolute path": (put(f"{TEXT}.hf_tokenizer_name", "/tmp/tok"), r"text_cfg\.hf_tokenizer_name: "),
    "a text tower from a hub": (put(f"{TEXT}.hf_model_name", "roberta-base"), r"text_cfg\.hf_model_name: Extra"),
    "an image tower from a hub": (put(f"{VISION}.timm_model_name", "hf-hub:a/b"), r"timm_model_name: .* is no plain"),
    "an image tower in a folder": (put(f"{VISION}.timm_model_name", "local-dir:a"), r"timm_model_name: .* no plain"),
    "pretrained weights of timm's": (put(f"{VISION}.timm_model_pretrained", True), r"timm_model_pretrained: "),
    "an image tower that timm does not know": (put(f"{VISION}.timm_model_name", "vit_of_mine"), r"timm does not know"),
    "a name on a hub": (put("backbone.name", "hf-hub:someone/model"), r"backbone\.name: .* is no plain name"),
    "a name on a disk": (put("backbone.name", "local-dir:model"), r"backbone\.name: .* is no plain name"),
    "a name that climbs": (put("backbone.name", "../../x/settings"), r"backbone\.name: .* is no plain name"),
    "a name with a drive": (put("backbone.name", "C:\\x"), r"backbone\.name: .* is no plain name"),
    "an empty name": (put("backbone.name", ""), r"backbone\.name: .* is no plain name"),
    "a long name": (put("backbone.name", "a" * 300), r"backbone\.name: String should have at most 100"),
    "a name of open_clip's with other towers": (put("backbone.name", "ViT-B-32"), r"not those of open_clip's ViT-B-32"),
    "an unknown tower option": (put(f"{VISION}.run", "me"), r"vision_cfg\.run: Extra inputs"),
    "an unknown option of a layer": (put(f"{VISION}.act_kwargs", {"fn": 1}), r"vision_cfg\.act_kwargs"),
    # what would take the machine's memory
    "giant towers": (put(f"{VISION}.layers", 100_000), r"vision_cfg\.layers: "),
    "wide towers": (put(f"{VISION}.width", 16384), r"is not built: its towers would have [\d,]+ parameters"),
    "many parameters": (put(f"{TEXT}.width", 16000), r"vocab_size x width of text_cfg is 790,528,000"),
    "giant towers of open_clip's": (put("backbone", giant()), r"ViT-bigG-14 .* is not built: its towers .* 2,4"),
    "a giant that a small file vouches for": (
        put("backbone", giant() | {"file": "given.safetensors", "pretrained": "given.safetensors"}),
        r"ViT-bigG-14 .* is not built: its towers would have 2,4.* and a weights file of [\d,]+ bytes allow",
    ),
    "a giant vocabulary": (put(f"{TEXT}.vocab_size", 10**9), r"text_cfg\.vocab_size: "),
    "a giant window": (put("windows.window_size", 10**6), r"windows\.window_size: "),
    "a giant image tower of timm's": (put(f"{VISION}.timm_model_name", "vit_giant_patch14_clip_224"), r"is not built"),
    # numbers that would bend a score
    "no adapter ratio but NaN": (put("residual_ratio", float("nan")), r"residual_ratio: "),
    "an adapter ratio of 5": (put("residual_ratio", 5), r"residual_ratio: .* less than or equal to 1"),
    "a negative ratio": (put("residual_ratio", -0.1), r"residual_ratio: "),
    "a reversed scale": (put("mos_low", 9.0), r"mos_low is 9 and mos_high 5: a scale rises"),
    "an infinite scale": (put("mos_high", float("inf")), r"mos_high: .* finite"),
    "a scale of NaN": (put("mos_low", float("nan")), r"mos_low: .* finite"),
    "a scale as text": (put("mos_low", "1"), r"mos_low: "),
    "a NaN mean": (put("windows.mean", [float("nan"), 0.5, 0.5]), r"windows\.mean\.0: "),
    "two means": (put("windows.mean", [0.5, 0.5]), r"windows\.mean: .* at least 3"),
    "a zero deviation": (put("windows.std", [0.0, 0.25, 0.25]), r"windows\.std\.0: "),
    "a stride of -1": (put("windows.stride", -1), r"windows\.stride: .* greater than or equal to 1"),
    "a stride of 0": (put("windows.stride", 0), r"windows\.stride: "),
    "a broken stride": (put("windows.stride", 1.5), r"windows\.stride: "),
    "an unknown cover": (put("windows.cover", "some"), r"windows\.cover: .* 'all' or 'reference'"),
    "another window than the tower's": (put("windows.window_size", 64), r"windows\.window_size is 64, and .* takes 32"),
    "40 prompt layers": (put("prompt_depth", 40), r"prompt_depth is 40, and the image tower has 3 layers"),
    "no prompt layer": (put("prompt_depth", 0), r"prompt_depth is 0 and prompt_length"),
    "a prompt length that is not the tensor's": (put("prompt_length", 9), r"visual_prompts has shape"),
    "a depth as truth": (put("prompt_depth", True), r"prompt_depth: "),
    # records that are none
    "no windows": (drop("windows"), r"windows: Field required"),
    "no stride": (drop("windows.stride"), r"windows\.stride: Field required"),
    "no backbone": (drop("backbone"), r"backbone: Field required"),
    "no hash": (drop("backbone.weights_sha256"), r"backbone\.weights_sha256: Field required"),
    "a hash that is none": (put("backbone.weights_sha256", "me"), r"backbone\.weights_sha256: "),
    "another hash": (put("backbone.weights_sha256", "0" * 64), r"are not those that the checkpoint was trained with"),
    "no scale": (drop("mos_high"), r"mos_high: Field required"),
    "no texts": (drop("texts"), r"texts: Field required"),
    "one text": (put("texts", ["good"]), r"it compares with one text"),
    "a text that is a number": (put("texts", [1, 2]), r"texts\.0: "),
    "a data set with an escape": (put("dataset", "demo\x1b[2J"), r"dataset: holds a control character"),
    "a method of two lines": (put("method", "a\nb"), r"method: holds a control character"),
    "a backbone that is a list": (put("backbone", []), r"backbone: "),
    "towers that are a text": (put("backbone.config", "x"), r"backbone\.config: "),
    "towers without widths": (put("backbone.config", {}), r"embed_dim: Field required"),
    "raters that nobody knows": (put("raters", "experts"), r"raters: .* 'people' or 'simulated'"),
    "raters that are none": (put("raters", None), r"raters: "),
    "a negative error of generators": (put("generator_error", -0.1), r"generator_error: .* greater than or equal to 0"),
    "an infinite error of generators": (put("generator_error", float("inf")), r"generator_error: .* finite"),
    "an error of uncalibrated scores": (put("generator_error", 0.1), r"generator_error is of calibrated scores"),
    "no generators": (put("generators", 0), r"generators: .* greater than or equal to 1"),
    "another origin": (put("backbone.origin", "the web"), r"backbone\.origin: "),
    "a negative seed": (put("backbone.seed", -1), r"backbone\.seed: "),
    "another format": (put("format", "agiqa-folded-9"), r"has format 'agiqa-folded-9', and 'agiqa-folded-1' is read"),
    # tensors
    "NaN prompts": (tensor("visual_prompts", lambda x: spoilt(x, float("nan"))), r"visual_prompts holds values that"),
    "infinite texts": (tensor("text_features", lambda x: spoilt(x, float("inf"))), r"text_features holds values that"),
    "a NaN adapter": (tensor("adapter.down", lambda x: spoilt(x, float("nan"))), r"adapter\.down holds values"),
    "an infinite adapter": (tensor("adapter.up", lambda x: spoilt(x, float("-inf"))), r"adapter\.up holds values that"),
    "no prompts": (tensor("visual_prompts", lambda x: None), r"it lacks visual_prompts"),
    "no adapter": (tensor("adapter.up", lambda x: None), r"it lacks adapter\.up"),
    "prompts of another tower": (tensor("visual_prompts", lambda x: x[..., :8]), r"visual_prompts has shape"),
    "three texts": (tensor("text_features", lambda x: x.repeat(2, 1)[:3]), r"text_features has shape \(3, 32\)"),
    "whole numbers": (tensor("text_features", lambda x: x.to(torch.int32)), r"text_features holds int32"),
    "an odd adapter": (tensor("adapter.down", lambda x: x.repeat(4, 1)[:13]), r"adapter\.down has 13 rows, which"),
    "a flat adapter": (tensor("adapter.down", lambda x: x.view(-1)), r"adapter\.down has"),
    "an adapter that no ratio names": (put("residual_ratio", None), r"adapter\.down is there, and there is no"),
    "a tensor of its own": (
        lambda record, tensors: tensors.update(payload=torch.zeros(3)), r"it holds a tensor 'payload', which is none"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_one_line_and_touches_nothing(
    name: str,
    whole: tuple[dict[str, Any], Tensors],
    in_tmp: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    change, message = HOSTILE[name]
    record, tensors = copy.deepcopy(whole[0]), dict(whole[1])
    change(record, tensors)
    save_file(tensors, in_tmp / "given.safetensors", metadata={"agiqa": json.dumps(record)})
    told(in_tmp, message, capsys, monkeypatch)


def told(folder: Path, message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Assert that scoring with given.safetensors says one line, and neither connects, writes nor runs anything."""
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(folder / "one.png")
    (folder / "tok").mkdir()
    (folder / "tok" / "tok.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    before = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))

    def no_network(*words: object) -> None:
        raise AssertionError("a checkpoint reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    capsys.readouterr()
    assert main(["score", "one.png", "--checkpoint", "given.safetensors"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("agiqa: error: ")

    assert re.search(message, errors[0]), errors[0]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == before


def header(length: int, text: bytes = b"") -> bytes:
    return struct.pack("<Q", length) + text


BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", r"given\.safetensors is damaged"),
    "a header of a gigabyte": (header(2**30, b"{}"), r"its header would take 1,073,741,824 bytes"),
    "a header of all bytes": (header(2**64 - 1), r"its header would take"),
    "a header beyond the end": (header(1000, b"{}"), r"is damaged or no safetensors file"),
    "a record that is a list": (
        (lambda text: header(len(text), text))(json.dumps({"__metadata__": {"agiqa": "[]"}}).encode()),
        r"has format 'list'",
    ),
    "a record that is no JSON": (
        (lambda text: header(len(text), text))(json.dumps({"__metadata__": {"agiqa": "{"}}).encode()),
        r"is damaged",
    ),
    "a record of brackets": (
        (lambda text: header(len(text), text))(json.dumps({"__metadata__": {"agiqa": "[" * 200_000}}).encode()),
        r"is damaged",
    ),
    "a pickle": (b"\x80\x04\x95" + bytes(40), r"its header would take|is damaged"),
    "a zip": (b"PK\x03\x04" + bytes(60), r"its header would take|is damaged"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", r"is a pointer of Git LFS in"),
    "text": (b"<html>not a checkpoint</html>" * 9, r"its header would take"),
}


@pytest.mark.parametrize("name", BYTES)
def test_bytes_that_are_no_checkpoint_are_one_line(
    name: str, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, message = BYTES[name]
    (in_tmp / "given.safetensors").write_bytes(data)
    told(in_tmp, message, capsys, monkeypatch)


def test_open_clips_own_vits_and_what_this_study_writes_are_taken(whole: tuple[dict[str, Any], Tensors]) -> None:
    assert faults(Record, whole[0]) == []
    assert faults(BackboneRecord, whole[0]["backbone"]) == []
    ensure_torchvision_imports()
    import open_clip

    siglip = [name for name in open_clip.list_models() if name.startswith("ViT-") and "SigLIP" in name]
    assert len(siglip) == 26
    for name in ("ViT-B-32", "ViT-L-14", "MobileCLIP-B", "ViT-bigG-14", "ViT-bigG-14-worldwide", *siglip):
        config = open_clip.get_model_config(name)
        assert faults(TowersConfig, config) == [], name
    assert faults(VisionConfig, {"layers": [3, 4, 6, 3]}) != []  # a ResNet


def test_the_parameters_are_about_those_that_are_built(whole: tuple[dict[str, Any], Tensors]) -> None:
    """The published counts of open_clip's models are the oracle."""
    ensure_torchvision_imports()
    import open_clip

    for name in ("ViT-B-32", "ViT-B-16"):
        config = open_clip.get_model_config(name)
        built = sum(part.numel() for part in open_clip.create_model(name).parameters())
        table = config["text_cfg"]["vocab_size"] * config["text_cfg"]["width"]
        assert TowersConfig.model_validate(config).parameters() == pytest.approx(built - table, rel=0.02)
    assert too_large(whole[0]["backbone"]["config"], None) is None
    assert "random weights allow" in too_large(open_clip.get_model_config("ViT-H-14"), None)
    assert too_large(open_clip.get_model_config("ViT-H-14"), 2 * 10**9) is None
    assert MOST_RANDOM > 304_000_000


@pytest.mark.parametrize(
    ("name", "parameters", "table"),
    [("ViT-gopt-16-SigLIP2-384", 1_871_885_426, 294_912_000), ("ViT-H-14-worldwide", 1_858_783_745, 923_394_048)],
)
def test_large_towers_want_a_file_that_vouches_for_them(name: str, parameters: int, table: int) -> None:
    """Published counts; the published files are in half or single precision."""
    ensure_torchvision_imports()
    import open_clip
    import timm

    config = open_clip.get_model_config(name)
    text = config["text_cfg"]
    assert text["vocab_size"] * text["width"] == pytest.approx(table, rel=1e-3)
    trunk = config["vision_cfg"].get("timm_model_name")
    with torch.device("meta"):
        within = sum(part.numel() for part in timm.create_model(trunk).parameters()) if trunk else 0
    assert too_large(config, 2 * parameters, within) is None
    assert "and random weights allow 400,000,000" in too_large(config, None, within)
    assert "bytes allow" in too_large(config, parameters // 4, within)


def test_a_header_of_a_gigabyte_takes_no_memory(in_tmp: Path) -> None:
    """A sparse file that is as long as its header says: nothing of it is read."""

    path = in_tmp / "given.safetensors"
    with path.open("wb") as stream:
        stream.write(header(2**30))
        stream.truncate(2**30 + 8)
    script = (
        "import resource, sys; from pipeline.model.checkpoint import read_record\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: read_record('given.safetensors')\n"
        "except ValueError as error: print(error)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    said, grown = done.stdout.splitlines()
    assert "its header would take 1,073,741,824 bytes" in said
    assert int(grown) < 20_000  # KiB
