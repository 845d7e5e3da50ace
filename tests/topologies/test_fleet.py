"""One stack that outgrows its host, in the order of this file: host, fleet, and its end; the same data all along."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from moving import load, site
from stack import Account, Control, free_cidr
from user import client, wine, wine_served

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
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged on the first host, which tests/e2e looks at more closely."""
    control.playbook("site.yml").succeeded()
    return client(control, mlflow_python, "log")


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
    wine_served(control, mlflow_python)
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
    assert rolled.output.count("deregister | Wait until its requests have ended]") == 3, rolled.output
    assert seen["requests"] > 100
    assert seen["failures"] == []


def test_fleet_is_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    assert instances(account) == []
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert account.client("elbv2").describe_target_groups()["TargetGroups"] == []
    assert account.client("acm").list_certificates()["CertificateSummaryList"] == []
