"""One fleet in the order of this file: upgrades that fail, are cut off and work, hosts that break, and one fewer."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from moving import eventually, instances, load, older_release, site, without
from stack import Account, Control, free_cidr
from user import client

STACK = "upgrades"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")
UVLOOP = "/opt/mlflow/current/lib/python3*/site-packages/uvloop"


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    directory = tmp_path_factory.mktemp("upgrades")
    # It builds and migrates, and its server cannot start.
    (directory / "broken.txt").write_text(without("uvloop"))
    return Control(
        directory,
        account,
        **older_release(directory),
        mlflow_stack=STACK,
        mlflow_topology="fleet",
        mlflow_fleet_size=2,
        mlflow_deregistration_delay=15,
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


@pytest.fixture(scope="module")
def logged(control: Control, mlflow_python: Path) -> dict[str, str]:
    """What a data scientist has logged on the older release."""
    control.playbook("site.yml", timeout=1800).succeeded()
    return client(control, mlflow_python, "log")


def hosts(account: Account) -> list[str]:
    """The fleet's instances, by number."""
    return [instance["InstanceId"] for instance in instances(account, STACK)]


def healthy(account: Account) -> list[str]:
    """Those that the balancer hands requests to."""
    balancing = account.client("elbv2")
    (group,) = balancing.describe_target_groups(Names=[f"mlflow-{STACK}-ec2"])["TargetGroups"]
    targets = balancing.describe_target_health(TargetGroupArn=group["TargetGroupArn"])["TargetHealthDescriptions"]
    serving = {target["Target"]["Id"] for target in targets if target["TargetHealth"]["State"] == "healthy"}
    return [host for host in hosts(account) if host in serving]


def releases(control: Control) -> list[str]:
    """What MLflow each host runs."""
    said = control.on_host(
        "ansible.builtin.shell", "systemctl is-active mlflow.service && readlink /opt/mlflow/current"
    )
    assert said.count("\nactive\n") == 2, said
    return re.findall(r"/releases/([0-9.]+)-", said)


def cut_off(control: Control, host: str, path: str) -> None:
    """Have a host lose its connections for good as soon as a file or directory changes there."""
    watch = f"systemd-run --path-property=PathChanged={path} sh -c"
    control.on_host(
        "ansible.builtin.command",
        f"{watch} 'systemctl stop ssh.socket ssh.service; pkill ^sshd'",
        "--limit",
        host,
    )


def test_an_upgrade_that_fails_leaves_the_older_release_on_all_hosts(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    control.write(mlflow_server_version="3.17.2", mlflow_server_requirements_file=str(control.directory / "broken.txt"))
    first, second = hosts(account)
    refused = control.playbook("site.yml", timeout=1800).refused()
    assert f"changed: [{second}]" in refused.output.partition("[Stop them]")[2].partition("\nPLAY ")[0]
    assert f"{first} was not configured: MLflow 3.17.2 was not put to work" in refused.text, refused.output[-6000:]
    assert "The databases are as they were before. The release before runs again." in refused.text
    assert "The others, which were stopped for it, were started again." in refused.text
    assert "PLAY [Lead the clients" not in refused.output
    assert releases(control) == ["3.16.0", "3.16.0"]
    eventually(lambda: healthy(account) == [first, second])
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_a_first_host_that_is_lost_leaves_the_others_stopped(
    control: Control, account: Account, logged: dict[str, str]
) -> None:
    """It is lost with the backup begun: nobody knows how far it came, and Ansible runs no rescue for it."""
    first, second = hosts(account)
    cut_off(control, first, "/var/lib/mlflow/backups")
    control.write(mlflow_server_version="3.17.2", mlflow_server_requirements_file="")
    refused = control.playbook("site.yml", timeout=1800).refused()
    assert re.search(rf"{first} +: .* unreachable=1 ", refused.output), refused.output[-6000:]
    assert "PLAY [Lead the clients" not in refused.output
    assert second not in healthy(account)
    account.client("ec2").reboot_instances(InstanceIds=[first])


def test_an_upgrade_keeps_the_data(control: Control, logged: dict[str, str], mlflow_python: Path) -> None:
    site(control, mlflow_server_requirements_file="")
    assert releases(control) == ["3.17.2", "3.17.2"]
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_a_host_that_is_lost_meanwhile_is_missed(control: Control, account: Account, logged: dict[str, str]) -> None:
    """Both are changed at once, because it interrupts nothing; the second one loses its connection meanwhile."""
    _, second = hosts(account)
    cut_off(control, second, "/etc/apt/apt.conf.d/52mlflow-server")
    control.write(mlflow_reboot_time="23:55")
    refused = control.playbook("playbooks/configure.yml", timeout=1800).refused()
    assert f"{second} did not come through, so clients are not led to the new servers" in refused.text
    account.client("ec2").reboot_instances(InstanceIds=[second])
    control.playbook("playbooks/configure.yml", timeout=1800).succeeded()


def test_no_two_hosts_reboot_at_once(control: Control, account: Account, logged: dict[str, str]) -> None:
    setting = "grep --only-matching 'Automatic-Reboot-Time.*' /etc/apt/apt.conf.d/52mlflow-server"
    for host, at in zip(hosts(account), ("23:55", "00:05"), strict=True):
        assert f'Automatic-Reboot-Time "{at}"' in control.on_host("ansible.builtin.command", setting, "--limit", host)


def test_a_host_that_breaks_stops_the_roll(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    """The first one cannot start again, as with a damaged file system."""
    first, second = hosts(account)
    eventually(lambda: healthy(account) == [first, second])
    control.on_host("ansible.builtin.shell", f"mv {UVLOOP} /root/uvloop", "--limit", first)
    control.write(mlflow_server_extra_environment={"MLFLOW_LOGGING_LEVEL": "WARNING"})
    with load(control, mlflow_python) as seen:
        refused = control.playbook("playbooks/configure.yml", timeout=1800).refused()
    assert f"{first} was not configured" in refused.text, refused.output[-6000:]
    assert "It stays out of the balancer, and the others serve on." in refused.text
    assert f"[{second}]" not in refused.output.partition("PLAY [Configure the hosts]")[2]
    assert healthy(account) == [second]
    assert seen.requests > 100
    assert seen.failures == []
    refused = control.playbook("playbooks/retire.yml", "-e", "mlflow_fleet_size=1").refused()
    assert f"without {second} the balancer finds 0 healthy. Nothing was removed." in refused.text
    assert healthy(account) == [second]
    control.on_host("ansible.builtin.shell", f"mv /root/uvloop $(dirname {UVLOOP})", "--limit", first)
    control.playbook("playbooks/configure.yml", timeout=1800).succeeded()
    assert healthy(account) == [first, second]


def test_nothing_is_retired_that_clients_are_led_to(control: Control, account: Account, logged: dict[str, str]) -> None:
    before = healthy(account)
    refused = control.playbook("playbooks/retire.yml", "-e", "mlflow_topology=host").refused()
    assert "this run has not led the clients away from it. Nothing was removed." in refused.text
    assert set(refused.changed.values()) == {0}
    assert healthy(account) == hosts(account) == before


def test_a_smaller_fleet_serves_on(
    control: Control, account: Account, logged: dict[str, str], mlflow_python: Path
) -> None:
    first, _ = hosts(account)
    control.write(mlflow_fleet_size=1)
    with load(control, mlflow_python) as seen:
        control.playbook("site.yml", timeout=1800).succeeded()
    assert seen.requests > 100
    assert seen.failures == []
    assert hosts(account) == healthy(account) == [first]
    assert client(control, mlflow_python, "read", logged["run_id"], logged["sha256"])["versions"] == 1


def test_it_is_torn_down(control: Control, logged: dict[str, str]) -> None:
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
