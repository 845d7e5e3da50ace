"""Install Debian packages where that needs no question: as root, on Debian or Ubuntu. Standard library only."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from tools.console import ProblemError, run_quietly, say, which

_lock = threading.Lock()


def available() -> bool:
    """Tell whether packages can be installed from here."""
    return os.geteuid() == 0 and which("apt-get") is not None


def install(packages: Sequence[str]) -> None:
    """Install packages, waiting for another apt to finish; the lists are fetched when they are missing or too old.

    Raises: ProblemError with the end of apt's output.
    """
    say(f"    apt-get install {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    command = [*apt, "install", "--no-install-recommends", *packages]
    what = f"install the Debian packages {' '.join(packages)}"
    # One apt at a time: the threads of one set-up would otherwise fail on each other's list lock.
    with _lock:
        try:
            run_quietly(command, what, env)
        except ProblemError:
            run_quietly([*apt, "update"], "fetch Debian's package lists", env)
            run_quietly(command, what, env)
