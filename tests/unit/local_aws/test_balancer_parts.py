"""Load balancers and certificates without Docker: the configuration, health, and what ACM says of a request."""

from __future__ import annotations

import http.server
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import docker.errors
import pytest
from botocore.exceptions import ClientError
from cryptography import x509

from local_aws import certificates, corrections, images, wiring_balancers
from local_aws.balancers import Balancers
from local_aws.corrections.elbv2_attributes import LOAD_BALANCER
from local_aws.errors import LocalAwsError
from local_aws.health import FAILED, PASSED, TIMED_OUT, Check, Finding, Health, accepts, probe
from local_aws.networks import AddressPool
from local_aws.proxy import MASTER_SOCKET, Control, Listener, Pool, Rule, Server, Tls, pattern, pool_name, render, word
from local_aws.proxy import test as condition_test
from local_aws.state import Settings, StateDir
from local_aws.tls import Authority

GROUP = "arn:aws:elasticloadbalancing:eu-central-1:123456789012:targetgroup/one/0123456789abcdef"
OTHER = GROUP.replace("/one/", "/other/")
FORWARD = [{"Type": "forward", "TargetGroupArn": GROUP}]


def configuration(*rules: Rule, tls: Tls | None = None, **attributes: str) -> list[str]:
    """The lines for one listener, without indentation."""
    given = {name.replace("__", "."): value for name, value in attributes.items()}
    text = render([Listener(443, tls, rules)], [], {**LOAD_BALANCER, **given}, frozenset())
    return [line.strip() for line in text.splitlines()]


# the configuration


@pytest.mark.parametrize("text", ["plain", "a b", "a'b\"c", "$HOME", "#c", "back\\slash", "new\nline", "ä"])
def test_a_word_holds_any_text(text: str) -> None:
    made = word(text)
    assert not set(made) & set(" '\"$#\n")
    decoded = re.sub(rb"\\x(..)", lambda match: bytes([int(match[1], 16)]), made.encode())
    assert decoded.decode() == text


@pytest.mark.parametrize(
    ("wanted", "text", "fits"),
    [
        ("/img/*", "/img/a/b", True),
        ("/img/*", "/img", False),
        ("*.example.com", "a.example.com", True),
        ("*.example.com", "aXexample.com", False),
        ("/v?", "/v1", True),
        ("/v?", "/v", False),
        ("/a+b", "/a+b", True),
        ("/a+b", "/aab", False),
    ],
)
def test_a_pattern_knows_two_wildcards_and_no_others(wanted: str, text: str, fits: bool) -> None:
    assert (re.search(pattern(wanted), text) is not None) is fits


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"Field": "path-pattern", "Values": ["/a"]}, "path -m reg ^/a\\x24"),
        ({"Field": "path-pattern", "PathPatternConfig": {"Values": ["/a", "/b"]}}, "path -m reg ^/a\\x24 ^/b\\x24"),
        ({"Field": "host-header", "HostHeaderConfig": {"Values": ["a"]}}, "req.hdr(host),field(1,:) -m reg -i ^a\\x24"),
        (
            {"Field": "http-header", "HttpHeaderConfig": {"HttpHeaderName": "X-A", "Values": ["b*"]}},
            "req.fhdr(X-A) -m reg -i ^b.*\\x24",
        ),
        ({"Field": "source-ip", "SourceIpConfig": {"Values": ["10.0.0.0/8"]}}, "src 10.0.0.0/8"),
        ({"Field": "http-request-method", "HttpRequestMethodConfig": {"Values": ["GET"]}}, "method GET"),
    ],
)
def test_conditions(condition: dict[str, Any], expected: str) -> None:
    assert condition_test(condition) == expected


def test_the_first_rule_that_fits_wins() -> None:
    lines = configuration(Rule([{"Field": "path-pattern", "Values": ["/a"]}], FORWARD), Rule([], FORWARD))
    free = "!{ var(txn.rule) -m found }"
    assert f"http-request set-var(txn.rule) int(0) if {free} {{ path -m reg ^/a\\x24 }}" in lines
    assert f"http-request set-var(txn.rule) int(1) if {free}" in lines
    assert f"use_backend {pool_name(GROUP)} if {{ var(txn.rule) -m int 1 }}" in lines


def test_weights_share_out_and_a_weight_of_zero_gets_nothing() -> None:
    third = GROUP.replace("/one/", "/third/")
    groups = [{"TargetGroupArn": arn, "Weight": weight} for arn, weight in ((GROUP, 3), (third, 0), (OTHER, 1))]
    lines = configuration(Rule([], [{"Type": "forward", "ForwardConfig": {"TargetGroups": groups}}]))
    chosen = "if { var(txn.rule) -m int 0 }"
    assert f"http-request set-var(txn.dice) rand(4) {chosen}" in lines
    assert f"use_backend {pool_name(GROUP)} {chosen} {{ var(txn.dice) -m int lt 3 }}" in lines
    assert f"use_backend {pool_name(OTHER)} {chosen} {{ var(txn.dice) -m int lt 4 }}" in lines
    assert not any(pool_name(third) in line for line in lines)


@pytest.mark.parametrize(
    ("config", "location"),
    [
        (
            {"Protocol": "HTTPS", "Port": "443"},
            "https://%[req.hdr(host),field(1,:)]:443/%[path,regsub(^/,)]",
        ),
        (
            {"Host": "new.#{host}", "Path": "/v1/#{path}", "Query": ""},
            "https://new.%[req.hdr(host),field(1,:)]:443/v1/%[path,regsub(^/,)]",
        ),
        ({"Protocol": "HTTP", "Port": "80", "Host": "a", "Path": "/100%"}, "http://a:80/100%%"),
    ],
)
def test_redirects(config: dict[str, str], location: str) -> None:
    action = {"Type": "redirect", "RedirectConfig": {"StatusCode": "HTTP_302", **config}}
    lines = [
        line for line in configuration(Rule([], [action]), tls=Tls(("a.pem",), ("TLSv1.2",), ())) if "redirect" in line
    ]
    chosen = "if { var(txn.rule) -m int 0 }"
    assert lines[-1] == f"http-request redirect code 302 location {word(location)} {chosen}"
    # the query is passed on, where there is one
    assert (len(lines) == 2) is ("Query" not in config)


def test_what_a_listener_presents_and_accepts() -> None:
    tls = Tls(("one.pem", "two.pem"), ("TLSv1.3", "TLSv1.2"), ("TLS_AES_128_GCM_SHA256", "ECDHE-RSA-AES128-GCM-SHA256"))
    bind = next(line for line in configuration(Rule([], FORWARD), tls=tls) if line.startswith("bind :"))
    assert bind == (
        "bind :443 ssl crt /run/balancer/one.pem crt /run/balancer/two.pem alpn h2,http/1.1 ssl-min-ver TLSv1.2 "
        "ssl-max-ver TLSv1.3 ciphers ECDHE-RSA-AES128-GCM-SHA256 ciphersuites TLS_AES_128_GCM_SHA256"
    )
    one = configuration(Rule([], FORWARD), tls=tls, routing__http2__enabled="false")
    assert any("alpn http/1.1" in line for line in one)


@pytest.mark.parametrize(("mode", "lines"), [("append", 2), ("preserve", 0), ("remove", 1)])
def test_what_becomes_of_the_clients_addresses(mode: str, lines: int) -> None:
    made = configuration(Rule([], FORWARD), routing__http__xff_header_processing__mode=mode)
    assert len([line for line in made if "header X-Forwarded-For" in line]) == lines


def test_only_enabled_targets_get_requests() -> None:
    servers = (Server("a", "10.0.0.1", 443), Server("b", "10.0.0.2", 443))
    text = render([], [Pool("pool", True, True, servers)], LOAD_BALANCER, frozenset({"pool/b"}))
    lines = [line.strip() for line in text.splitlines()]
    assert "balance leastconn" in lines
    assert "server a 10.0.0.1:443 ssl verify none alpn http/1.1 disabled" in lines
    assert "server b 10.0.0.2:443 ssl verify none alpn http/1.1" in lines


# talking to HAProxy

PROCESSES = """#<PID>          <type>          <reloads>       <uptime>        <version>
1               master          2 [failed: 0]   0d00h00m52s     2.6.12
# workers
30              worker          0               0d00h00m01s     2.6.12
# old workers
20              worker          1               0d00h00m09s     2.6.12
# programs

"""
SESSIONS = """0x1: proto=tcpv4 src=192.0.2.1:1 fe=rules-443 be=pool srv=target-1 ts=00
0x2: proto=tcpv4 src=192.0.2.1:1 fe=rules-443 be=pool srv=target-11 ts=00
0x3: proto=tcpv4 src=192.0.2.1:1 fe=rules-443 be=other srv=target-1 ts=00
"""


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Control, list[str]]]:
    """Something that answers as HAProxy's master does, at a path too long for a socket; with what it was asked."""
    directory = tmp_path / ("deep" * 20) / ("deeper" * 20)
    directory.mkdir(parents=True)
    asked: list[str] = []
    listener = socket.socket(socket.AF_UNIX)
    with monkeypatch.context() as there:
        there.chdir(directory)
        listener.bind(MASTER_SOCKET)
    listener.listen()

    def serve() -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            with link:
                asked.append(link.recv(1000).decode().strip())
                answer = {"show proc": PROCESSES, "@!20 show sess": SESSIONS}.get(asked[-1], "\n")
                link.sendall(answer.encode())

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Control(directory), asked
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_workers_are_told_apart(master: tuple[Control, list[str]]) -> None:
    assert master[0].workers() == (30, [20])


def test_only_the_requests_of_one_target_are_cut_off(master: tuple[Control, list[str]]) -> None:
    control, asked = master
    control.cut_off("pool", "target-1")
    assert [command for command in asked if "shutdown" in command] == ["@!20 shutdown session 0x1"]
    assert "@!30 show sess" in asked


# health


@pytest.mark.parametrize(
    ("codes", "status", "taken"),
    [
        ("200", 200, True),
        ("200", 201, False),
        ("200-299", 250, True),
        ("200,301-302", 302, True),
        ("200,301", 300, False),
    ],
)
def test_matchers(codes: str, status: int, taken: bool) -> None:
    assert accepts(codes, status) is taken


def check(port: int = 80, **given: Any) -> Check:
    settings = {"tls": False, "path": "/ready?a=b", "codes": "200", "interval": 5.0, "timeout": 0.5}
    return Check(**{**settings, "port": port, "healthy_threshold": 2, "unhealthy_threshold": 3, **given})


MISMATCH = Finding("Target.ResponseCodeMismatch", "Health checks failed with these codes: [500]")


@pytest.mark.parametrize(
    ("findings", "states"),
    [
        ([PASSED], ["healthy"]),
        ([FAILED, PASSED], ["initial", "healthy"]),
        ([FAILED, FAILED, FAILED], ["initial", "initial", "unhealthy"]),
        ([PASSED, FAILED, FAILED, PASSED, FAILED, FAILED, FAILED], ["healthy"] * 6 + ["unhealthy"]),
        (
            [FAILED, FAILED, FAILED, PASSED, FAILED, PASSED, PASSED],
            ["initial", "initial", "unhealthy", "unhealthy", "unhealthy", "unhealthy", "healthy"],
        ),
    ],
)
def test_several_checks_in_a_row_decide(findings: list[Finding], states: list[str]) -> None:
    health, seen = Health(), []
    for finding in findings:
        before = health.state
        assert health.take(finding, check()) is (health.state != before)
        seen.append(health.state)
    assert seen == states


def test_the_last_failure_is_told() -> None:
    health = Health()
    assert health.finding.reason == "Elb.RegistrationInProgress"
    health.take(FAILED, check())
    assert health.finding.reason == "Elb.InitialHealthChecking"
    health.take(FAILED, check())
    health.take(MISMATCH, check())
    assert health.finding == MISMATCH
    health.take(PASSED, check())
    assert health.finding == MISMATCH  # still unhealthy
    health.take(PASSED, check())
    assert health.finding == PASSED


@pytest.fixture
def target() -> Iterator[tuple[int, list[http.server.BaseHTTPRequestHandler]]]:
    """A server on loopback that answers 200 to the path of `check`, waits on /hang, and 500 to any other."""
    asked: list[http.server.BaseHTTPRequestHandler] = []
    waiting = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self)
            if self.path == "/hang":
                waiting.wait(10)
            self.send_response(200 if self.path == "/ready?a=b" else 500)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, asked
        waiting.set()
        server.shutdown()
        thread.join()


def test_a_target_is_asked(target: tuple[int, list[http.server.BaseHTTPRequestHandler]]) -> None:
    port, asked = target
    assert probe("127.0.0.1", check(port)) == PASSED
    assert asked[0].headers["User-Agent"] == "ELB-HealthChecker/2.0"
    assert probe("127.0.0.1", check(port, path="/no")) == MISMATCH
    assert probe("127.0.0.1", check(port, path="/no", codes="400-599")) == PASSED
    assert probe("127.0.0.1", check(port, path="/hang")) == TIMED_OUT
    assert probe("127.0.0.1", check(port, tls=True)) == FAILED


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert probe("127.0.0.1", check(free.getsockname()[1])) == FAILED


# health, through the API; the load balancer itself does not start without an engine


class NoContainers:
    """An engine without containers."""

    def get(self, name: str) -> None:
        raise docker.errors.NotFound(name)


@pytest.fixture
def balancers(account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Balancers]:
    def no_image(*_arguments: Any) -> str:
        raise LocalAwsError("There is no engine.")

    monkeypatch.setattr(images, "ensure_derived", no_image)
    networks: Any = SimpleNamespace(
        addresses=AddressPool(ipaddress.IPv4Network("192.0.2.0/28"), set()), for_vpc=lambda _vpc, _cidr: None
    )
    settings = Settings(1, 2, 3, "eu-central-1", "host", "database", "base")
    client: Any = SimpleNamespace(containers=NoContainers())
    corrections.apply_all(monkeypatch)
    made = Balancers(client, StateDir(tmp_path), settings, networks)
    wiring_balancers.connect(made, networks, monkeypatch)
    yield made
    made.forget_all()


def watched(port: int) -> bool:
    return any(thread.name == f"health-127.0.0.1-{port}" for thread in threading.enumerate())


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_targets_are_checked_while_they_are_in_use_and_not_longer(
    balancers: Balancers, target: tuple[int, list[http.server.BaseHTTPRequestHandler]]
) -> None:
    port, _asked = target
    elbv2, ec2 = boto3.client("elbv2"), boto3.client("ec2")
    subnets = [subnet["SubnetId"] for subnet in ec2.describe_subnets()["Subnets"][:2]]
    arn = elbv2.create_load_balancer(Name="lb", Subnets=subnets)["LoadBalancers"][0]["LoadBalancerArn"]
    found = elbv2.describe_load_balancers(LoadBalancerArns=[arn])["LoadBalancers"][0]
    assert (found["State"]["Code"], found["DNSName"]) == ("failed", "192.0.2.1")
    assert balancers.problems == {"lb": "There is no engine."}
    group = elbv2.create_target_group(
        Name="group",
        Protocol="HTTP",
        Port=port,
        VpcId=found["VpcId"],
        TargetType="ip",
        HealthCheckPath="/ready?a=b",
        HealthCheckIntervalSeconds=5,
        HealthCheckTimeoutSeconds=2,
        UnhealthyThresholdCount=2,
    )["TargetGroups"][0]["TargetGroupArn"]

    def health() -> list[tuple[str, str | None]]:
        targets = elbv2.describe_target_health(TargetGroupArn=group)["TargetHealthDescriptions"]
        return [(t["TargetHealth"]["State"], t["TargetHealth"].get("Reason")) for t in targets]

    elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": "127.0.0.1"}])
    assert health() == [("unused", "Target.NotInUse")]
    listener = elbv2.create_listener(
        LoadBalancerArn=arn,
        Protocol="HTTP",
        Port=80,
        DefaultActions=[{"Type": "forward", "TargetGroupArn": group}],
    )["Listeners"][0]["ListenerArn"]
    assert eventually(lambda: health() == [("healthy", None)])
    elbv2.deregister_targets(TargetGroupArn=group, Targets=[{"Id": "127.0.0.1"}])
    assert health() == [("draining", "Target.DeregistrationInProgress")]
    assert eventually(lambda: not watched(port))
    elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": "127.0.0.1"}])
    assert eventually(lambda: health() == [("healthy", None)])
    elbv2.delete_listener(ListenerArn=listener)
    assert health() == [("unused", "Target.NotInUse")]
    elbv2.delete_target_group(TargetGroupArn=group)
    assert eventually(lambda: not watched(port))


# certificates that ACM issues


@pytest.fixture
def authority(account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    made = Authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    certificates.connect(made, monkeypatch)
    return made


def request_certificate(*names: str) -> tuple[str, dict[str, tuple[str, str]]]:
    """ARN of a requested certificate, and the record that each name needs."""
    acm = boto3.client("acm")
    arn = acm.request_certificate(
        DomainName=names[0], SubjectAlternativeNames=list(names[1:]) or [names[0]], ValidationMethod="DNS"
    )["CertificateArn"]
    options = acm.describe_certificate(CertificateArn=arn)["Certificate"]["DomainValidationOptions"]
    return arn, {o["DomainName"]: (o["ResourceRecord"]["Name"], o["ResourceRecord"]["Value"]) for o in options}


def put_record(zone: str, name: str, value: str, kind: str = "CNAME") -> None:
    change = {"Name": name, "Type": kind, "TTL": 60, "ResourceRecords": [{"Value": value}]}
    boto3.client("route53").change_resource_record_sets(
        HostedZoneId=zone, ChangeBatch={"Changes": [{"Action": "UPSERT", "ResourceRecordSet": change}]}
    )


def create_zone(name: str, **arguments: Any) -> str:
    made = boto3.client("route53").create_hosted_zone(Name=name, CallerReference=name, **arguments)
    return str(made["HostedZone"]["Id"])


def state(arn: str) -> str:
    return str(boto3.client("acm").describe_certificate(CertificateArn=arn)["Certificate"]["Status"])


def test_each_domain_has_a_record_of_its_own_that_stays(authority: Authority) -> None:
    _first, records = request_certificate("a.example.com", "*.a.example.com", "b.example.com")
    _second, again = request_certificate("a.example.com")
    assert records["a.example.com"] == records["*.a.example.com"] == again["a.example.com"]
    assert records["a.example.com"] != records["b.example.com"]
    assert records["a.example.com"][0].endswith(".a.example.com.")


def test_a_certificate_is_pending_until_the_right_record_is_in_a_public_zone(authority: Authority) -> None:
    acm = boto3.client("acm")
    arn, records = request_certificate("a.example.com")
    name, value = records["a.example.com"]
    details = acm.describe_certificate(CertificateArn=arn)["Certificate"]
    assert not {"IssuedAt", "NotAfter", "Serial"} & details.keys()
    with pytest.raises(ClientError, match="RequestInProgressException"):
        acm.get_certificate(CertificateArn=arn)
    vpc = {"VPCRegion": "eu-central-1", "VPCId": "vpc-1"}
    private = create_zone("a.example.com", VPC=vpc, HostedZoneConfig={"PrivateZone": True})
    put_record(private, name, value)
    assert state(arn) == "PENDING_VALIDATION"
    public = create_zone("example.com")
    put_record(public, name, "_other.acm-validations.aws.")
    assert state(arn) == "PENDING_VALIDATION"
    put_record(public, name, value)
    assert state(arn) == "ISSUED"


def test_a_record_in_a_zone_that_nobody_is_led_to_proves_nothing(authority: Authority) -> None:
    above, zone = create_zone("example.com"), create_zone("team.example.com")
    arn, records = request_certificate("a.team.example.com")
    put_record(zone, *records["a.team.example.com"])
    assert state(arn) == "PENDING_VALIDATION"
    put_record(above, "team.example.com", "ns-1.awsdns-1.com", "NS")
    assert state(arn) == "ISSUED"


def test_an_issued_certificate_is_the_authoritys_and_for_all_names(authority: Authority) -> None:
    zone = create_zone("example.com")
    names = ["a.example.com", "*.a.example.com", "b.example.com"]
    arn, records = request_certificate(*names)
    for name, value in records.values():
        put_record(zone, name, value)
    assert state(arn) == "ISSUED"
    found = boto3.client("acm").get_certificate(CertificateArn=arn)
    certificate = x509.load_pem_x509_certificate(found["Certificate"].encode())
    certificate.verify_directly_issued_by(authority.certificate)
    assert found["CertificateChain"].encode() == authority.pem
    alternatives = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(alternatives.get_values_for_type(x509.DNSName)) == set(names)
