"""One AWS account for the whole session, and the client that a data scientist has."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from stack import BIN, Account  # noqa: E402

ZONE = "mlflow-e2e.example.com"


@pytest.fixture(scope="session")
def account() -> Iterator[Account]:
    """An empty account with one hosted zone."""
    account = Account(ROOT / ".mlflow_aws/test/account")
    try:
        account.start(ZONE)
        yield account
    finally:
        account.stop()


@pytest.fixture(scope="session")
def mlflow_python() -> Path:
    """A Python with the stock client of PyPI, kept between sessions."""
    environment = ROOT / ".mlflow_aws/test/client-3.17.2"
    python = environment / "bin/python"
    uv = str(BIN / "uv")
    subprocess.run(
        [uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(environment)], check=True
    )
    subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), "mlflow==3.17.2"], check=True)
    return python
