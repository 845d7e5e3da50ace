"""While a database is away, requests wait for it, as they wait for a server that restarts.

A database that fails over is gone for a minute or two, and whoever is refused at once asks in vain until then. So what
has not begun waits: a request before MLflow sees it, and a thread of a request that opens a connection, or takes one
from a pool. What the database was doing when it died still fails, because nobody knows how far it came.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

import psycopg2

from mlflow_service.health import FRESH, PATIENCE, Databases
from mlflow_service.logins import refusal

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import Dialect, ExceptionContext
    from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTING = "MLFLOW_SERVICE_DATABASE_PATIENCE"
DATABASE_AWAY = "The tracking server's database does not answer. Try again later."
# Requests that may wait in a worker at once: nginx has two connections for each.
ROOM = 200
# What is answered without a database.
FREE = frozenset({"/health", "/version"})
# What PostgreSQL says while it starts and stops; its other refusals of a login are no outage.
PASSING = ("starting up", "shutting down", "recovery", "not yet accepting", "not accepting")


@dataclass
class Waiter:
    """A request, and the seconds that it may still wait."""

    left: float


# Of the request that a thread works for; what a worker does by itself waits for nothing.
WAITER: ContextVar[Waiter | None] = ContextVar("waiter", default=None)


def on_the_loop() -> bool:
    """Tell whether this is the event loop's thread, in which nothing may wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Outages:
    """What a worker knows of its databases' absence, and who waits for its end."""

    def __init__(self, databases: Databases, patience: float) -> None:
        """Take for how many seconds a request waits."""
        self.databases = databases
        self.patience = patience
        self.suspected = 0.0
        self.ending = False
        self.loop: asyncio.AbstractEventLoop | None = None

    def suspect(self) -> None:
        """Let nobody begin before the databases have been asked; any thread may say so."""
        if self.patience:
            self.suspected = monotonic()

    def noticed(self, context: ExceptionContext) -> None:
        """Suspect an outage where a connection has died (SQLAlchemy's event handle_error)."""
        if context.is_disconnect:
            self.suspect()

    async def over(self, deadline: float) -> bool:
        """Wait until all databases answer, and tell whether they do.

        Returns: False when they do not by the deadline, or when the worker stops.
        """
        while since := self.suspected:
            if self.ending or monotonic() >= deadline:
                return False
            if await self.databases.away(since):
                await asyncio.sleep(FRESH)
            elif self.suspected == since:
                self.suspected = 0.0
        return True

    def connect(self, dialect: Dialect, record: Any, arguments: Sequence[Any], options: dict[str, Any]) -> Any:
        """Open a connection for SQLAlchemy (its event do_connect), and wait for the database, if this thread may.

        Raises: psycopg2.OperationalError when it is still away, or refuses the login.
        """
        while True:
            try:
                return dialect.connect(*arguments, **options)
            except psycopg2.OperationalError as error:
                words = str(error)
                if "FATAL:" in words and not any(word in words for word in PASSING):
                    raise
                self.suspect()
                if not self.awaited():
                    raise

    def taken(self, take: Callable[[QueuePool], ConnectionPoolEntry], pool: QueuePool) -> ConnectionPoolEntry:
        """Take a connection from a pool for SQLAlchemy, whose waiting connections may have all of its places.

        Raises: sqlalchemy.exc.OperationalError where SQLAlchemy's TimeoutError would be the client's fault to MLflow.
        """
        from sqlalchemy.exc import OperationalError, TimeoutError

        while True:
            # Those who have all places may wait for this very thread.
            full = pool.checkedin() == 0 and pool.overflow() >= pool._max_overflow
            if self.suspected and full and on_the_loop():
                raise OperationalError(None, None, psycopg2.OperationalError("the database is away"))
            begun = monotonic()
            try:
                return take(pool)
            except TimeoutError as error:
                waiter = WAITER.get()
                if waiter:
                    waiter.left -= monotonic() - begun
                away = self.suspected or self.databases.said
                if not away or not waiter or waiter.left <= 0:
                    raise OperationalError(None, None, error) from error

    def awaited(self) -> bool:
        """Wait in a thread of a request until the databases answer, and tell whether they do."""
        waiter, loop = WAITER.get(), self.loop
        if waiter is None or loop is None or waiter.left <= 0 or on_the_loop():
            return False
        begun = monotonic()
        # A database that answers, and still has no connection to give, is not asked for one in a hurry.
        sleep(FRESH)
        try:
            over = asyncio.run_coroutine_threadsafe(self.over(begun + waiter.left), loop)
            # The loop may end before it has begun.
            return over.result(timeout=waiter.left + FRESH + PATIENCE + 1)
        except (concurrent.futures.TimeoutError, RuntimeError):
            return False
        finally:
            waiter.left -= monotonic() - begun

    def end(self) -> None:
        """Let those go who wait, because the worker stops."""
        self.ending = True


class Early:
    """The messages of a request, the first of which are received before MLflow asks for them."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.kept: list[Message] = []
        self.coming: asyncio.Future[Message] | None = asyncio.ensure_future(receive())

    async def left(self) -> None:
        """Return when the client has left; a body of several messages stays with it, and says nothing of that."""
        while self.coming:
            message = await asyncio.shield(self.coming)
            if message["type"] == "http.disconnect":
                return
            self.kept.append(message)
            self.coming = None if message.get("more_body") else asyncio.ensure_future(self.receive())
        await asyncio.Future()

    async def next(self) -> Message:
        """Return the next message: MLflow's `receive`."""
        if self.kept:
            return self.kept.pop(0)
        if self.coming is None:
            return await self.receive()
        message = await asyncio.shield(self.coming)
        self.coming = None
        return message

    def end(self) -> None:
        """Receive nothing more."""
        if self.coming:
            self.coming.cancel()


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
        if scope["type"] != "http" or not outages.patience:
            await self.app(scope, receive, send)
            return
        waiter = Waiter(outages.patience)
        WAITER.set(waiter)
        # Connections to what hangs are given up late; the balancer's question was sooner.
        if outages.databases.hangs and not outages.suspected:
            outages.suspect()
        if outages.suspected and scope["path"] not in FREE:
            await self.wait(waiter, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def wait(self, waiter: Waiter, scope: Scope, receive: Receive, send: Send) -> None:
        """Wait, and refuse in the end who has waited in vain; whoever has left meanwhile asks for nothing any more."""
        early = Early(receive)
        try:
            if self.waiting < ROOM and await self.goes_through(waiter, early):
                await self.app(scope, early.next, send)
            else:
                await refusal(HTTPStatus.SERVICE_UNAVAILABLE, "TEMPORARILY_UNAVAILABLE", DATABASE_AWAY).answer(send)
        finally:
            early.end()

    async def goes_through(self, waiter: Waiter, early: Early) -> bool:
        """Wait for the databases, and tell whether the client is still there when they are back."""
        begun = monotonic()
        left = asyncio.ensure_future(early.left())
        over = asyncio.ensure_future(self.outages.over(begun + waiter.left))
        self.waiting += 1
        try:
            await asyncio.wait({left, over}, return_when=asyncio.FIRST_COMPLETED)
            return not left.done() and over.result()
        finally:
            self.waiting -= 1
            waiter.left -= monotonic() - begun
            left.cancel()
            over.cancel()


def install(databases: Databases) -> Outages:
    """Let every connection that is asked for from now on wait for its database, as long as the environment says."""
    from sqlalchemy import Engine, event
    from sqlalchemy.pool import QueuePool

    outages = Outages(databases, float(os.environ.get(SETTING, "0")))
    event.listen(Engine, "handle_error", outages.noticed)
    event.listen(Engine, "do_connect", outages.connect)
    take = QueuePool._do_get

    def taken(pool: QueuePool) -> ConnectionPoolEntry:
        return outages.taken(take, pool)

    QueuePool._do_get = taken
    return outages
