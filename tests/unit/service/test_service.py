"""The service: what it answers, how it starts, restarts and ends, and what it says when something is broken."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from service_machine import ARTIFACTS, BUCKET, LOGIN, PATIENCE, PROGRAM, Machine, Service, await_true, free_port

EXPERIMENT = "/api/2.0/mlflow/experiments/get?experiment_id=0"
OPEN = {"/health", "/signup"}
SIZE = 8 << 20


def test_flask_and_fastapi_both_answer(shared: Service) -> None:
    status, _, body = shared.ask(EXPERIMENT)
    assert status == 200
    assert json.loads(body)["experiment"]["name"] == "Default"
    status, _, body = shared.ask("/api/3.0/mlflow/server-info")
    assert status == 200
    assert json.loads(body)["store_type"] == "SqlStore"


def test_a_wrong_password_is_refused_by_both(shared: Service) -> None:
    for path in (EXPERIMENT, f"{ARTIFACTS}/x"):
        for login in ((LOGIN[0], "wrong"), None):
            status, headers, _ = shared.ask(path, login=login)
            assert (status, headers["www-authenticate"]) == (401, 'Basic realm="mlflow"')


def in_release(machine: Machine, program: str, login: bool) -> Any:
    """Run a program with the release's Python beside the service's package; return the JSON that it prints last."""
    done = subprocess.run(
        [machine.release / "bin/python", "-c", program],
        env={**machine.environment(login), "PYTHONPATH": str(PROGRAM)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_no_shorter_way_goes_past_the_login(machine: Machine) -> None:
    service = machine.start()
    program = "import json, mlflow_service.app as a; print(json.dumps(sorted(a.application.paths)))"
    paths = set(in_release(machine, program, login=True))
    assert {"/api/2.0/mlflow/runs/log-metric", "/api/2.0/mlflow/experiments/get"} <= paths
    connection = service.connect()
    for path in sorted(paths - OPEN):
        for method in ("GET", "POST"):
            status, headers, _ = service.ask(path, method, login=None, connection=connection)
            assert status in (401, 405), (method, path, status)
            assert headers["x-content-type-options"] == "nosniff", path


def test_no_shorter_way_goes_past_the_check_of_host_and_origin(shared: Service) -> None:
    assert shared.ask(EXPERIMENT, headers={"Host": "evil.example"})[0] == 403
    path = "/api/2.0/mlflow/runs/create"
    assert shared.ask(path, "POST", b"{}", headers={"Origin": "https://evil.example"})[0] == 403


def test_without_a_login_everything_is_open(machine: Machine) -> None:
    service = machine.start(login=False)
    assert service.ask(EXPERIMENT, login=None)[0] == 200
    assert service.ask(f"{ARTIFACTS}/none", login=None)[0] == 404


# -- artifacts ---------------------------------------------------------------------------------------------------------


def test_an_artifact_comes_back_as_it_went(shared: Service) -> None:
    data = os.urandom(SIZE + 1)
    assert shared.ask(f"{ARTIFACTS}/1/blob.bin", "PUT", data)[0] == 200
    status, headers, body = shared.ask(f"{ARTIFACTS}/1/blob.bin")
    assert (status, body == data) == (200, True)
    assert headers["content-length"] == str(len(data))
    assert headers["content-disposition"] == "attachment; filename=blob.bin"


@pytest.mark.parametrize(
    ("ranges", "status", "part"),
    [
        ("bytes=2-4", 206, slice(2, 5)),
        ("bytes=-3", 206, slice(-3, None)),
        ("bytes=5-", 206, slice(5, None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("lines=1-2", 200, slice(None)),
    ],
)
def test_a_part_of_an_artifact(shared: Service, ranges: str, status: int, part: slice) -> None:
    data = b"0123456789"
    shared.ask(f"{ARTIFACTS}/1/digits", "PUT", data)
    found, headers, body = shared.ask(f"{ARTIFACTS}/1/digits", headers={"Range": ranges})
    assert (found, body) == (status, data[part])
    assert ("content-range" in headers) == (status == 206)


def test_a_part_beyond_the_end(shared: Service) -> None:
    shared.ask(f"{ARTIFACTS}/1/digits", "PUT", b"0123456789")
    status, _, body = shared.ask(f"{ARTIFACTS}/1/digits", headers={"Range": "bytes=10-"})
    assert (status, json.loads(body)["error_code"]) == (416, "INVALID_PARAMETER_VALUE")


def test_an_artifact_that_is_not_there(shared: Service) -> None:
    status, _, body = shared.ask(f"{ARTIFACTS}/1/none")
    assert (status, json.loads(body)["error_code"]) == (404, "RESOURCE_DOES_NOT_EXIST")


@pytest.mark.parametrize("path", ["..%2Fx", "%2e%2e/x", "1/../../x", "/etc/passwd"])
def test_a_path_that_leaves_the_folder(shared: Service, path: str) -> None:
    assert shared.ask(f"{ARTIFACTS}/{path}")[0] in (400, 404)


def test_the_web_interface_gets_the_same(shared: Service) -> None:
    data = os.urandom(SIZE)
    status, _, body = shared.ask(
        "/api/2.0/mlflow/runs/create", "POST", b'{"experiment_id": "0"}', headers={"Content-Type": "application/json"}
    )
    assert status == 200
    run = json.loads(body)["run"]["info"]["run_id"]
    assert shared.ask(f"{ARTIFACTS}/0/{run}/artifacts/a/ä.txt".replace("ä", "%C3%A4"), "PUT", data)[0] == 200
    status, headers, body = shared.ask(f"/get-artifact?run_id={run}&path=a/%C3%A4.txt")
    assert (status, body == data) == (200, True)
    assert headers["content-type"].startswith("text/plain")
    assert "filename*=UTF-8''%C3%A4.txt" in headers["content-disposition"]


def bucket(service: Machine) -> Any:
    """Return a client of the store."""
    return boto3.client(
        "s3", endpoint_url=service.store, aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
    )


def unfinished(client: Any) -> list[dict[str, str]]:
    """Return the uploads that the store waits for the end of."""
    found: list[dict[str, str]] = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return found


@contextlib.contextmanager
def begun(service: Service, path: str, sent: bytes, announced: int) -> Iterator[socket.socket]:
    """Begin an upload and send the first bytes of it."""
    head = "".join(f"{name}: {value}\r\n" for name, value in service.headers().items())
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
        connection.sendall(f"PUT {path} HTTP/1.1\r\nHost: localhost\r\n{head}".encode())
        connection.sendall(f"Content-Length: {announced}\r\n\r\n".encode() + sent)
        yield connection


def test_a_large_artifact_goes_in_parts_and_as_mlflow_would_send_it(machine: Machine) -> None:
    service = machine.start(environment={"MLFLOW_S3_UPLOAD_EXTRA_ARGS": '{"Metadata": {"team": "a"}}'})
    data = os.urandom(2 * SIZE + 5)
    assert service.ask(f"{ARTIFACTS}/large/model.json", "PUT", data)[0] == 200
    client = bucket(machine)
    found = client.get_object(Bucket=BUCKET, Key="artifacts/large/model.json")
    assert (found["Body"].read() == data, found["ContentType"], found["Metadata"]) == (
        True,
        "application/json",
        {"team": "a"},
    )
    assert found["ETag"].endswith('-3"')
    assert unfinished(client) == []


def test_the_first_part_is_in_the_store_before_the_last_has_arrived(machine: Machine) -> None:
    service, client = machine.start(), bucket(machine)
    data = os.urandom(SIZE + (3 << 20))
    with begun(service, f"{ARTIFACTS}/early", data[: SIZE + (2 << 20)], len(data)) as connection:
        await_true("an upload in parts", lambda: len(unfinished(client)) == 1)
        upload = {"Bucket": BUCKET, "Key": "artifacts/early", "UploadId": unfinished(client)[0]["UploadId"]}
        await_true("its first part", lambda: len(client.list_parts(**upload).get("Parts", [])) == 1)
        connection.sendall(data[SIZE + (2 << 20) :])
        assert connection.recv(12) == b"HTTP/1.1 200"
    assert client.get_object(Bucket=BUCKET, Key="artifacts/early")["Body"].read() == data


def test_an_upload_that_its_client_leaves_leaves_nothing(machine: Machine) -> None:
    service, client = machine.start(), bucket(machine)
    with begun(service, f"{ARTIFACTS}/left", bytes(SIZE + (2 << 20)), 3 * SIZE):
        await_true("an upload in parts", lambda: len(unfinished(client)) == 1)
    await_true("its end", lambda: unfinished(client) == [])
    assert "Contents" not in client.list_objects_v2(Bucket=BUCKET, Prefix="artifacts/left")
    assert not list(machine.folder.glob("tmp*/left"))


def test_a_store_that_refuses_a_part_ends_the_upload(machine: Machine) -> None:
    service, client = machine.start(), bucket(machine)
    with begun(service, f"{ARTIFACTS}/refused", bytes(SIZE + (2 << 20)), 3 * SIZE) as connection:
        await_true("an upload in parts", lambda: len(unfinished(client)) == 1)
        [upload] = unfinished(client)
        client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        connection.sendall(bytes(2 * SIZE - (2 << 20)))
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 500
        assert b"The artifact store refused" in answer.read()


def test_the_parts_of_the_largest_object_are_what_s3_takes(machine: Machine) -> None:
    program = (
        "import json; from mlflow_service.uploads import part_size\n"
        "sizes = [part_size(n) for n in range(1, 10001)]; print(json.dumps([sum(sizes), max(sizes), min(sizes)]))"
    )
    total, largest, smallest = in_release(machine, program, login=False)
    assert total >= 5 << 40
    assert largest <= 5 << 30
    assert smallest >= 5 << 20


class Slow(socketserver.ThreadingTCPServer):
    """An S3 API that sends half of an object, and the rest when it may; or breaks off."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, breaks: bool) -> None:
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.breaks = breaks
        self.go_on = threading.Event()


class SlowHandler(socketserver.StreamRequestHandler):
    """Answers each request in that way."""

    def handle(self) -> None:
        """Read the head of one request and answer."""
        assert isinstance(self.server, Slow)
        while self.rfile.readline().strip():
            pass
        self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nETag: x\r\n\r\n".encode())
        self.wfile.write(b"a" * (SIZE // 2))
        self.wfile.flush()
        if not self.server.breaks and self.server.go_on.wait(60):
            self.wfile.write(b"b" * (SIZE // 2))


@contextlib.contextmanager
def slow_store(breaks: bool = False) -> Iterator[Slow]:
    """Run one."""
    with Slow(breaks) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()


def test_the_first_half_arrives_before_the_store_has_sent_the_second(machine: Machine) -> None:
    with slow_store() as slow:
        service = machine.start(environment={"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{slow.server_address[1]}"})
        connection = service.connect()
        connection.request("GET", f"{ARTIFACTS}/x", headers=service.headers())
        answer = connection.getresponse()
        # What the store has sent, but for what is still in the buffers between.
        assert answer.read(SIZE // 2 - (2 << 20)) == b"a" * (SIZE // 2 - (2 << 20))
        slow.go_on.set()
        assert answer.read() == b"a" * (2 << 20) + b"b" * (SIZE // 2)


def test_a_download_that_the_store_breaks_off_is_not_taken_for_whole(machine: Machine) -> None:
    with slow_store(breaks=True) as slow:
        service = machine.start(environment={"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{slow.server_address[1]}"})
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            service.ask(f"{ARTIFACTS}/x")


# -- faults ------------------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_is_a_503(machine: Machine) -> None:
    service = machine.start(environment={"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"})
    for method, body in (("GET", None), ("PUT", b"x")):
        status, _, text = service.ask(f"{ARTIFACTS}/x", method, body)
        assert (status, json.loads(text)["error_code"]) == (503, "TEMPORARILY_UNAVAILABLE"), method


def test_a_refusing_store_is_quoted(machine: Machine) -> None:
    service = machine.start(environment={"_MLFLOW_SERVER_ARTIFACT_DESTINATION": "s3://nobodys-bucket/x"})
    status, _, text = service.ask(f"{ARTIFACTS}/x", "PUT", b"x")
    assert status == 500
    assert "The specified bucket does not exist" in json.loads(text)["message"]


def test_a_full_disk_is_a_507(machine: Machine) -> None:
    # A disk that is really full is in the Molecule scenario `faults`.
    program = (
        "import errno, json; from mlflow_service import faults\n"
        "print(json.dumps([faults.answer(OSError(n, ''))[0] for n in (errno.ENOSPC, errno.EDQUOT)]))"
    )
    assert in_release(machine, program, login=False) == [507, 507]


def test_each_killed_process_is_replaced(machine: Machine) -> None:
    service = machine.start(workers=2)
    for _ in range(2):
        before = service.workers()
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        await_true("a new worker", lambda before=before: len(set(service.workers()) - set(before)) == 1)  # type: ignore[misc]
        assert service.ask(EXPERIMENT)[0] == 200


def test_a_missing_event_loop_is_an_error_not_a_slow_server(machine: Machine) -> None:
    for name in ("uvloop", "httptools"):
        folder = machine.folder / f"without-{name}"
        folder.mkdir()
        (folder / f"{name}.py").write_text("raise ImportError('not here')\n")
        service = machine.start(environment={"PYTHONPATH": str(folder)}, wait=False)
        await_true("its end", lambda service=service: service.process.poll() is not None)  # type: ignore[misc]
        assert service.process.returncode != 0
        assert "not here" in service.log.read_text()


# -- start, restart, end -----------------------------------------------------------------------------------------------


def test_systemd_is_told_when_connections_are_accepted(machine: Machine) -> None:
    path = machine.folder / "notify.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(path))
        notify.settimeout(60)
        service = machine.start(environment={"NOTIFY_SOCKET": str(path)}, wait=False)
        assert notify.recv(100) == b"READY=1"
        assert "startup complete" in service.log.read_text()
        assert service.ask(EXPERIMENT)[0] == 200


def test_a_stopping_service_finishes_what_it_has_begun(machine: Machine) -> None:
    with slow_store() as slow:
        service = machine.start(environment={"MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{slow.server_address[1]}"})
        download, kept = service.connect(), service.connect()
        assert service.ask(EXPERIMENT, connection=kept)[0] == 200
        download.request("GET", f"{ARTIFACTS}/x", headers=service.headers())
        answer = download.getresponse()
        service.process.send_signal(signal.SIGTERM)
        await_true("the drain", lambda: "Shutting down" in service.log.read_text() or drains(service, kept))
        slow.go_on.set()
        assert len(answer.read()) == SIZE
        assert service.process.wait(60) == 0


def drains(service: Service, kept: http.client.HTTPConnection) -> bool:
    """Ask on a kept connection; tell whether the answer says that it was the last."""
    status, headers, _ = service.ask(EXPERIMENT, connection=kept)
    assert status == 200
    return headers.get("connection") == "close"


def test_no_request_fails_while_another_service_takes_over(machine: Machine) -> None:
    first = machine.start()
    stop, failures, answered = threading.Event(), [], [0]

    def work() -> None:
        connection = http.client.HTTPConnection("localhost", first.port, timeout=60)
        while not stop.is_set():
            try:
                status, headers, _ = first.ask(EXPERIMENT, connection=connection)
                answered[0] += status == 200
                if status != 200:
                    failures.append(str(status))
                if headers.get("connection") == "close":
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection.close()
            # A client whose connection is never idle for long, as nginx's are not under load.
            time.sleep(0.005)
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2):
            second = machine.start(port=first.port)
            before = answered[0]
            machine.running[-2].process.send_signal(signal.SIGTERM)
            assert machine.running[-2].process.wait(60) == 0
            await_true("further answers", lambda before=before: answered[0] > before + 20)  # type: ignore[misc]
            assert second.process.poll() is None
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_worker_has_connections_of_its_own(machine: Machine) -> None:
    service = machine.start(workers=2)
    assert len(service.workers()) == 2
    # None that the workers could have in common: the process that they were forked from has none.
    parent = {str(link.readlink()) for link in Path(f"/proc/{service.process.pid}/fd").iterdir()}
    assert not {name for name in parent if name.endswith(".db")}


def test_stores_of_one_database_share_one_pool(machine: Machine) -> None:
    program = (
        "import json; from mlflow_service import app; from mlflow.server.handlers import _get_job_store\n"
        "stores = [app._get_tracking_store(), app._get_model_registry_store(), _get_job_store()]\n"
        "print(json.dumps([len({id(store.engine) for store in stores}), len({id(e) for e in app.engines()})]))"
    )
    # Runs, registered models and jobs in one database, users in another.
    assert in_release(machine, program, login=True) == [1, 2]
