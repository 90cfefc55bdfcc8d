"""The model's parts as params.yaml asks for them, and this process's torch."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from made_parts import write_params

from pipeline.layout import StudyError
from pipeline.model.backbone import Backbone
from pipeline.params import load_params
from pipeline.study import build
from pipeline.training.ranks import Ranks


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """Put the process's settings back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


def test_the_backbone_and_its_windows_are_those_of_params(
    tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path
) -> None:
    write_params(tmp_path, tiny_config, backbone__seed=1, images__normalisation="imagenet", images__cover="reference")
    params = load_params(tmp_path / "params.yaml")
    backbone = build.make_backbone(params)
    assert backbone.record() == tiny_backbone.record()
    rule = build.make_window_rule(params, backbone)
    assert (rule.size, rule.stride, rule.cover, rule.normalisation) == (32, 16, "reference", "imagenet")
    assert (rule.mean, rule.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # torchvision's published numbers


def test_images_are_resized_to_a_window_at_least(tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path) -> None:
    for side, asked in ((None, None), (32, 32), (100, 100)):
        write_params(tmp_path, tiny_config, images__shorter_side=asked)
        assert build.make_window_rule(load_params(tmp_path / "params.yaml"), tiny_backbone).shorter_side == side
    write_params(tmp_path, tiny_config, images__shorter_side=31)
    with pytest.raises(StudyError, match=r"images\.shorter_side is 31, and a window of tiny-vit has 32 pixels: give"):
        build.make_window_rule(load_params(tmp_path / "params.yaml"), tiny_backbone)


def test_a_variant_is_drawn_by_its_seed_alone(tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path) -> None:
    write_params(tmp_path, tiny_config)
    params = load_params(tmp_path / "params.yaml")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    states = [build.make_model(params, "dcmpln", tiny_backbone, seed).learned_state() for seed in (4, 4, 5)]
    assert torch.rand(1) == expected  # the global generator is left alone
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert not torch.equal(states[0]["main_prompts.text"], states[2]["main_prompts.text"])


@pytest.mark.parametrize(
    ("variant", "parts"),
    [
        ("dcmpln", {"auxiliary_prompts", "mpa", "layer_f", "main_adapter", "auxiliary_adapter"}),
        ("no_mpa", {"auxiliary_prompts", "layer_f", "main_adapter", "auxiliary_adapter"}),
        ("no_adapter", {"auxiliary_prompts", "mpa", "layer_f"}),
        ("clip_agiqa", {"auxiliary_prompts", "layer_f"}),
        ("main_only", {"main_adapter"}),
    ],
)
def test_switches_decide_which_parts_a_variant_has(
    tiny_config: Path, tiny_backbone: Backbone, tmp_path: Path, variant: str, parts: set[str]
) -> None:
    write_params(tmp_path, tiny_config)
    model = build.make_model(load_params(tmp_path / "params.yaml"), variant, tiny_backbone, 0)
    every = {"auxiliary_prompts", "mpa", "layer_f", "main_adapter", "auxiliary_adapter"}
    assert {name for name in every if getattr(model, name) is not None} == parts
    assert (model.depth, model.length) == (3, 2)


@pytest.mark.usefixtures("torch_as_it_was")
def test_torch_is_prepared_for_equal_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.use_deterministic_algorithms(False)
    assert build.prepare_torch("cpu", 1) == torch.device("cpu")
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == (1, True)
    torch.set_num_threads(2)
    build.prepare_torch("cpu", None)
    assert torch.get_num_threads() == 2
    machine = build.describe_machine(torch.device("cpu"))
    assert machine == {"device": "cpu", "processes": 1, "threads": 2, "torch": torch.__version__}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert build.prepare_torch("auto", None) == torch.device("cpu")
    with pytest.raises(StudyError, match=r"train\.device is 'cuda', and torch sees no GPU here: use 'auto' or 'cpu'"):
        build.prepare_torch("cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.use_deterministic_algorithms(False)
    assert build.prepare_torch("auto", None) == torch.device("cuda")
    assert build.prepare_torch("auto", None, Ranks(5, 8, local=1)) == torch.device("cuda", 1)
    assert not torch.are_deterministic_algorithms_enabled()
