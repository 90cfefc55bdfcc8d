"""Two real processes against one: the same gradients, the same training, and one of them writes."""

import os
import subprocess
import sys
from pathlib import Path
from socket import socket

import numpy as np
import pytest
import torch
from made_ranks import CASES, gradients, train

from pipeline.training import ranks
from pipeline.training.ranks import ALONE, RankError, Ranks, refuse_too_many, together

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """Return a folder in which two processes have shared everything once."""
    folder = tmp_path_factory.mktemp("shared")
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    every = {
        **os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    words = [sys.executable, "-m", "made_ranks", "share", str(folder), str(tiny_config)]
    processes = [
        subprocess.Popen(words, env=every | {"RANK": str(number), "LOCAL_RANK": str(number)}, stderr=subprocess.PIPE)
        for number in (0, 1)
    ]
    told = [process.communicate(timeout=300)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert "image" in told[0]  # the bar
    assert told[1] == ""
    return folder


@pytest.fixture(scope="module")
def numbers(shared: Path) -> list[dict[str, np.ndarray]]:
    """Return what each process has found."""
    return [dict(np.load(shared / f"numbers-{number}.npz")) for number in (0, 1)]


def test_shares_are_whole_disjoint_and_even() -> None:
    for total in (0, 1, 5, 64):
        for count in (1, 2, 3, 7):
            parts = [Ranks(number, count).share(total) for number in range(count)]
            assert [image for start, stop in parts for image in range(start, stop)] == list(range(total))
            assert max(stop - start for start, stop in parts) - min(stop - start for start, stop in parts) <= 1


def test_one_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # of somebody else's: no launcher of torch's is there
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with together("auto") as own:
        assert own is ALONE
    part = np.arange(3)
    assert ALONE.joined(part, 3, "cpu") is part
    assert ALONE.tell("x") == "x"
    value = torch.ones(2)
    ALONE.add_up([value])
    ALONE.refuse_difference("weather", np.ones(1), "cpu")
    ALONE.end_in_peace()
    assert value.tolist() == [1, 1]
    assert ALONE.first
    assert not Ranks(1, 2).first


def test_a_gpu_has_one_process() -> None:
    refuse_too_many(2, 2)
    with pytest.raises(
        RankError, match=r"^4 processes were asked for, and torch sees 1 GPU here: give train.processes 1"
    ):
        refuse_too_many(4, 1)


def test_processes_without_an_answer_are_told_apart() -> None:
    """By what gloo and NCCL say."""
    for said, kind, told in (
        (
            "[unbound_buffer.cc:83] Timed out waiting 600000ms for recv",
            RankError,
            "not answered for 600 s: it hangs .Timed",
        ),
        ("Watchdog caught collective operation timeout: WorkNCCL", RankError, "has not answered for 600 s"),
        (
            "[pair.cc:553] Connection closed by peer [127.0.0.1]:1\nmore",
            ranks.LostError,
            "3 processes of this .* .Connection",
        ),
    ):
        with pytest.raises(RankError, match=told) as caught, ranks._answered(3):
            raise RuntimeError(said)
        assert caught.type is kind
        assert "\n" not in str(caught.value)


def test_all_know_what_each_has_found(numbers: list[dict[str, np.ndarray]]) -> None:
    for found in numbers:
        assert found["told"] == "by 0"
        for total in (1, 2, 7):
            np.testing.assert_array_equal(found[f"joined {total}"], np.arange(total)[:, None] / 3)
        assert found["difference"] == (
            "the 2 processes of this training do not hold the same weather: they must see the same files and compute "
            "on GPUs of one kind"
        )


@pytest.mark.parametrize(("count", "micro_batch"), [(5, 5), (5, 1), (1, 5)])
def test_a_batchs_gradient_is_one_processs(
    numbers: list[dict[str, np.ndarray]], tiny_config: Path, count: int, micro_batch: int
) -> None:
    """Within 1e-4 of each gradient's largest value, as passes of any size are, and the same bits in both processes.

    Of five images one process has two, without an auxiliary label; of one image it has none.
    """
    prefix = f"{count} by {micro_batch}: "
    expected = gradients(tiny_config, count=count, micro_batch=5)
    found, other = ({k.removeprefix(prefix): v for k, v in n.items() if k.startswith(prefix)} for n in numbers)
    assert found.keys() == other.keys() == expected.keys()
    assert ("auxiliary_adapter.up.weight" in found) == (count == 5)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], other[name], err_msg=name)
        scale = max(np.abs(value).max(), 1e-6)
        np.testing.assert_allclose(found[name] / scale, value / scale, atol=1e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(
    shared: Path, numbers: list[dict[str, np.ndarray]], tiny_config: Path, tmp_path: Path, case: str
) -> None:
    expected = train(case, tmp_path / case, tiny_config)
    found, other = (process[case] for process in numbers)
    np.testing.assert_array_equal(found, other)
    np.testing.assert_allclose(found, [list(row.values()) for row in expected], atol=2e-3, rtol=2e-3)
    states = [torch.load(place / case / "state.pt", weights_only=True) for place in (shared / "rank 0", tmp_path)]
    for name, value in states[1]["model"].items():
        torch.testing.assert_close(states[0]["model"][name], value, atol=2e-3, rtol=0, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_first_process_alone_writes(shared: Path, case: str) -> None:
    """Each was given a folder of its own."""
    written = sorted(path.relative_to(shared).as_posix() for path in (shared / "rank 0" / case).rglob("*.*"))
    names = [f"checkpoints/epoch-00{epoch}.safetensors" for epoch in (1, 2, 3)]
    assert written == [f"rank 0/{case}/{name}" for name in [*names, "state.pt"]]
    assert not (shared / "rank 1" / case).exists()
