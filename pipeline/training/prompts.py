"""How prompts lie at each end of the tower: what shows a collapse, in which all prompts of a depth become one."""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from pipeline.model.dcmpln import DCMPLN


@torch.no_grad()
def prompt_columns(model: DCMPLN, main_visual: Tensor) -> dict[str, float]:
    """Return columns of a history row on the visual prompts of the first and of the last depth.

    Args:
        model: The model; its auxiliary prompts are looked at, if it has any.
        main_visual: The main task's prompts as they enter the image tower, shape (L, n, D_v).

    Returns:
        `<task>_prompt_<cosine or norm>_<first or last>`: the mean cosine of all pairs of prompts of that depth, in
        -1..1, NaN of a single prompt; and their mean length.
    """
    tasks = {"main": main_visual}
    if model.auxiliary_prompts is not None:
        tasks["auxiliary"] = model.deep_auxiliary_prompts()[1]
    return {
        f"{task}_prompt_{what}_{end}": value
        for task, prompts in tasks.items()
        for end, depth in (("first", 0), ("last", -1))
        for what, value in zip(("cosine", "norm"), cosine_and_norm(prompts[depth]), strict=True)
    }


def cosine_and_norm(prompts: Tensor) -> tuple[float, float]:
    """Return the mean cosine of all pairs of prompts (n, D), NaN of a single one, and their mean Euclidean length."""
    prompts = prompts.float()
    count, length = len(prompts), float(prompts.norm(dim=1).mean())
    if count == 1:
        return float("nan"), length
    total = float(F.normalize(prompts, dim=1).sum(dim=0).square().sum())  # of all cosines, each with itself among them
    return (total - count) / (count * (count - 1)), length
