"""AWS that says no: a bucket of somebody else, a quota, throttling, a run that is killed. The next run continues."""

from __future__ import annotations

import http.client
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

import pytest
from stack import BIN, ROOT, Account, Control

ERROR = (
    '<?xml version="1.0" encoding="UTF-8"?>'
    "<Response><Errors><Error><Code>{code}</Code><Message>{message}</Message></Error></Errors>"
    "<RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"
)


class Gate:
    """A proxy before the account that answers chosen calls with an error of AWS's own form."""

    def __init__(self, account: Account) -> None:
        target = urlsplit(account.environment["AWS_ENDPOINT_URL"])
        # TLS behind the gate: the bucket's own policy refuses what came over plain HTTP.
        tls = ssl.create_default_context(cafile=account.environment["AWS_CA_BUNDLE"])
        self.refuse: Callable[[str], tuple[int, str, str] | None] = lambda action: None
        # An EC2 action's name, or method and path of S3.
        self.actions: list[str] = []
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            hop_by_hop: ClassVar[set[str]] = {"connection", "transfer-encoding", "content-length", "server", "date"}

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                action = parse_qs(body.decode("latin-1")).get("Action", [f"{self.command} {urlsplit(self.path).path}"])[
                    0
                ]
                gate.actions.append(action)
                if refusal := gate.refuse(action):
                    status, code, message = refusal
                    return self.answer(
                        status, {"Content-Type": "text/xml"}, ERROR.format(code=code, message=message).encode()
                    )
                upstream = http.client.HTTPSConnection(str(target.hostname), target.port, timeout=120, context=tls)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                upstream.request(self.command, self.path, body, headers)
                response = upstream.getresponse()
                content = response.read()
                upstream.close()
                kept = {name: value for name, value in response.getheaders() if name.lower() not in self.hop_by_hop}
                return self.answer(response.status, kept, content)

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = handle_any  # noqa: N815

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def gate(account: Account) -> Iterator[Gate]:
    gate = Gate(account)
    yield gate
    gate.server.shutdown()


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Control]:
    control = Control(tmp_path_factory.mktemp("faults"), account, mlflow_stack="faults")
    yield control
    confirm = ("-e", "mlflow_teardown_confirm=faults", "-e", "mlflow_teardown_data=delete")
    assert "0 resources left of the stack faults" in control.playbook("teardown.yml", *confirm).succeeded().text


def test_a_bucket_of_somebody_else_is_explained(control: Control, gate: Gate) -> None:
    """AWS shows a foreign bucket by refusing: 403 to HeadBucket, BucketAlreadyExists to CreateBucket."""
    answers = {"HEAD": (403, "AccessDenied", "Access Denied"), "PUT": (409, "BucketAlreadyExists", "Not available.")}
    gate.refuse = lambda action: answers.get(action.split()[0]) if action.endswith(" /taken-by-a-stranger") else None
    environment = control.environment(AWS_ENDPOINT_URL=gate.url)
    words = ("-e", "mlflow_bucket=taken-by-a-stranger")
    text = control.playbook("playbooks/provision.yml", *words, environment=environment).refused().text
    assert "Failed to create the artifact bucket taken-by-a-stranger in eu-central-1" in text
    assert "set mlflow_bucket in the stack file to a name of your own" in text
    assert "run the playbook again and it continues from here" in text


def test_a_quota_stops_the_run_and_the_next_one_continues(control: Control, gate: Gate) -> None:
    message = "The maximum number of addresses has been reached."
    gate.refuse = lambda action: (400, "AddressLimitExceeded", message) if action == "AllocateAddress" else None
    environment = control.environment(AWS_ENDPOINT_URL=gate.url)
    assert message in control.playbook("playbooks/provision.yml", environment=environment).refused().text
    control.playbook("playbooks/provision.yml").succeeded()


def test_throttled_calls_are_tried_again_and_the_next_run_changes_nothing(control: Control, gate: Gate) -> None:
    """Every third call of EC2 is throttled, as a busy account does."""

    def throttle(action: str) -> tuple[int, str, str] | None:
        described = [name for name in gate.actions if name.startswith("Describe")]
        busy = action.startswith("Describe") and len(described) % 3 == 0
        return (503, "RequestLimitExceeded", "Request limit exceeded.") if busy else None

    gate.refuse = throttle
    run = control.playbook(
        "playbooks/provision.yml", environment=control.environment(AWS_ENDPOINT_URL=gate.url)
    ).succeeded()
    assert set(run.changed.values()) == {0}, run.output
    assert len(gate.actions) > 20


def test_a_killed_teardown_and_a_killed_provision_are_continued(control: Control) -> None:
    """Whatever was half done when the run was killed, the next one ends as if nothing had happened."""
    confirm = ["-e", "mlflow_teardown_confirm=faults", "-e", "mlflow_teardown_data=delete"]
    for name, words, seconds in (("teardown.yml", confirm, 8), ("playbooks/provision.yml", [], 16)):
        command = [str(BIN / "ansible-playbook"), str(ROOT / name), "-i", "inventories/local", *words]
        process = subprocess.Popen(
            command, cwd=control.directory, env=control.environment(), start_new_session=True, stdout=subprocess.DEVNULL
        )
        time.sleep(seconds)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        control.playbook(name, *words).succeeded()
    assert set(control.playbook("playbooks/provision.yml").succeeded().changed.values()) == {0}
