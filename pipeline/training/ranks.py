"""Several processes that train one model: each scores its share of every batch, and all of them know the whole result.

Nothing drawn at random depends on how many there are: order, crops and flips come from (seed, epoch), for all images at
once. What each of them adds up, gradients above all, is summed over the processes, never averaged, so that shares of
any sizes count by their images. The sum has the same bits everywhere, so the models stay equal, and nobody sends them.
One process is the same code without a sum.
"""

import json
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from pipeline.errors import AgiqaError
from pipeline.files import write_json

PATIENCE = timedelta(minutes=10)  # a process that others wait for longer hangs; what one does alone takes seconds
ANY_TIME = timedelta(days=30)  # to wait for the first process while it waits for the lock of another training
LOST = 75  # exit status of a process that ends only because another one has; sysexits.h: temporary failure
LOOK_AROUND = 1.0  # seconds in which whoever supervises sees the first one that ended before those that follow it


class RankError(AgiqaError):
    """Processes of one training that are no longer together."""


class LostError(RankError):
    """Another process has ended, which will say why itself."""


@dataclass(frozen=True)
class Ranks:
    """The processes of one training.

    Attributes:
        number: Of this process, from 0. The first one alone writes files, tells MLflow and shows progress.
        count: Of all processes.
        local: Of this process among those of its machine, which is its GPU's number.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    _patient: Any = field(default=None, repr=False, compare=False)  # a group that waits for ANY_TIME, on CPUs

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.number == 0

    def share(self, total: int) -> tuple[int, int]:
        """Return start and stop of this process's part of so many things; parts differ by one thing at most."""
        return total * self.number // self.count, total * (self.number + 1) // self.count

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in the place of each tensor, the same bits everywhere.

        Args:
            tensors: Of the same shapes in the same order in every process, all of one type and on one device; a GPU is
                not waited for.

        Raises:
            LostError: If another process has ended.
            RankError: If another process does not answer for `PATIENCE`.
        """
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _answered(self.count):
            dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def joined(self, part: np.ndarray, total: int, device: torch.device | str) -> np.ndarray:
        """Return what all processes have found together, exactly, shape (total, ...), float64.

        Args:
            part: What this process has found for its `share` of `total`, shape (stop - start, ...).
            total: Of all processes.
            device: Where this process computes.
        """
        if self.count == 1:
            return part
        start, stop = self.share(total)
        whole = np.zeros((total, *part.shape[1:]))
        whole[start:stop] = part
        everywhere = torch.as_tensor(whole, device=device)
        self.add_up([everywhere])  # of a number and zeros: exact
        return everywhere.cpu().numpy()

    def refuse_difference(self, what: str, values: np.ndarray, device: torch.device | str) -> None:
        """Stop where processes do not hold the same.

        Args:
            what: The values are.
            values: Of this process, finite, shape (n,).
            device: Where this process computes.

        Raises:
            RankError: If another process has other values.
        """
        rows = self.joined(values[None], self.count, device)
        if (rows != rows[0]).any():
            raise RankError(
                f"the {self.count} processes of this training do not hold the same {what}: they must see the same "
                "files and compute on GPUs of one kind"
            )

    def tell(self, value: str | None) -> str | None:
        """Return the first process's value, however long it takes it to come here.

        Args:
            value: Of the first process; the others' is not looked at.

        Raises:
            LostError: If another process has ended.
        """
        if self.count == 1:
            return value
        told = [value]
        with _answered(self.count):
            dist.broadcast_object_list(told, src=0, group=self._patient)
        return told[0]

    def end_in_peace(self) -> None:
        """Let nobody interrupt this process any more: it is about to end, and says so where people look."""
        if self.count > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


ALONE = Ranks()


@contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Join the processes that torchrun or `pipeline.training.launch` has started; without them, be alone.

    What ends a process of several is written where its launcher looks for it, and told once, there.

    Args:
        device: `auto` and `cuda` take a GPU a process and NCCL, where there are GPUs; `cpu` takes Gloo.

    Raises:
        RankError: If there are fewer GPUs than processes.
    """
    count = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    if count == 1:
        yield ALONE
        return
    with _told_to_the_launcher():
        number, local = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
        if number > 0:
            logging.disable(logging.WARNING)  # the first one says the same
        on_gpus = device != "cpu" and torch.cuda.is_available()
        if on_gpus:
            refuse_too_many(int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count())
            torch.cuda.set_device(local)
        with _answered(count):
            dist.init_process_group("nccl" if on_gpus else "gloo", timeout=PATIENCE)
            patient = dist.new_group(backend="gloo", timeout=ANY_TIME)
        yield Ranks(number, count, local, patient)
        dist.destroy_process_group()


def refuse_too_many(processes: int, gpus: int) -> None:
    """Stop where a machine has fewer GPUs than processes.

    Raises:
        RankError: If so.
    """
    if processes > gpus:
        seen = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise RankError(
            f"{processes} processes were asked for, and torch sees {seen} here: give train.processes {gpus} or auto, "
            "or train.device cpu"
        )


@contextmanager
def _answered(count: int) -> Iterator[None]:
    """Turn what torch raises where processes cannot reach each other into one line."""
    try:
        yield
    except RuntimeError as error:
        # Without the place in torch's own source.
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error).splitlines()[0])[:300]
        if re.search(r"time[d ]?-?\s?out", reason, re.IGNORECASE):
            waited = f"{PATIENCE.seconds} s"
            raise RankError(
                f"another of the {count} processes of this training has not answered for {waited}: it hangs ({reason})"
            ) from error
        raise LostError(f"another of the {count} processes of this training has ended ({reason})") from error


@contextmanager
def _told_to_the_launcher() -> Iterator[None]:
    """Write what ends this process into the file that torch's launcher names, print nothing, and end."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise LostError("this training was told to stop, or another of its processes has ended")

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if isinstance(error, LostError):
            time.sleep(LOOK_AROUND)
        mistake = isinstance(error, AgiqaError | OSError)
        shown = f"error: {error}" if mistake else traceback.format_exc()
        about = {"py_callstack": shown, "timestamp": str(int(time.time()))}
        said = {"message": {"message": f"{type(error).__name__}: {error}", "extraInfo": about}}
        if (file := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
            write_json(file, said)
        else:
            sys.stderr.write(json.dumps(said) + "\n")
        sys.exit(LOST if isinstance(error, LostError) else 1)
