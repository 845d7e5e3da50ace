"""ECR, ECS and their autoscaling on the local AWS: needs Docker. One account for the file, in a state of its own."""

from __future__ import annotations

import base64
import contextlib
import io
import ipaddress
import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import docker
import docker.errors
import pytest
from botocore.exceptions import ClientError
from running import ROOT, RunningAccount, eventually, free_cidr, local_aws, variables

from local_aws.engine import File, archive

PLAYBOOK = Path(__file__).with_name("containers.yml")


@dataclass
class Account(RunningAccount):
    """A running account with a repository that nothing was pushed to yet."""

    base: str
    images: set[str] = field(default_factory=set)

    def login(self) -> dict[str, str]:
        token = self.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
        return {"username": user, "password": password}

    def build(self, reference: str, text: str) -> None:
        """An image that differs by a text, and serves it over HTTP on port 8080."""
        lines = [
            f"FROM {self.base}",
            f"RUN printf %s {shlex.quote(text)} >/text",
            "COPY serve /serve",
            "RUN mkdir -m 1777 /scratch",
        ]
        dockerfile = "\n".join([*lines, "STOPSIGNAL SIGTERM", "VOLUME /scratch", "USER 10001", 'CMD ["/serve"]', ""])
        files = [File("Dockerfile", dockerfile.encode()), File("serve", SERVER.encode(), 0o755)]
        built, _log = docker.from_env().images.build(
            fileobj=io.BytesIO(archive(files)), custom_context=True, tag=reference, rm=True, forcerm=True
        )
        self.images.update({reference, str(built.id)})

    def push(self, reference: str, login: dict[str, str] | None = None) -> str:
        """Push an image; returns the error, or nothing."""
        repository, _, tag = reference.rpartition(":")
        lines = docker.from_env().images.push(
            repository, tag=tag, auth_config=login or self.login(), stream=True, decode=True
        )
        return "".join(line.get("error", "") for line in lines)


SERVER = """#!/usr/bin/perl
use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalPort => $ENV{PORT} // 8080, Listen => 16, ReuseAddr => 1) or die "no port: $!";
open my $file, "<", "/text"; my $text = <$file>;
$| = 1; print "listening\\n";
$SIG{TERM} = sub { print "asked to end\\n"; exit 0 };
while (1) {
    my $client = $server->accept or next;
    my $request = <$client>;
    print $client "HTTP/1.0 200 OK\\r\\nContent-Length: " . length($text) . "\\r\\n\\r\\n$text";
    close $client;
}
"""


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    directory = tmp_path_factory.mktemp("containers")
    try:
        local_aws(directory, "start")
        made = Account(directory, variables(directory), json.loads(local_aws(directory, "images"))["host"])
        made.client("ecr").create_repository(
            repositoryName="app",
            imageTagMutability="IMMUTABLE",
            imageScanningConfiguration={"scanOnPush": True},
        )
        yield made
    finally:
        local_aws(directory, "stop")
    for image in made.images:
        with contextlib.suppress(docker.errors.ImageNotFound):
            docker.from_env().images.remove(image, force=True)


def repository(account: Account) -> str:
    found = account.client("ecr").describe_repositories(repositoryNames=["app"])["repositories"][0]
    return str(found["repositoryUri"])


def test_ecr_tells_what_was_pushed(account: Account) -> None:
    ecr, reference = account.client("ecr"), f"{repository(account)}:one"
    with pytest.raises(ClientError, match="ImageNotFoundException"):
        ecr.describe_images(repositoryName="app", imageIds=[{"imageTag": "one"}])
    account.build(reference, "first")
    assert account.push(reference) == ""
    pushed = docker.from_env().images.get(reference).attrs["RepoDigests"]
    told = ecr.describe_images(repositoryName="app")["imageDetails"]
    assert [(image["imageTags"], f"{repository(account)}@{image['imageDigest']}") for image in told] == [
        (["one"], pushed[0])
    ]
    assert told[0]["imageScanStatus"]["status"] == "COMPLETE"
    manifest = json.loads(
        ecr.batch_get_image(repositoryName="app", imageIds=[{"imageTag": "one"}])["images"][0]["imageManifest"]
    )
    assert told[0]["imageSizeInBytes"] == sum(layer["size"] for layer in manifest["layers"])


def test_an_immutable_tag_keeps_its_image(account: Account) -> None:
    reference = f"{repository(account)}:one"
    assert account.push(reference) == ""  # the same image again
    account.build(reference, "other")
    assert "cannot be overwritten because the tag is immutable" in account.push(reference)


@pytest.mark.parametrize(
    ("name", "login", "error"),
    [
        ("unknown", None, "The repository with name 'unknown' does not exist"),
        ("app", {"username": "AWS", "password": "wrong"}, "authentication required"),
    ],
)
def test_a_push_needs_a_repository_and_a_login(
    account: Account, name: str, login: dict[str, str] | None, error: str
) -> None:
    reference = f"{repository(account).removesuffix('app')}{name}:two"
    account.build(reference, "second")
    assert error in account.push(reference, login)


def test_a_deleted_tag_cannot_be_pulled(account: Account) -> None:
    ecr, uri = account.client("ecr"), repository(account)
    account.build(f"{uri}:gone", "gone")
    assert account.push(f"{uri}:gone") == ""
    client = docker.from_env()
    client.api.pull(uri, "gone", auth_config=account.login())
    ecr.batch_delete_image(repositoryName="app", imageIds=[{"imageTag": "gone"}])
    with pytest.raises(docker.errors.NotFound):
        client.images.pull(uri, tag="gone", auth_config=account.login())


# tasks


@dataclass
class World:
    """What tasks need: a network, roles, a log group, a cluster, and an image that serves its text."""

    account: Account
    subnets: list[str]
    group: str
    role: str
    execution_role: str
    secret: str
    image: str

    def define(self, family: str, image: str | None = None, **container: Any) -> str:
        logs = {"awslogs-group": "/app", "awslogs-region": "eu-central-1", "awslogs-stream-prefix": "test"}
        registered = self.account.client("ecs").register_task_definition(
            family=family,
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            cpu="256",
            memory="512",
            taskRoleArn=self.role,
            executionRoleArn=self.execution_role,
            volumes=[{"name": "scratch"}, {"name": "other"}],
            containerDefinitions=[
                {
                    "name": "app",
                    "image": image or self.image,
                    "portMappings": [{"containerPort": 8080}],
                    "stopTimeout": 5,
                    "logConfiguration": {"logDriver": "awslogs", "options": logs},
                    **container,
                }
            ],
        )
        return str(registered["taskDefinition"]["taskDefinitionArn"])

    @property
    def network(self) -> dict[str, Any]:
        return {"awsvpcConfiguration": {"subnets": self.subnets, "securityGroups": [self.group]}}

    def run(self, definition: str, status: str = "RUNNING") -> dict[str, Any]:
        task = self.account.client("ecs").run_task(
            cluster="test", taskDefinition=definition, launchType="FARGATE", networkConfiguration=self.network
        )["tasks"][0]
        assert eventually(lambda: self.task(task["taskArn"])["lastStatus"] == status, 60), self.task(task["taskArn"])
        return self.task(task["taskArn"])

    def task(self, arn: str) -> dict[str, Any]:
        return dict(self.account.client("ecs").describe_tasks(cluster="test", tasks=[arn])["tasks"][0])

    def tasks(self, service: str) -> list[dict[str, Any]]:
        ecs = self.account.client("ecs")
        arns = ecs.list_tasks(cluster="test", serviceName=service)["taskArns"]
        return list(ecs.describe_tasks(cluster="test", tasks=arns)["tasks"]) if arns else []

    def service(self, name: str) -> dict[str, Any]:
        return dict(self.account.client("ecs").describe_services(cluster="test", services=[name])["services"][0])

    def stable(self, name: str) -> dict[str, Any]:
        """The service when its deployment is complete and nothing else of it is left."""

        def complete() -> bool:
            found = self.service(name)
            states = [d["rolloutState"] for d in found["deployments"]]
            return states == ["COMPLETED"] and found["runningCount"] == found["desiredCount"]

        assert eventually(complete, 120), self.service(name)
        return self.service(name)

    def log(self, task: dict[str, Any]) -> list[str]:
        stream = f"test/app/{task['taskArn'].rpartition('/')[2]}"
        found = self.account.client("logs").get_log_events(logGroupName="/app", logStreamName=stream)["events"]
        return [event["message"] for event in found]


def address(task: dict[str, Any]) -> str:
    details = {detail["name"]: detail["value"] for detail in task["attachments"][0]["details"]}
    return str(details["privateIPv4Address"])


def container_of(task: dict[str, Any]) -> Any:
    return docker.from_env().containers.get(task["containers"][0]["runtimeId"])


def fetch(host: str) -> str:
    """What a server says; nothing while it does not listen."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(f"http://{host}:8080/", timeout=5) as response:
        return str(response.read().decode())
    return ""


def shell(task: dict[str, Any], command: str) -> tuple[int, str]:
    done = container_of(task).exec_run(["sh", "-c", command])
    return done.exit_code, done.output.decode()


@pytest.fixture(scope="module")
def world(account: Account) -> World:
    ec2, iam, cidr = account.client("ec2"), account.client("iam"), free_cidr(range(100, 150))
    vpc = ec2.create_vpc(CidrBlock=str(cidr))["Vpc"]["VpcId"]
    blocks = list(cidr.subnets(new_prefix=24))
    subnets = [
        ec2.create_subnet(VpcId=vpc, CidrBlock=str(block), AvailabilityZone=f"eu-central-1{zone}")["Subnet"]["SubnetId"]
        for block, zone in zip(blocks[1:3], "ab", strict=True)
    ]
    group = ec2.create_security_group(GroupName="task", Description="task", VpcId=vpc)["GroupId"]
    statement = {"Effect": "Allow", "Principal": {"Service": "ecs-tasks.amazonaws.com"}, "Action": "sts:AssumeRole"}
    trust = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    role, execution = (
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"] for name in ("task", "execution")
    )
    secret = account.client("secretsmanager").create_secret(Name="app", SecretString='{"password": "p@ss"}')["ARN"]
    account.client("logs").create_log_group(logGroupName="/app")
    account.client("ecs").create_cluster(clusterName="test", capacityProviders=["FARGATE", "FARGATE_SPOT"])
    image = f"{repository(account)}:served"
    account.build(image, "served")
    assert account.push(image) == ""
    docker.from_env().images.remove(image, force=True)  # so that a task has to pull it
    return World(account, subnets, group, role, execution, secret, image)


def test_a_task_is_what_its_definition_says(world: World, account: Account) -> None:
    account.client("ssm").put_parameter(Name="/app/name", Value="from ssm", Type="SecureString")
    definition = world.define(
        "whole",
        user="10002",
        readonlyRootFilesystem=True,
        environment=[{"name": "PLAIN", "value": "as it is"}],
        secrets=[
            {"name": "PASSWORD", "valueFrom": f"{world.secret}:password::"},
            {"name": "PARAMETER", "valueFrom": "/app/name"},
        ],
        mountPoints=[
            {"sourceVolume": "scratch", "containerPath": "/scratch"},
            {"sourceVolume": "other", "containerPath": "/other"},
        ],
        linuxParameters={"initProcessEnabled": True},
        ulimits=[{"name": "nofile", "softLimit": 1234, "hardLimit": 2345}],
        healthCheck={"command": ["CMD-SHELL", "test -r /text"], "interval": 5, "retries": 1},
    )
    task = world.run(definition)
    assert ipaddress.IPv4Address(address(task)) in ipaddress.IPv4Network(subnet_cidr(world, task))
    assert eventually(lambda: fetch(address(task))) == "served"
    assert shell(task, 'echo "$PLAIN $PASSWORD $PARAMETER"')[1] == "as it is p@ss from ssm\n"
    assert shell(task, "id -u; ulimit -Sn; cat /proc/1/comm")[1].split()[:2] == ["10002", "1234"]
    assert shell(task, "touch /text")[0] != 0
    assert shell(task, "touch /scratch/x")[0] == 0  # a VOLUME of the image keeps its mode
    assert shell(task, "touch /other/x")[0] != 0  # any other is root's, as on Fargate
    inside = shell(task, "getent hosts aws.internal")[1].split()[0]
    assert ipaddress.IPv4Address(inside) in ipaddress.IPv4Network(subnet_cidr(world, task)).supernet(new_prefix=16)
    limits = container_of(task).attrs["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"]) == (512 << 20, 250_000_000)
    assert eventually(lambda: world.task(task["taskArn"])["healthStatus"] == "HEALTHY")
    account.client("ecs").stop_task(cluster="test", task=task["taskArn"], reason="enough")
    ended = world.task(task["taskArn"])
    assert (ended["lastStatus"], ended["stopCode"], ended["stoppedReason"]) == ("STOPPED", "UserInitiated", "enough")
    assert ended["containers"][0]["exitCode"] == 0
    assert world.log(task) == ["listening", "asked to end"]
    assert (
        docker.from_env().volumes.list(filters={"label": f"local_aws.task={task['taskArn'].rpartition('/')[2]}"}) == []
    )


def subnet_cidr(world: World, task: dict[str, Any]) -> str:
    details = {detail["name"]: detail["value"] for detail in task["attachments"][0]["details"]}
    found = world.account.client("ec2").describe_subnets(SubnetIds=[details["subnetId"]])["Subnets"][0]
    return str(found["CidrBlock"])


def test_a_task_has_the_keys_of_its_role_and_no_one_elses(world: World, account: Account) -> None:
    task, other = world.run(world.define("keys")), world.run(world.define("keys"))
    uri = shell(task, "echo $AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")[1].strip()
    keys = json.loads(shell(task, f"curl -fsS http://169.254.170.2{uri}")[1])
    sts = boto3.client(
        "sts",
        region_name="eu-central-1",
        endpoint_url=account.env["AWS_ENDPOINT_URL"],
        verify=account.env["AWS_CA_BUNDLE"],
        aws_access_key_id=keys["AccessKeyId"],
        aws_secret_access_key=keys["SecretAccessKey"],
        aws_session_token=keys["Token"],
    )
    assert sts.get_caller_identity()["Arn"].endswith(f":assumed-role/task/{task['taskArn'].rpartition('/')[2]}")
    assert shell(other, f"curl -s -o /dev/null -w '%{{http_code}}' http://169.254.170.2{uri}")[1] == "404"
    for running in (task, other):
        account.client("ecs").stop_task(cluster="test", task=running["taskArn"])


@pytest.mark.parametrize(
    ("container", "code", "reason"),
    [
        ({"image": "{uri}:none"}, "TaskFailedToStart", "CannotPullContainerError: .*{uri}:none: not found"),
        (
            {"secrets": [{"name": "A", "valueFrom": "{secret}:absent::"}]},
            "TaskFailedToStart",
            "ResourceInitializationError: .*did not contain json key absent",
        ),
        (
            {"logConfiguration": {"logDriver": "awslogs", "options": {"awslogs-group": "/none"}}},
            "TaskFailedToStart",
            "ResourceInitializationError: .*The specified log group does not exist",
        ),
        ({"entryPoint": ["/no/such"]}, "TaskFailedToStart", "CannotStartContainerError: .*no such file"),
        ({"entryPoint": ["sh", "-c", "exit 3"]}, "EssentialContainerExited", "Essential container in task exited"),
    ],
    ids=["image", "secret", "log", "program", "exit"],
)
def test_a_task_that_cannot_run_says_why(world: World, container: dict[str, Any], code: str, reason: str) -> None:
    uri = repository(world.account)
    filled = json.loads(json.dumps(container).replace("{uri}", uri).replace("{secret}", world.secret))
    task = world.run(world.define("broken", **filled), "STOPPED")
    assert task["stopCode"] == code
    assert re.search(reason.replace("{uri}", re.escape(uri)), task["stoppedReason"])
    if code == "EssentialContainerExited":
        assert task["containers"][0]["exitCode"] == 3


def test_the_execution_role_needs_its_permissions(world: World, account: Account) -> None:
    iam, uri = account.client("iam"), "arn:aws:ecr:eu-central-1:123456789012:repository/app"
    allowed = [
        {"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"},
        {"Effect": "Allow", "Action": ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"], "Resource": uri},
        {
            "Effect": "Allow",
            "Action": ["logs:CreateLogStream", "logs:PutLogEvents"],
            "Resource": "arn:aws:logs:eu-central-1:123456789012:log-group:/app:*",
        },
        {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": world.secret},
    ]
    definition = world.define("judged", secrets=[{"name": "A", "valueFrom": f"{world.secret}:password::"}])
    local_aws(account.directory, "enforce", "on")
    try:
        for statements, status in ((allowed[:-1], "STOPPED"), (allowed, "RUNNING")):
            policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
            iam.put_role_policy(RoleName="execution", PolicyName="p", PolicyDocument=policy)
            task = world.run(definition, status)
            refused = "not authorized to perform: secretsmanager:GetSecretValue"
            assert (refused in task.get("stoppedReason", "")) == (status == "STOPPED")
        account.client("ecs").stop_task(cluster="test", task=task["taskArn"])
    finally:
        local_aws(account.directory, "enforce", "off")


# services


@pytest.fixture(scope="module")
def target_group(world: World) -> str:
    elb = world.account.client("elbv2")
    vpc = world.account.client("ec2").describe_subnets(SubnetIds=world.subnets)["Subnets"][0]["VpcId"]
    group = elb.create_target_group(
        Name="app",
        Protocol="HTTP",
        Port=8080,
        VpcId=vpc,
        TargetType="ip",
        HealthCheckPath="/",
        HealthCheckIntervalSeconds=5,
        HealthCheckTimeoutSeconds=2,
        HealthyThresholdCount=2,
        UnhealthyThresholdCount=10,  # most: what is seen here is the scheduler's doing, not a machine that stood still
    )
    arn = str(group["TargetGroups"][0]["TargetGroupArn"])
    elb.modify_target_group_attributes(
        TargetGroupArn=arn, Attributes=[{"Key": "deregistration_delay.timeout_seconds", "Value": "1"}]
    )
    balancer = elb.create_load_balancer(Name="app", Subnets=world.subnets, SecurityGroups=[world.group])
    elb.create_listener(
        LoadBalancerArn=balancer["LoadBalancers"][0]["LoadBalancerArn"],
        Protocol="HTTP",
        Port=80,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": arn}],
    )
    return arn


def states(world: World, group: str) -> dict[str, dict[str, str]]:
    found = world.account.client("elbv2").describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
    return {str(t["Target"]["Id"]): t["TargetHealth"] for t in found}


def healthy(found: dict[str, dict[str, str]]) -> set[str]:
    return {address for address, health in found.items() if health["State"] == "healthy"}


def targets(world: World, group: str) -> set[str]:
    return healthy(states(world, group))


@pytest.fixture(scope="module")
def web(world: World, target_group: str) -> str:
    world.account.client("ecs").create_service(
        cluster="test",
        serviceName="web",
        taskDefinition=world.define("web"),
        desiredCount=2,
        capacityProviderStrategy=[{"capacityProvider": "FARGATE", "weight": 1}],
        deploymentConfiguration={
            "maximumPercent": 150,
            "minimumHealthyPercent": 100,
            "deploymentCircuitBreaker": {"enable": True, "rollback": True},
        },
        loadBalancers=[{"targetGroupArn": target_group, "containerName": "app", "containerPort": 8080}],
        healthCheckGracePeriodSeconds=30,
        networkConfiguration=world.network,
    )
    return "web"


def test_a_service_keeps_its_tasks_and_their_targets(world: World, web: str, target_group: str) -> None:
    world.stable(web)
    before = world.tasks(web)
    assert {task["availabilityZone"] for task in before} == {"eu-central-1a", "eu-central-1b"}
    assert targets(world, target_group) == {address(task) for task in before}
    container_of(before[0]).kill()
    gone = before[0]["taskArn"]
    assert eventually(lambda: gone not in {task["taskArn"] for task in world.tasks(web)})
    world.stable(web)
    after = {address(task) for task in world.tasks(web)}
    assert len(after) == 2
    assert eventually(lambda: targets(world, target_group) == after)


def test_a_new_definition_rolls_without_a_gap(world: World, web: str, target_group: str) -> None:
    image = f"{repository(world.account)}:next"
    world.account.build(image, "next")
    assert world.account.push(image) == ""
    world.stable(web)
    assert eventually(lambda: len(targets(world, target_group)) == 2)
    seen = []
    world.account.client("ecs").update_service(cluster="test", service=web, taskDefinition=world.define("web", image))

    def rolled() -> bool:
        seen.append(states(world, target_group))
        found = world.service(web)["deployments"]
        return len(found) == 1 and found[0]["rolloutState"] == "COMPLETED"

    assert eventually(rolled, 120)
    gaps = [found for found in seen if len(healthy(found)) < 2]
    assert not gaps, [event["message"] for event in world.service(web)["events"]]
    assert {fetch(address(task)) for task in world.tasks(web)} == {"next"}


def test_a_deployment_that_fails_is_rolled_back(world: World, web: str) -> None:
    world.stable(web)
    good = world.service(web)["taskDefinition"]
    bad = world.define("web", entryPoint=["false"])
    world.account.client("ecs").update_service(cluster="test", service=web, taskDefinition=bad)

    def failed() -> bool:
        found = [d for d in world.service(web)["deployments"] if d["rolloutState"] == "FAILED"]
        return bool(found) or world.service(web)["taskDefinition"] == good

    assert eventually(failed, 120)
    service = world.stable(web)
    assert service["taskDefinition"] == good
    assert [d["taskDefinition"] for d in service["deployments"]] == [good]
    told = [event["message"] for event in service["events"]]
    assert any("deployment failed: tasks failed to start." in message for message in told)
    assert any("rolling back to deployment" in message for message in told)


def test_an_unhealthy_container_is_replaced(world: World) -> None:
    ecs = world.account.client("ecs")
    check = {"command": ["CMD-SHELL", "test ! -e /scratch/sick"], "interval": 5, "retries": 1}
    mount = [{"sourceVolume": "scratch", "containerPath": "/scratch"}]
    definition = world.define("checked", healthCheck=check, mountPoints=mount)
    ecs.create_service(
        cluster="test",
        serviceName="checked",
        taskDefinition=definition,
        desiredCount=1,
        launchType="FARGATE",
        networkConfiguration=world.network,
    )
    world.stable("checked")
    first = world.tasks("checked")[0]
    shell(first, "touch /scratch/sick")
    assert eventually(lambda: world.task(first["taskArn"])["lastStatus"] == "STOPPED")
    ended = world.task(first["taskArn"])
    assert (ended["stopCode"], ended["stoppedReason"]) == (
        "ServiceSchedulerInitiated",
        "Task failed container health checks",
    )
    world.stable("checked")
    assert eventually(lambda: world.tasks("checked")[0]["healthStatus"] == "HEALTHY")


def test_services_and_clusters_are_deleted_in_order(world: World, web: str, target_group: str) -> None:
    ecs = world.account.client("ecs")
    with pytest.raises(ClientError, match="scaled above 0"):
        ecs.delete_service(cluster="test", service=web)
    with pytest.raises(ClientError, match="ClusterContainsServices"):
        ecs.delete_cluster(cluster="test")
    for name in (web, "checked"):
        ecs.delete_service(cluster="test", service=name, force=True)
    waiter = ecs.get_waiter("services_inactive")
    waiter.wait(cluster="test", services=[web, "checked"], WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    assert targets(world, target_group) == set()
    assert eventually(lambda: ecs.list_tasks(cluster="test")["taskArns"] == [])
    assert ecs.list_services(cluster="test")["serviceArns"] == []
    interfaces = world.account.client("ec2").describe_network_interfaces(
        Filters=[{"Name": "subnet-id", "Values": world.subnets}]
    )["NetworkInterfaces"]
    assert interfaces == []  # none is left that a subnet could not be deleted with


# scaling


@pytest.fixture
def scaled(world: World) -> Iterator[str]:
    """A service that follows its CPU and its requests, between one and three tasks."""
    ecs, scaling = world.account.client("ecs"), world.account.client("application-autoscaling")
    ecs.create_service(
        cluster="test",
        serviceName="scaled",
        taskDefinition=world.define("scaled"),
        desiredCount=1,
        launchType="FARGATE",
        networkConfiguration=world.network,
    )
    place = {
        "ServiceNamespace": "ecs",
        "ResourceId": "service/test/scaled",
        "ScalableDimension": "ecs:service:DesiredCount",
    }
    scaling.register_scalable_target(**place, MinCapacity=1, MaxCapacity=3)
    for name, target, metric in (
        ("cpu", 60.0, {"PredefinedMetricType": "ECSServiceAverageCPUUtilization"}),
        (
            "requests",
            1000.0,
            {"PredefinedMetricType": "ALBRequestCountPerTarget", "ResourceLabel": "app/app/1/targetgroup/app/2"},
        ),
    ):
        scaling.put_scaling_policy(
            **place,
            PolicyName=name,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": target,
                "PredefinedMetricSpecification": metric,
                "ScaleInCooldown": 60,
                "ScaleOutCooldown": 60,
            },
        )
    yield "scaled"
    scaling.deregister_scalable_target(**place)
    assert scaling.describe_scaling_policies(ServiceNamespace="ecs")["ScalingPolicies"] == []
    ecs.delete_service(cluster="test", service="scaled", force=True)


def test_a_service_follows_its_metrics(world: World, scaled: str) -> None:
    cloudwatch = world.account.client("cloudwatch")

    def report(cpu: float, requests: float) -> None:
        own = [{"Name": "ClusterName", "Value": "test"}, {"Name": "ServiceName", "Value": scaled}]
        group = [{"Name": "TargetGroup", "Value": "targetgroup/app/2"}]
        for namespace, name, dimensions, value in (
            ("AWS/ECS", "CPUUtilization", own, cpu),
            ("AWS/ApplicationELB", "RequestCountPerTarget", group, requests),
        ):
            cloudwatch.put_metric_data(
                Namespace=namespace, MetricData=[{"MetricName": name, "Dimensions": dimensions, "Value": value}]
            )

    def desired() -> int:
        return int(world.service(scaled)["desiredCount"])

    world.stable(scaled)
    report(10.0, 1900.0)  # one policy is enough to scale out
    assert eventually(lambda: desired() == 2)
    assert world.stable(scaled)["runningCount"] == 2
    report(600.0, 10.0)  # never more than the maximum
    assert eventually(lambda: desired() == 3)
    report(58.0, 10.0)  # near its target: the policies do not agree on fewer
    time.sleep(6)
    assert desired() == 3
    report(1.0, 10.0)
    assert eventually(lambda: desired() == 1)
    assert world.stable(scaled)["runningCount"] == 1


# the modules, and the end


def test_the_modules_find_nothing_to_change(world: World, target_group: str, tmp_path: Path) -> None:
    variables = tmp_path / "variables.json"
    variables.write_text(
        json.dumps(
            {
                "containers_role": world.execution_role,
                "containers_image": world.image,
                "containers_target_group": target_group,
                "containers_subnets": world.subnets,
                "containers_security_groups": [world.group],
            }
        )
    )

    def changed() -> list[str]:
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        inventory = ["-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(
            [program, str(PLAYBOOK), *inventory, "-e", f"@{variables}"],
            cwd=ROOT,
            env={**plain, **world.account.env, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.json"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3000:]
        tasks = [task for play in json.loads(done.stdout[done.stdout.index("{") :])["plays"] for task in play["tasks"]]
        return [task["task"]["name"] for task in tasks if task["hosts"]["localhost"].get("changed")]

    assert len(changed()) == 7
    assert changed() == ["One task"]  # which is what it is for


def test_stop_leaves_no_container_volume_or_pulled_image(world: World, account: Account) -> None:
    client, label = docker.from_env(), f"local_aws.state={account.directory.resolve()}"
    world.run(world.define("left", mountPoints=[{"sourceVolume": "scratch", "containerPath": "/scratch"}]))
    image = account.client("ecr").describe_images(repositoryName="app", imageIds=[{"imageTag": "served"}])
    reference = f"{repository(account)}@{image['imageDetails'][0]['imageDigest']}"

    def pulled() -> bool:
        return any(reference in (image.attrs.get("RepoDigests") or []) for image in client.images.list())

    assert pulled()
    assert client.volumes.list(filters={"label": label})
    local_aws(account.directory, "stop")
    assert client.containers.list(all=True, filters={"label": label}) == []
    assert client.volumes.list(filters={"label": label}) == []
    assert not pulled()
