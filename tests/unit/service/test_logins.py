"""The limit on wrong logins: what it costs whom, and that a known client does not feel it."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mlflow_service import logins
from service_machine import ARTIFACTS, LOGIN, Machine, Service

RIGHT = ("admin", "right")
HOME = "203.0.113.5"
EXPERIMENT = "/api/2.0/mlflow/experiments/get?experiment_id=0"


class Server:
    """The limit in front of an application that finds a wrong login out itself, too, and says who passed."""

    def __init__(self, per_minute: int = 30, seconds: float = 0.0) -> None:
        self.password = RIGHT[1]
        self.checks: list[str] = []
        self.served = 0
        self.seconds = seconds
        self.error: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        self.limit = logins.Logins(self.answer, self.check, lambda path: path == "/health", per_minute)

    def check(self, username: str, password: str) -> bool:
        self.checks.append(password)
        self.go_on.wait(10)
        time.sleep(self.seconds)
        if self.error:
            raise self.error
        return (username, password) == (RIGHT[0], self.password)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        self.served += 1
        headers = dict(scope["headers"])
        claimed = headers.get(b"authorization", b"").partition(b" ")[2]
        right = base64.b64encode(f"{RIGHT[0]}:{self.password}".encode())
        await send({"type": "http.response.start", "status": 200 if claimed == right else 401, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(
        self, password: str | None = RIGHT[1], address: str | None = HOME, path: str = "/", **more: str
    ) -> tuple[int, dict[str, str], bytes]:
        headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in more.items()]
        if password is not None:
            token = base64.b64encode(f"{RIGHT[0]}:{password}".encode())
            headers.append((b"authorization", b"Basic " + token))
        if address is not None:
            headers.append((b"x-real-ip", address.encode()))
        sent: list[dict[str, Any]] = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "path": path, "method": "GET", "headers": headers}
        await self.limit(scope, self.receive, send)
        named = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], named, sent[1]["body"]

    async def receive(self) -> Any:
        raise AssertionError("nobody reads a body here")

    async def statuses(self, count: int, address: str = HOME) -> list[int]:
        """Send so many different wrong logins, one after the other."""
        return [(await self.ask(f"wrong {len(self.checks)} {number}", address))[0] for number in range(count)]


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 30))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("mlflow_service.logins.monotonic", lambda: now[0])
    return now


def test_the_eleventh_wrong_login_in_a_row_has_to_wait(clock: list[float]) -> None:
    async def test() -> None:
        server = Server()
        assert await server.statuses(12) == [401] * 10 + [429] * 2
        assert len(server.checks) == 10
        status, headers, body = await server.ask("wrong")
        assert (status, headers["retry-after"]) == (429, "2")
        assert json.loads(body)["error_code"] == "REQUEST_LIMIT_EXCEEDED"
        assert int(headers["content-length"]) == len(body)
        # 30 per minute
        clock[0] += 2
        assert await server.statuses(2) == [401, 429]
        clock[0] += 3600
        assert await server.statuses(12) == [401] * 10 + [429] * 2
        assert server.served == 0

    run(test)


def test_a_wrong_login_is_refused_as_mlflow_does_it() -> None:
    async def test() -> None:
        status, headers, body = await Server().ask("wrong")
        assert (status, headers["www-authenticate"]) == (401, 'Basic realm="mlflow"')
        assert body.startswith(b"You are not authenticated.")

    run(test)


def test_a_known_client_is_served_whatever_comes_from_its_address(clock: list[float]) -> None:
    async def test() -> None:
        server = Server()
        assert (await server.ask())[0] == 200
        assert (await server.statuses(12))[-1] == 429
        # An hour later too, when MLflow itself has long forgotten it.
        assert [(await server.ask())[0] for _ in range(20)] == [200] * 20
        assert server.checks.count(RIGHT[1]) == 1

    run(test)


def test_a_right_login_costs_its_address_nothing(clock: list[float]) -> None:
    async def test() -> None:
        server = Server()
        assert await server.statuses(9) == [401] * 9
        assert (await server.ask())[0] == 200
        assert await server.statuses(2) == [401, 429]

    run(test)


def test_addresses_do_not_pay_for_one_another(clock: list[float]) -> None:
    async def test() -> None:
        server = Server()
        assert (await server.statuses(11))[-1] == 429
        assert (await server.ask(address="198.51.100.1"))[0] == 200

    run(test)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:203.0.113.5", "203.0.113.5", True),
        ("203.0.113.5", "203.0.113.6", False),
    ],
)
def test_an_ipv6_user_has_a_whole_network(one: str, other: str, same: bool) -> None:
    assert (logins.network(one) == logins.network(other)) is same


def test_the_same_login_is_checked_once_at_a_time() -> None:
    async def test() -> None:
        server = Server()
        for password, status in ((RIGHT[1], 200), ("wrong", 401)):
            server.checks.clear()
            server.go_on.clear()
            asked = [asyncio.ensure_future(server.ask(password)) for _ in range(40)]
            await asyncio.sleep(0.1)
            server.go_on.set()
            assert {(await one)[0] for one in asked} == {status}
            assert server.checks == [password]

    run(test)


def test_who_hangs_up_leaves_the_check_to_the_others() -> None:
    async def test() -> None:
        server = Server()
        server.go_on.clear()
        first, second = (asyncio.ensure_future(server.ask()) for _ in range(2))
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(0.1)
        server.go_on.set()
        assert (await second)[0] == 200

    run(test)


def test_a_revoked_login_is_a_wrong_one_from_then_on(clock: list[float]) -> None:
    async def test() -> None:
        server = Server()
        assert (await server.ask())[0] == 200
        server.password = "another"
        assert (await server.ask())[0] == 401
        assert server.served == 2
        assert [(await server.ask())[0] for _ in range(11)] == [401] * 10 + [429]
        assert server.served == 2

    run(test)


def test_a_failed_check_is_for_the_server_to_explain(clock: list[float]) -> None:
    async def test() -> None:
        server = Server()
        server.error = ConnectionError("no database")
        for _ in range(20):
            await server.ask("wrong")
        assert server.served == 20

    run(test)


def test_the_queue_has_an_end() -> None:
    async def test() -> None:
        server = Server()
        server.go_on.clear()
        asked = [asyncio.ensure_future(server.ask("wrong", f"2001:db8:0:{n:x}::1")) for n in range(logins.QUEUE)]
        asked += [asyncio.ensure_future(server.ask(f"{n}", f"2001:db8:1:{n:x}::1")) for n in range(logins.QUEUE)]
        await asyncio.sleep(0.1)
        server.go_on.set()
        statuses = [(await one)[0] for one in asked]
        # The first fifty are the same login, and take one place.
        assert statuses.count(429) == 1

    run(test)


def test_memory_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlflow_service.logins.REMEMBERED", 5)

    async def test() -> None:
        server = Server()
        for number in range(20):
            server.password = str(number)
            assert (await server.ask(str(number), f"203.0.113.{number}"))[0] == 200
            assert (await server.ask("wrong", f"203.0.113.{number}"))[0] == 401
        assert len(server.limit.right) == len(server.limit.buckets.levels) == 5

    run(test)


@pytest.mark.parametrize(
    ("password", "more"),
    [
        (None, {}),
        ("wrong", {"path": "/health"}),
        ("wrong", {"address": None}),
        (None, {"authorization": "Bearer x"}),
        (None, {"authorization": "Basic !"}),
    ],
)
def test_what_is_no_login_is_not_checked(password: str | None, more: dict[str, Any]) -> None:
    async def test() -> None:
        server = Server(per_minute=1)
        for _ in range(3):
            await server.ask(password, **more)
        assert (server.checks, server.served) == ([], 3)

    run(test)


@pytest.mark.parametrize("form", ["basic {}", "BASIC\t{}", "Basic   {} ", " Basic {}"])
def test_every_way_to_write_a_login_is_checked(form: str) -> None:
    async def test() -> None:
        server = Server()
        token = base64.b64encode(b"admin:wrong").decode()
        assert (await server.ask(None, authorization=form.format(token)))[0] == 401
        assert server.checks == ["wrong"]

    run(test)


def test_two_logins_are_one_too_many() -> None:
    async def test() -> None:
        server = Server()
        assert (await server.ask(authorization="Basic eA=="))[0] == 400
        assert (server.checks, server.served) == ([], 0)

    run(test)


def test_a_gateways_login_has_its_own_header() -> None:
    async def test() -> None:
        server = Server()
        token = base64.b64encode(b"admin:wrong").decode()
        asked = await server.ask("a key", path="/gateway/x", x_mlflow_authorization=f"Basic {token}")
        assert (asked[0], server.checks) == (401, ["wrong"])
        # Elsewhere that header is nothing.
        await server.ask("a key", x_mlflow_authorization=f"Basic {token}")
        assert server.checks == ["wrong", "a key"]

    run(test)


def test_the_event_loop_goes_on_while_logins_are_checked() -> None:
    async def test() -> None:
        server = Server(seconds=0.2)
        assert (await server.ask())[0] == 200
        flood = [asyncio.ensure_future(server.ask(str(number))) for number in range(8)]
        await asyncio.sleep(0.1)
        start = time.monotonic()
        for _ in range(100):
            assert (await server.ask())[0] == 200
        assert time.monotonic() - start < 0.2
        assert {(await one)[0] for one in flood} == {401}

    run(test)


# -- in front of MLflow itself -----------------------------------------------------------------------------------------


def asked(service: Service, count: int) -> float:
    """Ask as a known client; return the median of the seconds that it took."""
    connection, times = service.connect(), []
    for _ in range(count):
        start = time.monotonic()
        assert service.ask(EXPERIMENT, headers={"X-Real-IP": HOME}, connection=connection)[0] == 200
        times.append(time.monotonic() - start)
    return sorted(times)[count // 2]


def test_a_flood_of_wrong_passwords_does_not_slow_a_known_client(machine: Machine) -> None:
    service = machine.start(environment={logins.SETTING: "30"})
    quiet = asked(service, 100)
    end = threading.Event()
    statuses: list[int] = []

    def flood(number: int) -> None:
        connection, count = service.connect(), 0
        while not end.is_set():
            # Flask's half and FastAPI's.
            path = f"{ARTIFACTS}/x" if number % 2 else EXPERIMENT
            login, headers = (LOGIN[0], f"wrong {number} {count}"), {"X-Real-IP": "198.51.100.1"}
            statuses.append(service.ask(path, login=login, headers=headers, connection=connection)[0])
            count += 1
            time.sleep(0.01)

    threads = [threading.Thread(target=flood, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        # From the first wrong ones, which are checked, to the many that are not.
        flooded = asked(service, 300)
    finally:
        end.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {401, 429}
    assert statuses.count(401) < 10 + 30
    # Without the limit it is a thousand times: 7 s.
    assert flooded < quiet * 10
    print(f"median {quiet:.4f} s, in the flood {flooded:.4f} s; {statuses.count(401)} of {len(statuses)} were checked")
