"""Throughput of one, two and four servers on one PostgreSQL, and what each part of it spends on a request.

The servers are clones of the host that the role has set up, as a fleet's are configured alike. What drives them stands
where a balancer would: it spreads kept connections evenly, and asks each server for the fleet's one name.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg2
from docker.errors import DockerException
from docker.models.containers import Container

from benchmarks import measure
from benchmarks.lab import CLONE, DATABASE_ADDRESS, HOST_ADDRESS, Lab, remove_clones, run, start_host
from tools.console import ProblemError

Json = dict[str, Any]
SIZES = (1, 2, 4)
# What a training does, in this order; log_batch carries a hundred metrics.
MIX = ("create_run", "get_experiment", *["log_metric"] * 7, "log_batch")
CALLS = ("get_experiment", "log_metric", "create_run", "log_batch")
CLIENTS = 8
SHARE = 0.25
# A tenth of Docker's: a server that has used up its share waits milliseconds for more, and not most of 100.
PERIOD_US = 10_000
ROUNDS, SECONDS, WARM_UP_SECONDS = 3, 6.0, 1.0
CALL_ROUNDS, CALL_SECONDS = 3, 4.0
FULL = 0.9


@dataclass(frozen=True)
class Server:
    """A server: its machine, and how a client reaches it."""

    container: Container
    address: str
    target: measure.Target


def clone_addresses(count: int) -> list[str]:
    """Return addresses for clones of the host, which stay clear of the others of the network."""
    network = HOST_ADDRESS.rpartition(".")[0]
    return [f"{network}.{40 + number}" for number in range(1, count + 1)]


def target(lab: Lab, address: str) -> measure.Target:
    """Return what drives the server at an address under the name that all of them have."""
    return measure.Target(
        {
            "name": address,
            "url": f"https://{HOST_ADDRESS}",
            "address": address,
            "units": [],
            "ca": str(lab.directory / "server-ca.pem"),
            "user": "admin",
            "password": lab.passwords["admin"],
        }
    )


@contextlib.contextmanager
def servers(lab: Lab, count: int) -> Iterator[list[Server]]:
    """Give the host and clones of it, all of which answer."""
    ca = run(lab.host, ["cat", "/etc/mlflow/tls/ca.pem"], "read the servers' authority")
    (lab.directory / "server-ca.pem").write_text(ca)
    addresses = clone_addresses(count - 1)
    names = [f"{CLONE}-{number}" for number in range(1, count)]
    try:
        lab.host.commit(CLONE)
        with ThreadPoolExecutor() as pool:
            clones = list(pool.map(partial(start_host, lab.client, CLONE), names, addresses))
        found = [
            Server(container, address, target(lab, address))
            for container, address in zip([lab.host, *clones], [HOST_ADDRESS, *addresses], strict=True)
        ]
        for server in found:
            measure.await_answer(server.target, 90)
        yield found
    finally:
        remove_clones(lab.client)


def limit(found: Sequence[Server], share: float | None) -> None:
    """Let each server use no more than a share of one processor; None: as much as there is."""
    quota = int(share * PERIOD_US) if share else -1
    for server in found:
        server.container.update(cpu_period=PERIOD_US, cpu_quota=quota)


def used_seconds(container: Container) -> float:
    """Return the processor time that a container has used, as its control group counts it (version 1 or 2)."""
    stats: Any = container.stats(stream=False, one_shot=True)
    return int(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9


def busy_seconds() -> float:
    """Return the processor time that this machine has spent on anything."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / os.sysconf("SC_CLK_TCK")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that so great a share of them does not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def ended_by(found: Json, size: int, share: float | None) -> str:
    """Tell what kept a round from being faster."""
    seconds = found["seconds"]
    if share and found["servers"] >= FULL * size * share * seconds:
        return "servers"
    if found["busy"] >= FULL * found["cpus"] * seconds:
        return "machine"
    return "waits"


class Watch:
    """The connections that servers hold, while the block runs."""

    def __init__(self, lab: Lab, addresses: Sequence[str]) -> None:
        self.lab, self.addresses = lab, list(addresses)
        self.highest = 0

    def __enter__(self) -> Watch:
        # As the servers' own user, which may see where its sessions come from.
        self.connection = psycopg2.connect(
            host=DATABASE_ADDRESS,
            dbname="mlflow",
            user="mlflow",
            password=self.lab.passwords["owner"],
            sslmode="require",
        )
        self.connection.autocommit = True
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def look(self) -> None:
        """Count now and then, until told to stop."""
        with self.connection.cursor() as cursor:
            while not self.done.wait(0.25):
                cursor.execute("SELECT 1 FROM pg_stat_activity WHERE host(client_addr) = ANY(%s)", (self.addresses,))
                self.highest = max(self.highest, cursor.rowcount)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.connection.close()


class Clients:
    """As many clients for each server, on kept connections, each with a run of its own."""

    def __init__(self, found: Sequence[Server], each: int) -> None:
        self.targets = [server.target for server in found for _ in range(each)]
        self.connections: list[measure.Client] = []
        self.loads: list[measure.Workload] = []

    def __enter__(self) -> Clients:
        self.connections = [measure.Client(target) for target in self.targets]
        self.loads = [measure.Workload(target) for target in self.targets]
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self.connections:
            connection.close()

    def drive(self, calls: Sequence[str], seconds: float) -> list[float]:
        """Make calls one after the other, each client beginning with another one; return how long each has waited."""
        waits: list[list[float]] = [[] for _ in self.connections]
        end = time.perf_counter() + seconds

        def work(number: int) -> None:
            for call in itertools.islice(itertools.cycle(calls), number % len(calls), None):
                begun = time.perf_counter()
                if begun >= end:
                    return
                self.loads[number].perform(call, self.connections[number])
                waits[number].append(time.perf_counter() - begun)

        measure.in_parallel(len(self.connections), work)
        return list(itertools.chain.from_iterable(waits))


def drive(lab: Lab, found: Sequence[Server], calls: Sequence[str], seconds: float) -> Json:
    """Drive the servers, and return what came of it and what it cost."""
    containers = [*(server.container for server in found), lab.database]
    with Clients(found, CLIENTS) as clients, Watch(lab, [server.address for server in found]) as watch:
        clients.drive(calls, WARM_UP_SECONDS)
        before = [used_seconds(container) for container in containers]
        own, busy, start = time.process_time(), busy_seconds(), time.perf_counter()
        waits = clients.drive(calls, seconds)
        passed = time.perf_counter() - start
        own, busy = time.process_time() - own, busy_seconds() - busy
        spent = [used_seconds(container) - former for container, former in zip(containers, before, strict=True)]
    return {
        "requests": len(waits),
        "seconds": passed,
        "rate": len(waits) / passed,
        "servers": sum(spent[:-1]),
        "database": spent[-1],
        "client": own,
        "busy": busy,
        "cpus": os.cpu_count(),
        "connections": watch.highest,
        "p99_ms": percentile(waits, 0.99) * 1000,
    }


def scaling(lab: Lab) -> Json:
    """Return each round of each number of servers, with a share of a processor each and without, and of each call.

    Raises: ProblemError when a server, the database or Docker fails meanwhile.
    """
    sizes: Json = {"limited": {str(size): [] for size in SIZES}, "free": {str(size): [] for size in SIZES}}
    calls: Json = {call: [] for call in CALLS}
    try:
        with servers(lab, max(SIZES)) as found:
            # New servers import and connect with their first requests; with a share of a processor that takes long.
            with Clients(found, CLIENTS) as clients:
                clients.drive(MIX, SECONDS)
            for number in range(ROUNDS):
                for kind, share in (("limited", SHARE), ("free", None)):
                    limit(found, share)
                    for size in (*SIZES[number % len(SIZES) :], *SIZES[: number % len(SIZES)]):
                        result = drive(lab, found[:size], MIX, SECONDS)
                        sizes[kind][str(size)].append({**result, "ended_by": ended_by(result, size, share)})
            # A server that is held to a share spends more on each request than one that has its CPUs.
            limit(found, None)
            for _ in range(CALL_ROUNDS):
                for call in CALLS:
                    calls[call].append(drive(lab, found[:1], [call], CALL_SECONDS))
    except (RuntimeError, OSError, psycopg2.Error, DockerException) as error:
        raise ProblemError(f"Failed to drive the servers: {error}") from error
    return {"share": SHARE, "clients": CLIENTS, "sizes": sizes, "calls": calls}
