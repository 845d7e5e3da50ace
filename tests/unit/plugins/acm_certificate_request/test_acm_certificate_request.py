"""A certificate is requested once, known again by its name and tags, and waited for no longer than was said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import moto.settings
import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_aws.plugins.modules import acm_certificate_request
from moto import mock_aws
from moto.acm.models import CertBundle

REGION = "eu-central-1"
NAME = "mlflow.example.com"
TAGS = {"mlflow:stack": "demo", "team": "vision"}

Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty account, in this process, where nothing is issued before a test says so."""
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(moto.settings, "ACM_VALIDATION_WAIT", 3600)
    monkeypatch.setattr(acm_certificate_request, "PAUSE", 0.05)
    with mock_aws():
        yield


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(**arguments: Any) -> dict[str, Any]:
        given = {"region": REGION, "domain_name": NAME, "tags": TAGS, **arguments}
        with patch_module_args(given), pytest.raises(SystemExit):
            acm_certificate_request.main()
        said: dict[str, Any] = json.loads(capsys.readouterr().out)
        return said

    return run


def acm() -> Any:
    return boto3.client("acm", region_name=REGION)


def status(arn: str, becomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ACM say this of a certificate from now on."""
    check = CertBundle.check

    def checked(self: CertBundle) -> None:
        check(self)
        if self.arn == arn:
            self.status = becomes

    monkeypatch.setattr(CertBundle, "check", checked)


def test_a_request_is_made_once(run: Run) -> None:
    first = run()
    assert first["changed"] is True
    assert first["status"] == "PENDING_VALIDATION"
    (record,) = first["records"]
    assert record["type"] == "CNAME"
    assert record["name"].startswith("_") and record["name"].endswith(f".{NAME}")
    assert record["value"].endswith(".acm-validations.aws.")
    again = run(domain_name=NAME.upper())
    assert (again["changed"], again["arn"], again["records"]) == (False, first["arn"], first["records"])
    tags = acm().list_tags_for_certificate(CertificateArn=first["arn"])["Tags"]
    assert {tag["Key"]: tag["Value"] for tag in tags} == TAGS


def test_what_is_of_somebody_else_or_of_another_name_is_not_taken(run: Run) -> None:
    foreign = acm().request_certificate(DomainName=NAME, ValidationMethod="DNS")["CertificateArn"]
    other = run(tags={**TAGS, "mlflow:stack": "other"})["arn"]
    elsewhere = run(domain_name="www.example.com")["arn"]
    ours = run()
    assert ours["changed"] is True
    assert len({foreign, other, elsewhere, ours["arn"]}) == 4


def test_a_failed_request_is_made_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = run()["arn"]
    status(failed, "VALIDATION_TIMED_OUT", monkeypatch)
    anew = run()
    assert anew["changed"] is True
    assert anew["arn"] != failed


def test_an_issued_certificate_comes_before_one_that_waits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    tags = [{"Key": key, "Value": value} for key, value in TAGS.items()]
    second = acm().request_certificate(DomainName=NAME, ValidationMethod="DNS", Tags=tags)["CertificateArn"]
    status(second, "ISSUED", monkeypatch)
    said = run()
    assert (said["changed"], said["arn"], said["status"]) == (False, second, "ISSUED")


@pytest.mark.parametrize(
    ("issued_after", "timeout", "expected"), [(0.2, 30, "ISSUED"), (3600, 1, "PENDING_VALIDATION")]
)
def test_the_proof_is_waited_for_as_long_as_was_said(
    run: Run, monkeypatch: pytest.MonkeyPatch, issued_after: float, timeout: int, expected: str
) -> None:
    run()
    monkeypatch.setattr(moto.settings, "ACM_VALIDATION_WAIT", issued_after)
    assert run(validation_timeout=timeout)["status"] == expected


def test_records_that_acm_has_not_named_yet_are_waited_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    describe, asked = CertBundle.describe, []

    def describe_late(self: CertBundle) -> dict[str, Any]:
        answer: dict[str, Any] = describe(self)
        asked.append(1)
        if len(asked) < 4:
            for option in answer["Certificate"].get("DomainValidationOptions", []):
                option.pop("ResourceRecord")
        return answer

    monkeypatch.setattr(CertBundle, "describe", describe_late)
    assert len(run()["records"]) == 1


def test_check_mode_requests_nothing(run: Run) -> None:
    said = run(_ansible_check_mode=True)
    assert (said["changed"], said["arn"], said["status"], said["records"]) == (True, "", "", [])
    assert acm().list_certificates()["CertificateSummaryList"] == []


def test_a_refusal_says_what_was_tried(run: Run) -> None:
    said = run(endpoint_url="http://127.0.0.1:9")
    assert said["failed"] is True
    assert said["msg"].startswith(f"Failed to request a certificate for {NAME} from ACM")
