"""Who may call the service: a wrapper around an ASGI application, and the tokens that it knows.

Without tokens only callers on this machine are answered, and only under a name of this machine: a page of another site
whose name was made to lead here (DNS rebinding) has another Host. With tokens every request needs one, as
`Authorization: Bearer TOKEN` or as the password of Basic, which browsers ask for by themselves. What a page of another
site sends is refused, whether or not the browser adds a token to it.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from jax_mmreid.errors import ConfigError

MIN_TOKEN = 16  # characters
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to which a server is bound, or names itself by it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_tokens(text: str, where: str) -> dict[str, str]:
    """{name: token} of lines NAME:TOKEN; empty lines and lines that start with # are left out.

    Raises ConfigError, starting with `where`, for a line of another form, a name given twice, a token that is short,
    and for no line at all.
    """
    tokens = {}
    lines = [(i, line.strip()) for i, line in enumerate(text.splitlines(), 1)]
    for i, line in ((i, line) for i, line in lines if line and not line.startswith("#")):
        match = re.fullmatch(r"([\w.@-]+):([!-~]+)", line)
        if not match or match[1] in tokens:
            raise ConfigError(f"{where}, line {i}: expected NAME:TOKEN, each name once, printable ASCII, no spaces")
        if len(match[2]) < MIN_TOKEN:
            raise ConfigError(f"{where}, line {i}: the token of {match[1]} has under {MIN_TOKEN} characters")
        tokens[match[1]] = match[2]
    if not tokens:
        raise ConfigError(f"{where} holds no token; write lines NAME:TOKEN into it")
    return tokens


class Guard:
    """An ASGI application before which every request is checked; what passes has `caller` in its state.

    Every answer gets `HEADERS`, refusals included. With `tokens` {name: token} the caller is the name of the token;
    without any, callers are this machine's and act as `user`.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], tokens: Mapping[str, str], user: str):
        self.app, self.user = app, user
        self.digests = {name: _digest(token) for name, token in tokens.items()}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            raise ValueError(f"the service does not speak {scope['type']}")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = message | {"headers": [*message.get("headers", ()), *added]}
            await send(message)

        caller = self._caller(scope, headers)
        if caller is None:
            tokens = "give one of the service's tokens" if self.digests else "the service has none; set --token_file"
            return await _refuse(send_with_headers, 401, f"a token is needed from here; {tokens}")
        refusal = self._strange(headers)
        if refusal is not None:
            return await _refuse(send_with_headers, 403, refusal)
        scope.setdefault("state", {})["caller"] = caller
        return await self.app(scope, receive, send_with_headers)

    def _caller(self, scope: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
        """The caller's name; None for one that may not call."""
        if not self.digests:
            client = scope.get("client") or ("",)
            return self.user if is_loopback(client[0]) else None
        given, found = _digest(_token(headers.get("authorization", ""))), None
        for name, digest in self.digests.items():  # all of them, so that the time says nothing
            if hmac.compare_digest(digest, given):
                found = name
        return found

    def _strange(self, headers: Mapping[str, str]) -> str | None:
        """Why a request of a known caller is refused; None if it is not."""
        host = headers.get("host", "")
        if not self.digests and not is_loopback(_name(host)):
            return f"there is no host {host!r} here; open the service as http://127.0.0.1 or http://localhost"
        origin = headers.get("origin")
        if origin is not None and _netloc(origin) != host.lower():
            return f"pages of {origin} may not use the service; open its own page"
        return None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _token(authorization: str) -> str:
    """The token of an Authorization header, "" without one. The user name of Basic does not matter."""
    scheme, _, value = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


async def _refuse(send: Callable, status: int, sentence: str) -> None:
    headers = [(b"content-type", b"application/json")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="jax_mmreid", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": sentence}).encode()})
