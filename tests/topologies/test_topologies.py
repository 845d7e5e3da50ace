"""One stack that outgrows its host, in the order of this file: host, fleet, Fargate, host; the same data all along."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from stack import Account, Control, free_cidr
from user import client, wine

STACK = "moves"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")
MINE = [{"Name": "tag:mlflow:stack", "Values": [STACK]}]
RUNNING = [{"Name": "instance-state-name", "Values": ["running"]}]


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(
        tmp_path_factory.mktemp("moves"),
        account,
        mlflow_stack=STACK,
        mlflow_fleet_size=3,
        mlflow_database_class="db.t4g.small",
        mlflow_deregistration_delay=15,
        mlflow_fargate_cpu=512,
        mlflow_fargate_memory=1024,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged on the first host, which tests/e2e looks at more closely."""
    control.playbook("site.yml").succeeded()
    return client(control, mlflow_python, "log")


def site(control: Control, **inputs: Any) -> None:
    """Run site.yml with these inputs, and once more: nothing is left to change."""
    control.write(**inputs)
    first = control.playbook("site.yml", timeout=1800).succeeded()
    again = control.playbook("site.yml", timeout=1800).succeeded()
    assert again.changed and set(again.changed.values()) == {0}, again.output
    print(f"\n{inputs}: {first.seconds:.0f} s, again {again.seconds:.0f} s")


@contextmanager
def load(control: Control, python: Path) -> Iterator[dict[str, Any]]:
    """Keep clients busy meanwhile; the dictionary is filled with what they saw at the end."""
    seen: dict[str, Any] = {}
    with subprocess.Popen(
        [python, Path(__file__).with_name("load.py")],
        env=control.client_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "LOADING\n"
        try:
            yield seen
        finally:
            process.stdin.close()
            output = process.stdout.read()
    seen.update(json.loads(output.rpartition("RESULT ")[2]))
    print(f"\n{seen['requests']} requests, longest {seen['longest']:.2f} s, {len(seen['failures'])} failed")


def instances(account: Account) -> list[dict[str, Any]]:
    """The stack's running instances, by name."""
    found = account.client("ec2").describe_instances(Filters=[*MINE, *RUNNING])["Reservations"]
    every = [instance for group in found for instance in group["Instances"]]
    return sorted(every, key=name)


def name(instance: dict[str, Any]) -> str:
    return str({tag["Key"]: tag["Value"] for tag in instance["Tags"]}["Name"])


def test_host_becomes_a_fleet(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_topology="fleet")
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    wine(control, mlflow_python)
    hosts = instances(account)
    assert [name(host) for host in hosts] == [f"mlflow-{STACK}-fleet-{number}" for number in (1, 2, 3)]
    assert len({host["Placement"]["AvailabilityZone"] for host in hosts}) == 2
    assert account.client("ec2").describe_addresses()["Addresses"] == []


def test_hosts_of_a_fleet_are_reached_through_the_balancer_only(
    control: Control, account: Account, logged: dict[str, str]
) -> None:
    address = instances(account)[0]["PublicIpAddress"]
    for port in (80, 443, 5000):
        with pytest.raises(OSError):
            socket.create_connection((address, port), timeout=3)
    socket.create_connection((address, 22), timeout=3).close()
    groups = account.client("ec2").describe_security_groups(Filters=MINE)["SecurityGroups"]
    fleet = next(group for group in groups if group["GroupName"] == f"mlflow-{STACK}-fleet")
    https = next(rule for rule in fleet["IpPermissions"] if rule["FromPort"] == 443)
    balancer = next(group for group in groups if group["GroupName"] == f"mlflow-{STACK}-balancer")
    assert [pair["GroupId"] for pair in https["UserIdGroupPairs"]] == [balancer["GroupId"]]
    assert https["IpRanges"] == []


def test_rolling_change_fails_no_request(control: Control, logged: dict[str, str], mlflow_python: Path) -> None:
    control.write(mlflow_server_extra_environment={"MLFLOW_LOGGING_LEVEL": "WARNING"})
    with load(control, mlflow_python) as seen:
        rolled = control.playbook("playbooks/configure.yml", timeout=1800).succeeded()
    assert rolled.output.count("deregister | Wait until its requests have ended") == 3, rolled.output
    assert seen["requests"] > 100
    assert seen["failures"] == []


def test_death_of_a_server_costs_what_it_was_answering(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    victim = instances(account)[0]
    with load(control, mlflow_python) as seen:
        time.sleep(5)
        died = time.time()
        container = next(
            found for found in docker.from_env().containers.list() if str(found.name).endswith(victim["InstanceId"])
        )
        container.kill()
        time.sleep(40)
    # The balancer hears of a dead instance within a second; a request that it has just handed on waits for its end.
    late = [failure for failure in seen["failures"] if failure["at"] > died + 2]
    assert seen["requests"] > 100
    assert late == []
    assert len(seen["failures"]) <= 8, "four clients were served by three hosts"
    control.playbook("site.yml", timeout=1800).succeeded()
    assert len(instances(account)) == 3


def test_fleet_becomes_tasks(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_topology="fargate")
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    wine(control, mlflow_python)
    assert instances(account) == []
    groups = account.client("elbv2").describe_target_groups()["TargetGroups"]
    assert [group["TargetGroupName"] for group in groups] == [f"mlflow-{STACK}-ecs"]


def test_deployment_fails_no_request(control: Control, logged: dict[str, str], mlflow_python: Path) -> None:
    control.write(mlflow_server_extra_environment={"MLFLOW_LOGGING_LEVEL": "ERROR"})
    with load(control, mlflow_python) as seen:
        control.playbook("playbooks/configure.yml", timeout=1800).succeeded()
    assert seen["requests"] > 100
    assert seen["failures"] == []


def test_server_that_does_not_start_is_not_deployed(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    ecs = account.client("ecs")
    before = ecs.describe_services(cluster=f"mlflow-{STACK}", services=[f"mlflow-{STACK}"])["services"][0]
    control.write(mlflow_server_extra_environment={"GUNICORN_CMD_ARGS": "--no-such"})
    refused = control.playbook("playbooks/configure.yml", timeout=1800).refused()
    assert "did not come to be" in refused.text and "no-such" in refused.text, refused.output[-3000:]
    assert "The former version still serves" in refused.text
    after = ecs.describe_services(cluster=f"mlflow-{STACK}", services=[f"mlflow-{STACK}"])["services"][0]
    assert after["taskDefinition"] == before["taskDefinition"]
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_tasks_become_a_host(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_topology="host", mlflow_server_extra_environment={})
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    assert [name(host) for host in instances(account)] == [f"mlflow-{STACK}"]
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert account.client("ecs").list_clusters()["clusterArns"] == []


def test_stack_on_half_of_its_way_is_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    control.write(mlflow_topology="fleet", mlflow_fleet_size=1)
    control.playbook("playbooks/provision.yml", timeout=1800).succeeded()
    assert [name(host) for host in instances(account)] == [f"mlflow-{STACK}", f"mlflow-{STACK}-fleet-1"]
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    assert instances(account) == []
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert account.client("elbv2").describe_target_groups()["TargetGroups"] == []
    assert account.client("acm").list_certificates()["CertificateSummaryList"] == []
