"""What the history says of prompts, against pairs taken one by one."""

import itertools
import math

import numpy as np
import pytest
import torch
from made_parts import model_of

from pipeline.model.backbone import Backbone
from pipeline.model.folded import fold
from pipeline.training.prompts import cosine_and_norm, prompt_columns


def test_cosine_and_norm_are_the_means_over_pairs_and_prompts() -> None:
    prompts = np.random.default_rng(0).normal(size=(5, 7)) + 0.5
    lengths = [math.sqrt(sum(part**2 for part in row)) for row in prompts]
    cosines = [prompts[a] @ prompts[b] / lengths[a] / lengths[b] for a, b in itertools.combinations(range(5), 2)]
    found = cosine_and_norm(torch.from_numpy(prompts))
    assert found == pytest.approx((np.mean(cosines), np.mean(lengths)), abs=1e-5)
    assert cosine_and_norm(torch.ones(4, 9)) == pytest.approx((1.0, 3.0), abs=1e-6)
    alone = cosine_and_norm(torch.tensor([[3.0, 4.0]]))
    assert math.isnan(alone[0])
    assert alone[1] == 5.0


def test_columns_name_the_prompts_of_both_tasks_at_both_ends(tiny_backbone: Backbone) -> None:
    model = model_of(tiny_backbone)
    main = fold(model).visual_prompts
    found = prompt_columns(model, main)
    deep = model.deep_auxiliary_prompts()[1].detach()
    for task, prompts in (("main", main), ("auxiliary", deep)):
        for end, depth in (("first", 0), ("last", 2)):
            pair = (found.pop(f"{task}_prompt_cosine_{end}"), found.pop(f"{task}_prompt_norm_{end}"))
            one, other = prompts[depth]
            assert pair[0] == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-5)
            assert pair[1] == pytest.approx(float(one.norm() + other.norm()) / 2, abs=1e-5)
    assert not found
    alone = model_of(tiny_backbone, auxiliary=False, mpa=False, layer_f=False)
    assert {key.split("_")[0] for key in prompt_columns(alone, main)} == {"main"}


def test_a_collapse_shows_and_an_identity_start_has_none(tiny_backbone: Backbone) -> None:
    changes = {"prompt_length": 8, "prompt_std": 0.02}
    drawn, copied = (model_of(tiny_backbone, mpa_start=start, **changes) for start in ("random", "identity"))
    random, identity = (prompt_columns(model, fold(model).visual_prompts) for model in (drawn, copied))
    assert random["auxiliary_prompt_cosine_last"] > 0.9
    assert random["auxiliary_prompt_norm_last"] > 10 * random["auxiliary_prompt_norm_first"]
    for what in ("cosine", "norm"):
        assert identity[f"auxiliary_prompt_{what}_last"] == identity[f"auxiliary_prompt_{what}_first"]
    assert abs(identity["auxiliary_prompt_cosine_last"]) < 0.2
