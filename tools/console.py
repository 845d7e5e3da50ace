"""What the programs in tools/ share: paths, errors, timed steps, quiet commands. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STATE = ROOT / ".mlflow_aws"
SETUP_LOG = STATE / "setup.log"
GIGABYTE = 10**9

_print_lock = threading.Lock()


class ProblemError(Exception):
    """Something that the user must know or mend; its text says in one sentence what is wrong and how to mend it."""


def say(text: str) -> None:
    """Print one whole line at once; safe from several threads."""
    with _print_lock:
        print(text, flush=True)


def fail(problem: ProblemError) -> NoReturn:
    """End the program with the problem's sentence on standard error and status 1."""
    sys.stdout.flush()
    print(f"\nError: {problem}", file=sys.stderr, flush=True)
    raise SystemExit(1)


class Times:
    """Seconds that each named step took, in the order in which the steps ended."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.steps: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Announce a step, and say when it is done how long it took."""
        say(f"==> {name}")
        start = time.monotonic()
        yield
        seconds = time.monotonic() - start
        self.steps.append((name, seconds))
        say(f"    {name}: {seconds:.1f} s")

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.start

    def report(self) -> str:
        """Return the steps and the total on one line. Steps may have overlapped, so the total is the clock's."""
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.steps)
        return f"Took: {parts}; in all {self.elapsed():.1f} s"


def state_dir() -> Path:
    """Create and return the git-ignored directory for what a run leaves behind; only its owner may look into it."""
    STATE.mkdir(mode=0o700, exist_ok=True)
    return STATE


@contextlib.contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Let one process of this checkout at a time work on the named thing; the lock ends with its holder."""
    with (state_dir() / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"    waiting for another process, which works on the same ({name})")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def require_space(path: Path, needed: int, purpose: str) -> None:
    """Check that the file system of `path` has `needed` bytes free.

    Raises: ProblemError, naming the path, what is free and what is needed.
    """
    place = path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise ProblemError(
            f"{purpose} need {needed / GIGABYTE:.1f} GB, and {place} has only {free / GIGABYTE:.1f} GB free: "
            "free some space there, then run the same command again."
        )


def which(program: str) -> str | None:
    """Find a program on PATH, or in the sbin beside a bin of PATH: Debian gives users no sbin."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    sbins = [str(Path(folder).with_name("sbin")) for folder in folders if Path(folder).name == "bin"]
    return shutil.which(program, path=os.pathsep.join([*folders, *sbins]))


def run_quietly(command: Sequence[str | Path], what: str, env: Mapping[str, str] | None = None) -> None:
    """Run a command with its output in the set-up log; nothing is shown unless it fails.

    Raises: ProblemError with the end of the output when the command fails or cannot be started.
    """
    state_dir()
    with SETUP_LOG.open("a+b") as log:
        log.seek(0, os.SEEK_END)
        begin = log.tell()
        try:
            status = subprocess.run(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(env) if env is not None else None,
                cwd=ROOT,
                check=False,
            ).returncode
        except OSError as error:
            raise ProblemError(f"Failed to {what}: {error}.") from error
        if status == 0:
            return
        log.seek(begin)
        tail = log.read().decode(errors="replace").strip().splitlines()[-15:]
    shown = "".join(f"\n    {line}" for line in tail)
    raise ProblemError(f"Failed to {what} (exit status {status}); the whole output is in {SETUP_LOG}; its end:{shown}")
