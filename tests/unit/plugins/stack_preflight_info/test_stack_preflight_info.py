"""What preflight asks AWS, and what it makes of the answers, against botocore's own models of the services."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import boto3
import botocore.client
import pytest
from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _stack_preflight as preflight
from ansible_collections.mlops.mlflow_aws.plugins.modules import stack_preflight_info as module
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from moto import mock_aws

CLIENT: Any = botocore.client.BaseClient
INPUTS = preflight.Inputs(
    stack="demo",
    topology="host",
    instance_type="t3.small",
    fleet_size=2,
    fargate_min_tasks=2,
    fargate_max_tasks=4,
    fargate_cpu=1024,
    database_proxy=False,
    database_identifier="mlflow-demo",
    database_class="db.t4g.micro",
    database_engine_version="17",
    database_connections=0,
    domain="",
    certificate_arn="",
    certificate_name="mlflow.example.com",
)
REGION = "eu-central-1"
MINE = [{"Key": "mlflow:stack", "Value": "demo"}]


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
    """RDS's questions, which moto does not know, answered in AWS's form."""

    CLASSES = ("db.t4g.micro", "db.t4g.small", "db.t4g.medium", "db.t4g.large", "db.r6g.large", "db.odd.large")

    def __init__(
        self,
        running: str | None = None,
        orderable: bool = True,
        running_class: str = "db.t4g.micro",
        proxy: bool = False,
    ) -> None:
        self.running, self.orderable, self.running_class, self.proxy = running, orderable, running_class, proxy
        self.asked_for_all = False

    def get_paginator(self, name: str) -> Any:
        pages = {
            "describe_db_engine_versions": self.versions,
            "describe_orderable_db_instance_options": self.classes,
        }[name]
        return SimpleNamespace(paginate=pages)

    def versions(self, **asked: str) -> list[dict[str, Any]]:
        assert asked == {"Engine": "postgres"}
        return [{"DBEngineVersions": [{"EngineVersion": "16.4"}]}, {"DBEngineVersions": [{"EngineVersion": "17.6"}]}]

    def classes(self, **asked: str) -> list[dict[str, Any]]:
        """Every class once for each kind of storage, on several pages, as RDS does."""
        assert asked == {"Engine": "postgres", "EngineVersion": self.running or "17.6"}
        self.asked_for_all = True
        options = [{"DBInstanceClass": name} for name in self.CLASSES]
        return [{"OrderableDBInstanceOptions": options}, {"OrderableDBInstanceOptions": options}]

    def describe_orderable_db_instance_options(self, **asked: str) -> dict[str, Any]:
        assert set(asked) == {"Engine", "EngineVersion", "DBInstanceClass"}
        assert (asked["Engine"], asked["EngineVersion"]) == ("postgres", self.running or "17.6")
        return {"OrderableDBInstanceOptions": [{}] if self.orderable else []}

    def describe_db_instances(self, **asked: str) -> dict[str, Any]:
        assert asked == {"DBInstanceIdentifier": "mlflow-demo"}
        if self.running is None:
            raise ClientError({"Error": {"Code": "DBInstanceNotFound"}}, "DescribeDBInstances")
        return {"DBInstances": [{"EngineVersion": self.running, "DBInstanceClass": self.running_class}]}

    def describe_db_proxies(self, **asked: str) -> dict[str, Any]:
        assert asked == {"DBProxyName": "mlflow-demo"}
        if not self.proxy:
            raise ClientError({"Error": {"Code": "DBProxyNotFoundFault"}}, "DescribeDBProxies")
        return {"DBProxies": [{"DBProxyName": "mlflow-demo"}]}


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty account, in this process."""
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing-value")
    with mock_aws():
        yield


def aws(service: str, region: str = REGION) -> Any:
    return boto3.client(service, region_name=region)  # type: ignore[call-overload]


def ask(region: str, rds: Rds, **inputs: Any) -> dict[str, Any]:
    return preflight.ask(
        lambda service, where: rds if service == "rds" else aws(service, where), region, replace(INPUTS, **inputs)
    )


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
        "running_class": "",
        "engine_version": "17.6",
        "offered_majors": ["16", "17"],
        "proxy_exists": False,
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


# -- connections -------------------------------------------------------------------------------------------------------


def test_a_fleet_gets_its_share_each() -> None:
    rds = Rds()
    found = ask(REGION, rds, topology="fleet", database_class="db.t4g.small")["connections"]
    assert found == {
        "database_class": "db.t4g.small",
        "memory_mib": 2048,
        "max_connections": 192,
        "usable": 177,
        "share": 88,
        "servers": 2,
        "per_server": 44,
        "proxy_percent": 86,
        "proxy_percent_beside": 41,
        "needed_per_server": 12,
        "needed": 24,
        "largest_size": 7,
        "fits": True,
        "fitting_class": "",
    }
    assert not rds.asked_for_all  # some twenty pages, that only a refusal needs


def test_the_smallest_class_of_the_family_that_fits_is_named() -> None:
    found = ask(REGION, Rds(), topology="fleet", fleet_size=10)["connections"]
    assert (found["fits"], found["needed"], found["share"], found["fitting_class"]) == (False, 120, 32, "db.t4g.medium")
    found = ask(REGION, Rds(), topology="fargate")["connections"]
    assert (found["fits"], found["servers"], found["largest_size"]) == (False, 6, 3)
    assert found["fitting_class"] == "db.t4g.small"


def test_no_class_is_named_where_the_family_has_none() -> None:
    found = ask(REGION, Rds(), topology="fleet", fleet_size=100)["connections"]
    assert (found["fits"], found["fitting_class"]) == (False, "")
    found = ask(REGION, Rds(), topology="fleet", fleet_size=60, database_class="db.r6g.large")["connections"]
    assert (found["fits"], found["largest_size"]) == (True, 73)


def test_a_given_share_counts_up_to_what_the_database_carries() -> None:
    found = ask(REGION, Rds(), topology="fleet", fleet_size=5, database_connections=60)["connections"]
    assert (found["fits"], found["share"], found["per_server"]) == (True, 60, 12)
    found = ask(REGION, Rds(), topology="fleet", fleet_size=5, database_connections=65)["connections"]
    assert (found["fits"], found["largest_size"]) == (False, 5)


@pytest.mark.parametrize(
    ("topology", "size", "per_server"),
    [
        ("host", {}, 125),
        ("fleet", {"fleet_size": 100}, 125),
        ("fargate", {"fargate_max_tasks": 100, "fargate_cpu": 2048}, 84),
    ],
)
def test_behind_a_proxy_any_number_of_servers_fits(topology: str, size: dict[str, int], per_server: int) -> None:
    found = ask(REGION, Rds(), topology=topology, database_proxy=True, **size)["connections"]
    assert (found["fits"], found["share"], found["per_server"]) == (True, 54, per_server)
    assert (found["proxy_percent"], found["proxy_percent_beside"]) == (68, 27)


@pytest.mark.parametrize("there", [True, False])
def test_a_proxy_that_is_there_is_told(there: bool) -> None:
    assert ask(REGION, Rds("17.5", proxy=there))["database"]["proxy_exists"] is there


@pytest.mark.parametrize(
    ("wanted", "running", "counts", "share"),
    [
        ("db.t4g.medium", "db.t4g.micro", "db.t4g.micro", 32),  # RDS has not changed it yet
        ("db.t4g.micro", "db.t4g.medium", "db.t4g.micro", 32),  # RDS is about to
        ("db.t4g.medium", "db.t4g.medium", "db.t4g.medium", 201),
    ],
)
def test_the_smaller_one_of_two_classes_counts(wanted: str, running: str, counts: str, share: int) -> None:
    found = ask(REGION, Rds("17.5", running_class=running), database_class=wanted)["connections"]
    assert (found["database_class"], found["share"]) == (counts, share)


def test_a_class_without_an_ec2_type_needs_a_word() -> None:
    found = ask(REGION, Rds(), database_class="db.odd.large")["connections"]
    assert (found["memory_mib"], found["fits"], found["needed"]) == (0, False, 12)
    found = ask(REGION, Rds(), database_class="db.odd.large", database_connections=40)["connections"]
    assert (found["fits"], found["per_server"]) == (True, 40)


# -- what is there already ---------------------------------------------------------------------------------------------


def launch(*tags: dict[str, str]) -> str:
    ec2 = aws("ec2")
    found = ec2.run_instances(
        ImageId=ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"],
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": [*tags, {"Key": "Name", "Value": "x"}]}],
    )
    return str(found["Instances"][0]["InstanceId"])


def topologies() -> list[str]:
    return list(ask(REGION, Rds())["topologies"])


def test_an_empty_account_has_no_topology() -> None:
    launch({"Key": "mlflow:stack", "Value": "demo-2"})
    aws("ecs").create_cluster(clusterName="mlflow-demo-2")
    assert topologies() == []


def test_hosts_say_to_which_topology_they_belong() -> None:
    old = launch(*MINE)  # of a release that knew one topology
    assert topologies() == ["host"]
    launch(*MINE, {"Key": "mlflow:topology", "Value": "fleet"})
    assert topologies() == ["fleet", "host"]
    aws("ec2").terminate_instances(InstanceIds=[old])
    assert topologies() == ["fleet"]


def test_an_address_that_is_left_is_the_hosts() -> None:
    aws("ec2").allocate_address(Domain="vpc", TagSpecifications=[{"ResourceType": "elastic-ip", "Tags": MINE}])
    assert topologies() == ["host"]


def test_a_cluster_and_target_groups_tell_as_well() -> None:
    elbv2, vpc = aws("elbv2"), aws("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
    aws("ecs").create_cluster(clusterName="mlflow-demo")
    assert topologies() == ["fargate"]
    elbv2.create_target_group(Name="mlflow-demo-ec2", Protocol="HTTPS", Port=443, VpcId=vpc)
    assert topologies() == ["fargate", "fleet"]
    aws("ecs").delete_cluster(cluster="mlflow-demo")
    assert topologies() == ["fleet"]
    elbv2.create_target_group(Name="mlflow-demo-ecs", Protocol="HTTPS", Port=8443, VpcId=vpc)
    assert topologies() == ["fargate", "fleet"]


def test_the_zones_of_a_stack_are_in_the_order_of_its_networks() -> None:
    ec2 = aws("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    for network, zone in (("10.9.16.0/20", "a"), ("10.9.0.0/20", "c"), ("10.9.128.0/20", "c"), ("10.9.144.0/20", "a")):
        ec2.create_subnet(
            VpcId=vpc,
            CidrBlock=network,
            AvailabilityZone=REGION + zone,
            TagSpecifications=[{"ResourceType": "subnet", "Tags": MINE}],
        )
    answer = ask(REGION, Rds())
    assert answer["stack_zones"] == ["eu-central-1c", "eu-central-1a"]
    assert answer["zones"] == ["eu-central-1a", "eu-central-1b", "eu-central-1c"]


# -- certificates ------------------------------------------------------------------------------------------------------


def test_a_certificate_says_its_state_and_its_names() -> None:
    arn = aws("acm").request_certificate(DomainName="*.example.com", ValidationMethod="DNS")["CertificateArn"]
    found = ask(REGION, Rds(), certificate_arn=arn)["certificate"]
    assert (found["covers"], found["names"]) == (True, ["*.example.com"])
    assert found["status"] in ("PENDING_VALIDATION", "ISSUED")
    assert ask(REGION, Rds(), certificate_arn=arn, certificate_name="example.org")["certificate"]["covers"] is False


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws:acm:eu-central-1:123456789012:certificate/11111111-1111-1111-1111-111111111111",
        "arn:aws:acm:eu-central-1:999999999999:certificate/11111111-1111-1111-1111-111111111111",
        "arn:aws:acm:us-east-1:123456789012:certificate/11111111-1111-1111-1111-111111111111",
    ],
)
def test_a_certificate_that_is_not_there_is_an_empty_answer(arn: str) -> None:
    assert ask(REGION, Rds(), certificate_arn=arn)["certificate"] == {}


@pytest.mark.parametrize(
    ("names", "covered"),
    [
        (["mlflow.example.com"], True),
        (["example.com", "*.Example.com"], True),
        (["example.com"], False),
        (["*.mlflow.example.com"], False),
        (["*.com"], False),
        ([], False),
    ],
)
def test_a_wildcard_stands_for_one_label(names: list[str], covered: bool) -> None:
    assert preflight.covers(names, "mlflow.example.com") is covered


# -- faults ------------------------------------------------------------------------------------------------------------


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


def test_the_documented_permissions_are_those_that_the_calls_take(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, original = set(), CLIENT._make_api_call

    def call(client: Any, name: str, arguments: Any) -> Any:
        service = client.meta.service_model.service_name
        calls.add(f"{'elasticloadbalancing' if service == 'elbv2' else service}:{name}")
        return original(client, name, arguments)

    arn = aws("acm").request_certificate(DomainName="example.com", ValidationMethod="DNS")["CertificateArn"]
    monkeypatch.setattr(CLIENT, "_make_api_call", call)
    ask(REGION, Rds(), domain="example.com", certificate_arn=arn)
    documented = set(re.findall(r"C\(([a-z0-9-]+:[A-Z]\w+)\)", module.DOCUMENTATION))
    of_rds = {"EngineVersions", "Instances", "Proxies"}
    assert documented == calls | {
        "rds:DescribeOrderableDBInstanceOptions",
        *(f"rds:DescribeDB{name}" for name in of_rds),
    }


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

    answer = preflight.ask(lambda service, _: Sts() if service == "sts" else Ec2(), "eu-central-1", INPUTS)
    assert answer["account"] == "1"
