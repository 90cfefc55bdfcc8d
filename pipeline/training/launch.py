"""Start a stage as several processes on this machine, by torch's own launcher, and say in one place why they ended."""

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist

from pipeline.training.ranks import LOST, RankError, refuse_too_many


def processes_to_start(processes: int | Literal["auto"], device: str) -> int:
    """Return how many processes this one is to start; 1 if it is to do the work itself.

    Args:
        processes: As `train.processes`; `auto` means one a GPU, and one where there is none.
        device: As `train.device`.

    Raises:
        RankError: If there are fewer GPUs than processes.
    """
    if dist.is_torchelastic_launched():  # by torchrun or by `launch`: this is one of them already
        return 1
    gpus = torch.cuda.device_count() if device != "cpu" and torch.cuda.is_available() else 0
    if processes == "auto":
        return max(1, gpus)
    if gpus:
        refuse_too_many(processes, gpus)
    return processes


def launch(module: str, arguments: Sequence[str], count: int) -> None:
    """Run a module as `count` processes and wait for them; as soon as one fails, all end.

    CPU threads are shared out, unless OMP_NUM_THREADS says otherwise.

    Args:
        module: Its dotted name.
        arguments: Of its command line.
        count: Of processes.

    Raises:
        RankError: If a process was killed.
        SystemExit: If a process has failed, which was told, or if this one was told to stop.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // count)))
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # it is told below, in fewer words
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, max_restarts=0, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:

        def follows(failure: ProcessFailure) -> bool:
            return failure.exitcode in (LOST, -signal.SIGTERM)

        number, failure = min(error.failures.items(), key=lambda item: (follows(item[1]), item[1].timestamp))
        if isinstance(failure.message, dict):
            sys.stderr.write(failure.message["extraInfo"]["py_callstack"].rstrip() + "\n")
            sys.exit(1)
        how = f"by {failure.signal_name()}" if failure.exitcode < 0 else f"with status {failure.exitcode}"
        hint = " (out of memory?)" if failure.exitcode == -signal.SIGKILL else ""
        raise RankError(
            f"process {number + 1} of {count} of this training was ended {how}{hint}, and the others with it: run the "
            "same command again, and it goes on after the last finished epoch"
        ) from None
