"""The wine example against a real `mlflow server` with TLS and a login: what it refuses, trains and serves."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[4]
EXAMPLE = ROOT / "examples/wine_quality"
SAMPLE = EXAMPLE / "winequality-sample.csv"
sys.path[:0] = [str(ROOT / "tests/unit/plugins/mlflow_endpoint_validate"), str(EXAMPLE)]

from mlflow_servers import (  # noqa: E402
    NAME,
    PASSWORD,
    USERNAME,
    Authority,
    FaultyServer,
    RealServer,
    Rule,
    free_port,
    hang,
    mlflow_program,
    say,
    serving,
)
from sample import lines  # noqa: E402

HEADER = SAMPLE.read_text().splitlines()[0]
ROW = SAMPLE.read_text().splitlines()[1]
# The server's certificate is for a name that no name service knows.
RESOLVER = f"""
import socket
real = socket.getaddrinfo
socket.getaddrinfo = lambda host, *more, **named: real("127.0.0.1" if host == {NAME!r} else host, *more, **named)
"""
PREDICT = """
import json, sys
import mlflow, pandas
model = mlflow.sklearn.load_model(sys.argv[1])
rows = pandas.read_csv(sys.argv[2], sep=";").drop(columns="quality")
print("RESULT", json.dumps([float(value) for value in model.predict(rows)]))
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority that client.env would name."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RealServer]:
    """A real `mlflow server` on SQLite."""
    server = RealServer(tmp_path_factory.mktemp("mlflow"), authority)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def environment(server: RealServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What client.env says, over an environment without any other MLflow setting."""
    home = tmp_path_factory.mktemp("home")
    (home / "sitecustomize.py").write_text(RESOLVER)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "PYTHON"))}
    return {
        **kept,
        "HOME": str(home),
        "PYTHONPATH": str(home),
        "TMPDIR": str(home),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_TRACKING_URI": f"https://{NAME}:{server.port}",
        "MLFLOW_TRACKING_USERNAME": USERNAME,
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
        "MLFLOW_TRACKING_SERVER_CERT_PATH": str(server.ca),
    }


def run(words: list[str], environment: Mapping[str, str], given: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the Python that has MLflow in the folder of the example."""
    command = [str(mlflow_program().with_name("python")), *words]
    return subprocess.run(
        command,
        env=dict(environment),
        cwd=EXAMPLE,
        input=given,
        stdin=subprocess.DEVNULL if given is None else None,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def ask(program: str, cases: list[dict[str, Any]], environment: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what the example came to in each case: its status and its output."""
    given = [{"words": case["words"], "environment": case.get("environment", {})} for case in cases]
    done = run([str(Path(__file__).with_name("ask.py")), program], environment, json.dumps(given))
    assert done.returncode == 0, done.stderr[-3000:]
    return list(json.loads(done.stdout))


def logged(server: RealServer) -> dict[str, int]:
    """Count what the server has, deleted or not, by table."""
    tables = ("experiments", "runs", "logged_models", "registered_models", "model_versions")
    with contextlib.closing(sqlite3.connect(server.database)) as database:
        return {table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}


# --- what is refused


def test_nothing_is_logged_when_something_is_refused(
    server: RealServer, environment: dict[str, str], tmp_path: Path
) -> None:
    def file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def data(name: str, content: str | bytes, *expected: str) -> dict[str, Any]:
        return {"words": ["--data", file(name, content)], "status": 1, "expected": [*expected, name, "`--data`"]}

    sample = ["--data", str(SAMPLE)]
    table = SAMPLE.read_text()
    (tmp_path / "stranger").mkdir()
    stranger = Authority(tmp_path / "stranger", "Somebody else")
    silent = free_port()
    rules = [
        Rule(say(404, "gone"), path="/gone.csv"),
        Rule(say(200, "<html>Log in first</html>", "text/html"), path="/portal.csv"),
        Rule(say(200, "not JSON"), path="/api/"),
    ]
    with serving(FaultyServer(None, None, rules)) as web:
        there = f"http://127.0.0.1:{web.port}"
        cases: list[dict[str, Any]] = [
            *(
                {"words": [*sample, option, given], "status": 2, "expected": [option.split("=")[0], allowed]}
                for option, given, allowed in (
                    ("--alpha", "-0.1", "'-0.1' was given, a number of 0 or more is allowed"),
                    ("--alpha", "nan", "'nan' was given, a number of 0 or more is allowed"),
                    ("--alpha", "inf", "'inf' was given"),
                    ("--alpha", "much", "'much' was given"),
                    ("--l1-ratio", "1.01", "'1.01' was given, a number from 0 to 1 is allowed"),
                    ("--l1-ratio", "-0.5", "'-0.5' was given, a number from 0 to 1 is allowed"),
                    ("--seed", "-1", "'-1' was given, a whole number from 0 to 4294967295 is allowed"),
                    ("--seed", "4294967296", "'4294967296' was given"),
                    ("--experiment", " ", "a name is needed"),
                    ("--registered-model-name", "a/b", "'a/b' was given, a name without '/', ':' and '@' is allowed"),
                )
            ),
            {"words": sample, "environment": {"MLFLOW_TRACKING_URI": ""}, "expected": ["is not set", "client.env"]},
            *(
                {"words": sample, "environment": {"MLFLOW_TRACKING_URI": uri}, "expected": ["must be the address"]}
                for uri in ("sqlite:///here.db", "https://", "http://[half", "mlflow.example.com")
            ),
            {
                "words": sample,
                "environment": {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(tmp_path / "none.pem")},
                "expected": ["MLFLOW_TRACKING_SERVER_CERT_PATH is", "none.pem", "-v CA_FILE:CA_FILE:ro"],
            },
            {
                "words": sample,
                "environment": {"MLFLOW_TRACKING_SERVER_CERT_PATH": ""},
                "expected": ["is set and empty", "unset MLFLOW_TRACKING_SERVER_CERT_PATH"],
            },
            {
                "words": sample,
                "environment": {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(stranger.ca)},
                "expected": ["Failed to reach the tracking server on", "CERTIFICATE_VERIFY_FAILED"],
            },
            {
                "words": sample,
                "environment": {"MLFLOW_TRACKING_URI": f"http://someone:s3cret@127.0.0.1:{silent}"},
                "expected": [f"Failed to reach the tracking server on http://127.0.0.1:{silent}", "refused"],
            },
            {
                "words": sample,
                "environment": {"MLFLOW_TRACKING_URI": there},
                "expected": [f"Failed to reach the tracking server on {there}"],
            },
            {
                "words": sample,
                "environment": {"MLFLOW_TRACKING_PASSWORD": "wrong"},
                "expected": ["Failed to log in to", "MLFLOW_TRACKING_PASSWORD"],
            },
            {"words": ["--data", str(tmp_path / "none.csv")], "expected": ["none.csv", "No such file", "winequality-"]},
            {"words": ["--data", str(tmp_path)], "expected": ["Is a directory"]},
            {"words": ["--data", "ftp://127.0.0.1/wine.csv"], "expected": ["ftp://", "http:// or https://"]},
            {"words": ["--data", f"{there}/gone.csv"], "expected": ["Failed to fetch", f"{there}/gone.csv", "404"]},
            {
                "words": ["--data", f"http://127.0.0.1:{silent}/wine.csv"],
                "expected": ["Failed to fetch", "refused", "`--data winequality-red.csv`", str(SAMPLE)],
            },
            {"words": ["--data", f"{there}/portal.csv"], "expected": ["portal.csv", "no column 'quality'"]},
            data("empty.csv", "", "No columns to parse"),
            data("header.csv", HEADER, "0 rows, at least 8 are needed"),
            data("commas.csv", table.replace(";", ","), "no column 'quality'", "separated by ';'"),
            data("unnamed.csv", table.replace('"quality"', '"points"'), "no column 'quality'", "alcohol"),
            data("alone.csv", "quality\n" + "5\n" * 20, "no column besides 'quality'"),
            data("text.csv", "\n".join([HEADER, *[ROW] * 20, ROW.replace("12.0;", "sour;")]), "row 21 has 'sour'"),
            data("gap.csv", "\n".join([HEADER, *[ROW] * 20, ROW.replace("12.0;", ";")]), "row 21 has 'nan'", "acidity"),
            data("more.csv", "\n".join([HEADER, *[f"{ROW};9"] * 20]), "more fields"),
            data("ragged.csv", "\n".join([HEADER, *[ROW] * 20, f"{ROW};9;9"]), "Expected 12 fields"),
            data("binary.csv", b"\x89PNG\r\n\x1a\n\xff\xfe" * 40, "Failed to use the data"),
        ]
        before = logged(server)
        outcomes = ask("train", cases, environment)
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome["status"] == case.get("status", 1), (case, outcome)
        missing = [part for part in case["expected"] if part not in outcome["output"]]
        assert not missing, (missing, outcome["output"])
        assert "Traceback" not in outcome["output"] and "s3cret" not in outcome["output"], outcome["output"]
    assert logged(server) == before


def test_data_that_never_arrive_are_given_up(environment: dict[str, str]) -> None:
    script = "import sys, train; train.FETCH_TIMEOUT = (1, 1); sys.exit(train.main(sys.argv[1:]))"
    with serving(FaultyServer(None, None, [Rule(hang)])) as web:
        done = run(["-c", script, "--data", f"http://127.0.0.1:{web.port}/wine.csv"], environment)
    assert done.returncode == 1
    assert "Failed to fetch the data" in done.stderr and "timed out" in done.stderr, done.stderr


def test_server_that_never_answers_is_given_up(environment: dict[str, str]) -> None:
    start = time.monotonic()
    with serving(FaultyServer(None, None, [Rule(hang)])) as web:
        silent = {**environment, "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{web.port}"}
        done = run(["train.py", "--data", str(SAMPLE)], silent)
    assert done.returncode == 1
    assert "Failed to reach the tracking server on" in done.stderr and "timed out" in done.stderr, done.stderr
    assert time.monotonic() - start < 60


def test_deleted_experiment_is_refused(server: RealServer, environment: dict[str, str]) -> None:
    api = "/api/2.0/mlflow/experiments/"
    made = server.request("POST", f"{api}create", {"name": "was here"})[1]["experiment_id"]
    server.request("POST", f"{api}delete", {"experiment_id": made})
    before = logged(server)
    case = {"words": ["--data", str(SAMPLE), "--experiment", "was here"]}
    (outcome,) = ask("train", [case], environment)
    assert outcome["status"] == 1 and "'was here'" in outcome["output"] and "`--experiment`" in outcome["output"]
    assert logged(server) == before


# --- what is trained


@pytest.fixture(scope="module")
def trained(server: RealServer, environment: dict[str, str]) -> dict[str, str]:
    """A run of the example with values of its own; what it printed, by label."""
    words = ["train.py", "--data", str(SAMPLE), "--alpha", "0.1", "--l1-ratio", "0.2", "--seed", "7"]
    done = run([*words, "--experiment", "tasting"], environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(re.findall(r"^(Metrics|Run|Model): (.*)$", done.stdout, re.MULTILINE))


def test_training_logs_what_it_says(server: RealServer, trained: dict[str, str]) -> None:
    run_data = server.request("GET", f"/api/2.0/mlflow/runs/get?run_id={trained['Run']}")[1]["run"]
    assert run_data["info"]["status"] == "FINISHED"
    parameters = {item["key"]: item["value"] for item in run_data["data"]["params"]}
    expected = {"alpha": "0.1", "l1_ratio": "0.2", "seed": "7", "data": str(SAMPLE), "rows": "200"}
    assert parameters == expected
    metrics = {item["key"]: item["value"] for item in run_data["data"]["metrics"]}
    printed = {name: float(value) for name, value in re.findall(r"(\w+) (-?[\d.]+)", trained["Metrics"])}
    assert metrics == pytest.approx(printed, abs=1e-4) and set(metrics) == {"rmse", "mae", "r2"}
    # Better than the mean of all wines, which has an R² of 0.
    assert 0.1 < metrics["r2"] < 1 and 0 < metrics["mae"] <= metrics["rmse"] < 1
    assert trained["Model"] == "models:/ElasticnetWineModel/1"
    version = server.request("GET", "/api/2.0/mlflow/model-versions/get?name=ElasticnetWineModel&version=1")[1]
    assert version["model_version"]["run_id"] == trained["Run"]
    assert version["model_version"]["status"] == "READY"


def test_model_has_signature_example_and_its_packages(server: RealServer, trained: dict[str, str]) -> None:
    (described,) = server.artifacts.rglob("MLmodel")
    names = re.findall('"name": "([^"]*)"', " ".join(described.read_text().split()))
    assert names == [name.strip('"') for name in HEADER.split(";")][:-1]
    example = json.loads(described.with_name("input_example.json").read_text())
    assert len(example["data"]) == 3
    packages = {Requirement(line).name for line in described.with_name("requirements.txt").read_text().splitlines()}
    assert packages == {"mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops"}


def test_run_whose_model_cannot_be_stored_is_marked_as_failed(
    server: RealServer, environment: dict[str, str], trained: dict[str, str]
) -> None:
    away = server.artifacts.with_name("away")
    server.artifacts.rename(away)
    server.artifacts.write_text("a file where the store was")
    try:
        impatient = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
        case = {"words": ["--data", str(SAMPLE), "--experiment", "unlucky"], "environment": impatient}
        (outcome,) = ask("train", [case], environment)
    finally:
        server.artifacts.unlink()
        away.rename(server.artifacts)
    assert outcome["status"] == 1 and "Error: Failed to log the run on https://" in outcome["output"], outcome
    api = "/api/2.0/mlflow/"
    experiment = server.request("GET", f"{api}experiments/get-by-name?experiment_name=unlucky")[1]["experiment"]
    asked = {"experiment_ids": [experiment["experiment_id"]]}
    (begun,) = server.request("POST", f"{api}runs/search", asked)[1]["runs"]
    assert begun["info"]["status"] == "FAILED"
    assert logged(server)["model_versions"] == 1


# --- what is served


@contextlib.contextmanager
def scoring(uri: str, environment: Mapping[str, str], log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Serve a model; yield the process and its port when it is healthy."""
    port = free_port()
    command = [str(mlflow_program().with_name("python")), "-m", "serve", uri, "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=dict(environment),
            cwd=EXAMPLE,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            with contextlib.suppress(OSError):
                if post(port, "GET", "/health")[0] == 200:
                    break
            time.sleep(0.3)
        else:
            raise AssertionError(f"the scoring server did not come up:\n{log.read_text()[-3000:]}")
        yield process, port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


def post(port: int, method: str, path: str, payload: Any = None) -> tuple[int, str]:
    """Ask the scoring server; return the status and the body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(
            method, path, None if payload is None else json.dumps(payload), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("suffix", ["/1", "@champion"])
def test_served_predictions_equal_those_of_the_loaded_model(
    server: RealServer, environment: dict[str, str], trained: dict[str, str], tmp_path: Path, suffix: str
) -> None:
    alias = {"name": "ElasticnetWineModel", "alias": "champion", "version": "1"}
    assert server.request("POST", "/api/2.0/mlflow/registered-models/alias", alias)[0] == 200
    local = run(["-c", PREDICT, trained["Model"], str(SAMPLE)], environment)
    assert local.returncode == 0, local.stderr[-3000:]
    expected = json.loads(local.stdout.rpartition("RESULT ")[2])
    assert len(expected) == 200 and len(set(expected)) > 100, "a model that learned nothing proves nothing"
    rows = [[float(field) for field in line.split(";")[:-1]] for line in SAMPLE.read_text().splitlines()[1:]]
    columns = [name.strip('"') for name in HEADER.split(";")][:-1]
    with scoring(f"models:/ElasticnetWineModel{suffix}", environment, tmp_path / "serve.log") as (process, port):
        status, body = post(port, "POST", "/invocations", {"dataframe_split": {"columns": columns, "data": rows}})
        assert status == 200, body
        assert json.loads(body)["predictions"] == expected
        status, body = post(port, "POST", "/invocations", {"dataframe_records": [{"alcohol": 10.0}]})
        assert status == 400 and "fixed acidity" in body, body
        # The server that anybody may ask does not hold the team's login.
        held = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"MLFLOW_TRACKING_URI" in held and PASSWORD.encode() not in held and USERNAME.encode() not in held
        process.send_signal(signal.SIGTERM)
        # uvicorn ends by the signal again, once it has answered what it had.
        assert process.wait(timeout=20) in (0, -signal.SIGTERM)


def test_serving_says_why_it_cannot(environment: dict[str, str], trained: dict[str, str], server: RealServer) -> None:
    wine, silent = "models:/ElasticnetWineModel/1", f"http://127.0.0.1:{free_port()}"
    cases: list[dict[str, Any]] = [
        {"words": ["models:/ElasticnetWineModel/latest"], "status": 2, "expected": ["/latest' was given", "@<alias>"]},
        {"words": ["runs:/abc/model"], "status": 2, "expected": ["'runs:/abc/model' was given"]},
        {"words": [wine, "--port", "0"], "status": 2, "expected": ["--port", "'0' was given", "from 1 to 65535"]},
        {"words": [], "status": 2, "expected": ["required: model"]},
        {"words": [wine], "environment": {"MLFLOW_TRACKING_URI": ""}, "expected": ["--env-file", "client.env"]},
        {"words": [wine], "environment": {"MLFLOW_TRACKING_URI": silent}, "expected": [silent, "refused"]},
        {"words": [wine], "environment": {"MLFLOW_TRACKING_PASSWORD": "x"}, "expected": ["Failed to log in to"]},
        {
            "words": [wine],
            "environment": {"MLFLOW_TRACKING_SERVER_CERT_PATH": "/nowhere/ca.pem"},
            "expected": ["/nowhere/ca.pem", "-v CA_FILE:CA_FILE:ro"],
        },
        {"words": ["models:/ElasticnetWineModel/99"], "expected": ["Failed to find", "/99", "newest version: 1"]},
        {"words": ["models:/ElasticnetWineModel@none"], "expected": ["@none", "aliases:"]},
        {"words": ["models:/Beer/1"], "expected": ["models:/Beer/1", "Register it with train.py"]},
    ]
    outcomes = ask("serve", cases, environment)
    for case, outcome in zip(cases, outcomes, strict=True):
        assert outcome["status"] == case.get("status", 1), (case, outcome)
        missing = [part for part in case["expected"] if part not in outcome["output"]]
        assert not missing, (missing, outcome["output"])
        assert "Traceback" not in outcome["output"], outcome["output"]


def test_serving_says_that_a_model_has_lost_its_files(
    environment: dict[str, str], trained: dict[str, str], server: RealServer
) -> None:
    (described,) = server.artifacts.rglob("MLmodel")
    directory = described.parent
    away = directory.with_name("away")
    directory.rename(away)
    try:
        (outcome,) = ask("serve", [{"words": ["models:/ElasticnetWineModel/1"]}], environment)
    finally:
        away.rename(directory)
    assert outcome["status"] == 1, outcome
    assert "Failed to download version 1 of ElasticnetWineModel" in outcome["output"], outcome["output"]


# --- what comes with it


def test_sample_is_what_its_program_writes() -> None:
    assert SAMPLE.read_text() == "\n".join(lines()) + "\n"


def test_lock_pins_what_was_tested() -> None:
    installed = json.loads(
        subprocess.run(
            [
                str(mlflow_program().with_name("python")),
                "-c",
                "import importlib.metadata, json; "
                "print(json.dumps({d.name.lower().replace('_', '-').replace('.', '-'): d.version "
                "for d in importlib.metadata.distributions()}))",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    pins = [
        Requirement(line.rstrip("\\ "))
        for line in (EXAMPLE / "requirements.txt").read_text().splitlines()
        if re.match(r"[a-z0-9]", line)
    ]
    here = {pin.name: str(pin.specifier) for pin in pins if pin.marker is None or pin.marker.evaluate()}
    assert {"mlflow", "scikit-learn", "pandas", "uvicorn"} <= set(here)
    assert here == {name: f"=={installed.get(name)}" for name in here}
