"""What roles/mlflow_server/files/schema.py asks of databases that are not configured yet."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).parents[3] / "roles/mlflow_server/files"


@pytest.fixture
def schema(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FILES))
    monkeypatch.delitem(sys.modules, "schema", raising=False)
    monkeypatch.setenv("PGPASSWORD", "of another configuration")
    return importlib.import_module("schema")


@pytest.mark.parametrize("authority", ["", "the text of a certificate"])
def test_a_probe_takes_everything_from_standard_input(
    schema: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], authority: str
) -> None:
    seen = []

    @contextlib.contextmanager
    def connected(url: str) -> Iterator[str]:
        base, _, root = url.partition("&sslrootcert=")
        seen.append((base, Path(root).read_text() if root else "", os.environ["PGPASSWORD"]))
        yield base

    monkeypatch.setattr(schema, "connected", connected)
    monkeypatch.setattr(schema, "schema_state", lambda connection, store: f"{store} of {connection}")
    admin = {"username": "root", "password": "secret"} if authority else None
    given = {"urls": {"tracking": "a?x", "auth": "b?x"}, "password": "new", "ca": authority, "admin": admin}
    monkeypatch.setattr("os.environ", {name: value for name, value in os.environ.items() if "ADMIN" not in name})
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(given)))
    monkeypatch.setattr("sys.argv", ["schema.py", "probe"])
    monkeypatch.setattr(schema, "admin_state", lambda connection: None)
    assert schema.main() == 0
    assert json.loads(capsys.readouterr().out) == {"tracking": "tracking of a?x", "auth": "auth of b?x"}
    assert seen == [("a?x", authority, "new"), ("b?x", authority, "new")]
    assert os.environ.get("MLFLOW_AUTH_ADMIN_PASSWORD") == (admin["password"] if admin else None)


def test_what_holds_a_session_goes_past_a_pooler_and_the_check_of_each_start_through_it(
    schema: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    logins = tmp_path / "basic_auth.ini"
    logins.write_text("[mlflow]\ndatabase_uri = pooled auth\n")
    for name, value in {
        "_MLFLOW_SERVER_FILE_STORE": "pooled tracking",
        "MLFLOW_AUTH_CONFIG_PATH": str(logins),
    }.items():
        monkeypatch.setenv(name, value)
    pooled = {"tracking": "pooled tracking", "auth": "pooled auth"}
    assert schema.store_urls() == schema.service_urls() == pooled
    for store in pooled:
        monkeypatch.setenv(f"MLFLOW_DIRECT_{store.upper()}_URI", f"direct {store}")
    assert schema.store_urls() == {"tracking": "direct tracking", "auth": "direct auth"}
    asked: list[str] = []

    @contextlib.contextmanager
    def connected(url: str) -> Iterator[str]:
        asked.append(url)
        yield url

    monkeypatch.setattr(schema, "connected", connected)
    monkeypatch.setattr(schema, "schema_state", lambda connection, store: "current")
    monkeypatch.setattr(schema, "admin_state", lambda connection: None)
    schema.check()
    assert asked == list(pooled.values())
