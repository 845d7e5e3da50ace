"""One stack that outgrows its host, in the order of this file: host, fleet, Fargate, host; the same data all along."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container
from moving import PATIENCE, both_loads, clusters, instances, load, name, site
from stack import Account, Control, free_cidr
from user import client, wine, wine_served

STACK = "moves"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")
MINE = [{"Name": "tag:mlflow:stack", "Values": [STACK]}]
# How long requests still go to a host that is gone: two checks, five seconds apart, of up to four seconds, and some.
NOTICED = 20
# As many clients as load.py has: each has one request on its way at a time.
CLIENTS = 4


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(
        tmp_path_factory.mktemp("moves"),
        account,
        mlflow_stack=STACK,
        mlflow_fleet_size=3,
        mlflow_database_class="db.t4g.small",
        mlflow_database_multi_az=True,
        mlflow_fargate_cpu=512,
        mlflow_fargate_memory=1024,
        mlflow_deregistration_delay=15,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged on the first host, which tests/e2e looks at more closely."""
    control.playbook("site.yml").succeeded()
    return client(control, mlflow_python, "log")


def test_host_becomes_a_fleet(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_topology="fleet")
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    wine(control, mlflow_python)
    wine_served(control, mlflow_python)
    hosts = instances(account, STACK)
    assert [name(host) for host in hosts] == [f"mlflow-{STACK}-fleet-{number}" for number in (1, 2, 3)]
    assert len({host["Placement"]["AvailabilityZone"] for host in hosts}) == 2
    assert account.client("ec2").describe_addresses()["Addresses"] == []


def test_hosts_of_a_fleet_are_reached_through_the_balancer_only(
    control: Control, account: Account, logged: dict[str, str]
) -> None:
    address = instances(account, STACK)[0]["PublicIpAddress"]
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
    assert seen.requests > 100
    assert seen.failures == []
    assert seen.longest < PATIENCE


def machine(instance: dict[str, Any]) -> Container:
    """The container that an instance of the local AWS is."""
    every = docker.from_env().containers.list()
    return next(found for found in every if str(found.name).endswith(instance["InstanceId"]))


def test_killed_server_costs_what_it_was_answering(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    victim = machine(instances(account, STACK)[0])
    with both_loads(control, mlflow_python) as seen:
        time.sleep(5)
        died = time.monotonic()
        assert victim.exec_run("systemctl kill --signal=KILL --kill-whom=all mlflow.service").exit_code == 0
        time.sleep(20)
    assert seen.after(died + 1) == []
    assert len(seen.failures) <= CLIENTS


def test_dead_host_costs_what_it_was_answering_and_is_replaced(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    with both_loads(control, mlflow_python) as seen:
        time.sleep(5)
        died = time.monotonic()
        machine(instances(account, STACK)[0]).kill()
        time.sleep(40)
    assert seen.after(died + NOTICED) == []
    control.playbook("site.yml", timeout=1800).succeeded()
    assert len(instances(account, STACK)) == 3


@contextlib.contextmanager
def dark(machines: list[Container]) -> Iterator[None]:
    """Let nothing in and nothing out of machines, as when their zone has no power: nobody is told, packets vanish."""
    rules = [f"{chain} -j DROP" for chain in ("INPUT", "OUTPUT")]
    try:
        for rule in rules:
            for host in machines:
                assert host.exec_run(f"iptables --wait --insert {rule}").exit_code == 0
        yield
    finally:
        for rule in rules:
            for host in machines:
                host.exec_run(f"iptables --wait --delete {rule}")


def test_loss_of_a_zone_costs_what_it_was_answering(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    hosts = instances(account, STACK)
    zone = hosts[0]["Placement"]["AvailabilityZone"]
    lost = [machine(host) for host in hosts if host["Placement"]["AvailabilityZone"] == zone]
    assert len(lost) == 2
    with both_loads(control, mlflow_python) as seen:
        time.sleep(5)
        died = time.monotonic()
        with dark(lost):
            time.sleep(60)
        time.sleep(15)
    assert seen.after(died + NOTICED) == []


def test_failover_of_the_database_costs_what_it_was_answering(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    rds = account.client("rds")
    with both_loads(control, mlflow_python) as seen:
        time.sleep(5)
        rds.reboot_db_instance(DBInstanceIdentifier=f"mlflow-{STACK}", ForceFailover=True)
        deadline = time.monotonic() + 180
        while rds.describe_db_instances()["DBInstances"][0]["DBInstanceStatus"] != "available":
            assert time.monotonic() < deadline, "the database did not come back"
            time.sleep(1)
        time.sleep(30)
    assert len(seen.failures) <= CLIENTS
    # It was away for a minute, for which requests waited.
    assert 50 < seen.longest < 100


def test_fleet_becomes_tasks(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_topology="fargate")
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    assert instances(account, STACK) == []
    groups = account.client("elbv2").describe_target_groups()["TargetGroups"]
    assert [group["TargetGroupName"] for group in groups] == [f"mlflow-{STACK}-ecs"]


def test_tasks_become_a_host(control: Control, account: Account, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_topology="host", mlflow_server_extra_environment={})
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1
    assert [name(host) for host in instances(account, STACK)] == [f"mlflow-{STACK}"]
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert clusters(account) == []


def test_stack_on_half_of_its_way_is_torn_down(control: Control, account: Account, logged: dict[str, str]) -> None:
    control.write(mlflow_topology="fleet", mlflow_fleet_size=1)
    control.playbook("playbooks/provision.yml", timeout=1800).succeeded()
    assert [name(host) for host in instances(account, STACK)] == [f"mlflow-{STACK}", f"mlflow-{STACK}-fleet-1"]
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    assert instances(account, STACK) == []
    assert account.client("elbv2").describe_load_balancers()["LoadBalancers"] == []
    assert account.client("elbv2").describe_target_groups()["TargetGroups"] == []
    assert account.client("acm").list_certificates()["CertificateSummaryList"] == []
