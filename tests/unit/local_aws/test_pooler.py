"""What moto knows of RDS Proxies beside what RDS does, and what PgBouncer is told."""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from moto import mock_aws

from local_aws.corrections import rds_proxies
from local_aws.database_proxies import configuration, connections, quoted

REGION = "eu-central-1"


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An account with two databases and a proxy, in this process."""
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": REGION}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        for name in ("one", "two"):
            rds().create_db_instance(
                DBInstanceIdentifier=name,
                Engine="postgres",
                DBInstanceClass="db.t4g.micro",
                AllocatedStorage=20,
                MasterUsername="master",
                MasterUserPassword="not-a-secret",
            )
        subnets = boto3.client("ec2").describe_subnets()["Subnets"]
        rds().create_db_proxy(
            DBProxyName="proxy",
            EngineFamily="POSTGRESQL",
            Auth=[{"AuthScheme": "SECRETS", "SecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:x"}],
            RoleArn="arn:aws:iam::123456789012:role/proxy",
            VpcSubnetIds=[subnet["SubnetId"] for subnet in subnets[:2]],
        )
        yield


@pytest.fixture(params=[False, True], ids=["moto", "corrected"])
def corrected(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the correction is applied."""
    if request.param:
        rds_proxies.apply(monkeypatch)
    return bool(request.param)


def rds() -> Any:
    return boto3.client("rds")


def refused(call: Any, **arguments: Any) -> str | None:
    """Code of RDS's refusal, or None; moto's own failures are none of RDS's."""
    try:
        call(**arguments)
    except ClientError as error:
        return error.response["Error"]["Code"]
    except (KeyError, NotImplementedError, AttributeError):
        return "moto failed"
    return None


def test_a_proxy_can_be_modified(corrected: bool) -> None:
    role = "arn:aws:iam::123456789012:role/another"
    said = refused(rds().modify_db_proxy, DBProxyName="proxy", RoleArn=role, IdleClientTimeout=60)
    (proxy,) = rds().describe_db_proxies()["DBProxies"]
    assert (said is None, proxy["RoleArn"] == role, proxy["IdleClientTimeout"] == 60) == (corrected,) * 3


def test_a_proxy_has_one_database(corrected: bool) -> None:
    register = rds().register_db_proxy_targets
    assert refused(register, DBProxyName="proxy", DBInstanceIdentifiers=["one"]) is None
    said = refused(register, DBProxyName="proxy", DBInstanceIdentifiers=["two"])
    assert said == ("DBProxyTargetAlreadyRegisteredFault" if corrected else None)
    targets = rds().describe_db_proxy_targets(DBProxyName="proxy")["Targets"]
    assert [target["RdsResourceId"] for target in targets] == (["one"] if corrected else ["one", "two"])


def test_a_database_that_is_not_there_is_refused(corrected: bool) -> None:
    said = refused(rds().register_db_proxy_targets, DBProxyName="proxy", DBInstanceIdentifiers=["three"])
    assert said == ("DBInstanceNotFound" if corrected else None)


@pytest.mark.parametrize(
    ("operation", "more"),
    [
        ("delete_db_proxy", {}),
        ("describe_db_proxy_targets", {}),
        ("describe_db_proxy_target_groups", {}),
        ("register_db_proxy_targets", {"DBInstanceIdentifiers": ["one"]}),
        ("deregister_db_proxy_targets", {"DBInstanceIdentifiers": ["one"]}),
        ("modify_db_proxy_target_group", {"TargetGroupName": "default", "ConnectionPoolConfig": {}}),
    ],
)
def test_a_proxy_that_is_not_there_is_refused(operation: str, more: dict[str, Any], corrected: bool) -> None:
    said = refused(getattr(rds(), operation), DBProxyName="nobody", **more)
    assert said == ("DBProxyNotFoundFault" if corrected else "moto failed")


@pytest.mark.parametrize(
    ("percent", "instance_class", "most"),
    [(100, "db.t4g.micro", 79), (68, "db.t4g.micro", 53), (1, "db.t4g.micro", 1), (99, "db.r7g.2xlarge", 4950)],
)
def test_a_percentage_is_rounded_down_but_not_to_nothing(percent: int, instance_class: str, most: int) -> None:
    assert connections(percent, instance_class) == most


def test_pgbouncer_lends_for_a_transaction_and_opens_no_more_than_it_may() -> None:
    told = configparser.ConfigParser()
    told.read_string(configuration("host=db port=5432", 53, 15, 3600))
    assert dict(told["databases"]) == {"*": "host=db port=5432"}
    pooler = told["pgbouncer"]
    assert (pooler["pool_mode"], pooler["client_tls_sslmode"], pooler["auth_type"]) == (
        "transaction",
        "require",
        "scram-sha-256",
    )
    # over all databases of the one login
    assert (pooler["max_user_connections"], pooler["default_pool_size"]) == ("53", "53")
    assert (pooler["query_wait_timeout"], pooler["client_idle_timeout"]) == ("15", "3600")
    told.read_string(configuration("", 1, 15, 3600))


def test_a_password_may_have_quotes() -> None:
    assert quoted('a"b') == '"a""b"'
