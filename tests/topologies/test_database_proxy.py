"""One stack on a host that gets a proxy before its database, and loses it again, in the order of this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from moving import site
from stack import Account, Control, free_cidr
from user import client

STACK = "pooled"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(
        tmp_path_factory.mktemp("pooled"),
        account,
        mlflow_stack=STACK,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged through the proxy."""
    site(control, mlflow_database_proxy=True)
    return client(control, mlflow_python, "log")


def environment(control: Control) -> dict[str, str]:
    """The server's environment on its host, as far as it is no secret."""
    lines = control.on_host("command", "grep -E '^[A-Z_]+(URI|STORE|CLASS)=' /etc/mlflow/mlflow.env").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def proxies(account: Account) -> list[dict[str, Any]]:
    return list(account.client("rds").describe_db_proxies()["DBProxies"])


def test_the_server_works_through_the_proxy(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    (proxy,) = proxies(account)
    rds = account.client("rds")
    (target,) = rds.describe_db_proxy_targets(DBProxyName=proxy["DBProxyName"])["Targets"]
    (group,) = rds.describe_db_proxy_target_groups(DBProxyName=proxy["DBProxyName"])["TargetGroups"]
    assert (target["TargetHealth"]["State"], proxy["RequireTLS"]) == ("AVAILABLE", True)
    assert group["ConnectionPoolConfig"]["MaxConnectionsPercent"] == 68
    said = environment(control)
    assert f"@{proxy['Endpoint']}:5432/mlflow" in said["_MLFLOW_SERVER_FILE_STORE"]
    assert f"@{target['Endpoint']}:5432/mlflow" in said["MLFLOW_DIRECT_TRACKING_URI"]
    assert "NullPool" in said["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"]
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_the_proxy_goes_when_it_is_not_asked_for(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    site(control, mlflow_database_proxy=False)
    assert proxies(account) == []
    roles = [role["RoleName"] for role in account.client("iam").list_roles()["Roles"]]
    secrets = [secret["Name"] for secret in account.client("secretsmanager").list_secrets()["SecretList"]]
    assert f"mlflow-{STACK}-proxy" not in roles
    assert f"mlflow-{STACK}/proxy" not in secrets
    assert "MLFLOW_DIRECT_TRACKING_URI" not in environment(control)
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_a_stack_with_a_proxy_is_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    control.write(mlflow_database_proxy=True)
    control.playbook("playbooks/provision.yml", timeout=1800).succeeded()
    assert len(proxies(account)) == 1
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    assert proxies(account) == []
