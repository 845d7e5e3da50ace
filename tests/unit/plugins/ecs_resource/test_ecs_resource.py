"""Resources of an ECS service: what counts as a difference, and what is then asked of AWS."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import boto3
import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _ecs_resources as engine
from ansible_collections.mlops.mlflow_aws.plugins.modules import ecs_resource, ecs_resource_info
from botocore.stub import Stubber
from moto import mock_aws

REGION = "eu-central-1"
TAGS = {"mlflow:stack": "demo"}
CONTAINER: dict[str, Any] = {
    "name": "mlflow",
    "image": "registry/mlflow-demo:1",
    "essential": True,
    "command": ["serve", "now"],
    "environment": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
    "portMappings": [{"containerPort": 8443, "protocol": "tcp"}],
}
FAMILY = {
    "cpu": "1024",
    "memory": "2048",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "volumes": [{"name": "tmp"}],
    "containerDefinitions": [CONTAINER],
}


def client(service: str) -> Any:
    make: Any = boto3.client  # boto3's stubs know the clients of installed stubs only
    return make(service, region_name=REGION)


def _run(module: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    printed = io.StringIO()
    with patch_module_args(arguments), redirect_stdout(printed), pytest.raises(SystemExit):
        module.main()
    answer: dict[str, Any] = json.loads(printed.getvalue())
    return answer


def run(kind: str, name: str = "mlflow-demo", **options: Any) -> dict[str, Any]:
    """Runs the module as Ansible does, in this process, and returns what it printed."""
    return _run(ecs_resource, {"kind": kind, "name": name, "region": REGION, "tags": TAGS, **options})


def check(kind: str, **options: Any) -> dict[str, Any]:
    return run(kind, _ansible_check_mode=True, **options)


def read(kind: str, **options: Any) -> dict[str, Any]:
    answer = _run(ecs_resource_info, {"kind": kind, "name": "mlflow-demo", "region": REGION, **options})
    found: dict[str, Any] = answer["resource"]
    return found


@pytest.fixture(autouse=True)
def _account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_URL", "AWS_CA_BUNDLE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setattr(engine, "POLL_SECONDS", 0)
    with mock_aws():
        yield


# -- what differs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "actual"),
    [
        ({"a": 1}, {"a": 1, "status": "ACTIVE"}),
        ({"list": ["a", "b"]}, {"list": ["b", "a"]}),
        ({"list": [{"name": "A"}, {"name": "B"}]}, {"list": [{"name": "B", "more": 1}, {"name": "A"}]}),
        ({"a": None, "b": [], "c": {}, "d": False, "e": "", "f": 0}, {}),
        ({"volumes": [{"name": "tmp"}]}, {"volumes": [{"name": "tmp", "host": {}}]}),
        ({"command": ["a", "b"]}, {"command": ["a", "b"]}),
    ],
)
def test_what_aws_adds_drops_and_reorders_is_no_difference(wanted: dict[str, Any], actual: dict[str, Any]) -> None:
    assert engine.differing(wanted, actual) == []


@pytest.mark.parametrize(
    ("wanted", "actual"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {}),
        ({"a": False}, {"a": True}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 2}}}),
        ({"a": {"b": 1}}, {"a": None}),
        ({"list": ["a"]}, {"list": ["a", "b"]}),
        ({"list": ["a", "a"]}, {"list": ["a", "b"]}),
        ({"list": []}, {"list": ["a"]}),
        ({"list": [{"name": "A", "value": "1"}]}, {"list": [{"name": "A", "value": "2"}]}),
        ({"command": ["a", "b"]}, {"command": ["b", "a"]}),
        ({"x": {"entryPoint": ["a", "b"]}}, {"x": {"entryPoint": ["b", "a"]}}),
    ],
)
def test_a_difference_is_seen(wanted: dict[str, Any], actual: dict[str, Any]) -> None:
    assert engine.differing(wanted, actual) == list(wanted)


# -- each kind lives once: made, kept, changed, removed ----------------------------------------------------------------

CLUSTER = {
    "capacityProviders": ["FARGATE", "FARGATE_SPOT"],
    "settings": [{"name": "containerInsights", "value": "disabled"}],
}


def lifecycle(count: int) -> dict[str, Any]:
    selection = {"tagStatus": "any", "countType": "imageCountMoreThan", "countNumber": count}
    return {"rules": [{"rulePriority": 1, "selection": selection, "action": {"type": "expire"}}]}


REPOSITORY = {
    "imageTagMutability": "IMMUTABLE",
    "imageScanningConfiguration": {"scanOnPush": True},
    "lifecyclePolicy": lifecycle(10),
}
LIVES = [
    ("cluster", CLUSTER, {**CLUSTER, "settings": [{"name": "containerInsights", "value": "enabled"}]}, "settings"),
    ("cluster", CLUSTER, {**CLUSTER, "capacityProviders": ["FARGATE"]}, "capacityProviders"),
    ("task_definition", FAMILY, {**FAMILY, "cpu": "2048"}, "cpu"),
    ("repository", REPOSITORY, {**REPOSITORY, "imageTagMutability": "MUTABLE"}, "imageTagMutability"),
    (
        "repository",
        REPOSITORY,
        {**REPOSITORY, "imageScanningConfiguration": {"scanOnPush": False}},
        "imageScanningConfiguration",
    ),
    ("repository", REPOSITORY, {**REPOSITORY, "lifecyclePolicy": lifecycle(5)}, "lifecyclePolicy"),
]


@pytest.mark.parametrize(
    ("kind", "first", "second", "key"), LIVES, ids=lambda value: value if str(value) == value else ""
)
def test_it_is_made_kept_changed_and_removed(
    kind: str, first: dict[str, Any], second: dict[str, Any], key: str
) -> None:
    assert run(kind, state="absent")["changed"] is False
    assert read(kind) == {}
    assert check(kind, definition=first)["changed"] is True
    assert read(kind) == {}

    made = run(kind, definition=first)
    assert (made["changed"], made["resource"]["tags"]) == (True, TAGS)
    assert read(kind) == made["resource"]
    kept = run(kind, definition=first)
    assert (kept["changed"], kept["differences"], kept["resource"]) == (False, [], made["resource"])

    planned = check(kind, definition=second)
    assert (planned["changed"], planned["differences"]) == (True, [key])
    assert planned["diff"]["after"] == {key: second[key]}
    assert read(kind) == made["resource"]
    changed = run(kind, definition=second)
    assert (changed["changed"], changed["differences"]) == (True, [key])
    assert engine.same(second[key], changed["resource"][key])
    assert changed["resource"]["tags"] == TAGS
    assert run(kind, definition=second)["changed"] is False

    retagged = run(kind, definition=second, tags={"Team": "science"})
    assert (retagged["changed"], retagged["differences"]) == (True, ["tags"])
    assert retagged["resource"]["tags"] == {**TAGS, "Team": "science"}
    assert run(kind, definition=second, tags={"Team": "science"})["changed"] is False

    assert check(kind, state="absent")["changed"] is True
    assert read(kind) != {}
    assert run(kind, state="absent")["changed"] is True
    assert read(kind) == {}
    assert run(kind, state="absent")["changed"] is False


def test_what_ecr_cannot_change_is_said() -> None:
    run("repository", definition={"encryptionConfiguration": {"encryptionType": "AES256"}})
    answer = run("repository", definition={"encryptionConfiguration": {"encryptionType": "KMS", "kmsKey": "x"}})
    assert answer["failed"] and "encryptionConfiguration" in answer["msg"]


MANIFEST = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}


def test_a_repository_tells_the_tags_of_its_images() -> None:
    run("repository")
    for tag in ("2", "1"):
        client("ecr").put_image(
            repositoryName="mlflow-demo", imageManifest=json.dumps({**MANIFEST, "n": tag}), imageTag=tag
        )
    assert read("repository")["imageTags"] == ["1", "2"]


def changed_container(**values: Any) -> dict[str, Any]:
    return {**FAMILY, "containerDefinitions": [{**CONTAINER, **values}]}


@pytest.mark.parametrize(
    "definition",
    [
        changed_container(environment=[{"name": "A", "value": "1"}, {"name": "B", "value": "3"}]),
        changed_container(environment=[{"name": "A", "value": "1"}]),
        changed_container(image="registry/mlflow-demo:2"),
        changed_container(command=["now", "serve"]),
        {**FAMILY, "memory": "4096"},
        {**FAMILY, "executionRoleArn": "arn:aws:iam::123456789012:role/x"},
    ],
)
def test_another_definition_is_another_revision(definition: dict[str, Any]) -> None:
    assert run("task_definition", definition=FAMILY)["resource"]["revision"] == 1
    assert run("task_definition", definition=definition)["resource"]["revision"] == 2
    assert run("task_definition", definition=definition)["changed"] is False


def test_all_revisions_go_and_those_of_others_stay() -> None:
    for number in range(12):
        run("task_definition", definition={**FAMILY, "cpu": str(number)})
    run("task_definition", "mlflow-demo-setup", definition=FAMILY)
    client("ecs").deregister_task_definition(taskDefinition="mlflow-demo:3")
    assert run("task_definition", state="absent")["changed"] is True
    ecs = client("ecs")
    left = [
        arn for state in ("ACTIVE", "INACTIVE") for arn in ecs.list_task_definitions(status=state)["taskDefinitionArns"]
    ]
    assert [arn.rsplit("/", 1)[1] for arn in left] == ["mlflow-demo-setup:1"]


# -- services ----------------------------------------------------------------------------------------------------------

SERVICE = {"taskDefinition": "mlflow-demo:1"}
IN_CLUSTER = {"cluster": "mlflow-demo"}


def test_nothing_is_where_no_cluster_is() -> None:
    for kind in ("service", "scalable_target"):
        assert read(kind, **IN_CLUSTER) == {}
        assert run(kind, state="absent", **IN_CLUSTER)["changed"] is False


def test_a_service_comes_and_goes_with_its_scalable_target() -> None:
    run("cluster", definition=CLUSTER)
    arn = run("task_definition", definition=FAMILY)["resource"]["taskDefinitionArn"]
    service: dict[str, Any] = {
        "definition": {"taskDefinition": arn, "propagateTags": "SERVICE"},
        "initial": {"desiredCount": 2},
    }
    service |= IN_CLUSTER
    made = run("service", **service)
    assert (made["changed"], made["resource"]["desiredCount"], made["resource"]["tags"]) == (True, 2, TAGS)
    client("ecs").update_service(cluster="mlflow-demo", service="mlflow-demo", desiredCount=3)
    assert run("service", **service)["changed"] is False
    assert read("service", **IN_CLUSTER)["desiredCount"] == 3

    target = {"MinCapacity": 2, "MaxCapacity": 4}
    assert run("scalable_target", definition=target, **IN_CLUSTER)["changed"] is True
    assert run("scalable_target", definition=target, **IN_CLUSTER)["changed"] is False
    raised = run("scalable_target", definition={**target, "MaxCapacity": 6}, **IN_CLUSTER)
    assert (raised["differences"], raised["resource"]["MaxCapacity"]) == (["MaxCapacity"], 6)
    metric = {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"}
    for value in (60.0, 70.0):
        policies = {"cpu": {"TargetValue": value, "PredefinedMetricSpecification": metric}}
        tracked = run("scalable_target", definition={**target, "policies": policies}, **IN_CLUSTER)
        assert (tracked["differences"][-1], tracked["resource"]["policies"]) == ("policies", policies)
        assert run("scalable_target", definition={**target, "policies": policies}, **IN_CLUSTER)["changed"] is False
    assert run("scalable_target", state="absent", **IN_CLUSTER)["changed"] is True
    assert run("scalable_target", state="absent", **IN_CLUSTER)["changed"] is False

    assert run("service", state="absent", **IN_CLUSTER)["changed"] is True
    assert run("service", state="absent", **IN_CLUSTER)["changed"] is False
    assert read("service", **IN_CLUSTER) == {}


Stub = Callable[[type[engine.Resource]], tuple[engine.Resource, Stubber]]


@pytest.fixture
def stubbed() -> Stub:
    """A resource whose client says only what the test tells it to, and complains of any other request."""

    def make(kind: type[engine.Resource]) -> tuple[engine.Resource, Stubber]:
        ecs = client(kind.service)
        stubber = Stubber(ecs)
        stubber.activate()
        return kind(lambda _: ecs, "mlflow-demo", "mlflow-demo", timeout=1), stubber

    return make


def described(*states: str) -> dict[str, Any]:
    return {"services": [{"serviceName": "mlflow-demo", "status": state, "tags": []} for state in states]}


def test_only_what_differs_is_updated(stubbed: Stub) -> None:
    service, stub = stubbed(engine.Service)
    wanted = {"taskDefinition": "mlflow-demo:2", "enableExecuteCommand": False}
    where = {"cluster": "mlflow-demo", "service": "mlflow-demo"}
    stub.add_response("update_service", {}, {**where, "taskDefinition": "mlflow-demo:2"})
    service.update(wanted, ["taskDefinition"])
    strategy = [{"capacityProvider": "FARGATE", "weight": 1, "base": 0}]
    stub.add_response("update_service", {}, {**where, "capacityProviderStrategy": strategy, "forceNewDeployment": True})
    service.update({**wanted, "capacityProviderStrategy": strategy}, ["capacityProviderStrategy"])
    stub.assert_no_pending_responses()


def test_what_ecs_cannot_change_of_a_service_is_said(stubbed: Stub) -> None:
    service, _ = stubbed(engine.Service)
    with pytest.raises(engine.EcsResourceError, match="schedulingStrategy"):
        service.update({"schedulingStrategy": "DAEMON"}, ["schedulingStrategy"])


def test_a_service_is_drained_before_it_counts_as_gone(stubbed: Stub) -> None:
    service, stub = stubbed(engine.Service)
    stub.add_response("describe_services", described("ACTIVE"))
    stub.add_response("delete_service", {}, {"cluster": "mlflow-demo", "service": "mlflow-demo", "force": True})
    for state in ("DRAINING", "DRAINING", "INACTIVE"):
        stub.add_response("describe_services", described(state))
    service.delete()
    stub.assert_no_pending_responses()


def test_a_new_service_waits_for_one_that_drains(stubbed: Stub) -> None:
    service, stub = stubbed(engine.Service)
    stub.add_response("describe_services", described("DRAINING"))
    assert service.read() is None
    for state in ("DRAINING", "INACTIVE"):
        stub.add_response("describe_services", described(state))
    stub.add_response("create_service", {})
    service.create(SERVICE, TAGS)
    stub.assert_no_pending_responses()


def test_waiting_ends(stubbed: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    service, stub = stubbed(engine.Service)
    monkeypatch.setattr(engine, "POLL_SECONDS", 2)
    stub.add_response("describe_services", described("DRAINING"))
    stub.add_response("describe_services", described("DRAINING"))
    with pytest.raises(engine.EcsResourceError, match="still draining"):
        service.delete()


def test_a_cluster_waits_for_its_last_task(stubbed: Stub) -> None:
    cluster, stub = stubbed(engine.Cluster)
    stub.add_client_error("delete_cluster", "ClusterContainsTasksException")
    stub.add_response("delete_cluster", {})
    cluster.delete()
    stub.assert_no_pending_responses()


def test_another_refusal_is_not_waited_for(stubbed: Stub) -> None:
    cluster, stub = stubbed(engine.Cluster)
    stub.add_client_error("delete_cluster", "AccessDeniedException")
    with pytest.raises(Exception, match="AccessDeniedException"):
        cluster.delete()


def test_definitions_that_ecs_keeps_are_named(stubbed: Stub) -> None:
    family, stub = stubbed(engine.TaskDefinition)
    arn = f"arn:aws:ecs:{REGION}:123456789012:task-definition/mlflow-demo:1"
    stub.add_response("list_task_definitions", {"taskDefinitionArns": []})
    stub.add_response("list_task_definitions", {"taskDefinitionArns": [arn]})
    stub.add_response("delete_task_definitions", {"failures": [{"arn": arn, "reason": "BUSY"}]})
    with pytest.raises(engine.EcsResourceError, match="mlflow-demo:1: BUSY"):
        family.delete()


def test_a_refusal_of_aws_is_a_failure_that_says_what_was_tried() -> None:
    answer = run("service", definition={"taskDefinition": "nothing:1"}, initial={"desiredCount": 1}, **IN_CLUSTER)
    assert answer["failed"] and answer["msg"].startswith("Failed to bring the service mlflow-demo to the state present")


def test_a_service_is_looked_for_in_a_cluster() -> None:
    assert "cluster" in run("service")["msg"]
