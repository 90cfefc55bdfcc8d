"""One exact training step: both tasks' scores in one pass, the loss, and a batch's gradient in micro-batches."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.model.backbone import Backbone
from pipeline.model.dcmpln import DCMPLN, Constants, score_features
from pipeline.model.tower import FastTower
from pipeline.training.ranks import ALONE, Ranks


class TaskScores(NamedTuple):
    """Scores in (0, 1), each (B,); `auxiliary` is None without that task."""

    main: Tensor
    auxiliary: Tensor | None


def score_tasks(
    model: DCMPLN, tower: FastTower | None, images: Tensor, main: Constants, auxiliary: Constants | None
) -> TaskScores:
    """Return what `DCMPLN.score` gives for both tasks, in one pass of the image tower.

    Args:
        model: Its adapters are used.
        tower: Of the model's backbone; None takes the plain tower, once a task.
        images: Normalised pixels, shape (B, 3, H, W).
        main: The main task's constants.
        auxiliary: The auxiliary task's, or None to leave that task out.
    """
    tasks = [(main, model.main_adapter)] + ([] if auxiliary is None else [(auxiliary, model.auxiliary_adapter)])
    if tower is None:
        scores = [model.score(images, constants, adapter) for constants, adapter in tasks]
    else:
        tokens = tower.tokens(tower.embed(images))
        prompts = torch.stack([constants.visual_prompts for constants, _ in tasks])
        parts = tower(tokens, prompts).chunk(len(tasks))
        scores = [
            score_features(part, constants.text_features, model.backbone.logit_scale, adapter)
            for (constants, adapter), part in zip(tasks, parts, strict=True)
        ]
    return TaskScores(scores[0], scores[1] if auxiliary is not None else None)


def task_losses(
    main: Tensor, auxiliary: Tensor | None, main_target: Tensor, auxiliary_target: Tensor, sizes: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return a micro-batch's share of the batch's two mean squared errors.

    Args:
        main: Scores in (0, 1), shape (B,).
        auxiliary: Scores in (0, 1), shape (B,), or None for a variant without the task.
        main_target: In 0..1, shape (B,).
        auxiliary_target: In 0..1, NaN where there is no label; those images are masked out, never filled in.
        sizes: Images of the whole batch, and those of them with an auxiliary label.

    Returns:
        Main and auxiliary term; summed over the micro-batches they are the means over the whole batch.
    """
    main_loss = (main - main_target).square().sum() / sizes[0]
    if auxiliary is None or sizes[1] == 0:
        return main_loss, main_loss.new_zeros(())
    errors = torch.where(auxiliary_target.isnan(), 0.0, auxiliary - auxiliary_target.nan_to_num())
    return main_loss, errors.square().sum() / sizes[1]


def ranking_loss(main: Tensor, main_target: Tensor) -> Tensor:
    """Return 1 - Pearson's correlation of a batch's scores with its targets, in 0..2, a scalar.

    Like the mean squared error it is least where scores equal targets, so that the two terms never pull apart; unlike
    it, it asks for nothing but the order and the proportions. A batch without a spread of its own in the targets, such
    as a last batch of one image, has none to learn: 0, without a gradient.

    Args:
        main: Scores in (0, 1), shape (B,).
        main_target: In 0..1, shape (B,).

    Source: the PLCC-induced loss of Li et al., "Norm-in-Norm Loss with Faster Convergence and Better Performance for
        Image Quality Assessment", ACM MM 2020, without its halving.
    """
    given, wanted = main - main.mean(), main_target - main_target.mean()
    spread, wanted_spread = given.square().sum(), wanted.square().sum()
    # 1e-12, a spread of a millionth, keeps the gradient of equal scores finite.
    correlation = (given * wanted).sum() / ((spread + 1e-12) * wanted_spread.clamp_min(1e-12)).sqrt()
    return torch.where(wanted_spread > 1e-12, 1 - correlation, 0.0)


def _leaves(constants: Constants | None) -> Constants | None:
    return None if constants is None else Constants(*(part.detach().requires_grad_() for part in constants))


def _image_means(scores: Tensor, windows: int) -> Tensor:
    """Return the mean of each image's window scores, shape (B,), from (B x windows,)."""
    return scores if windows == 1 else scores.view(-1, windows).mean(dim=1)


def batch_step(
    model: DCMPLN,
    images: Callable[[int, int], Tensor],
    main_target: Tensor,
    auxiliary_target: Tensor,
    *,
    auxiliary_weight: float,
    micro_batch: int,
    windows: int = 1,
    ranking_weight: float = 0.0,
    labelled: int | None = None,
    autocast: bool = False,
    constants: Callable[[], tuple[Constants, Constants | None]] | None = None,
    score: Callable[..., TaskScores] = score_tasks,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, Tensor]:
    """Put one batch's gradients into the model.

    Prompts and texts, which do not depend on the images, run once. Images run in micro-batches whose gradients gather
    at the constants and then flow on through MPA, Layer F and the text tower in one pass: the gradient is the whole
    batch's, and memory is a micro-batch's. Nothing here makes the CPU wait for a GPU, if `labelled` is given.

    The ranking term alone reads all scores of a batch at once. They come from a first round, the term's gradient at
    each score follows from them, and the passes carry it on: still the whole batch's gradient. Where a process takes
    more than one pass, that first round is one more, without gradients.

    Several processes take a part of the batch each, by images, and every number and gradient is summed over them: all
    that is returned and put into the model is the whole batch's, in each of them.

    Args:
        model: The model; its gradients are added to. With several processes it must have none yet.
        images: Returns the normalised crops of the batch's rows start..stop, `windows` an image side by side, shape
            ((stop - start) x windows, 3, H, W); the same ones whenever it is asked.
        main_target: In 0..1, shape (B,).
        auxiliary_target: In 0..1 or NaN, shape (B,).
        auxiliary_weight: lambda of the loss.
        micro_batch: Images a forward pass.
        windows: Crops an image; its score is the mean of theirs.
        ranking_weight: Of `ranking_loss`.
        labelled: Images with an auxiliary label; None counts them.
        autocast: Run the towers in bfloat16.
        constants: A compiled `model.constants`; None takes the plain one.
        score: `score_tasks`, or a compiled one.
        ranks: The processes that share the batch; each is told of the whole.

    Returns:
        The batch's main, auxiliary (0 without labels or task) and ranking loss (0 without a weight), shape (3,), and
        its main scores, shape (B,), both on the device.
    """
    device = main_target.device.type
    labelled = int((~auxiliary_target.isnan()).sum()) if labelled is None else labelled
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        sources = (constants or model.constants)()
    main_leaf, auxiliary_leaf = (_leaves(source) for source in sources)
    sizes = (len(main_target), labelled)
    use_auxiliary = auxiliary_leaf is not None and sizes[1] > 0
    losses, scores = torch.zeros(3, device=main_target.device), torch.zeros_like(main_target)
    first, last, weight = *ranks.share(sizes[0]), 1.0
    if first == last:  # fewer images than processes: one that counts nothing gives the same parameters a gradient
        first, last, weight = 0, 1, 0.0

    def scores_of(start: int, stop: int, auxiliary: Constants | None) -> TaskScores:
        pixels = images(start, stop)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            found = score(model, model.backbone.fast_tower(), pixels, main_leaf, auxiliary)
        return TaskScores(*(None if part is None else _image_means(part.float(), windows) for part in found))

    parts = [(start, min(start + micro_batch, last)) for start in range(first, last, micro_batch)]
    auxiliary_used = auxiliary_leaf if use_auxiliary else None
    early: list[TaskScores] = []  # of a single pass, which need not be run again
    pull = None  # of the ranking term at each score, shape (B,)
    if ranking_weight:
        single = len(parts) == 1
        with torch.set_grad_enabled(single):
            early = [scores_of(*part, auxiliary_used if single else None) for part in parts]
        whole = torch.zeros_like(main_target)
        whole[first:last] = weight * torch.cat([found.main.detach() for found in early])
        ranks.add_up([whole])
        whole.requires_grad_()
        ranking = ranking_loss(whole, main_target)
        losses[2] = ranking.detach()
        (pull,) = torch.autograd.grad(ranking, whole)
        early = early if single else []
    for start, stop in parts:
        main, auxiliary = early[0] if early else scores_of(start, stop, auxiliary_used)
        main_loss, auxiliary_loss = task_losses(
            main, auxiliary, main_target[start:stop], auxiliary_target[start:stop], sizes
        )
        loss = main_loss + auxiliary_weight * auxiliary_loss
        if pull is not None:
            loss = loss + ranking_weight * (pull[start:stop] * main).sum()
        (weight * loss).backward()
        losses[:2] += weight * torch.stack([main_loss.detach(), auxiliary_loss.detach()])
        scores[start:stop] = weight * main.detach()
    pairs = [
        (source, leaf.grad)
        for task, leaves in zip(sources, (main_leaf, auxiliary_leaf), strict=True)
        if task is not None
        for source, leaf in zip(task, leaves, strict=True)
        if leaf.grad is not None and source.requires_grad
    ]
    torch.autograd.backward([source for source, _ in pairs], [gradient for _, gradient in pairs])
    gradients = [parameter.grad for parameter in model.trainable_parameters() if parameter.grad is not None]
    ranks.add_up([*gradients, losses[:2], scores])
    return losses, scores


def micro_batch_for(backbone: Backbone, device: torch.device | str, batch_size: int, windows: int = 1) -> int:
    """Return how many images a pass suit the device: on CPUs what the caches hold, elsewhere the whole batch.

    At ViT-B/32 sizes that is 12: as fast as 16, measured, and a batch of 64 then takes 1.3 GB; small towers take more.
    Images of several windows are fewer by as much, so that a pass and its memory stay what they are.
    """
    if torch.device(device).type != "cpu":
        return max(1, batch_size // windows)
    tokens = 1 + (backbone.image_size // backbone.patch_size) ** 2
    return max(1, min(batch_size, 12 * 50 * 768 // (tokens * backbone.image_width * windows)))
