"""What preflight asks AWS, and what it makes of the answers, against botocore's own models of the services."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _stack_preflight as preflight
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from moto import mock_aws

INPUTS = {
    "stack": "demo",
    "instance_type": "t3.small",
    "database_identifier": "mlflow-demo",
    "database_class": "db.t4g.micro",
    "database_engine_version": "17",
    "domain": "",
}


@pytest.mark.parametrize(
    ("wanted", "running", "chosen"),
    [
        ("17", None, "17.10"),  # the newest as a number, not as a text
        ("16", None, "16.4"),
        ("17.4", None, "17.4"),
        ("17.3", None, ""),
        ("18", None, ""),
        ("17", "17.4", "17.4"),  # a running minor version stays
        ("17", "17.2", "17.2"),  # also one that RDS no longer offers
        ("17.2", "17.2", "17.2"),
        ("16", "17.4", "16.4"),  # another major: preflight refuses it, by comparing with what runs
    ],
)
def test_choose_version(wanted: str, running: str | None, chosen: str) -> None:
    offered = ["16.4", "17.4", "17.9", "17.10", "11.22-rds.20240418"]
    assert preflight.choose_version(wanted, offered, running) == chosen


class Rds:
    """RDS's three questions, which moto does not know, answered in AWS's form."""

    def __init__(self, running: str | None = None, orderable: bool = True) -> None:
        self.running, self.orderable = running, orderable

    def get_paginator(self, name: str) -> Rds:
        assert name == "describe_db_engine_versions"
        return self

    def paginate(self, Engine: str) -> list[dict[str, Any]]:  # noqa: N803
        assert Engine == "postgres"
        return [{"DBEngineVersions": [{"EngineVersion": "16.4"}]}, {"DBEngineVersions": [{"EngineVersion": "17.6"}]}]

    def describe_orderable_db_instance_options(self, **asked: str) -> dict[str, Any]:
        assert asked == {
            "Engine": "postgres",
            "EngineVersion": self.running or "17.6",
            "DBInstanceClass": "db.t4g.micro",
        }
        return {"OrderableDBInstanceOptions": [{}] if self.orderable else []}

    def describe_db_instances(self, **asked: str) -> dict[str, Any]:
        assert asked == {"DBInstanceIdentifier": "mlflow-demo"}
        if self.running is None:
            raise ClientError({"Error": {"Code": "DBInstanceNotFound"}}, "DescribeDBInstances")
        return {"DBInstances": [{"EngineVersion": self.running}]}


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty account, in this process."""
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-value")
    with mock_aws():
        yield


def ask(region: str, rds: Rds, **inputs: str) -> dict[str, Any]:
    def client(service: str, where: str) -> Any:
        return rds if service == "rds" else boto3.client(service, region_name=where)  # type: ignore[call-overload]

    return preflight.ask(client, region, **{**INPUTS, **inputs})


def test_everything_is_there() -> None:
    zone = boto3.client("route53").create_hosted_zone(Name="example.com", CallerReference="1")["HostedZone"]["Id"]
    boto3.client("ec2", region_name="eu-central-1").create_vpc(
        CidrBlock="10.9.0.0/16",
        TagSpecifications=[{"ResourceType": "vpc", "Tags": [{"Key": "mlflow:stack", "Value": "demo"}]}],
    )
    answer = ask("eu-central-1", Rds(), domain="example.com")
    assert answer["region_exists"]
    assert answer["account"] == "123456789012"
    assert answer["vpc_cidrs"] == ["10.9.0.0/16"]
    assert "/hostedzone/" + answer["hosted_zone_id"] == zone
    assert answer["instance_type"]["architecture"] == "x86_64"
    assert answer["instance_type"]["memory_mib"] == 2048
    assert "eu-central-1a" in answer["instance_type"]["zones"]
    assert answer["database"] == {
        "exists": False,
        "running_version": "",
        "engine_version": "17.6",
        "offered_majors": ["16", "17"],
        "class_offered": True,
    }


def test_an_arm_type_says_so() -> None:
    assert ask("eu-central-1", Rds(), instance_type="t4g.small")["instance_type"]["architecture"] == "arm64"


def test_what_aws_does_not_know_is_an_empty_answer() -> None:
    answer = ask("eu-central-1", Rds(orderable=False), instance_type="t9.nano", domain="example.org")
    assert answer["instance_type"] == {}
    assert answer["hosted_zone_id"] == ""
    assert answer["database"]["class_offered"] is False


def test_a_neighbour_or_a_private_zone_is_not_the_zone() -> None:
    route53 = boto3.client("route53")
    route53.create_hosted_zone(Name="example.com.au", CallerReference="1")
    route53.create_hosted_zone(
        Name="example.com",
        CallerReference="2",
        HostedZoneConfig={"PrivateZone": True},
        VPC={"VPCRegion": "eu-central-1", "VPCId": "vpc-1"},
    )
    assert ask("eu-central-1", Rds(), domain="example.com")["hosted_zone_id"] == ""


def test_an_unknown_region_is_asked_nothing() -> None:
    """The list comes from a region that exists: the unknown one has no address to be asked at."""
    answer = ask("eu-central-9", Rds())
    assert not answer["region_exists"]
    assert "eu-central-1" in answer["regions"]
    assert answer["instance_type"] == {}


def test_a_running_database_is_reported() -> None:
    database = ask("eu-central-1", Rds(running="17.5"))["database"]
    assert (database["exists"], database["running_version"], database["engine_version"]) == (True, "17.5", "17.5")


def fails_with(error: Exception) -> str:
    def question() -> None:
        raise error

    with pytest.raises(preflight.PreflightError) as caught:
        preflight._guard("list the regions", "ec2:DescribeRegions", question)
    return str(caught.value)


def test_missing_credentials_say_where_they_are_looked_for() -> None:
    text = fails_with(NoCredentialsError())
    assert "AWS_PROFILE" in text
    assert "aws configure" in text
    assert "Nothing was changed." in text


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("UnauthorizedOperation", "The credentials need ec2:DescribeRegions."),
        ("ExpiredToken", "wrong or have expired"),
        ("AuthFailure", "wrong or have expired"),
        ("RequestLimitExceeded", "run the playbook again"),
    ],
)
def test_what_aws_refuses_names_the_next_step(code: str, words: str) -> None:
    text = fails_with(ClientError({"Error": {"Code": code, "Message": "no"}}, "DescribeRegions"))
    assert text.startswith("Failed to list the regions: ")
    assert words in text
    assert "Nothing was changed" in text or "Nothing was changed;" in text


def test_an_unreachable_endpoint_points_at_the_network() -> None:
    assert "HTTPS_PROXY" in fails_with(EndpointConnectionError(endpoint_url="https://ec2.example"))


def test_questions_are_asked_at_the_same_time() -> None:
    """Two questions that wait for each other would never end if they were asked one after the other."""
    both = threading.Barrier(2, timeout=10)

    class Sts:
        def get_caller_identity(self) -> dict[str, str]:
            both.wait()
            return {"Account": "1", "Arn": "arn"}

    class Ec2:
        def describe_regions(self) -> dict[str, list[dict[str, str]]]:
            both.wait()
            return {"Regions": []}

    answer = preflight.ask(lambda service, _: Sts() if service == "sts" else Ec2(), "eu-central-1", **INPUTS)
    assert answer["account"] == "1"
