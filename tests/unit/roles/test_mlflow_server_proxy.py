"""nginx.conf.j2 in each of its modes: gixy finds nothing in it, nginx takes it, and nginx then does what it says."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import http.server
import itertools
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow_server_role import rendered

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
NAME = "mlflow.example.com"
HOSTS = {
    "debian12": {"distribution": "Debian", "distribution_major_version": "12", "distribution_version": "12"},
    "debian13": {"distribution": "Debian", "distribution_major_version": "13", "distribution_version": "13"},
}
# Every pair of these is a configuration that somebody runs.
INPUTS: dict[str, tuple[dict[str, Any], ...]] = {
    "tls": tuple({"mlflow_server_tls_mode": mode} for mode in ("selfsigned", "files", "acme")),
    "login": ({"mlflow_server_authentication": "basic-auth"}, {"mlflow_server_authentication": "none"}),
    "others": (
        {},
        {
            "mlflow_server_presigned_transfers": False,
            "mlflow_server_hsts_max_age": 0,
            "mlflow_server_job_execution": True,
            "mlflow_server_metrics": True,
            "mlflow_server_metrics_cidrs": ["203.0.113.7/32", "2001:db8::/32"],
            "mlflow_server_trusted_proxies": ["10.42.0.0/24", "2001:db8::/32"],
        },
    ),
}
MODES = [{key: value for part in parts for key, value in part.items()} for parts in itertools.product(*INPUTS.values())]


def name_of(mode: dict[str, Any]) -> str:
    return "-".join([*(value for value in mode.values() if isinstance(value, str)), "metrics" * (len(mode) > 2)])


def configuration(directory: Path, host: str, **inputs: Any) -> str:
    """The configuration that the role would write, with the files that it names below @directory."""
    return rendered(
        "etc/nginx/nginx.conf.j2",
        ansible_facts=HOSTS[host],
        mlflow_server_public_name=NAME,
        __mlflow_server_release=str(directory / "release"),
        __mlflow_server_tls=str(directory),
        __mlflow_server_socket=str(directory / "mlflow.sock"),
        **inputs,
    )


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_gixy_finds_nothing(mode: dict[str, Any], host: str, tmp_path: Path) -> None:
    path = tmp_path / "nginx.conf"
    path.write_text(configuration(tmp_path, host, **mode), encoding="utf-8")
    gixy = [str(Path(sys.executable).with_name("gixy")), "--disable-includes", str(path)]
    found = subprocess.run(gixy, capture_output=True, text=True, check=False)
    assert "No issues found" in found.stdout and found.returncode == 0, found.stdout + found.stderr


# -- a real nginx, with a stub in MLflow's place -----------------------------------------------------------------------


class Stub(http.server.BaseHTTPRequestHandler):
    """Answers as MLflow does: with its own idea of some headers, and with what it was sent of the others."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = f"stub {self.path} {self.headers['X-Real-IP']} {self.headers['X-Forwarded-Proto']}".encode()
        self.send_response(404 if "missing" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "text/plain")
        self.send_header("Cache-Control", "max-age=60" if self.path.startswith("/static-files/") else "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("X-Asked-As", f"{self.headers['Host']} for {self.headers['X-Forwarded-For']}")
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self) -> None:
        """Say that the first bytes are here, before the last have been sent: uploads are streamed."""
        self.rfile.read(1000)
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass

    def address_string(self) -> str:
        return "unix"


class StubServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Proxy:
    """A running nginx."""

    plain: int
    secure: int
    directory: Path

    def connection(self, secure: bool = True) -> http.client.HTTPConnection:
        if not secure:
            return http.client.HTTPConnection("127.0.0.1", self.plain, timeout=10)
        trusting = ssl.create_default_context()
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        return http.client.HTTPSConnection("127.0.0.1", self.secure, timeout=10, context=trusting)

    def get(
        self, path: str, secure: bool = True, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        with contextlib.closing(self.connection(secure)) as connection:
            connection.request("GET", path, headers={"Host": NAME} | (headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()


def on_loopback(text: str, directory: Path, plain: int, secure: int) -> str:
    """The configuration @text for whoever runs the tests: other ports, other paths, no other user, no IPv6."""
    text = re.sub(r"listen \[::\].*\n", "", text)
    text = text.replace("listen 80", f"listen 127.0.0.1:{plain}").replace("listen 443", f"listen 127.0.0.1:{secure}")
    text = text.replace("listen 127.0.0.1:5000", f"listen unix:{directory}/jobs.sock")
    text = re.sub(r"^user .*\n", "user root;\n" if os.geteuid() == 0 else "", text, flags=re.MULTILINE).replace(
        "/run/nginx.pid", f"{directory}/nginx.pid"
    )
    paths = "".join(
        f"    {kind}_temp_path {directory}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return text.replace("/var/log/nginx", str(directory)).replace("http {\n", "http {\n" + paths)


def written(directory: Path, **inputs: Any) -> tuple[Path, Proxy]:
    """Write the configuration, and the certificate that it names, for the nginx of this machine."""
    if NGINX is None:
        pytest.skip("there is no nginx on this machine")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={NAME}", "-keyout", str(directory / "server.key"), "-out", str(directory / "server.pem")],
        check=True, capture_output=True,
    )  # fmt: skip
    version = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr
    number = re.search(r"nginx/(\d+)\.(\d+)", version)
    assert number
    host = "debian13" if (int(number[1]), int(number[2])) >= (1, 25) else "debian12"
    proxy = Proxy(free_port(), free_port(), directory)
    path = directory / "nginx.conf"
    path.write_text(on_loopback(configuration(directory, host, **inputs), directory, proxy.plain, proxy.secure))
    return path, proxy


@contextlib.contextmanager
def running(directory: Path, **inputs: Any) -> Iterator[Proxy]:
    """An nginx with @inputs in front of the stub."""
    path, proxy = written(directory, **inputs)
    server = StubServer(str(directory / "mlflow.sock"), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    process = subprocess.Popen([str(NGINX), "-e", str(directory / "start.log"), "-c", str(path), "-g", "daemon off;"])
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", proxy.secure), timeout=1):
                break
            time.sleep(0.1)
        yield proxy
    finally:
        process.terminate()
        process.wait(timeout=10)
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    directory = tmp_path_factory.mktemp("proxy")
    files = directory / "release/web/static-files"
    for name in ("static/js/main.0123abcd.js", "favicon.js", "static/media/pdf.worker.0123abcd.mjs"):
        (files / name).parent.mkdir(parents=True, exist_ok=True)
        (files / name).write_text("original " * 1000)
        (files / f"{name}.gz").write_bytes(gzip.compress(b"compressed " * 1000))
    with running(directory) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running(tmp_path_factory.mktemp("balanced"), mlflow_server_trusted_proxies=["127.0.0.0/8"]) as proxy:
        yield proxy


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_nginx_takes_it(mode: dict[str, Any], tmp_path: Path) -> None:
    path, _ = written(tmp_path, **mode)
    command = [str(NGINX), "-t", "-e", str(tmp_path / "start.log"), "-c", str(path)]
    tested = subprocess.run(command, capture_output=True, text=True, check=False)
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr


ONCE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Strict-Transport-Security": "max-age=31536000",
}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/missing", 404),
        ("/metrics", 404),
        ("/static-files/static/js/main.0123abcd.js", 200),
        ("/static-files/static/js/main.missing.js", 404),
        ("/gateway/x", 200),
    ],
)
def test_each_answer_has_each_header_once(proxy: Proxy, path: str, status: int) -> None:
    found, headers, _ = proxy.get(path)
    assert found == status
    assert {name: headers.get_all(name) for name in ONCE} == {name: [value] for name, value in ONCE.items()}


def test_a_name_that_is_not_ours_gets_the_headers_and_no_answer(proxy: Proxy) -> None:
    status, headers, body = proxy.get("/", headers={"Host": "example.org"})
    assert status == 421 and b"stub" not in body
    assert {name: headers.get_all(name) for name in ONCE} == {name: [value] for name, value in ONCE.items()}


def test_plain_http_leads_to_https_and_promises_nothing_for_it(proxy: Proxy) -> None:
    status, headers, _ = proxy.get("/x?y=1", secure=False)
    assert (status, headers["Location"]) == (301, f"https://{NAME}/x?y=1")
    assert headers["Strict-Transport-Security"] is None
    assert headers.get_all("X-Frame-Options") == ["SAMEORIGIN"]


def test_the_trace_renderer_may_be_framed_by_a_notebook(proxy: Proxy) -> None:
    _, headers, body = proxy.get("/static-files/lib/notebook-trace-renderer/index.html")
    assert headers["X-Frame-Options"] is None and b"stub" in body


def test_a_file_is_served_compressed_as_it_lies_there(proxy: Proxy) -> None:
    status, headers, body = proxy.get("/static-files/static/js/main.0123abcd.js", headers={"Accept-Encoding": "gzip"})
    assert status == 200 and headers["Content-Encoding"] == "gzip" and headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(body).startswith(b"compressed ")
    _, headers, body = proxy.get("/static-files/static/js/main.0123abcd.js")
    assert headers["Content-Encoding"] is None and body.startswith(b"original ")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/static-files/static/js/main.0123abcd.js", ["public, max-age=31536000, immutable"]),
        ("/static-files/favicon.js", ["no-cache"]),
        # From MLflow, which has it in another release: the name means the same file all the same.
        ("/static-files/static/js/main.89ab.js", ["public, max-age=31536000, immutable"]),
        # What is not there may be there in a minute.
        ("/static-files/static/js/missing.js", ["max-age=60"]),
        ("/static-files/missing.js", ["max-age=60"]),
        ("/", ["no-store"]),
        ("/metrics", None),
    ],
)
def test_only_names_that_never_change_are_kept_for_ever(proxy: Proxy, path: str, expected: list[str] | None) -> None:
    assert proxy.get(path)[1].get_all("Cache-Control") == expected


def test_a_module_is_sent_as_a_script(proxy: Proxy) -> None:
    assert proxy.get("/static-files/static/media/pdf.worker.0123abcd.mjs")[1]["Content-Type"] == "text/javascript"


@pytest.mark.parametrize(
    "path", ["/static-files/../nginx.conf", "/static-files/%2e%2e/%2e%2e/nginx.conf", "/static-files../web/x"]
)
def test_no_path_leads_out_of_the_files(proxy: Proxy, path: str) -> None:
    assert b"worker_processes" not in proxy.get(path)[2]


def test_the_server_learns_who_asks_and_not_who_he_says_he_is(proxy: Proxy) -> None:
    headers = {"X-Real-IP": "192.0.2.1", "X-Forwarded-Proto": "http"}
    assert proxy.get("/who", headers=headers)[2] == b"stub /who 127.0.0.1 https"


@pytest.mark.parametrize(
    ("claimed", "address"),
    [
        # One hop: the client asks the balancer, which says who it is.
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::9"),
        # Two: what the client claims stands before that, whether it looks like somebody's address or like a proxy's.
        ("192.0.2.1, 203.0.113.9", "203.0.113.9"),
        ("192.0.2.1, 127.0.0.5, 203.0.113.9", "203.0.113.9"),
        # A client of the balancer's own network is no proxy.
        ("192.0.2.1, 127.0.0.5", "127.0.0.5"),
        ("nonsense", "127.0.0.1"),
    ],
)
def test_behind_a_balancer_the_client_is_who_the_balancer_says(claimed: str, address: str, balanced: Proxy) -> None:
    headers = {"X-Forwarded-For": claimed, "X-Real-IP": "192.0.2.1", "X-Forwarded-Proto": "http"}
    _, answer, body = balanced.get("/who", headers=headers)
    assert body == f"stub /who {address} https".encode()
    assert answer["X-Asked-As"] == f"{NAME} for {address}"


def test_two_headers_are_read_as_one(balanced: Proxy) -> None:
    with contextlib.closing(balanced.connection()) as connection:
        connection.putrequest("GET", "/who", skip_host=True)
        for name, value in (("Host", NAME), ("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-For", "203.0.113.9")):
            connection.putheader(name, value)
        connection.endheaders()
        assert connection.getresponse().read() == b"stub /who 203.0.113.9 https"


def test_nobody_but_a_balancer_is_believed(tmp_path: Path) -> None:
    with running(tmp_path, mlflow_server_trusted_proxies=["203.0.113.0/24"]) as proxy:
        assert proxy.get("/who", headers={"X-Forwarded-For": "203.0.113.9"})[2] == b"stub /who 127.0.0.1 https"


def test_the_metrics_are_for_clients_behind_the_balancer_too(tmp_path: Path) -> None:
    trusted = {"mlflow_server_trusted_proxies": ["127.0.0.1/32"]}
    with running(
        tmp_path, mlflow_server_metrics=True, mlflow_server_metrics_cidrs=["203.0.113.7/32"], **trusted
    ) as proxy:
        assert proxy.get("/metrics")[0] == 403
        assert proxy.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7"})[0] == 200
        assert proxy.get("/metrics", headers={"X-Forwarded-For": "203.0.113.7, 203.0.113.8"})[0] == 403


@pytest.mark.parametrize("secure", [True, False])
@pytest.mark.parametrize("host", ["10.42.0.7", "10.42.0.7:443", "evil.example"])
def test_a_balancer_asks_by_address_and_leaves_no_line(host: str, secure: bool, balanced: Proxy) -> None:
    status, headers, body = balanced.get("/ready", secure=secure, headers={"Host": host})
    assert (status, body[:12]) == (200, b"stub /ready ")
    assert headers["X-Asked-As"] == "localhost for None"
    assert balanced.get("/ready/x", secure=secure, headers={"Host": host})[0] == 421
    log = balanced.directory / "access.log"
    assert "/ready/x" in log.read_text() and "/ready " not in log.read_text()


def test_readiness_is_asked_by_the_public_name_as_well(balanced: Proxy) -> None:
    assert balanced.get("/ready")[1]["X-Asked-As"] == "localhost for None"
    assert balanced.get("/ready", secure=False)[0] == 301


def test_an_idle_connection_outlives_the_balancers_own_patience(tmp_path: Path) -> None:
    for seconds in (75, 1):
        (folder := tmp_path / str(seconds)).mkdir()
        with (
            running(folder, mlflow_server_keepalive_timeout=seconds) as proxy,
            contextlib.closing(proxy.connection()) as connection,
        ):
            connection.request("GET", "/who", headers={"Host": NAME})
            connection.getresponse().read()
            connection.sock.settimeout(3)
            closed = False
            with contextlib.suppress(TimeoutError):
                closed = connection.sock.recv(1) == b""
            assert closed == (seconds == 1)


def test_an_upload_is_passed_on_as_it_arrives(proxy: Proxy) -> None:
    with contextlib.closing(proxy.connection()) as connection:
        connection.putrequest("PUT", "/upload", skip_host=True)
        connection.putheader("Host", NAME)
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders(b"x" * 1000)
        assert connection.getresponse().status == 200


def test_strict_transport_security_can_be_off(tmp_path: Path) -> None:
    with running(tmp_path, mlflow_server_hsts_max_age=0) as proxy:
        assert proxy.get("/")[1]["Strict-Transport-Security"] is None


@pytest.mark.parametrize(("cidr", "status"), [("127.0.0.0/8", 200), ("203.0.113.0/24", 403)])
def test_only_the_given_networks_read_the_metrics(cidr: str, status: int, tmp_path: Path) -> None:
    with running(tmp_path, mlflow_server_metrics=True, mlflow_server_metrics_cidrs=[cidr]) as proxy:
        found, _, body = proxy.get("/metrics")
        assert (found, b"stub" in body) == (status, status == 200)
        assert proxy.get("/")[0] == 200
