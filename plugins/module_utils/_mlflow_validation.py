# Copyright: (c) 2026, the mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a working MLflow endpoint does, what it must refuse, and how to leave nothing behind.

Routes and field names: mlflow 3.17.2, C(mlflow/server/handlers.py), C(mlflow/server/artifact_router.py), C(mlflow/protos/service.proto).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import secrets
import socket
import time
import typing as t
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from urllib.parse import quote, urlencode, urlsplit

from ansible_collections.mlops.mlflow_aws.plugins.module_utils._mlflow_client import CHUNK, Client, RequestFailed

CHECKS = [
    "health",
    "version",
    "login",
    "experiment",
    "run",
    "params",
    "metrics",
    "tags",
    "artifact",
    "model_registry",
    "search",
]
READ_ONLY = ["health", "version", "login"]
# What a check builds on; run too when only the check itself was asked for.
_NEEDS = {
    "version": ["health"],
    "login": ["health"],
    "experiment": ["login"],
    "run": ["experiment"],
    "params": ["run"],
    "metrics": ["run"],
    "tags": ["run"],
    "artifact": ["run"],
    "model_registry": ["artifact"],
    "search": ["params", "metrics"],
    # A server that answers nobody refuses everything: only a working login makes a refusal worth something.
    "refuse_no_login": ["login"],
    "refuse_wrong_login": ["login"],
    "refuse_foreign_host": ["login"],
    "refuse_plain_http": ["health"],
    "refuse_ports": ["health"],
}
_LABELS = {
    "artifact": "artifact (SHA-256 equal)",
    "model_registry": "model registry",
    "refuse_no_login": "no login",
    "refuse_wrong_login": "wrong login",
    "refuse_foreign_host": "foreign Host",
    "refuse_plain_http": "plain HTTP",
}
API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
PREFIX = "mlflow-endpoint-validate"
TAG = "mlflow_endpoint_validate"
FOREIGN_HOST = "mlflow-endpoint-validate.invalid"
# What an interrupted run left is taken for abandoned after this many seconds by the server's own clock.
ABANDONED = 3600
# Two alphabets beyond ASCII, within the plane that every database stores.
UNICODE = "Grüße ✓ 漢字"


class CheckFailed(Exception):
    """A check whose answer came, and was wrong."""

    def __init__(self, url: str, cause: str, next_step: str) -> None:
        super().__init__(cause)
        self.url = url
        self.cause = cause
        self.next_step = next_step


class Settings(t.NamedTuple):
    """What to check; times in seconds, sizes in bytes."""

    checks: t.Sequence[str] = tuple(CHECKS)
    refuse_no_login: bool = True
    refuse_wrong_login: bool = True
    refuse_foreign_host: bool = True
    refuse_plain_http: bool = True
    plain_http_port: int = 80
    refuse_ports: t.Sequence[int] = (5000, 5432)
    artifact_size: int = 1024 * 1024
    expected_version: str = ""
    wait: float = 0
    delay: float = 2
    read_only: bool = False


def probe_port(address: str, port: int, timeout: float) -> str:
    """Say how a TCP connection to C(address):C(port) was refused; an empty string means that it was accepted."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return ""
    except socket.timeout:
        return "no answer within %g s" % timeout
    except ConnectionRefusedError:
        return "connection refused"
    except OSError as error:
        return error.strerror or str(error)


class Validation:
    """One pass over an endpoint. Use it once: C(run()), then read C(result())."""

    def __init__(self, client: Client, settings: Settings) -> None:
        self.client = client
        self.settings = settings
        self.checks: list[dict[str, t.Any]] = []
        self.not_checked: list[dict[str, str]] = []
        self.failure: dict[str, str] | None = None
        self.server_version = ""
        self._started = time.monotonic()
        self._seconds = 0.0
        self._token = uuid.uuid4().hex
        # A name of its own for every pass: two passes never meet, and MLflow deletes experiments softly, so a fixed name would
        # keep its old artifact location and its old owner. What stays in the database is for `mlflow gc`.
        self._experiment_name = "%s/%s" % (PREFIX, self._token)
        self._model_name = "%s-%s" % (PREFIX, self._token)
        self._experiment_id = ""
        self._server_now = 0
        self._run_id = ""
        self._artifact_root = ""
        self._artifact_path = ""
        self._model_version = ""
        self._touched_experiment = False
        self._touched_model = False
        self._probes: dict[str, Future[str]] = {}

    # --- the order of things

    def run(self) -> None:
        """Run every check that was asked for, and clean up whatever happens on the way."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            try:
                for name in self._wanted():
                    if name == "refuse_ports":
                        for port in self.settings.refuse_ports:
                            self._guard(name, partial(self._outcome, str(port)), str(port))
                    elif name == "refuse_plain_http":
                        self._guard(name, partial(self._outcome, name))
                    else:
                        self._guard(name, getattr(self, "_" + name))
                    if name == "health":
                        self._start_probes(pool)
            finally:
                if self._touched_experiment or self._touched_model:
                    self._guard("cleanup", self._cleanup)
                self.client.close()
                self._seconds = time.monotonic() - self._started

    def _start_probes(self, pool: ThreadPoolExecutor) -> None:
        """Knock at the closed doors in the background: to be refused often means to wait for an answer that never comes."""
        if not any(check["ok"] for check in self.checks):
            return
        for port in self.settings.refuse_ports:
            self._probes[str(port)] = pool.submit(self._refuse_port, port)
        if self.settings.refuse_plain_http and self.client.endpoint.tls:
            self._probes["refuse_plain_http"] = pool.submit(self._refuse_plain_http)

    def _outcome(self, name: str) -> str:
        return self._probes[name].result()

    def result(self) -> dict[str, t.Any]:
        """The module's return values."""
        return {
            "ok": self.failure is None,
            "checks": self.checks,
            "not_checked": self.not_checked,
            "server_version": self.server_version,
            "seconds": round(self._seconds, 3),
            "summary": self.summary(),
            "failure": self.failure,
        }

    def summary(self) -> str:
        """One line: what worked, what was refused as it must be, and what failed."""
        good = [self._label(check) for check in self.checks if check["ok"] and not check["name"].startswith("refuse_")]
        refused = [self._label(check) for check in self.checks if check["ok"] and check["name"].startswith("refuse_")]
        bad = [check["name"] for check in self.checks if not check["ok"]]
        parts = [", ".join(label for label in good if label != "cleanup")]
        if refused:
            parts.append("refused: " + ", ".join(refused))
        if bad:
            parts.append("FAILED: " + ", ".join(bad))
        if self.not_checked:
            parts.append("not checked: " + ", ".join(skip["name"] for skip in self.not_checked))
        return "; ".join(part for part in parts if part)

    @staticmethod
    def _label(check: t.Mapping[str, t.Any]) -> str:
        name = str(check["name"])
        if name.startswith("refuse_port_"):
            return name[len("refuse_port_") :]
        return _LABELS.get(name, name)

    def _wanted(self) -> list[str]:
        settings = self.settings
        names = set(settings.checks)
        refusals = [
            name
            for name in (
                "refuse_no_login",
                "refuse_wrong_login",
                "refuse_foreign_host",
                "refuse_plain_http",
                "refuse_ports",
            )
            if getattr(settings, name)
        ]
        pending = sorted(names) + refusals
        while pending:
            for need in _NEEDS.get(pending.pop(), []):
                if need not in names:
                    names.add(need)
                    pending.append(need)
        return [name for name in CHECKS if name in names] + refusals

    def _skip(self, name: str, reason: str) -> None:
        self.not_checked.append({"name": name, "reason": reason})

    def _guard(self, name: str, check: t.Callable[[], str], suffix: str = "") -> None:
        """Run one check unless it cannot tell anything; turn its outcome into data."""
        if name not in READ_ONLY and name in CHECKS and self.settings.read_only:
            self._skip(name, "check mode: it would write")
            return
        unmet = {need for need in _NEEDS.get(name, []) if not any(c["name"] == need and c["ok"] for c in self.checks)}
        label = name if not suffix else "refuse_port_" + suffix
        if unmet:
            self._skip(label, "needs %s" % ", ".join(sorted(unmet)))
            return
        if name == "refuse_plain_http" and not self.client.endpoint.tls:
            self._skip(label, "the endpoint itself is plain HTTP")
            return
        started = time.monotonic()
        ok = True
        try:
            detail = check()
        except (CheckFailed, RequestFailed) as error:
            ok = False
            detail = self.client.redact(error.cause)
            if self.failure is None:
                self.failure = {
                    "check": label,
                    "url": self.client.redact(error.url),
                    "cause": detail,
                    "next_step": self.client.redact(error.next_step),
                }
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            # JSON of another shape than MLflow's is the server's fault, and must not cost us the cleaning up.
            ok = False
            detail = "the answer lacks what MLflow returns (%s: %s)" % (
                type(error).__name__,
                self.client.redact(str(error)),
            )
            if self.failure is None:
                self.failure = {
                    "check": label,
                    "url": self.client.endpoint.base,
                    "cause": detail,
                    "next_step": "Check that an MLflow server of a known version answers there.",
                }
        self.checks.append(
            {
                "name": label,
                "ok": ok,
                "detail": self.client.redact(detail),
                "seconds": round(time.monotonic() - started, 3),
            }
        )

    # --- what must work

    def _health(self) -> str:
        until = time.monotonic() + self.settings.wait
        tries = 0
        while True:
            tries += 1
            try:
                answer = self.client.request("GET", "/health")
                self.client.expect_success(answer)
                break
            except RequestFailed as error:
                left = until - time.monotonic()
                if not error.transient or left <= 0:
                    if tries > 1:
                        error.cause += "; tried %d times within %g s" % (tries, self.settings.wait)
                    raise
                time.sleep(min(self.settings.delay, left))
        if answer.text != "OK":
            what = (
                "an HTML page: another service or a login page is in front"
                if answer.is_html
                else "'%s'" % answer.text[:60]
            )
            raise CheckFailed(
                answer.url,
                "the answer is not MLflow's 'OK' but " + what,
                "Check the name, the port and the path in url.",
            )
        return "OK" if tries == 1 else "OK at try %d" % tries

    def _version(self) -> str:
        answer = self.client.request("GET", "/version")
        self.client.expect_success(answer)
        if not re.match(r"^\d+\.\d+[0-9A-Za-z.+-]{0,40}$", answer.text):
            what = (
                "an HTML page: another service or a login page is in front"
                if answer.is_html
                else "'%s'" % answer.text[:60]
            )
            raise CheckFailed(answer.url, "the answer is not a version but " + what, "Check what answers at url.")
        self.server_version = answer.text
        if self.settings.expected_version and answer.text != self.settings.expected_version:
            raise CheckFailed(
                answer.url,
                "the server runs MLflow %s, and %s is expected" % (answer.text, self.settings.expected_version),
                "Deploy the expected version, or correct expected_version.",
            )
        return answer.text

    def _login(self) -> str:
        # Reaches the database, unlike /health.
        self.client.api("GET", API + "experiments/search?max_results=1")
        if not self.client.username:
            return "the API answers without a login; no username was given"
        return "logged in as %s" % self.client.username

    def _experiment(self) -> str:
        self._touched_experiment = True
        created = self.client.api(
            "POST",
            API + "experiments/create",
            {"name": self._experiment_name, "tags": [{"key": TAG, "value": self._token}]},
        )
        self._experiment_id = str(created["experiment_id"])
        path = API + "experiments/get?" + urlencode({"experiment_id": self._experiment_id})
        experiment = self.client.api("GET", path)["experiment"]
        self._same(path, "experiment name", self._experiment_name, experiment["name"])
        self._server_now = int(experiment.get("creation_time", 0))
        return "created and read back as %s" % self._experiment_id

    def _run(self) -> str:
        # Seconds since 1970 from here, not from the server: it is only shown.
        now = int(time.time() * 1000)
        created = self.client.api(
            "POST",
            API + "runs/create",
            {"experiment_id": self._experiment_id, "start_time": now, "run_name": "endpoint check"},
        )
        info = created["run"]["info"]
        self._run_id = str(info["run_id"])
        self._artifact_root = str(info["artifact_uri"])
        self.client.api("POST", API + "runs/update", {"run_id": self._run_id, "status": "FINISHED", "end_time": now})
        read = self._read_run()["info"]
        self._same(API + "runs/get", "run status", "FINISHED", read["status"])
        return "created, finished and read back as %s" % self._run_id

    def _params(self) -> str:
        params = {"token": self._token, "text": UNICODE}
        self.client.api("POST", API + "runs/log-batch", {"run_id": self._run_id, "params": self._pairs(params)})
        read = {item["key"]: item["value"] for item in self._read_run()["data"]["params"]}
        self._same(API + "runs/get", "params", params, read)
        return "%d written and read back" % len(params)

    def _metrics(self) -> str:
        now = int(time.time() * 1000)
        values = [0.5, -1e-300, math.pi]
        self.client.api(
            "POST",
            API + "runs/log-batch",
            {
                "run_id": self._run_id,
                "metrics": [
                    {"key": "score", "value": value, "timestamp": now + step, "step": step}
                    for step, value in enumerate(values)
                ],
            },
        )
        path = API + "metrics/get-history?" + urlencode({"run_id": self._run_id, "metric_key": "score"})
        history = sorted(self.client.api("GET", path)["metrics"], key=lambda metric: int(metric.get("step", 0)))
        self._same(path, "metrics", values, [float(metric["value"]) for metric in history])
        latest = {item["key"]: float(item["value"]) for item in self._read_run()["data"]["metrics"]}
        self._same(API + "runs/get", "latest metric", values[-1], latest.get("score"))
        return "%d steps written and read back" % len(values)

    def _tags(self) -> str:
        self.client.api("POST", API + "runs/set-tag", {"run_id": self._run_id, "key": "text", "value": UNICODE})
        read = {item["key"]: item["value"] for item in self._read_run()["data"]["tags"]}
        self._same(API + "runs/get", "tag", UNICODE, read.get("text"))
        return "1 written and read back"

    def _artifact(self) -> str:
        size = self.settings.artifact_size
        root = self._proxied(self._artifact_root)
        path = "%s/%s/check/data.bin" % (ARTIFACTS, quote(root))
        # A slow but honest line gets one second for each MiB on top.
        timeout = self.client.timeout + size / (1024.0 * 1024.0)
        sent = hashlib.sha256()
        # Known before the first byte is sent: half an upload must be deleted too.
        self._artifact_path = path
        started = time.monotonic()
        answer = self.client.request(
            "PUT",
            path,
            body=self._random(size, sent),
            length=size,
            headers={"Content-Type": "application/octet-stream"},
            timeout=timeout,
        )
        self.client.expect_success(answer)
        up = time.monotonic() - started
        received = hashlib.sha256()
        started = time.monotonic()
        answer = self.client.request("GET", path, timeout=timeout, limit=size + CHUNK, sink=received.update)
        self.client.expect_success(answer)
        down = time.monotonic() - started
        if received.digest() != sent.digest():
            raise CheckFailed(
                answer.url,
                "%d bytes with SHA-256 %s were uploaded, %d bytes with SHA-256 %s came back"
                % (size, sent.hexdigest(), answer.size, received.hexdigest()),
                "Look for what alters or caches bodies between here and the artifact store.",
            )
        listing = self.client.api("GET", "%s?%s" % (ARTIFACTS, urlencode({"path": root + "/check"})))
        files = {item["path"]: int(item.get("file_size", 0)) for item in listing.get("files", [])}
        self._same(ARTIFACTS, "artifact listing", {"data.bin": size}, files)
        return "%d bytes, SHA-256 equal, up %.2f s, down %.2f s" % (size, up, down)

    def _model_registry(self) -> str:
        self._touched_model = True
        self.client.api(
            "POST",
            API + "registered-models/create",
            {"name": self._model_name, "description": UNICODE, "tags": [{"key": TAG, "value": self._token}]},
        )
        source = self._artifact_root + "/check"
        created = self.client.api(
            "POST",
            API + "model-versions/create",
            {"name": self._model_name, "source": source, "run_id": self._run_id},
        )["model_version"]
        self._model_version = str(created["version"])
        query = urlencode({"name": self._model_name, "version": self._model_version})
        read = self.client.api("GET", API + "model-versions/get?" + query)["model_version"]
        self._same(API + "model-versions/get", "run of the version", self._run_id, read["run_id"])
        self._same(API + "model-versions/get", "status of the version", "READY", read["status"])
        where = self.client.api("GET", API + "model-versions/get-download-uri?" + query)["artifact_uri"]
        self._same(API + "model-versions/get-download-uri", "source of the version", source, where)
        return "version %s registered and read back" % self._model_version

    def _search(self) -> str:
        found = self.client.api(
            "POST",
            API + "runs/search",
            {
                "experiment_ids": [self._experiment_id],
                "filter": "params.token = '%s' AND metrics.score > 3" % self._token,
                "max_results": 5,
            },
        )
        self._same(
            API + "runs/search", "runs found", [self._run_id], [run["info"]["run_id"] for run in found.get("runs", [])]
        )
        return "the run was found by a param and a metric"

    # --- what must be refused

    def _refuse_no_login(self) -> str:
        search = "experiments/search?max_results=1"
        paths = [API + search, "/ajax-api/2.0/mlflow/" + search, ARTIFACTS, "/ajax-api/2.0/mlflow-artifacts/artifacts"]
        if self._artifact_path:
            paths.append(self._artifact_path)
        for path in paths:
            answer = self.client.request("GET", path, login=False, limit=self.settings.artifact_size + 1024 * 1024)
            # Only the API proper must exist; a server without the other routes gives nothing away there.
            if answer.status in (401, 403) or (path != paths[0] and answer.status in (404, 405)):
                continue
            raise CheckFailed(
                answer.url,
                "a request without a login was answered with %d instead of 401" % answer.status,
                "Switch authentication on for every route (mlflow server --app-name basic-auth, or in the proxy), "
                "or set refuse_no_login=false.",
            )
        return "%d routes answer 401 without a login" % len(paths)

    def _refuse_wrong_login(self) -> str:
        user = self.client.username or "nobody"
        headers = self.client.login_header(user, secrets.token_urlsafe(24))
        answer = self.client.request("GET", API + "experiments/search?max_results=1", headers=headers, login=False)
        if answer.status not in (401, 403):
            raise CheckFailed(
                answer.url,
                "a random password for the user '%s' was answered with %d instead of 401" % (user, answer.status),
                "Switch authentication on, or set refuse_wrong_login=false.",
            )
        return "%d for a random password" % answer.status

    def _refuse_foreign_host(self) -> str:
        seen = []
        for path in ("/", API + "experiments/search?max_results=1"):
            try:
                # With the right login: else the login would be what refuses.
                answer = self.client.request("GET", path, host=FOREIGN_HOST)
            except RequestFailed as error:
                # nginx' 444, and its ssl_reject_handshake.
                if error.kind != "closed":
                    raise
                seen.append("closed")
                continue
            if not 400 <= answer.status < 500:
                raise CheckFailed(
                    answer.url,
                    "the Host header '%s' was answered with %d instead of a refusal" % (FOREIGN_HOST, answer.status),
                    "Restrict the names: mlflow server --allowed-hosts, and a default virtual host in the proxy that refuses; "
                    "or set refuse_foreign_host=false.",
                )
            seen.append(str(answer.status))
        return "answered %s" % ", ".join(seen)

    def _refuse_plain_http(self) -> str:
        endpoint = self.client.endpoint
        port = self.settings.plain_http_port
        path = API + "experiments/search?max_results=1"
        try:
            answer = self.client.request(
                "GET",
                path,
                login=False,
                plain_port=port,
                timeout=min(self.client.timeout, 2 * self.client.connect_timeout),
            )
        except RequestFailed as error:
            if error.kind == "resolve":
                raise
            return "port %d: %s" % (port, error.cause)
        location = urlsplit(answer.headers.get("Location") or "")
        same = location.scheme == "https" and (location.hostname or "") == endpoint.host
        if answer.status in (301, 302, 307, 308) and same and (location.port or 443) == endpoint.port:
            return "port %d redirects to https (%d)" % (port, answer.status)
        if 300 <= answer.status < 400:
            what = "redirects to %s://%s, not to %s" % (
                location.scheme,
                location.netloc.rpartition("@")[2],
                endpoint.base,
            )
        else:
            what = "answers %d instead of redirecting to https" % answer.status
        raise CheckFailed(
            answer.url,
            "plain HTTP on port %d %s" % (port, what),
            "Let port %d answer 301 to the https address of the same name, or close it; or set refuse_plain_http=false."
            % port,
        )

    def _refuse_port(self, port: int) -> str:
        endpoint = self.client.endpoint
        outcome = probe_port(endpoint.address, port, self.client.connect_timeout)
        if not outcome:
            raise CheckFailed(
                "tcp://%s:%d" % (endpoint.host, port),
                "port %d of %s accepts connections from here" % (port, endpoint.address),
                "Close it in the security group and in the host's firewall, and bind the service to loopback; "
                "or leave it out of refuse_ports.",
            )
        return outcome

    # --- leaving nothing behind

    def _cleanup(self) -> str:
        """Delete by name, not by what was confirmed: a request that timed out may well have done its work."""
        # A server that hangs must not hold us for the sum of all time limits.
        until = time.monotonic() + 2 * self.client.timeout
        problems: list[tuple[str, CheckFailed | RequestFailed]] = []
        if self._touched_model:
            self._delete_model(self._model_name, until, problems)
        if self._touched_experiment:
            self._delete_experiment(self._experiment_name, until, problems)
        if problems:
            left = "; ".join("%s (%s)" % (what, error.cause) for what, error in problems)
            raise CheckFailed(
                problems[0][1].url,
                "left behind: " + left,
                "Delete them by hand; the next pass deletes what is older than an hour if it may.",
            )
        abandoned = self._sweep(until)
        if abandoned:
            return "nothing left; %d objects of interrupted passes were deleted too" % abandoned
        return "nothing left"

    def _try(
        self,
        what: str,
        until: float,
        problems: list[tuple[str, CheckFailed | RequestFailed]],
        method: str,
        path: str,
        payload: t.Mapping[str, t.Any] | None = None,
    ) -> dict[str, t.Any] | None:
        """One request of the cleaning up, tried again while it may help. None says that there was no such thing, or a problem."""
        while True:
            left = until - time.monotonic()
            try:
                return self.client.api(method, path, payload, timeout=max(1.0, min(self.client.timeout, left)))
            except RequestFailed as error:
                if error.status == 404 or error.code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                if not error.transient or until - time.monotonic() <= 1:
                    problems.append((what, error))
                    return None
                time.sleep(0.5)

    def _delete_model(self, name: str, until: float, problems: list[tuple[str, CheckFailed | RequestFailed]]) -> None:
        what = "registered model " + name
        version = self._model_version if name == self._model_name else ""
        if version:
            self._try(
                what + " version " + version,
                until,
                problems,
                "DELETE",
                API + "model-versions/delete",
                {"name": name, "version": version},
            )
        # Takes versions that were never confirmed along.
        self._try(what, until, problems, "DELETE", API + "registered-models/delete", {"name": name})

    def _delete_experiment(
        self, name: str, until: float, problems: list[tuple[str, CheckFailed | RequestFailed]]
    ) -> None:
        what = "experiment " + name
        found = self._try(
            what, until, problems, "GET", API + "experiments/get-by-name?" + urlencode({"experiment_name": name})
        )
        if found is None:
            return
        experiment_id = str(found["experiment"]["experiment_id"])
        runs = self._try(
            "runs of " + what,
            until,
            problems,
            "POST",
            API + "runs/search",
            {"experiment_ids": [experiment_id], "max_results": 100},
        )
        for run in (runs or {}).get("runs", []):
            info = run["info"]
            run_id = str(info["run_id"])
            self._delete_artifacts(run_id, str(info["artifact_uri"]), until, problems)
            self._try("run " + run_id, until, problems, "POST", API + "runs/delete", {"run_id": run_id})
        if found["experiment"].get("lifecycle_stage") != "deleted":
            self._try(what, until, problems, "POST", API + "experiments/delete", {"experiment_id": experiment_id})

    def _delete_artifacts(
        self, run_id: str, uri: str, until: float, problems: list[tuple[str, CheckFailed | RequestFailed]]
    ) -> None:
        try:
            root = self._proxied(uri)
        except CheckFailed:
            # Nothing was uploaded through a proxy that does not exist.
            return
        # Older stores delete by key prefix: "1" would take "10" along, so nothing shorter than the run's own folder is named.
        if run_id not in root.split("/"):
            return
        what = "artifacts of run " + run_id
        self._try(what, until, problems, "DELETE", "%s/%s" % (ARTIFACTS, quote(root)))
        listing = self._try(what, until, problems, "GET", "%s?%s" % (ARTIFACTS, urlencode({"path": root + "/check"})))
        files = (listing or {}).get("files", [])
        if files:
            url = self.client.url(ARTIFACTS)
            problems.append((what, CheckFailed(url, "%d files are still listed after their deletion" % len(files), "")))

    def _sweep(self, until: float) -> int:
        """Delete what passes that were killed left behind. What this user may not delete stays, and is no failure of ours."""
        if not self._server_now:
            return 0
        ignored: list[tuple[str, CheckFailed | RequestFailed]] = []
        before = self._server_now - ABANDONED * 1000
        count = 0
        query = {"filter": "name LIKE '%s/%%' AND tags.%s != ''" % (PREFIX, TAG), "max_results": 20}
        found = self._try("", until, ignored, "POST", API + "experiments/search", query)
        for experiment in (found or {}).get("experiments", []):
            name = str(experiment["name"])
            if re.match("^%s/[0-9a-f]{32}$" % PREFIX, name) and 0 < int(experiment.get("creation_time", 0)) < before:
                self._delete_experiment(name, until, ignored)
                count += 1
        query = {"filter": "name LIKE '%s-%%'" % PREFIX, "max_results": "20"}
        found = self._try("", until, ignored, "GET", API + "registered-models/search?" + urlencode(query))
        for model in (found or {}).get("registered_models", []):
            name = str(model["name"])
            if re.match("^%s-[0-9a-f]{32}$" % PREFIX, name) and 0 < int(model.get("creation_timestamp", 0)) < before:
                self._delete_model(name, until, ignored)
                count += 1
        return max(0, count - len(ignored))

    # --- small helpers

    def _same(self, path: str, what: str, expected: t.Any, got: t.Any) -> None:
        if expected != got:
            raise CheckFailed(
                self.client.url(path),
                "%s: %r was written, %r came back" % (what, expected, got),
                "Look for a cache in front, for a read replica that lags, and at the log of the server.",
            )

    def _read_run(self) -> dict[str, t.Any]:
        read = self.client.api("GET", API + "runs/get?" + urlencode({"run_id": self._run_id}))
        return t.cast("dict[str, t.Any]", read["run"])

    @staticmethod
    def _pairs(values: t.Mapping[str, str]) -> list[dict[str, str]]:
        return [{"key": key, "value": value} for key, value in values.items()]

    @staticmethod
    def _random(size: int, digest: t.Any) -> t.Iterator[bytes]:
        while size > 0:
            piece = os.urandom(min(size, CHUNK))
            digest.update(piece)
            size -= len(piece)
            yield piece

    def _proxied(self, uri: str) -> str:
        """The path of an artifact location below the server's artifact proxy. Raises CheckFailed where there is no proxy."""
        parts = urlsplit(uri)
        if parts.scheme == "mlflow-artifacts" and parts.path.strip("/"):
            # A host in the URI is ignored: credentials go to the validated endpoint only.
            return parts.path.strip("/")
        if (
            parts.scheme in ("http", "https")
            and parts.hostname == self.client.endpoint.host
            and ARTIFACTS + "/" in parts.path
        ):
            return parts.path.split(ARTIFACTS + "/", 1)[1].strip("/")
        raise CheckFailed(
            self.client.url(ARTIFACTS),
            "the server does not pass artifacts through: they are at %s://…" % (parts.scheme or "file"),
            "Start MLflow with --artifacts-destination instead of --default-artifact-root; "
            "an experiment keeps the location that it was created with.",
        )
