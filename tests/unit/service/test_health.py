"""What a load balancer is told: by whom the databases are asked, how often, and what it costs when they hang."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socketserver
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow_service import health
from service_machine import Service, free_port

SETTINGS = {"client_encoding": "UTF8", "server_version": "17.0", "DateStyle": "ISO, MDY"}


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


WELCOME = message(b"R", struct.pack("!I", 0)) + b"".join(
    message(b"S", f"{name}\0{value}\0".encode()) for name, value in SETTINGS.items()
)
READY = message(b"Z", b"I")


class Database(socketserver.ThreadingTCPServer):
    """As much of PostgreSQL as the question needs; it hangs at a step if told so."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, hangs_at: str = "") -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.hangs_at = hangs_at
        self.asked = self.open = self.most = 0
        self.lock = threading.Lock()
        self.go_on = threading.Event()

    def reached(self, step: str) -> None:
        """Go on, or hang."""
        if step == self.hangs_at:
            self.go_on.wait(60)


class Session(socketserver.StreamRequestHandler):
    """One connection (https://www.postgresql.org/docs/current/protocol-flow.html)."""

    server: Database

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.open += 1
            self.server.most = max(self.server.most, self.server.open)

    def finish(self) -> None:
        with self.server.lock:
            self.server.open -= 1
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        """Let everybody in, and answer each question with no rows."""
        with contextlib.suppress(OSError, struct.error):
            self.server.reached("login")
            self.rfile.read(struct.unpack("!I", self.rfile.read(4))[0] - 4)
            self.wfile.write(WELCOME + READY)
            while self.rfile.read(1) == b"Q":
                self.rfile.read(struct.unpack("!I", self.rfile.read(4))[0] - 4)
                self.server.reached("question")
                self.server.asked += 1
                self.wfile.write(message(b"C", b"SELECT 1\0") + READY)


@contextlib.contextmanager
def database(hangs_at: str = "") -> Iterator[Database]:
    with Database(hangs_at) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()


def url(server: Database | int) -> str:
    port = server if isinstance(server, int) else server.server_address[1]
    return f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow?sslmode=disable&gssencmode=disable&connect_timeout=10"


async def beyond(scope: Any, receive: Any, send: Any) -> None:
    """Stand in for MLflow."""
    await send({"type": "http.response.start", "status": 401, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(ready: health.Ready, path: str = "/ready") -> tuple[int, dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await ready({"type": "http", "path": path, "headers": []}, None, send)
    return sent[0]["status"], json.loads(sent[1]["body"] or "{}")


OK = (200, {"status": "OK"})


def test_one_question_serves_all_who_ask_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(ready: health.Ready) -> None:
        assert await asyncio.gather(*(ask(ready) for _ in range(50))) == [OK] * 50
        assert [await ask(ready) for _ in range(50)] == [OK] * 50

    with database() as tracking, database() as auth:
        ready = health.Ready(beyond, health.Databases({"tracking": url(tracking), "auth": url(auth)}))
        asyncio.run(scenario(ready))
        assert (tracking.asked, auth.asked, tracking.most, auth.most) == (1, 1, 1, 1)
        monkeypatch.setattr(health, "FRESH", 0)
        assert asyncio.run(ask(ready)) == OK
        assert (tracking.asked, auth.asked) == (2, 2)
        # Nothing is held between two questions.
        end = time.monotonic() + 10
        while tracking.open + auth.open and time.monotonic() < end:
            time.sleep(0.02)
        assert (tracking.open, auth.open) == (0, 0)


def test_an_answer_from_before_is_not_fresh() -> None:
    async def scenario(databases: health.Databases, server: Database) -> None:
        first = asyncio.create_task(databases.away())
        while not server.open:
            await asyncio.sleep(0.01)
        # That question is on its way, and its answer says nothing of now.
        since = asyncio.create_task(databases.away(time.monotonic()))
        await asyncio.sleep(0.1)
        server.hangs_at = ""
        server.go_on.set()
        assert (await first, await since, server.asked) == ([], [], 2)

    with database("question") as server:
        asyncio.run(scenario(health.Databases({"tracking": url(server)}), server))


@pytest.mark.parametrize("hangs_at", ["login", "question"])
@pytest.mark.parametrize("dead", ["tracking", "auth"])
def test_a_database_that_hangs_is_named_and_holds_up_nobody(
    hangs_at: str, dead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "FRESH", 0)

    async def scenario(ready: health.Ready, hanging: Database) -> None:
        begun = time.monotonic()
        asking = [asyncio.create_task(ask(ready)) for _ in range(20)]
        # The event loop goes on: requests are served meanwhile.
        assert await ask(ready, "/") == (401, {})
        assert time.monotonic() - begun < health.PATIENCE / 3
        answers = await asyncio.gather(*asking)
        assert health.PATIENCE / 3 < time.monotonic() - begun < health.PATIENCE + 1
        assert answers == [(503, {"status": "UNAVAILABLE", "away": [dead]})] * 20
        assert hanging.most == 1
        # That thread ends at the same moment.
        await asyncio.wait_for(asyncio.shield(ready.databases.asking), 5)  # type: ignore[arg-type]
        assert ready.databases.hangs
        # It comes back, and what was cut off does not stand in the way.
        hanging.hangs_at = ""
        hanging.go_on.set()
        # The question that was given up ends at the same moment as its answer was told.
        end = time.monotonic() + 2
        while (answer := await ask(ready)) != OK and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert answer == OK and not ready.databases.hangs

    with database() as alive, database(hangs_at) as hanging:
        servers = {"tracking": alive, "auth": alive} | {dead: hanging}
        databases = health.Databases({name: url(one) for name, one in servers.items()})
        asyncio.run(scenario(health.Ready(beyond, databases), hanging))


def test_the_name_service_may_take_longer_than_the_balancer_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, asked = threading.Event(), []

    def look_up(url: str, deadline: float) -> None:
        asked.append(url)
        go_on.wait(30)

    monkeypatch.setattr(health, "ask", look_up)
    monkeypatch.setattr(health, "PATIENCE", 0.3)

    async def scenario() -> None:
        ready = health.Ready(beyond, health.Databases({"tracking": "x"}))
        begun = time.monotonic()
        assert [(await ask(ready))[0] for _ in range(3)] == [503] * 3
        assert time.monotonic() - begun < 2
        assert len(asked) == 1
        go_on.set()
        await asyncio.wait_for(asyncio.shield(ready.databases.asking), 10)  # type: ignore[arg-type]
        assert (await ask(ready))[0] == 200

    asyncio.run(scenario())


def test_a_change_is_logged_and_not_each_question(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(health, "FRESH", 0)
    monkeypatch.setenv("PGPASSWORD", "a-secret")
    with caplog.at_level(logging.WARNING), database() as auth:
        ready = health.Ready(beyond, health.Databases({"tracking": url(free_port()), "auth": url(auth)}))

        async def scenario() -> list[tuple[int, dict[str, Any]]]:
            return [await ask(ready) for _ in range(5)]

        assert asyncio.run(scenario()) == [(503, {"status": "UNAVAILABLE", "away": ["tracking"]})] * 5
        ready.databases.urls["tracking"] = ready.databases.urls["auth"]
        assert asyncio.run(scenario()) == [OK] * 5
    assert [record.message[:9] for record in caplog.records] == ["Not ready", "Ready aga"]
    assert "a-secret" not in caplog.text


def test_anybody_may_ask_by_any_name(shared: Service) -> None:
    # There is no PostgreSQL here; a real one says OK in every Molecule scenario.
    status, headers, body = shared.ask("/ready", login=None, headers={"Host": "10.42.0.7", "X-Real-IP": "10.42.0.9"})
    assert (status, json.loads(body)) == (503, {"status": "UNAVAILABLE", "away": ["tracking", "auth"]})
    assert (headers["content-type"], headers["cache-control"]) == ("application/json", "no-store")
    assert "www-authenticate" not in headers


def test_the_rest_is_as_closed_as_before(shared: Service) -> None:
    for path in ("/ready/", "/ready/x", "//ready", "/Ready"):
        assert shared.ask(path, login=None, headers={"Host": "10.42.0.7"})[0] in (401, 403), path
