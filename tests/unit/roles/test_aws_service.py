"""What roles/aws_service asks of ECS: as the API takes it, and with the secrets in the right hands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[3] / "roles/aws_service"
ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mlflow-demo"
BALANCER = "arn:aws:elasticloadbalancing:eu-central-1:123456789012"
INPUTS: dict[str, Any] = {
    "aws_service_stack": "demo",
    "aws_service_region": "eu-central-1",
    "aws_service_image": "registry/mlflow-demo:1",
    "aws_service_container": {
        "environment": {"MODE": "a b"},
        "secrets": {
            "KEY": "server.secret_key",
            "PASSWORD": "mlflow-demo/server.database_password",
        },
        "setup": {"environment": {"LOGIN": "root"}, "secrets": {"MASTER": "database.master_password"}},
        "port": 8443,
    },
    "aws_service_subnet_ids": ["subnet-1", "subnet-2"],
    "aws_service_security_group_ids": ["sg-1"],
    "aws_service_target_group_arn": f"{BALANCER}:targetgroup/mlflow-demo-ecs/2",
    "aws_service_balancer_arn": f"{BALANCER}:loadbalancer/app/mlflow-demo/1",
    "aws_service_task_role_arn": "arn:aws:iam::123456789012:role/task",
    "aws_service_execution_role_arn": "arn:aws:iam::123456789012:role/execution",
    "aws_service_setup_role_arn": "arn:aws:iam::123456789012:role/setup",
    "__aws_service_secret_arns": {
        "mlflow-demo/server": f"{ARN}/server-AbCdEf",
        "mlflow-demo/database": f"{ARN}/database-GhIjKl",
    },
    "__aws_service_found": {"resource": {}},
    "__aws_service_defined": {
        "resource": {"taskDefinitionArn": "arn:aws:ecs:eu-central-1:123456789012:task-definition/a:1"}
    },
}
API = botocore.session.get_session()


def _tasks(file: str) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = yaml.safe_load((ROLE / "tasks" / file).read_text(encoding="utf-8"))
    return tasks


def _trusted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _trusted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_trusted(item) for item in value]
    return trust_as_template(value) if isinstance(value, str) else value


def asked(file: str, kind: str, **inputs: Any) -> dict[str, Any]:
    """The arguments that ecs_resource gets for this kind, with the role's own defaults and variables."""
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for path in ("defaults/main.yml", "vars/main.yml"):
        variables |= loader.load_from_file(str(ROLE / path), cache="none", trusted_as_template=True)
    every = [inner for task in _tasks(file) for inner in task.get("block", [task])]
    (task,) = (task for task in every if task.get("mlops.mlflow_aws.ecs_resource", {}).get("kind") == kind)
    variables |= INPUTS | inputs | _trusted(task.get("vars", {}))
    templated = Templar(loader=loader, variables=variables).template(_trusted(task["mlops.mlflow_aws.ecs_resource"]))
    arguments: dict[str, Any] = templated
    return arguments


def shape(service: str, operation: str) -> Any:
    return API.get_service_model(service).operation_model(operation).input_shape


def complaints(service: str, operation: str, arguments: dict[str, Any]) -> str:
    """What botocore finds wrong with a request."""
    validator: Any = botocore.validate.ParamValidator()
    return str(validator.validate(arguments, shape(service, operation)).generate_report())


def container(file: str, **inputs: Any) -> dict[str, Any]:
    (found,) = asked(file, "task_definition", **inputs)["definition"]["containerDefinitions"]
    definition: dict[str, Any] = found
    return definition


@pytest.mark.parametrize("strings", [False, True], ids=["numbers", "texts"])
@pytest.mark.parametrize("file", ["present.yml", "setup.yml"])
def test_the_definitions_are_what_ecs_takes(file: str, strings: bool) -> None:
    sizes = {"cpu": 512, "memory": 1024, "stop_timeout": 60}
    inputs = {f"aws_service_{name}": str(value) if strings else value for name, value in sizes.items()}
    asked_for = asked(file, "task_definition", **inputs)
    assert complaints("ecs", "RegisterTaskDefinition", {"family": asked_for["name"], **asked_for["definition"]}) == ""
    assert asked_for["definition"]["requiresCompatibilities"] == ["FARGATE"]
    assert asked_for["tags"] == {"mlflow:stack": "demo"}


def test_the_service_is_what_ecs_takes() -> None:
    asked_for = asked("present.yml", "service", aws_service_desired_tasks="3", aws_service_health_grace="60")
    request = {"serviceName": asked_for["name"], **asked_for["definition"], **asked_for["initial"]}
    assert complaints("ecs", "CreateService", request) == ""
    assert asked_for["initial"] == {"desiredCount": 3}
    assert "desiredCount" not in asked_for["definition"]
    assert asked_for["definition"]["deploymentConfiguration"] == {
        "minimumHealthyPercent": 100,
        "maximumPercent": 150,
        "deploymentCircuitBreaker": {"enable": True, "rollback": True},
    }
    # What ECS cannot change would end every later run.
    assert set(asked_for["definition"]) <= set(shape("ecs", "UpdateService").members)


@pytest.mark.parametrize(
    ("there", "stopped", "asked_for"),
    [
        pytest.param(2, None, None, id="as many as the least"),
        pytest.param(5, None, None, id="as many as autoscaling wants"),
        pytest.param(0, None, 2, id="stopped by a run that was cut off"),
        pytest.param(0, 5, 5, id="stopped by this run"),
        pytest.param(0, 1, 2, id="fewer than the least now"),
    ],
)
def test_a_service_that_was_stopped_gets_its_tasks_back(there: int, stopped: int | None, asked_for: int | None) -> None:
    known = {} if stopped is None else {"__aws_service_stopped_tasks": stopped}
    found = {"resource": {"desiredCount": there}}
    definition = asked("present.yml", "service", __aws_service_found=found, **known)["definition"]
    assert definition.get("desiredCount") == asked_for


@pytest.mark.parametrize("file", ["stop.yml", "start.yml"])
def test_autoscaling_rests_while_no_task_may_run(file: str) -> None:
    state = asked(file, "scalable_target")["definition"]["SuspendedState"]
    assert set(state) == set(
        shape("application-autoscaling", "RegisterScalableTarget").members["SuspendedState"].members
    )
    assert set(state.values()) == {file == "stop.yml"}


def test_autoscaling_is_what_its_api_takes() -> None:
    definition = asked("present.yml", "scalable_target", aws_service_target_cpu="50")["definition"]
    policies = definition.pop("policies")
    where = {"ServiceNamespace": "ecs", "ResourceId": "a", "ScalableDimension": "ecs:service:DesiredCount"}
    assert complaints("application-autoscaling", "RegisterScalableTarget", {**where, **definition}) == ""
    for name, tracking in policies.items():
        request = {**where, "PolicyName": name, "TargetTrackingScalingPolicyConfiguration": tracking}
        assert complaints("application-autoscaling", "PutScalingPolicy", request) == ""
    assert policies["cpu"]["TargetValue"] == 50.0
    metric = policies["requests"]["PredefinedMetricSpecification"]
    assert metric["ResourceLabel"] == "app/mlflow-demo/1/targetgroup/mlflow-demo-ecs/2"


@pytest.mark.parametrize(
    ("key", "wanted"), [("", {"encryptionType": "AES256"}), ("arn", {"encryptionType": "KMS", "kmsKey": "arn"})]
)
def test_the_repository_is_what_ecr_takes(key: str, wanted: dict[str, str]) -> None:
    asked_for = asked("registry.yml", "repository", aws_service_kms_key_arn=key)
    request = {"repositoryName": asked_for["name"], **asked_for["definition"]}
    assert complaints("ecr", "CreateRepository", request) == ""
    assert (request["imageTagMutability"], request["encryptionConfiguration"]) == ("IMMUTABLE", wanted)


def test_what_runs_is_kept_before_anything_is_removed() -> None:
    definition = asked("retention.yml", "repository", aws_service_image="registry:5000/mlflow-demo:3.4.0-ab")[
        "definition"
    ]
    first, second = sorted(definition["lifecyclePolicy"]["rules"], key=lambda rule: int(rule["rulePriority"]))
    assert first["selection"]["tagPatternList"] == ["3.4.0-ab"]
    assert (second["selection"]["tagStatus"], second["selection"]["countNumber"]) == ("any", 10)


def secrets(file: str) -> dict[str, str]:
    return {secret["name"]: secret["valueFrom"] for secret in container(file)["secrets"]}


def test_secrets_are_named_by_arn_and_field() -> None:
    own = {"KEY": f"{ARN}/server-AbCdEf:secret_key::", "PASSWORD": f"{ARN}/server-AbCdEf:database_password::"}
    assert secrets("present.yml") == own
    assert secrets("setup.yml") == {**own, "MASTER": f"{ARN}/database-GhIjKl:master_password::"}


@pytest.mark.parametrize("file", ["present.yml", "setup.yml"])
def test_a_container_may_little(file: str) -> None:
    definition = container(file)
    assert (definition["user"], definition["readonlyRootFilesystem"]) == ("10001:10001", True)
    assert definition["linuxParameters"] == {"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}}
    assert [mount["containerPath"] for mount in definition["mountPoints"]] == ["/tmp"]


def test_the_setup_is_told_more_than_the_program() -> None:
    mode = {"name": "MODE", "value": "a b"}
    assert container("present.yml")["environment"] == [mode]
    assert container("setup.yml")["environment"] == [mode, {"name": "LOGIN", "value": "root"}]


def test_the_program_gets_no_login_of_the_database_even_if_it_is_asked_for() -> None:
    given = INPUTS["aws_service_container"]
    asked_for = container("present.yml", aws_service_container={**given, "secrets": given["setup"]["secrets"]})
    assert asked_for["secrets"] == []


def test_the_program_and_the_setup_have_roles_of_their_own() -> None:
    serving = asked("present.yml", "task_definition")["definition"]
    preparing = asked("setup.yml", "task_definition")["definition"]
    assert (serving["taskRoleArn"][-4:], serving["executionRoleArn"][-9:]) == ("task", "execution")
    assert "taskRoleArn" not in preparing
    assert preparing["executionRoleArn"].endswith("setup")


@pytest.mark.parametrize(
    ("spot", "strategy"),
    [(False, {"FARGATE": (0, 1)}), ("true", {"FARGATE": (1, 0), "FARGATE_SPOT": (0, 1)})],
)
def test_on_spot_one_task_stays_on_demand(spot: Any, strategy: dict[str, tuple[int, int]]) -> None:
    asked_for = asked("present.yml", "service", aws_service_spot=spot)["definition"]["capacityProviderStrategy"]
    assert {item["capacityProvider"]: (item["base"], item["weight"]) for item in asked_for} == strategy


@pytest.mark.parametrize(("fewest", "percent"), [(1, 200), ("1", 200), (2, 150), (5, 150)])
def test_a_deployment_has_room_for_one_more_task(fewest: Any, percent: int) -> None:
    asked_for = asked("present.yml", "service", aws_service_min_tasks=fewest)["definition"]
    assert asked_for["deploymentConfiguration"]["maximumPercent"] == percent


@pytest.mark.parametrize(("architecture", "name"), [("x86_64", "X86_64"), ("arm64", "ARM64")])
def test_the_architecture_is_that_of_the_image(architecture: str, name: str) -> None:
    asked_for = asked("present.yml", "task_definition", aws_service_architecture=architecture)["definition"]
    assert asked_for["runtimePlatform"]["cpuArchitecture"] == name


def test_every_action_that_the_readme_asks_for_exists() -> None:
    text = (ROLE / "README.md").read_text(encoding="utf-8")
    section = text.split("## IAM permissions")[1].split("## ")[0]
    known = {
        f"{prefix}:{operation}"
        for prefix, service in {
            "ecs": "ecs",
            "ecr": "ecr",
            "application-autoscaling": "application-autoscaling",
        }.items()
        for operation in API.get_service_model(service).operation_names
    }
    actions = set(re.findall(r"\b(?:ecs|ecr|application-autoscaling):[A-Za-z]+", section))
    assert len(actions) > 30
    assert actions <= known


# -- what wait.yml makes of a deployment -------------------------------------------------------------------------------

NEW, OLD = "arn:aws:ecs:x:1:task-definition/mlflow-demo:2", "arn:aws:ecs:x:1:task-definition/mlflow-demo:1"


def deployment(definition: str, state: str, status: str = "PRIMARY", running: int = 2) -> dict[str, Any]:
    reason = f"{state} of {definition[-1]}"
    return {
        "taskDefinition": definition,
        "rolloutState": state,
        "rolloutStateReason": reason,
        "status": status,
        "runningCount": running,
    }


def waited(
    template: str, *deployments: dict[str, Any], stopped: list[dict[str, Any]] | None = None, **more: Any
) -> Any:
    """A template of wait.yml, with what ECS says of the service and of its stopped tasks."""
    (block,) = (task for task in _tasks("wait.yml") if "block" in task)
    variables: dict[str, Any] = _trusted(block["vars"] | block["rescue"][-1]["vars"])
    variables |= {
        "aws_service_image": "registry/mlflow-demo:1",
        "aws_service_outputs": {"task_definition": NEW},
        "__aws_service_found": {"resource": {"deployments": list(deployments), "events": more.get("events", [])}},
        "__aws_service_stopped": {"tasks": stopped or []},
    }
    texts = {
        "until": "{{ " + block["block"][0]["until"] + " }}",
        "why": block["rescue"][-1]["ansible.builtin.fail"]["msg"],
    }
    return Templar(loader=DataLoader(), variables=variables).template(trust_as_template(texts[template]))


@pytest.mark.parametrize(
    ("deployments", "ended"),
    [
        ([deployment(NEW, "COMPLETED")], True),
        ([deployment(NEW, "IN_PROGRESS"), deployment(OLD, "COMPLETED", "ACTIVE")], False),
        ([deployment(NEW, "FAILED")], True),
        ([deployment(OLD, "IN_PROGRESS"), deployment(NEW, "FAILED", "ACTIVE")], True),
        ([deployment(OLD, "COMPLETED")], True),
    ],
)
def test_the_wait_ends_when_ecs_has_decided(deployments: list[dict[str, Any]], ended: bool) -> None:
    assert waited("until", *deployments) is ended


def stopped(definition: str = NEW, code: int | None = 3) -> dict[str, Any]:
    return {
        "arn": "a/b/t1",
        "task_definition": definition,
        "reason": "It exited",
        "exit_code": code,
        "log": ["one", "two"],
    }


def test_a_failed_deployment_is_explained() -> None:
    back = [deployment(OLD, "IN_PROGRESS"), deployment(NEW, "FAILED", "ACTIVE", 0)]
    text = waited("why", *back, stopped=[stopped(OLD, 0), stopped()])
    assert "deployment of mlflow-demo:2 (registry/mlflow-demo:1) did not come to be" in text
    assert "ECS says: FAILED of 2\n" in text
    assert "The former version still serves: mlflow-demo:1 with 2 task(s).\n" in text
    assert text.endswith("Task t1 stopped: It exited (exit code 3)\none\ntwo\n")
    assert text.count("stopped:") == 1


def test_what_ecs_has_forgotten_already_is_told_by_its_events() -> None:
    events = [{"message": "reached a steady state."}, {"message": "deployment failed: tasks failed to start."}]
    text = waited("why", deployment(OLD, "COMPLETED"), events=events, stopped=[stopped(code=None)])
    assert "ECS says: deployment failed: tasks failed to start.\n" in text
    assert "(exit code none)" in text


def test_a_first_deployment_that_fails_leaves_nothing() -> None:
    text = waited("why", deployment(NEW, "FAILED", running=0), events=[{"message": "unable to place a task"}])
    assert "There is no former version that serves." in text
    assert "unable to place a task" in text
