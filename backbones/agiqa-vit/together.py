"""Start the processes of this machine that train one model, each on its part of every batch.

Two threads of one process gain a sixth over one, since most operations here are small; two processes nearly double. The
launcher of `pipeline.training` ends its processes when it is told to stop; here the leader finishes its step and saves.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import get_context

import torch.distributed as dist
from torch import nn

from pipeline.training.ranks import Ranks


def lead(count: int, follower: Callable[..., object], arguments: tuple) -> Ranks:
    """Start the other processes, and return the leader's place among them once they are there.

    Args:
        count: Of all, this one included.
        follower: Called in each of the others with `arguments` and its place.
        arguments: Of the follower; must pickle.
    """
    store = _meet(0, count, 0)
    context = get_context("spawn")
    for number in range(1, count):
        given = (follower, arguments, number, count, store.port)
        context.Process(target=_begin, args=given, daemon=True).start()
    return _join(store, number=0, count=count)


def give(model: nn.Module, ranks: Ranks) -> None:
    """Put the leader's parameters and buffers into everybody's model."""
    if ranks.count > 1:
        for value in model.state_dict().values():
            dist.broadcast(value, 0)


def obey_parent() -> None:
    """Let this process ignore the signals that are its parent's to act upon, and end when its parent is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _meet(number: int, count: int, port: int) -> dist.TCPStore:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # one machine: no name need be resolved
    return dist.TCPStore("127.0.0.1", port, count, is_master=number == 0, wait_for_workers=False)


def _join(store: dist.TCPStore, number: int, count: int) -> Ranks:
    dist.init_process_group("gloo", store=store, rank=number, world_size=count)
    return Ranks(number, count)


def _begin(follower: Callable[..., object], arguments: tuple, number: int, count: int, port: int) -> None:
    obey_parent()
    follower(*arguments, _join(_meet(number, count, port), number, count))
