"""The program of roles/mlflow_server/files/service on the locked release, with SQLite and a real S3 API."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import boto3
import pytest

from tools.console import ROOT, exclusive, state_dir

LOCK = ROOT / "roles/mlflow_server/files/requirements/mlflow-3.17.2.txt"
PROGRAM = ROOT / "roles/mlflow_server/files/service"
BIN = Path(sys.executable).parent
BUCKET = "mlflow-service"
LOGIN = ("admin", "a-long-p@ssword")
PATIENCE = 60
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"

Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="session")
def release() -> Path:
    """Return a virtual environment of the locked packages, kept from run to run."""
    folder = state_dir() / f"tests/release-{hashlib.sha256(LOCK.read_bytes()).hexdigest()[:10]}"
    with exclusive("test-release"):
        if not (folder / "complete").exists():
            uv = [str(BIN / "uv"), "--quiet"]
            subprocess.run([*uv, "venv", "--clear", "--python", sys.executable, folder], check=True)
            packages = ["pip", "install", "--require-hashes", "--only-binary=:all:", "--compile-bytecode"]
            subprocess.run([*uv, *packages, "--python", folder / "bin/python", "-r", LOCK], check=True)
            (folder / "complete").touch()
    return folder


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def await_true(what: str, check: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE} s"
        time.sleep(0.05)


def listens(port: int) -> bool:
    """Tell whether somebody listens."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an S3 API with a bucket, and return its address."""
    port = free_port()
    with (tmp_path_factory.mktemp("store") / "log").open("wb") as log:
        process = subprocess.Popen([BIN / "moto_server", f"--port={port}"], stdout=log, stderr=log)
    try:
        await_true("the S3 API", lambda: listens(port))
        url = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3", endpoint_url=url, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        )
        client.create_bucket(Bucket=BUCKET)
        yield url
    finally:
        process.kill()
        process.wait()


@dataclass
class Service:
    """A running service: gunicorn with its workers on one port."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    login: bool
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    def headers(self, login: tuple[str, str] | None = LOGIN) -> dict[str, str]:
        """Return the header of a login."""
        if not login or not self.login:
            return {}
        return {"Authorization": "Basic " + base64.b64encode(":".join(login).encode()).decode()}

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection that stays open until the test is over."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=PATIENCE)
        self.connections.append(connection)
        return connection

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: bytes | None = None,
        login: tuple[str, str] | None = LOGIN,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Answer:
        """Return status, headers (in lower case) and body of an answer."""
        connection = connection or self.connect()
        connection.request(method, path, body, {**self.headers(login), **(headers or {})})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def workers(self) -> list[int]:
        """Return the numbers of the worker processes."""
        pid = self.process.pid
        return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def answers(self) -> bool:
        """Tell whether the database is reached."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.ask("/api/2.0/mlflow/experiments/get?experiment_id=0")[0] == 200
        return False

    def end(self) -> None:
        """Kill it, and fail if it had told a lie of an exit."""
        for connection in self.connections:
            connection.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass
class Machine:
    """Where services run: the release, the databases' folder, and the listening sockets."""

    release: Path
    folder: Path
    store: str
    running: list[Service] = field(default_factory=list)
    listeners: dict[int, socket.socket] = field(default_factory=dict)

    def environment(self, login: bool, destination: str = f"s3://{BUCKET}/artifacts") -> dict[str, str]:
        """Return what /etc/mlflow/mlflow.env holds."""
        variables = {
            "HOME": str(self.folder),
            "PATH": os.environ["PATH"],
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.folder),
            "_MLFLOW_SGI_NAME": "uvicorn",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{self.folder}/tracking.db",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": destination,
            "MLFLOW_SERVER_ALLOWED_HOSTS": "localhost,localhost:*",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_S3_ENDPOINT_URL": self.store,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "1",
        }
        if login:
            settings = self.folder / "basic_auth.ini"
            settings.write_text(
                "[mlflow]\ndefault_permission = READ\nauth_cache_ttl_seconds = 60\n"
                f"database_uri = sqlite:///{self.folder}/users.db\nadmin_username = {LOGIN[0]}\n"
                "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
            )
            variables |= {
                "MLFLOW_AUTH_CONFIG_PATH": str(settings),
                "MLFLOW_FLASK_SERVER_SECRET_KEY": "0123456789abcdef",
                "MLFLOW_AUTH_ADMIN_USERNAME": LOGIN[0],
                "MLFLOW_AUTH_ADMIN_PASSWORD": LOGIN[1],
            }
        return variables

    def listen(self) -> int:
        """Return the port of a new socket that services can share, as systemd's socket unit holds it."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        port = int(listener.getsockname()[1])
        self.listeners[port] = listener
        return port

    def spawn(
        self, port: int, variables: dict[str, str], arguments: Sequence[str] = ()
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start gunicorn on a shared socket as systemd does: it is number 3, and meant for this process."""
        log = self.folder / f"service-{len(self.running)}.log"
        descriptor = self.listeners[port].fileno()
        script = f'exec 3<&{descriptor}; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
        gunicorn = [str(self.release / "bin/gunicorn"), f"--config={PROGRAM / 'gunicorn.conf.py'}", *arguments]
        with log.open("wb") as stream:
            process = subprocess.Popen(
                ["bash", "-c", script, "service", *gunicorn],
                env=variables,
                stdout=stream,
                stderr=stream,
                pass_fds=[descriptor],
                start_new_session=True,
            )
        return process, log

    def start(
        self,
        *,
        login: bool = True,
        workers: int = 1,
        port: int = 0,
        environment: dict[str, str] | None = None,
        wait: bool = True,
    ) -> Service:
        """Start a service, and wait until it answers."""
        variables = {**self.environment(login), **(environment or {})}
        port = port or self.listen()
        process, log = self.spawn(port, variables, [f"--workers={workers}", "--graceful-timeout=30"])
        service = Service(process, port, log, login)
        self.running.append(service)
        if wait:
            await_true("the service", lambda: process.poll() is not None or "startup complete" in log.read_text())
            assert service.answers(), log.read_text()
        return service

    def end(self) -> None:
        """End all of it."""
        for service in self.running:
            service.end()
        for listener in self.listeners.values():
            listener.close()


@pytest.fixture
def machine(release: Path, store: str, tmp_path: Path) -> Iterator[Machine]:
    """Give a machine of the test's own."""
    found = Machine(release, tmp_path, store)
    yield found
    found.end()


@pytest.fixture(scope="module")
def shared(release: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Give one service with two workers to all tests that leave it as it was."""
    found = Machine(release, tmp_path_factory.mktemp("shared"), store)
    yield found.start(workers=2)
    found.end()
