"""Published prompts of CLIP-AGIQA's code: all of them make a scorer, fewer make an error that names what is missing."""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.data import archives
from pipeline.model.backbone import Backbone
from pipeline.model.checkpoint import CheckpointError, load_checkpoint
from pipeline.model.dcmpln import DCMPLN
from pipeline.model.windows import WindowRule
from pipeline.scoring import released
from pipeline.scoring.released import import_release, load_released

DEPTH, LENGTH, TEXT, IMAGE = 3, 4, 64, 64


def parts(seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the two state dicts as the published code saves them, for the tiny towers.

    Prompts have 14 binary places, more than half precision keeps, and Layer F's weights 6: its sums are exact in any
    order, so that nothing but half precision rounds them.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, places: int = 14) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.2 * 2**places).round() / 2**places

    def prompts() -> dict[str, Tensor]:
        return {
            "ctx": draw(LENGTH, TEXT),
            "token_prefix": draw(2, 1, TEXT),
            "token_suffix": draw(2, 9, TEXT),
            **{f"prompts_text.{layer}": draw(LENGTH, TEXT) for layer in range(DEPTH - 1)},
            **{f"prompts_vis.{layer}": draw(LENGTH, IMAGE) for layer in range(DEPTH)},
        }

    target = prompts()
    for name in ("proj", *(f"compound_prompt_projections.{layer}" for layer in range(DEPTH - 1))):
        target |= {f"{name}.weight": draw(IMAGE, 2 * IMAGE, places=6), f"{name}.bias": draw(IMAGE)}
    return prompts(), target


def published_prompts(auxiliary: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
    """Return the main task's visual prompts, written out as the published forward pass computes them."""
    fused = [torch.cat([target["prompts_vis.0"], auxiliary["prompts_vis.0"]], 1) @ target["proj.weight"].T
             + target["proj.bias"]]  # fmt: skip
    for layer in range(1, DEPTH):
        name = f"compound_prompt_projections.{layer - 1}"
        pair = torch.cat([target[f"prompts_vis.{layer}"], auxiliary[f"prompts_vis.{layer}"]], 1)
        fused.append(pair @ target[f"{name}.weight"].T + target[f"{name}.bias"])
    return torch.stack(fused)


def published_scores(
    backbone: Backbone, auxiliary: dict[str, Tensor], target: dict[str, Tensor], windows: Tensor, *, halved: bool = True
) -> Tensor:
    """Return scores as the published code computes them, layer by layer, its towers in double precision.

    Where it writes `.half()` stands `rounded`; joining halves and singles gives singles there, too.
    """

    def rounded(prompts: Tensor) -> Tensor:
        return (prompts.half() if halved else prompts).double()

    towers = copy.deepcopy(backbone).double()
    fused = list(published_prompts(auxiliary, target))
    visual = towers.visual
    x = visual.conv1(windows.double()).flatten(2).transpose(1, 2)  # (B, patches, D_v)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, rounded(fused[0]).expand(len(x), -1, -1)], dim=1))
    for layer, block in enumerate(visual.transformer.resblocks):
        if layer:
            x = torch.cat([x[:, :-LENGTH], rounded(fused[layer]).expand(len(x), -1, -1)], dim=1)
        x = block(x)
    images = visual.ln_post(x[:, 0]) @ visual.proj

    words = backbone.tokenize(["good photo.", "bad photo."])
    words = torch.cat([words[:, :1], torch.zeros(2, LENGTH, dtype=words.dtype), words[:, 1:]], dim=1)
    x = towers.token_embedding(words)
    x = torch.cat([x[:, :1], target["ctx"].double().expand(2, -1, -1), x[:, 1 + LENGTH :]], dim=1)
    x = x + towers.text_positions[: x.shape[1]]
    mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=torch.double).triu(1)
    for layer, block in enumerate(towers.text_transformer.resblocks):
        if layer:
            prompts = rounded(target[f"prompts_text.{layer - 1}"]).expand(2, -1, -1)
            x = torch.cat([x[:, :1], prompts, x[:, 1 + LENGTH :]], dim=1)
        x = block(x, attn_mask=mask)
    texts = towers.ln_final(x)[torch.arange(2), words.argmax(dim=1)] @ towers.text_projection

    images, texts = (features / features.norm(dim=-1, keepdim=True) for features in (images, texts))
    return (towers.logit_scale.exp() * images @ texts.T).softmax(dim=-1)[:, 0]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    auxiliary, target = parts()
    paths = [tmp_path / "x_aux_best.pth", tmp_path / "x_tar_best.pth"]
    torch.save(auxiliary, paths[0])
    torch.save(target, paths[1])
    return paths


def test_both_parts_make_a_checkpoint_that_scores(tiny_backbone: Backbone, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "imported.safetensors"
    unused = import_release(files, out, tiny_backbone, dataset="agiqa3k", scale=(0, 5))
    assert unused == ["token_prefix", "token_suffix"]
    scorer, rule, record = load_checkpoint(out, tiny_backbone)
    auxiliary, target = parts()
    assert torch.equal(scorer.visual_prompts, published_prompts(auxiliary, target).half().float())
    assert not torch.equal(scorer.visual_prompts, published_prompts(auxiliary, target))
    deeper = (target[f"prompts_text.{layer}"].half().float() for layer in range(DEPTH - 1))
    texts = torch.stack([target["ctx"], *deeper])
    tokens = tiny_backbone.tokenize(["Good photo.", "Bad photo."], LENGTH)
    expected = torch.nn.functional.normalize(tiny_backbone.encode_text(tokens, texts), dim=-1)
    torch.testing.assert_close(scorer.text_features, expected, atol=1e-5, rtol=1e-5)
    assert isinstance(rule, WindowRule)
    assert (rule.stride, rule.cover, rule.normalisation) == (64, "reference", "imagenet")
    assert (record["dataset"], record["mos_high"], record["leaks"]) == ("agiqa3k", 5.0, ["epoch selected on test"])
    whole = {f"prompt_learner_aux.{key}": value for key, value in auxiliary.items()}
    whole |= {f"prompt_learner_tar.{key}": value for key, value in target.items()} | {"logit_scale": torch.ones(1)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in whole.items()}}, tmp_path / "whole.pth")
    import_release([tmp_path / "whole.pth"], tmp_path / "2.safetensors", tiny_backbone, dataset="a", scale=(0, 5))
    again, _, _ = load_checkpoint(tmp_path / "2.safetensors", tiny_backbone)
    assert torch.equal(again.visual_prompts, scorer.visual_prompts)


@pytest.mark.parametrize("seed", [0, 4, 5])  # at which single precision itself is 2e-7 to 4e-7 off
def test_scores_are_those_of_the_published_code(tiny_backbone: Backbone, tmp_path: Path, seed: int) -> None:
    """To 1e-6, from which half precision left out, or taken elsewhere, is far."""
    auxiliary, target = parts(seed)
    paths = [tmp_path / "x_aux_best.pth", tmp_path / "x_tar_best.pth"]
    torch.save(auxiliary, paths[0])
    torch.save(target, paths[1])
    import_release(paths, tmp_path / "out.safetensors", tiny_backbone, dataset="a", scale=(0, 5))
    scorer, _, _ = load_checkpoint(tmp_path / "out.safetensors", tiny_backbone)
    windows = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    scores = scorer(windows).double()
    expected = published_scores(tiny_backbone, auxiliary, target, windows)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert expected.std() > 1e-3
    single = published_scores(tiny_backbone, auxiliary, target, windows, halved=False)
    assert (single - expected).abs().max() > 1e-5
    early = [{key: value.half().float() for key, value in part.items()} for part in (auxiliary, target)]
    assert (published_scores(tiny_backbone, *early, windows) - expected).abs().max() > 1e-5


@pytest.mark.parametrize(("value", "shown"), [(1e5, "100000"), (float("nan"), "nan")])
def test_prompts_beyond_half_precision_are_refused(
    tiny_backbone: Backbone, files: list[Path], tmp_path: Path, value: float, shown: str
) -> None:
    target = parts()[1]
    target["prompts_text.0"][0, 0] = value
    torch.save(target, files[1])
    message = f"x_tar_best.pth cannot make a scorer: the text prompts reach {shown}, and half precision"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        import_release(files, tmp_path / "out.safetensors", tiny_backbone, dataset="a", scale=(0, 5))
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_missing_is_named_and_nothing_is_left_at_random(
    tiny_backbone: Backbone, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError) as error:
        import_release(files[:1], out, tiny_backbone, dataset="agiqa3k", scale=(0, 5))
    message = str(error.value)
    assert "x_aux_best.pth cannot make a scorer: the target part lacks 12 tensors: ctx, prompts_text.0" in message
    for key in parts()[1]:
        assert key in message or key.startswith("token_"), key
    assert not out.exists()
    auxiliary, target = parts()
    del auxiliary["prompts_vis.1"]
    target["proj.weight"] = torch.zeros(2, 2)
    target["surprise"] = torch.zeros(1)
    torch.save(auxiliary, files[0])
    torch.save(target, files[1])
    model = DCMPLN(tiny_backbone, mpa=False, adapter=False, prompt_depth=DEPTH, prompt_length=LENGTH)
    before = {key: value.clone() for key, value in model.learned_state().items()}
    with pytest.raises(CheckpointError) as error:
        load_released(files, model)
    for expected in (
        "the auxiliary part lacks 1 tensors: prompts_vis.1",
        "the target part holds unknown tensors: surprise",
        "proj.weight of the target part has shape (2, 2), not (64, 128)",
    ):
        assert expected in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.learned_state().items())


def test_files_that_are_no_release_are_refused(tiny_backbone: Backbone, files: list[Path], tmp_path: Path) -> None:
    def attempt(*paths: Path, scale: tuple[float, float] = (0, 5)) -> None:
        import_release(paths, tmp_path / "out.safetensors", tiny_backbone, dataset="a", scale=scale)

    (tmp_path / "page.pth").write_bytes(b"<html>")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({7: torch.zeros(1)}, tmp_path / "numbered.pth")
    torch.save({"prompt_learner_tar.prompts_vis.0": torch.zeros(LENGTH, IMAGE)}, tmp_path / "bare.pth")
    for paths, message in {
        (tmp_path / "none.pth",): "none.pth does not exist",
        (tmp_path / "page.pth",): "page.pth is cut off, damaged or no plain torch state dict (UnpicklingError)",
        (tmp_path / "list.pth",): "list.pth is not a plain torch state dict of tensors",
        (tmp_path / "numbered.pth",): "numbered.pth is not a plain torch state dict of tensors",
        (tmp_path / "bare.pth",): "the target part lacks 3 tensors: ctx, proj.weight, proj.bias",
        (tmp_path / "other.pth",): "other.pth holds no prompts of CLIP-AGIQA's layout (such as `ctx`); it holds weight",
        (files[0], files[0]): "holds the auxiliary prompts, and so does a file before it",
    }.items():
        with pytest.raises(CheckpointError, match=re.escape(message)):
            attempt(*paths)
    with pytest.raises(CheckpointError, match="the scale is 5 to 0: give the lowest MOS, then the highest"):
        attempt(*files, scale=(5, 0))


def test_the_real_early_file_names_the_target_part_that_it_lacks(
    agiqa_data: Path, vit_b_32: Backbone, tmp_path: Path
) -> None:
    path = agiqa_data / "checkpoints" / "AGIQA3k_aux.pth"
    message = f"{path} cannot make a scorer: the target part lacks 48 tensors: ctx, prompts_text.0, prompts_text.1"
    with pytest.raises(CheckpointError, match=re.escape(message)):
        import_release([path], tmp_path / "out.safetensors", vit_b_32, dataset="agiqa3k", scale=(0, 5))


def test_the_release_is_downloaded_by_its_published_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gdown

    asked = {}

    def fake(**options: object) -> str:
        asked.update(options)
        Path(str(options["output"])).write_bytes(b"weights")
        return str(options["output"])

    monkeypatch.setattr(gdown, "download", fake)
    path = released.fetch_release(tmp_path / "released")
    assert (path.read_bytes(), asked["id"]) == (b"weights", "1WnYMxHxnkMYgYNZiTVl0Xczl5LmehszN")

    def offline(**options: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(gdown, "download", offline)
    with pytest.raises(archives.ArchiveError, match=r"no network.*Put the file into .*other as DCMPLN-release\.pth"):
        released.fetch_release(tmp_path / "other")


def test_the_real_early_files_prompts_come_in_layer_by_layer(
    agiqa_data: Path, vit_b_32: Backbone, tmp_path: Path
) -> None:
    """Its target part was never published, so one that was made up stands beside it."""
    path = agiqa_data / "checkpoints" / "AGIQA3k_aux.pth"
    state = torch.load(path, map_location="cpu", weights_only=True)
    names = ["proj", *(f"compound_prompt_projections.{layer}" for layer in range(11))]
    target = {key: torch.full_like(value, 0.5) for key, value in state.items()}
    target |= {f"{name}.weight": torch.zeros(768, 1536) for name in names}
    target |= {f"{name}.bias": torch.zeros(768) for name in names}
    torch.save(target, tmp_path / "target.pth")
    model = DCMPLN(vit_b_32, mpa=False, adapter=False)
    assert load_released([path, tmp_path / "target.pth"], model) == ["token_prefix", "token_suffix"]
    assert torch.equal(model.auxiliary_prompts.text[0], state["ctx"])
    assert torch.equal(model.auxiliary_prompts.text[11], state["prompts_text.10"])
    assert torch.equal(model.auxiliary_prompts.visual[5], state["prompts_vis.5"])
    assert (model.main_prompts.text == 0.5).all()


def test_prompts_of_another_depth_length_or_variant_are_refused(tiny_backbone: Backbone, files: list[Path]) -> None:
    def attempt(**changes: object) -> None:
        switches = {"mpa": False, "adapter": False, "prompt_depth": DEPTH, "prompt_length": LENGTH}
        load_released(files, DCMPLN(tiny_backbone, **(switches | changes)))

    attempt()
    with pytest.raises(CheckpointError, match=re.escape("part holds unknown tensors: prompts_text.1, prompts_vis.2")):
        attempt(prompt_depth=2)
    with pytest.raises(CheckpointError, match=re.escape("ctx of the auxiliary part has shape (4, 64), not (5, 64)")):
        attempt(prompt_length=5)
    for changes in ({"mpa": True}, {"adapter": True}, {"layer_f": False}):
        with pytest.raises(ValueError, match="published prompts make the variant clip_agiqa alone"):
            attempt(**changes)
