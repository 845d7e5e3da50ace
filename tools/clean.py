"""Remove what can be made again: the environment, caches and build results. Standard library only."""

from __future__ import annotations

import shutil
import subprocess

from tools.console import ROOT, STATE, VENV, ProblemError, fail, say

NAMES = [".venv", ".ansible", ".mypy_cache", ".pytest_cache", ".ruff_cache", "build", ".mlflow_aws"]


def clean() -> None:
    """Remove it all.

    Raises: ProblemError while a demo runs, whose keys would be lost.
    """
    python = VENV / "bin/python"
    if (STATE / "local_aws").exists() and python.exists():
        status = subprocess.run(
            [python, "-m", "local_aws", "status"], cwd=ROOT, capture_output=True, text=True, check=False
        )
        if '"running": true' in status.stdout:
            raise ProblemError("The demo runs, and its keys are among what would be removed: `make demo-down` first.")
    removed = [name for name in NAMES if (ROOT / name).exists()]
    for name in removed:
        shutil.rmtree(ROOT / name)
    for cache in [path for path in ROOT.rglob("__pycache__") if ".git" not in path.parts]:
        shutil.rmtree(cache, ignore_errors=True)
    say(f"Removed: {', '.join(removed) or 'nothing'}")


def main() -> None:
    """Clean, or say why not."""
    try:
        clean()
    except ProblemError as problem:
        fail(problem)


if __name__ == "__main__":
    main()
