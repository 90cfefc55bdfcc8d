"""Processes of one machine that train one model, each on its part of every batch.

Two threads of one process gain a sixth over one, since most operations here are small; two processes nearly double.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Together:
    """What a process knows of the others.

    Attributes:
        rank: Its number; 0 leads: it measures, saves and is told to stop.
        size: How many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, port: int = 0) -> None:
        self.rank, self.size = rank, size
        self.store: dist.TCPStore | None = None
        if size > 1:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: no name need be resolved
            self.store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0, wait_for_workers=False)

    def join(self) -> None:
        """Wait until all are there."""
        if self.store is not None:
            dist.init_process_group("gloo", store=self.store, rank=self.rank, world_size=self.size)

    def part(self, values: Sequence) -> Sequence:
        """Return this process's part of a batch."""
        return values[self.rank :: self.size]

    def follow(self, model: nn.Module) -> None:
        """Give all the leader's parameters and buffers."""
        if self.size > 1:
            for value in model.state_dict().values():
                dist.broadcast(value, 0)

    def mean_gradients(self, parameters: Sequence[Tensor], told: Sequence[float]) -> list[float]:
        """Replace every gradient by its mean over the processes; return the sums of further numbers.

        Args:
            parameters: Each has a gradient in every process, or in none.
            told: Numbers of this process, single precision.
        """
        if self.size == 1:
            return [float(value) for value in told]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([torch.tensor(told, dtype=torch.float32), *[g.flatten() for g in gradients]])
        dist.all_reduce(flat)
        place = len(told)
        for gradient in gradients:
            gradient.copy_(flat[place : place + gradient.numel()].view_as(gradient)).div_(self.size)
            place += gradient.numel()
        return flat[: len(told)].tolist()


def lead(size: int, follower: Callable[..., object], arguments: tuple) -> Together:
    """Start the other processes, and return the leader's view once they are there.

    Args:
        size: Of all, this one included.
        follower: Called in each of the others with `arguments` and its Together.
        arguments: Of the follower; must pickle.
    """
    together = Together(0, size)
    context = get_context("spawn")
    for rank in range(1, size):
        context.Process(target=_begin, args=(follower, arguments, rank, size, together.store.port), daemon=True).start()
    together.join()
    return together


def _begin(follower: Callable[..., object], arguments: tuple, rank: int, size: int, port: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a signal to the whole group is for the leader to act upon
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    together = Together(rank, size, port)
    together.join()
    follower(*arguments, together)
