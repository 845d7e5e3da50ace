"""One AWS account for the whole session; not that of tests/e2e, which may run at the same time."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/e2e")]

from fixtures import account, mlflow_python  # noqa: E402

__all__ = ["account", "mlflow_python"]


@pytest.fixture(scope="session")
def account_directory() -> Path:
    """Where the account keeps its state."""
    return ROOT / ".mlflow_aws/test/account-topologies"
