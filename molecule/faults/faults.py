"""Break the server in every way of FAULTS while clients write, and count: answered, refused, lost.

Usage: faults.py --host CONTAINER --address ADDRESS --store-port PORT --ca FILE, with the password in the environment

What the server has acknowledged (a run, a metric, an artifact) must be there at the end; while it is broken it may
refuse in words that tell a client to come back (502, 503, 504, 507, a closed connection), and in no others. If not,
the exit status is 1.
Each fault prints a line of counts. Every loop here ends by count or by time.
"""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import hashlib
import http.client
import json
import math
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import docker
from docker.models.containers import Container

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
# A client may take these for "later", as MLflow's own does.
LATER = {429, 502, 503, 504, 507}
AWAY = 60
CLIENTS = 6
BACK_WITHIN = 60
MIB = 1 << 20


class LaterError(Exception):
    """The server says, in whatever way, that it cannot answer now."""


class WrongError(Exception):
    """The server has answered what no client can make sense of."""


@dataclass
class Server:
    """The server's address and login."""

    address: str
    context: ssl.SSLContext
    password: str

    def connect(self, timeout: float = 90) -> http.client.HTTPSConnection:
        """Return a new connection."""
        return http.client.HTTPSConnection(self.address, context=self.context, timeout=timeout)

    def headers(self) -> dict[str, str]:
        """Return the header of the login."""
        login = base64.b64encode(f"admin:{self.password}".encode()).decode()
        return {"Authorization": f"Basic {login}", "Content-Type": "application/json"}

    def ask(self, connection: http.client.HTTPSConnection, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of the answer 200.

        Raises: LaterError, WrongError.
        """
        try:
            connection.request(method, path, body, self.headers())
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise LaterError(type(error).__name__) from error
        if answer.status in LATER:
            raise LaterError(str(answer.status))
        if answer.status != 200:
            raise WrongError(f"{method} {path}: {answer.status} {text[:200]!r}")
        return text

    def post(self, connection: http.client.HTTPSConnection, path: str, **values: Any) -> dict[str, Any]:
        """Call MLflow's API."""
        found: dict[str, Any] = json.loads(self.ask(connection, "POST", f"{API}/{path}", json.dumps(values).encode()))
        return found


@dataclass
class Load:
    """Clients that write all the time, and remember what was acknowledged."""

    server: Server
    clients: int = CLIENTS
    runs: list[str] = field(default_factory=list)
    metrics: dict[str, int] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    last: dict[int, float] = field(default_factory=dict)
    longest: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    threads: list[threading.Thread] = field(default_factory=list)

    def insist(self, number: int, act: Callable[[http.client.HTTPSConnection], Any], state: list[Any]) -> Any:
        """Try until it is acknowledged, or the load ends (None)."""
        begun = time.monotonic()
        while not self.done.is_set():
            try:
                found = act(state[0])
            except LaterError as error:
                with self.lock:
                    self.refused[str(error)] += 1
                state[0].close()
                time.sleep(0.2)
            except WrongError as error:
                with self.lock:
                    self.wrong.append(str(error))
                time.sleep(0.2)
            else:
                now = time.monotonic()
                with self.lock:
                    self.last[number] = now
                    self.longest = max(self.longest, now - begun)
                return found
        return None

    def work(self, number: int) -> None:
        """Create a run, log forty metrics and four artifacts, and start again."""
        state: list[Any] = [self.server.connect()]
        server, round_ = self.server, 0
        while not self.done.is_set():
            round_ += 1
            found = self.insist(number, lambda c: server.post(c, "runs/create", experiment_id="0"), state)
            if found is None:
                break
            run = found["run"]["info"]["run_id"]
            with self.lock:
                self.runs.append(run)
                self.metrics[run] = 0
            for step in range(1, 41):

                def log(c: http.client.HTTPSConnection, run: str = run, step: int = step) -> dict[str, Any]:
                    return server.post(c, "runs/log-metric", run_id=run, key="m", value=step, timestamp=step, step=step)

                if self.insist(number, log, state) is None:
                    break
                with self.lock:
                    self.metrics[run] = step
                if step % 10 == 0:
                    data = os.urandom(50_000)
                    path = f"{ARTIFACTS}/faults/{number}/{round_}/{step}.bin"

                    def put(c: http.client.HTTPSConnection, path: str = path, data: bytes = data) -> bytes:
                        return server.ask(c, "PUT", path, data)

                    if self.insist(number, put, state) is not None:
                        with self.lock:
                            self.artifacts[path] = hashlib.sha256(data).hexdigest()
        state[0].close()

    def start(self) -> None:
        """Start the clients."""
        self.threads = [threading.Thread(target=self.work, args=(number,)) for number in range(self.clients)]
        for thread in self.threads:
            thread.start()

    def await_all(self, since: float, limit: float) -> float | None:
        """Return how many seconds after a moment every client had something acknowledged; None: not in time."""
        while time.monotonic() < since + limit:
            with self.lock:
                if len(self.last) == self.clients and min(self.last.values()) > since:
                    return min(self.last.values()) - since
            time.sleep(0.05)
        return None

    def counts(self) -> tuple[int, int, int]:
        """Return the numbers of what was acknowledged."""
        with self.lock:
            return len(self.runs), sum(self.metrics.values()), len(self.artifacts)

    def end(self) -> None:
        """End the clients."""
        self.done.set()
        for thread in self.threads:
            thread.join()


@dataclass
class Laboratory:
    """The machines."""

    host: Container
    database: Container
    store_port: int
    server: Server
    load: Load

    def run(self, script: str, check: bool = True) -> str:
        """Run a shell script on the host.

        Raises: RuntimeError with its output when it fails.
        """
        code, output = self.host.exec_run(["bash", "-euc", script])
        if check and code != 0:
            raise RuntimeError(f"{script}: exit status {code}: {output.decode()}")
        return str(output.decode()).strip()

    def processes(self, unit: str) -> list[tuple[int, str]]:
        """Return the processes of a unit, with what they are."""
        script = f"""
        main=$(systemctl show --property=MainPID --value {unit})
        echo $main main
        for child in $(pgrep --parent $main); do echo $child worker; done
        """
        return [(int(line.split()[0]), line.split()[1]) for line in self.run(script).splitlines()]


# -- the faults: each breaks something, and returns when it is mended --------------------------------------------------


def kill_each_process(lab: Laboratory) -> None:
    """Kill -9 every process of the service and of nginx in turn, each time when the one before is replaced."""
    for unit in ("mlflow.service", "nginx.service"):
        kinds = [kind for _, kind in lab.processes(unit)]
        # The workers first: with the main process all of them are new.
        for index in reversed(range(len(kinds))):
            found = lab.processes(unit)
            number = found[min(index, len(found) - 1)][0]
            moment = time.monotonic()
            lab.run(f"kill -KILL {number}")
            if lab.load.await_all(moment + 0.5, BACK_WITHIN) is None:
                raise RuntimeError(f"{unit} did not come back")


def exhaust_memory(lab: Laboratory) -> None:
    """Let the kernel run out of memory in the host's cgroup, with a worker as its choice."""
    worker = next(number for number, kind in lab.processes("mlflow.service") if kind == "worker")
    before = oom_kills(lab)
    lab.run(f"echo 1000 >/proc/{worker}/oom_score_adj")
    stats = lab.host.stats(stream=False)["memory_stats"]
    limit = int(stats["usage"]) + 200 * MIB
    hog = f"""
import os, time
blocks = []
end = time.monotonic() + 30
while os.path.exists("/proc/{worker}") and time.monotonic() < end:
    blocks.append(bytearray(os.urandom(1 << 20)) * 4)
"""
    lab.host.update(mem_limit=limit, memswap_limit=limit)
    try:
        lab.run(f"python3 -c '{hog}'", check=False)
    finally:
        lab.host.update(mem_limit=16 << 30, memswap_limit=16 << 30)
    if lab.run(f"test -e /proc/{worker} && echo alive || true") or oom_kills(lab) == before:
        raise RuntimeError("the kernel has not killed the worker")


def oom_kills(lab: Laboratory) -> int:
    """Return how many processes the kernel has killed in the host's cgroup (cgroup v1 or v2)."""
    script = "cat /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events 2>/dev/null || true"
    for line in lab.run(script).splitlines():
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    raise RuntimeError("neither cgroup v1 nor v2 counts the kernel's kills here")


def reboot(lab: Laboratory) -> None:
    """Take the host's power away, and give it back."""
    lab.host.kill()
    lab.host.start()


def stop_the_database(lab: Laboratory) -> None:
    """Kill the database, and start it again after a minute."""
    lab.database.kill()
    time.sleep(AWAY)
    lab.database.start()


def stop_the_store(lab: Laboratory) -> None:
    """Refuse every connection to the artifact store for a minute."""
    rule = f"-p tcp --dport {lab.store_port} -j REJECT --reject-with tcp-reset"
    lab.run(f"iptables -I OUTPUT {rule}")
    try:
        time.sleep(AWAY)
    finally:
        lab.run(f"iptables -D OUTPUT {rule}")


def fill_the_disk(lab: Laboratory) -> None:
    """Let an upload find its disk full: it must be told so, and the others must not notice."""
    lab.run(
        "mount -t tmpfs -o size=24m tmpfs /var/tmp && chmod 1777 /var/tmp && systemctl start mlflow-restart.service"
    )
    try:
        connection = lab.server.connect()
        connection.request("PUT", f"{ARTIFACTS}/faults/too-large.bin", os.urandom(100 * MIB), lab.server.headers())
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 507:
            raise RuntimeError(f"a full disk is answered by {answer.status} {text[:200]!r}")
        connection.close()
        left = lab.run("find /var/tmp -type f -size +1M")
        if left:
            raise RuntimeError(f"the refused upload has left {left}")
    finally:
        lab.run("umount --lazy /var/tmp && systemctl start mlflow-restart.service")


def slow_clients(lab: Laboratory) -> None:
    """Let 200 clients dribble: 100 in the head of a request, 100 in the body of an upload, for half a minute."""
    sockets = []
    head = f"PUT {ARTIFACTS}/faults/slow.bin HTTP/1.1\r\nHost: {lab.server.address}\r\n"
    login = lab.server.headers()["Authorization"]
    try:
        for number in range(200):
            plain = socket.create_connection((lab.server.address, 443), timeout=30)
            tls = lab.server.context.wrap_socket(plain, server_hostname=lab.server.address)
            tls.sendall(head.encode())
            if number % 2:
                tls.sendall(f"Authorization: {login}\r\nContent-Length: 1000000\r\n\r\n".encode())
            sockets.append(tls)
        for _ in range(15):
            for number, tls in enumerate(sockets):
                with contextlib.suppress(OSError):
                    tls.sendall(b"x" if number % 2 else b"X-Slow: x\r\n")
            time.sleep(2)
    finally:
        for tls in sockets:
            tls.close()


def many_uploads(lab: Laboratory) -> None:
    """Upload twenty artifacts of 100 MB at once, and read them back."""
    data = os.urandom(MIB) * 100
    failures: list[str] = []

    def upload(number: int) -> None:
        path = f"{ARTIFACTS}/faults/large/{number}.bin"
        # Different bytes for each, without twenty copies.
        body = number.to_bytes(4, "big") + data
        digest = hashlib.sha256(body).hexdigest()
        try:
            connection = lab.server.connect(timeout=300)
            lab.server.ask(connection, "PUT", path, body)
            with lab.load.lock:
                lab.load.artifacts[path] = digest
        except (LaterError, WrongError) as error:
            failures.append(str(error))

    threads = [threading.Thread(target=upload, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{len(failures)} of 20 uploads failed: {failures[0]}")


@dataclass(frozen=True)
class Fault:
    """A way to break it, and how often clients may be refused meanwhile."""

    title: str
    act: Callable[[Laboratory], None]
    refusals: float


FAULTS = (
    Fault("kill -9 of each process in turn", kill_each_process, math.inf),
    Fault("out of memory: the kernel kills a worker", exhaust_memory, math.inf),
    Fault("the host loses its power", reboot, math.inf),
    # What it was doing for each client; the others wait for it.
    Fault("no database for 60 s", stop_the_database, CLIENTS),
    Fault("no artifact store for 60 s", stop_the_store, math.inf),
    Fault("a disk that is full during an upload", fill_the_disk, math.inf),
    Fault("200 slow clients", slow_clients, 0),
    Fault("20 uploads of 100 MB at once", many_uploads, 0),
)


def lost(lab: Laboratory) -> list[str]:
    """Return what was acknowledged and is not there."""
    missing = []
    connection = lab.server.connect(timeout=120)
    for run, count in lab.load.metrics.items():
        query = f"{API}/metrics/get-history?run_id={run}&metric_key=m&max_results=1000"
        found = json.loads(lab.server.ask(connection, "GET", query)).get("metrics", [])
        steps = {int(metric.get("step", 0)) for metric in found}
        missing += [f"metric {step} of run {run}" for step in range(1, count + 1) if step not in steps]
    for path, digest in lab.load.artifacts.items():
        if hashlib.sha256(lab.server.ask(connection, "GET", path)).hexdigest() != digest:
            missing.append(path)
    connection.close()
    return missing


@contextlib.contextmanager
def counted(lab: Laboratory, fault: Fault, failures: list[str]) -> Iterator[None]:
    """Print what a fault did to the clients."""
    load = lab.load
    with load.lock:
        load.refused.clear()
        load.wrong.clear()
        load.longest = 0.0
    before, start = load.counts(), time.monotonic()
    try:
        yield
    except RuntimeError as error:
        failures.append(f"{fault.title}: {error}")
    mended = time.monotonic()
    back = load.await_all(mended, BACK_WITHIN)
    after = load.counts()
    with load.lock:
        refused, wrong, longest = dict(load.refused), list(load.wrong), load.longest
    if back is None:
        failures.append(f"{fault.title}: not back within {BACK_WITHIN} s")
    if wrong:
        failures.append(f"{fault.title}: {len(wrong)} answers that no client understands: {wrong[0]}")
    if sum(refused.values()) > fault.refusals:
        failures.append(f"{fault.title}: requests refused: {refused}")
    runs, metrics, artifacts = (b - a for a, b in zip(before, after, strict=True))
    print(
        f"{fault.title}: acknowledged {runs} runs, {metrics} metrics, {artifacts} artifacts; "
        f"told to come back {sum(refused.values())} times {refused or ''}; longest wait {longest:.1f} s; "
        f"took {mended - start:.1f} s, all clients served again {'never' if back is None else f'{back:.1f} s'} later",
        flush=True,
    )


def main() -> int:
    """Break, count, compare."""
    parser = argparse.ArgumentParser()
    for name in ("host", "address", "store-port", "ca"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("titles", nargs="*", help="parts of titles; all faults, if there are none")
    arguments = parser.parse_args()
    client = docker.from_env(timeout=120)
    context = ssl.create_default_context(cafile=arguments.ca)
    server = Server(arguments.address, context, os.environ["MLFLOW_TRACKING_PASSWORD"])
    load = Load(server)
    host, database = (client.containers.get(arguments.host + suffix) for suffix in ("", "-database"))
    lab = Laboratory(host, database, int(arguments.store_port), server, load)
    failures: list[str] = []
    load.start()
    try:
        if load.await_all(time.monotonic(), BACK_WITHIN) is None:
            raise SystemExit("FAILED: the server does not answer to begin with")
        for fault in FAULTS:
            if arguments.titles and not any(title in fault.title for title in arguments.titles):
                continue
            with counted(lab, fault, failures):
                fault.act(lab)
    finally:
        load.end()
    runs, metrics, artifacts = load.counts()
    missing = lost(lab)
    failures += [f"lost: {what}" for what in missing]
    print(f"in all: {runs} runs, {metrics} metrics, {artifacts} artifacts acknowledged; {len(missing)} of them lost")
    for failure in failures:
        print(f"FAILED: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
