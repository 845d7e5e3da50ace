"""What Prometheus is told, by a real service."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import time

import pytest
from mlflow_service.metrics import Routes
from service_machine import ARTIFACTS, LOGIN, PROGRAM, Machine, Service, await_true

EXPERIMENT = "/api/2.0/mlflow/experiments/get"


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/", "/"),
        ("/api/x/get", "/api/x/get"),
        ("/api/x/7", "/api/x/*"),
        ("/api/x/7/y", "/api/x/*/y"),
        ("/api/x/7/z", "other"),
        ("/files/a/b/c", "/files/*"),
        ("/files/", "other"),
        ("/mpu/create/a/b", "/mpu/create/*"),
        ("/API/x/get", "other"),
        ("/a.b", "/a.b"),
        ("/a-b", "other"),
    ],
)
def test_a_label_is_one_of_the_servers_own_routes(path: str, label: str) -> None:
    templates = [
        "/",
        "/api/x/get",
        "/api/x/<int(min=1):id>",
        "/api/x/{id}/y",
        "/<path:any>x",
        "/files/<path:p>",
        "/a.b",
    ]
    assert Routes([*templates[:4], *templates[5:], "/mpu/{way}/{rest}", "/mpu/create/{p:path}"]).name(path) == label


@pytest.fixture
def service(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Service:
    return machine.start(workers=2, environment={"PROMETHEUS_MULTIPROC_DIR": str(tmp_path_factory.mktemp("metrics"))})


def metrics(service: Service) -> dict[str, float]:
    """The samples that the service tells, asked without a login."""
    status, headers, body = service.ask("/metrics", login=None)
    assert (status, headers["content-type"].partition(";")[0]) == (200, "text/plain")
    lines = [line.rpartition(" ") for line in body.decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_the_workers_count_together(service: Service) -> None:
    for _ in range(20):
        assert service.ask(f"{EXPERIMENT}?experiment_id=0")[0] == 200
    assert service.ask(f"{EXPERIMENT}?experiment_id=7")[0] == 404
    assert service.ask(EXPERIMENT, login=(LOGIN[0], "wrong"))[0] == 401
    series = f'mlflow_http_requests_total{{method="GET",route="{EXPERIMENT}",status="%d"}}'
    # A request is counted when its answer has gone.
    end = time.monotonic() + 5
    while series % 401 not in (found := metrics(service)) and time.monotonic() < end:
        time.sleep(0.05)
    # One request more came from the fixture, which waited for the first answer.
    counted = {status: found[series % status] for status in (200, 401, 404)}
    assert counted == {200: 21, 401: 1, 404: 1}
    duration = f'mlflow_http_request_duration_seconds_%s{{method="GET",route="{EXPERIMENT}"}}'
    assert found[duration % "count"] == 23
    assert 0 < found[duration % "sum"] < 60
    assert found["mlflow_http_requests_in_progress"] == 0


def test_no_client_makes_new_labels(service: Service) -> None:
    for number, method in enumerate(("PURGE", "MKCOL", "LINK")):
        service.ask(f"/no/such/{number}")
        service.ask(f"{ARTIFACTS}/{number}/none")
        service.ask("/", method)
    found = metrics(service)
    labels = {
        re.sub(r'.*method="(\w+)",route="([^"]*)".*', r"\1 \2", name) for name in found if "requests_total" in name
    }
    assert labels == {f"GET {EXPERIMENT}", "GET other", f"GET {ARTIFACTS}/*", "other /"}


def test_what_a_dead_worker_was_answering_is_over_and_what_it_counted_stays(service: Service) -> None:
    upload = http.client.HTTPConnection("localhost", service.port, timeout=60)
    upload.putrequest("PUT", f"{ARTIFACTS}/1/half")
    for name, value in {**service.headers(), "Content-Length": str(1 << 30)}.items():
        upload.putheader(name, value)
    upload.endheaders(b"x")
    in_progress = "mlflow_http_requests_in_progress"
    await_true("the upload", lambda: metrics(service)[in_progress] == 1)
    before = metrics(service)
    for pid in service.workers():
        os.kill(pid, signal.SIGKILL)
    upload.close()
    await_true("the end of the upload", lambda: service.answers() and metrics(service)[in_progress] == 0)
    name = f'mlflow_http_requests_total{{method="GET",route="{EXPERIMENT}",status="200"}}'
    assert metrics(service)[name] > before[name]


def test_a_file_that_a_worker_is_just_making_is_waited_for(machine: Machine) -> None:
    folder = machine.folder / "metrics"
    folder.mkdir()
    empty = folder / "counter_1.db"
    empty.touch()
    program = (
        "import sys, threading; from pathlib import Path; from mlflow_service.metrics import collected\n"
        "threading.Timer(0.03, Path(sys.argv[1]).unlink).start(); print(collected()[1])"
    )
    command = [str(machine.release / "bin/python"), "-c", program, str(empty)]
    environment = {**os.environ, "PYTHONPATH": str(PROGRAM), "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    # Removed, it is as good as finished; the counter of a worker that never ends to make one is an error.
    for status in (0, 1):
        empty.touch()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout.startswith("text/plain")) == (status, status == 0), done.stderr
        command[2] = program.replace("threading.Timer(0.03, Path(sys.argv[1]).unlink).start();", "")


def test_without_a_directory_nothing_is_told(shared: Service) -> None:
    assert shared.ask("/metrics")[0] == 404
