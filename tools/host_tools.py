"""See to it that the programs which Ansible and the local AWS call are on this machine. Standard library only."""

from __future__ import annotations

import os

from tools import apt
from tools.console import ProblemError, which

# program -> Debian package
NEEDED = {"ssh": "openssh-client", "ssh-keyscan": "openssh-client", "ssh-keygen": "openssh-client"}
# Only root can use it: the local AWS makes its host image with it where none can be pulled.
NEEDED_AS_ROOT = {"debootstrap": "debootstrap"}


def ensure() -> None:
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
