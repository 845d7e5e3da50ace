"""What a load balancer asks: can this worker reach its databases now?

MLflow's own /health answers whatever is broken behind it. This is asked without a login and by any name, so it says
nothing but which database is away. It has a connection of its own, opened for the question and closed after it: a busy
pool is no dead database, and a dead one takes neither the pools nor the threads of the requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http import HTTPStatus
from time import monotonic
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import POLL_OK, POLL_READ

if TYPE_CHECKING:
    from psycopg2.extensions import connection
    from starlette.types import ASGIApp, Receive, Scope, Send

logger = logging.getLogger(__name__)

PATH = "/ready"
# Seconds: for all databases together, and for which an answer counts.
PATIENCE = 3.0
FRESH = 1.0


def settle(session: connection, deadline: float) -> None:
    """Wait until a connection has done what it was told.

    Raises: psycopg2.Error when it fails; TimeoutError at the deadline, where libpq itself may wait for minutes.
    """
    while (state := session.poll()) != POLL_OK:
        readers, writers = ([session], []) if state == POLL_READ else ([], [session])
        if not any(select.select(readers, writers, [], max(0.0, deadline - monotonic()))):
            raise TimeoutError("no answer in time")


def ask(url: str, deadline: float) -> None:
    """Ask a database a question that needs none of its data.

    Raises: psycopg2.Error or TimeoutError when it does not answer.
    """
    with closing(psycopg2.connect(url, async_=True)) as session:
        settle(session, deadline)
        # Held until the answer: psycopg2 finds it by the cursor.
        cursor = session.cursor()
        cursor.execute("SELECT 1")
        settle(session, deadline)


class Databases:
    """The databases, asked by one question at a time, however many want to know."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        """Take their URLs, for SQLAlchemy, by their names."""
        self.urls = {name: url.replace("postgresql+psycopg2://", "postgresql://", 1) for name, url in urls.items()}
        self.asker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ready")
        self.asking: asyncio.Future[None] | None = None
        self.begun = self.ended = 0.0
        self.answered: set[str] = set()
        self.said: list[str] = []
        # Whether one did not even refuse, the last time.
        self.hangs = False

    async def away(self, since: float = 0.0) -> list[str]:
        """Return the names of the databases that do not answer; an answer to a question from before then is stale."""
        while True:
            if self.asking is None or (self.asking.done() and (monotonic() > self.ended + FRESH or self.begun < since)):
                self.begun, self.answered = monotonic(), set()
                self.asking = asyncio.get_running_loop().run_in_executor(self.asker, self.ask_all, self.answered)
            asking, begun, answered = self.asking, self.begun, self.answered
            # The look-up of a name may outlast the deadline. Whoever comes later is told the same, at the same time.
            await asyncio.wait([asking], timeout=max(0.0, begun + PATIENCE - monotonic()))
            if begun >= since or not asking.done():
                return [name for name in self.urls if name not in answered]

    def ask_all(self, answered: set[str]) -> None:
        """Ask one database after the other, in the thread of its own, and log what has changed."""
        begun = monotonic()
        reasons, hangs = [], False
        for number, (name, url) in enumerate(self.urls.items(), 1):
            try:
                # One that hangs leaves its share of the time to the other.
                ask(url, begun + PATIENCE * number / len(self.urls))
                answered.add(name)
            except (psycopg2.Error, OSError) as error:
                reasons.append(f"{name}: {error!r}")
                hangs = hangs or isinstance(error, TimeoutError)
        away = sorted(self.urls.keys() - answered)
        if away != self.said:
            logger.warning("Not ready. %s", "; ".join(reasons)) if away else logger.warning("Ready again.")
            self.said = away
        self.hangs = hangs
        self.ended = monotonic()


class Ready:
    """An ASGI application that answers for its databases."""

    def __init__(self, app: ASGIApp, databases: Databases) -> None:
        self.app = app
        self.databases = databases

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the balancer, and hand on all other requests."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self.app(scope, receive, send)
            return
        away = await self.databases.away()
        status = HTTPStatus.SERVICE_UNAVAILABLE if away else HTTPStatus.OK
        body = json.dumps({"status": "UNAVAILABLE", "away": away} if away else {"status": "OK"}).encode()
        kind, length = (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())
        headers = [kind, length, (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": status.value, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def databases() -> Databases:
    """Return those of the environment."""
    urls = {"tracking": os.environ["_MLFLOW_SERVER_FILE_STORE"]}
    if "MLFLOW_AUTH_CONFIG_PATH" in os.environ:
        from mlflow.server.auth import auth_config

        urls["auth"] = auth_config.database_uri
    return Databases(urls)
