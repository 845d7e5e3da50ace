"""One stack on Fargate, from an empty account to an empty account."""

from __future__ import annotations

from pathlib import Path

import pytest
from moving import clusters, load, site
from stack import Account, Control, free_cidr
from user import client, wine, wine_served

STACK = "tasks"
NAME = f"mlflow-{STACK}"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(
        tmp_path_factory.mktemp("tasks"),
        account,
        mlflow_stack=STACK,
        mlflow_topology="fargate",
        mlflow_deregistration_delay=15,
        mlflow_fargate_cpu=512,
        mlflow_fargate_memory=1024,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged."""
    site(control)
    return client(control, mlflow_python, "log")


def test_tasks_serve(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    wine(control, mlflow_python)
    wine_served(control, mlflow_python)
    ecs = account.client("ecs")
    service = ecs.describe_services(cluster=NAME, services=[NAME])["services"][0]
    assert (service["desiredCount"], service["runningCount"]) == (2, 2)
    definition = ecs.describe_task_definition(taskDefinition=service["taskDefinition"])["taskDefinition"]
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


def test_server_that_does_not_start_is_not_deployed(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    ecs = account.client("ecs")
    before = ecs.describe_services(cluster=NAME, services=[NAME])["services"][0]["taskDefinition"]
    control.write(mlflow_server_extra_environment={"GUNICORN_CMD_ARGS": "--no-such"})
    refused = control.playbook("playbooks/configure.yml", timeout=1800).refused()
    assert "did not come to be" in refused.text and "--no-such" in refused.text, refused.output[-3000:]
    assert "The former version still serves" in refused.text
    assert ecs.describe_services(cluster=NAME, services=[NAME])["services"][0]["taskDefinition"] == before
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_tasks_are_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    ecs = account.client("ecs")
    assert clusters(account) == []
    assert ecs.list_task_definitions(status="ACTIVE")["taskDefinitionArns"] == []
    assert account.client("ecr").describe_repositories()["repositories"] == []
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    scaling = account.client("application-autoscaling")
    assert scaling.describe_scalable_targets(ServiceNamespace="ecs")["ScalableTargets"] == []
