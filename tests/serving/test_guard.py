"""Who may ask, and clients that are slow or silent, over real sockets."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from pipeline.scoring.scorer import Scorer
from pipeline.serving.guard import Guard, Patient, plain_host
from pipeline.serving.http import make_app, server_config

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


class Hurried(Patient):
    seconds, rate = 1.0, 1000.0


class Calm(Patient):
    seconds = 600.0


@contextlib.contextmanager
def running(scorer: Scorer, protocol: type[Patient], connections: int = 32) -> Iterator[int]:
    """Run the server in a thread and return its port."""
    server = uvicorn.Server(server_config(make_app(scorer), connections=connections, protocol=protocol))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def connect(port: int, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(sent)
    return connection


def ask(port: int, sent: bytes = HEALTH) -> bytes:
    with connect(port, sent) as connection:
        return connection.recv(4000)


@pytest.fixture(scope="module")
def hurried(demo_scorer: Scorer) -> Iterator[int]:
    with running(demo_scorer, Hurried) as port:
        yield port


SLOW = {  # what is sent at once, and then every fifth of a second
    "silent": (b"", b"", b"408"),
    "half a head": (b"POST /score HTT", b"", b"408"),
    "a head in drops": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"a", b"408"),
    "no body": (POST + b"Content-Length: 1000\r\n\r\n", b"", b"408"),
    "a body in drops": (POST + b"Content-Length: 1000\r\n\r\n{", b" ", b"408"),
    "chunks in drops": (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"408"),
    "the next head in drops": (HEALTH + b"GET /", b"a", b"200"),
    "the body of what was refused": (POST.replace(b"json", b"xml") + b"Content-Length: 1000\r\n\r\n", b" ", b"415"),
}


@pytest.mark.parametrize("case", SLOW)
def test_slow_clients_are_left(hurried: int, case: str) -> None:
    sent, drop, status = SLOW[case]
    begun, got = time.monotonic(), b""
    with connect(hurried, sent) as connection:
        connection.settimeout(0.2)
        while time.monotonic() < begun + 15:
            try:
                connection.sendall(drop)
                if not (more := connection.recv(4000)):
                    break
                got += more
            except TimeoutError:
                continue
            except ConnectionError:
                break
    assert 0.9 < time.monotonic() - begun < 8
    assert got.startswith(b"HTTP/1.1 " + status)
    assert got.count(b"HTTP/1.1") == 1
    assert status != b"408" or got.endswith(b'{"detail":"the request did not come in time"}')


@pytest.mark.slow
def test_a_steady_client_is_waited_for(hurried: int) -> None:
    begun = time.monotonic()
    with connect(hurried, POST + b"Content-Length: 3000\r\n\r\n") as connection:
        for _ in range(10):
            time.sleep(0.2)
            connection.sendall(b" " * 300)
        assert connection.recv(15).startswith(b"HTTP/1.1 400")
        assert time.monotonic() - begun > 2
        for _ in range(4):  # more requests on one connection, for longer than one may take
            time.sleep(0.4)
            connection.recv(4000)
            connection.sendall(HEALTH)
        time.sleep(0.4)
        assert b"200 OK" in connection.recv(4000)


def test_an_answer_that_is_not_taken_is_dropped(demo_scorer: Scorer) -> None:
    lost = threading.Event()

    class Watched(Hurried):
        def connection_lost(self, exc: Exception | None) -> None:
            lost.set()
            super().connection_lost(exc)

    with running(demo_scorer, Watched) as port, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.connect(("127.0.0.1", port))
        connection.setblocking(False)
        begun = time.monotonic()
        while not lost.is_set() and time.monotonic() < begun + 15:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                connection.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
            time.sleep(0.01)
        assert lost.is_set()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", POST + b"Content-Length: 9\r\n\r\n"])
def test_silent_connections_keep_nobody_out(demo_scorer: Scorer, sent: bytes) -> None:
    """No clock helps here: the one that has waited longest gives way at once."""
    with running(demo_scorer, Calm, connections=8) as port, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(connect(port, sent)) for _ in range(20)]
        time.sleep(0.3)
        for _ in range(3):
            assert b"200 OK" in ask(port)
        silent[0].settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert silent[0].recv(100) == b""
        silent[-1].settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent[-1].recv(100)


def test_whoever_sends_a_body_outlives_the_silent(demo_scorer: Scorer) -> None:
    with running(demo_scorer, Calm, connections=8) as port, contextlib.ExitStack() as stack:
        body = b'{"images": []}'
        sender = stack.enter_context(connect(port, POST + b"Content-Length: %d\r\n\r\n" % len(body)))
        time.sleep(0.2)
        for _ in range(20):
            stack.enter_context(connect(port))
        time.sleep(0.2)
        sender.sendall(body)
        assert sender.recv(4000).startswith(b"HTTP/1.1 422")


MALFORMED = {
    "no http": b"hello\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "long head": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000,
    "negative length": POST + b"Content-Length: -1\r\n\r\n",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length of words": POST + b"Content-Length: many\r\n\r\n",
    "huge length": POST + b"Content-Length: 9999999999999999999999\r\n\r\n",
    "bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "folded": b"GET / HTTP/1.1\r\nHost: localhost\r\n X: 1\r\n\r\n",
    "foreign": b"POST /score HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "tunnel": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    "upgrade": b"GET /score HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_http_gets_a_4xx(hurried: int, case: str) -> None:
    assert re.match(rb"HTTP/1\.1 4\d\d ", ask(hurried, MALFORMED[case]))


def test_old_programs_without_a_host_are_served(hurried: int) -> None:
    assert b"200 OK" in ask(hurried, b"GET /health HTTP/1.0\r\n\r\n")


def scope(host: str, origin: str | None = None, server: str = "10.0.0.5") -> dict[str, Any]:
    headers = [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])
    return {"type": "http", "headers": headers, "server": (server, 8000)}


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8000", None),
        ("LOCALHOST:8000", "http://localhost:8000"),
        ("127.0.0.1", "http://127.0.0.1"),
        ("[::1]:8000", "http://[::1]:8000"),
        ("10.0.0.5:8000", "http://10.0.0.5:8000"),
        ("scores.example", "https://scores.example"),
        ("Scores.example.:443", "https://scores.example"),
        ("scores.example:80", "http://scores.example"),
    ],
)
def test_its_own_hosts_and_page_pass(host: str, origin: str | None) -> None:
    assert Guard(None, ["scores.example"]).refusal(scope(host, origin)) is None


@pytest.mark.parametrize(
    ("host", "origin", "reason"),
    [
        ("10.0.0.6:8000", None, "the Host '10.0.0.6:8000' is not known here"),
        ("", None, "the Host '' is not known here"),
        ("scores.example.org", None, "is not known here"),
        ("localhost:8000:80", None, "is not known here"),
        ("localhost:8000", "https://localhost:8000.evil.example", "a page of another site asks"),
        ("localhost:8000", "http://127.0.0.1:8000", "a page of another site asks"),
        ("localhost:8000", "", "a page of another site asks"),
        ("localhost:8000", "http://localhost:99999999", "a page of another site asks"),
    ],
)
def test_others_are_told_why_not(host: str, origin: str | None, reason: str) -> None:
    assert reason in Guard(None, ["scores.example"]).refusal(scope(host, origin))


def test_the_address_that_a_connection_came_in_at_passes_in_any_spelling() -> None:
    assert Guard(None).refusal(scope("10.0.0.5", server="::ffff:10.0.0.5")) is None
    assert Guard(None).refusal(scope("[2001:DB8::0:1]:80", server="2001:db8::1")) is None
    assert plain_host("[fe80::1%eth0]") == "fe80::1"
