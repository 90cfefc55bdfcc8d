"""One of several processes of a test: `python -m made_ranks JOB FOLDER CONFIG`, started as by torch's launcher.

`launched JOB ...` starts two such processes through `pipeline.training.launch`, as a stage does.
"""

import math
import os
import signal
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.errors import AgiqaError
from pipeline.training import launch, ranks
from pipeline.training.ranks import ALONE, Ranks

# Batches of five, of which two processes take two and three images, and a last one of one image: one process has none.
IMAGES, BATCH = 16, 5
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dcmpln": ({}, {"ranking_weight": 0.3}),
    "dcmpln in parts": ({}, {"ranking_weight": 0.3, "windows": 2, "micro_batch": 1}),
    "main_only": ({"auxiliary": False, "mpa": False, "layer_f": False}, {"weight_decay": 0.01}),
}


def train(case: str, folder: Path, config: Path, ranks: Ranks = ALONE) -> list[dict[str, float]]:
    """Train a case of three epochs into `folder`, which holds `pixels.bin` in its parent, and return the history."""
    from made_parts import RULE, SAID, bright_images, bright_subsets, model_of, pack_of

    from pipeline.model.loading import load_backbone
    from pipeline.training.fit import Settings, fit

    switches, changes = CASES[case]
    images = folder.with_name(f"{folder.name} images")
    images.mkdir(parents=True)
    train, validation = bright_subsets(pack_of(images, bright_images()))
    auxiliary = train.auxiliary.copy()
    auxiliary[::2] = math.nan  # some shares of a batch have no label, and some whole batches
    train = replace(train, rows=train.rows[:IMAGES], main=train.main[:IMAGES], auxiliary=auxiliary[:IMAGES])
    settings = {"epochs": 3, "batch_size": BATCH, "learning_rate": 0.01, "seed": 5, "validation_windows": 1}
    return fit(
        model_of(load_backbone("tiny-vit", config=config, seed=1), **switches), train, {"validation": validation}, RULE,
        folder, {"windows": RULE.record(), **SAID}, Settings(**(settings | changes)), ranks=ranks,
    ).history  # fmt: skip


def gradients(config: Path, ranks: Ranks = ALONE, count: int = 5, micro_batch: int = 5) -> dict[str, np.ndarray]:
    """Return the gradients of a batch, its losses and its scores."""
    from made_parts import model_of

    from pipeline.model.loading import load_backbone
    from pipeline.training.step import batch_step

    model = model_of(load_backbone("tiny-vit", config=config, seed=1), prompt_std=0.5)
    generator = torch.Generator().manual_seed(0)
    images, target = torch.randn(count, 3, 32, 32, generator=generator), torch.rand(count, generator=generator)
    auxiliary = torch.tensor([math.nan, math.nan, 0.9, 0.4, 0.2])[:count]  # the first of two processes has no label
    losses, scores = batch_step(
        model, lambda start, stop: images[start:stop], target, auxiliary, auxiliary_weight=0.1, ranking_weight=0.5,
        micro_batch=micro_batch, ranks=ranks,
    )  # fmt: skip
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: value.numpy() for name, value in {**found, "losses": losses, "scores": scores}.items()}


def share_everything(folder: Path, config: Path, own: Ranks) -> None:
    """Do all that needs no process to end: what each one finds lies in `numbers-<rank>.npz`."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"told": own.tell(f"by {own.number}")}
    for total in (1, 2, 7):
        start, stop = own.share(total)
        found[f"joined {total}"] = own.joined(np.arange(total)[start:stop, None] / 3, total, "cpu")
    own.refuse_difference("weather", np.ones(2), "cpu")
    try:
        own.refuse_difference("weather", np.array([1.0, own.number]), "cpu")
    except AgiqaError as error:
        found["difference"] = str(error)
    for count, micro_batch in ((5, 5), (5, 1), (1, 5)):
        named = gradients(config, own, count, micro_batch)
        found |= {f"{count} by {micro_batch}: {name}": value for name, value in named.items()}
    for case in CASES:
        history = train(case, folder / f"rank {own.number}" / case, config, own)
        found[case] = np.array([[row[key] for key in row] for row in history])
    np.savez(folder / f"numbers-{own.number}.npz", **found)


def end(job: str, own: Ranks) -> None:
    """End the second process in one of the ways in which processes end; the first one waits for it."""
    own.tell("all are here")
    if job == "mistake":
        raise AgiqaError("lower train.learning_rate")  # in every process
    if own.number == 1:
        if job == "bug":
            raise ZeroDivisionError("ours")
        if job == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if job == "hang":
            os.kill(os.getpid(), signal.SIGSTOP)
        if job == "wait":
            sys.stdout.write(f"{os.getpid()}\n")
            sys.stdout.flush()
        time.sleep(600)
    own.add_up([torch.ones(2)])


def main() -> None:
    """Be one process, or start two."""
    job, *arguments = sys.argv[1:]
    if job == "launched":
        launch.launch("made_ranks", arguments, 2)
        return
    import stages  # noqa: F401 - as a stage has it

    if job == "hang":
        ranks.PATIENCE = timedelta(seconds=5)
    with ranks.together("cpu") as own:
        if job == "share":
            share_everything(*map(Path, arguments), own)
        else:
            end(job, own)


if __name__ == "__main__":
    main()
