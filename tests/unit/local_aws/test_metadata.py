"""The instance metadata service, asked as an instance asks it, and as one that must be refused."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws
from werkzeug.test import Client, TestResponse

from local_aws import metadata
from local_aws.metadata import TOKEN_HEADER, TTL_HEADER, Metadata
from local_aws.server import LOCAL_ADDRESS

GATEWAY, ADDRESS = "10.1.0.1", "10.1.0.5"
ROLE = "arn:aws:iam::123456789012:role/server"


class Probe:
    """An instance with its metadata service, and requests to it."""

    def __init__(self) -> None:
        role = SimpleNamespace(name="server", arn=ROLE)
        profile = SimpleNamespace(roles=[role], arn="arn:aws:iam::123456789012:instance-profile/p", id="AIPA")
        association = SimpleNamespace(iam_instance_profile=profile)
        self.instance: Any = SimpleNamespace(
            id="i-1",
            image_id="ami-1",
            instance_type="t3.small",
            architecture="x86_64",
            region_name="eu-central-1",
            owner_id="123456789012",
            private_ip=ADDRESS,
            private_dns_name="ip-10-1-0-5.eu-central-1.compute.internal",
            public_ip="192.0.2.9",
            launch_time=datetime.datetime(2026, 1, 2, 3, 4, 5),
            placement=SimpleNamespace(zone="eu-central-1a"),
            security_groups=[],
            nics={},
            metadata_options=SimpleNamespace(http_endpoint="enabled"),
            ec2_backend=SimpleNamespace(iam_instance_profile_associations={"i-1": association}),
        )
        self.service = Metadata(lambda gateway, address: self._at(gateway, address))
        self._client = Client(self.service)

    def _at(self, gateway: str, address: str) -> Any:
        return self.instance if (gateway, address) == (GATEWAY, ADDRESS) else None

    def ask(self, path: str, method: str = "GET", address: str = ADDRESS, **headers: str) -> TestResponse:
        return self._client.open(
            path,
            method=method,
            headers={name.replace("_", "-"): value for name, value in headers.items()},
            environ_overrides={"REMOTE_ADDR": address, LOCAL_ADDRESS: GATEWAY},
        )

    def token(self, ttl: str = "60") -> str:
        response = self.ask("/latest/api/token", "PUT", **{TTL_HEADER: ttl})
        assert response.status_code == 200
        return response.text

    def read(self, path: str) -> str:
        response = self.ask(path, **{TOKEN_HEADER: self.token()})
        assert response.status_code == 200, path
        return response.text


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ENDPOINT_URL", "AWS_CA_BUNDLE", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with mock_aws():
        yield


def test_nothing_is_read_without_a_token(probe: Probe) -> None:
    for path in ("/latest/meta-data/", "/latest/meta-data/iam/security-credentials/server", "/latest/dynamic/x"):
        assert probe.ask(path).status_code == 401
        assert probe.ask(path, **{TOKEN_HEADER: "guess"}).status_code == 401


def test_a_token_ends(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    token, now = probe.token("10"), time.monotonic()
    for later, status in ((9, 200), (11, 401)):
        monkeypatch.setattr(time, "monotonic", lambda later=later: now + later)
        assert probe.ask("/latest/meta-data/instance-id", **{TOKEN_HEADER: token}).status_code == status


@pytest.mark.parametrize("ttl", ["", "0", "21601", "x"])
def test_a_token_needs_a_sensible_lifetime(probe: Probe, ttl: str) -> None:
    assert probe.ask("/latest/api/token", "PUT", **{TTL_HEADER: ttl}).status_code == 400


def test_a_token_is_not_given_through_a_proxy_or_by_get(probe: Probe) -> None:
    headers = {TTL_HEADER: "60", "X-Forwarded-For": "203.0.113.1"}
    assert probe.ask("/latest/api/token", "PUT", **headers).status_code == 403
    assert probe.ask("/latest/api/token", **{TTL_HEADER: "60"}).status_code == 405


def test_a_token_of_another_instance_is_worth_nothing(probe: Probe) -> None:
    token = probe.token()
    probe.instance.id = "i-2"
    assert probe.ask("/latest/meta-data/instance-id", **{TOKEN_HEADER: token}).status_code == 401


def test_who_is_no_instance_gets_nothing(probe: Probe) -> None:
    assert probe.ask("/latest/api/token", "PUT", "10.1.0.6", **{TTL_HEADER: "60"}).status_code == 403
    probe.instance.metadata_options.http_endpoint = "disabled"
    assert probe.ask("/latest/api/token", "PUT", **{TTL_HEADER: "60"}).status_code == 403


def test_what_an_instance_reads(probe: Probe) -> None:
    assert probe.read("/latest/meta-data/instance-id") == "i-1"
    assert probe.read("/latest/meta-data/placement/region") == "eu-central-1"
    assert probe.read("/latest/meta-data/placement/") == "availability-zone\nregion"
    assert probe.read("/latest/meta-data/public-ipv4") == "192.0.2.9"
    assert probe.read("/latest/meta-data/iam/security-credentials/") == "server"
    assert "iam/" in probe.read("/latest/meta-data/").split()
    assert json.loads(probe.read("/latest/dynamic/instance-identity/document"))["privateIp"] == ADDRESS
    assert json.loads(probe.read("/latest/meta-data/iam/info"))["InstanceProfileId"] == "AIPA"


@pytest.mark.parametrize(
    "path", ["/latest/meta-data/nope", "/latest/user-data", "/nope/meta-data/", "/latest/meta-dataX"]
)
def test_what_is_not_there_is_not_found(probe: Probe, path: str) -> None:
    assert probe.ask(path, **{TOKEN_HEADER: probe.token()}).status_code == 404


def test_without_public_address_or_profile_their_entries_are_missing(probe: Probe) -> None:
    probe.instance.public_ip = None
    probe.instance.ec2_backend.iam_instance_profile_associations.clear()
    listed = probe.read("/latest/meta-data/").split()
    assert "public-ipv4" not in listed
    assert "iam/" not in listed


@pytest.mark.usefixtures("account")
def test_credentials_are_the_roles_and_renewed_before_they_expire(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/latest/meta-data/iam/security-credentials/server"
    first = json.loads(probe.read(path))
    assert json.loads(probe.read(path))["AccessKeyId"] == first["AccessKeyId"]
    caller = boto3.client(
        "sts",
        "eu-central-1",
        aws_access_key_id=first["AccessKeyId"],
        aws_secret_access_key=first["SecretAccessKey"],
        aws_session_token=first["Token"],
    ).get_caller_identity()
    assert caller["Arn"] == "arn:aws:sts::123456789012:assumed-role/server/i-1"
    monkeypatch.setattr(metadata, "RENEW_SECONDS", metadata.SESSION_SECONDS + 60)
    assert json.loads(probe.read(path))["AccessKeyId"] != first["AccessKeyId"]
