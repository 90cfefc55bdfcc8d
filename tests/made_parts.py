"""Small towers, models, images and studies for tests: what more than one test file builds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from pipeline.data.pixels import PixelPack
from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.loading import load_backbone
from pipeline.model.torchvision_shim import ensure_torchvision_imports
from pipeline.model.windows import WindowRule
from pipeline.training.crops import Subset

ROOT = Path(__file__).resolve().parent.parent
RULE = WindowRule(32, 32, "all", "clip", mean=(0.5,) * 3, std=(0.25,) * 3)

# What a checkpoint says of itself, beside its windows and its towers.
SAID = {
    "texts": ["good photo.", "bad photo."], "mos_low": 0.0, "mos_high": 5.0, "dataset": "demo", "method": "dcmpln",
    "target": "quality", "leaks": [],
}  # fmt: skip


def plain_clip(config: Path, seed: int) -> torch.nn.Module:
    """Return open_clip's own model of a configuration file, with the weights that `load_backbone` draws, too."""
    ensure_torchvision_imports()
    import open_clip

    open_clip.add_model_config(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.create_model(config.stem).eval()


def unneutral(backbone: Backbone, seed: int) -> Backbone:
    """Move a backbone's norms and scales away from their neutral values, which would hide what leaves them out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, value in backbone.visual.named_parameters():
            if "ln_" in key or key.endswith(("bias", "gamma")):
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return backbone


def tower_of(folder: Path, seed: int) -> Backbone:
    """Build random towers of random shapes, whose norms and scales are not at their neutral values."""
    draw = np.random.default_rng(seed)
    patch, side = int(draw.choice([4, 8, 14])), int(draw.integers(2, 5))
    config = {
        "embed_dim": int(draw.choice([16, 48])),
        "quick_gelu": bool(draw.integers(2)),
        "vision_cfg": {
            "image_size": patch * side, "layers": int(draw.integers(1, 5)), "width": 64 * int(draw.integers(1, 3)),
            "head_width": 32, "patch_size": patch, "no_ln_pre": bool(draw.integers(2)),
            "ls_init_value": 0.3 if draw.integers(2) else None,
        },
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 4},
    }  # fmt: skip
    name = f"random-{seed}"
    (folder / f"{name}.json").write_text(json.dumps(config))
    return unneutral(load_backbone(name, config=folder / f"{name}.json", seed=seed), seed)


def unfoldable(folder: Path) -> Backbone:
    """Build random towers whose activation, GELU by tanh, is none that the fast tower knows."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "image_size": 32, "layers": 3, "width": 64, "head_width": 64, "patch_size": 8,
            "act_kwargs": {"approximate": "tanh"},
        },
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3},
    }  # fmt: skip
    (folder / "gelu-by-tanh.json").write_text(json.dumps(config))
    return unneutral(load_backbone("gelu-by-tanh", config=folder / "gelu-by-tanh.json", seed=1), 1)


TIMM_KINDS = ("map", "stem")


def timm_config(kind: str) -> dict[str, Any]:
    """Return towers that run in milliseconds and are made of the classes of SigLIP (`map`) or MobileCLIP-B (`stem`)."""
    _know_tiny_trunks()
    vision = {"image_size": 32, "timm_model_name": f"vit_made_{kind}_32", "timm_model_pretrained": False}
    text = {"context_length": 24, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 3}
    if kind == "stem":
        vision |= {"timm_pool": "token", "timm_proj": None, "timm_drop": 0.0, "timm_drop_path": 0.0}
        return {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text, "custom_text": True}
    vision |= {"timm_pool": "map", "timm_proj": "none"}
    text |= {
        "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        "act_kwargs": {"approximate": "tanh"},
    }  # fmt: skip
    return {"embed_dim": 64, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}


def timm_towers(folder: Path, kind: str) -> Backbone:
    """Build random towers of `timm_config`."""
    name = f"made-{kind}"
    (folder / f"{name}.json").write_text(json.dumps(timm_config(kind)))
    return load_backbone(name, config=folder / f"{name}.json", seed=1)


def _know_tiny_trunks() -> None:
    """Make two tiny ViTs known to timm: without a class token behind patches, and with one behind a stem."""
    ensure_torchvision_imports()
    from timm.models import is_model, register_model
    from timm.models.vision_transformer import VisionTransformer, _create_vision_transformer
    from timm.models.vision_transformer_hybrid import ConvStem, _create_vision_transformer_hybrid

    def vit_made_map_32(pretrained: bool = False, **changes: Any) -> VisionTransformer:
        sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 1, "class_token": False}
        return _create_vision_transformer(
            "vit_base_patch16_siglip_224", pretrained=pretrained, **{**sizes, "global_pool": "map", **changes}
        )

    def vit_made_stem_32(pretrained: bool = False, **changes: Any) -> VisionTransformer:
        stem = ConvStem(channels=(16, 32, 64), stride=(2, 2, 2), kernel_size=(2, 2, 2), padding=0)
        sizes = {"img_size": 32, "embed_dim": 64, "depth": 3, "num_heads": 1, "no_embed_class": True}
        return _create_vision_transformer_hybrid(
            "vit_base_mci_224", backbone=stem, embed_args={"proj": False}, pretrained=pretrained, **{**sizes, **changes}
        )

    for make in (vit_made_map_32, vit_made_stem_32):
        if not is_model(make.__name__):
            register_model(make)


def sizes_for(seed: int, backbone: Backbone) -> tuple[int, int]:
    """Draw a prompt depth that the towers allow, and a prompt length."""
    draw = np.random.default_rng([seed, 1])
    return int(draw.integers(1, min(backbone.image_layers, backbone.text_layers) + 1)), int(draw.integers(1, 6))


def model_of(backbone: Backbone, **switches: Any) -> DCMPLN:
    """Return a small model whose draw is always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return DCMPLN(backbone, **{"prompt_depth": 3, "prompt_length": 2, **switches})


def pack_of(folder: Path, images: list[np.ndarray]) -> PixelPack:
    """Write images, each (H, W, 3), uint8, into a pack."""
    (folder / "pixels.bin").write_bytes(b"".join(image.tobytes() for image in images))
    offsets = np.cumsum([0, *(image.size for image in images[:-1])])
    heights, widths = zip(*(image.shape[:2] for image in images), strict=True)
    return PixelPack(folder / "pixels.bin", offsets, heights, widths)


def noise(shapes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """Return random images of these heights and widths."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for height, width in shapes]


def bright_images() -> list[np.ndarray]:
    """Return 24 images of 40x40 whose brightness is their quality."""
    generator = np.random.default_rng(0)
    levels = np.linspace(30, 220, 24)
    images = np.clip(generator.normal(levels[:, None, None, None], 12, (24, 40, 40, 3)), 0, 255)
    return list(images.astype(np.uint8))


def bright_subsets(pack: PixelPack) -> tuple[Subset, Subset]:
    """Return train and validation of `bright_images`, the auxiliary target turned round."""
    quality = np.linspace(0.1, 0.9, 24)
    held_out = np.arange(0, 24, 4)
    train = np.setdiff1d(np.arange(24), held_out)
    return tuple(Subset(pack, rows, quality[rows], quality[::-1][rows]) for rows in (train, held_out))


def write_params(folder: Path, tiny_config: Path, **changes: Any) -> None:
    """Write a params.yaml of a study that takes seconds; `section__key=value` changes a key."""
    raw = yaml.safe_load((ROOT / "params" / "demo.yaml").read_text())
    raw["study"] |= {"name": "tiny", "variants": ["dcmpln", "clip_agiqa"], "rounds": [0, 1], "audit": ["dcmpln"]}
    raw["demo"] = {"seed": 3, "prompts": 14, "size": 64}
    raw["split"]["validation_fraction"] = 0.25
    raw["backbone"] |= {"name": "tiny-vit", "config": str(tiny_config), "file": None, "origin": None}
    raw["model"] |= {"prompt_depth": 3, "prompt_length": 2}
    raw["images"]["stride"] = 16
    raw["train"] |= {"epochs": 3, "batch_size": 16, "learning_rate": 0.01, "threads": 1}
    raw["validation"]["windows"] = 2
    for key, value in changes.items():
        section, name = key.split("__")
        raw[section][name] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(raw))


def write_prepared(folder: Path) -> pd.DataFrame:
    """Write what preprocess and split would make of `bright_images` as data set `demo`; return the manifest.

    Scores are on a scale of 1 to 5; images 0, 4, 8 ... validate, 1, 5, 9 ... test.
    """
    prepared, splits = folder / "data/prepared/demo", folder / "data/splits/demo"
    prepared.mkdir(parents=True)
    splits.mkdir(parents=True)
    pack = pack_of(prepared, bright_images())
    manifest = pd.DataFrame(
        {
            "image_id": [f"{k:02d}.png" for k in range(24)],
            "generator": ["a", "b"] * 12,
            "generation_prompt": [f"prompt {k}" for k in range(24)],
            "height": pack.heights, "width": pack.widths, "pixel_offset": pack.offsets,
            "quality": np.linspace(1.4, 4.6, 24), "alignment": np.linspace(4.6, 1.4, 24), "authenticity": np.nan,
            "mos_low": 1.0, "mos_high": 5.0, "raters": "simulated",
        }
    )  # fmt: skip
    manifest.to_parquet(prepared / "manifest.parquet", index=False)
    subset = [{0: "validation", 1: "test"}.get(k % 4, "train") for k in range(24)]
    split = pd.DataFrame({"image_id": manifest["image_id"], "group": [f"g{k}" for k in range(24)], "subset": subset})
    for name in ("round-0", "random-0"):
        split.to_csv(splits / f"{name}.csv", index=False)
    return manifest
