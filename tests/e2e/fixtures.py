"""What every session on the local AWS has: an account, and the client that a data scientist has."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import BIN, ROOT, Account

ZONE = "mlflow-e2e.example.com"


@pytest.fixture(scope="session")
def account(account_directory: Path) -> Iterator[Account]:
    """An empty account with one hosted zone."""
    account = Account(account_directory)
    try:
        account.start(ZONE)
        yield account
    finally:
        account.stop()


@pytest.fixture(scope="session")
def mlflow_python() -> Path:
    """A Python with the stock client of PyPI, kept between sessions, of which two may run at once."""
    environment = ROOT / ".mlflow_aws/test/client-3.17.2"
    python = environment / "bin/python"
    uv = str(BIN / "uv")
    environment.parent.mkdir(parents=True, exist_ok=True)
    with environment.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        subprocess.run(
            [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(environment)], check=True
        )
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), "mlflow==3.17.2"], check=True)
    return python
