"""Who may act as the roles of roles/aws_identity, what they may do, and what not."""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[3] / "roles/aws_identity"
INPUTS = {
    "aws_identity_stack": "demo",
    "aws_identity_bucket_arn": "arn:aws:s3:::mlflow-demo",
    "aws_identity_region": "eu-central-1",
    "aws_identity_account": "123456789012",
}
HERE = "eu-central-1:123456789012"
SECRET = f"arn:aws:secretsmanager:{HERE}:secret:mlflow"
KEY = f"arn:aws:kms:{HERE}:key/1"


def templar(**inputs: Any) -> Templar:
    loader = DataLoader()
    variables: dict[str, Any] = {}
    for path in ("defaults/main.yml", "vars/main.yml"):
        variables |= loader.load_from_file(str(ROLE / path), cache="none", trusted_as_template=True)
    return Templar(loader=loader, variables=variables | INPUTS | inputs)


def document(template: str, **inputs: Any) -> dict[str, Any]:
    text = (ROLE / "templates" / f"{template}.json.j2").read_text(encoding="utf-8")
    policy: dict[str, Any] = json.loads(templar(**inputs).template(trust_as_template(text)))
    return policy


def policy(role: str, **inputs: Any) -> dict[str, Any]:
    roles: list[dict[str, Any]] = templar(**inputs).template(trust_as_template("{{ __aws_identity_service_roles }}"))
    (chosen,) = (item for item in roles if item["name"] == f"mlflow-demo-{role}")
    return document(f"{chosen['policy']}_policy", __aws_identity_item=chosen, **inputs)


def _list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def allows(policy: dict[str, Any], action: str, resource: str) -> bool:
    """Whether a policy of Allow statements covers the call; conditions are tested where they matter."""
    return any(
        statement["Effect"] == "Allow"
        and any(fnmatchcase(action, pattern) for pattern in _list(statement["Action"]))
        and any(fnmatchcase(resource, pattern) for pattern in _list(statement["Resource"]))
        for statement in policy["Statement"]
    )


READ = "secretsmanager:GetSecretValue"
BOTH = ["execution", "setup"]


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("ecr:GetAuthorizationToken", "*"),
        ("ecr:BatchGetImage", f"arn:aws:ecr:{HERE}:repository/mlflow-demo"),
        ("ecr:GetDownloadUrlForLayer", f"arn:aws:ecr:{HERE}:repository/mlflow-demo"),
        ("ecr:BatchCheckLayerAvailability", f"arn:aws:ecr:{HERE}:repository/mlflow-demo"),
        ("logs:CreateLogStream", f"arn:aws:logs:{HERE}:log-group:/mlflow/demo:log-stream:mlflow/mlflow/1"),
        ("logs:PutLogEvents", f"arn:aws:logs:{HERE}:log-group:/mlflow/demo:log-stream:mlflow/mlflow/1"),
        (READ, f"{SECRET}-demo/server-AbCdEf"),
    ],
)
def test_a_task_can_be_started(role: str, action: str, resource: str) -> None:
    assert allows(policy(role), action, resource)


@pytest.mark.parametrize("role", BOTH)
@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("ecr:PutImage", f"arn:aws:ecr:{HERE}:repository/mlflow-demo"),
        ("ecr:BatchGetImage", f"arn:aws:ecr:{HERE}:repository/mlflow-demo-2"),
        ("logs:PutLogEvents", f"arn:aws:logs:{HERE}:log-group:/mlflow/demo-2:log-stream:a"),
        ("logs:CreateLogGroup", f"arn:aws:logs:{HERE}:log-group:/mlflow/demo:log-stream:a"),
        ("logs:GetLogEvents", f"arn:aws:logs:{HERE}:log-group:/mlflow/demo:log-stream:a"),
        (READ, f"{SECRET}-demo/ssh-AbCdEf"),
        (READ, f"{SECRET}-demo-2/server-AbCdEf"),
        (READ, f"{SECRET}-demo/server-of-others-AbCdEf"),
        ("secretsmanager:PutSecretValue", f"{SECRET}-demo/server-AbCdEf"),
        ("kms:Decrypt", KEY),
        ("s3:GetObject", "arn:aws:s3:::mlflow-demo/artifacts/1"),
        ("iam:PassRole", "arn:aws:iam::123456789012:role/mlflow-demo-task"),
    ],
)
def test_a_task_is_started_with_nothing_else(role: str, action: str, resource: str) -> None:
    assert not allows(policy(role), action, resource)


def test_only_the_setup_reads_the_master_password() -> None:
    assert allows(policy("setup"), READ, f"{SECRET}-demo/database-AbCdEf")
    assert not allows(policy("execution"), READ, f"{SECRET}-demo/database-AbCdEf")


def test_the_program_may_what_the_instance_may() -> None:
    assert policy("task") == document("artifacts_policy")
    assert allows(policy("task"), "s3:PutObject", "arn:aws:s3:::mlflow-demo/artifacts/1")
    assert not allows(policy("task"), "s3:PutObject", "arn:aws:s3:::mlflow-demo/other/1")
    assert not allows(policy("task"), READ, f"{SECRET}-demo/server-AbCdEf")


@pytest.mark.parametrize("role", BOTH)
def test_a_key_of_the_users_own_opens_secrets_through_their_service_only(role: str) -> None:
    given = policy(role, aws_identity_secrets_kms_key_arn=KEY)
    assert allows(given, "kms:Decrypt", KEY)
    assert not allows(given, "kms:Decrypt", KEY + "1")
    (statement,) = (item for item in given["Statement"] if item["Resource"] == KEY)
    assert statement["Condition"] == {"StringEquals": {"kms:ViaService": "secretsmanager.eu-central-1.amazonaws.com"}}


def test_ecs_acts_for_this_account_and_region_only() -> None:
    (statement,) = document("service_trust_policy")["Statement"]
    assert statement["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
    assert statement["Condition"] == {
        "StringEquals": {"aws:SourceAccount": "123456789012"},
        "ArnLike": {"aws:SourceArn": f"arn:aws:ecs:{HERE}:*"},
    }


@pytest.mark.parametrize(
    ("region", "partition"), [("cn-north-1", "aws-cn"), ("us-gov-west-1", "aws-us-gov"), ("eu-west-1", "aws")]
)
def test_arns_are_those_of_the_partition(region: str, partition: str) -> None:
    given = policy("setup", aws_identity_region=region, aws_identity_secrets_kms_key_arn=f"arn:{partition}:kms:x")
    arns = [arn for item in given["Statement"] for arn in _list(item["Resource"]) if arn != "*"]
    assert arns and all(arn.startswith(f"arn:{partition}:") for arn in arns)
