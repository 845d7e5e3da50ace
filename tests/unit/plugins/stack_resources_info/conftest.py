"""An AWS account in memory: no test here reaches a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import botocore.loaders
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from stack_account import empty_account


@pytest.fixture(scope="session", autouse=True)
def _one_loader() -> Iterator[None]:
    """New sessions share what botocore has parsed; else parsing EC2's model alone takes most of the time."""
    loader = botocore.loaders.create_loader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.loaders, "create_loader", lambda *_: loader)
        yield


@pytest.fixture
def account() -> Iterator[str]:
    with empty_account() as region:
        yield region
