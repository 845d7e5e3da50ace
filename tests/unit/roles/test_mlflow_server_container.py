"""tasks/container.yml: how much of a machine and of the database a container takes, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from mlflow_server_role import ROLE, filled

GOOD = {
    "mlflow_server_public_name": "mlflow.example.com",
    "mlflow_server_database_host": "db.example.com",
    "mlflow_server_artifacts_destination": "s3://bucket/prefix",
}
PROBLEMS = (ROLE / "templates/container_problems.j2").read_text(encoding="utf-8")
SIZING = (
    "[{{ __mlflow_server_workers }}, {{ __mlflow_server_pool_size }}, {{ __mlflow_server_max_overflow }},"
    " {{ __mlflow_server_connections_needed }}]"
)


def said(template: str, **inputs: Any) -> Any:
    """Return what a template's text says as JSON, with the variables of the task file."""
    tasks = DataLoader().load_from_file(str(ROLE / "tasks/container.yml"), cache="none", trusted_as_template=True)
    return json.loads(filled(template, **(tasks[0]["vars"] | GOOD | inputs)))


def sizing(cpu: int, memory: int, connections: int) -> tuple[int, int, int, int]:
    """Return workers, pool size, overflow, and the connections that these may hold."""
    inputs = {
        "mlflow_server_container_cpu": cpu,
        "mlflow_server_container_memory": memory,
        "mlflow_server_database_connections": connections,
    }
    assert said(PROBLEMS, **inputs) == []
    values: list[int] = said(SIZING, **inputs)
    return values[0], values[1], values[2], values[3]


@pytest.mark.parametrize(
    ("cpu", "memory", "connections", "workers"),
    [
        (256, 512, 60, 1),
        (1024, 2048, 60, 1),
        (2048, 4096, 60, 2),
        # Not more than the memory carries: 400 MB, and 350 for each.
        (4096, 1400, 200, 2),
        # Nor more than the database does: 3 connections for each of two pools, one for /ready, and 2 for mlflow-gc.
        (4096, 8192, 16, 2),
        (16384, 32768, 1000, 8),
        # The least that the plan of a stack may give to a task.
        (1024, 2048, 8, 1),
    ],
)
def test_workers_and_pools_fit(cpu: int, memory: int, connections: int, workers: int) -> None:
    found, pool, overflow, needed = sizing(cpu, memory, connections)
    assert found == workers
    assert pool >= 1 and overflow >= 1
    assert needed == workers * (2 * (pool + overflow) + 1) + 2 <= connections


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"mlflow_server_job_execution": True}, "mlflow_server_job_execution is true"),
        ({"mlflow_server_container_cpu": 1}, "give at least 256 units"),
        ({"mlflow_server_container_memory": 256}, "1 workers need some 512"),
        ({"mlflow_server_workers": 9}, "9 workers need some 1600"),
        ({"mlflow_server_database_connections": 6}, "mlflow_server_database_connections is 6"),
        ({"mlflow_server_metrics": True}, "nobody could read them"),
        ({"mlflow_server_extra_environment": {"PGPASSWORD": "x"}}, "sets PGPASSWORD"),
        ({"mlflow_server_extra_environment": {"MLFLOW_SERVICE_WORKERS": "9"}}, "sets MLFLOW_SERVICE_WORKERS"),
    ],
)
def test_what_cannot_work_is_refused(inputs: dict[str, Any], words: str) -> None:
    (problem,) = said(PROBLEMS, **({"mlflow_server_container_memory": 1024} | inputs))
    assert words in problem


def test_no_secret_is_among_the_plain_variables() -> None:
    secrets = {"mlflow_server_database_password": "sEcret-1", "mlflow_server_secret_key": "sEcret-2"}
    plain = said("{{ __mlflow_server_container_plain | to_json }}", **secrets, mlflow_server_admin_password="sEcret-3")
    assert "sEcret" not in json.dumps(plain)
    assert not set(plain) & {"PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY", "MLFLOW_AUTH_CONFIG_PATH"}
    assert plain["_MLFLOW_SERVER_FILE_STORE"].startswith("postgresql+psycopg2://mlflow@db.example.com:5432/mlflow?")
    assert "admin_username = admin" in plain["MLFLOW_SERVICE_BASIC_AUTH"]


def test_a_server_behind_a_pooler_keeps_no_connection_and_knows_the_way_past_it() -> None:
    environment = "{{ __mlflow_server_plain_environment | to_json }}"
    direct = said(environment)
    assert not [name for name in direct if name.startswith("MLFLOW_DIRECT_")]
    assert "MLFLOW_SQLALCHEMYSTORE_POOLCLASS" not in direct
    pooled = said(environment, mlflow_server_database_pooler_host="proxy.example.com")
    assert pooled["MLFLOW_DIRECT_TRACKING_URI"] == direct["_MLFLOW_SERVER_FILE_STORE"]
    assert "@proxy.example.com:5432/mlflow?sslmode=verify-full&" in pooled["_MLFLOW_SERVER_FILE_STORE"]
    # SQLAlchemy refuses the sizes of a pool with it.
    sizes = {name for name in pooled if name.startswith("MLFLOW_SQLALCHEMYSTORE_")}
    assert sizes == {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS"}
    assert pooled["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] == "NullPool"
    # RDS Proxy refuses libpq's options.
    assert "options=" not in pooled["_MLFLOW_SERVER_FILE_STORE"]
