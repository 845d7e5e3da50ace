"""The login that ECR gives, taken apart; and what is said when it gives none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.mlops.mlflow_aws.plugins.modules import ecr_authorization_info
from moto import mock_aws


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)


def run(capsys: pytest.CaptureFixture[str], **arguments: str) -> dict[str, Any]:
    with patch_module_args({"region": "eu-central-1", **arguments}), pytest.raises(SystemExit):
        ecr_authorization_info.main()
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_the_login_is_taken_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with mock_aws():
        said = run(capsys)
    assert said["changed"] is False
    assert said["registry"] == "123456789012.dkr.ecr.eu-central-1.amazonaws.com"
    assert (said["username"], said["password"]) == ("AWS", "123456789012-auth-token")
    assert said["expires_at"].startswith("2015-01-01T00:00:00")


def test_a_refusal_names_the_permission(capsys: pytest.CaptureFixture[str]) -> None:
    said = run(capsys, endpoint_url="http://127.0.0.1:9")
    assert said["failed"] is True
    assert said["msg"].startswith("Failed to ask ECR for a login (it needs ecr:GetAuthorizationToken)")
