"""Who may ask the server, and how long it waits for them.

A page of another site must not score images through its visitor's browser, so `Guard` looks at Origin and Host. The
second is for DNS rebinding: a name that first leads to the other site and then to this machine makes both one origin
in a browser's eyes, but the Host that the browser sends is still that name.

Uvicorn times out a connection between two requests and none within a request, so `Patient` does. Starlette's
TrustedHostMiddleware is not used: it knows no Origin, takes fixed names only, and gives no reason.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    import asyncio

    from starlette.types import ASGIApp, Receive, Scope, Send

LOCAL = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)


def plain_host(host: str) -> str:
    """Return a host in the one spelling that is compared: lower case, no brackets, IPv4 as such."""
    host = host.strip("[]").rstrip(".").lower().partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    return str(getattr(address, "ipv4_mapped", None) or address)


class Guard:
    """ASGI middleware: 403 with a reason for a Host that is not the server's, or an Origin that is not the Host.

    These Hosts pass, with any port: localhost names, the address of this machine that the connection came in at, and
    the names given. Requests without Origin are programs and not pages, and HTTP/1.0 without Host is no browser.
    """

    def __init__(self, app: "ASGIApp", names: Iterable[str] = ()) -> None:
        """Wrap an application.

        Args:
            app: The application.
            names: Further hosts that the server is known by.
        """
        self.app = app
        self.names = {plain_host(name) for name in (*LOCAL, *names)}

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Answer a request here or hand it on."""
        reason = self.refusal(scope) if scope["type"] == "http" else None
        if reason is None:
            return await self.app(scope, receive, send)
        from starlette.responses import JSONResponse

        return await JSONResponse({"detail": reason}, 403)(scope, receive, send)

    def refusal(self, scope: "Scope") -> str | None:
        """Return why a request is refused, or None."""
        hosts, origins = ([value.decode("latin-1") for key, value in scope["headers"] if key == name]
                          for name in (b"host", b"origin"))  # fmt: skip
        host = hosts[0] if hosts else ""
        found = _HOST.fullmatch(host)
        names = self.names | ({plain_host(scope["server"][0])} if scope.get("server") else set())
        if hosts and (len(hosts) > 1 or not found or plain_host(found[1]) not in names):
            return (
                f"the Host {host[:100]!a} is not known here: ask by the server's address, or name it with "
                "--allow-host when the server is started"
            )
        for origin in origins:
            if not found or not _same_origin(origin, found[1], found[2]):
                return f"a page of another site asks (Origin {origin[:100]!a}), and only this server's own may"
        return None


def _same_origin(origin: str, host: str, port: str | None) -> bool:
    try:
        parts = urlsplit(origin)
        default = _PORTS[parts.scheme]
        asking = (plain_host(parts.hostname or ""), parts.port or default)
    except (ValueError, KeyError):
        return False
    return asking == (plain_host(host), int(port or default))


class Patient(H11Protocol):
    """A connection that waits for its client, but not for ever.

    While a request comes in, an answer goes out or nothing happens, the client has `seconds`, and one more for each
    `rate` bytes that were moved; scoring is not counted. When there are more connections than the server takes, the one
    that has waited longest for its client gives way, those without a request first: silent ones keep nobody out.

    Attributes:
        seconds: To send a request, or to take an answer.
        rate: Bytes a second that prolong it.
    """

    seconds: float = 20.0
    rate: float = 16_384.0

    _moved, _unsent = 0, 0
    _timer: "asyncio.TimerHandle | None" = None

    @property
    def waits_for_client(self) -> bool:
        """Whether the next step is the client's: not so while a whole request is worked on with no answer unsent."""
        working = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_started
        return not working or self.transport.get_write_buffer_size() > 0

    @property
    def patience(self) -> tuple[bool, float]:
        """What orders connections that wait: whether a request has begun, and since when, in the loop's seconds."""
        return self.cycle is not None and not self.cycle.response_complete, self._since

    def connection_made(self, transport: Any) -> None:
        """Start the clock, and make room."""
        super().connection_made(transport)
        self._since = self.loop.time()
        self._look()
        while self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            waiting = [other for other in self.connections if other is not self and other.waits_for_client]
            if not waiting:
                break  # all are at work, and uvicorn answers 503
            longest = min(waiting, key=lambda other: other.patience)
            self.connections.discard(longest)
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count what comes in."""
        self._moved += len(data)
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Start the clock anew for the next request."""
        self._since, self._moved = self.loop.time(), 0
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        now, unsent = self.loop.time(), self.transport.get_write_buffer_size()
        self._moved += max(0, self._unsent - unsent)
        self._unsent = unsent
        if not self.waits_for_client:
            self._since, self._moved = now, 0
        self._timer = self.loop.call_later(min(1.0, self.seconds / 4), self._look)
        if now <= self._since + self.seconds + self._moved / self.rate:
            return
        if (self.cycle is None or not self.cycle.response_started) and not unsent:
            detail = b'{"detail":"the request did not come in time"}'
            self.transport.write(
                b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(detail), detail)
            )
            self.transport.close()
        else:
            self.transport.abort()
