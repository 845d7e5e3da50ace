"""Measure the server that the roles set up against the tutorial's and against a bare tuned one.

Usage: python -m benchmarks [PART ...] [--mib N] [--output FILE]

Parts: install, latency, throughput, memory, artifacts, restart; without any, all. It needs Docker, and the environment
that `make setup` makes; it makes its own machines and removes them. Well under ten minutes on two cores.
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
from local_aws.errors import LocalAwsError
from tools.console import ROOT, ProblemError, Times, exclusive, fail, say, state_dir

FINDINGS = "\n## What was found"
PARTS = ("install", "memory", "latency", "throughput", "artifacts", "restart")
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


def facts(machines: lab.Lab, workers: int) -> dict[str, str]:
    """Return what the figures depend on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    program = (
        "import sys; from importlib.metadata import version as v; "
        "print('Python', sys.version.split()[0] + ',', ', '.join("
        "n + ' ' + v(n) for n in 'mlflow uvicorn uvloop httptools starlette SQLAlchemy psycopg2-binary boto3'.split()))"
    )
    packages = lab.run(machines.host, [contenders.PYTHON, "-c", program], "ask for versions").strip()
    nginx = lab.run(machines.host, ["sh", "-c", "nginx -v 2>&1"], "ask for nginx's version").strip().rpartition("/")[2]
    database = lab.run(machines.database, ["psql", "--version"], "ask for PostgreSQL's version").split()[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = lab.run(machines.host, ["sh", "-c", ". /etc/os-release; echo $PRETTY_NAME"], "ask for the system").strip()
    return {
        "machine": f"{os.cpu_count()} CPUs ({model}), {memory:.0f} GiB, Linux {platform.release()}",
        "host": f"{system} in a container; {workers} workers in the role's servers and in bare, 4 in the tutorial's",
        "versions": f"{packages}, nginx {nginx}, PostgreSQL {database}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def install(machines: lab.Lab, first: float) -> dict[str, Any]:
    """Return how long the roles and the tutorial take; `first` is what the roles took on the fresh host."""
    again = lab.converge(machines, "mlflow_server")
    return {"role": first, "again": again, "tutorial": lab.tutorial_seconds(machines, contenders.VERSION)}


def bench(parts: list[str], mib: int) -> tuple[str, bool]:
    """Run the parts; return the report, and whether all of them could be measured."""
    times = Times()
    results: dict[str, Any] = {}
    failures: dict[str, str] = {}
    load = f"{os.getloadavg()[0]:.1f}"
    with exclusive("bench"), lab.running(state_dir() / "bench") as machines:
        with times.step("set-up"):
            first = lab.converge(machines, "mlflow_database", "mlflow_server")
            workers = contenders.set_up(machines)

        def attempt(part: str, work: Callable[[], dict[str, Any]]) -> None:
            # What fails must not lose what was measured before it, nor hide in what was not.
            if part in parts:
                try:
                    with times.step(part):
                        results[part] = work()
                except ProblemError as problem:
                    say(f"    {part} failed: {problem}")
                    failures[part] = str(problem).strip().splitlines()[-1]

        attempt("install", lambda: install(machines, first))
        attempt("memory", lambda: {"workers": workers, **measure("memory", machines, mib)})
        if {"latency", "throughput", "artifacts"} & set(parts):
            with times.step("start of all servers"):
                names = [name for request in request_of("await", machines, mib)["targets"] for name in request["units"]]
                units(machines, "start", names)
                measure("await", machines, mib)
        for part in ("latency", "throughput"):
            attempt(part, partial(measure, part, machines, mib))
        attempt("artifacts", lambda: {"mib": mib, **measure("artifacts", machines, mib)})
        # It stops all but one of the servers.
        attempt("restart", lambda: measure("restart", machines, mib))
        machine = facts(machines, workers)
    end = f"{os.getloadavg()[0]:.1f}"
    machine["load average"] = f"{load} before, {end} at the end (the benchmark's own included)"
    machine["took"] = f"{times.elapsed():.0f} s: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in times.steps)
    (state_dir() / "bench/results.json").write_text(json.dumps({"results": results, "machine": machine}, indent=2))
    return report.render(results, machine, failures), not failures


def ended(number: int, _: FrameType | None) -> None:
    """Let a signal end the program through its clean-up."""
    raise SystemExit(128 + number)


def main() -> None:
    """Measure, print the report and keep it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Benchmark the stack.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS) + "; all, if none is named")
    parser.add_argument("--mib", type=int, default=256, help="size of the artifact (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="where to keep the report; all parts: benchmarks/results.md")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.parts) - set(PARTS)):
        parser.error(f"there is no part {', '.join(unknown)}: the parts are {', '.join(PARTS)}")
    if not 1 <= arguments.mib <= 4096:
        parser.error("--mib must be between 1 and 4096")
    signal.signal(signal.SIGTERM, ended)
    try:
        text, complete = bench(arguments.parts or list(PARTS), arguments.mib)
    except (LocalAwsError, ValueError) as error:
        fail(ProblemError(str(error)))
    except ProblemError as problem:
        fail(problem)
    say("\n" + text)
    # A part of the figures must not replace all of them.
    output = arguments.output or (None if arguments.parts else ROOT / "benchmarks/results.md")
    if output:
        # What people wrote about earlier figures stands after them, with its date.
        before = output.read_text() if output.exists() else ""
        _, heading, findings = before.partition(FINDINGS)
        output.write_text(text + heading + findings)
        say(f"Kept in {output}")
    raise SystemExit(0 if complete else 1)


if __name__ == "__main__":
    main()
