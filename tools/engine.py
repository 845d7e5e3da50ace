"""Find the Docker engine of this machine; as root install and start one where there is none. Standard library only.

Usage: python -m tools.engine [--socket PATH]
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools import apt
from tools.console import GIGABYTE, ProblemError, exclusive, fail, require_space, run_quietly, say, state_dir, which

SOCKET = Path("/var/run/docker.sock")
START_SECONDS = 60
ANSWER_SECONDS = 10
# Measured: host and database image 0.6 GB, a configured host and a database 1.6 GB.
SPACE = int(2.5 * GIGABYTE)


@dataclass(frozen=True)
class Engine:
    """An engine that answers: the URL for DOCKER_HOST, its version, and where it keeps images and containers."""

    host: str
    version: str
    root: Path


class UnreachableError(Exception):
    """No engine answers at a socket; `cause` is `missing`, `refused`, `denied` or `silent`."""

    def __init__(self, path: Path, cause: str, detail: str) -> None:
        super().__init__(detail)
        self.path = path
        self.cause = cause


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=ANSWER_SECONDS)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket instead of to a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


def info(path: Path) -> dict[str, Any]:
    """Ask the engine behind a socket about itself (Docker Engine API, GET /info).

    Raises: UnreachableError when nothing that speaks Docker's API answers.
    """
    connection = UnixConnection(path)
    try:
        connection.request("GET", "/info")
        response = connection.getresponse()
        body = response.read()
        if response.status != http.client.OK:
            raise UnreachableError(path, "silent", f"it answers with status {response.status}")
        return dict(json.loads(body))
    except FileNotFoundError as error:
        raise UnreachableError(path, "missing", "there is no such socket") from error
    except PermissionError as error:
        raise UnreachableError(path, "denied", "permission denied") from error
    except ConnectionRefusedError as error:
        raise UnreachableError(path, "refused", "nothing listens there any more") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreachableError(path, "silent", f"no usable answer ({error})") from error
    finally:
        connection.close()


def context_host() -> str | None:
    """Return the engine of the Docker context in use, which the docker command follows and the Python SDK does not."""
    config = Path(os.environ.get("DOCKER_CONFIG", Path.home() / ".docker")) / "config.json"
    chosen = os.environ.get("DOCKER_CONTEXT", "")
    if not chosen:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            chosen = json.loads(config.read_text()).get("currentContext", "")
    docker = which("docker")
    if chosen in ("", "default") or docker is None:
        return None
    shown = subprocess.run(
        [docker, "context", "inspect", "--format", "{{.Endpoints.docker.Host}}", chosen],
        capture_output=True,
        text=True,
        check=False,
    )
    return shown.stdout.strip() or None


def usable(path: Path) -> Engine:
    """Return the engine behind a socket if the local AWS can work with it.

    Raises: UnreachableError when none answers; ProblemError when it is one whose containers cannot be reached.
    """
    about = info(path)
    if any("name=rootless" in option for option in about.get("SecurityOptions") or []):
        raise ProblemError(
            f"The Docker engine at {path} runs rootless, and no program of this machine can reach the addresses of its "
            'containers (Docker documentation, "Rootless mode: Known limitations"): point DOCKER_HOST at an engine '
            "that runs as root."
        )
    return Engine(f"unix://{path}", str(about.get("ServerVersion", "")), Path(about.get("DockerRootDir", "/")))


def find(default: Path) -> Engine:
    """Return the engine that the user chose (DOCKER_HOST, Docker context), else the one at the default socket.

    Raises: UnreachableError for the default socket; ProblemError when the user's choice does not work.
    """
    for source, host in (("DOCKER_HOST", os.environ.get("DOCKER_HOST")), ("the Docker context in use", context_host())):
        if not host:
            continue
        if not host.startswith("unix://"):
            raise ProblemError(
                f"{source} names the engine {host}, which may be on another machine, and the demo and the tests talk "
                "to their containers' own addresses: choose an engine of this machine (a unix:// address)."
            )
        try:
            return usable(Path(host.removeprefix("unix://")))
        except UnreachableError as error:
            raise ProblemError(
                f"No Docker engine answers at {error.path}, which {source} names ({error}): start that engine, or "
                "choose another."
            ) from error
    return usable(default)


def explain(error: UnreachableError) -> ProblemError:
    """Return the sentence for a user who is not root and whom no engine answers: what is missing and how to get it."""
    if error.cause == "denied":
        user = getpass.getuser()
        return ProblemError(
            f"Docker does not answer at {error.path}: permission denied: add yourself to the group docker "
            f"(sudo usermod -aG docker {user}), then log in again."
        )
    if error.cause == "silent":
        return ProblemError(f"Docker does not answer at {error.path}: {error}: see `sudo systemctl status docker`.")
    if which("dockerd") is None:
        return ProblemError(
            "Docker is not installed, and installing it needs root: sudo apt-get install docker.io (other systems: see "
            "Docker's documentation), then sudo usermod -aG docker $USER and log in again."
        )
    return ProblemError(
        f"Docker is installed but does not run ({error.path}: {error}), and starting it needs root: "
        "sudo systemctl start docker"
    )


def runs_as(pid: int, program: str) -> bool:
    """Tell whether a process is there and is the program that its pid file is for."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip() == program
    except OSError:
        return False


def clear_stale_pid_files(run: Path) -> None:
    """Remove what a killed engine left under `run` (default /run).

    The daemons judge a pid file by whether some process has that number, so a number that another program has got since
    keeps dockerd from starting, and makes it wait for a containerd that is not there.
    """
    for file, program in ((run / "docker.pid", "dockerd"), (run / "docker/containerd/containerd.pid", "containerd")):
        with contextlib.suppress(OSError, ValueError):
            if not runs_as(int(file.read_text()), program):
                file.unlink()


def start(default: Path) -> None:
    """Start the engine of this machine and wait until it answers; one that is already starting is waited for.

    Raises: ProblemError when it does not answer in time, with the end of its log.
    """
    say("    starting the Docker engine")
    log = state_dir() / "dockerd.log"
    if Path("/run/systemd/system").is_dir():
        run_quietly(["systemctl", "start", "docker"], "start Docker with systemd")
        look = "`journalctl -u docker` says why"
        process = None
    else:
        clear_stale_pid_files(default.parent)
        command = [which("dockerd") or "dockerd"]
        if default != SOCKET:
            command += ["--host", f"unix://{default}"]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, cwd="/"
            )
        (state_dir() / "dockerd.pid").write_text(f"{process.pid}\n")
        look = f"its log is {log}"
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            info(default)
            return
        except UnreachableError as error:
            # A second dockerd ends at once when another one is still starting: that one is waited for all the same.
            ended = process is not None and process.poll() is not None and not dockerd_runs(default.parent)
            if ended or time.monotonic() > deadline:
                tail = (
                    "".join(f"\n    {line}" for line in log.read_text(errors="replace").splitlines()[-8:])
                    if process
                    else ""
                )
                how = "ended at once" if ended else f"did not answer at {default} within {START_SECONDS} s ({error})"
                raise ProblemError(f"The Docker engine was started and {how}; {look}:{tail}") from error
        time.sleep(0.2)


def dockerd_runs(run: Path) -> bool:
    """Tell whether a dockerd lives, by its pid file under `run`."""
    try:
        return runs_as(int((run / "docker.pid").read_text()), "dockerd")
    except (OSError, ValueError):
        return False


def install_and_start(default: Path) -> Engine:
    """Return the engine of this machine after seeing to it, as root, that it is installed and runs.

    Raises: ProblemError when that cannot be done.
    """
    # Another process may have done it while this one waited for its turn.
    with contextlib.suppress(UnreachableError):
        return usable(default)
    if which("dockerd") is None:
        if not apt.available():
            raise ProblemError(
                "Docker is not installed, and this system has no apt-get to install it with: see Docker's "
                "documentation for this system."
            )
        # iptables is only recommended by docker.io, and without it dockerd has no networks.
        apt.install(["docker.io", "iptables"])
    start(default)
    return usable(default)


def ensure(default: Path = SOCKET) -> Engine:
    """Return an engine that answers, and has room for the demo's containers; as root install and start one if need be.

    Raises: ProblemError, one sentence that says what is missing and how to get it.
    """
    if sys.platform != "linux":
        raise ProblemError("The demo and the tests need Linux: they boot systemd hosts and talk to their addresses.")
    try:
        engine = find(default)
    except UnreachableError as error:
        rootless = Path(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent")) / "docker.sock"
        if rootless.is_socket():
            with contextlib.suppress(UnreachableError):
                usable(rootless)
        if os.geteuid() != 0:
            raise explain(error) from error
        with exclusive("engine"):
            engine = install_and_start(default)
    require_space(engine.root, SPACE, "The containers of the local AWS")
    return engine


def main() -> None:
    """Find or start the engine, and print its address and version."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--socket", type=Path, default=SOCKET, help=f"where this machine's engine listens ({SOCKET})")
    try:
        engine = ensure(parser.parse_args().socket)
    except ProblemError as problem:
        fail(problem)
    say(f"Docker {engine.version} at {engine.host}")


if __name__ == "__main__":
    main()
