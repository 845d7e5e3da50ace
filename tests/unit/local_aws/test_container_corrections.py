"""The corrections of ECR, ECS and scaling, asked for twice as in test_corrections.py: without and with each."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from corrected_moto import use

from local_aws.corrections import ecr_images, ecs_account_settings, ecs_clusters, ecs_scaling, fargate_tasks

pytestmark = pytest.mark.usefixtures("account")

ROLE = "arn:aws:iam::123456789012:role/execution"
MANIFEST = json.dumps({"config": {"size": 7}, "layers": [{"digest": "sha256:1", "size": 30}, {"size": 12}]})
TYPE = "application/vnd.docker.distribution.manifest.v2+json"


def message_of(call: Any, **arguments: Any) -> str:
    """What a call is refused with, or nothing."""
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Message"])
    return ""


def test_an_images_digest_and_size_are_its_manifests(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecr_images, corrected, monkeypatch)
    ecr = boto3.client("ecr")
    ecr.create_repository(repositoryName="app")
    content = MANIFEST.replace('{"size": 12}', '{"digest": "sha256:2", "size": 12}')
    ecr.put_image(repositoryName="app", imageManifest=content, imageTag="1", imageManifestMediaType=TYPE)
    image = ecr.describe_images(repositoryName="app")["imageDetails"][0]
    assert (image["imageDigest"] == "sha256:" + hashlib.sha256(content.encode()).hexdigest()) == corrected
    assert image["imageSizeInBytes"] == (42 if corrected else 7)


def test_a_scan_invents_no_finding(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecr_images, corrected, monkeypatch)
    ecr = boto3.client("ecr")
    ecr.create_repository(repositoryName="app")
    content = MANIFEST.replace('{"size": 12}', '{"digest": "sha256:2", "size": 12}')
    ecr.put_image(repositoryName="app", imageManifest=content, imageTag="1", imageManifestMediaType=TYPE)
    ecr.start_image_scan(repositoryName="app", imageId={"imageTag": "1"})
    found = ecr.describe_image_scan_findings(repositoryName="app", imageId={"imageTag": "1"})
    assert found["imageScanStatus"]["status"] == "COMPLETE"
    assert (found["imageScanFindings"]["findings"] == []) == corrected


def test_a_cluster_tells_that_it_has_no_provider(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecs_clusters, corrected, monkeypatch)
    ecs = boto3.client("ecs")
    ecs.create_cluster(clusterName="c")
    found = ecs.describe_clusters(clusters=["c"])["clusters"][0]
    assert ("capacityProviders" in found) == corrected
    assert ("defaultCapacityProviderStrategy" in found) == corrected


def test_a_cluster_is_not_made_twice(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecs_clusters, corrected, monkeypatch)
    ecs = boto3.client("ecs")
    ecs.create_cluster(clusterName="c", capacityProviders=["FARGATE"])
    ecs.create_cluster(clusterName="c")
    found = ecs.describe_clusters(clusters=["c"])["clusters"][0]
    assert (found.get("capacityProviders") == ["FARGATE"]) == corrected


def test_the_settings_in_force_are_told(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecs_account_settings, corrected, monkeypatch)
    ecs = boto3.client("ecs")

    def told(**arguments: Any) -> list[str]:
        return [
            setting["value"] for setting in ecs.list_account_settings(name="taskLongArnFormat", **arguments)["settings"]
        ]

    assert told(effectiveSettings=True) == (["enabled"] if corrected else [])
    assert told() == []
    ecs.put_account_setting(name="taskLongArnFormat", value="disabled")
    assert told(effectiveSettings=True) == ["disabled"]


def definition(**changes: Any) -> dict[str, Any]:
    return {
        "family": "app",
        "requiresCompatibilities": ["FARGATE"],
        "networkMode": "awsvpc",
        "cpu": "256",
        "memory": "512",
        "executionRoleArn": ROLE,
        "containerDefinitions": [{"name": "app", "image": "debian"}],
        **changes,
    }


ECR_IMAGE = [{"name": "app", "image": "127.0.0.1:5000/app:1"}]
LOGGED = [{"name": "app", "image": "debian", "logConfiguration": {"logDriver": "awslogs"}}]
SECRET = [{"name": "app", "image": "debian", "secrets": [{"name": "A", "valueFrom": "/a"}]}]


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"cpu": "300"}, "No Fargate configuration exists for given values: 300 CPU, 512 memory"),
        ({"memory": "4096"}, "No Fargate configuration exists for given values: 256 CPU, 4096 memory"),
        ({"networkMode": "bridge"}, "Fargate only supports network mode"),
        ({"executionRoleArn": "", "containerDefinitions": ECR_IMAGE}, "execution role ARN to support ECR images"),
        ({"executionRoleArn": "", "containerDefinitions": LOGGED}, "execution role ARN to support log driver awslogs"),
        ({"executionRoleArn": "", "containerDefinitions": SECRET}, "you must also specify a value for"),
    ],
)
def test_fargate_refuses_what_it_cannot_run(
    changes: dict[str, Any], refused: str, corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(fargate_tasks, corrected, monkeypatch)
    said = message_of(boto3.client("ecs").register_task_definition, **definition(**changes))
    assert (refused in said) == corrected
    assert bool(said) == corrected


@pytest.mark.parametrize("size", [("256", "512"), (".5 vCPU", "1 GB"), ("1024", "2048"), ("16384", "122880")])
def test_fargate_takes_its_sizes(size: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    fargate_tasks.apply(monkeypatch)
    made = boto3.client("ecs").register_task_definition(**definition(cpu=size[0], memory=size[1]))["taskDefinition"]
    assert int(made["memory"]) in fargate_tasks.SIZES[int(made["cpu"])]


def scaling_place() -> dict[str, Any]:
    ecs = boto3.client("ecs")
    ecs.create_cluster(clusterName="c")
    ecs.register_task_definition(**definition())
    ecs.create_service(cluster="c", serviceName="s", taskDefinition="app", desiredCount=1, launchType="FARGATE")
    return {
        "ServiceNamespace": "ecs",
        "ResourceId": "service/c/s",
        "ScalableDimension": "ecs:service:DesiredCount",
    }


def test_a_policys_alarms_watch_its_metric(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecs_scaling, corrected, monkeypatch)
    scaling, place = boto3.client("application-autoscaling"), scaling_place()
    scaling.register_scalable_target(**place, MinCapacity=1, MaxCapacity=2)
    metric = {"PredefinedMetricType": "ALBRequestCountPerTarget", "ResourceLabel": "app/lb/1/targetgroup/g/2"}
    tracking: Any = {"TargetValue": 1000.0, "PredefinedMetricSpecification": metric}
    arns = {
        scaling.put_scaling_policy(
            **place,
            PolicyName="requests",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration=tracking,
        )["PolicyARN"]
        for _ in range(2)
    }
    alarms = boto3.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert (len(arns) == 1) == corrected
    assert (len(alarms) == 2) == corrected
    watched = {(alarm["MetricName"], alarm["Threshold"]) for alarm in alarms}
    assert (watched == {("RequestCountPerTarget", 1000.0), ("RequestCountPerTarget", 900.0)}) == corrected


def test_policies_go_with_their_target(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(ecs_scaling, corrected, monkeypatch)
    scaling, place = boto3.client("application-autoscaling"), scaling_place()
    scaling.register_scalable_target(**place, MinCapacity=1, MaxCapacity=2)
    tracking: Any = {
        "TargetValue": 60.0,
        "PredefinedMetricSpecification": {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"},
    }
    scaling.put_scaling_policy(
        **place,
        PolicyName="cpu",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=tracking,
    )
    scaling.deregister_scalable_target(**place)
    left = scaling.describe_scaling_policies(ServiceNamespace="ecs")["ScalingPolicies"]
    alarms = boto3.client("cloudwatch").describe_alarms()["MetricAlarms"]
    assert (left == []) == corrected
    assert (alarms == []) == corrected
