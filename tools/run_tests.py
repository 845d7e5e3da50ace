"""Run the tests in named parts, beside one another where that is quicker, and count what passed and what failed.

Usage: python -m tools.run_tests [PART ...]

Parts are discovered: one whose files are not there is left out, unless it is named. The Docker parts run one after the
other with their output live; the others run beside them, and each one's output is shown whole when it has ended. The
last line is `N passed, N failed`; the status is 1 when anything failed. Standard library only.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools import machine
from tools.console import ROOT, VENV, ProblemError, Times, say, state_dir

BIN = VENV / "bin"


@dataclass(frozen=True)
class Check:
    """One command of a part; `junit` says that it is a pytest run, whose tests are counted one by one."""

    name: str
    command: tuple[str, ...]
    junit: bool = False


# Where a check's output says what went wrong: Ansible, Molecule's test of idempotence, a program of Python's.
CAUSE = re.compile(r"fatal: \[|CRITICAL (?!Ansible return code)|Traceback ")
# pytest's own summary, one line for each test.
FAILED_TEST = re.compile(r"(FAILED|ERROR) \S+::")
# What colours and frames the lines on a terminal.
COLOUR = r"\x1b\[[0-9;]*[A-Za-z]"
DECORATION = re.compile(rf"^(?:{COLOUR}| )*\u2502(?:{COLOUR})* ?|{COLOUR}", re.MULTILINE)

# Parts of one lane run one after the other, because they share what the machine has one of; the lanes run at once.
CLOUD, HOSTS, MOVES, PLAIN = "cloud", "hosts", "moves", "plain"
# Scenarios for the lane that is the first to end, so that all end at about the same time.
BESIDE = {"alternative", "jobs"}


@dataclass(frozen=True)
class Part:
    """A named part: its checks, its lane, how many seconds it may take, and whether it must be named to run."""

    name: str
    checks: tuple[Check, ...]
    lane: str
    limit: int
    named: bool = False

    @property
    def docker(self) -> bool:
        """Tell whether it needs Docker."""
        return self.lane != PLAIN or self.name == "molecule"


@dataclass
class Outcome:
    """What a part came to."""

    part: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)

    def count(self, name: str, good: bool) -> None:
        """Count one check that is not counted test by test."""
        if good:
            self.passed += 1
        else:
            self.failed += 1
            self.failures.append(name)

    def __add__(self, other: Outcome) -> Outcome:
        """Return what the same part came to in two lanes."""
        return Outcome(
            self.part,
            self.passed + other.passed,
            self.failed + other.failed,
            self.skipped + other.skipped,
            max(self.seconds, other.seconds),
            self.failures + other.failures,
            self.causes + other.causes,
        )


def causes(output: str, most: int = 12, width: int = 200) -> list[str]:
    """Return the few lines of a failed check's output that say why, of `width` characters at most.

    A log is long, and often only its end is at hand: there these are shown again.
    """
    lines = [line for line in DECORATION.sub("", output).splitlines() if line.strip()]
    chosen = [line for line in lines if FAILED_TEST.match(line)][:most]
    if not chosen:
        # The last one: what a scenario provokes on purpose fails before it, and cleaning up does not.
        start = max((number for number, line in enumerate(lines) if CAUSE.search(line)), default=len(lines) - most)
        task = next((line for line in reversed(lines[: max(0, start)]) if line.startswith("TASK [")), "")
        chosen = [task] * bool(task) + lines[max(0, start) :][:most]
    return [line[:width] for line in chosen]


def tracked(*patterns: str) -> list[str]:
    """Return the files of the checkout, committed or new, that match git's patterns."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return sorted({name for name in listed.stdout.splitlines() if (ROOT / name).is_file()})


def shell_scripts() -> list[str]:
    """Return the shell scripts of the checkout, by their name or their first line; templates are none yet."""
    found = []
    for name in tracked(":!*.j2"):
        with (ROOT / name).open("rb") as file:
            first = file.readline(80)
        if name.endswith((".sh", ".bash")) or (
            first.startswith(b"#!") and first.split()[-1].endswith((b"sh", b"bash"))
        ):
            found.append(name)
    return found


def tool(name: str, *arguments: str) -> tuple[str, ...]:
    """Return the command for a program of the environment."""
    return (str(BIN / name), *arguments)


def python(*arguments: str) -> tuple[str, ...]:
    """Return the command for the environment's Python."""
    return tool("python", *arguments)


def lint_checks() -> Iterator[Check]:
    """Yield the static checks for which there is something to check."""
    yield Check("ruff check", tool("ruff", "check"))
    yield Check("ruff format", tool("ruff", "format", "--check"))
    yield Check("mypy", tool("mypy"))
    yield Check("yamllint", tool("yamllint", "--strict", "."))
    # --offline: what it needs is in requirements.txt already.
    yield Check("ansible-lint", tool("ansible-lint", "--offline"))
    if scripts := shell_scripts():
        yield Check("shellcheck", tool("shellcheck", *scripts))
    if (ROOT / "tools/role_docs.py").exists():
        yield Check("role documentation", python("-m", "tools.role_docs", "--check"))
    if tracked("plugins/modules/*.py"):
        # It copies what git knows of each collection, which is nothing of those in .venv, unless git cannot see from
        # there that they lie in this checkout.
        ceiling = f"GIT_CEILING_DIRECTORIES={VENV}"
        lint = tool("antsibull-docs", "lint-collection-docs", "--plugin-docs", ".")
        yield Check("antsibull-docs", ("env", ceiling, *lint))


def pytest_checks(name: str) -> Iterator[Check]:
    """Yield the pytest run of tests/<name>, if there are tests in it."""
    if tracked(f"tests/{name}/**test_*.py"):
        command = python("-m", "pytest", "--durations=25", "--durations-min=5", f"tests/{name}")
        yield Check(f"pytest tests/{name}", command, junit=True)


def sanity_checks() -> Iterator[Check]:
    """Yield ansible-test sanity."""
    if (ROOT / "tools/sanity.py").exists():
        yield Check("ansible-test sanity", python("-m", "tools.sanity"))


def molecule_checks(lane: str) -> Iterator[Check]:
    """Yield the Molecule scenarios of a lane: each has a network of its own, so two may run at once."""
    for path in sorted(ROOT.glob("molecule/*/molecule.yml")):
        name = path.parent.name
        if (name in BESIDE) == (lane == PLAIN):
            yield Check(f"molecule {name}", tool("molecule", "test", "-s", name))


def all_parts() -> list[Part]:
    """Return every part, also one that has nothing to run yet; the limits are several times what was measured.

    A part of two lanes is named twice.
    """
    scenarios, beside = (tuple(molecule_checks(lane)) for lane in (HOSTS, PLAIN))
    return [
        Part("lint", tuple(lint_checks()), PLAIN, limit=15 * 60),
        Part("unit", tuple(pytest_checks("unit")), PLAIN, limit=40 * 60),
        Part("sanity", tuple(sanity_checks()), PLAIN, limit=20 * 60),
        Part("integration", tuple(pytest_checks("integration")), CLOUD, limit=40 * 60),
        Part("e2e", tuple(pytest_checks("e2e")), CLOUD, limit=70 * 60),
        # Two hours of two processors: with the others it would not end in time on a machine that has no more.
        Part("topologies", tuple(pytest_checks("topologies")), MOVES, limit=180 * 60, named=True),
        Part("molecule", scenarios, HOSTS, limit=25 * 60 * len(scenarios)),
        Part("molecule", beside, PLAIN, limit=25 * 60 * len(beside)),
    ]


def choose(names: Sequence[str]) -> list[Part]:
    """Return the parts to run: those named, else all that have something to run and need not be named.

    Raises: ProblemError for a part that is unknown or has nothing to run.
    """
    parts = all_parts()
    known = {part.name: any(one.checks for one in parts if one.name == part.name) for part in parts}
    if unknown := [name for name in names if name not in known]:
        raise ProblemError(f"There is no part {', '.join(unknown)}: the parts are {', '.join(known)}.")
    if empty := [name for name in names if not known[name]]:
        raise ProblemError(f"The part {', '.join(empty)} has nothing to run: its files are not there.")
    return [part for part in parts if part.checks and (part.name in names if names else not part.named)]


def junit_counts(path: Path) -> tuple[int, int, int]:
    """Return passed, failed and skipped of a pytest run from its report."""
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for key in totals:
            totals[key] += int(suite.get(key, "0"))
    failed = totals["failures"] + totals["errors"]
    return totals["tests"] - failed - totals["skipped"], failed, totals["skipped"]


class Runner:
    """Runs parts in lanes, and keeps their outputs apart."""

    def __init__(self, env: dict[str, str], logs: Path) -> None:
        self.env = env
        self.logs = logs
        self.screen = threading.Lock()
        self.running: set[subprocess.Popen[bytes]] = set()
        self.shown: list[threading.Thread] = []

    def run(self, part: Part, live: bool) -> Outcome:
        """Run one part, its output live or shown whole at its end."""
        log = self.logs / f"{part.name}-{part.lane}.log"
        outcome = Outcome(part.name)
        start = time.monotonic()
        with self.screen if live else contextlib.nullcontext(), log.open("wb") as output:
            for check in part.checks:
                self.run_check(check, outcome, output.fileno(), live, start + part.limit)
            outcome.seconds = time.monotonic() - start
        if live:
            say(self.closing(outcome))
        else:
            # The screen may be a live part's for a long time: the next part of this lane does not wait for that.
            shown = threading.Thread(target=self.show, args=(log, outcome))
            shown.start()
            self.shown.append(shown)
        return outcome

    @staticmethod
    def closing(outcome: Outcome) -> str:
        """Return the line that ends a part."""
        return f"=== {outcome.part}: {outcome.passed} passed, {outcome.failed} failed, {outcome.seconds:.1f} s\n"

    def show(self, log: Path, outcome: Outcome) -> None:
        """Show a part's whole output, when the screen is free."""
        with self.screen:
            print(log.read_bytes().decode(errors="replace"), end="", flush=True)
            say(self.closing(outcome))

    def wait_until_shown(self) -> None:
        """Return when every part's output has been shown."""
        for thread in self.shown:
            thread.join()

    def run_check(self, check: Check, outcome: Outcome, log: int, live: bool, deadline: float) -> None:
        """Run one command and count what it came to."""

        collected: list[bytes] = []

        def emit(data: bytes) -> None:
            collected.append(data)
            os.write(log, data)
            if live:
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()

        emit(f"=== {outcome.part}: {check.name}\n".encode())
        start = time.monotonic()
        command = list(check.command)
        junit = self.logs / f"{outcome.part}.xml"
        if check.junit:
            junit.unlink(missing_ok=True)
            command.append(f"--junit-xml={junit}")
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.running.add(process)
        late = threading.Timer(max(0.0, deadline - start), stop, [process])
        late.start()
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 65536):
            emit(data)
        status = process.wait()
        in_time = late.is_alive()
        late.cancel()
        self.running.discard(process)
        # What a test started and did not end must not live on into the next one.
        stop(process)
        if not in_time:
            emit(f"\n{check.name} was stopped: the part took longer than it may\n".encode())
        counted = 0
        if check.junit and junit.exists():
            passed, failed, skipped = junit_counts(junit)
            outcome.passed += passed
            outcome.failed += failed
            outcome.skipped += skipped
            counted = failed
            if failed:
                outcome.failures.append(f"{check.name} ({failed})")
        if status != 0:
            outcome.causes += [f"--- {check.name}", *causes(b"".join(collected).decode(errors="replace"))]
        if not check.junit or (status != 0 and counted == 0):
            # A pytest run that broke down outside its tests is one failure, whatever it had counted.
            outcome.count(check.name, status == 0)
        emit(f"    {check.name}: {'ok' if status == 0 else f'FAILED (exit status {status})'}, ".encode())
        emit(f"{time.monotonic() - start:.1f} s\n".encode())

    def stop_all(self) -> None:
        """Stop whatever still runs."""
        for process in list(self.running):
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a check with all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def run_parts(parts: Sequence[Part], runner: Runner) -> list[Outcome]:
    """Run the lanes at once, the first of them live; return the outcomes in the parts' order."""
    lanes = {name: members for name in (CLOUD, HOSTS, PLAIN) if (members := [p for p in parts if p.lane == name])}
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(lanes)) as pool:

        def run_lane(members: Sequence[Part], live: bool) -> list[Outcome]:
            return [runner.run(part, live) for part in members]

        futures = [pool.submit(run_lane, members, not index) for index, members in enumerate(lanes.values())]
        try:
            outcomes: dict[str, Outcome] = {}
            for outcome in (outcome for future in futures for outcome in future.result()):
                name = outcome.part
                outcomes[name] = outcomes[name] + outcome if name in outcomes else outcome
        except KeyboardInterrupt:
            runner.stop_all()
            raise
    return [outcomes[name] for name in dict.fromkeys(part.name for part in parts)]


def main() -> None:
    """Run the chosen parts; end with the table, the line of counts and the status."""
    parser = argparse.ArgumentParser(description="Run the tests in named parts.")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="lint, unit, sanity, integration, e2e, topologies, molecule"
    )
    times = Times()
    try:
        parts = choose(parser.parse_args().parts)
        env = machine.ensure(times, docker=any(part.docker for part in parts))
    except ProblemError as problem:
        print(f"\nError: {problem}\n0 passed, 1 failed", flush=True)
        raise SystemExit(1) from problem
    set_up = times.elapsed()
    logs = state_dir() / "tests"
    logs.mkdir(exist_ok=True)
    try:
        runner = Runner(env, logs)
        outcomes = run_parts(parts, runner)
        runner.wait_until_shown()
    except KeyboardInterrupt:
        raise SystemExit("\nInterrupted.") from None
    print(f"\n{'part':<12} {'passed':>7} {'failed':>7} {'skipped':>8} {'seconds':>8}")
    print(f"{'set-up':<12} {'':>7} {'':>7} {'':>8} {set_up:>8.1f}")
    for outcome in outcomes:
        failures = f"   {'; '.join(outcome.failures)}" if outcome.failures else ""
        print(
            f"{outcome.part:<12} {outcome.passed:>7} {outcome.failed:>7} {outcome.skipped:>8} "
            f"{outcome.seconds:>8.1f}{failures}"
        )
    print(f"{'in all':<12} {'':>7} {'':>7} {'':>8} {times.elapsed():>8.1f}")
    for outcome in outcomes:
        if outcome.causes:
            print("\n".join(outcome.causes))
    failed = sum(outcome.failed for outcome in outcomes)
    print(f"{sum(outcome.passed for outcome in outcomes)} passed, {failed} failed", flush=True)
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
