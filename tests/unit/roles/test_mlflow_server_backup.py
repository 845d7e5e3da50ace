"""The refusals of roles/mlflow_server/files/backup.py; molecule/upgrade shows what it does to a real PostgreSQL."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FILES = Path(__file__).parents[3] / "roles/mlflow_server/files"
GIB = 2**30


@pytest.fixture
def backup(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The program, on a host that runs no database."""
    monkeypatch.syspath_prepend(str(FILES))
    for name in ("schema", "backup"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("backup")


def clients(root: Path, *versions: int) -> Path:
    for version in versions:
        (root / str(version) / "bin").mkdir(parents=True)
        (root / str(version) / "bin/pg_dump").touch()
    return root


@pytest.mark.parametrize(("server", "chosen"), [(15, 15), (16, 17), (17, 17)])
def test_the_servers_own_client_is_taken_or_else_the_newest(
    backup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: int, chosen: int
) -> None:
    monkeypatch.setattr(backup, "CLIENTS", clients(tmp_path, 15, 17))
    assert backup.client(server) == tmp_path / str(chosen) / "bin"


@pytest.mark.parametrize(("installed", "told"), [([15], "15"), ([], "none")])
def test_an_older_client_than_the_server_is_refused_with_the_remedy(
    backup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: list[int], told: str
) -> None:
    monkeypatch.setattr(backup, "CLIENTS", clients(tmp_path, *installed))
    with pytest.raises(backup.SchemaError, match=rf"newest client here \({told}\).*Install postgresql-client-17"):
        backup.client(17)


@pytest.mark.parametrize(("free", "refused"), [(GIB, True), (3 * GIB, False)])
def test_a_full_disk_is_told_before_anything_is_stopped(
    backup: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, refused: bool
) -> None:
    monkeypatch.setattr(backup, "databases", lambda: {"tracking": "a", "auth": "b"})
    monkeypatch.setattr(backup, "programs", lambda store: tmp_path)
    monkeypatch.setattr(backup, "value", lambda connection, query: GIB)
    monkeypatch.setattr(backup.schema, "connected", contextlib.nullcontext)
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    directory = tmp_path / "not/there/yet"
    if not refused:
        backup.ready(directory)
        return
    with pytest.raises(backup.SchemaError, match=r"may need 2\.00 GiB in .*yet, where 1\.00 are free\. Make room"):
        backup.ready(directory)


@pytest.mark.parametrize(
    ("stderr", "told"),
    [
        ("Traceback\nValueError: old\nsqlalchemy.exc.ProgrammingError: (x) it\n[SQL: y]\n(Background on this", "it"),
        ("psql:<stdin>:3: ERROR:  relation is there\nLINE 1: x\n", "relation is there"),
        ("The schema is newer.\n", "The schema is newer."),
        ("", "it was killed"),
    ],
)
def test_the_cause_is_found_among_a_programs_last_words(backup: Any, stderr: str, told: str) -> None:
    assert backup.cause(stderr).endswith(told)


@pytest.mark.parametrize(
    ("counts", "restored", "expected"),
    [
        ({"tracking": 5, "auth": 7}, [], ["tracking", "auth"]),
        ({"tracking": 4, "auth": 7}, [], None),
        # The upgrade was cut off before it had counted.
        ({}, [], None),
        # A restore was cut off after the first database, whose count is another one since.
        ({"tracking": 4, "auth": 7}, ["tracking"], ["auth"]),
    ],
)
def test_only_what_nobody_has_written_to_since_is_restored(
    backup: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    counts: dict[str, int],
    restored: list[str],
    expected: list[str] | None,
) -> None:
    kept = tmp_path / "20260101T000000Z-before-x"
    kept.mkdir()
    (tmp_path / "pending").symlink_to(kept.name)
    (kept / "manifest.json").write_text(json.dumps({"revisions": {}, "writes": counts, "restored": restored}))
    put_back: list[str] = []
    monkeypatch.setattr(backup, "databases", lambda: {"tracking": "t", "auth": "a"})
    monkeypatch.setattr(backup, "locked", contextlib.nullcontext)
    monkeypatch.setattr(backup, "alone", lambda urls: None)
    monkeypatch.setattr(backup, "writes", {"t": 5, "a": 7}.__getitem__)
    monkeypatch.setattr(backup, "put_back", lambda store, url, path: put_back.append(store))
    if expected is None:
        with pytest.raises(backup.SchemaError, match="would lose that"):
            backup.restore(tmp_path)
        assert put_back == [] and (tmp_path / "pending").is_symlink()
    else:
        assert backup.restore(tmp_path) == {"restored": str(kept)}
        assert put_back == expected and not (tmp_path / "pending").exists()
