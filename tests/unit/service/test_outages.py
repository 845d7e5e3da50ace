"""Who waits for a database that is away, how long, and what becomes of a request meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import psycopg2
import pytest
from mlflow_service import outages

BODY = [{"type": "http.request", "body": b"all of it", "more_body": False}]


class Databases:
    """Databases that are away until somebody says otherwise."""

    def __init__(self) -> None:
        self.there = False
        self.begun = 0.0
        self.asked = 0

    async def away(self, since: float) -> list[str]:
        self.begun = time.monotonic()
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


def test_an_answer_from_before_the_suspicion_does_not_end_it() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        class Late(Databases):
            async def away(self, since: float) -> list[str]:
                self.asked += 1
                # The first one was on its way already.
                self.begun = 0.0 if self.asked == 1 else time.monotonic()
                return [] if self.asked in (1, 3) else ["tracking"]

        outage.databases = late = Late()  # type: ignore[assignment]
        outage.suspect()
        assert await outage.over(time.monotonic() + 5)
        assert late.asked == 3

    scene(act)


def test_who_has_left_asks_for_nothing_any_more() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        outage.suspect()
        client = Client(*BODY)
        asking = asyncio.create_task(client.ask(waiting))
        await asyncio.sleep(0.1)
        client.left.set()
        await asyncio.sleep(0.1)
        databases.there = True
        assert (await asking).status == 503

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

    def __init__(self, databases: Databases) -> None:
        self.databases = databases

    def connect(self, *arguments: Any, **options: Any) -> str:
        if not self.databases.there:
            raise psycopg2.OperationalError("connection refused")
        return f"{arguments} {options}"


def test_a_connection_waits_in_a_thread_and_not_on_the_event_loop() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        def connect() -> Any:
            return outage.connect(Dialect(databases), None, ("a",), {"b": 1})

        # Before there is an event loop to wait with, as while the server starts.
        with pytest.raises(psycopg2.OperationalError):
            await asyncio.to_thread(connect)
        assert (await Client(*BODY).ask(waiting, "/health")).status == 200
        with pytest.raises(psycopg2.OperationalError):
            connect()
        assert outage.suspected
        opened: list[Any] = []
        thread = threading.Thread(target=lambda: opened.append(connect()))
        thread.start()
        await asyncio.sleep(0.2)
        assert opened == [] and databases.asked > 1
        databases.there = True
        await asyncio.to_thread(thread.join, 5)
        assert opened == ["('a',) {'b': 1}"]
        # In time nobody is suspected any more, without a request that asks.
        assert not outage.suspected

    scene(act)


def test_a_connection_waits_no_longer_than_a_request() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        await Client(*BODY).ask(waiting)
        begun = time.monotonic()
        with pytest.raises(psycopg2.OperationalError):
            await asyncio.to_thread(outage.connect, Dialect(databases), None, (), {})
        assert 0.3 <= time.monotonic() - begun < 5

    scene(act, patience=0.3)


def test_a_database_that_answers_and_lets_nobody_in_is_given_up_too() -> None:
    async def act(outage: outages.Outages, waiting: outages.Waiting, databases: Databases) -> None:
        await Client(*BODY).ask(waiting)

        class Full(Dialect):
            def connect(self, *arguments: Any, **options: Any) -> str:
                raise psycopg2.OperationalError("sorry, too many clients already")

        databases.there = True
        begun = time.monotonic()
        asking = asyncio.create_task(asyncio.to_thread(outage.connect, Full(databases), None, (), {}))
        # Others go through meanwhile, and find nothing wrong.
        while not asking.done():
            assert (await Client(*BODY).ask(waiting)).status == 200
            assert time.monotonic() - begun < 10
            await asyncio.sleep(0.001)
        with pytest.raises(psycopg2.OperationalError):
            await asking

    scene(act, patience=0.5)
