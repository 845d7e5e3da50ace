"""One stack that outgrows its database's connections and gets a proxy for them, in the order of this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from moving import instances, site
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
        mlflow_deregistration_delay=15,
        mlflow_fargate_cpu=512,
        mlflow_fargate_memory=1024,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged on the host, which connects directly."""
    control.playbook("site.yml", timeout=1800).succeeded()
    return client(control, mlflow_python, "log")


def environment(control: Control) -> dict[str, str]:
    """What a server has in its environment, as far as it is no secret."""
    lines = control.on_host("command", "grep -E '^[A-Z_]+(URI|STORE|CLASS)=' /etc/mlflow/mlflow.env").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def environment_of_tasks(account: Account) -> dict[str, str]:
    """The same of the tasks that the service runs."""
    ecs = account.client("ecs")
    (service,) = ecs.describe_services(cluster=f"mlflow-{STACK}", services=[f"mlflow-{STACK}"])["services"]
    task = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
    (container,) = task["containerDefinitions"]
    return {variable["name"]: variable["value"] for variable in container["environment"]}


def proxies(account: Account) -> list[dict[str, Any]]:
    return list(account.client("rds").describe_db_proxies()["DBProxies"])


def works(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> dict[str, Any]:
    """Expect one proxy, open to all that the database has left, through which old data is read; return it."""
    rds = account.client("rds")
    (proxy,) = proxies(account)
    (target,) = rds.describe_db_proxy_targets(DBProxyName=proxy["DBProxyName"])["Targets"]
    (group,) = rds.describe_db_proxy_target_groups(DBProxyName=proxy["DBProxyName"])["TargetGroups"]
    assert (target["TargetHealth"]["State"], proxy["RequireTLS"]) == ("AVAILABLE", True)
    assert group["ConnectionPoolConfig"]["MaxConnectionsPercent"] == 68
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    return {**proxy, "behind": target["Endpoint"]}


def test_more_hosts_than_the_database_has_connections_for_take_a_proxy(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    control.write(mlflow_topology="fleet", mlflow_fleet_size=3)
    refused = control.playbook("site.yml").refused()
    assert "3 hosts need 12 connections each" in refused.text
    assert "or mlflow_database_proxy: true" in refused.text
    site(control, mlflow_database_proxy=True)
    proxy = works(control, account, logged, mlflow_python)
    assert len(instances(account, STACK)) == 3
    said = environment(control)
    assert f"@{proxy['Endpoint']}:5432/mlflow" in said["_MLFLOW_SERVER_FILE_STORE"]
    assert f"@{proxy['behind']}:5432/mlflow" in said["MLFLOW_DIRECT_TRACKING_URI"]
    assert "NullPool" in said["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"]


def test_a_proxy_that_the_fleet_needs_is_kept(control: Control, account: Account, logged: dict[str, str]) -> None:
    control.write(mlflow_database_proxy=False)
    assert "3 hosts need 12 connections each" in control.playbook("site.yml").refused().text
    assert len(proxies(account)) == 1


def test_tasks_work_through_the_proxy(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    site(control, mlflow_topology="fargate", mlflow_database_proxy=True)
    proxy = works(control, account, logged, mlflow_python)
    assert instances(account, STACK) == []
    said = environment_of_tasks(account)
    assert f"@{proxy['Endpoint']}:5432/mlflow" in said["_MLFLOW_SERVER_FILE_STORE"]
    assert f"@{proxy['behind']}:5432/mlflow" in said["MLFLOW_DIRECT_TRACKING_URI"]


def test_the_proxy_goes_when_it_is_not_asked_for(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    site(control, mlflow_database_proxy=False)
    assert proxies(account) == []
    roles = [role["RoleName"] for role in account.client("iam").list_roles()["Roles"]]
    secrets = [secret["Name"] for secret in account.client("secretsmanager").list_secrets()["SecretList"]]
    assert f"mlflow-{STACK}-proxy" not in roles
    assert f"mlflow-{STACK}/proxy" not in secrets
    assert "MLFLOW_DIRECT_TRACKING_URI" not in environment_of_tasks(account)
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_a_stack_with_a_proxy_is_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    control.write(mlflow_database_proxy=True)
    control.playbook("playbooks/provision.yml", timeout=1800).succeeded()
    assert len(proxies(account)) == 1
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    assert proxies(account) == []
