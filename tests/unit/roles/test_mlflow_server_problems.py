"""problems.j2: good inputs are none of its business, and a bad one is named with what is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow_server_role import rendered

HOST = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "distribution_version": "12",
    "architecture": "x86_64",
    "service_mgr": "systemd",
    "memtotal_mb": 4000,
    "processor_vcpus": 2,
}
GOOD = {
    "mlflow_server_public_name": "mlflow.example.com",
    "mlflow_server_database_host": "db.example.com",
    "mlflow_server_database_password": "0123456789ab",
    "mlflow_server_artifacts_destination": "s3://bucket/prefix",
    "mlflow_server_admin_password": "0123456789ab",
    "mlflow_server_secret_key": "0123456789abcdef",
    "mlflow_server_client_cidrs": ["203.0.113.0/24"],
    "mlflow_server_admin_cidrs": ["203.0.113.0/24"],
}


def problems(host: dict[str, Any] = HOST, **inputs: Any) -> list[str]:
    found: list[str] = json.loads(rendered("problems.j2", ansible_facts=host, **GOOD, **inputs))
    return found


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"mlflow_server_metrics": True, "mlflow_server_metrics_cidrs": ["203.0.113.7/32", "2001:db8::/32"]},
        {"mlflow_server_login_failures_per_minute": 0},
        {"mlflow_server_job_execution": True},
        # Without jobs they are no business of the role's.
        {"mlflow_server_extra_environment": {"MLFLOW_GATEWAY_URI": "https://gateway.example.com"}},
    ],
)
def test_good_inputs(inputs: dict[str, Any]) -> None:
    assert problems(**inputs) == []


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ({"mlflow_server_metrics": True}, ("mlflow_server_metrics_cidrs is empty", "203.0.113.7/32")),
        ({"mlflow_server_metrics_cidrs": ["prometheus"]}, ("mlflow_server_metrics_cidrs holds 'prometheus'", "CIDR")),
        ({"mlflow_server_metrics_cidrs": ["203.0.113.7/33"]}, ("'203.0.113.7/33'", "CIDR")),
        ({"mlflow_server_login_failures_per_minute": -1}, ("mlflow_server_login_failures_per_minute is -1", "0")),
        (
            {"mlflow_server_job_execution": True, "mlflow_server_extra_environment": {"MLFLOW_GATEWAY_URI": "x"}},
            ("MLFLOW_GATEWAY_URI", "mlflow_server_job_execution", "leave it out"),
        ),
        (
            {
                "mlflow_server_job_execution": True,
                "mlflow_server_workers": 15,
                "mlflow_server_database_connections": 500,
            },
            ("mlflow_server_workers is 15", "4100 MB"),
        ),
    ],
)
def test_a_bad_input_is_named(inputs: dict[str, Any], parts: tuple[str, ...]) -> None:
    (problem,) = problems(**inputs)
    assert all(part in problem for part in parts)


def test_jobs_need_memory() -> None:
    host = {**HOST, "memtotal_mb": 1900}
    assert problems(host) == []
    (problem,) = problems(host, mlflow_server_job_execution=True)
    assert all(part in problem for part in ("2000 MB", "the host has 1900", "set it to false", "larger host"))
