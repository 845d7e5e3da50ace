"""While a database is away, requests wait for it, as they wait for a server that restarts.

A database that fails over is gone for a minute or two, and whoever is refused at once asks in vain until then. So what
has not begun waits: a request before MLflow sees it, and a unit of work that opens its connection. What the database
was doing when it died still fails, because nobody knows how far it came.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from http import HTTPStatus
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import psycopg2

from mlflow_service.health import FRESH, Databases
from mlflow_service.logins import refusal

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect, ExceptionContext
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTING = "MLFLOW_SERVICE_DATABASE_PATIENCE"
DATABASE_AWAY = "The tracking server's database does not answer. Try again later."
# Requests that may wait in a worker at once: nginx has two connections for each.
ROOM = 200
# What is answered without a database.
FREE = frozenset({"/health", "/version"})


class Outages:
    """What a worker knows of its databases' absence, and who waits for its end."""

    def __init__(self, databases: Databases, patience: float) -> None:
        """Take for how many seconds one waits."""
        self.databases = databases
        self.patience = patience
        self.suspected = 0.0
        self.ending = False
        self.loop: asyncio.AbstractEventLoop | None = None

    def suspect(self) -> None:
        """Let nobody begin before the databases have been asked; any thread may say so."""
        self.suspected = monotonic()

    def noticed(self, context: ExceptionContext) -> None:
        """Suspect an outage where a connection has died (SQLAlchemy's event handle_error)."""
        if context.is_disconnect:
            self.suspect()

    async def over(self, deadline: float) -> bool:
        """Wait until all databases answer, and tell whether they do.

        Returns: False when they do not by the deadline, or when the worker stops.
        """
        while self.suspected:
            if self.ending or monotonic() > deadline:
                return False
            if await self.databases.away(self.suspected):
                await asyncio.sleep(FRESH)
            # An answer to a question from before says nothing.
            elif self.databases.begun > self.suspected:
                self.suspected = 0.0
        return True

    def connect(self, dialect: Dialect, record: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """Open a connection for SQLAlchemy (its event do_connect), and wait for the database, if this thread may.

        Raises: psycopg2.OperationalError when it is still away.
        """
        deadline = monotonic() + self.patience
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except psycopg2.OperationalError:
                self.suspect()
                if not self.awaited(deadline):
                    raise

    def awaited(self, deadline: float) -> bool:
        """Wait in a thread; the event loop's own may not, and before there is one nobody does."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            return False
        if self.loop is None or monotonic() >= deadline:
            return False
        # A database that answers, and still has no connection to give, is not asked for one in a hurry.
        sleep(FRESH)
        return asyncio.run_coroutine_threadsafe(self.over(deadline), self.loop).result()

    def end(self) -> None:
        """Let those go who wait, because the worker stops."""
        self.ending = True


class Waiting:
    """An ASGI application whose requests wait while a database is away."""

    def __init__(self, app: ASGIApp, outages: Outages) -> None:
        self.app = app
        self.outages = outages
        self.waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, now or when the database is back."""
        outages = self.outages
        outages.loop = outages.loop or asyncio.get_running_loop()
        if scope["type"] == "http" and outages.suspected and outages.patience and scope["path"] not in FREE:
            await self.wait(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def wait(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, and refuse in the end who has waited in vain; whoever has left meanwhile asks for nothing any more."""
        came, first, gone = False, None, None
        if self.waiting < ROOM:
            self.waiting += 1
            try:
                first = await receive()
                # After the whole body nothing comes but the client's end.
                gone = None if first.get("more_body") else asyncio.ensure_future(receive())
                came = await self.outages.over(monotonic() + self.outages.patience)
            finally:
                self.waiting -= 1
        try:
            if came and not (gone and gone.done()):
                await self.app(scope, again(first, gone, receive), send)
            else:
                await refusal(HTTPStatus.SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", DATABASE_AWAY).answer(send)
        finally:
            if gone:
                gone.cancel()


def again(first: Message | None, gone: asyncio.Future[Message] | None, receive: Receive) -> Receive:
    """Return what yields the messages that have been received already, then the others."""
    kept = [first] if first else []

    async def received() -> Message:
        if kept:
            return kept.pop()
        return await (asyncio.shield(gone) if gone else receive())

    return received


def install(databases: Databases) -> Outages:
    """Let every connection that is opened from now on wait for its database, as long as the environment says."""
    from sqlalchemy import Engine, event

    outages = Outages(databases, float(os.environ.get(SETTING, "0")))
    event.listen(Engine, "handle_error", outages.noticed)
    event.listen(Engine, "do_connect", outages.connect)
    return outages
