"""Who waits for a database that is away, how long, and what becomes of a request meanwhile."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import os
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg2
import pytest
from mlflow_service import outages
from service_machine import PROGRAM

BODY = [{"type": "http.request", "body": b"all of it", "more_body": False}]


class Databases:
    """Databases that are away until somebody says otherwise."""

    def __init__(self) -> None:
        self.there = self.hangs = False
        self.said: list[str] = []
        self.asked = 0

    async def away(self, since: float) -> list[str]:
        self.asked += 1
        return [] if self.there else ["tracking"]


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "FRESH", 0.02)


class Client:
    """One request: what it sends, and what it is answered."""

    def __init__(self, *messages: dict[str, Any]) -> None:
        self.messages = list(messages)
        self.left = asyncio.Event()
        self.status = 0
        self.body = b""

    async def receive(self) -> Any:
        if self.messages:
            return self.messages.pop(0)
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        self.body += message.get("body", b"")

    async def ask(self, app: Any, path: str = "/api/2.0/mlflow/runs/create") -> Client:
        await app({"type": "http", "path": path, "headers": []}, self.receive, self.send)
        return self


async def mlflow(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what was sent."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


def scene(
    act: Callable[[outages.Outages, outages.Waiting, Databases], Coroutine[Any, Any, None]], patience: float = 30
) -> None:
    databases = Databases()
    outage = outages.Outages(databases, patience)  # type: ignore[arg-type]
    asyncio.run(act(outage, outages.Waiting(mlflow, outage), databases))


def test_a_request_waits_and_goes_through_whole() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        parts = [{"type": "http.request", "body": b"half, ", "more_body": True}, *BODY]
        asking = [asyncio.create_task(client.ask(waiting)) for client in (Client(*BODY), Client(*parts))]
        await asyncio.sleep(0.2)
        assert [one.done() for one in asking] == [False, False]
        databases.there = True
        small, large = await asyncio.gather(*asking)
        assert (small.status, small.body, large.status, large.body) == (200, b"all of it", 200, b"half, all of it")
        asked = databases.asked
        assert (await Client(*BODY).ask(waiting)).status == 200
        assert databases.asked == asked

    scene(act)


def test_what_needs_no_database_does_not_wait() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        assert (await asyncio.wait_for(Client(*BODY).ask(waiting, "/health"), 5)).status == 200

    scene(act)


def test_patience_ends_with_a_refusal_that_a_client_tries_again() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        begun = time.monotonic()
        client = await Client(*BODY).ask(waiting)
        assert 0.3 <= time.monotonic() - begun < 5
        assert (client.status, json.loads(client.body)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE")

    scene(act, patience=0.3)


def test_without_patience_nobody_waits() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        assert (await Client(*BODY).ask(waiting)).status == 200
        assert databases.asked == 0

    scene(act, patience=0)


def test_a_suspicion_of_meanwhile_is_looked_into_too() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        class Late(Databases):
            async def away(self, since: float) -> list[str]:
                if not self.asked:
                    outage.suspect()
                return await super().away(since)

        outage.databases = late = Late()  # type: ignore[assignment]
        late.there = True
        outage.suspect()
        assert await outage.over(time.monotonic() + 5)
        assert (late.asked, outage.suspected) == (2, 0.0)

    scene(act)


def test_what_hangs_by_the_balancers_question_is_an_outage_at_once() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        databases.hangs = True
        asking = asyncio.create_task(Client(*BODY).ask(waiting))
        await asyncio.sleep(0.1)
        assert not asking.done() and databases.asked
        databases.there, databases.hangs = True, False
        assert (await asking).status == 200

    scene(act)


def test_a_dead_connection_is_a_reason_to_ask() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.noticed(SimpleNamespace(is_disconnect=False))
        assert not outage.suspected
        outage.noticed(SimpleNamespace(is_disconnect=True))
        assert outage.suspected

    scene(act)


def test_who_has_left_asks_for_nothing_any_more() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        client = Client(*BODY)
        asking = asyncio.create_task(client.ask(waiting))
        await asyncio.sleep(0.1)
        client.left.set()
        # Nor does it take the room of others.
        assert (await asyncio.wait_for(asking, 5)).status == 503
        assert (outage.suspected != 0, waiting.waiting) == (True, 0)

    scene(act)


def test_no_more_wait_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "ROOM", 3)

    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        asking = [asyncio.create_task(Client(*BODY).ask(waiting)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert (await Client(*BODY).ask(waiting)).status == 503
        databases.there = True
        assert [(await one).status for one in asking] == [200] * 3
        outage.suspect()
        assert (await Client(*BODY).ask(waiting)).status == 200

    scene(act)


def test_a_worker_that_stops_lets_them_go() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        asking = asyncio.create_task(Client(*BODY).ask(waiting))
        await asyncio.sleep(0.05)
        outage.end()
        assert (await asyncio.wait_for(asking, 5)).status == 503

    scene(act)


class Dialect:
    """SQLAlchemy's dialect, whose database can be away."""

    def __init__(self, databases: Databases, words: str = "connection refused") -> None:
        self.databases = databases
        self.words = words
        self.tried = 0

    def connect(self, *arguments: Any, **options: Any) -> str:
        self.tried += 1
        if not self.databases.there:
            raise psycopg2.OperationalError(self.words)
        return f"{arguments} {options}"


def in_a_request(outage: outages.Outages, act: Callable[[], Any]) -> Callable[[], Any]:
    """As Flask's threads work: in the context of the request."""

    def acting() -> Any:
        outages.WAITER.set(outages.Waiter(outage.patience))
        return act()

    return functools.partial(contextvars.copy_context().run, acting)


def connecting(outage: outages.Outages, dialect: Dialect) -> Callable[[], Any]:
    return lambda: outage.connect(dialect, None, ("a",), {"b": 1})


def test_a_connection_waits_in_a_thread_of_a_request_and_nowhere_else() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        connect = connecting(outage, Dialect(databases))
        assert (await Client(*BODY).ask(waiting, "/health")).status == 200
        # What a worker does by itself, and what runs on its event loop.
        with pytest.raises(psycopg2.OperationalError):
            await asyncio.to_thread(contextvars.Context().run, connect)
        with pytest.raises(psycopg2.OperationalError):
            in_a_request(outage, connect)()
        assert databases.asked == 0 and outage.suspected
        opening = asyncio.create_task(asyncio.to_thread(in_a_request(outage, connect)))
        await asyncio.sleep(0.2)
        assert not opening.done() and databases.asked > 1
        databases.there = True
        assert await asyncio.wait_for(opening, 5) == "('a',) {'b': 1}"
        # Nobody is suspected any more, without a request that asks.
        assert not outage.suspected

    scene(act)


@pytest.mark.parametrize(
    ("words", "waits"),
    [
        ("FATAL:  the database system is starting up", True),
        ("FATAL:  the database system is shutting down", True),
        ("FATAL:  the database system is not yet accepting connections", True),
        ("FATAL:  sorry, too many clients already", False),
        ('FATAL:  password authentication failed for user "mlflow"', False),
    ],
)
def test_a_refused_login_is_no_outage(words: str, waits: bool) -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        await Client(*BODY).ask(waiting)
        begun = time.monotonic()
        with pytest.raises(psycopg2.OperationalError):
            await asyncio.to_thread(in_a_request(outage, connecting(outage, Dialect(databases, words))))
        assert (outage.suspected > 0, time.monotonic() - begun >= 0.3) == (waits, waits)
        assert time.monotonic() - begun < 5

    scene(act, patience=0.3)


def test_a_request_waits_no_longer_for_many_connections_than_for_one() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        await Client(*BODY).ask(waiting)
        dialect = Dialect(databases)

        def several() -> list[int]:
            asked = []
            for _ in range(5):
                with pytest.raises(psycopg2.OperationalError):
                    connecting(outage, dialect)()
                asked.append(databases.asked)
            return asked

        begun = time.monotonic()
        asked = await asyncio.to_thread(in_a_request(outage, several))
        assert time.monotonic() - begun >= 0.5
        # The first one has waited for all of them.
        assert asked[0] > 1 and set(asked) == {asked[0]}
        assert dialect.tried == 5

    scene(act, patience=0.5)


def test_a_database_that_answers_and_does_not_connect_is_given_up_too() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        await Client(*BODY).ask(waiting)
        never = Dialect(Databases())
        databases.there = True
        begun = time.monotonic()
        asking = asyncio.create_task(asyncio.to_thread(in_a_request(outage, connecting(outage, never))))
        # Others go through meanwhile, and find nothing wrong.
        while not asking.done():
            assert (await Client(*BODY).ask(waiting)).status == 200
            assert time.monotonic() - begun < 10
            await asyncio.sleep(0.001)
        with pytest.raises(psycopg2.OperationalError):
            await asking

    scene(act, patience=0.5)


# What a pool with one place does, which is taken: for a request in an outage, for one in none, and on the event loop.
POOL = """
import asyncio, contextvars, json, threading, time
from types import SimpleNamespace
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import QueuePool
from mlflow_service import outages

connection = SimpleNamespace(close=lambda: None, rollback=lambda: None)
pool = QueuePool(lambda: connection, pool_size=1, max_overflow=0, timeout=0.2)
outage = outages.install(SimpleNamespace(said=[]))
outage.patience = 30
said = {"listens": [event.contains(Engine, "handle_error", outage.noticed),
                    event.contains(Engine, "do_connect", outage.connect)]}

def take(name, seconds):
    def taking():
        outages.WAITER.set(outages.Waiter(outage.patience))
        begun = time.monotonic()
        try:
            pool.connect().close()
            said[name] = ["taken", time.monotonic() - begun]
        except OperationalError:
            said[name] = ["refused", time.monotonic() - begun]
    held = pool.connect()
    thread = threading.Thread(target=contextvars.Context().run, args=(taking,))
    thread.start()
    thread.join(seconds)
    held.close()
    thread.join()

async def on_the_loop():
    held = pool.connect()
    begun = time.monotonic()
    try:
        pool.connect()
    except OperationalError:
        said["loop"] = ["refused", time.monotonic() - begun]
    held.close()

take("busy", 30)
outage.suspect()
take("outage", 1)
asyncio.run(on_the_loop())
print(json.dumps(said))
"""


def test_a_connection_of_a_pool_is_waited_for_too(release: Path) -> None:
    variables = {**os.environ, "PYTHONPATH": str(PROGRAM), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [release / "bin/python", "-c", POOL], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["listens"] == [True, True]
    assert (said["busy"][0], 0.2 <= said["busy"][1] < 5) == ("refused", True)
    assert (said["outage"][0], 1 <= said["outage"][1] < 5) == ("taken", True)
    assert (said["loop"][0], said["loop"][1] < 0.1) == ("refused", True)
