"""The fast tower of timm's ViTs against the plain pass over timm's own modules, and what has no fast tower."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_parts import timm_towers
from torch import nn

from pipeline.model.image_side import image_features
from pipeline.model.image_weights import image_weights
from pipeline.model.stems import vit_192_convstem_128
from pipeline.model.torchvision_shim import ensure_torchvision_imports
from pipeline.model.tower import FastTower

ensure_torchvision_imports()


class Visual(nn.Module):
    """What open_clip makes of a trunk of timm's: the trunk, and a head of its own behind a dropout."""

    def __init__(self, trunk: nn.Module, embed_dim: int, *, bias: bool) -> None:
        super().__init__()
        trunk.reset_classifier(0)
        self.trunk, self.image_size = trunk, trunk.patch_embed.img_size
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(trunk.embed_dim, embed_dim, bias=bias))


def tower(*, bias: bool = False, trunk: Callable[..., nn.Module] | None = None, **changes: Any) -> Visual:
    """Return a tiny random tower whose every number matters."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 2, "global_pool": "token"}
    torch.manual_seed(3)
    visual = Visual((trunk or VisionTransformer)(**({} if trunk else sizes) | changes), 24, bias=bias).eval()
    with torch.no_grad():
        for parameter in visual.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for norm in (part for part in visual.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2)
    return visual.requires_grad_(False)


FOLDED = {
    "patches": {},
    "class token without a position": {"no_embed_class": True},
    "norm before the layers": {"pre_norm": True},
    "layer scale": {"init_values": 0.5},
    "a head with a bias": {"bias": True},
    "a padded stem": {"trunk": vit_192_convstem_128},
}


@pytest.mark.parametrize("kind", FOLDED)
def test_features_equal_the_plain_pass_over_timms_modules(kind: str) -> None:
    visual = tower(**FOLDED[kind])
    side, width = visual.image_size[0], visual.trunk.embed_dim
    fast = FastTower(image_weights(visual, side))
    images, prompts = torch.randn(3, 3, side, side), torch.randn(2, 2, 4, width)
    with torch.no_grad():
        found = fast(fast.tokens(fast.embed(images)), prompts)
        expected = torch.cat([image_features(visual, images, group) for group in prompts])
        bare = visual.head(visual.trunk.forward_head(visual.trunk.forward_features(images)))
        torch.testing.assert_close(fast(fast.tokens(fast.embed(images)), prompts[:1, :0]), bare, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["patches", "a padded stem"])
def test_windows_of_an_image_are_embedded_as_if_alone(kind: str) -> None:
    """A padded stem sees zeros beyond a window, so windows must not share what it makes of an image."""
    visual = tower(**FOLDED[kind])
    side = visual.image_size[0]
    fast, image = FastTower(image_weights(visual, side)), torch.randn(3, side + 16, side + 24)
    origins = [(0, 0), (8, 16), (16, 24), (5, 3)]
    alone = torch.stack([image[:, top : top + side, left : left + side] for top, left in origins])
    torch.testing.assert_close(fast.window_tokens(image, origins), fast.tokens(fast.embed(alone)), atol=1e-5, rtol=1e-5)
    assert fast.patch_size == (16 if kind == "a padded stem" else 8)


@pytest.mark.parametrize(
    "changes",
    [
        {"qk_norm": True}, {"reg_tokens": 2}, {"global_pool": "avg", "class_token": False}, {"qkv_bias": False},
        {"act_layer": nn.SiLU}, {"fc_norm": True}, {"pos_embed": "none"},
    ],
    ids=str,
)  # fmt: skip
def test_a_tower_that_does_more_has_no_fast_one(changes: dict[str, Any]) -> None:
    assert image_weights(tower(**changes), 32) is None


@pytest.mark.parametrize(("kind", "folds"), [("map", False), ("stem", True)])
def test_a_backbone_says_whether_it_has_a_fast_tower_and_its_weights_stay_what_they_are(
    kind: str, folds: bool, tmp_path: Path
) -> None:
    backbone = timm_towers(tmp_path, kind)
    before = set(backbone.state_dict())
    assert (backbone.fast_tower() is not None) == folds
    assert set(backbone.state_dict()) == before
