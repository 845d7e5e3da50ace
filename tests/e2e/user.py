"""A data scientist: a Python with the stock client, and nothing but client.env."""

from __future__ import annotations

import csv
import functools
import http.client
import ipaddress
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import pytest
from stack import ROOT, Control

WINE = ROOT / "examples/wine_quality"
ROWS = WINE / "winequality-sample.csv"
PATIENCE = 180.0


def run(control: Control, python: Path, *words: str | Path) -> str:
    """Run a program of the stock client's Python, and return what it printed."""
    done = subprocess.run(
        [python, *words],
        env=control.client_environment(),
        cwd=control.directory,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def client(control: Control, python: Path, *words: str) -> dict[str, Any]:
    """Run client.py, and return what it saw."""
    said = run(control, python, Path(__file__).with_name("client.py"), *words)
    return dict(json.loads(said.rpartition("RESULT ")[2]))


def qualities(control: Control, python: Path, model: str) -> list[float]:
    """Load a model from the registry, and ask it about every row."""
    predict = (
        "import sys, mlflow, pandas; rows = pandas.read_csv(sys.argv[2], sep=';').astype('float64'); "
        "print('QUALITIES', *mlflow.pyfunc.load_model(sys.argv[1]).predict(rows.drop(columns='quality')))"
    )
    said = run(control, python, "-c", predict, model, ROWS)
    return [float(word) for word in said.rpartition("QUALITIES ")[2].split()]


def wine(control: Control, python: Path) -> None:
    """Train the tutorials' model, register it, load it from the registry and ask it about every row."""
    said = run(control, python, WINE / "train.py", "--data", ROWS, "--alpha", "0.1")
    (model,) = re.findall(r"^Model: (models:/ElasticnetWineModel/\d+)$", said, re.MULTILINE)
    told = qualities(control, python, model)
    assert len(told) == 200 and len(set(told)) > 100 and 3 < min(told) <= max(told) < 9, told


def docker_command(*words: str | Path, timeout: float = PATIENCE) -> str:
    """Run a command of Docker's, and return what it printed."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@functools.cache
def wine_image(base: str) -> str:
    """Build the image that serves a model, by a company's own image of Python and from its package index."""
    python, image = "wine-test-python", "wine-test-serve"
    lines = [f"FROM {base}", "RUN apt-get update && apt-get install --yes --no-install-recommends python3-venv"]
    with tempfile.TemporaryDirectory() as context:
        if bundle := os.environ.get("SSL_CERT_FILE"):
            shutil.copy(bundle, Path(context, "ca.pem"))
            lines += ["COPY ca.pem /etc/ssl/company.pem", "ENV PIP_CERT=/etc/ssl/company.pem"]
        Path(context, "Dockerfile").write_text("\n".join(lines) + "\n")
        docker_command("build", "--tag", python, context, timeout=600)
    index = os.environ.get("PIP_INDEX_URL")
    arguments = ["--build-arg", f"PYTHON_IMAGE={python}", *(["--build-arg", f"PIP_INDEX_URL={index}"] if index else [])]
    docker_command("build", "--file", WINE / "serve/Dockerfile", *arguments, "--tag", image, WINE, timeout=900)
    return image


def beside(address: str) -> list[str]:
    """Options of `docker run`: in the edge's own network, as Docker's networks do not reach each other, at its end."""
    for network in docker.from_env().networks.list():
        for pool in network.attrs["IPAM"]["Config"] or []:
            subnet = ipaddress.ip_network(pool["Subnet"])
            if ipaddress.ip_address(address) in subnet:
                return ["--network", str(network.name), "--ip", str(subnet.broadcast_address - 1)]
    raise AssertionError(f"{address} is in no network of Docker's")


def ask(address: str, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    """Ask the served model; status 0 while nobody answers."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def wine_served(control: Control, python: Path) -> None:
    """Serve the model that `wine` has registered by a container that knows client.env alone, and ask it the same."""
    model, authority = "models:/ElasticnetWineModel/1", control.files / "ca.pem"
    with ROWS.open(newline="") as file:
        columns, *rows = csv.reader(file, delimiter=";")
    assert columns.pop() == "quality"
    question = {"dataframe_split": {"columns": columns, "data": [[float(word) for word in row[:-1]] for row in rows]}}
    image = wine_image(control.account.environment["LOCAL_AWS_BASE_IMAGE"])
    edge = urlsplit(control.client_environment()["MLFLOW_TRACKING_URI"]).hostname
    options = ["--detach", "--read-only", "--tmpfs", "/tmp", "--publish", "127.0.0.1::8080", *beside(str(edge))]
    mounted = ["--env-file", str(control.files / "client.env"), "--volume", f"{authority}:{authority}:ro"]
    started = docker_command("run", *options, *mounted, image, model).strip()
    container = docker.from_env().containers.get(started)
    try:
        address = docker_command("port", started, "8080").strip()
        end = time.monotonic() + PATIENCE
        while ask(address, "GET", "/health")[0] != 200:
            container.reload()
            assert container.status == "running" and time.monotonic() < end, container.logs().decode()
            time.sleep(1)
        status, answer = ask(address, "POST", "/invocations", question)
        assert status == 200, answer
        assert json.loads(answer)["predictions"] == pytest.approx(qualities(control, python, model))
    finally:
        container.remove(force=True)
