"""What the role mlflow_preflight says of inputs: its own templates, with what a user and AWS may have said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar

ROLE = Path(__file__).resolve().parents[3] / "roles/mlflow_preflight"
GOOD = {
    "mlflow_stack": "demo",
    "mlflow_region": "eu-central-1",
    "mlflow_client_cidrs": ["10.0.0.0/8"],
    "mlflow_admin_cidrs": ["10.0.0.1/32"],
}
DOMAIN = {"mlflow_domain": "example.com"}
ARN = "arn:aws:acm:eu-central-1:123456789012:certificate/11111111-1111-1111-1111-111111111111"
AWS: dict[str, Any] = {
    "account": "123456789012",
    "regions": ["eu-central-1"],
    "region_exists": True,
    "vpc_cidrs": [],
    "zones": ["eu-central-1a", "eu-central-1b", "eu-central-1c"],
    "stack_zones": [],
    "topologies": [],
    "instance_type": {"architecture": "x86_64", "zones": ["eu-central-1a", "eu-central-1b"]},
    "database": {
        "exists": False,
        "running_version": "",
        "running_class": "",
        "engine_version": "16.9",
        "offered_majors": ["16"],
        "class_offered": True,
        "proxy_exists": False,
    },
    "connections": {"fits": True, "share": 32, "per_server": 32, "proxy_percent": 68, "proxy_percent_beside": 27},
    "certificate": {},
    "hosted_zone_id": "Z1",
}
TOO_MANY = {
    "database_class": "db.t4g.micro",
    "memory_mib": 1024,
    "max_connections": 79,
    "usable": 64,
    "share": 32,
    "servers": 10,
    "per_server": 3,
    "proxy_percent": 68,
    "proxy_percent_beside": 27,
    "needed_per_server": 12,
    "needed": 120,
    "largest_size": 2,
    "fits": False,
    "fitting_class": "db.t4g.medium",
}
Wrong = dict[str, str]
"""What is allowed, by the variable that is wrong."""


def load(path: str) -> Any:
    return DataLoader().load_from_file(str(ROLE / path), cache="none", trusted_as_template=True)


def variables(given: dict[str, Any], **more: Any) -> dict[str, Any]:
    role = {**load("defaults/main.yml"), **load("vars/main.yml")}
    return {**role, **GOOD, **given, **more, "ansible_search_path": [str(ROLE)]}


def by_form(**given: Any) -> Wrong:
    """Files are what the tasks read in good ones; tests/e2e/test_refusals.py has bad ones."""
    certificate = {"public_key": "K", "not_after": "99991231235959Z", "subject_alt_name": ["DNS:*.Example.com"]}
    read = {"__mlflow_preflight_certificate": certificate, "__mlflow_preflight_private_key": {"public_key": "K"}}
    templar = Templar(loader=DataLoader(), variables=variables(given, **read))
    entries = templar.template(load("vars/main.yml")["__mlflow_preflight_inputs"])
    return {entry["variable"]: entry["allowed"] for entry in entries if entry["valid"] is not True}


def by_aws(aws: dict[str, Any], **given: Any) -> Wrong:
    """As the task says it; of what it publishes see L(outputs)."""
    (task,) = (task for task in load("tasks/account.yml") if "ansible.builtin.assert" in task)
    templar = Templar(
        loader=DataLoader(), variables=variables(given, __mlflow_preflight_aws={**AWS, **aws}, **task["vars"])
    )
    entries = templar.template(task["vars"]["__mlflow_preflight_wrong"])
    assert not any("\n" in entry["allowed"] for entry in entries)
    return {entry["variable"]: entry["allowed"] for entry in entries}


def outputs(aws: dict[str, Any], **given: Any) -> dict[str, Any]:
    (task,) = (task for task in load("tasks/account.yml") if "ansible.builtin.set_fact" in task)
    templar = Templar(loader=DataLoader(), variables=variables(given, __mlflow_preflight_aws={**AWS, **aws}))
    found: dict[str, Any] = templar.template(task["ansible.builtin.set_fact"]["mlflow_preflight_outputs"])
    return found


@pytest.mark.parametrize("topology", ["host", "fleet", "fargate"])
def test_the_defaults_are_good_for_every_topology(topology: str) -> None:
    assert by_form(mlflow_topology=topology) == {}
    assert by_aws({}, mlflow_topology=topology) == {}


@pytest.mark.parametrize(
    ("variable", "good"),
    [
        ("mlflow_zones", ["eu-central-1a", "eu-central-1b", "eu-central-1c", "eu-central-1d"]),
        ("mlflow_fleet_size", "100"),
        ("mlflow_fargate_min_tasks", "1"),
        ("mlflow_fargate_max_tasks", 2),
        ("mlflow_fargate_desired_tasks", "3"),
        ("mlflow_fargate_memory", "3072"),
        ("mlflow_fargate_spot", "true"),
        ("mlflow_access_logs", "no"),
        ("mlflow_access_logs", True),
        ("mlflow_deregistration_delay", 0),
        ("mlflow_deregistration_delay", "3600"),
        ("mlflow_database_connections", "200"),
        ("mlflow_database_proxy", "yes"),
        ("mlflow_log_retention_days", "365"),
        ("mlflow_container_base_image", "debian"),
        ("mlflow_container_base_image", "registry.example.com:5000/base/debian_slim@sha256:" + "0" * 64),
        ("mlflow_container_base_image", "localhost:5000/debian:trixie-slim"),
    ],
)
def test_what_can_work_passes(variable: str, good: Any) -> None:
    assert by_form(mlflow_topology="fargate", **{variable: good}) == {}


@pytest.mark.parametrize(
    ("variable", "bad", "allowed"),
    [
        ("mlflow_topology", "cluster", "one of: host, fleet, fargate"),
        ("mlflow_zones", ["eu-central-1a"], "two to four different availability zones"),
        ("mlflow_zones", ["eu-central-1a", "eu-central-1a"], "two to four different"),
        ("mlflow_zones", [f"eu-central-1{letter}" for letter in "abcde"], "two to four different"),
        ("mlflow_zones", "eu-central-1a", "two to four different"),
        ("mlflow_fleet_size", 0, "from 1 to 100"),
        ("mlflow_fleet_size", "101", "from 1 to 100"),
        ("mlflow_fleet_size", "three", "from 1 to 100"),
        ("mlflow_fleet_size", 2.5, "from 1 to 100"),
        ("mlflow_fleet_size", "", "from 1 to 100"),
        ("mlflow_fargate_cpu", 300, "256, 512, 1024, 2048, 4096, 8192 or 16384"),
        ("mlflow_fargate_cpu", "1 vCPU", "256, 512"),
        (
            "mlflow_fargate_memory",
            1024,
            "with mlflow_fargate_cpu 1024, in MiB: 2048, 3072, 4096, 5120, 6144, 7168, 8192",
        ),
        ("mlflow_fargate_memory", 2500, "2048, 3072"),
        ("mlflow_fargate_memory", "2GB", "2048, 3072"),
        ("mlflow_fargate_min_tasks", 0, "from 1 to 100"),
        ("mlflow_fargate_max_tasks", 1, "from mlflow_fargate_min_tasks, 2, to 100"),
        ("mlflow_fargate_max_tasks", 101, "to 100"),
        ("mlflow_fargate_desired_tasks", 1, "from mlflow_fargate_min_tasks, 2, to mlflow_fargate_max_tasks, 3"),
        ("mlflow_fargate_desired_tasks", 5, "to mlflow_fargate_max_tasks, 3"),
        ("mlflow_fargate_spot", "perhaps", "true or false"),
        ("mlflow_fargate_target_cpu", 0, "from 1 to 100"),
        ("mlflow_fargate_target_requests", 0, "a number of requests"),
        ("mlflow_log_retention_days", 31, "1, 3, 5, 7, 14, 30, 60"),
        ("mlflow_access_logs", 2, "true or false"),
        ("mlflow_deregistration_delay", 3601, "from 0 to 3600"),
        ("mlflow_deregistration_delay", -1, "from 0 to 3600"),
        ("mlflow_certificate_timeout", "soon", "a number of seconds"),
        ("mlflow_database_proxy", "pgbouncer", "true or false"),
        ("mlflow_database_connections", -1, "a number of connections"),
        ("mlflow_container_base_image", "Debian:trixie", "like docker.io/library/debian:trixie-slim"),
        ("mlflow_container_base_image", "https://docker.io/debian", "the name of a container image"),
        ("mlflow_container_base_image", "debian:trixie slim", "the name of a container image"),
        ("mlflow_container_base_image", "", "the name of a container image"),
        ("mlflow_tls_private_key_file", "/etc/hostname", "empty without that"),
        ("mlflow_tls_certificate_file", "/no/such/file", "a file on this machine"),
    ],
)
def test_what_cannot_work_is_refused(variable: str, bad: Any, allowed: str) -> None:
    assert allowed in by_form(**{"mlflow_topology": "fargate", variable: bad})[variable]


def test_all_bad_inputs_are_named_at_once() -> None:
    wrong = by_form(
        mlflow_topology="fargate", mlflow_fargate_cpu=1, mlflow_fargate_min_tasks=9, mlflow_zones=["eu-central-1a"]
    )
    assert set(wrong) == {
        "mlflow_fargate_cpu",
        "mlflow_fargate_max_tasks",
        "mlflow_zones",
    }


@pytest.mark.parametrize("topology", ["fleet", "fargate"])
def test_one_variable_moves_a_stack_with_acme(topology: str) -> None:
    assert by_form(mlflow_topology=topology, mlflow_tls_acme_email="you@example.com", **DOMAIN) == {}


def test_a_certificate_is_given_once() -> None:
    files = {
        "mlflow_tls_certificate_file": str(ROLE / "README.md"),
        "mlflow_tls_private_key_file": str(ROLE / "README.md"),
    }
    given = {**files, **DOMAIN, "mlflow_certificate_arn": ARN}
    assert set(by_form(mlflow_topology="fleet", **given)) == {"mlflow_tls_certificate_file"}
    assert by_form(mlflow_topology="fleet", **files) == {}
    assert by_form(**given) == {}  # a host has no use for the ARN, and the move back needs no other change
    assert set(by_form(mlflow_tls_certificate_file=str(ROLE / "README.md"))) == {"mlflow_tls_private_key_file"}


@pytest.mark.parametrize(
    ("arn", "domain"),
    [
        (ARN.replace("eu-central-1", "us-east-1"), DOMAIN),
        (ARN.replace(":acm:", ":iam:"), DOMAIN),
        ("my-certificate", DOMAIN),
        (ARN, {}),
    ],
)
def test_an_arn_is_of_the_region_and_for_a_name(arn: str, domain: dict[str, str]) -> None:
    assert by_form(mlflow_topology="fleet", mlflow_certificate_arn=ARN, **DOMAIN) == {}
    wrong = by_form(mlflow_topology="fleet", mlflow_certificate_arn=arn, **domain)
    assert "an ACM certificate in eu-central-1" in wrong["mlflow_certificate_arn"]


# -- what AWS says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certificate", "words"),
    [
        ({}, "there is no such certificate in it"),
        (
            {"status": "PENDING_VALIDATION", "names": ["mlflow.example.com"], "covers": True},
            "this one is PENDING_VALIDATION",
        ),
        ({"status": "EXPIRED", "names": ["mlflow.example.com"], "covers": True}, "this one is EXPIRED"),
        ({"status": "ISSUED", "names": ["example.com"], "covers": False}, "ISSUED and for example.com"),
    ],
)
def test_a_certificate_is_issued_and_for_the_name(certificate: dict[str, Any], words: str) -> None:
    given = {"mlflow_certificate_arn": ARN, **DOMAIN}
    wrong = by_aws({"certificate": certificate}, mlflow_topology="fleet", **given)
    assert words in wrong["mlflow_certificate_arn"] and "for mlflow.example.com" in wrong["mlflow_certificate_arn"]
    assert by_aws({"certificate": certificate}, **given) == {}
    good = {"status": "ISSUED", "names": ["*.example.com"], "covers": True}
    assert by_aws({"certificate": good}, mlflow_topology="fleet", **given) == {}


def test_an_instance_type_matters_to_hosts_only() -> None:
    for topology in ("host", "fleet"):
        assert set(by_aws({"instance_type": {}}, mlflow_topology=topology)) == {"mlflow_instance_type"}
    assert by_aws({"instance_type": {}}, mlflow_topology="fargate") == {}
    zones = {"mlflow_zones": ["eu-central-1a", "eu-central-1c"]}
    assert (
        "that offer t3.small: eu-central-1a, eu-central-1b"
        in by_aws({}, mlflow_topology="fleet", **zones)["mlflow_zones"]
    )
    assert by_aws({}, mlflow_topology="fargate", **zones) == {}
    assert set(by_aws({}, mlflow_topology="fargate", mlflow_zones=["eu-central-1a", "eu-west-1a"])) == {"mlflow_zones"}


def test_the_stack_stays_in_its_zones() -> None:
    there = {"stack_zones": ["eu-central-1c", "eu-central-1a"]}
    assert outputs(there, mlflow_topology="fargate")["zones"] == ["eu-central-1c", "eu-central-1a"]
    assert outputs({})["zones"] == ["eu-central-1a", "eu-central-1b"]
    assert outputs({}, mlflow_zones=["eu-central-1b", "eu-central-1a"])["zones"] == ["eu-central-1b", "eu-central-1a"]
    wrong = by_aws(there, mlflow_topology="fleet")["mlflow_instance_type"]
    assert (
        "offered in the zones of the stack, eu-central-1c, eu-central-1a; t3.small is offered in eu-central-1a" in wrong
    )
    one = {"instance_type": {"architecture": "x86_64", "zones": ["eu-central-1a"]}}
    assert set(by_aws(one, mlflow_topology="fleet")) == {"mlflow_instance_type"}


def test_too_many_hosts_for_the_database() -> None:
    assert by_aws({"connections": TOO_MANY}, mlflow_topology="fleet", mlflow_fleet_size=10) == {
        "mlflow_fleet_size": "what the database carries. 10 hosts need 12 connections each, 120 together; a"
        " db.t4g.micro has 79, of which servers may use 64 and those of one topology 32 (half, as two topologies run"
        " side by side during a move). Ways out: mlflow_database_class db.t4g.medium, or mlflow_fleet_size of 2 at the"
        " most, or mlflow_database_proxy: true, to share connections (docs/scaling.md)"
    }


def test_too_many_tasks_for_the_database() -> None:
    found = {**TOO_MANY, "servers": 6, "needed_per_server": 8, "needed": 48, "largest_size": 3}
    text = by_aws({"connections": found}, mlflow_topology="fargate")["mlflow_fargate_max_tasks"]
    assert "6 tasks at once (a deployment adds to those that serve) need 8 connections each, 48 together" in text
    assert "or mlflow_fargate_max_tasks of 3 at the most, or mlflow_database_connections of 48 to 64" in text


def test_more_connections_than_the_database_has() -> None:
    found = {**TOO_MANY, "share": 500, "servers": 2, "needed": 24, "largest_size": 5, "fitting_class": "db.t4g.small"}
    (entry,) = by_aws({"connections": found}, mlflow_topology="fleet", mlflow_database_connections="500").items()
    assert entry[0] == "mlflow_database_connections"
    assert "those of one topology 500 (mlflow_database_connections)" in entry[1]


def test_a_class_that_rds_has_not_changed_yet() -> None:
    text = by_aws(
        {"connections": TOO_MANY}, mlflow_topology="fleet", mlflow_fleet_size=10, mlflow_database_class="db.t4g.medium"
    )["mlflow_fleet_size"]
    assert "The database is still a db.t4g.micro: run site.yml with mlflow_database_class db.t4g.medium" in text


def test_a_class_whose_memory_nobody_tells() -> None:
    found = {**TOO_MANY, "memory_mib": 0, "needed": 12, "database_class": "db.odd.large"}
    text = by_aws({"connections": found})["mlflow_database_connections"]
    assert text.startswith("mlflow_database_connections of 12 or more: the host may hold 12 each, and nobody tells")


def test_a_region_that_is_not_there_is_all_that_is_told() -> None:
    nothing = {"region_exists": False, "instance_type": {}, "database": {}, "connections": {}, "zones": []}
    assert set(by_aws(nothing, mlflow_topology="fleet", mlflow_certificate_arn=ARN)) == {"mlflow_region"}


def test_the_outputs_tell_the_playbooks_what_they_need() -> None:
    aws = {
        "connections": {"fits": True, "share": 88, "per_server": 44, "proxy_percent": 68, "proxy_percent_beside": 27},
        "topologies": ["host"],
    }
    assert outputs(aws, mlflow_topology="fleet", **DOMAIN) == {
        "account": "123456789012",
        "architecture": "x86_64",
        "instance_zones": ["eu-central-1a", "eu-central-1b"],
        "zones": ["eu-central-1a", "eu-central-1b"],
        "database_engine_version": "16.9",
        "connections": 88,
        "connections_per_server": 44,
        "database_proxy_exists": False,
        "database_proxy_percent": 68,
        "database_proxy_percent_beside": 27,
        "topologies": ["host"],
        "public_name": "mlflow.example.com",
    }
