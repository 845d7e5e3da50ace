"""The servers that the validator is tried against: a real MLflow, and a proxy before it that misbehaves on request."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import ipaddress
import json
import os
import socket
import sqlite3
import ssl
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ROOT = Path(__file__).resolve().parents[4]
LOCK = ROOT / "roles/mlflow_server/files/requirements/mlflow-3.17.2.txt"
NAME = "mlflow.test"
USERNAME = "admin"
# Every sign that a URL, a shell, JSON or HTML treats in its own way.
PASSWORD = "s3cr3t &<\"'%+/:@ w0rd"
PREFIX = "mlflow-endpoint-validate"


def free_port() -> int:
    """Return a port of loopback on which nothing listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- certificates


class Authority:
    """A private certificate authority, whose certificate lies in `ca`."""

    def __init__(self, folder: Path, name: str = "Test authority") -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._count = 0
        now = datetime.now(UTC)
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            # From Python 3.13 on, a certificate without what names its authority's key is refused.
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(usage, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str = NAME, days: tuple[int, int] = (-1, 7)) -> tuple[Path, Path]:
        """Write a certificate for `name`, valid from and to those days from now; return its path and the key's."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0]))
            .not_valid_after(now + timedelta(days=days[1]))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self._count += 1
        cert_path = self.folder / f"{self._count}.pem"
        key_path = self.folder / f"{self._count}.key"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_path, key_path


# --- the real server


def mlflow_program() -> Path:
    """Return `mlflow` in an environment with what a server host gets, made once and kept in .mlflow_aws/test."""
    # As a script, `pytest` puts no root on the path; as `python -m pytest`, it does.
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from tools.console import exclusive, state_dir
    from tools.environment import pip_settings, uv_environment

    venv = state_dir() / "test" / "mlflow"
    stamp = venv / ".complete"
    program = venv / "bin" / "mlflow"
    wanted = f"{sys.version}\n{LOCK.read_text()}"
    with exclusive("test-mlflow"):
        if not (program.exists() and stamp.exists() and stamp.read_text() == wanted):
            uv = Path(sys.executable).parent / "uv"
            listing = subprocess.run(
                [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
            )
            env = uv_environment(pip_settings(listing.stdout), os.environ)
            for command in (
                ["venv", "--quiet", "--clear", "--python", sys.executable, str(venv)],
                [
                    "pip",
                    "install",
                    "--quiet",
                    "--python",
                    str(venv / "bin/python"),
                    "--require-hashes",
                    "-r",
                    str(LOCK),
                ],
            ):
                subprocess.run([str(uv), *command], check=True, env=env, timeout=600)
            stamp.write_text(wanted)
    return program


class RealServer:
    """`mlflow server` with basic-auth, SQLite, artifacts on disk, and TLS of its own, on loopback."""

    def __init__(self, folder: Path, authority: Authority) -> None:
        self.folder = folder
        self.port = free_port()
        self.database = folder / "mlflow.db"
        self.artifacts = folder / "artifacts"
        self.ca = authority.ca
        settings = folder / "basic_auth.ini"
        settings.write_text(
            "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
            f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = {USERNAME}\n"
            "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 60\n"
        )
        certificate, key = authority.issue()
        env = {
            **os.environ,
            "MLFLOW_AUTH_CONFIG_PATH": str(settings),
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "only for this test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_MODEL_CATALOG_URI": "",
        }
        command = [str(mlflow_program()), "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}", "--artifacts-destination", str(self.artifacts)]
        command += ["--app-name", "basic-auth", "--allowed-hosts", f"{NAME},{NAME}:*"]
        command += ["--uvicorn-opts", f"--ssl-keyfile {key} --ssl-certfile {certificate}"]
        self.log = folder / "mlflow.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=env, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.request("GET", "/health")[0] == 200:
                    return
            time.sleep(0.3)
        self.stop()
        raise RuntimeError(f"mlflow server did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """End the server and what it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        try:
            self.process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, 9)
            self.process.wait(timeout=5)

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        """Open a connection as the proxy does; the certificate is not what is tried on this side."""
        context = ssl.create_default_context(cafile=str(self.ca))
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=timeout)
        connection.sock = context.wrap_socket(raw, server_hostname=NAME)
        return connection

    def request(self, method: str, path: str, payload: Any = None) -> tuple[int, Any]:
        """Ask as the administrator; return the status, and the JSON or the text."""
        connection = self.connect()
        try:
            body = None if payload is None else json.dumps(payload)
            connection.request(
                method, path, body, {"Host": NAME, "Content-Type": "application/json", "Authorization": login_value()}
            )
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
            with contextlib.suppress(ValueError):
                return response.status, json.loads(text)
            return response.status, text
        finally:
            connection.close()

    def left(self) -> list[str]:
        """Return what validators have left visible: experiments, runs and models of theirs, and artifact files."""
        api = "/api/2.0/mlflow/"
        found = []
        every = self.request("GET", f"{api}experiments/search?max_results=1000&view_type=ALL")[1]["experiments"]
        ours = [item for item in every if item["name"].startswith(PREFIX)]
        found += [f"experiment {item['name']}" for item in ours if item["lifecycle_stage"] == "active"]
        # All runs, since those in a deleted experiment would not be found by a search through the API.
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            rows = database.execute("SELECT run_uuid FROM runs WHERE lifecycle_stage = 'active'").fetchall()
        found += [f"run {row[0]}" for row in rows]
        models = self.request("GET", f"{api}registered-models/search?max_results=1000")[1].get("registered_models", [])
        found += [f"model {item['name']}" for item in models if item["name"].startswith(PREFIX)]
        found += [f"artifact {path.name}" for path in self.artifacts.rglob("*") if path.is_file()]
        return found


def login_value(username: str = USERNAME, password: str = PASSWORD) -> str:
    """Return the Authorization header's value."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


# --- the proxy that misbehaves


Fault = Callable[["Handler"], None]


@dataclass
class Rule:
    """Do `fault` for requests that match; `times` limits how often."""

    fault: Fault
    method: str = ""
    path: str = ""
    times: int = 10**9


class Handler(http.server.BaseHTTPRequestHandler):
    """Forwards a request to the real server, unless a rule does something else with it."""

    protocol_version = "HTTP/1.1"
    server: FaultyServer  # type: ignore[assignment]

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def read_body(self) -> bytes:
        """Return the whole body of the request, which is read only once."""
        if not hasattr(self, "_body"):
            self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return self._body

    def dispatch(self) -> None:
        """Find out what to do with this request."""
        if hasattr(self, "_body"):
            del self._body
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        for rule in self.server.rules:
            if rule.times > 0 and rule.method in ("", self.command) and rule.path in self.path:
                rule.times -= 1
                rule.fault(self)
                return
        self.forward()

    def do_GET(self) -> None:
        self.dispatch()

    def do_POST(self) -> None:
        self.dispatch()

    def do_PUT(self) -> None:
        self.dispatch()

    def do_DELETE(self) -> None:
        self.dispatch()

    def ask(self, **headers: str) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the real server the same, with some headers replaced."""
        assert self.server.real is not None, "this server has no real one behind it"
        connection = self.server.real.connect()
        try:
            sent = {name.title(): value for name, value in self.headers.items()}
            sent.update(headers)
            connection.request(self.command, self.path, self.read_body() or None, sent)
            response = connection.getresponse()
            kept = [item for item in response.getheaders() if item[0].lower() in ("content-type", "location")]
            return response.status, kept, response.read()
        finally:
            connection.close()

    def forward(self) -> None:
        """Pass the request on and the answer back."""
        self.answer(*self.ask(**self.server.replaced))

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send an answer."""
        # A body that was not read would be taken for the next request.
        self.read_body()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@dataclass(eq=False)
class FaultyServer:
    """A threaded server on loopback, with TLS if it has a certificate, in front of the real one if there is one."""

    real: RealServer | None = None
    certificate: tuple[Path, Path] | None = None
    rules: list[Rule] = field(default_factory=list)
    replaced: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.stopping = threading.Event()
        owner = self

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def get_request(self) -> tuple[socket.socket, Any]:
                sock, address = self.socket.accept()
                if owner.certificate is not None:
                    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                    context.load_cert_chain(*owner.certificate)
                    # The handshake belongs to the request's own thread: a silent client would stop all others.
                    sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                return sock, address

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Say nothing: clients that go away are what is tried here."""

        class BoundHandler(Handler):
            def __init__(self, request: Any, client_address: Any, server: Any) -> None:
                super().__init__(request, client_address, owner)  # type: ignore[arg-type]

        self._server = Server(("127.0.0.1", 0), BoundHandler)
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """The address to validate."""
        return f"{'https' if self.certificate else 'http'}://{NAME}:{self.port}"

    def stop(self) -> None:
        """End the server, and every fault that waits."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)

    def asked(self, method: str, part: str = "") -> list[str]:
        """Return the paths of the requests with this method whose path holds `part`."""
        return [path for command, path, _ in self.seen if command == method and part in path]


@contextlib.contextmanager
def serving(server: FaultyServer) -> Iterator[FaultyServer]:
    """Stop the server at the end."""
    try:
        yield server
    finally:
        server.stop()


# --- faults


def hang(handler: Handler) -> None:
    """Never answer."""
    handler.server.stopping.wait(60)
    handler.close_connection = True


def forward_then_hang(handler: Handler) -> None:
    """Let the real server do its work, and never say so."""
    handler.ask()
    hang(handler)


def reset(handler: Handler) -> None:
    """Reset the connection."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # The TLS wrapper would say goodbye first.
    os.close(handler.connection.detach())
    handler.close_connection = True


def close(handler: Handler) -> None:
    """Close the connection without a word."""
    handler.close_connection = True


def half(handler: Handler) -> None:
    """Announce more than comes."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n{"exp')
    handler.close_connection = True


def half_chunk(handler: Handler) -> None:
    """Break off within a chunk."""
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n{"exp')
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Send one byte after the other, each one soon enough for a time limit on silence."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not handler.server.stopping.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()


def drip_headers(handler: Handler) -> None:
    """The same within the headers."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not handler.server.stopping.wait(0.05):
            handler.wfile.write(b"x")
            handler.wfile.flush()


def flood(handler: Handler) -> None:
    """Send without end."""
    handler.close_connection = True
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        while not handler.server.stopping.is_set():
            handler.wfile.write(b" " * 65536)


def garbage(handler: Handler) -> None:
    """Speak another protocol."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n")
    handler.close_connection = True


def say(status: int, body: str, kind: str = "application/json", **headers: str) -> Fault:
    """Answer with this."""

    def fault(handler: Handler) -> None:
        given = [(name.replace("_", "-"), value) for name, value in headers.items()]
        handler.answer(status, [("Content-Type", kind), *given], body.encode())

    return fault


def say_unread(status: int) -> Fault:
    """Answer before the body was read, and close."""

    def fault(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        handler.close_connection = True

    return fault


def flip(handler: Handler) -> None:
    """Change one bit of the answer's body."""
    status, headers, body = handler.ask()
    handler.answer(status, headers, bytes([body[0] ^ 1]) + body[1:])


def forget_announcing(handler: Handler) -> None:
    """Answer as usual, then close a connection that was promised to stay open."""
    handler.forward()
    handler.close_connection = True
