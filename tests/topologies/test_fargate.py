"""One stack on Fargate, from an empty account to an empty account."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import docker
import psycopg2
import pytest
from moving import PATIENCE, clusters, eventually, load, older_release, site
from stack import Account, Control, free_cidr
from user import client, wine, wine_served

STACK = "tasks"
NAME = f"mlflow-{STACK}"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    directory = tmp_path_factory.mktemp("tasks")
    return Control(
        directory,
        account,
        **older_release(directory),
        mlflow_stack=STACK,
        mlflow_topology="fargate",
        mlflow_deregistration_delay=15,
        mlflow_fargate_cpu=512,
        mlflow_fargate_memory=1024,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged on the older release."""
    control.playbook("site.yml", timeout=1800).succeeded()
    return client(control, mlflow_python, "log")


def service(account: Account) -> dict[str, Any]:
    """What ECS says of the stack's service."""
    (found,) = account.client("ecs").describe_services(cluster=NAME, services=[NAME])["services"]
    return dict(found)


def suspended(account: Account) -> set[bool]:
    """Whether the parts of the autoscaling rest."""
    (target,) = account.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="ecs")[
        "ScalableTargets"
    ]
    return set(target["SuspendedState"].values())


def image_of(account: Account) -> str:
    """The image that the service runs."""
    found = account.client("ecs").describe_task_definition(taskDefinition=service(account)["taskDefinition"])
    return str(found["taskDefinition"]["containerDefinitions"][0]["image"])


def snapshots(account: Account) -> list[str]:
    every = account.client("rds").describe_db_snapshots(SnapshotType="manual")["DBSnapshots"]
    return [snapshot["DBSnapshotIdentifier"] for snapshot in every]


def test_an_upgrade_that_fails_lets_the_older_release_serve(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    """Somebody else keeps a session at the database, so that its schema cannot be changed."""
    control.write(mlflow_server_version="3.17.2", mlflow_server_requirements_file="")
    running = docker.from_env().containers.list()
    (machine,) = (found for found in running if re.search(rf"-db-.*-{NAME}$", str(found.name)))
    (network,) = machine.attrs["NetworkSettings"]["Networks"].values()
    password = control.secrets()["server"]["database_password"]
    session = psycopg2.connect(host=network["IPAddress"], dbname="mlflow", user="mlflow", password=password)
    try:
        refused = control.playbook("playbooks/configure.yml", timeout=1800).refused()
    finally:
        session.close()
    assert "A server still uses the tracking database" in refused.text, refused.output[-6000:]
    assert "The tasks, which were stopped for it, were started again." in refused.text
    (kept,) = snapshots(account)
    assert f"The snapshot {kept} holds the databases as they were" in refused.text
    assert service(account)["desiredCount"] == 2
    assert suspended(account) == {False}
    eventually(lambda: service(account)["runningCount"] == 2)
    assert ":3.16.0-" in image_of(account)
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_an_upgrade_keeps_the_data(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    site(control)
    assert ":3.17.2-" in image_of(account)
    assert suspended(account) == {False}
    assert len(snapshots(account)) == 2
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_tasks_serve(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    wine(control, mlflow_python)
    wine_served(control, mlflow_python)
    ecs = account.client("ecs")
    assert (service(account)["desiredCount"], service(account)["runningCount"]) == (2, 2)
    definition = ecs.describe_task_definition(taskDefinition=service(account)["taskDefinition"])["taskDefinition"]
    (container,) = definition["containerDefinitions"]
    assert container["readonlyRootFilesystem"] is True
    assert container["user"] == "10001:10001"
    given = {secret["name"]: secret["valueFrom"].rpartition(f"secret:{NAME}/")[2] for secret in container["secrets"]}
    assert set(given) == {"PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"}
    assert all(source.startswith("server-") for source in given.values()), given
    values = {value for fields in control.secrets().values() for value in fields.values()}
    assert not values & {variable["value"] for variable in container["environment"]}


def test_deployment_fails_no_request(control: Control, logged: dict[str, str], mlflow_python: Path) -> None:
    control.write(mlflow_server_extra_environment={"MLFLOW_LOGGING_LEVEL": "ERROR"})
    with load(control, mlflow_python) as seen:
        control.playbook("playbooks/configure.yml", timeout=1800).succeeded()
    assert seen.requests > 100
    assert seen.failures == []
    assert seen.longest < PATIENCE


def test_server_that_does_not_start_is_not_deployed(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    before = service(account)["taskDefinition"]
    control.write(mlflow_server_extra_environment={"GUNICORN_CMD_ARGS": "--no-such"})
    refused = control.playbook("playbooks/configure.yml", timeout=1800).refused()
    assert "did not come to be" in refused.text and "--no-such" in refused.text, refused.output[-3000:]
    assert "The former version still serves" in refused.text
    assert service(account)["taskDefinition"] == before
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_tasks_are_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    ecs = account.client("ecs")
    assert clusters(account) == []
    assert ecs.list_task_definitions(status="ACTIVE")["taskDefinitionArns"] == []
    assert account.client("ecr").describe_repositories()["repositories"] == []
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert snapshots(account) == []
    scaling = account.client("application-autoscaling")
    assert scaling.describe_scalable_targets(ServiceNamespace="ecs")["ScalableTargets"] == []
