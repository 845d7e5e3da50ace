"""Run the benchmark in the environment that it needs. Standard library only.

Usage: python -m tools.bench [ARGUMENT OF python -m benchmarks ...]
"""

from __future__ import annotations

import subprocess
import sys

from tools import environment, machine
from tools.console import ROOT, ProblemError, Times, fail


def main() -> None:
    """Set up, then measure."""
    try:
        env = machine.ensure(Times())
    except ProblemError as problem:
        fail(problem)
    command = [str(environment.PYTHON), "-m", "benchmarks", *sys.argv[1:]]
    raise SystemExit(subprocess.run(command, cwd=ROOT, env=env, check=False).returncode)


if __name__ == "__main__":
    main()
