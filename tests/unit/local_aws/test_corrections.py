"""Each correction is asked for twice: without it moto must still be wrong, with it the answer must be AWS's."""

from __future__ import annotations

import json
import pkgutil
from pathlib import Path
from typing import Any

import boto3
import flask
import pytest
from botocore.exceptions import ClientError
from corrected_moto import use
from moto.iam.access_control import IAMPolicy, PermissionResult

from local_aws import corrections
from local_aws.corrections import (
    acm_imports,
    elastic_ip_tags,
    elbv2_attributes,
    elbv2_dependencies,
    elbv2_target_groups,
    iam_statements,
    rds_offers,
    rds_parameter_groups,
    rds_storage,
)
from local_aws.server import secure_transport
from local_aws.tls import Authority, Pem

pytestmark = pytest.mark.usefixtures("account")

BUCKET = "bucket"
TLS_ONLY = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    ],
}


def error_of(call: Any, **arguments: Any) -> str | None:
    """Code of the error that a call ends with, or None."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    return None


def create_database(version: str = "16.4", instance_class: str = "db.t4g.micro") -> dict[str, Any]:
    return dict(
        boto3.client("rds").create_db_instance(
            DBInstanceIdentifier="db",
            Engine="postgres",
            EngineVersion=version,
            DBInstanceClass=instance_class,
            AllocatedStorage=20,
            StorageType="gp3",
            MasterUsername="master",
            MasterUserPassword="not-a-secret",
        )["DBInstance"]
    )


def test_every_correction_is_applied() -> None:
    there = {module.name for module in pkgutil.iter_modules(corrections.__path__)}
    assert {correction.__name__.rpartition(".")[2] for correction in corrections.ALL} == there


@pytest.mark.parametrize("secure", [True, False])
def test_a_tls_only_bucket_serves_what_comes_over_tls(
    secure: bool, corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(iam_statements, corrected, monkeypatch)
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    s3.put_object(Bucket=BUCKET, Key="a", Body=b"1")
    s3.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(TLS_ONLY))
    token = secure_transport.set(secure)
    try:
        refused = error_of(s3.get_object, Bucket=BUCKET, Key="a")
    finally:
        secure_transport.reset(token)
    # moto refuses either way; AWS only what comes without TLS
    assert (refused is None) == (corrected and secure)


@pytest.mark.parametrize(
    ("condition", "context", "holds"),
    [
        ({"StringEquals": {"a": ["x", "y"]}}, {"A": "y"}, True),
        ({"StringEquals": {"a": "x"}}, {}, False),
        ({"StringEqualsIfExists": {"a": "x"}}, {}, True),
        ({"StringNotEquals": {"a": ["x", "y"]}}, {"a": "y"}, False),
        ({"StringNotEquals": {"a": "x"}}, {}, True),
        ({"StringLike": {"a": "b*[1]?"}}, {"a": "bb[1]z"}, True),
        ({"StringLike": {"a": "b[1]"}}, {"a": "b1"}, False),
        ({"Bool": {"a": False}}, {"a": "false"}, True),
        ({"Null": {"a": "true"}}, {}, True),
        ({"Null": {"a": "true"}}, {"a": "x"}, False),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:SourceIp": "10.1.2.3"}, True),
        ({"NotIpAddress": {"aws:SourceIp": "10.0.0.0/8"}}, {"aws:SourceIp": "10.1.2.3"}, False),
        ({"NumericLessThan": {"s3:max-keys": "10"}}, {"s3:max-keys": "9"}, True),
        ({"StringEquals": {"a": "x"}, "Bool": {"b": "true"}}, {"a": "x", "b": "false"}, False),
    ],
)
def test_conditions_hold_as_iam_says(condition: dict[str, Any], context: dict[str, str], holds: bool) -> None:
    assert iam_statements.fulfilled(condition, context) is holds


def test_an_operator_that_is_not_known_is_no_silent_yes() -> None:
    with pytest.raises(NotImplementedError, match="DateGreaterThan"):
        iam_statements.fulfilled({"DateGreaterThan": {"a": "x"}}, {"a": "y"})


def test_a_statement_for_another_principal_denies_nothing(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(iam_statements, corrected, monkeypatch)
    statement = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "arn:aws:iam::1:user/other"}}
    policy = IAMPolicy(json.dumps({"Statement": [statement]}))
    result = policy.is_action_permitted("sts:AssumeRole", "*", "arn:aws:iam::1:user/me")
    assert result is (PermissionResult.NEUTRAL if corrected else PermissionResult.DENIED)


def test_an_unknown_parameter_group_is_an_error(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(rds_parameter_groups, corrected, monkeypatch)
    code = error_of(boto3.client("rds").describe_db_parameter_groups, DBParameterGroupName="nope")
    assert code == ("DBParameterGroupNotFound" if corrected else None)


def test_gp3_reports_its_baseline(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(rds_storage, corrected, monkeypatch)
    database = create_database()
    assert database.get("StorageThroughput") == (125 if corrected else None)
    assert database.get("Iops") == (3000 if corrected else None)


def test_large_volumes_have_four_times_the_baseline() -> None:
    assert rds_storage.baseline(399) == (3000, 125)
    assert rds_storage.baseline(400) == (12000, 500)


def test_the_tags_of_an_elastic_ip_are_found_by_its_type(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(elastic_ip_tags, corrected, monkeypatch)
    ec2 = boto3.client("ec2")
    tags = [{"ResourceType": "elastic-ip", "Tags": [{"Key": "a", "Value": "b"}]}]
    ec2.allocate_address(Domain="vpc", TagSpecifications=tags)
    found = ec2.describe_tags(Filters=[{"Name": "resource-type", "Values": ["elastic-ip"]}])["Tags"]
    assert len(found) == (1 if corrected else 0)


def test_rds_offers_versions(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(rds_offers, corrected, monkeypatch)
    rds = boto3.client("rds")
    if not corrected:
        with pytest.raises(NotImplementedError):
            rds.describe_db_engine_versions(Engine="postgres")
        return

    def offered(**arguments: Any) -> list[str]:
        found = rds.describe_db_engine_versions(Engine="postgres", **arguments)["DBEngineVersions"]
        return [version["EngineVersion"] for version in found]

    assert {version.partition(".")[0] for version in offered()} == {"14", "15", "16", "17"}
    assert offered(EngineVersion="16.4") == ["16.4"]
    assert offered(EngineVersion="16") == [f"16.{minor}" for minor in rds_offers.MINORS[16]]
    assert offered(EngineVersion="99.9") == []
    assert offered(DBParameterGroupFamily="postgres15") == offered(EngineVersion="15")
    assert offered(DefaultOnly=True) == [rds_offers.default_version()]
    assert offered(EngineVersion="14", DefaultOnly=True) == [rds_offers.default_version(14)]


def test_rds_offers_classes(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(rds_offers, corrected, monkeypatch)
    rds = boto3.client("rds")

    def options(**arguments: Any) -> list[Any]:
        return list(
            rds.describe_orderable_db_instance_options(Engine="postgres", **arguments)["OrderableDBInstanceOptions"]
        )

    found = options(EngineVersion="16.4", DBInstanceClass="db.t4g.micro")
    assert bool(found) is corrected
    assert {option["StorageType"] for option in found} == (set(rds_offers.STORAGE_TYPES) if corrected else set())
    assert options(EngineVersion="16.4", DBInstanceClass="db.nope") == []
    assert options(EngineVersion="99.9", DBInstanceClass="db.t4g.micro") == []


@pytest.mark.parametrize(("version", "instance_class"), [("99.9", "db.t4g.micro"), ("16.4", "db.nope")])
def test_rds_refuses_what_it_does_not_offer(
    version: str, instance_class: str, corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(rds_offers, corrected, monkeypatch)
    code = error_of(create_database, version=version, instance_class=instance_class)
    assert code == ("InvalidParameterCombination" if corrected else None)


def test_a_major_version_means_its_default_minor(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(rds_offers, corrected, monkeypatch)
    assert create_database("16")["EngineVersion"] == (rds_offers.default_version(16) if corrected else "16")


def test_a_listing_carries_its_prefix_into_the_conditions() -> None:
    app = flask.Flask(__name__)
    with app.test_request_context("/bucket?list-type=2&prefix=artifacts%2F1&delimiter=%2F"):
        keys = iam_statements.s3_list_keys("s3:ListBucket")
        assert keys == {"s3:prefix": "artifacts/1", "s3:delimiter": "/"}
        assert iam_statements.fulfilled({"StringLike": {"s3:prefix": ["artifacts/*"]}}, keys)
        assert not iam_statements.fulfilled({"StringLike": {"s3:prefix": ["other/*"]}}, keys)
        assert iam_statements.s3_list_keys("s3:GetObject") == {}
    with app.test_request_context("/bucket?list-type=2"):
        keys = iam_statements.s3_list_keys("s3:ListBucket")
        assert not iam_statements.fulfilled({"StringLike": {"s3:prefix": ["artifacts/*"]}}, keys)


def create_balancer(**arguments: Any) -> dict[str, Any]:
    ec2 = boto3.client("ec2")
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]]
    made = boto3.client("elbv2").create_load_balancer(Name="lb", Subnets=subnets, **arguments)
    return dict(made["LoadBalancers"][0])


def create_target_group(balancer: dict[str, Any]) -> str:
    made = boto3.client("elbv2").create_target_group(
        Name="group", Protocol="HTTP", Port=80, VpcId=balancer["VpcId"], TargetType="ip"
    )
    return str(made["TargetGroups"][0]["TargetGroupArn"])


def test_a_load_balancer_has_all_its_attributes(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(elbv2_attributes, corrected, monkeypatch)
    balancer = create_balancer()
    found = boto3.client("elbv2").describe_load_balancer_attributes(LoadBalancerArn=balancer["LoadBalancerArn"])
    attributes = {attribute["Key"]: attribute["Value"] for attribute in found["Attributes"]}
    assert (attributes.get("idle_timeout.timeout_seconds") == "60") is corrected
    assert (attributes.get("routing.http.drop_invalid_header_fields.enabled") == "false") is corrected
    assert (balancer.get("Scheme") == "internet-facing") is corrected


def test_deletion_protection_protects(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(elbv2_attributes, corrected, monkeypatch)
    elbv2, arn = boto3.client("elbv2"), create_balancer()["LoadBalancerArn"]
    protection = {"Key": "deletion_protection.enabled", "Value": "true"}
    elbv2.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=[protection])
    assert error_of(elbv2.delete_load_balancer, LoadBalancerArn=arn) == ("OperationNotPermitted" if corrected else None)
    assert len(elbv2.describe_load_balancers()["LoadBalancers"]) == (1 if corrected else 0)


def test_a_load_balancer_keeps_its_subnets_and_security_groups(
    corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(elbv2_dependencies, corrected, monkeypatch)
    ec2 = boto3.client("ec2")
    group = ec2.create_security_group(
        GroupName="lb", Description="lb", VpcId=ec2.describe_subnets()["Subnets"][0]["VpcId"]
    )["GroupId"]
    balancer = create_balancer(SecurityGroups=[group])
    subnet = balancer["AvailabilityZones"][0]["SubnetId"]
    refused = "DependencyViolation" if corrected else None
    assert error_of(ec2.delete_subnet, SubnetId=subnet) == refused
    assert error_of(ec2.delete_security_group, GroupId=group) == refused
    boto3.client("elbv2").delete_load_balancer(LoadBalancerArn=balancer["LoadBalancerArn"])
    if corrected:
        ec2.delete_subnet(SubnetId=subnet)
        ec2.delete_security_group(GroupId=group)


def test_a_target_group_forgets_the_load_balancer_that_no_longer_routes_to_it(
    corrected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(elbv2_target_groups, corrected, monkeypatch)
    elbv2, balancer = boto3.client("elbv2"), create_balancer()
    group = create_target_group(balancer)

    def arns() -> list[str]:
        return list(elbv2.describe_target_groups(TargetGroupArns=[group])["TargetGroups"][0]["LoadBalancerArns"])

    listener = elbv2.create_listener(
        LoadBalancerArn=balancer["LoadBalancerArn"],
        Protocol="HTTP",
        Port=80,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
    )["Listeners"][0]["ListenerArn"]
    assert arns() == [balancer["LoadBalancerArn"]]
    elbv2.delete_listener(ListenerArn=listener)
    assert arns() == ([] if corrected else [balancer["LoadBalancerArn"]])


def test_a_target_that_is_not_registered_can_be_deregistered(corrected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    use(elbv2_target_groups, corrected, monkeypatch)
    elbv2, group = boto3.client("elbv2"), create_target_group(create_balancer())
    code = error_of(elbv2.deregister_targets, TargetGroupArn=group, Targets=[{"Id": "172.31.0.9"}])
    assert code == (None if corrected else "InvalidTarget")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca.pem", tmp_path / "ca.key")


def import_certificate(pem: Pem, **arguments: Any) -> str:
    made = boto3.client("acm").import_certificate(Certificate=pem.certificate, PrivateKey=pem.key, **arguments)
    return str(made["CertificateArn"])


@pytest.mark.parametrize("chained", [True, False])
def test_an_imported_chain_comes_back_as_it_went(
    chained: bool, corrected: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(acm_imports, corrected, monkeypatch)
    pem = authority.issue(["a.example"])
    arn = import_certificate(pem, **({"CertificateChain": authority.pem} if chained else {}))
    chain = boto3.client("acm").get_certificate(CertificateArn=arn)["CertificateChain"]
    assert (chain == (authority.pem if chained else pem.certificate).decode()) is corrected


def test_an_imported_certificate_keeps_its_tags(
    corrected: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(acm_imports, corrected, monkeypatch)
    acm, tags = boto3.client("acm"), [{"Key": "a", "Value": "b"}]
    arn = import_certificate(authority.issue(["a.example"]), Tags=tags)
    assert import_certificate(authority.issue(["a.example"]), CertificateArn=arn) == arn
    assert acm.list_tags_for_certificate(CertificateArn=arn)["Tags"] == (tags if corrected else [])


def test_a_certificate_that_is_presented_is_in_use(
    corrected: bool, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(acm_imports, corrected, monkeypatch)
    acm, elbv2, balancer = boto3.client("acm"), boto3.client("elbv2"), create_balancer()
    arn, group = import_certificate(authority.issue(["a.example"])), create_target_group(balancer)
    listener = elbv2.create_listener(
        LoadBalancerArn=balancer["LoadBalancerArn"],
        Protocol="HTTPS",
        Port=443,
        Certificates=[{"CertificateArn": arn}],
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
    )["Listeners"][0]["ListenerArn"]
    used_by = acm.describe_certificate(CertificateArn=arn)["Certificate"]["InUseBy"]
    assert used_by == [balancer["LoadBalancerArn"] if corrected else listener]
    assert error_of(acm.delete_certificate, CertificateArn=arn) == ("ResourceInUseException" if corrected else None)
    elbv2.delete_listener(ListenerArn=listener)
    if corrected:
        assert acm.describe_certificate(CertificateArn=arn)["Certificate"]["InUseBy"] == []
        acm.delete_certificate(CertificateArn=arn)
