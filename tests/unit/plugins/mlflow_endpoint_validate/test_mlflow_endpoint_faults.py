"""What the validator says of servers that do what no good server does, and that it cleans up after them."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow_servers as faults
import pytest
from mlflow_servers import (
    PASSWORD,
    USERNAME,
    Authority,
    Fault,
    FaultyServer,
    RealServer,
    Rule,
    free_port,
    login_value,
    say,
    serving,
)
from validating import only, outcome, run_module, validate

LOGIN = "experiments/search"


# --- answers that are none


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (faults.hang, "no complete answer within 1 s (0 bytes of it came)"),
        (faults.drip, "no complete answer within 1 s ("),
        (faults.drip_headers, "no complete answer within 1 s ("),
        (faults.half, "the answer ended after 5 of 1000 bytes"),
        (faults.half_chunk, "the answer broke off within a chunk"),
        (faults.flood, "larger than the 1048576 bytes"),
        (faults.reset, "the connection was closed without an answer"),
        (faults.close, "the connection was closed without an answer"),
        (faults.garbage, "the answer is not HTTP"),
        (say(200, "<!DOCTYPE html><p>Welcome", "text/html"), "the server answered HTML where JSON was expected"),
        (say(200, "<html>no type</html>", "application/json"), "the server answered HTML where JSON was expected"),
        (say(200, "[1, 2]"), "6 bytes that are not a JSON object"),
        (say(200, '{"experiments": '), "16 bytes that are not a JSON object"),
        (say(200, ""), "0 bytes that are not a JSON object"),
        (say(500, "oops"), "the server answered 500"),
        (say(502, "<html></html>", "text/html"), "the server answered 502 with an HTML page"),
        (say(403, "Invalid Host header - possible DNS rebinding", "text/plain"), "403 (Invalid Host header"),
        (say(400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "Grüße 漢字"}'), "Grüße 漢字"),
    ],
)
def test_answer_is_named_for_what_it_is(proxy: FaultyServer, authority: Authority, fault: Fault, cause: str) -> None:
    proxy.rules.append(Rule(fault, "GET", LOGIN))
    started = time.monotonic()
    result = validate(proxy, authority.ca, timeout=1, **only("login"))
    assert time.monotonic() - started < 4
    assert outcome(result) == {"health": True, "login": False}
    assert cause in result["failure"]["cause"]
    assert result["failure"]["url"].startswith(proxy.url) and LOGIN in result["failure"]["url"]
    assert result["failure"]["next_step"].endswith(".")
    assert result["summary"] == "health; FAILED: login"


def test_health_of_another_service_is_not_accepted(serve: Callable[..., FaultyServer]) -> None:
    page = serve(Rule(say(200, "<html>It works!</html>", "text/html")))
    assert "an HTML page: another service or a login page" in validate(page, None, **only("health"))["failure"]["cause"]
    other = serve(Rule(say(200, "healthy", "text/plain")))
    assert "is not MLflow's 'OK' but 'healthy'" in validate(other, None, **only("health"))["failure"]["cause"]


def test_json_of_another_shape_is_a_failure_and_no_crash(
    proxy: FaultyServer, real: RealServer, authority: Authority
) -> None:
    proxy.rules.append(Rule(say(200, '{"run": []}'), "POST", "runs/create"))
    result = validate(proxy, authority.ca)
    assert result["failure"]["check"] == "run"
    assert "the answer lacks what MLflow returns" in result["failure"]["cause"]
    assert real.left() == []


def test_nothing_listens() -> None:
    result = run_module(
        {"url": f"https://mlflow.test:{free_port()}", "resolve_address": "127.0.0.1", "refuse_ports": [free_port()]}
    )
    assert result["failed"] and result["changed"] is False
    assert result["failure"]["check"] == "health" and "refused" in result["failure"]["cause"]
    assert result["msg"] == "Failed to reach {url}: {cause}. {next_step}".format(**result["failure"])
    # A server that is not there refuses everything; that proves nothing.
    assert outcome(result) == {"health": False}
    assert {"refuse_no_login", "refuse_wrong_login", "refuse_plain_http"} < {
        skip["name"] for skip in result["not_checked"]
    }


def test_failure_can_be_returned_as_data() -> None:
    result = run_module({"url": f"https://127.0.0.1:{free_port()}", "fail": False, "refuse_ports": []})
    assert "failed" not in result
    assert result["ok"] is False and result["failure"]["check"] == "health"


def test_name_that_does_not_resolve() -> None:
    result = run_module({"url": "https://mlflow.invalid", "fail": False, "timeout": 5})
    assert "the name mlflow.invalid does not resolve" in result["failure"]["cause"]
    assert "resolve_address" in result["failure"]["next_step"]


# --- redirects and secrets


def test_redirect_to_another_host_gets_no_credentials(
    proxy: FaultyServer, authority: Authority, serve: Callable[..., FaultyServer]
) -> None:
    thief = serve(Rule(say(200, "{}")))
    target = f"http://127.0.0.1:{thief.port}/login?next=x"
    proxy.rules.append(Rule(say(302, "", Location=target), "GET", LOGIN))
    failure = validate(proxy, authority.ca, **only("login"))["failure"]
    assert "302, a redirect to http://127.0.0.1/login, which is not followed" in failure["cause"]
    assert thief.seen == []


def test_redirect_on_the_same_host_is_not_followed_either(proxy: FaultyServer, authority: Authority) -> None:
    proxy.rules.append(Rule(say(301, "", Location="/elsewhere"), "GET", LOGIN))
    failure = validate(proxy, authority.ca, **only("login"))["failure"]
    assert "a redirect to /elsewhere, which is not followed" in failure["cause"]
    assert proxy.asked("GET", "/elsewhere") == []


TOKEN = login_value().split()[1]


@pytest.mark.parametrize("status", [400, 401, 403, 500, 503])
@pytest.mark.parametrize(
    "quoted",
    [
        PASSWORD,
        json.dumps(PASSWORD)[1:-1],
        f"Authorization: Basic {TOKEN}",
        TOKEN,
        "postgresql://mlflow:hunter22@db.internal:5432/mlflow",
        "password=hunter22, user=mlflow",
    ],
)
def test_no_secret_that_a_server_quotes_is_returned(
    proxy: FaultyServer, authority: Authority, status: int, quoted: str
) -> None:
    # Long enough before it that cutting the text would cut the password in two.
    body = json.dumps({"error_code": "BAD", "message": "x" * 185 + " " + quoted})
    proxy.rules.append(Rule(say(status, body), "GET", LOGIN))
    proxy.rules.append(Rule(say(status, quoted, "text/plain", X_Quoted="1"), "GET", "/version"))
    returned = str(validate(proxy, authority.ca, **only("version", "login"))) + json.dumps(
        validate(proxy, authority.ca, **only("version", "login"))
    )
    for secret in (PASSWORD, json.dumps(PASSWORD)[1:-1], PASSWORD[:8], TOKEN, TOKEN[:12], "hunter22"):
        assert secret not in returned


def test_text_of_a_server_error_is_not_returned(proxy: FaultyServer, authority: Authority) -> None:
    body = {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "connection to db.internal failed for user mlflow"}
    proxy.rules.append(Rule(say(503, json.dumps(body)), "GET", LOGIN))
    result = validate(proxy, authority.ca, **only("login"))
    assert result["failure"]["cause"] == "the server answered 503 TEMPORARILY_UNAVAILABLE"
    assert "db.internal" not in json.dumps(result)


def test_wrong_login_names_no_password(real: RealServer, authority: Authority) -> None:
    result = run_module(
        {
            "url": f"https://mlflow.test:{real.port}",
            "resolve_address": "127.0.0.1",
            "ca_path": str(authority.ca),
            "username": USERNAME,
            "password": "certainly-wrong",
            "plain_http_port": free_port(),
            "refuse_ports": [],
        }
    )
    assert result["failed"] and result["failure"]["check"] == "version"
    assert "401 (You are not authenticated." in result["failure"]["cause"]
    assert result["failure"]["cause"].endswith(": the login was refused")
    assert "certainly-wrong" not in json.dumps(result)
    # Refusing everybody is no proof of refusing the right ones.
    assert {"refuse_no_login", "refuse_wrong_login", "refuse_foreign_host"} < {s["name"] for s in result["not_checked"]}


def test_password_beyond_ascii_is_explained(proxy: FaultyServer, authority: Authority) -> None:
    proxy.rules.append(Rule(say(401, "no", "text/plain"), "PUT", "mlflow-artifacts"))
    proxy.replaced = {"Authorization": login_value()}
    failure = validate(proxy, authority.ca, password="pässword", **only("artifact"))["failure"]
    assert failure["check"] == "artifact" and "use an ASCII password" in failure["next_step"]


# --- TLS


def test_unknown_authority(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "Another authority")
    with serving(FaultyServer(None, other.issue())) as server:
        failure = validate(server, authority.ca, **only("health"))["failure"]
    assert "from an authority that is not trusted here" in failure["cause"] and "ca_path" in failure["next_step"]
    assert server.seen == []


@pytest.mark.parametrize(
    ("name", "days", "cause"),
    [
        ("other.test", (-1, 7), "the server's certificate is for another name"),
        ("mlflow.test", (-9, -1), "the server's certificate has expired"),
        ("mlflow.test", (1, 7), "the server's certificate is not valid yet"),
    ],
)
def test_bad_certificate(authority: Authority, name: str, days: tuple[int, int], cause: str) -> None:
    with serving(FaultyServer(None, authority.issue(name, days), [Rule(say(200, "OK", "text/plain"))])) as server:
        failure = validate(server, authority.ca, **only("health", wait=5))["failure"]
        assert cause in failure["cause"]
        # Nothing is sent before the certificate is accepted, and waiting would not mend it.
        assert server.seen == [] and "tried" not in failure["cause"]
        trusting = run_module(
            {
                "url": server.url,
                "resolve_address": "127.0.0.1",
                "validate_certs": False,
                "checks": ["health"],
                "refuse_no_login": False,
                "refuse_wrong_login": False,
                "refuse_foreign_host": False,
                "refuse_plain_http": False,
                "refuse_ports": [],
            }
        )
        assert trusting["ok"] is True


def test_address_that_the_certificate_lacks(authority: Authority) -> None:
    with serving(FaultyServer(None, authority.issue("10.1.2.3"))) as server:
        url = f"https://127.0.0.1:{server.port}"
        failure = validate(server, authority.ca, url=url, **only("health"))["failure"]
    assert "does not hold this IP address" in failure["cause"]


def test_address_as_name(authority: Authority) -> None:
    rule = Rule(say(200, "OK", "text/plain"))
    with serving(FaultyServer(None, authority.issue("127.0.0.1"), [rule])) as server:
        url = f"https://127.0.0.1:{server.port}"
        assert validate(server, authority.ca, url=url, **only("health"))["ok"]


def test_plain_http_where_tls_is_expected(serve: Callable[..., FaultyServer], authority: Authority) -> None:
    server = serve(Rule(say(200, "OK", "text/plain")))
    failure = validate(server, authority.ca, url=f"https://mlflow.test:{server.port}", **only("health"))["failure"]
    assert "no TLS on port" in failure["cause"]


def test_silent_port(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://mlflow.test:{listener.getsockname()[1]}"
        server = FaultyServer()
        with serving(server):
            started = time.monotonic()
            failure = validate(server, authority.ca, url=url, timeout=0.5, **only("health"))["failure"]
    assert time.monotonic() - started < 3
    assert "the TLS handshake did not end in time" in failure["cause"]


# --- what must be refused, and is not


def test_api_without_login_is_found(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    proxy.replaced = {"Authorization": login_value()}
    result = validate(proxy, authority.ca)
    assert outcome(result)["refuse_no_login"] is False and outcome(result)["refuse_wrong_login"] is False
    assert result["failure"]["check"] == "refuse_no_login"
    assert "answered with 200 instead of 401" in result["failure"]["cause"]
    assert real.left() == []
    off = validate(proxy, authority.ca, refuse_no_login=False, refuse_wrong_login=False)
    assert off["ok"] and "refuse_no_login" not in outcome(off)


def test_artifacts_without_login_are_found(proxy: FaultyServer, authority: Authority) -> None:
    def open_artifacts(handler: faults.Handler) -> None:
        handler.answer(*handler.ask(Authorization=login_value()))

    proxy.rules.append(Rule(open_artifacts, "GET", "/data.bin"))
    result = validate(proxy, authority.ca)
    assert result["failure"]["check"] == "refuse_no_login"
    assert result["failure"]["url"].endswith("/check/data.bin")


def test_api_that_refuses_everybody_proves_no_refusal(proxy: FaultyServer, authority: Authority) -> None:
    proxy.rules.append(Rule(say(401, "no", "text/plain"), "", "/api/"))
    result = validate(proxy, authority.ca)
    assert result["failure"]["check"] == "login"
    assert not any(name.startswith("refuse_") for name in outcome(result))


def test_foreign_host_that_is_served_is_found(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    proxy.replaced = {"Host": "mlflow.test"}
    result = validate(proxy, authority.ca)
    assert [name for name, ok in outcome(result).items() if not ok] == ["refuse_foreign_host"]
    assert "answered with 200 instead of a refusal" in result["failure"]["cause"]
    assert real.left() == []


@pytest.mark.parametrize(
    ("fault", "ok"),
    [
        (faults.close, True),
        (faults.reset, True),
        (say(421, ""), True),
        (say(301, "", Location="https://mlflow.test/"), False),
        (say(500, ""), False),
        (faults.hang, False),
    ],
)
def test_ways_to_refuse_a_foreign_host(proxy: FaultyServer, authority: Authority, fault: Fault, ok: bool) -> None:
    def if_foreign(handler: faults.Handler) -> None:
        if handler.headers["Host"].endswith(".invalid"):
            fault(handler)
        else:
            handler.forward()

    proxy.rules.append(Rule(if_foreign))
    result = validate(proxy, authority.ca, timeout=2, **only("login", refuse_foreign_host=True))
    assert outcome(result)["refuse_foreign_host"] is ok


def test_open_port_is_found(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    closed = free_port()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = validate(proxy, authority.ca, refuse_ports=(closed, port))
    assert outcome(result)[f"refuse_port_{closed}"] is True
    assert outcome(result)[f"refuse_port_{port}"] is False
    assert result["failure"]["cause"] == f"port {port} of 127.0.0.1 accepts connections from here"
    assert f"refused: no login, wrong login, foreign Host, {closed}; FAILED: refuse_port_{port}" in result["summary"]
    assert real.left() == []


@contextlib.contextmanager
def full_port() -> Iterator[int]:
    """A port on which the kernel answers no further connection, as a packet filter that drops would not."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = []
        for _ in range(3):
            sock = socket.socket()
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sock.connect(("127.0.0.1", port))
            waiting.append(sock)
        time.sleep(0.1)
        try:
            yield port
        finally:
            for sock in waiting:
                sock.close()


def test_silence_of_a_port_is_a_refusal_and_costs_its_time_once(proxy: FaultyServer, authority: Authority) -> None:
    with full_port() as one, full_port() as two:
        settings = only("health", refuse_ports=(one, two), refuse_plain_http=True, plain_http_port=one)
        started = time.monotonic()
        result = validate(proxy, authority.ca, **settings)
        seconds = time.monotonic() - started
    details = {check["name"]: check["detail"] for check in result["checks"]}
    assert result["ok"], result
    assert details[f"refuse_port_{one}"] == details[f"refuse_port_{two}"] == "no answer within 0.5 s"
    assert "within 0.5 s" in details["refuse_plain_http"]
    assert seconds < 1.2


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (say(200, "{}"), "answers 200 instead of redirecting to https"),
        (say(401, ""), "answers 401 instead of redirecting to https"),
        (say(301, "", Location="https://other.test/"), "redirects to https://other.test, not to https://mlflow.test"),
        (say(302, "", Location="http://mlflow.test/"), "redirects to http://mlflow.test, not to"),
        (say(301, "", Location="https://mlflow.test:1/"), "redirects to https://mlflow.test:1, not to"),
        (faults.close, ""),
        (faults.hang, ""),
        (None, ""),
    ],
)
def test_plain_http(
    proxy: FaultyServer, authority: Authority, serve: Callable[..., FaultyServer], fault: Fault | None, cause: str
) -> None:
    good = say(308, "", Location=f"https://mlflow.test:{proxy.port}/x")
    plain = serve(Rule(fault or good))
    settings = only("health", refuse_plain_http=True, plain_http_port=plain.port)
    result = validate(proxy, authority.ca, **settings)
    assert outcome(result)["refuse_plain_http"] is (cause == "")
    if cause:
        assert cause in result["failure"]["cause"]
    assert len(plain.seen) == 1
    # Whatever listens there, the password does not cross the network in the open.
    assert "Authorization" not in plain.seen[0][2]


# --- half-way failures: the real server tells what is left


@pytest.mark.parametrize("fault", [say(500, "{}"), faults.reset, faults.forward_then_hang])
@pytest.mark.parametrize(
    ("method", "path", "check"),
    [
        ("POST", "experiments/create", "experiment"),
        ("GET", "experiments/get?", "experiment"),
        ("POST", "runs/create", "run"),
        ("POST", "runs/update", "run"),
        ("POST", "runs/log-batch", "params"),
        ("GET", "metrics/get-history", "metrics"),
        ("POST", "runs/set-tag", "tags"),
        ("PUT", "mlflow-artifacts/artifacts", "artifact"),
        ("GET", "/data.bin", "artifact"),
        ("POST", "registered-models/create", "model_registry"),
        ("POST", "model-versions/create", "model_registry"),
        ("GET", "model-versions/get-download-uri", "model_registry"),
    ],
)
def test_failure_half_way_leaves_nothing(
    proxy: FaultyServer, real: RealServer, authority: Authority, method: str, path: str, check: str, fault: Fault
) -> None:
    proxy.rules.append(Rule(fault, method, path))
    result = validate(proxy, authority.ca, timeout=1.5)
    assert result["failure"]["check"] == check, result
    assert outcome(result)["cleanup"] is True
    assert proxy.asked("POST", "experiments/delete") or path == "experiments/create"
    if check in ("artifact", "model_registry"):
        assert proxy.asked("DELETE", "mlflow-artifacts") and proxy.asked("POST", "runs/delete")
    if check == "model_registry":
        assert proxy.asked("DELETE", "registered-models/delete")
    assert real.left() == []


def test_changed_artifact_is_found(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    proxy.rules.append(Rule(faults.flip, "GET", "/data.bin"))
    result = validate(proxy, authority.ca)
    assert result["failure"]["check"] == "artifact"
    assert "200000 bytes with SHA-256" in result["failure"]["cause"]
    assert {skip["name"]: skip["reason"] for skip in result["not_checked"]} == {"model_registry": "needs artifact"}
    assert outcome(result)["search"] is True
    assert real.left() == []


def test_longer_artifact_is_found(proxy: FaultyServer, authority: Authority) -> None:
    def longer(handler: faults.Handler) -> None:
        status, headers, body = handler.ask()
        handler.answer(status, headers, body + b"x" * 100_000)

    proxy.rules.append(Rule(longer, "GET", "/data.bin"))
    assert "larger than the" in validate(proxy, authority.ca)["failure"]["cause"]


def test_early_refusal_of_a_large_body_is_heard(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    proxy.rules.append(Rule(faults.say_unread(413), "PUT"))
    failure = validate(proxy, authority.ca, artifact_size=30_000_000)["failure"]
    assert failure["check"] == "artifact"
    # The reset that follows can overtake the answer on its way: then the connection is what is reported.
    assert "413" in failure["cause"] or "connection" in failure["cause"]
    assert real.left() == []


def test_passing_faults_during_the_cleaning_up_are_outlasted(
    proxy: FaultyServer, real: RealServer, authority: Authority
) -> None:
    for method, path in (("DELETE", "mlflow-artifacts"), ("POST", "experiments/delete"), ("DELETE", "model-versions")):
        proxy.rules.append(Rule(say(503, "{}"), method, path, times=1))
    result = validate(proxy, authority.ca)
    assert result["ok"], result
    assert real.left() == []


def test_what_could_not_be_deleted_is_named(proxy: FaultyServer, real: RealServer, authority: Authority) -> None:
    proxy.rules.append(Rule(say(403, '{"message": "not allowed"}'), "DELETE", "mlflow-artifacts"))
    result = validate(proxy, authority.ca)
    assert result["failure"]["check"] == "cleanup" and result["ok"] is False
    cause = result["failure"]["cause"]
    assert "left behind: artifacts of run" in cause and "not allowed" in cause and "files are still listed" in cause
    # The rest is deleted all the same.
    left = real.left()
    assert left and all(line.startswith("artifact ") for line in left)
    for path in real.artifacts.rglob("*"):
        if path.is_file():
            path.unlink()


def test_cleaning_up_a_server_that_hangs_ends(proxy: FaultyServer, authority: Authority, real: RealServer) -> None:
    stuck = threading.Event()

    def hang_if_stuck(handler: faults.Handler) -> None:
        if handler.path.endswith("runs/create"):
            stuck.set()
        if stuck.is_set():
            faults.hang(handler)
        else:
            handler.forward()

    proxy.rules.append(Rule(hang_if_stuck))
    started = time.monotonic()
    result = validate(proxy, authority.ca, timeout=1, **only("run"))
    assert time.monotonic() - started < 8
    assert [name for name, ok in outcome(result).items() if not ok] == ["run", "cleanup"]
    assert "left behind: experiment mlflow-endpoint-validate/" in result["checks"][-1]["detail"]
    # The next pass would delete it in an hour; this one does it now.
    for line in real.left():
        name = line.split()[1]
        found = real.request("GET", f"/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")[1]["experiment"]
        real.request("POST", "/api/2.0/mlflow/experiments/delete", {"experiment_id": found["experiment_id"]})
    assert real.left() == []


def test_artifacts_that_bypass_the_server_are_explained(
    proxy: FaultyServer, real: RealServer, authority: Authority
) -> None:
    def elsewhere(handler: faults.Handler) -> None:
        status, headers, body = handler.ask()
        handler.answer(status, headers, body.replace(b"mlflow-artifacts:/", b"s3://bucket/"))

    proxy.rules.append(Rule(elsewhere, "POST", "runs/create"))
    failure = validate(proxy, authority.ca)["failure"]
    assert failure["check"] == "artifact" and "s3://" in failure["cause"]
    assert "--artifacts-destination" in failure["next_step"]
    assert real.left() == []


def test_artifact_location_on_another_host_gets_nothing(
    proxy: FaultyServer, authority: Authority, serve: Callable[..., FaultyServer], real: RealServer
) -> None:
    thief = serve(Rule(say(200, "{}")))
    target = f"http://127.0.0.1:{thief.port}/api/2.0/mlflow-artifacts/artifacts/".encode()

    def elsewhere(handler: faults.Handler) -> None:
        status, headers, body = handler.ask()
        handler.answer(status, headers, body.replace(b"mlflow-artifacts:/", target))

    proxy.rules.append(Rule(elsewhere, "POST", "runs/create"))
    assert validate(proxy, authority.ca)["failure"]["check"] == "artifact"
    assert thief.seen == []
    assert real.left() == []


def test_redaction_covers_every_spelling() -> None:
    from ansible_collections.mlops.mlflow_aws.plugins.module_utils._mlflow_client import Redactor

    redact = Redactor(USERNAME, PASSWORD)
    both = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    for text in (PASSWORD, repr(PASSWORD), both, f"{PASSWORD}{PASSWORD}", f"user:{PASSWORD}@host"):
        assert PASSWORD not in redact(text) and both not in redact(text) and "********" in redact(text)
    assert redact("a quiet sentence") == "a quiet sentence"
    assert Redactor()("nothing to hide") == "nothing to hide"
