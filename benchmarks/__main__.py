"""Measure the server that the roles set up against the tutorial's and against a bare tuned one.

Usage: python -m benchmarks [PART ...] [--mib N] [--output FILE]

Parts: install, latency, throughput, memory, artifacts, restart; without any, all of these, well under a quarter of an
hour on two cores. Only when named: scaling and provisioning, which take as long again and write into docs/scaling.md.
It needs Docker, and the environment that `make setup` makes; it makes its own machines and removes them.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import contenders, lab, report
from benchmarks.provisioning import provisioning
from benchmarks.scaling import scaling
from local_aws.errors import LocalAwsError
from tools.console import ROOT, ProblemError, Times, exclusive, fail, say, state_dir

SCALING = ROOT / "docs/scaling.md"
FINDINGS = "\n## What was found"
COMPARED = ("install", "memory", "latency", "throughput", "artifacts", "restart")
DOCUMENTED = ("scaling", "provisioning")
PARTS = (*COMPARED, *DOCUMENTED)
LATENCY_ROUNDS, THROUGHPUT_ROUNDS, ARTIFACT_ROUNDS = 4, 3, 3


def request_of(part: str, machines: lab.Lab, mib: int) -> dict[str, Any]:
    """Return what a part is to measure, and how often or how long."""
    known = contenders.targets(machines)
    tutorials, others = ["tutorial, SQLite", "tutorial, PostgreSQL"], ["bare", "role, no login", "role"]

    def chosen(*names: str) -> list[dict[str, Any]]:
        return [known[name] for name in names]

    counts = {"get_experiment": 25, "log_metric": 25, "create_run": 25, "log_batch": 10, "search": 3}
    requests: dict[str, dict[str, Any]] = {
        "latency": {"targets": chosen(*tutorials, *others), "operations": counts, "rounds": LATENCY_ROUNDS},
        "throughput": {
            "targets": chosen("tutorial, PostgreSQL", *others),
            "operations": list(report.CALLS),
            "rounds": THROUGHPUT_ROUNDS,
            "clients": 16,
            "seconds": 2,
        },
        "memory": {"targets": chosen("tutorial, SQLite", "role", "role, one worker")},
        "artifacts": {
            "targets": chosen("bare", "role"),
            "rounds": ARTIFACT_ROUNDS,
            "mib": mib,
            "store": machines.store,
            "bucket": lab.BUCKET,
            "environment": contenders.store_environment(machines),
        },
        "restart": {
            "targets": chosen("tutorial, PostgreSQL", "role"),
            "clients": 8,
            "seconds": 24,
            "moments": [2, 12],
            "others": chosen(*tutorials, *others),
        },
        "await": {"targets": chosen(*tutorials, *others)},
    }
    return requests[part]


def measure(part: str, machines: lab.Lab, mib: int) -> dict[str, Any]:
    """Run a part on the host and return what it found."""
    request = json.dumps(request_of(part, machines, mib))
    command = [contenders.PYTHON, f"{contenders.FOLDER}/measure.py", part]
    found: dict[str, Any] = json.loads(lab.run(machines.host, command, f"measure {part}", request))
    return found


def units(machines: lab.Lab, action: str, names: list[str]) -> None:
    """Start or stop the servers.

    Raises: ProblemError with the end of the host's journal.
    """
    try:
        lab.run(machines.host, ["systemctl", action, *names], f"{action} the servers")
    except ProblemError as problem:
        journal = lab.run(machines.host, ["journalctl", "--no-pager", "--lines=40", "--output=cat"], "read the journal")
        raise ProblemError(f"{problem}\n{journal}") from problem


def machine_facts() -> dict[str, str]:
    """Return what all figures depend on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "machine": f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, Linux {platform.release()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def software_facts(machines: lab.Lab) -> dict[str, str]:
    """Return what the servers' figures depend on."""
    program = (
        "import sys; from importlib.metadata import version as v; "
        "print('Python', sys.version.split()[0] + ',', ', '.join("
        "n + ' ' + v(n) for n in 'mlflow uvicorn uvloop httptools starlette SQLAlchemy psycopg2-binary boto3'.split()))"
    )
    packages = lab.run(machines.host, [contenders.PYTHON, "-c", program], "ask for versions").strip()
    nginx = lab.run(machines.host, ["sh", "-c", "nginx -v 2>&1"], "ask for nginx's version").strip().rpartition("/")[2]
    database = lab.run(machines.database, ["psql", "--version"], "ask for PostgreSQL's version").split()[2]
    system = lab.run(machines.host, ["sh", "-c", ". /etc/os-release; echo $PRETTY_NAME"], "ask for the system").strip()
    workers = contenders.workers_of(machines)
    return {
        "host": f"{system} in a container; {workers} workers in the role's servers and in bare, 4 in the tutorial's",
        "versions": f"{packages}, nginx {nginx}, PostgreSQL {database}",
    }


def install(machines: lab.Lab, first: float) -> dict[str, Any]:
    """Return how long the roles and the tutorial take; `first` is what the roles took on the fresh host."""
    again = lab.converge(machines, "mlflow_server")
    return {"role": first, "again": again, "tutorial": lab.tutorial_seconds(machines, contenders.VERSION)}


class Bench:
    """The parts that are measured, one after the other."""

    def __init__(self, parts: list[str], mib: int) -> None:
        self.parts, self.mib = parts, mib
        self.times = Times()
        self.results: dict[str, Any] = {}
        self.failures: dict[str, str] = {}
        self.machine = machine_facts()

    def attempt(self, part: str, work: Callable[[], dict[str, Any]]) -> None:
        """Measure a part, if it is wanted: what fails must not lose what was measured, nor hide in what was not."""
        if part in self.parts:
            try:
                with self.times.step(part):
                    self.results[part] = work()
            except ProblemError as problem:
                say(f"    {part} failed: {problem}")
                self.failures[part] = str(problem).strip().splitlines()[-1]

    def run(self) -> None:
        """Measure, and keep what was found."""
        directory = state_dir() / "bench"
        directory.mkdir(mode=0o700, exist_ok=True)
        load = f"{os.getloadavg()[0]:.1f}"
        with exclusive("bench"):
            if set(self.parts) != {"provisioning"}:
                with lab.running(directory) as machines:
                    self.measure_servers(machines)
            # It needs none of those machines, and none must run beside it.
            self.attempt("provisioning", lambda: provisioning(directory))
        end = f"{os.getloadavg()[0]:.1f}"
        self.machine["load average"] = f"{load} before, {end} at the end (the benchmark's own included)"
        steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.times.steps)
        self.machine["took"] = f"{self.times.elapsed():.0f} s: {steps}"
        found = json.dumps({"results": self.results, "machine": self.machine}, indent=2)
        (directory / "results.json").write_text(found)

    def measure_servers(self, machines: lab.Lab) -> None:
        """Set the host up, and measure what concerns servers."""
        with self.times.step("set-up"):
            first = lab.converge(machines, "mlflow_database", "mlflow_server")
        self.machine |= software_facts(machines)
        # First, because the host is what is cloned.
        self.attempt("scaling", lambda: scaling(machines))
        if set(COMPARED) & set(self.parts):
            self.compare(machines, first)

    def compare(self, machines: lab.Lab, first: float) -> None:
        """Measure the server against the others; `first` is what the roles took on the fresh host."""
        with self.times.step("set-up of the other servers"):
            contenders.set_up(machines)
        workers = contenders.workers_of(machines)
        self.attempt("install", lambda: install(machines, first))
        self.attempt("memory", lambda: {"workers": workers, **measure("memory", machines, self.mib)})
        if {"latency", "throughput", "artifacts"} & set(self.parts):
            with self.times.step("start of all servers"):
                requests = request_of("await", machines, self.mib)
                units(machines, "start", [name for request in requests["targets"] for name in request["units"]])
                measure("await", machines, self.mib)
        for part in ("latency", "throughput"):
            self.attempt(part, partial(measure, part, machines, self.mib))
        self.attempt("artifacts", lambda: {"mib": self.mib, **measure("artifacts", machines, self.mib)})
        # It stops all but one of the servers.
        self.attempt("restart", lambda: measure("restart", machines, self.mib))


def ended(number: int, _: FrameType | None) -> None:
    """Let a signal end the program through its clean-up."""
    raise SystemExit(128 + number)


def main() -> None:
    """Measure, print the report and keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmark the stack.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; without any, all but the last two"
    )
    parser.add_argument("--mib", type=int, default=256, help="size of the artifact (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="where to keep the report; no part named: benchmarks/results.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"there is no part {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    if not 1 <= arguments.mib <= 4096:
        parser.error("--mib must be between 1 and 4096")
    signal.signal(signal.SIGTERM, ended)
    bench = Bench(arguments.parts or list(COMPARED), arguments.mib)
    try:
        bench.run()
    except (LocalAwsError, ValueError) as error:
        fail(ProblemError(str(error)))
    except ProblemError as problem:
        fail(problem)
    text = report.render(bench.results, bench.machine, bench.failures)
    say("\n" + text)
    # A part of the figures must not replace all of them.
    output = arguments.output or (None if arguments.parts else ROOT / "benchmarks/results.md")
    if output:
        # What people wrote about earlier figures stands after them, with its date.
        before = output.read_text() if output.exists() else ""
        _, heading, findings = before.partition(FINDINGS)
        output.write_text(text + heading + findings)
        say(f"Kept in {output}")
    for part in set(DOCUMENTED) & set(bench.results):
        chapter = report.chapter(part, bench.results[part], bench.machine)
        SCALING.write_text(report.replaced(SCALING.read_text(), part, chapter))
        say(f"Kept {part} in {SCALING}")
    raise SystemExit(1 if bench.failures else 0)


if __name__ == "__main__":
    main()
