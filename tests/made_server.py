"""Servers of tests: a free port for one, and waiting until it listens."""

import socket
import subprocess
import time


def free_port() -> int:
    """Return a port that nothing listens at."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def await_listening(process: subprocess.Popen, port: int, seconds: float = 120) -> None:
    """Return once a port is listened at, while the process that is to do so runs."""
    until = time.monotonic() + seconds
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, f"it has ended with status {process.returncode}"
        assert time.monotonic() < until, f"nothing listens at port {port} after {seconds} s"
        time.sleep(0.2)
