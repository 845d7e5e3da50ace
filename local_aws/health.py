"""Health checks of a load balancer's targets: what one finds, and what AWS makes of several in a row.

Sources: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/target-group-health-checks.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_TargetHealth.html
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

USER_AGENT = "ELB-HealthChecker/2.0"
INITIAL, HEALTHY, UNHEALTHY = "initial", "healthy", "unhealthy"


@dataclass(frozen=True)
class Check:
    """How a target group wants its targets to be asked."""

    tls: bool
    port: int
    path: str
    codes: str
    interval: float
    timeout: float
    healthy_threshold: int
    unhealthy_threshold: int


@dataclass(frozen=True)
class Finding:
    """What one check found; reason and description as the API words them, empty when it passed."""

    reason: str = ""
    description: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


PASSED = Finding()
TIMED_OUT = Finding("Target.Timeout", "Request timed out")
FAILED = Finding("Target.FailedHealthChecks", "Health checks failed")


def accepts(codes: str, status: int) -> bool:
    """Whether a matcher such as `200-299,401` takes a status."""
    for part in codes.split(","):
        first, _, last = part.strip().partition("-")
        if int(first) <= status <= int(last or first):
            return True
    return False


def _unverified() -> ssl.SSLContext:
    """AWS does not validate the certificate of a target."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def probe(address: str, check: Check) -> Finding:
    """Ask a target once."""
    deadline = time.monotonic() + check.timeout
    connection = (
        http.client.HTTPSConnection(address, check.port, timeout=check.timeout, context=_unverified())
        if check.tls
        else http.client.HTTPConnection(address, check.port, timeout=check.timeout)
    )
    try:
        connection.connect()
        connection.sock.settimeout(max(deadline - time.monotonic(), 0.001))
        connection.request("GET", check.path, headers={"User-Agent": USER_AGENT, "Connection": "close"})
        status = connection.getresponse().status
    except TimeoutError:
        return TIMED_OUT
    except (OSError, http.client.HTTPException):
        return FAILED
    finally:
        connection.close()
    if accepts(check.codes, status):
        return PASSED
    return Finding("Target.ResponseCodeMismatch", f"Health checks failed with these codes: [{status}]")


class Health:
    """A target's state, from the checks in a row: one that passes makes a new target healthy."""

    def __init__(self) -> None:
        self.state = INITIAL
        self.finding = Finding("Elb.RegistrationInProgress", "Target registration is in progress")
        self._in_a_row = 0

    def take(self, finding: Finding, check: Check) -> bool:
        """Take what a check found; tells whether the state is another one now."""
        before = self.state
        against = finding.passed != (before == HEALTHY)
        self._in_a_row = self._in_a_row + 1 if against or before == INITIAL else 0
        if finding.passed:
            needed = 1 if before == INITIAL else check.healthy_threshold
            if before != HEALTHY and self._in_a_row >= needed:
                self.state = HEALTHY
        elif before != UNHEALTHY and self._in_a_row >= check.unhealthy_threshold:
            self.state = UNHEALTHY
        if self.state == HEALTHY:
            self.finding = PASSED
        elif self.state == INITIAL:
            self.finding = Finding("Elb.InitialHealthChecking", "Initial health checks in progress")
        elif not finding.passed:
            self.finding = finding
        if self.state != before:
            self._in_a_row = 0
        return self.state != before


class Watch:
    """Checks one target again and again, in a thread of its own.

    settings: called before each check, since a target group can be modified at any time.
    changed: called when the state has become another one.
    """

    def __init__(self, address: str, port: int, settings: Callable[[], Check], changed: Callable[[], None]) -> None:
        self.address, self.port, self.health = address, port, Health()
        self._settings, self._changed = settings, changed
        self._ended = threading.Event()
        threading.Thread(target=self._run, name=f"health-{address}-{port}", daemon=True).start()

    def end(self) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            started, check = time.monotonic(), self._settings()
            if self.health.take(probe(self.address, check), check):
                self._changed()
            self._ended.wait(max(started + check.interval - time.monotonic(), 0))
