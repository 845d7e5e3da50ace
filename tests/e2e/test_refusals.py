"""Inputs that cannot work are refused before anything is created: variable, value, what is allowed, and the file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stack import Account, Control

UNREACHABLE = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}


@pytest.fixture(scope="module")
def control(account: Account, tmp_path_factory: pytest.TempPathFactory) -> Control:
    return Control(tmp_path_factory.mktemp("refused"), account, mlflow_stack="refused")


def make_certificate(path: Path, name: str) -> Path:
    """A self-signed certificate, with its key beside it."""
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    files = ["-keyout", f"{path}.key", "-out", f"{path}.pem"]
    subprocess.run([*command, *files, "-addext", f"subjectAltName=DNS:{name}"], check=True, capture_output=True)
    return path


def provision(control: Control, inputs: dict[str, Any], **environment: str) -> str:
    run = control.playbook(
        "playbooks/provision.yml", "-e", json.dumps(inputs), environment=control.environment(**environment)
    )
    return run.refused().text


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("mlflow_stack", "My_Stack", "2 to 20 lower-case letters"),
        ("mlflow_stack", "a-name-that-is-too-long", "2 to 20 lower-case letters"),
        ("mlflow_region", "europe", "the name of an AWS region"),
        ("mlflow_topology", "cluster", "one of: host, fleet, fargate"),
        ("mlflow_zones", ["eu-central-1a"], "two to four different availability zones"),
        ("mlflow_fleet_size", "three", "a number of hosts from 1 to 100"),
        ("mlflow_fargate_memory", 1024, "what Fargate offers with mlflow_fargate_cpu 1024, in MiB: 2048, 3072"),
        ("mlflow_vpc_cidr", "10.42.0.0/30", "/16 to /24"),
        ("mlflow_vpc_cidr", "10.42.1.0/16", "without host bits"),
        ("mlflow_vpc_cidr", "300.1.0.0/16", "a private IPv4 network"),
        ("mlflow_admin_cidrs", ["0.0.0.0/0"], "never 0.0.0.0/0"),
        ("mlflow_admin_cidrs", ["10.0.0.1"], "a list of IPv4 networks"),
        ("mlflow_client_cidrs", [], "a list of IPv4 networks"),
        ("mlflow_client_cidrs", ["10.0.0.0/33"], "a list of IPv4 networks"),
        ("mlflow_domain", "-bad-.com", "the name of a public hosted zone"),
        ("mlflow_tls_acme_email", "you@example.com", "together with mlflow_domain"),
        ("mlflow_tls_acme_cidrs", [], "a list of IPv4 networks"),
        ("mlflow_tls_ca_file", "/etc/hostname", "together with mlflow_tls_certificate_file or mlflow_tls_acme_email"),
        ("mlflow_instance_type", "large", "an EC2 instance type"),
        ("mlflow_database_class", "t4g.micro", "an RDS instance class"),
        ("mlflow_database_engine_version", "latest", "a PostgreSQL version"),
        ("mlflow_reboot_time", "4:00", "a time of day in quotation marks"),
        ("mlflow_gc_older_than", "30", "an age in days, hours, minutes and seconds"),
        ("mlflow_swap_size_mb", -2, "a size in MiB"),
    ],
)
def test_a_bad_form_is_refused_before_the_first_call(control: Control, variable: str, value: Any, allowed: str) -> None:
    """AWS cannot be reached at all in this test, so the answer cannot come from there."""
    text = provision(control, {variable: value}, **UNREACHABLE)
    assert f"- {variable} is {json.dumps(value)}; allowed:" in text
    assert allowed in text
    assert "Nothing was changed. Set them in" in text
    assert "inventories/local/group_vars/all.yml" in text


def test_all_bad_inputs_are_named_at_once(control: Control) -> None:
    text = provision(control, {"mlflow_topology": "moon", "mlflow_admin_cidrs": ["0.0.0.0/0"]}, **UNREACHABLE)
    assert "2 input(s) of the stack cannot be used" in text


def test_files_that_do_not_fit_together_are_refused(control: Control, tmp_path: Path) -> None:
    certificate, other = (make_certificate(tmp_path / name, "mlflow.example.com") for name in ("one", "other"))
    inputs = {
        "mlflow_topology": "fleet",
        "mlflow_domain": "example.com",
        "mlflow_tls_certificate_file": str(certificate.with_suffix(".pem")),
        "mlflow_tls_private_key_file": str(other.with_suffix(".key")),
        "mlflow_tls_ca_file": str(other.with_suffix(".pem")),
    }
    text = provision(control, inputs, **UNREACHABLE)
    assert "2 input(s) of the stack cannot be used" in text
    assert (
        "the private key, in PEM form and without a passphrase, that mlflow_tls_certificate_file was made for" in text
    )
    assert "- mlflow_tls_ca_file is " in text
    assert "PRIVATE KEY" not in text
    text = provision(control, {**inputs, "mlflow_hostname": "models"}, **UNREACHABLE)
    assert "3 input(s) of the stack cannot be used" in text
    assert "for models.example.com (this one is for DNS:mlflow.example.com until " in text


@pytest.mark.parametrize(
    ("variable", "value", "allowed"),
    [
        ("mlflow_region", "eu-central-9", "eu-west-1"),
        ("mlflow_instance_type", "t9.nano", "an EC2 instance type that eu-central-1 offers"),
        (
            "mlflow_zones",
            ["eu-central-1a", "eu-central-1x"],
            "zones of eu-central-1 that offer t3.small: eu-central-1a",
        ),
        ("mlflow_database_engine_version", "17.99", "a PostgreSQL version that RDS offers in eu-central-1: "),
        ("mlflow_database_class", "db.t99.micro", "an RDS instance class that eu-central-1 offers for PostgreSQL 16."),
        ("mlflow_domain", "nobody.example.org", "a domain whose public hosted zone is in the account"),
        ("mlflow_database_connections", 65, "a db.t4g.micro has 79, of which servers may use 64"),
    ],
)
def test_what_aws_does_not_offer_is_refused_before_the_first_change(
    control: Control, account: Account, variable: str, value: Any, allowed: str
) -> None:
    text = provision(control, {variable: value})
    assert f"- {variable} is {json.dumps(value)}; allowed: {allowed}" in text or (
        f"- {variable} is {json.dumps(value)}" in text and allowed in text
    )
    assert "Nothing was changed." in text
    mine = [{"Name": "tag:mlflow:stack", "Values": ["refused"]}]
    assert account.client("ec2").describe_vpcs(Filters=mine)["Vpcs"] == []


def test_more_servers_than_the_database_has_connections_for_are_refused(control: Control) -> None:
    text = " ".join(provision(control, {"mlflow_topology": "fleet", "mlflow_fleet_size": "10"}).split())
    assert '- mlflow_fleet_size is "10"; allowed: what the database carries. 10 hosts need 12 connections each' in text
    assert "Ways out: mlflow_database_class db.t4g.medium, or mlflow_fleet_size of 2 at the most" in text
    text = " ".join(provision(control, {"mlflow_topology": "fargate", "mlflow_fargate_max_tasks": 8}).split())
    assert "12 tasks at once" in text and "mlflow_database_class db.t4g.medium" in text


def test_a_certificate_that_the_account_has_not_is_refused(control: Control) -> None:
    arn = "arn:aws:acm:eu-central-1:123456789012:certificate/11111111-1111-1111-1111-111111111111"
    inputs = {"mlflow_topology": "fleet", "mlflow_domain": "mlflow-e2e.example.com", "mlflow_certificate_arn": arn}
    text = provision(control, inputs)
    assert f"- mlflow_certificate_arn is {json.dumps(arn)}; allowed:" in text
    assert "there is no such certificate in it" in text


def test_missing_credentials_are_explained(control: Control) -> None:
    environment = control.environment()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        del environment[name]
    text = control.playbook("playbooks/provision.yml", environment=environment).refused().text
    assert "No AWS credentials were found." in text
    assert "aws configure" in text
    assert "Nothing was changed." in text


def test_a_data_word_other_than_keep_or_delete_is_refused(control: Control) -> None:
    words = ("-e", "mlflow_teardown_confirm=refused", "-e", "mlflow_teardown_data=yes")
    text = control.playbook("teardown.yml", *words, environment=control.environment(**UNREACHABLE)).refused().text
    assert 'mlflow_teardown_data is "yes"; allowed: keep' in text
    assert "Nothing was removed." in text
