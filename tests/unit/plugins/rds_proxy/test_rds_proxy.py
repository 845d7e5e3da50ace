"""An RDS Proxy is made once, follows its options, and is waited for as long as was said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_aws.plugins.modules import rds_proxy, rds_proxy_info
from moto import mock_aws
from moto.rds.models import DBProxy, DBProxyTarget, RDSBackend, rds_backends

from local_aws.corrections import rds_proxies

REGION = "eu-central-1"
NAME = "mlflow-demo"
ROLE = "arn:aws:iam::123456789012:role/mlflow-demo-proxy"
SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:mlflow-demo/proxy-a1b2c3"
TAGS = {"mlflow:stack": "demo"}
POOL = {"max_connections_percent": 80, "max_idle_connections_percent": 40, "connection_borrow_timeout": 15}

Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An account with a database, in this process; RDS as its documentation says, where moto is not so."""
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(rds_proxy, "PAUSE", 0.05)
    with mock_aws(), monkeypatch.context() as patch:
        rds_proxies.apply(patch)
        database(NAME)
        yield


def rds() -> Any:
    return boto3.client("rds", region_name=REGION)


def database(name: str) -> None:
    rds().create_db_instance(
        DBInstanceIdentifier=name,
        DBInstanceClass="db.t4g.micro",
        Engine="postgres",
        AllocatedStorage=20,
        MasterUsername="postgres",
        MasterUserPassword="not-a-secret",
    )


def subnets() -> list[str]:
    found = boto3.client("ec2", region_name=REGION).describe_subnets()["Subnets"]
    return sorted(subnet["SubnetId"] for subnet in found)[:2]


def groups(number: int) -> list[str]:
    ec2 = boto3.client("ec2", region_name=REGION)
    return [ec2.create_security_group(GroupName=f"group-{number}", Description="-")["GroupId"]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(module: Any = rds_proxy, **arguments: Any) -> dict[str, Any]:
        with patch_module_args({"region": REGION, "name": NAME, **arguments}), pytest.raises(SystemExit):
            module.main()
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return run


@pytest.fixture
def options() -> dict[str, Any]:
    return {
        "role_arn": ROLE,
        "secret_arn": SECRET,
        "subnet_ids": subnets(),
        "security_group_ids": groups(1),
        "idle_client_timeout": 3600,
        "tags": TAGS,
        "wait_timeout": 5,
    }


def test_it_is_made_once_as_it_was_asked_for(run: Run, options: dict[str, Any]) -> None:
    first = run(**options, target=NAME, pool=POOL)
    assert first["changed"] is True
    made = first["proxy"]
    assert (made["status"], made["target"], made["target_state"], made["pool"]) == (
        "available",
        NAME,
        "AVAILABLE",
        POOL,
    )
    assert {option: made[option] for option in options if option != "wait_timeout"} == {
        option: value for option, value in options.items() if option != "wait_timeout"
    }
    (proxy,) = rds().describe_db_proxies()["DBProxies"]
    assert (proxy["RequireTLS"], proxy["EngineFamily"]) == (True, "POSTGRESQL")
    assert proxy["Auth"][0]["IAMAuth"] == "DISABLED"
    again = run(**options, target=NAME, pool=POOL)
    assert (again["changed"], again["proxy"], again["diff"]) == (False, made, {"before": {}, "after": {}})
    assert run(rds_proxy_info)["proxy"] == made


@pytest.mark.parametrize(
    "other",
    [
        {"role_arn": f"{ROLE}-2"},
        {"secret_arn": f"{SECRET}-2"},
        {"idle_client_timeout": 60},
        {"tags": {"team": "vision"}},
        {"pool": {"max_connections_percent": 30, "max_idle_connections_percent": 15}},
        {"pool": {"connection_borrow_timeout": 1}},
    ],
)
def test_one_option_changes_and_the_others_stay(run: Run, options: dict[str, Any], other: dict[str, Any]) -> None:
    before = run(**options, target=NAME, pool=POOL)["proxy"]
    foretold = run(**other, _ansible_check_mode=True)
    assert (foretold["changed"], foretold["proxy"]) == (True, before)
    said = run(**other)
    assert said["changed"] is True
    assert said["diff"] == foretold["diff"]
    expected = {name: before[name] | value if isinstance(value, dict) else value for name, value in other.items()}
    assert said["proxy"] == before | expected
    assert run(**other)["changed"] is False


def test_it_moves_to_another_security_group_and_database(run: Run, options: dict[str, Any]) -> None:
    run(**options, target=NAME)
    database("mlflow-other")
    other = groups(2)
    said = run(security_group_ids=other, target="mlflow-other")
    assert (said["proxy"]["security_group_ids"], said["proxy"]["target"]) == (other, "mlflow-other")
    (target,) = rds().describe_db_proxy_targets(DBProxyName=NAME)["Targets"]
    assert target["RdsResourceId"] == "mlflow-other"


def test_subnets_cannot_change(run: Run, options: dict[str, Any]) -> None:
    run(**options)
    said = run(subnet_ids=subnets()[:1])
    assert said["failed"] is True
    assert "RDS cannot move one" in said["msg"]


def test_it_is_not_made_of_too_little(run: Run) -> None:
    said = run(role_arn=ROLE)
    assert said["msg"].endswith("to create one needs secret_arn, subnet_ids, security_group_ids.")


def test_check_mode_makes_and_removes_nothing(run: Run, options: dict[str, Any]) -> None:
    said = run(**options, _ansible_check_mode=True)
    assert (said["changed"], said["proxy"]) == (True, {})
    assert rds().describe_db_proxies()["DBProxies"] == []
    run(**options)
    assert run(state="absent", _ansible_check_mode=True)["changed"] is True
    assert len(rds().describe_db_proxies()["DBProxies"]) == 1


def test_it_is_removed_once(run: Run, options: dict[str, Any]) -> None:
    run(**options)
    assert run(state="absent")["changed"] is True
    assert run(state="absent")["changed"] is False
    assert run(rds_proxy_info) == run(rds_proxy_info) | {"changed": False, "proxy": {}}


def test_one_that_is_being_made_is_waited_for_before_it_changes(
    run: Run, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before that: who asks without waiting goes on."""
    create, modify, describe = (
        RDSBackend.create_db_proxy,
        RDSBackend.modify_db_proxy_target_group,
        RDSBackend.describe_db_proxies,
    )
    asked: list[int] = []

    def created(self: Any, *args: Any, **kwargs: Any) -> DBProxy:
        proxy = create(self, *args, **kwargs)
        proxy.status = "creating"
        return proxy

    def modified(self: Any, *args: Any, **kwargs: Any) -> Any:
        assert self.db_proxies[NAME].status == "available"
        return modify(self, *args, **kwargs)

    def described(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        if len(asked) > 6 and NAME in self.db_proxies:
            self.db_proxies[NAME].status = "available"
        return describe(self, *args, **kwargs)

    monkeypatch.setattr(RDSBackend, "create_db_proxy", created)
    monkeypatch.setattr(RDSBackend, "modify_db_proxy_target_group", modified)
    assert run(**options, wait=False)["proxy"]["status"] == "creating"
    monkeypatch.setattr(RDSBackend, "describe_db_proxies", described)
    assert run(pool=POOL, wait_timeout=5)["proxy"]["status"] == "available"


def test_a_target_that_is_not_reached_is_told_with_its_reason(
    run: Run, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    health = {"State": "UNAVAILABLE", "Reason": "AUTH_FAILURE", "Description": "no such role"}
    monkeypatch.setattr(DBProxyTarget, "target_health", property(lambda self: health))
    run(**options)
    said = run(target=NAME, wait_timeout=0)
    assert said["failed"] is True
    assert "its target mlflow-demo is UNAVAILABLE AUTH_FAILURE no such role" in said["msg"]


def test_what_cannot_become_available_is_not_waited_for(run: Run, options: dict[str, Any]) -> None:
    run(**options)
    rds_backends["123456789012"][REGION].db_proxies[NAME].status = "insufficient-resource-limits"
    said = run(pool=POOL, wait_timeout=600)
    assert "it is insufficient-resource-limits" in said["msg"]


@pytest.mark.parametrize(("module", "words"), [(rds_proxy, "Failed to bring"), (rds_proxy_info, "Failed to describe")])
def test_a_refusal_says_what_was_tried(run: Run, module: Any, words: str) -> None:
    said = run(module, endpoint_url="http://127.0.0.1:9")
    assert said["failed"] is True
    assert said["msg"].startswith(f"{words} the RDS Proxy {NAME}")
