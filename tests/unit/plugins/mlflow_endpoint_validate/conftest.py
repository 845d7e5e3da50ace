"""A real MLflow for the whole session, and a proxy in front of it for each test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from mlflow_servers import Authority, FaultyServer, RealServer, Rule, serving


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The certificate authority that the tests trust."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[RealServer]:
    """A real `mlflow server` with TLS and basic-auth."""
    server = RealServer(tmp_path_factory.mktemp("mlflow"), authority)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def proxy(real: RealServer, authority: Authority) -> Iterator[FaultyServer]:
    """A proxy with TLS in front of the real server; nothing of a test may be left in there."""
    with serving(FaultyServer(real, authority.issue())) as server:
        yield server


@pytest.fixture
def serve() -> Iterator[Callable[..., FaultyServer]]:
    """Start servers with nothing behind them."""
    servers = []

    def start(*rules: Rule, certificate: Any = None) -> FaultyServer:
        server = FaultyServer(None, certificate, list(rules))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()
