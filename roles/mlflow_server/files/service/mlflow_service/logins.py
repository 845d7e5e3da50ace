"""A limit on wrong logins.

Each request carries a login, and MLflow needs 0.2 s of CPU to find out that one is wrong, for some paths on its event
loop, where everybody waits meanwhile. So a login that is not known to be right is checked here first, in one thread per
worker, and that is charged to the address that it came from. One that is right is charged nothing, then or later: a
known client is served as ever, whoever else comes from its address.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import math
import os
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from werkzeug.datastructures import Authorization

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTING = "MLFLOW_SERVICE_LOGIN_FAILURES_PER_MINUTE"
# Wrong logins in a row before the rate counts.
BURST = 10
# Logins that may wait for their check, and the seconds that so many take.
QUEUE, FULL = 50, 10
# Addresses, and right logins, that are remembered; the ones unused for longest are forgotten.
REMEMBERED = 10_000
REFUSAL = "You are not authenticated. Please see https://www.mlflow.org/docs/latest/auth/index.html"


class Buckets:
    """Tokens of each address: one more every so many seconds, up to BURST."""

    def __init__(self, per_minute: int) -> None:
        self.rate = per_minute / 60
        self.size = min(per_minute, BURST)
        self.levels: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def level(self, address: str) -> float:
        """Return how many tokens an address has now."""
        level, then = self.levels.get(address, (self.size, 0.0))
        return min(self.size, level + (monotonic() - then) * self.rate)

    def add(self, address: str, tokens: int) -> None:
        """Change that number."""
        self.levels[address] = (min(self.size, self.level(address) + tokens), monotonic())
        self.levels.move_to_end(address)
        if len(self.levels) > REMEMBERED:
            self.levels.popitem(last=False)

    def wait(self, address: str) -> int:
        """Return the seconds until the address has a token: 0 if it has one."""
        return math.ceil(max(0.0, 1 - self.level(address)) / self.rate)


def network(address: str) -> str:
    """Return whom an address stands for: an IPv6 user has a whole /64."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(found.ipv4_mapped or ipaddress.ip_network((found, 64), strict=False))


class Login(NamedTuple):
    """What a request claims, and where it came from."""

    header: bytes
    whom: str
    username: str
    password: str


class RefusedError(Exception):
    """An answer in place of the application's."""

    def __init__(self, status: HTTPStatus, text: str, kind: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {"content-type": kind, "content-length": str(len(text)), **headers}

    async def answer(self, send: Send) -> None:
        """Send it."""
        headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status.value, "headers": headers})
        await send({"type": "http.response.body", "body": str(self).encode()})


def refusal(status: HTTPStatus, code: str, message: str, **headers: str) -> RefusedError:
    """Return a refusal as MLflow's client reads it."""
    return RefusedError(status, json.dumps({"error_code": code, "message": message}), "application/json", **headers)


def found(scope: Scope) -> Login | None:
    """Return the login of a request, if it has one that has to be checked.

    Raises: RefusedError when there are two, of which MLflow's halves might read different ones.
    """
    values: dict[bytes, list[bytes]] = {}
    for name, value in scope["headers"]:
        values.setdefault(name, []).append(value)
    # nginx always sends it: without it, somebody of this host asks.
    address = values.get(b"x-real-ip")
    # On these paths MLflow's own login has a header of its own, and the usual one may be for what lies behind.
    own = values.get(b"x-mlflow-authorization") if scope["path"].startswith("/gateway/") else None
    headers = own if own and own[0] else values.get(b"authorization")
    if not address or not headers:
        return None
    if len(headers) > 1:
        raise refusal(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", "There is more than one Authorization header.")
    # As Flask reads it, and no stricter about blanks than FastAPI's half.
    login = Authorization.from_header(" ".join(headers[0].decode("latin-1").split()))
    if login is None or login.type != "basic":
        return None
    return Login(headers[0], network(address[0].decode("latin-1")), login.username or "", login.password or "")


class Logins:
    """An ASGI application behind the limit."""

    def __init__(
        self, app: ASGIApp, check: Callable[[str, str], bool], is_open: Callable[[str], bool], per_minute: int
    ) -> None:
        """Take what tells, and may block, whether a user's password is right; and which paths need none."""
        self.app = app
        self.check = check
        self.is_open = is_open
        self.buckets = Buckets(per_minute)
        self.checker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="logins")
        self.checking: dict[bytes, asyncio.Future[bool]] = {}
        self.right: OrderedDict[bytes, None] = OrderedDict()
        # Nobody who reads the memory can try passwords on these digests without it.
        self.salt = secrets.token_bytes(32)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http" or self.is_open(scope["path"]):
            await self.app(scope, receive, send)
            return
        key = b""

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == HTTPStatus.UNAUTHORIZED:
                # Revoked, or changed.
                self.right.pop(key, None)
            await send(message)

        try:
            if login := found(scope):
                key = hashlib.blake2b(login.header, key=self.salt).digest()
                await self.admit(key, login)
        except RefusedError as error:
            await error.answer(send)
        else:
            await self.app(scope, receive, watch)

    async def admit(self, key: bytes, login: Login) -> None:
        """Return when a login is right, or cannot be checked: MLflow runs into the same, and has words for it.

        Raises: RefusedError when it is wrong, or when too many were.
        """
        if key in self.right:
            self.right.move_to_end(key)
            return
        if key not in self.checking:
            wait = self.buckets.wait(login.whom) if len(self.checking) < QUEUE else FULL
            if wait:
                message = f"There are too many wrong logins. Try again in {wait} s."
                status = HTTPStatus.TOO_MANY_REQUESTS
                raise refusal(status, "REQUEST_LIMIT_EXCEEDED", message, retry_after=str(wait))
            self.start(key, login)
        # Whoever comes with the same login meanwhile waits for the same answer.
        try:
            right = await asyncio.shield(self.checking[key])
        except Exception:
            return
        if not right:
            challenge = 'Basic realm="mlflow"'
            raise RefusedError(
                HTTPStatus.UNAUTHORIZED, REFUSAL, "text/plain; charset=utf-8", www_authenticate=challenge
            )

    def start(self, key: bytes, login: Login) -> None:
        """Have a login checked at the expense of whom it came from."""

        def settle(checked: asyncio.Future[bool]) -> None:
            del self.checking[key]
            failed = checked.cancelled() or checked.exception() is not None
            if failed or checked.result():
                self.buckets.add(login.whom, 1)
            if not failed and checked.result():
                self.right[key] = None
                if len(self.right) > REMEMBERED:
                    self.right.popitem(last=False)

        self.buckets.add(login.whom, -1)
        loop = asyncio.get_running_loop()
        self.checking[key] = loop.run_in_executor(self.checker, self.check, login.username, login.password)
        self.checking[key].add_done_callback(settle)


def limited(app: ASGIApp) -> ASGIApp:
    """Return MLflow's application behind the limit that the environment sets, if any."""
    per_minute = int(os.environ.get(SETTING, "0"))
    if not per_minute:
        return app
    from mlflow.environment_variables import _MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN
    from mlflow.server import auth

    def check(username: str, password: str) -> bool:
        # MLflow's own jobs log in by a token.
        token = _MLFLOW_INTERNAL_GATEWAY_AUTH_TOKEN.get()
        if token and secrets.compare_digest(password.encode(), token.encode()):
            return True
        # Its answer is in MLflow's own cache afterwards.
        return auth._authenticate_cached(username, password) is not None

    return Logins(app, check, auth.is_unprotected_route, per_minute)
