"""Find a Python that is new enough, then run one of the programs in tools/ with it.

Usage: python3 tools/bootstrap.py PROGRAM [ARGUMENT ...]

Written in syntax that every Python 3 can read: an old one must say what is wrong, not die of a SyntaxError.
"""

import os
import subprocess
import sys

OLDEST = (3, 11)
# Preferred order; the last one is newer than what the tests cover.
NAMES = ("python3.13", "python3.12", "python3.11", "python3.14")
CHECK = "import sys; sys.exit(sys.version_info < (%d, %d))" % OLDEST  # noqa: UP031


def new_enough(path: str) -> bool:
    """Tell whether the program at `path` is a Python that can be used.

    It is run, because a name proves nothing: pyenv puts a `python3.12` on PATH that only says "not selected".
    """
    with open(os.devnull, "w") as nothing:  # noqa: PTH123
        try:
            return subprocess.call([path, "-c", CHECK], stdout=nothing, stderr=nothing) == 0
        except OSError:
            return False


def find_python() -> "str | None":
    """Return the path of a usable Python: this one if it will do, else one from PATH, else None."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for name in NAMES:
        for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
            path = os.path.join(folder, name)  # noqa: PTH118
            if os.path.isfile(path) and new_enough(path):  # noqa: PTH113
                return path
    return None


def main() -> None:
    """Replace this process by the program asked for."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    python = find_python()
    if python is None:
        wanted = ".".join(str(part) for part in OLDEST)
        found = ".".join(str(part) for part in sys.version_info[:3])
        sys.exit(
            "Python "
            + wanted
            + " or newer is needed, "
            + sys.executable
            + " is "
            + found
            + ", and no newer python3.X is on PATH: install one (Debian 12 and Ubuntu 24.04 have it as python3)"
            + " or name one with `make PYTHON=/path/to/python3.12 ...`."
        )
    os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    sys.stdout.flush()
    os.execv(python, [python, "-m", "tools." + sys.argv[1]] + sys.argv[2:])  # noqa: RUF005


if __name__ == "__main__":
    main()
