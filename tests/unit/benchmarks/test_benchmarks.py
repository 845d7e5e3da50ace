"""The parts of the benchmark that a wrong figure could come from, without any server."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.plugins.filter.core import to_bool
from jinja2 import Environment

from benchmarks import contenders, measure, report

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
