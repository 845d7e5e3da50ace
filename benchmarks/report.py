"""Turn what was measured into the tables of results.md, the aims beside the figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.contenders import TITLES

Json = dict[str, Any]
DEFAULT, POSTGRESQL, BARE, OPEN, ROLE, ONE = (
    "tutorial, SQLite",
    "tutorial, PostgreSQL",
    "bare",
    "role, no login",
    "role",
    "role, one worker",
)
CALLS = ("get_experiment", "log_metric", "create_run")


def spread(values: Sequence[float], form: str = "{:.1f}") -> str:
    """Return the median and, in brackets, the lowest and the highest."""
    middle, low, high = (form.format(value) for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Return the ratio in each round: what disturbs the machine disturbs both sides of it."""
    return [first / second for first, second in zip(above, below, strict=True)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


class Report:
    """Collects the sections, and the list of aims."""

    def __init__(self) -> None:
        self.sections: list[tuple[str, str]] = []
        self.aims: list[list[str]] = []

    def at_least(self, aim: float, figure: str, values: Sequence[float]) -> None:
        """Add a figure whose median must not be lower."""
        reached = statistics.median(values) >= aim
        self.aims.append([figure, f"at least {aim:g}", spread(values, "{:.2f}"), "yes" if reached else "**no**"])

    def at_most(self, aim: float, figure: str, values: Sequence[float]) -> None:
        """Add a figure whose median must not be higher."""
        reached = statistics.median(values) <= aim
        self.aims.append([figure, f"at most {aim:g}", spread(values, "{:.2f}"), "yes" if reached else "**no**"])

    def section(self, title: str, text: str, content: str) -> None:
        """Add a section."""
        self.sections.append((title, f"{text}\n\n{content}"))

    def install(self, data: Json) -> None:
        """Report the set-up."""
        self.at_most(0.5, "fresh host to healthy: role / tutorial", [data["role"] / data["tutorial"]])
        self.at_most(15, "second converge of mlflow_server, seconds", [data["again"]])
        rows = [
            ["tutorial: apt, venv, pip, start", f"{data['tutorial']:.1f}"],
            ["role: `ansible-playbook` with mlflow_database and mlflow_server", f"{data['role']:.1f}"],
            ["mlflow_server again", f"{data['again']:.1f}"],
        ]
        text = "Seconds from a fresh host to an answer, once each, each on a host of its own from the same image."
        self.section("Install", text, table(["what", "seconds"], rows))

    def latency(self, data: Json) -> None:
        """Report one client."""
        operations = list(data[ROLE])
        for operation in CALLS:
            for other in (DEFAULT, POSTGRESQL):
                values = ratios(data[other][operation], data[ROLE][operation])
                self.at_least(5, f"p50 of {operation}: {other} / role", values)
        for operation, aim in (("log_batch", 2), ("search", 1)):
            for other in (DEFAULT, POSTGRESQL):
                values = ratios(data[other][operation], data[ROLE][operation])
                self.at_least(aim, f"p50 of {operation}(100): {other} / role", values)
        rows = [[name, *(spread(data[name][operation]) for operation in operations)] for name in data]
        text = (
            "p50 in milliseconds, one client on one kept connection: median of the rounds' medians "
            "(lowest to highest). search returns 100 runs with 100 metrics each; log_batch logs 100 metrics."
        )
        self.section("One client", text, table(["server", *operations], rows))

    def throughput(self, data: Json) -> None:
        """Report many clients."""

        def rates(name: str, operation: str, field: str = "rate") -> list[float]:
            return [found[field] for found in data[name][operation]]

        for operation in CALLS:
            for name, least in ((OPEN, 0.95), (ROLE, 0.8)):
                values = ratios(rates(name, operation), rates(BARE, operation))
                self.at_least(least, f"requests/s of {operation}, 16 clients: {name} / bare", values)
            values = ratios(rates(OPEN, operation), rates(POSTGRESQL, operation))
            self.at_least(1.5, f"requests/s of {operation}, 16 clients: {OPEN} / {POSTGRESQL}", values)
        rows = [[name, *(spread(rates(name, operation), "{:.0f}") for operation in CALLS)] for name in data]
        text = "Requests per second of 16 clients, each on a kept connection."
        content = table(["server", *CALLS], rows)
        rows = [
            [
                name,
                *(spread(rates(name, operation, "server_ms"), "{:.2f}") for operation in CALLS),
                *(f"{statistics.median(rates(name, operation, 'client_ms')):.2f}" for operation in CALLS),
            ]
            for name in data
        ]
        content += "\nMilliseconds of CPU per request, of the server's units (nginx included, PostgreSQL not), and of "
        content += "the client, which shares the machine and for TLS does half of that work:\n\n"
        head = ["server", *CALLS, *(f"client, {operation}" for operation in CALLS)]
        self.section("Sixteen clients", text, content + table(head, rows))

    def memory(self, data: Json) -> None:
        """Report idle servers."""

        def gib(name: str) -> float:
            return float(sum(unit["mib"] for unit in data[name]["units"].values())) / 1024

        if ONE in data:
            self.at_most(0.45, "idle memory with one worker, without nginx, GiB PSS", [gib(ONE)])
        workers = data["workers"]
        least = {1: 0.45, 2: 0.65}.get(workers)
        if least is not None:
            self.at_most(least, f"idle memory with {workers} workers and nginx, GiB PSS", [gib(ROLE)])
        rows = []
        for name, found in data.items():
            if name == "workers":
                continue
            for unit, used in found["units"].items():
                cells = [f"{found['start']:.1f}", f"{found['idle_cpu'] * 100:.1f} %"]
                first = unit == next(iter(found["units"]))
                rows.append([name, unit, str(used["processes"]), f"{used['mib']:.0f}", *(cells if first else ["", ""])])
        text = (
            "PSS of the units' processes, each server alone, after one call and when its helpers have started. "
            "The start is a restart on a finished schema, up to a call that asks the database; "
            "CPU is what the idle server uses of one core."
        )
        head = ["server", "unit", "processes", "MiB", "start, s", "idle CPU"]
        self.section("Idle", text, table(head, rows))

    def artifacts(self, data: Json) -> None:
        """Report large files."""
        mib = data["mib"]
        ways = {name: found for name, found in data.items() if name != "mib"}
        for direction in ("up", "down"):
            straight = [found["seconds"] for found in ways["boto3"][direction]]
            for name in (ROLE, "MLflow's client"):
                values = ratios(straight, [found["seconds"] for found in ways[name][direction]])
                self.at_least(0.8, f"{mib} MiB {direction}: {name} / boto3 straight", values)
                grown = [found["growth"] for found in ways[name][direction]]
                self.at_most(130, f"memory growth, {direction}: {name}, MiB", grown)
        first = [found["first"] for found in ways[ROLE]["down"]]
        self.at_most(1, "first byte through the proxy, seconds", first)
        rows = []
        for name, found in ways.items():
            for direction in ("up", "down"):
                rounds = found[direction]
                rows.append(
                    [
                        name,
                        direction,
                        spread([mib / one["seconds"] for one in rounds], "{:.0f}"),
                        spread([one["first"] for one in rounds], "{:.2f}") if "first" in rounds[0] else "",
                        spread([one["growth"] for one in rounds], "{:.0f}") if "growth" in rounds[0] else "",
                    ]
                )
        text = (
            f"{mib} MiB against an S3 API on this machine (moto, which is Python and shares the CPUs). Through the "
            "proxy: one PUT, one GET. MLflow's client: log_artifact and download_artifacts, which the server may send "
            "straight to the store."
        )
        head = ["way", "direction", "MiB/s", "first byte, s", "growth of the server's private memory, MiB"]
        self.section("Artifacts", text, table(head, rows))

    def restart(self, data: Json) -> None:
        """Report restarts."""
        role = data[ROLE]
        lost = role["failed"] + role["unanswered"]
        self.at_most(0, "failed requests while the service restarts under load", [lost])
        self.at_most(3, "longest wait meanwhile, seconds", [role["longest"]])
        rows = [
            [
                name,
                *(str(found[field]) for field in ("answered", "failed", "unanswered")),
                f"{found['longest']:.2f}",
                ", ".join(f"{seconds:.1f}" for seconds in found["restarts"]),
            ]
            for name, found in data.items()
        ]
        text = (
            "Eight clients log metrics on kept connections while `systemctl restart` of the service is called twice; "
            "no other server runs. What fails is tried again after 50 ms, also after the end, for a minute at most; "
            "the wait is from a call's first try to its answer."
        )
        head = [
            "server",
            "answered",
            "failed tries",
            "never answered",
            "longest wait, s",
            "each `systemctl restart`, s",
        ]
        self.section("Restart", text, table(head, rows))

    def scaling(self, data: Json) -> None:
        """Report how throughput grows with servers, and what a request costs each part."""
        sizes, share = data["sizes"], data["share"]

        def figures(rounds: Sequence[Json], figure: Callable[[Json], float]) -> list[float]:
            return [figure(found) for found in rounds]

        def per_request(part: str) -> Callable[[Json], float]:
            return lambda found: float(found[part] / found["requests"] * 1000)

        def rate(found: Json) -> float:
            return float(found["rate"])

        def per_cpu_second(found: Json) -> float:
            return float(found["requests"] / found["servers"])

        def others(found: Json) -> float:
            known = found["servers"] + found["database"] + found["client"]
            return float((found["busy"] - known) / found["seconds"])

        limited, free = sizes["limited"], sizes["free"]
        one = limited["1"]
        for size, least in (("2", 1.8), ("4", 3.6)):
            values = ratios(figures(limited[size], rate), figures(one, rate))
            self.at_least(least, f"requests/s, {share:g} CPU for each server: {size} servers / 1", values)
        for size in ("2", "4"):
            values = ratios(figures(limited[size], per_cpu_second), figures(one, per_cpu_second))
            self.at_least(0.9, f"requests per CPU-second of the servers: {size} servers / 1", values)
        head = [
            "servers",
            "requests/s",
            "per CPU-second of the servers",
            "CPU of the servers, ms a request",
            "of PostgreSQL",
            "of the clients",
            "CPUs busy",
            "by others",
            "connections",
            "p99 of the wait, ms",
            "ended by",
        ]

        def rows(kind: Json) -> list[list[str]]:
            return [
                [
                    size,
                    spread(figures(rounds, rate), "{:.0f}"),
                    spread(figures(rounds, per_cpu_second), "{:.0f}"),
                    spread(figures(rounds, per_request("servers"))),
                    spread(figures(rounds, per_request("database")), "{:.2f}"),
                    spread(figures(rounds, per_request("client")), "{:.2f}"),
                    spread([found["busy"] / found["seconds"] for found in rounds]),
                    spread(figures(rounds, others)),
                    str(max(found["connections"] for found in rounds)),
                    spread([found["p99_ms"] for found in rounds], "{:.0f}"),
                    ", ".join(sorted({found["ended_by"] for found in rounds})),
                ]
                for size, rounds in kind.items()
            ]

        cpus = one[0]["cpus"]
        calls = [
            [
                call,
                spread(figures(rounds, per_request("servers"))),
                spread(figures(rounds, per_request("database")), "{:.2f}"),
                spread([found["servers"] / found["database"] for found in rounds]),
                spread([found["requests"] / found["database"] for found in rounds], "{:.0f}"),
            ]
            for call, rounds in [*data["calls"].items(), ("the mix", free["1"])]
        ]
        text = (
            f"{data['clients']} clients for each server, each on a kept connection with TLS and login and with a run "
            "of its own, make the calls of a training in turn: create_run, get_experiment, seven log_metric, one "
            f"log_batch of 100 metrics. All share one PostgreSQL and {cpus} CPUs, with the clients. What ended a "
            "round: *servers*, when they used up nine tenths of what they may; *machine*, when nine tenths of all CPUs "
            "were busy; else *waits*. *Others* is what else ran on the machine, the system's own work included."
        )
        content = (
            f"Each server may use {share:g} CPU, so that the machine has room for all of them:\n\n"
            f"{table(head, rows(limited))}\n"
            "Without that limit, where one server can have the machine for itself:\n\n"
            f"{table(head, rows(free))}\n"
            "What a request of each kind costs where one server has the machine for itself, and so how many vCPUs of "
            "servers keep one vCPU of PostgreSQL busy:\n\n"
        )
        columns = [
            "call",
            "CPU of the servers, ms",
            "CPU of PostgreSQL, ms",
            "vCPUs of servers for one of PostgreSQL",
            "requests/s of one vCPU of PostgreSQL",
        ]
        self.section("Scaling", text, content + table(columns, calls))

    def provisioning(self, data: Json) -> None:
        """Report how long a fleet takes to stand."""

        def rounds(playbook: str, size: str, field: str = "seconds") -> list[float]:
            return [found[field] for found in data[playbook][size]]

        sizes = list(data["provision"])
        first, last = sizes[0], sizes[-1]
        values = ratios(rounds("provision", last), rounds("provision", first))
        self.at_most(1.3, f"provisioning time: {last} hosts / {first}", values)
        rows = [
            [
                f"`playbooks/{playbook}.yml`",
                size,
                spread(rounds(playbook, size), "{:.0f}"),
                *(spread(rounds(playbook, size, field), "{:.0f}") for field in ("control", "hosts", "busy")),
            ]
            for playbook in data
            for size in sizes
        ]
        cpus = data["provision"][first][0]["cpus"]
        text = (
            "From an empty account of the local AWS each time. Hosts, PostgreSQL, the AWS itself and Ansible share "
            f"{cpus} CPUs: *CPU-seconds* tell what a machine of their own would have to do."
        )
        head = ["playbook", "hosts", "seconds", "CPU-seconds of Ansible", "of the hosts", "of everything"]
        self.section("Provisioning", text, table(head, rows))


def render(results: Json, machine: Json, failures: Json) -> str:
    """Return the whole report."""
    report = Report()
    for part in ("install", "latency", "throughput", "memory", "artifacts", "restart", "scaling", "provisioning"):
        if part in results:
            getattr(report, part)(results[part])
    if failures:
        report.section(
            "Not measured", "What failed, and why.", table(["part", "cause"], [*map(list, failures.items())])
        )
    rows = [[f"**{name}**", text] for name, text in TITLES.items()]
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    return "\n".join(
        [
            "# Results of `make bench`\n",
            facts + "\n",
            "All servers run on one host (a systemd container) at the same time and take turns, another one first "
            "in each round; the client runs there too and is a bare socket with keep-alive (an HTTP library's own "
            "cost would hide the servers'). Ratios are taken round by round: their "
            "median counts, lowest and highest stand in brackets.\n",
            table(["server", "what it is"], rows),
            "## Aims\n",
            table(["figure", "aim", "measured", "reached"], report.aims),
            "\n".join(f"## {title}\n\n{content}" for title, content in report.sections),
        ]
    )


def chapter(part: str, data: Json, machine: Json) -> str:
    """Return a part as a chapter of the documentation has it: under that one's own heading."""
    report = Report()
    getattr(report, part)(data)
    facts = ", ".join(f"{name}: {machine[name]}" for name in ("date", "machine", "load average"))
    aims = table(["figure", "aim", "measured", "reached"], report.aims)
    return "\n".join(
        [f'By `make bench ARGS="{part}"` ({facts}).\n', aims, *(content for _, content in report.sections)]
    )


def replaced(text: str, name: str, content: str) -> str:
    """Return the text with what stands between the comments of a name replaced.

    Raises: ValueError when it has no such place.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    before, first, rest = text.partition(begin)
    _, last, after = rest.partition(end)
    if not first or not last:
        raise ValueError(f"There is no place for {name}: {begin.strip()} and {end} must stand in the text.")
    return before + begin + content.strip() + "\n" + end + after
