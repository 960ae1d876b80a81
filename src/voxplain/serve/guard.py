"""What stands before every route: who may ask, how much may be sent, what the browser may do with the answer."""

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LIMIT = 4 << 20  # bytes of a request
COOKIE = "voxplain"
WRITING = ("POST", "PUT", "PATCH", "DELETE")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self' data:; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Access:
    """Where the server listens, which names it answers to, and the token that is asked for off the loopback.

    `names` are further host names, as those of a proxy.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    names: Sequence[str] = ()
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, host: str, port: int, names: Sequence[str] = ()) -> "Access":
        """With a fresh random token unless `host` is this machine only."""
        return cls(host, port, tuple(names), None if host in LOOPBACK else secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        """What to type into a browser."""
        host = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(self.host, self.host)
        where = f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"
        return f"{where}?token={self.token}" if self.token else where

    def answers_to(self, header: str | None) -> bool:
        """Whether the Host header names this server, so that no other site's name can be bent to it.

        With a token in force every numeric address is taken: a name is what rebinding needs.
        """
        try:
            parts = urlsplit(f"//{header or ''}")
            name, port = parts.hostname or "", parts.port
        except ValueError:
            return False
        known = [*LOOPBACK, *self.names]
        if self.token:
            known += [self.host, socket.gethostname(), socket.getfqdn()]
        return name in {each.lower() for each in self.names} or (
            (port or 80) == self.port
            and (name in {each.lower() for each in known} or bool(self.token and _numeric(name)))
        )


class Guard:
    """An ASGI application around another one: Host, token, origin and size are checked, headers are added.

    An application that sets a header of `HEADERS` itself, as OHIF's pages need another policy, keeps its own.
    """

    def __init__(self, app: Application, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return None  # no web sockets here
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        problem = self._problem(scope, headers)
        if problem:
            return await _answer(send, *problem)
        if self.access.token and "token" in parse_qs(scope["query_string"].decode("latin-1")):
            cookie = f"{COOKIE}={self.access.token}; HttpOnly; SameSite=Strict; Path=/"
            here = quote(f"/{scope['path'].lstrip('/')}")  # two slashes in front would name another host
            return await _answer(send, 303, "", {"location": here, "set-cookie": cookie})
        await self.app(scope, _limited(receive), _with_headers(send))

    def _problem(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """A status and a sentence for a request that is refused."""
        if not self.access.answers_to(headers.get("host")):
            return 421, "this server does not answer to that host name; open the address that `voxplain view` printed"
        if self.access.token and not self._knows_token(scope, headers):
            return 401, "open the whole address that `voxplain view` printed; it ends in a token"
        size = headers.get("content-length", "0")
        if not size.isdecimal() or int(size) > LIMIT:
            return 413, f"a request may have {LIMIT >> 20} MiB at most"
        if scope["method"] in WRITING and not self._from_our_page(headers):
            return 403, "requests that change anything come from our own pages only"
        return None

    def _knows_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            kept = None
        token = (self.access.token or "").encode()
        return any(hmac.compare_digest(one.encode(), token) for one in (given, kept.value if kept else ""))

    @staticmethod
    def _from_our_page(headers: dict[str, str]) -> bool:
        """Another site's page cannot set this header, and its origin is another one."""
        origin = headers.get("origin")
        same = origin is None or urlsplit(origin).netloc == headers.get("host")
        return same and headers.get("x-voxplain") == "1"


def _limited(receive: Receive) -> Receive:
    """The body, cut off as a broken connection once it is longer than it may be, whatever its header said."""
    seen = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        return message if seen <= LIMIT else {"type": "http.disconnect"}

    return limited


def _with_headers(send: Send) -> Send:
    async def adding(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            present = {key.lower() for key, _ in message.get("headers", [])}
            more = [(key.encode(), value.encode()) for key, value in HEADERS.items() if key.encode() not in present]
            message = {**message, "headers": [*message.get("headers", []), *more]}
        await send(message)

    return adding


async def _answer(send: Send, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    plain = {**HEADERS, "content-type": "text/plain; charset=utf-8", **(headers or {})}
    pairs = [(key.encode(), value.encode("latin-1")) for key, value in plain.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": text.encode()})


def _numeric(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
