"""The model against hand-worked parts, published counts and its own promises."""

import math

import numpy as np
import pytest
import torch

from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import (
    DCMPLN,
    CrossModalBranch,
    ImageAdapter,
    LayerF,
    MultimodalPromptAttention,
    antonym_score,
)

SMALL = {"prompt_depth": 3, "prompt_length": 4}
VARIANTS = {
    "dcmpln": {},
    "no_mpa": {"mpa": False},
    "no_adapter": {"adapter": False},
    "clip_agiqa": {"mpa": False, "adapter": False},
    "main_only": {"auxiliary": False, "mpa": False, "layer_f": False},
}


def learned(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def test_published_parameter_counts(vit_b_32: Backbone) -> None:
    """MPA 11,027,968 at ViT-B sizes, and the predecessor's 14,410,752; the rest by hand from the tower widths."""
    backbone = vit_b_32
    full = DCMPLN(backbone)
    assert learned(full.mpa) == 11_027_968
    assert learned(DCMPLN(backbone, mpa=False, adapter=False)) == 14_410_752
    prompts_of_a_layer, layer_f, adapter = 8 * (512 + 768), 12 * (2 * 768 * 768 + 768), 2 * 512 * 128
    assert learned(full) == 13 * prompts_of_a_layer + 11_027_968 + layer_f + 2 * adapter
    assert learned(DCMPLN(backbone, mpa_shared=False).mpa) == 11 * 11_027_968
    assert learned(DCMPLN(backbone, auxiliary=False, mpa=False, layer_f=False)) == 12 * prompts_of_a_layer + adapter


def numpy_norm(rows: np.ndarray, norm: torch.nn.LayerNorm) -> np.ndarray:
    centred = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + norm.eps)
    return centred * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def test_mpa_equals_the_equations_worked_in_numpy() -> None:
    torch.manual_seed(0)
    branch = CrossModalBranch(width=128, other_width=64)  # two heads
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    own, other = torch.randn(3, 128), torch.randn(3, 64)

    weights = {name: value.detach().numpy() for name, value in branch.named_parameters()}
    query = numpy_norm(other.numpy() @ weights["project.weight"].T + weights["project.bias"], branch.norm_1)
    key = numpy_norm(own.numpy(), branch.norm_1)
    w_q, w_k, w_v = np.split(weights["attention.in_proj_weight"], 3)
    b_q, b_k, b_v = np.split(weights["attention.in_proj_bias"], 3)
    q, k, v = query @ w_q.T + b_q, key @ w_k.T + b_k, key @ w_v.T + b_v
    heads = []
    for head in (slice(0, 64), slice(64, 128)):
        logits = q[:, head] @ k[:, head].T / math.sqrt(64)
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        heads.append(shares @ v[:, head])
    attended = np.concatenate(heads, 1) @ weights["attention.out_proj.weight"].T + weights["attention.out_proj.bias"]
    hidden = own.numpy() + attended
    wide = numpy_norm(hidden, branch.norm_2) @ weights["expand.weight"].T + weights["expand.bias"]
    wide = wide / (1 + np.exp(-1.702 * wide))
    expected = hidden + wide @ weights["contract.weight"].T + weights["contract.bias"]
    np.testing.assert_allclose(branch(own, other).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_mpa_sides_both_read_the_old_prompts() -> None:
    torch.manual_seed(0)
    attention = MultimodalPromptAttention(text_width=64, image_width=128)
    text, visual = torch.randn(2, 64), torch.randn(2, 128)
    next_text, next_visual = attention(text, visual)
    torch.testing.assert_close(next_text, attention.text(text, visual))
    torch.testing.assert_close(next_visual, attention.visual(visual, text))


def test_mpa_refuses_widths_that_heads_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiples of 64, and this tower is 96 wide"):
        CrossModalBranch(96, 64)


@pytest.mark.parametrize("shared", [True, False])
def test_an_identity_start_copies_the_first_prompts_and_learns(tiny_backbone: Backbone, shared: bool) -> None:
    torch.manual_seed(4)
    drawn = DCMPLN(tiny_backbone, mpa_shared=shared, **SMALL)
    torch.manual_seed(4)
    model = DCMPLN(tiny_backbone, mpa_shared=shared, mpa_start="identity", **SMALL)
    outputs = [name for name in model.learned_state() if ".out_proj." in name or ".contract." in name]
    assert len(outputs) == 8 * len(model.mpa)
    for name, value in model.learned_state().items():  # nothing but the output maps is drawn otherwise
        assert torch.equal(value, torch.zeros_like(value) if name in outputs else drawn.learned_state()[name]), name
    text, visual = model.deep_auxiliary_prompts()
    for deep, first in ((text, model.auxiliary_prompts.text), (visual, model.auxiliary_prompts.visual)):
        assert all(torch.equal(layer, first[0]) for layer in deep)
    scores = model(torch.randn(2, 3, 32, 32))
    (scores[0].sum() + scores[1].sum()).backward()
    assert all(model.get_parameter(name).grad.any() for name in outputs if name.endswith("weight"))


def test_deep_prompts_come_from_mpa_layer_by_layer(tiny_backbone: Backbone) -> None:
    torch.manual_seed(0)
    model = DCMPLN(tiny_backbone, mpa_shared=False, **SMALL)
    text, visual = model.deep_auxiliary_prompts()
    assert text.shape == (3, 4, 64)
    assert visual.shape == (3, 4, 64)
    first = model.mpa[0](model.auxiliary_prompts.text[0], model.auxiliary_prompts.visual[0])
    second = model.mpa[1](*first)
    torch.testing.assert_close(text, torch.stack([model.auxiliary_prompts.text[0], first[0], second[0]]))
    torch.testing.assert_close(visual, torch.stack([model.auxiliary_prompts.visual[0], first[1], second[1]]))


def test_layer_f_concatenates_main_before_auxiliary() -> None:
    layer = LayerF(depth=1, image_width=2)
    with torch.no_grad():
        layer.maps[0].weight.copy_(torch.tensor([[1.0, 2.0, 30.0, 40.0], [5.0, 6.0, 70.0, 80.0]]))
        layer.maps[0].bias.copy_(torch.tensor([0.5, -0.5]))
    main, auxiliary = torch.tensor([[[1.0, 1.0]]]), torch.tensor([[[1.0, 0.0]]])
    torch.testing.assert_close(layer(main, auxiliary), torch.tensor([[[33.5, 80.5]]]))


def test_adapter_by_hand() -> None:
    adapter = ImageAdapter(embed_dim=4, reduction=4, residual_ratio=0.2)
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, -1.0]]))
        adapter.up.weight.copy_(torch.tensor([[1.0], [-1.0], [2.0], [0.0]]))
    features = torch.tensor([[1.0, 2.0, 3.0, 1.0], [0.0, 0.0, 0.0, 5.0]])
    # down: 5 and -5; ReLU: 5 and 0; up: (5, -5, 10, 0) and 0; ReLU: (5, 0, 10, 0) and 0
    expected = torch.tensor([[0.2 * 5 + 0.8, 1.6, 0.2 * 10 + 2.4, 0.8], [0.0, 0.0, 0.0, 4.0]])
    torch.testing.assert_close(adapter(features), expected)


def test_antonym_score_by_hand() -> None:
    features, texts = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = antonym_score(features, texts, torch.tensor(math.log(10.0)))
    expected = [1 / (1 + math.exp(10 * (0.8 - 0.6))), 1 / (1 + math.exp(10 * (1.0 - 0.0)))]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("switches", VARIANTS.values(), ids=VARIANTS.keys())
def test_variants_score_and_every_learned_part_gets_a_gradient(
    tiny_backbone: Backbone, switches: dict[str, bool]
) -> None:
    torch.manual_seed(0)
    model = DCMPLN(tiny_backbone, **SMALL, **switches)
    main, auxiliary = model(torch.randn(2, 3, 32, 32))
    assert main.shape == (2,)
    assert ((main > 0) & (main < 1)).all()
    assert (auxiliary is None) == (switches.get("auxiliary") is False)
    (main.sum() + (0 if auxiliary is None else auxiliary.sum())).backward()
    without = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    ]
    assert without == []


def test_main_loss_reaches_the_auxiliary_prompts_through_layer_f(tiny_backbone: Backbone) -> None:
    model = DCMPLN(tiny_backbone, **SMALL)
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert model.auxiliary_prompts.visual.grad.abs().sum() > 0
    assert model.auxiliary_prompts.text.grad.abs().sum() > 0  # through MPA


def test_a_score_does_not_depend_on_batch_neighbours(tiny_backbone: Backbone) -> None:
    torch.manual_seed(0)
    model, images = DCMPLN(tiny_backbone, **SMALL).eval(), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        together = model(images)
        for index in range(5):
            alone = model(images[index : index + 1])
            torch.testing.assert_close(together[0][index], alone[0][0], atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(together[1][index], alone[1][0], atol=1e-6, rtol=1e-5)


def test_a_step_leaves_the_backbone_alone(tiny_backbone: Backbone) -> None:
    before = {key: value.clone() for key, value in tiny_backbone.state_dict().items()}
    model = DCMPLN(tiny_backbone, **SMALL)
    optimiser = torch.optim.Adam(model.trainable_parameters(), lr=0.1)
    model(torch.randn(2, 3, 32, 32))[0].sum().backward()
    optimiser.step()
    after = tiny_backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_shared_adapter_is_one_adapter(tiny_backbone: Backbone) -> None:
    shared = DCMPLN(tiny_backbone, adapter_shared=True, **SMALL)
    assert shared.main_adapter is shared.auxiliary_adapter
    own = DCMPLN(tiny_backbone, **SMALL)
    assert learned(own) - learned(shared) == 2 * 32 * 8


def test_learned_state_round_trip_and_refusal(tiny_backbone: Backbone) -> None:
    torch.manual_seed(0)
    first, second = DCMPLN(tiny_backbone, **SMALL), DCMPLN(tiny_backbone, **SMALL)
    state = first.learned_state()
    assert not any(key.startswith("backbone.") for key in state)
    second.load_learned_state(state)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(first(images)[0], second(images)[0])
    with pytest.raises(RuntimeError, match="learned state does not fit this variant"):
        DCMPLN(tiny_backbone, adapter=False, **SMALL).load_learned_state(state)


def test_switches_and_depth_that_cannot_be(tiny_backbone: Backbone) -> None:
    with pytest.raises(ValueError, match=r"model\.prompt_depth is 12; the towers of tiny-vit allow 1 to 3"):
        DCMPLN(tiny_backbone)
    with pytest.raises(ValueError, match="mpa and layer_f read the auxiliary prompts"):
        DCMPLN(tiny_backbone, auxiliary=False, **SMALL)
