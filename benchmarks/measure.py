"""Measure servers from the machine that they run on. Standard library (and boto3, for the artifacts) only.

Usage: python measure.py PART < request.json > result.json

It is copied to the host under test and runs there, so that client and server talk over loopback whatever the contender.
The client is a socket: one `sendall` per request and a parser of what HTTP/1.1 servers answer, because an HTTP library
costs a millisecond per request, which would hide the difference that is measured. Every loop ends by count or by time.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

API = "/api/2.0/mlflow"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"
RUNS = 100
METRICS = 100
BLOCK = 1 << 20
CGROUPS = Path("/sys/fs/cgroup")

Json = dict[str, Any]


class Target:
    """A server: its address, its login, and the units that it consists of."""

    def __init__(self, description: Json) -> None:
        self.name: str = description["name"]
        self.units: list[str] = description["units"]
        self.restart: list[str] = description.get("restart") or ["restart", *self.units[:1]]
        parts = urlsplit(description["url"])
        self.host = parts.hostname or ""
        # Where it is reached, if that is not where its name leads.
        self.address: str = description.get("address") or self.host
        self.tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self.user: str = description.get("user", "")
        self.password: str = description.get("password", "")
        self.context = ssl.create_default_context(cafile=description["ca"]) if self.tls else None

    def connect(self) -> socket.socket:
        """Return a new connection."""
        plain = socket.create_connection((self.address, self.port), timeout=120)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.context.wrap_socket(plain, server_hostname=self.host) if self.context else plain

    def head(self, method: str, path: str, length: int) -> bytes:
        """Return the head of a request."""
        standard = self.port in (80, 443)
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}{'' if standard else f':{self.port}'}"]
        if self.user:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            lines.append(f"Authorization: Basic {login}")
        if method != "GET":
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Client:
    """One kept connection."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.socket = target.connect()
        self.buffer = b""

    def close(self) -> None:
        """Give the connection up."""
        self.socket.close()

    def receive(self) -> bytes:
        """Return what has arrived.

        Raises: ConnectionError when the server has closed the connection.
        """
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        return data

    def line(self) -> bytes:
        """Return the next line of the answer."""
        while (end := self.buffer.find(b"\r\n")) < 0:
            self.buffer += self.receive()
        found, self.buffer = self.buffer[:end], self.buffer[end + 2 :]
        return found

    def exactly(self, length: int) -> bytes:
        """Return the next `length` bytes of the answer."""
        while len(self.buffer) < length:
            self.buffer += self.receive()
        found, self.buffer = self.buffer[:length], self.buffer[length:]
        return found

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return the answer's status and body."""
        self.socket.sendall(self.target.head(method, path, len(body)) + body)
        while (end := self.buffer.find(b"\r\n\r\n")) < 0:
            self.buffer += self.receive()
        head, self.buffer = self.buffer[:end].lower(), self.buffer[end + 4 :]
        status = int(head[9:12])
        if b"transfer-encoding: chunked" in head:
            parts = []
            while length := int(self.line(), 16):
                parts.append(self.exactly(length))
                self.line()
            self.line()
            return status, b"".join(parts)
        start = head.find(b"content-length:")
        length = int(head[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        return status, self.exactly(length)

    def call(self, method: str, path: str, body: Json | None = None) -> Json:
        """Call MLflow.

        Raises: RuntimeError with the answer when it is not 200.
        """
        status, answer = self.request(method, API + path, json.dumps(body).encode() if body is not None else b"")
        if status != 200:
            raise RuntimeError(f"{self.target.name}: {method} {path}: {status} {answer[:300]!r}")
        found: Json = json.loads(answer)
        return found


@contextlib.contextmanager
def client_of(target: Target) -> Iterator[Client]:
    """Give a connection that is closed in the end."""
    client = Client(target)
    try:
        yield client
    finally:
        client.close()


def now() -> int:
    """Return the time in MLflow's unit."""
    return int(time.time() * 1000)


def metrics(step: int) -> list[Json]:
    """Return a batch of metrics."""
    return [{"key": f"metric{i}", "value": i / 7, "timestamp": now(), "step": step} for i in range(METRICS)]


def make_experiment(client: Client, name: str) -> str:
    """Return the number of a new experiment."""
    unique = f"{name} {time.time_ns()}"
    return str(client.call("POST", "/experiments/create", {"name": unique})["experiment_id"])


def make_run(client: Client, experiment: str) -> str:
    """Return the number of a new run."""
    body = {"experiment_id": experiment, "start_time": now()}
    return str(client.call("POST", "/runs/create", body)["run"]["info"]["run_id"])


class Workload:
    """The calls that are measured, on data of their own."""

    def __init__(self, target: Target) -> None:
        with client_of(target) as client:
            self.experiment = make_experiment(client, "calls")
            self.run = make_run(client, self.experiment)
        self.searched = ""
        self.step = 0

    def fill(self, target: Target) -> None:
        """Make the runs that are searched."""
        with client_of(target) as client:
            self.searched = make_experiment(client, "search")
            for _ in range(RUNS):
                run = make_run(client, self.searched)
                client.call("POST", "/runs/log-batch", {"run_id": run, "metrics": metrics(0)})

    def perform(self, operation: str, client: Client) -> None:
        """Make one call."""
        self.step += 1
        if operation == "get_experiment":
            client.call("GET", f"/experiments/get?experiment_id={self.experiment}")
        elif operation == "log_metric":
            body = {"run_id": self.run, "key": "loss", "value": 0.5, "timestamp": now(), "step": self.step}
            client.call("POST", "/runs/log-metric", body)
        elif operation == "create_run":
            make_run(client, self.experiment)
        elif operation == "log_batch":
            client.call("POST", "/runs/log-batch", {"run_id": self.run, "metrics": metrics(self.step)})
        else:
            body = {"experiment_ids": [self.searched], "max_results": RUNS}
            found = client.call("POST", "/runs/search", body)
            if len(found["runs"]) != RUNS or len(found["runs"][-1]["data"]["metrics"]) != METRICS:
                raise RuntimeError(f"{client.target.name}: the search found less than was logged")


def rotated(targets: list[Target], by: int) -> list[Target]:
    """Return the targets, another one first in each round."""
    by %= len(targets)
    return targets[by:] + targets[:by]


def latency(request: Json) -> Json:
    """Return milliseconds: target -> operation -> the median of each round."""
    targets = [Target(description) for description in request["targets"]]
    loads = {target.name: Workload(target) for target in targets}
    in_parallel(len(targets), lambda number: loads[targets[number].name].fill(targets[number]))
    result: Json = {target.name: {operation: [] for operation in request["operations"]} for target in targets}
    for number in range(request["rounds"]):
        for operation, count in request["operations"].items():
            for target in rotated(targets, number):
                with client_of(target) as client:
                    # Not counted: the first calls on a connection, which may meet each worker's first query.
                    for _ in range(2):
                        loads[target.name].perform(operation, client)
                    times = []
                    for _ in range(count):
                        start = time.perf_counter()
                        loads[target.name].perform(operation, client)
                        times.append(time.perf_counter() - start)
                result[target.name][operation].append(statistics.median(times) * 1000)
    return result


def processes(units: list[str]) -> list[int]:
    """Return the processes of units.

    Raises: RuntimeError when one has none, because everything measured of it would be nought.
    """
    found: list[int] = []
    for unit in units:
        # Where both versions of control groups are mounted, systemd keeps its services in one of its own.
        folders = [root / "system.slice" / f"{unit}.service" for root in (CGROUPS / "unified", CGROUPS)]
        paths = [path for folder in folders for path in folder.rglob("cgroup.procs")]
        numbers = [int(number) for path in paths for number in path.read_text().split()]
        if not numbers:
            raise RuntimeError(f"{unit}.service has no processes under {CGROUPS}")
        found += numbers
    return found


def cpu_seconds(units: list[str]) -> float:
    """Return the CPU time that the processes of units have used."""
    ticks = 0
    for number in processes(units):
        with contextlib.suppress(OSError):
            # Its name, in brackets, may hold blanks.
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def in_parallel(count: int, work: Callable[[int], None]) -> None:
    """Run the work in threads, and raise the first of their errors."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def drive(target: Target, load: Workload, operation: str, clients: int, seconds: float) -> Json:
    """Return requests per second, and milliseconds of CPU per request of the server and of this client."""
    counts = [0] * clients
    connections = [Client(target) for _ in range(clients)]
    in_parallel(clients, lambda number: load.perform(operation, connections[number]))
    server, own, start = cpu_seconds(target.units), time.process_time(), time.perf_counter()

    def work(number: int) -> None:
        while time.perf_counter() < start + seconds:
            load.perform(operation, connections[number])
            counts[number] += 1

    try:
        in_parallel(clients, work)
        passed = time.perf_counter() - start
        done = sum(counts)
        return {
            "rate": done / passed,
            "server_ms": (cpu_seconds(target.units) - server) / done * 1000,
            "client_ms": (time.process_time() - own) / done * 1000,
        }
    finally:
        for connection in connections:
            connection.close()


def throughput(request: Json) -> Json:
    """Return target -> operation -> what `drive` found in each round."""
    targets = [Target(description) for description in request["targets"]]
    loads = {target.name: Workload(target) for target in targets}
    result: Json = {target.name: {operation: [] for operation in request["operations"]} for target in targets}
    for number in range(request["rounds"]):
        for operation in request["operations"]:
            for target in rotated(targets, number):
                found = drive(target, loads[target.name], operation, request["clients"], request["seconds"])
                result[target.name][operation].append(found)
    return result


def kilobytes(path: str, field: str) -> int:
    """Return a field of a file of /proc; nothing if its process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
    return 0


def pss(units: list[str]) -> Json:
    """Return the number of a unit's processes and their proportional memory in MiB."""
    numbers = processes(units)
    return {
        "processes": len(numbers),
        "mib": sum(kilobytes(f"/proc/{number}/smaps_rollup", "Pss") for number in numbers) / 1024,
    }


def anonymous(units: list[str]) -> float:
    """Return the private memory of units in MiB, without the files that they map."""
    return sum(kilobytes(f"/proc/{number}/status", "RssAnon") for number in processes(units)) / 1024


def answers(target: Target) -> bool:
    """Tell whether a server reaches its database."""
    try:
        with client_of(target) as client:
            return client.request("GET", f"{API}/experiments/get?experiment_id=0")[0] == 200
    except (OSError, ValueError):
        return False


def await_answer(target: Target, seconds: float) -> float:
    """Return after how many seconds a server answered.

    Raises: RuntimeError when it did not.
    """
    start = time.monotonic()
    while time.monotonic() < start + seconds:
        if answers(target):
            return time.monotonic() - start
        time.sleep(0.1)
    raise RuntimeError(f"{target.name} did not answer within {seconds:.0f} s")


def systemctl(action: str, units: list[str]) -> None:
    """Start, stop or restart units."""
    subprocess.run(["systemctl", action, *units], check=True, stdout=sys.stderr)


def settled(units: list[str], seconds: float) -> float:
    """Wait, at most so long, until a started server uses little CPU; return how much of a core it uses."""
    idle, end = 1.0, time.monotonic() + seconds
    while idle > 0.05 and time.monotonic() < end:
        before = cpu_seconds(units)
        time.sleep(4)
        idle = max(0.0, cpu_seconds(units) - before) / 4
    return idle


def memory(request: Json) -> Json:
    """Return target -> seconds from start to answer, and the memory of each unit when idle, each server alone.

    Memory that several processes map is shared out among them: another server from the same files would lower it.
    """
    everything = sorted({unit for description in request["targets"] for unit in description["units"]})
    result: Json = {}
    for description in request["targets"]:
        target = Target(description)
        systemctl("stop", everything)
        start = time.monotonic()
        systemctl("start", target.units)
        await_answer(target, 90)
        waited = time.monotonic() - start
        idle = settled(target.units, 60)
        result[target.name] = {
            "start": waited,
            "idle_cpu": idle,
            "units": {unit: pss([unit]) for unit in target.units},
        }
    systemctl("stop", everything)
    return result


@contextlib.contextmanager
def growth(units: list[str], into: Json) -> Iterator[None]:
    """Note by how much the memory of units grew at its highest."""
    before = highest = anonymous(units)
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.05):
            highest = max(highest, anonymous(units))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        into["growth"] = highest - before


def http_connection(target: Target) -> http.client.HTTPConnection:
    """Return a connection for large bodies, where a library's cost does not show."""
    if target.context:
        return http.client.HTTPSConnection(target.host, target.port, context=target.context, timeout=300)
    return http.client.HTTPConnection(target.host, target.port, timeout=300)


def login(target: Target) -> dict[str, str]:
    """Return the header of a login, if there is one."""
    token = base64.b64encode(f"{target.user}:{target.password}".encode()).decode()
    return {"Authorization": f"Basic {token}"} if target.user else {}


def upload(target: Target, file: Path, name: str) -> Json:
    """Send a file through the server."""
    found: Json = {}
    connection = http_connection(target)
    connection.blocksize = BLOCK
    with growth(target.units, found), file.open("rb") as body:
        start = time.perf_counter()
        headers = {**login(target), "Content-Length": str(file.stat().st_size)}
        connection.request("PUT", f"{ARTIFACTS}/{name}", body=body, headers=headers)
        answer = connection.getresponse()
        text = answer.read()
        found["seconds"] = time.perf_counter() - start
    connection.close()
    if answer.status != 200:
        raise RuntimeError(f"{target.name}: upload: {answer.status} {text[:300]!r}")
    return found


def download(target: Target, name: str, size: int) -> Json:
    """Fetch a file through the server."""
    found: Json = {}
    connection = http_connection(target)
    with growth(target.units, found):
        start = time.perf_counter()
        connection.request("GET", f"{ARTIFACTS}/{name}", headers=login(target))
        answer = connection.getresponse()
        received = len(answer.read(1))
        found["first"] = time.perf_counter() - start
        while data := answer.read(BLOCK):
            received += len(data)
        found["seconds"] = time.perf_counter() - start
    connection.close()
    if answer.status != 200 or received != size:
        raise RuntimeError(f"{target.name}: download: {answer.status}, {received} of {size} bytes")
    return found


def timed(work: Callable[[], object]) -> Json:
    """Return how long the work took."""
    start = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start}


def artifacts(request: Json) -> Json:
    """Return way -> up and down -> each round's seconds, seconds to the first byte, and growth of the server in MiB."""
    os.environ.update(request["environment"])
    import boto3  # type: ignore[import-not-found,import-untyped,unused-ignore]
    from mlflow.tracking import MlflowClient

    targets = [Target(description) for description in request["targets"]]
    stock = next(target for target in targets if target.user)
    store = boto3.client("s3", endpoint_url=request["store"])
    bucket = request["bucket"]
    size = request["mib"] * BLOCK
    folder = Path("/var/tmp/bench-artifacts")
    folder.mkdir(exist_ok=True)
    source, copy = folder / "source.bin", folder / "copy.bin"
    block = os.urandom(BLOCK)
    with source.open("wb") as file:
        for _ in range(request["mib"]):
            file.write(block)
    os.environ.update(MLFLOW_TRACKING_USERNAME=stock.user, MLFLOW_TRACKING_PASSWORD=stock.password)
    client = MlflowClient(f"https://{stock.host}")
    experiment = client.create_experiment(f"artifacts {time.time_ns()}")
    result: Json = {}

    def note(way: str, direction: str, found: Json) -> None:
        result.setdefault(way, {"up": [], "down": []})[direction].append(found)

    for number in range(request["rounds"]):
        key = f"straight/{number}.bin"
        note("boto3", "up", timed(partial(store.upload_file, str(source), bucket, key)))
        note("boto3", "down", timed(partial(store.download_file, bucket, key, str(copy))))
        for target in rotated(targets, number):
            name = f"bench/{target.name}-{number}.bin"
            note(target.name, "up", upload(target, source, name))
            note(target.name, "down", download(target, name, size))
        run = client.create_run(experiment).info.run_id
        way = "MLflow's client"
        found: Json = {}
        with growth(stock.units, found):
            found |= timed(partial(client.log_artifact, run, str(source)))
        note(way, "up", found)
        found = {}
        target_folder = folder / f"down{number}"
        target_folder.mkdir(exist_ok=True)
        with growth(stock.units, found):
            found |= timed(partial(client.download_artifacts, run, source.name, str(target_folder)))
        note(way, "down", found)
        if (target_folder / source.name).stat().st_size != size or copy.stat().st_size != size:
            raise RuntimeError("what came back has another size")
        (target_folder / source.name).unlink()
        for listed in store.list_objects_v2(Bucket=bucket).get("Contents", []):
            store.delete_object(Bucket=bucket, Key=listed["Key"])
    source.unlink()
    copy.unlink()
    return result


class Endurance:
    """What clients meet while a service restarts: every call is tried again until it is answered."""

    def __init__(self, target: Target, end: float, grace: float) -> None:
        self.target, self.end, self.last = target, end, end + grace
        self.load = Workload(target)
        self.lock = threading.Lock()
        self.answered = self.failed = self.unanswered = 0
        self.longest = 0.0

    def work(self, _: int) -> None:
        """Log metrics on a kept connection until the end; the last call may take as long as the grace."""
        client: Client | None = None
        while (begun := time.monotonic()) < self.end:
            done = False
            while not done and time.monotonic() < self.last:
                try:
                    client = client or Client(self.target)
                    self.load.perform("log_metric", client)
                    done = True
                except (OSError, RuntimeError, ValueError):
                    with self.lock:
                        self.failed += 1
                    if client:
                        client.close()
                    client = None
                    time.sleep(0.05)
            with self.lock:
                # A call that nobody answered has waited as well.
                self.longest = max(self.longest, time.monotonic() - begun)
                self.answered += done
                self.unanswered += not done
        if client:
            client.close()


def restart(request: Json) -> Json:
    """Return target -> answered and failed calls, and the longest wait, while its service restarts under load.

    Each server has the machine to itself: one that starts beside it would be what is measured.
    """
    everything = sorted({unit for description in request["others"] for unit in description["units"]})
    result: Json = {}
    for description in request["targets"]:
        target = Target(description)
        systemctl("stop", everything)
        systemctl("start", target.units)
        await_answer(target, 90)
        settled(target.units, 60)
        start = time.monotonic()
        endurance = Endurance(target, start + request["seconds"], 60)
        taken: list[float] = []

        def disturb(how: list[str] = target.restart, start: float = start, taken: list[float] = taken) -> None:
            for moment in request["moments"]:
                time.sleep(max(0.0, start + moment - time.monotonic()))
                begun = time.monotonic()
                systemctl(how[0], how[1:])
                taken.append(time.monotonic() - begun)

        disturber = threading.Thread(target=disturb)
        disturber.start()
        in_parallel(request["clients"], endurance.work)
        disturber.join()
        result[target.name] = {
            "answered": endurance.answered,
            "failed": endurance.failed,
            "unanswered": endurance.unanswered,
            "longest": endurance.longest,
            "restarts": taken,
        }
    systemctl("stop", everything)
    return result


PARTS: dict[str, Callable[[Json], Json]] = {
    "latency": latency,
    "throughput": throughput,
    "memory": memory,
    "artifacts": artifacts,
    "restart": restart,
}


def main() -> None:
    """Run the part that is named."""
    request = json.load(sys.stdin)
    if sys.argv[1] == "await":
        for description in request["targets"]:
            await_answer(Target(description), 90)
        print("{}")
        return
    json.dump(PARTS[sys.argv[1]](request), sys.stdout)


if __name__ == "__main__":
    main()
