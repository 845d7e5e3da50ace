"""What the validator says of a server that works, and that it leaves no trace there."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow_servers import (
    NAME,
    PASSWORD,
    PREFIX,
    ROOT,
    USERNAME,
    Authority,
    FaultyServer,
    RealServer,
    Rule,
    forget_announcing,
    free_port,
    hang,
    say,
)
from validating import ALL, module_command, module_environment, only, outcome, run_module, validate


def arguments(server: FaultyServer | RealServer, authority: Authority, **more: Any) -> dict[str, Any]:
    """The module's arguments for this server, with closed ports where others must be refused."""
    return {
        "url": f"https://{NAME}:{server.port}",
        "resolve_address": "127.0.0.1",
        "ca_path": str(authority.ca),
        "username": USERNAME,
        "password": PASSWORD,
        "plain_http_port": free_port(),
        "refuse_ports": [free_port()],
        **more,
    }


def test_real_server_passes_every_check(real: RealServer, authority: Authority) -> None:
    given = arguments(real, authority)
    result = run_module(given)
    assert not result.get("failed"), result
    assert result["ok"] is True and result["failure"] is None and result["not_checked"] == []
    refusals = {"refuse_no_login", "refuse_wrong_login", "refuse_foreign_host", "refuse_plain_http"}
    assert outcome(result) == dict.fromkeys(
        [*ALL, *refusals, f"refuse_port_{given['refuse_ports'][0]}", "cleanup"], True
    )
    assert result["changed"] is False
    assert result["server_version"] == "3.17.2"
    assert result["summary"] == (
        "health, version, login, experiment, run, params, metrics, tags, artifact (SHA-256 equal), model registry, "
        "search; "
        f"refused: no login, wrong login, foreign Host, plain HTTP, {given['refuse_ports'][0]}"
    )
    assert real.left() == []


def test_large_artifact_is_not_held_in_memory(real: RealServer, authority: Authority) -> None:
    size = 150 * 1024 * 1024
    code = (
        "import re, runpy, sys\n"
        "try:\n    runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        # Not ru_maxrss: over fork and exec it starts from what pytest itself holds.
        "finally:\n    print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1], file=sys.stderr)\n"
    )
    given = {"ANSIBLE_MODULE_ARGS": arguments(real, authority, checks=["artifact"], artifact_size=size)}
    done = subprocess.run(
        [sys.executable, "-c", code, module_command()[1]],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=module_environment(),
        timeout=120,
        check=False,
    )
    result = json.loads(done.stdout)
    assert outcome(result)["artifact"] is True, result
    # Python with Ansible's code takes about 40 MB itself.
    assert int(done.stderr.strip().splitlines()[-1]) < 110 * 1024
    assert real.left() == []


def test_check_mode_only_reads(proxy: FaultyServer, authority: Authority) -> None:
    result = run_module(arguments(proxy, authority), check=True)
    assert not result.get("failed"), result
    assert {"health", "version", "login", "refuse_no_login", "refuse_wrong_login", "refuse_foreign_host"} < set(
        outcome(result)
    )
    assert {skip["name"] for skip in result["not_checked"]} == ALL - {"health", "version", "login"}
    assert {command for command, _, _ in proxy.seen} == {"GET"}


def test_environment_gives_the_login(proxy: FaultyServer, authority: Authority) -> None:
    given = arguments(proxy, authority, checks=["login"])
    del given["username"], given["password"]
    result = run_module(given, MLFLOW_TRACKING_USERNAME=USERNAME, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    assert outcome(result)["login"] is True
    assert run_module(given)["failure"]["check"] == "login"


def test_ansible_prints_no_password_at_any_verbosity(real: RealServer, authority: Authority, tmp_path: Path) -> None:
    playbook = tmp_path / "play.yml"
    given = {**arguments(real, authority), "password": "{{ lookup('ansible.builtin.env', 'GIVEN') }}"}
    task = {
        "name": "Validate",
        "mlops.mlflow_aws.mlflow_endpoint_validate": given,
        "delegate_to": "localhost",
        "register": "endpoint",
    }
    # pyenv's shims answer to names behind which there is no Python.
    local = {"ansible_python_interpreter": sys.executable}
    again = {
        "name": "Say so",
        "ansible.builtin.debug": {"var": "endpoint"},
    }
    playbook.write_text(
        json.dumps(
            [
                {
                    "hosts": "localhost",
                    "connection": "local",
                    "gather_facts": False,
                    "vars": local,
                    "tasks": [task, again],
                }
            ]
        )
    )
    done = subprocess.run(
        [str(Path(sys.executable).parent / "ansible-playbook"), "-vvvv", "-i", "localhost,", str(playbook)],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "GIVEN": PASSWORD},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "server_version: 3.17.2" in done.stdout
    output = done.stdout + done.stderr
    assert PASSWORD not in output and json.dumps(PASSWORD)[1:-1] not in output


def test_interrupted_module_deletes_what_it_created(
    proxy: FaultyServer, real: RealServer, authority: Authority
) -> None:
    proxy.rules.append(Rule(hang, "POST", "model-versions/create"))
    process = subprocess.Popen(
        module_command(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=module_environment(),
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({"ANSIBLE_MODULE_ARGS": arguments(proxy, authority)}).encode())
    process.stdin.close()
    until = time.monotonic() + 30
    while not proxy.asked("POST", "model-versions/create") and time.monotonic() < until:
        time.sleep(0.05)
    assert {line.split()[0] for line in real.left()} == {"experiment", "run", "model", "artifact"}
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert real.left() == []


def test_remains_of_a_killed_pass_are_deleted_after_an_hour(real: RealServer, authority: Authority) -> None:
    api = "/api/2.0/mlflow/"
    names = {age: f"{PREFIX}/{digit * 32}" for age, digit in ((7200, "a"), (60, "b"))}
    tag = {"key": "mlflow_endpoint_validate", "value": "x"}
    for age, name in names.items():
        created = real.request("POST", f"{api}experiments/create", {"name": name, "tags": [tag]})[1]["experiment_id"]
        real.request("POST", f"{api}runs/create", {"experiment_id": created})
        model = name.replace("/", "-")
        real.request("POST", f"{api}registered-models/create", {"name": model})
        with contextlib.closing(sqlite3.connect(real.database)) as database, database:
            database.execute(
                "UPDATE experiments SET creation_time = creation_time - ? WHERE name = ?", (age * 1000, name)
            )
            database.execute(
                "UPDATE registered_models SET creation_time = creation_time - ? WHERE name = ?", (age * 1000, model)
            )
    # Somebody else's, whatever it is called.
    other = real.request("POST", f"{api}experiments/create", {"name": f"{PREFIX}/mine"})[1]["experiment_id"]
    try:
        result = validate(real, authority.ca)
        assert result["ok"], result
        assert result["checks"][-1]["detail"] == "nothing left; 2 objects of interrupted passes were deleted too"
        left = [line for line in real.left() if not line.startswith("run ")]
        young = names[60]
        assert sorted(left) == sorted(
            [f"experiment {young}", f"experiment {PREFIX}/mine", f"model {young.replace('/', '-')}"]
        )
    finally:
        found = real.request("GET", f"{api}experiments/get-by-name?experiment_name={names[60]}")[1]["experiment"]
        for run in real.request("POST", f"{api}runs/search", {"experiment_ids": [found["experiment_id"]]})[1]["runs"]:
            real.request("POST", f"{api}runs/delete", {"run_id": run["info"]["run_id"]})
        real.request("POST", f"{api}experiments/delete", {"experiment_id": found["experiment_id"]})
        real.request("POST", f"{api}experiments/delete", {"experiment_id": other})
        real.request("DELETE", f"{api}registered-models/delete", {"name": names[60].replace("/", "-")})
    assert real.left() == []


def test_connection_that_ends_unannounced_is_opened_anew(
    proxy: FaultyServer, real: RealServer, authority: Authority
) -> None:
    proxy.rules.append(Rule(forget_announcing))
    result = validate(proxy, authority.ca)
    assert result["ok"], result
    assert real.left() == []


def test_start_up_is_waited_for(proxy: FaultyServer, authority: Authority) -> None:
    proxy.rules.append(Rule(say(503, "<html>starting</html>", "text/html"), "GET", "/health", times=2))
    assert validate(proxy, authority.ca, **only("health"))["failure"]["cause"] == (
        "the server answered 503 with an HTML page"
    )
    result = validate(proxy, authority.ca, **only("health", wait=10, delay=0.1))
    assert result["ok"] and result["checks"][0]["detail"] == "OK at try 2"


def test_waiting_ends(serve: Callable[..., FaultyServer]) -> None:
    server = serve(Rule(say(503, "")))
    started = time.monotonic()
    result = validate(server, None, **only("health", wait=0.5, delay=0.2))
    assert time.monotonic() - started < 3
    assert "tried " in result["failure"]["cause"]
    assert len(server.seen) >= 3


def test_what_will_not_pass_is_not_waited_for(serve: Callable[..., FaultyServer]) -> None:
    server = serve(Rule(say(404, "")))
    assert not validate(server, None, **only("health", wait=30))["ok"]
    assert len(server.seen) == 1


def test_chosen_check_brings_what_it_builds_on(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    result = validate(proxy, authority.ca, **only("tags"))
    assert list(outcome(result)) == ["health", "login", "experiment", "run", "tags", "cleanup"]
    assert real.left() == []


def test_prefix_of_the_url_is_kept(serve: Callable[..., FaultyServer]) -> None:
    server = serve(Rule(say(200, "OK", "text/plain")))
    assert validate(server, None, url=server.url + "/team%20a/", **only("health"))["ok"]
    assert server.seen[0][1] == "/team%20a/health"


def test_given_headers_go_with_every_request(proxy: FaultyServer, authority: Authority) -> None:
    result = run_module(arguments(proxy, authority, headers={"X-Target": 7}))
    assert not result.get("failed"), result
    assert proxy.seen and {headers.get("X-Target") for _command, _path, headers in proxy.seen} == {"7"}


def test_expected_version(proxy: FaultyServer, authority: Authority) -> None:
    assert validate(proxy, authority.ca, **only("version", expected_version="3.17.2"))["ok"]
    failure = validate(proxy, authority.ca, **only("version", expected_version="3.17.1"))["failure"]
    assert failure["check"] == "version"
    assert failure["cause"] == "the server runs MLflow 3.17.2, and 3.17.1 is expected"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url": "mlflow.example.com"}, "url must start with https://"),
        ({"url": "https://u:p@mlflow.test"}, "url must not hold credentials"),
        ({"url": "https://mlflow.test/#/experiments"}, "without '?' or '#'"),
        ({"url": "https://mlflow.test:99999"}, "no usable host and port"),
        ({"url": "https://"}, "url holds no host"),
        ({"ca_path": "/nowhere/ca.pem"}, "there is no file '/nowhere/ca.pem'"),
        ({"ca_path": __file__}, "cannot be used"),
        ({"timeout": 0}, "timeout must be at least 0.1 seconds"),
        ({"wait": "nan"}, "wait must be at least 0 seconds"),
        ({"artifact_size": 0}, "artifact_size must be at least 1 byte"),
        ({"refuse_ports": [70000]}, "refuse_ports: a port is a number from 1 to 65535"),
        ({"refuse_ports": [8443], "url": "https://mlflow.test:8443"}, "is the port of url itself"),
        ({"plain_http_port": 443}, "is the port of url itself"),
        ({"username": "a:b"}, "username must not hold ':'"),
        ({"checks": ["everything"]}, "value of checks must be one or more of"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_asked(given: dict[str, Any], message: str) -> None:
    # A password that is part of no message: Ansible would black it out there.
    usual = {"url": "https://mlflow.test", "resolve_address": "127.0.0.1", "username": "a", "password": "s3cr3t-w0rd"}
    result = run_module(usual | given)
    assert result["failed"] is True
    assert message in result["msg"]
    assert "checks" not in result


def test_login_needs_both_halves() -> None:
    result = run_module({"url": "https://mlflow.test", "username": "a"})
    assert result["failed"] and "required together: username, password" in result["msg"]
