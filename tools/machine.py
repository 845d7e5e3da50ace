"""Bring the machine to where the demo and the tests can start, its slow parts at once. Standard library only."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable

from tools import apt, engine, environment
from tools.console import ProblemError, Times, which

# program -> Debian package
NEEDED = {"ssh": "openssh-client", "ssh-keyscan": "openssh-client", "ssh-keygen": "openssh-client"}
# Only root can use it: the local AWS makes its host image with it where none can be pulled.
NEEDED_AS_ROOT = {"debootstrap": "debootstrap"}


def ensure_programs() -> None:
    """Install what is missing, as root on Debian or Ubuntu.

    Raises: ProblemError that names what is missing, where it cannot be installed from here.
    """
    wanted = {**NEEDED, **(NEEDED_AS_ROOT if apt.available() else {})}
    missing = [program for program in wanted if which(program) is None]
    if not missing:
        return
    packages = sorted({wanted[program] for program in missing})
    if apt.available():
        apt.install(packages)
        return
    raise ProblemError(
        f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing: "
        f"{'' if os.geteuid() == 0 else 'sudo '}apt-get install {' '.join(packages)} (or this system's package of it)"
    )


def ensure(times: Times, docker: bool = True) -> dict[str, str]:
    """Return the environment for programs of `.venv`, once that and (if asked for) Docker are there.

    Raises: ProblemError, one sentence that says what is missing and how to get it.
    """
    env: dict[str, str] = {}

    def timed(name: str, action: Callable[[], None]) -> None:
        with times.step(name):
            action()

    def find_docker() -> None:
        ensure_programs()
        env["DOCKER_HOST"] = engine.ensure().host

    if docker and os.geteuid() != 0:
        # Nothing can be installed, so there is no time to gain: say first what is missing.
        timed("Docker", find_docker)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        futures = [pool.submit(timed, "Python packages", environment.ensure)]
        if docker and not env:
            futures.append(pool.submit(timed, "Docker", find_docker))
        for future in futures:
            future.result()
    return environment.child_env() | env
