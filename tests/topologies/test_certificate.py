"""A fleet of one under a name: its certificate, which ACM issues only when it sees the proof, and its access logs."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
from typing import Any

import pytest
from fixtures import ZONE
from moving import site
from stack import Account, Control, free_cidr

STACK = "proved"
DOMAIN = f"team.{ZONE}"
NAME = f"mlflow.{DOMAIN}"
TEARDOWN = ("-e", f"mlflow_teardown_confirm={STACK}", "-e", "mlflow_teardown_data=delete")
MINE = [{"Name": "tag:mlflow:stack", "Values": [STACK]}]


class Trusting(Control):
    """A control machine that trusts Amazon's authority, as every machine does; here that is the account's own."""

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(SSL_CERT_FILE=self.account.environment["AWS_CA_BUNDLE"], **more)


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    account.command("zone", DOMAIN)
    return Trusting(
        tmp_path_factory.mktemp("proved"),
        account,
        mlflow_stack=STACK,
        mlflow_topology="fleet",
        mlflow_fleet_size=1,
        mlflow_domain=DOMAIN,
        mlflow_certificate_timeout=10,
        mlflow_access_logs=True,
        # What SSL_CERT_FILE says of this machine, not of the account.
        mlflow_ca_bundle_file=os.environ.get("SSL_CERT_FILE", ""),
        mlflow_vpc_cidr=free_cidr(account.networks, range(40, 80)),
    )


def zone_of(account: Account, domain: str) -> str:
    found = account.client("route53").list_hosted_zones_by_name(DNSName=domain)["HostedZones"]
    return str(next(zone["Id"] for zone in found if zone["Name"] == f"{domain}."))


def records(account: Account) -> dict[tuple[str, str], dict[str, Any]]:
    """What is in the team's zone, besides what Route 53 itself puts into each."""
    sets = account.client("route53").list_resource_record_sets(HostedZoneId=zone_of(account, DOMAIN))
    return {
        (item["Name"].rstrip("."), item["Type"]): item
        for item in sets["ResourceRecordSets"]
        if item["Type"] not in ("NS", "SOA")
    }


def certificate(account: Account) -> dict[str, Any]:
    """The only certificate of the account."""
    acm = account.client("acm")
    (found,) = acm.list_certificates()["CertificateSummaryList"]
    return dict(acm.describe_certificate(CertificateArn=found["CertificateArn"])["Certificate"])


def balancer(account: Account) -> dict[str, Any]:
    (found,) = account.client("elbv2").describe_load_balancers(Names=[f"mlflow-{STACK}"])["LoadBalancers"]
    return dict(found)


def test_run_that_waits_in_vain_says_for_which_record(control: Control, account: Account) -> None:
    """Nothing in the zone above leads to the team's zone, so whoever asks the DNS does not see what is in it."""
    refused = control.playbook("playbooks/provision.yml").refused()
    pending = certificate(account)
    assert (pending["Status"], pending["DomainName"]) == ("PENDING_VALIDATION", NAME)
    proof = pending["DomainValidationOptions"][0]["ResourceRecord"]
    name = proof["Name"].rstrip(".")
    assert f"name {name}, type CNAME, value {proof['Value']}" in refused.text, refused.output[-3000:]
    assert "Then run the playbook again: it continues from here." in refused.text
    assert records(account)[name, "CNAME"]["ResourceRecords"] == [{"Value": proof["Value"]}]
    assert account.client("ec2").describe_instances(Filters=MINE)["Reservations"] == []


def test_run_continues_when_the_cause_is_gone(control: Control, account: Account) -> None:
    pending = certificate(account)
    servers = account.client("route53").get_hosted_zone(Id=zone_of(account, DOMAIN))["DelegationSet"]["NameServers"]
    led = {"Name": DOMAIN, "Type": "NS", "TTL": 300, "ResourceRecords": [{"Value": server} for server in servers]}
    account.client("route53").change_resource_record_sets(
        HostedZoneId=zone_of(account, ZONE),
        ChangeBatch={"Changes": [{"Action": "UPSERT", "ResourceRecordSet": led}]},
    )
    control.playbook("playbooks/provision.yml").succeeded()
    issued = certificate(account)
    assert (issued["Status"], issued["CertificateArn"]) == ("ISSUED", pending["CertificateArn"])


def test_name_serves_with_it(control: Control, account: Account) -> None:
    site(control)
    edge = balancer(account)
    listeners = account.client("elbv2").describe_listeners(LoadBalancerArn=edge["LoadBalancerArn"])["Listeners"]
    https = next(listener for listener in listeners if listener["Port"] == 443)
    assert [entry["CertificateArn"] for entry in https["Certificates"]] == [certificate(account)["CertificateArn"]]
    assert records(account)[NAME, "A"]["AliasTarget"]["DNSName"].rstrip(".") == edge["DNSName"]
    # Its name is known to the account alone, its certificate is verified by it.
    trust = ssl.create_default_context(cafile=account.environment["AWS_CA_BUNDLE"])
    plain = socket.create_connection((edge["DNSName"], 443), timeout=10)
    connection = http.client.HTTPSConnection(NAME)
    connection.sock = trust.wrap_socket(plain, server_hostname=NAME)
    connection.request("GET", "/health")
    assert connection.getresponse().status == 200
    connection.close()


def test_access_logs_may_go_to_a_bucket_of_their_own(control: Control, account: Account) -> None:
    """The local AWS writes none: this is what AWS writes them by."""
    elbv2, s3 = account.client("elbv2"), account.client("s3")
    arn = balancer(account)["LoadBalancerArn"]
    given = elbv2.describe_load_balancer_attributes(LoadBalancerArn=arn)["Attributes"]
    attributes = {attribute["Key"]: attribute["Value"] for attribute in given}
    bucket = attributes["access_logs.s3.bucket"]
    assert attributes["access_logs.s3.enabled"] == "true"
    assert bucket.startswith(f"mlflow-{STACK}-") and bucket.endswith("-logs")
    policy = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])
    (allowed,) = [statement for statement in policy["Statement"] if statement["Effect"] == "Allow"]
    assert allowed["Principal"] == {"Service": "logdelivery.elasticloadbalancing.amazonaws.com"}
    assert (allowed["Action"], allowed["Resource"]) == (
        "s3:PutObject",
        f"arn:aws:s3:::{bucket}/AWSLogs/{arn.split(':')[4]}/*",
    )
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    (rule,) = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    assert (rule["Status"], rule["Expiration"]["Days"]) == ("Enabled", 30)


def test_proof_and_logs_are_torn_down(control: Control, account: Account) -> None:
    run = control.playbook("teardown.yml", *TEARDOWN, timeout=1800).succeeded()
    assert f"0 resources left of the stack {STACK}" in run.text
    assert account.client("acm").list_certificates()["CertificateSummaryList"] == []
    assert account.client("s3").list_buckets()["Buckets"] == []
    assert records(account) == {}
