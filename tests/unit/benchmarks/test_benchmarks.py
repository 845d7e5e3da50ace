"""The parts of the benchmark that a wrong figure could come from, without any server."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.filter.core import to_bool
from jinja2 import Environment

from benchmarks import __main__ as bench
from benchmarks import contenders, lab, measure, report, scaling

ROLE = Path(__file__).resolve().parents[3] / "roles/mlflow_server"


def rendered(template: str) -> str:
    """Render a template of the role with the values of its own files."""
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    fixed = yaml.safe_load((ROLE / "vars/main.yml").read_text())
    computed = {
        "ansible_managed": "managed",
        "mlflow_server_public_name": "10.89.0.10",
        "__mlflow_server_workers": 2,
        "__mlflow_server_standby": False,
        "__mlflow_server_release": "/opt/mlflow/releases/x",
        "__mlflow_server_program": "/opt/mlflow/releases/x/service-x",
        "__mlflow_server_nginx_http2_directive": False,
    }
    text = (ROLE / "templates" / template).read_text()
    environment = Environment(keep_trailing_newline=True, trim_blocks=True)
    environment.filters["bool"] = to_bool
    return environment.from_string(text).render(defaults | fixed | computed)


def test_the_server_without_login_differs_from_the_role_only_in_login_socket_and_database() -> None:
    unit = contenders.without_login(rendered("etc/systemd/system/mlflow.service.j2"))
    own = rendered("etc/systemd/system/mlflow.service.j2")
    ours = {line.strip() for line in own.splitlines()}
    added = {line.strip() for line in unit.splitlines()} - ours
    assert added == {
        f"EnvironmentFile={contenders.FOLDER}/open.env",
        "UnsetEnvironment=MLFLOW_AUTH_CONFIG_PATH",
        "Requires=bench-open.socket",
        "After=bench-open.socket network-online.target",
        "Sockets=bench-open.socket",
    }


def test_the_second_nginx_shares_no_port_and_no_socket_with_the_first() -> None:
    first = rendered("etc/nginx/nginx.conf.j2")
    second = contenders.second_nginx(first)

    def taken(text: str) -> set[str]:
        return set(re.findall(r"listen (?:\[::\]:)?(\d+)|server (unix:\S+);|pid (\S+);", text))

    assert not taken(first) & taken(second)
    assert len(taken(first)) == len(taken(second)) == 4


def test_a_role_that_changed_is_noticed() -> None:
    with pytest.raises(ValueError, match="must follow the role"):
        contenders.second_nginx("events {}")
    with pytest.raises(ValueError, match="must follow the role"):
        contenders.without_login("[Service]\n")
    with pytest.raises(ValueError, match="must follow the role"):
        contenders.one_worker("[Service]\n")


def test_the_tutorial_gets_the_locks_versions_and_no_hashes() -> None:
    lines = contenders.constraints().splitlines()
    assert f"mlflow=={contenders.VERSION}" in lines
    assert any(line.startswith("sqlalchemy==") and "python_full_version" in line for line in lines)
    assert not any("hash" in line or "\\" in line for line in lines)
    assert len(lines) == len(re.findall(r"(?m)^[a-z0-9-]+==", contenders.LOCK.read_text()))


@pytest.fixture
def server() -> Iterator[tuple[measure.Target, list[list[bytes]], list[bytes]]]:
    """A server that sends what it is given, piece by piece, and keeps what it was sent."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)
    answers: list[list[bytes]] = []
    requests: list[bytes] = []

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.settimeout(10)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65536):
                requests.append(data)
                for piece in answers.pop(0):
                    connection.sendall(piece)

    thread = threading.Thread(target=serve)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    description = {"name": "canned", "url": url, "units": [], "user": "admin", "password": "secret"}
    yield measure.Target(description), answers, requests
    thread.join(10)
    assert not thread.is_alive()


def test_the_client_reads_every_kind_of_answer_on_one_connection(
    server: tuple[measure.Target, list[list[bytes]], list[bytes]],
) -> None:
    target, answers, requests = server
    answers += [
        [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 7\r\n\r\n{", b'"a":1}'],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r", b'\n{"b"\r\n3\r\n:2}\r\n', b"0\r\n\r\n"],
        [b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy"],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"],
    ]
    with measure.client_of(target) as client:
        assert client.call("GET", "/one") == {"a": 1}
        assert client.call("POST", "/two", {"x": 1}) == {"b": 2}
        with pytest.raises(RuntimeError, match="503 b'busy'"):
            client.call("GET", "/three")
        assert client.call("GET", "/four") == {}
    assert requests[0].startswith(b"GET /api/2.0/mlflow/one HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Authorization: Basic YWRtaW46c2VjcmV0\r\n" in requests[0]
    assert requests[1].endswith(b'Content-Length: 8\r\n\r\n{"x": 1}')


def test_a_closed_connection_is_an_error_and_not_an_empty_answer(
    server: tuple[measure.Target, list[list[bytes]], list[bytes]],
) -> None:
    target, answers, _ = server
    # Less than was promised; the fixture then meets an empty list and closes.
    answers += [[b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"]]
    client = measure.Client(target)
    client.socket.shutdown(socket.SHUT_RD)
    with pytest.raises(ConnectionError):
        client.call("GET", "/one")
    client.close()


def test_a_unit_without_processes_is_an_error_and_not_nought() -> None:
    with pytest.raises(RuntimeError, match="has no processes"):
        measure.pss(["there-is-no-such-unit"])


def test_an_error_in_a_thread_is_not_lost() -> None:
    def work(number: int) -> None:
        if number == 2:
            raise ValueError("third")

    with pytest.raises(ValueError, match="third"):
        measure.in_parallel(4, work)


def test_aims_are_judged_by_the_median_of_the_rounds_ratios() -> None:
    found = report.Report()
    found.at_least(5, "faster", report.ratios([50, 60, 10], [10, 10, 10]))
    found.at_least(5, "slower", report.ratios([49, 60, 10], [10, 10, 10]))
    found.at_most(0, "failed", [1])
    assert found.aims == [
        ["faster", "at least 5", "5.00 (1.00 to 6.00)", "yes"],
        ["slower", "at least 5", "4.90 (1.00 to 6.00)", "**no**"],
        ["failed", "at most 0", "1.00 (1.00 to 1.00)", "**no**"],
    ]


def test_every_part_appears_in_the_report() -> None:
    servers = (report.DEFAULT, report.POSTGRESQL, report.BARE, report.OPEN, report.ROLE)
    calls = (*report.CALLS, "log_batch", "search")
    drive = {"rate": 100.0, "server_ms": 5.0, "client_ms": 0.2}
    transfer = {"seconds": 2.0, "first": 0.5, "growth": 10.0}
    ways = ("boto3", report.BARE, report.ROLE, "MLflow's client")
    idle = {"start": 3.0, "idle_cpu": 0.01, "units": {"mlflow": {"processes": 2, "mib": 512.0}}}
    results: dict[str, Any] = {
        "install": {"role": 50.0, "again": 12.0, "tutorial": 120.0},
        "latency": {name: {call: [10.0, 12.0] for call in calls} for name in servers},
        "throughput": {name: {call: [drive, drive] for call in report.CALLS} for name in servers[1:]},
        "memory": {"workers": 2, report.DEFAULT: idle, report.ROLE: idle, report.ONE: idle},
        "artifacts": {"mib": 256, **{way: {"up": [transfer], "down": [transfer]} for way in ways}},
        "restart": {report.ROLE: {"answered": 9, "failed": 0, "unanswered": 1, "longest": 2.5, "restarts": [1.0]}},
    }
    text = report.render(results, {"machine": "this one"}, {"latency": "RuntimeError: 503"})
    for title in ("Install", "One client", "Sixteen clients", "Idle", "Artifacts", "Restart", "Not measured"):
        assert f"\n## {title}\n" in text
    assert "| fresh host to healthy: role / tutorial | at most 0.5 | 0.42 (0.42 to 0.42) | yes |" in text
    assert "| idle memory with 2 workers and nginx, GiB PSS | at most 0.65 | 0.50 (0.50 to 0.50) | yes |" in text
    assert (
        "| failed requests while the service restarts under load | at most 0 | 1.00 (1.00 to 1.00) | **no** |" in text
    )
    assert "| 256 MiB up: role / boto3 straight | at least 0.8 | 1.00 (1.00 to 1.00) | yes |" in text


def test_the_hundredth_part_that_waited_longest_is_left_out() -> None:
    assert scaling.percentile(range(1, 101), 0.99) == 99
    assert scaling.percentile(range(1, 201), 0.99) == 198
    assert scaling.percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("used", "busy", "share", "by"),
    [(4.6, 8, 0.25, "servers"), (4.4, 8, 0.25, "waits"), (4.4, 18, 0.25, "machine"), (9.0, 17, None, "waits")],
)
def test_a_round_is_ended_by_what_was_used_up(used: float, busy: float, share: float | None, by: str) -> None:
    # Two servers for ten seconds on two processors.
    found = {"servers": used, "busy": busy, "seconds": 10.0, "cpus": 2}
    assert scaling.ended_by(found, 2, share) == by


def test_clones_are_beside_the_host_and_not_in_the_place_of_another_machine() -> None:
    found = scaling.clone_addresses(3)
    assert len({*found, lab.HOST_ADDRESS, lab.DATABASE_ADDRESS, lab.TUTORIAL_ADDRESS, lab.GATEWAY}) == 7
    assert all(ipaddress.ip_address(address) in ipaddress.ip_network(lab.SUBNET) for address in found)


class CannedClient:
    """Notes what it is asked for, and takes its time."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def perform(self, call: str, connection: object) -> None:
        """Make a call."""
        self.calls.append(call)
        time.sleep(0.001)


def test_clients_make_all_calls_in_turn_and_each_begins_with_another() -> None:
    clients = scaling.Clients([], 0)
    loads = [CannedClient() for _ in range(3)]
    clients.loads = loads  # type: ignore[assignment]
    clients.connections = [None] * 3  # type: ignore[list-item]
    waits = clients.drive(["a", "b", "c"], 0.1)
    assert [load.calls[:4] for load in loads] == [list("abca"), list("bcab"), list("cabc")]
    assert len(waits) == sum(len(load.calls) for load in loads)
    assert min(waits) >= 0.001


def test_a_server_is_asked_at_its_address_for_the_name_of_all() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = f"http://mlflow.example.test:{port}"
        target = measure.Target({"name": "one", "url": url, "address": "127.0.0.1", "units": []})
        target.connect().close()
    assert f"Host: mlflow.example.test:{port}\r\n".encode() in target.head("GET", "/", 0)


def drive(rate: float, servers: float, ended_by: str = "servers") -> dict[str, Any]:
    """What a round of ten seconds came to."""
    return {
        "requests": int(rate * 10),
        "seconds": 10.0,
        "rate": rate,
        "servers": servers,
        "database": 0.5,
        "client": 0.1,
        "busy": 12.0,
        "cpus": 2,
        "connections": 12,
        "p99_ms": 321.0,
        "ended_by": ended_by,
    }


def test_a_chapter_on_scaling_has_its_aims_tables_and_the_databases_share() -> None:
    limited = {"1": [drive(25, 2.5), drive(20, 2.4)], "2": [drive(50, 5), drive(40, 4.8)], "4": [drive(80, 10)] * 2}
    calls = {call: [drive(30, 5)] for call in scaling.CALLS}
    data = {"share": 0.25, "clients": 8, "sizes": {"limited": limited, "free": limited}, "calls": calls}
    machine = {"date": "today", "machine": "this one", "load average": "0.1"}
    text = report.chapter("scaling", data, machine)
    assert "| requests/s, 0.25 CPU for each server: 2 servers / 1 | at least 1.8 | 2.00 (2.00 to 2.00) | yes |" in text
    assert "| requests/s, 0.25 CPU for each server: 4 servers / 1 | at least 3.6 | 3.60 (3.20 to 4.00) | yes |" in text
    assert (
        "| requests per CPU-second of the servers: 4 servers / 1 | at least 0.9 | 0.88 (0.80 to 0.96) | **no** |"
        in text
    )
    assert "| 4 | 80 (80 to 80) | 80 (80 to 80) | 12.5 (12.5 to 12.5) | 0.62 (0.62 to 0.62) |" in text
    assert "| log_batch | 16.7 (16.7 to 16.7) | 1.67 (1.67 to 1.67) | 10.0 (10.0 to 10.0) |" in text


def test_a_chapter_on_provisioning_judges_by_the_ratio_of_each_round() -> None:
    def found(seconds: float) -> dict[str, Any]:
        return {"seconds": seconds, "control": 40.0, "hosts": 9.0, "busy": 80.0, "cpus": 2}

    data = {
        "provision": {"1": [found(60), found(100)], "4": [found(72), found(130)]},
        "configure": {"1": [found(100)], "4": [found(250)]},
    }
    text = report.chapter("provisioning", data, {"date": "today", "machine": "this one", "load average": "0.1"})
    assert "| provisioning time: 4 hosts / 1 | at most 1.3 | 1.25 (1.20 to 1.30) | yes |" in text
    assert "| `playbooks/configure.yml` | 4 | 250 (250 to 250) | 40 (40 to 40) | 9 (9 to 9) | 80 (80 to 80) |" in text


def test_a_chapter_goes_to_its_own_place() -> None:
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n<!-- y:begin -->\n<!-- y:end -->\n"
    first = report.replaced(text, "x", "new\n\n")
    assert first == text.replace("old", "new")
    assert report.replaced(first, "x", "new") == first
    with pytest.raises(ValueError, match="no place for z"):
        report.replaced(text, "z", "new")


@pytest.mark.parametrize("part", bench.DOCUMENTED)
def test_the_documentation_has_a_place_for_each_chapter(part: str) -> None:
    assert report.replaced(bench.SCALING.read_text(), part, "figures")
