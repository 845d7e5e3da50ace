"""problems.j2: good inputs are none of its business, and a bad one is named with what is allowed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlflow_server_role import filled, rendered

HOST = {
    "distribution": "Debian",
    "distribution_major_version": "12",
    "distribution_version": "12",
    "architecture": "x86_64",
    "service_mgr": "systemd",
    "memtotal_mb": 4000,
    "processor_vcpus": 2,
}
GOOD = {
    "mlflow_server_public_name": "mlflow.example.com",
    "mlflow_server_database_host": "db.example.com",
    "mlflow_server_database_password": "0123456789ab",
    "mlflow_server_artifacts_destination": "s3://bucket/prefix",
    "mlflow_server_admin_password": "0123456789ab",
    "mlflow_server_secret_key": "0123456789abcdef",
    "mlflow_server_client_cidrs": ["203.0.113.0/24"],
    "mlflow_server_admin_cidrs": ["203.0.113.0/24"],
}
ACME = {"mlflow_server_tls_mode": "acme"}


def problems(host: dict[str, Any] = HOST, **inputs: Any) -> list[str]:
    found: list[str] = json.loads(rendered("problems.j2", ansible_facts=host, **(GOOD | inputs)))
    return found


CERTIFICATE = {
    "public_key": "A",
    "not_before": "20200101000000Z",
    "not_after": "99991231235959Z",
    "subject_alt_name": ["DNS:mlflow.example.com", "IP:203.0.113.5"],
}


def certificate_problems(name: str, key: dict[str, Any], **certificate: Any) -> list[str]:
    given: dict[str, Any] = {
        "mlflow_server_public_name": name,
        "mlflow_server_tls_certificate_file": "server.pem",
        "mlflow_server_tls_private_key_file": "server.key",
        "__mlflow_server_given_certificate": CERTIFICATE | certificate,
        "__mlflow_server_given_key": key,
    }
    found: list[str] = json.loads(rendered("certificate_problems.j2", **(GOOD | given)))
    return found


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("MLflow.example.com", CERTIFICATE["subject_alt_name"]),
        ("203.0.113.5", CERTIFICATE["subject_alt_name"]),
        ("mlflow.example.com", ["DNS:*.Example.com"]),
    ],
)
def test_a_certificate_that_serves(name: str, names: list[str]) -> None:
    assert certificate_problems(name, {"public_key": "A"}, subject_alt_name=names) == []


@pytest.mark.parametrize(
    ("name", "key", "certificate", "part"),
    [
        ("mlflow.example.com", {"public_key": "B"}, {}, "'server.pem' was not made for the key"),
        (
            "mlflow.example.com",
            {"public_key": "A"},
            {"not_after": "20200102000000Z"},
            "'server.pem' expired at 20200102",
        ),
        ("mlflow.example.com", {"public_key": "A"}, {"not_before": "99990101000000Z"}, "is not valid before 99990101"),
        (
            "a.mlflow.example.com",
            {"public_key": "A"},
            {"subject_alt_name": ["DNS:*.example.com"]},
            "is for DNS:*.example",
        ),
        ("203.0.113.6", {"public_key": "A"}, {}, "not for mlflow_server_public_name '203.0.113.6'"),
        ("mlflow.example.com", {"public_key": "A"}, {"subject_alt_name": None}, "is for no name at all"),
        ("mlflow.example.com", {"msg": "Wrong passphrase"}, {}, "'server.key' cannot be read; give a private key"),
    ],
)
def test_a_certificate_that_does_not(name: str, key: dict[str, Any], certificate: dict[str, Any], part: str) -> None:
    (problem,) = certificate_problems(name, key, **certificate)
    assert part in problem


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"mlflow_server_metrics": True, "mlflow_server_metrics_cidrs": ["203.0.113.7/32", "2001:db8::/32"]},
        {"mlflow_server_login_failures_per_minute": 0},
        {"mlflow_server_trusted_proxies": ["203.0.113.0/28", "203.0.113.200/32"]},
        {"mlflow_server_trusted_proxies": ["10.42.0.0/24"], "mlflow_server_firewall": False},
        {
            "mlflow_server_trusted_proxies": ["2001:db8:1::/48", "203.0.113.5"],
            "mlflow_server_client_cidrs": ["2001:db8::/32", "203.0.113.0/24"],
        },
        {"mlflow_server_tls_mode": "acme"},
        {
            "mlflow_server_tls_mode": "acme",
            "mlflow_server_tls_ca_file": __file__,
            "mlflow_server_tls_acme_email": "a@b.c",
        },
        {"mlflow_server_tls_acme_cidrs": []},
        {"mlflow_server_client_cidrs": ["203.0.113.5", "203.0.113.4/30", "0.0.0.0/0", "2001:DB8::/32", "::/0"]},
        {"mlflow_server_public_name": "203.0.113.5"},
        {"mlflow_server_extra_environment": {"MLFLOW_SQLALCHEMYSTORE_POOLCLASS": "NullPool", "MY_OWN": "x"}},
        # A lock of the user's own may bring an MLflow that knows other names.
        {"mlflow_server_requirements_file": __file__, "mlflow_server_extra_environment": {"MLFLOW_NEW": "x"}},
        {"mlflow_server_job_execution": True},
        # Without jobs they are no business of the role's.
        {"mlflow_server_extra_environment": {"MLFLOW_GATEWAY_URI": "https://gateway.example.com"}},
    ],
)
def test_good_inputs(inputs: dict[str, Any]) -> None:
    assert problems(**inputs) == []


CIDRS = "mlflow_server_client_cidrs"


@pytest.mark.parametrize(
    ("inputs", "parts"),
    [
        ({"mlflow_server_metrics": True}, ("mlflow_server_metrics_cidrs is empty", "203.0.113.7/32")),
        ({"mlflow_server_metrics_cidrs": ["prometheus"]}, ("mlflow_server_metrics_cidrs holds 'prometheus'", "CIDR")),
        ({"mlflow_server_metrics_cidrs": ["203.0.113.7/33"]}, ("'203.0.113.7/33'", "CIDR")),
        ({"mlflow_server_trusted_proxies": ["balancer"]}, ("mlflow_server_trusted_proxies holds 'balancer'", "CIDR")),
        ({"mlflow_server_trusted_proxies": ["203.0.113.9/28"]}, ("_trusted_proxies holds '203.0.113.9/28'", "within")),
        (
            {"mlflow_server_trusted_proxies": ["10.42.0.0/24"]},
            ("mlflow_server_trusted_proxies holds '10.42.0.0/24'", "mlflow_server_client_cidrs", "firewall"),
        ),
        (
            {"mlflow_server_trusted_proxies": ["0.0.0.0/0"], CIDRS: ["0.0.0.0/0"]},
            ("mlflow_server_trusted_proxies holds '0.0.0.0/0'", "claim to be anybody"),
        ),
        (
            {"mlflow_server_database_connections": 11},
            ("mlflow_server_database_connections is 11", "at least 12", "fewer hosts"),
        ),
        (
            {"mlflow_server_database_connections": 7, "mlflow_server_authentication": "none"},
            ("mlflow_server_database_connections is 7", "at least 8"),
        ),
        (
            {"mlflow_server_database_connections": 16, "mlflow_server_workers": 2},
            ("mlflow_server_database_connections is 16", "2 workers", "may hold 17", "mlflow_server_workers"),
        ),
        ({"mlflow_server_keepalive_timeout": 0}, ("mlflow_server_keepalive_timeout is 0", "from 1 to 86400")),
        ({"mlflow_server_login_failures_per_minute": -1}, ("mlflow_server_login_failures_per_minute is -1", "0")),
        (ACME | {"mlflow_server_public_name": "203.0.113.7"}, ("'203.0.113.7'", "DNS names", "selfsigned or files")),
        (ACME | {"mlflow_server_tls_acme_directory_url": "ca.example.com"}, ("_url is 'ca.example.com'", "https://")),
        (ACME | {"mlflow_server_tls_acme_email": "a@b.c, d@e.f"}, ("_email is 'a@b.c, d@e.f'", "one e-mail address")),
        (ACME | {"mlflow_server_tls_acme_cidrs": []}, ("mlflow_server_tls_acme_cidrs is empty", "203.0.113.0/24")),
        (ACME | {"mlflow_server_tls_acme_ca_file": "/none"}, ("_acme_ca_file is '/none'", "no such file")),
        ({"mlflow_server_tls_ca_file": __file__}, ("mlflow_server_tls_ca_file is", "'selfsigned'", "files or acme")),
        ({"mlflow_server_database_port": 65536}, ("mlflow_server_database_port is 65536", "from 1 to 65535")),
        ({"mlflow_server_proxy_timeout": 0}, ("mlflow_server_proxy_timeout is 0", "from 1 to 86400")),
        ({"mlflow_server_workers": -1}, ("mlflow_server_workers is -1", "from 0 to 1000")),
        ({"mlflow_server_public_name": "203.0.113.256"}, ("mlflow_server_public_name is '203.0.113.256'", "IPv4")),
        ({CIDRS: ["203.0.113.5/24"]}, ("203.0.113.5/24", "write 203.0.113.0/24 for the network, or 203.0.113.5")),
        ({CIDRS: ["2001:db8::1/32"]}, ("2001:db8::1/32", "write 2001:db8::/32 for the network, or 2001:db8::1 for")),
        ({CIDRS: ["203.0.113.0/33"]}, (f"{CIDRS} holds '203.0.113.0/33'", "CIDR")),
        ({CIDRS: ["203.0.113/24"]}, (f"{CIDRS} holds '203.0.113/24'", "CIDR")),
        ({CIDRS: [":::/8"]}, (f"{CIDRS} holds ':::/8'", "CIDR")),
        (
            {"mlflow_server_extra_environment": {"MLFLOW_SQLALCHEMY_POOLCLASS": "x"}},
            (
                "sets MLFLOW_SQLALCHEMY_POOLCLASS, which MLflow 3.17.2 does not know",
                "mean MLFLOW_SQLALCHEMYSTORE_POOLCLASS?",
            ),
        ),
        (
            {"mlflow_server_extra_environment": {"MLFLOW_ABRACADABRA": "x"}},
            ("sets MLFLOW_ABRACADABRA, which MLflow 3.17.2 does not know; leave it out.",),
        ),
        (
            {"mlflow_server_job_execution": True, "mlflow_server_extra_environment": {"MLFLOW_GATEWAY_URI": "x"}},
            ("MLFLOW_GATEWAY_URI", "mlflow_server_job_execution", "leave it out"),
        ),
        (
            {
                "mlflow_server_job_execution": True,
                "mlflow_server_workers": 15,
                "mlflow_server_database_connections": 500,
            },
            ("mlflow_server_workers is 15", "4100 MB"),
        ),
    ],
)
def test_a_bad_input_is_named(inputs: dict[str, Any], parts: tuple[str, ...]) -> None:
    (problem,) = problems(**inputs)
    assert all(part in problem for part in parts)


BUDGET = (
    "__mlflow_server_workers __mlflow_server_pool_size __mlflow_server_max_overflow __mlflow_server_connections_needed"
)


@pytest.mark.parametrize(
    ("connections", "inputs", "expected"),
    [
        # Workers, connections that a pool keeps, those that it may add, and all that the host may hold.
        (12, {}, "1 1 1 12"),
        (16, {}, "1 2 1 16"),
        (60, {}, "2 6 3 59"),
        (8, {"mlflow_server_authentication": "none"}, "1 1 1 8"),
        (17, {"mlflow_server_workers": 2}, "2 1 1 17"),
    ],
)
def test_a_budget_of_connections_is_kept(connections: int, inputs: dict[str, Any], expected: str) -> None:
    given = GOOD | inputs | {"mlflow_server_database_connections": connections}
    names = " ".join(f"{{{{ {name} | int }}}}" for name in BUDGET.split())
    assert filled(names, ansible_facts=HOST, **given) == expected
    assert problems(mlflow_server_database_connections=connections, **inputs) == []


def test_jobs_need_memory() -> None:
    host = {**HOST, "memtotal_mb": 1900}
    assert problems(host) == []
    (problem,) = problems(host, mlflow_server_job_execution=True)
    assert all(part in problem for part in ("2000 MB", "the host has 1900", "set it to false", "larger host"))
