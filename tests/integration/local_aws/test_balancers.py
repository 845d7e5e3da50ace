"""Load balancers and certificates of the local AWS, with real targets: needs Docker. One account for the file."""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker
import docker.errors
import pytest
from botocore.exceptions import ClientError
from cryptography import x509
from docker.types import EndpointConfig
from running import RunningAccount, eventually, free_cidr, local_aws, variables

from local_aws.engine import File, put_files
from local_aws.state import StateDir
from local_aws.tls import Authority

DOMAIN = "balancers.example"
INTERVAL = 5  # the shortest that AWS takes
TARGET = Path(__file__).with_name("target.py")
PORT = 8443


def error_of(call: Callable[..., Any], **arguments: Any) -> str | None:
    try:
        call(**arguments)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
    return None


@dataclass
class Answer:
    """What a client got; with the header fields, and the JSON that a target says of a request."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def seen(self) -> dict[str, Any]:
        return dict(json.loads(self.body))


@dataclass
class Account(RunningAccount):
    """A running account with a VPC of two public subnets."""

    cidr: ipaddress.IPv4Network
    vpc: str = ""
    subnets: list[str] = field(default_factory=list)
    targets: dict[str, str] = field(default_factory=dict)

    def status(self) -> dict[str, Any]:
        return dict(json.loads(local_aws(self.directory, "status")))

    def make_vpc(self) -> None:
        ec2 = self.client("ec2")
        self.vpc = ec2.create_vpc(CidrBlock=str(self.cidr))["Vpc"]["VpcId"]
        for zone, block in zip("ab", self.cidr.subnets(new_prefix=24), strict=False):
            made = ec2.create_subnet(
                VpcId=self.vpc, CidrBlock=str(block), AvailabilityZone=f"{self.env['AWS_REGION']}{zone}"
            )
            self.subnets.append(made["Subnet"]["SubnetId"])

    def make_balancer(self, name: str, scheme: str = "internet-facing") -> dict[str, Any]:
        elbv2 = self.client("elbv2")
        made = elbv2.create_load_balancer(Name=name, Subnets=self.subnets, Scheme=scheme)["LoadBalancers"][0]
        assert made["State"]["Code"] == "provisioning"

        def active() -> bool:
            found = elbv2.describe_load_balancers(LoadBalancerArns=[made["LoadBalancerArn"]])["LoadBalancers"][0]
            return bool(found == {**made, "State": {"Code": "active"}})

        assert eventually(active, 60), self.status()["problems"]  # the first one builds the image
        return dict(made)

    def make_group(self, name: str, **settings: Any) -> str:
        given = {
            "Protocol": "HTTPS",
            "Port": PORT,
            "VpcId": self.vpc,
            "TargetType": "ip",
            "HealthCheckPath": "/ready",
            "HealthCheckIntervalSeconds": INTERVAL,
            "HealthCheckTimeoutSeconds": 2,
            "HealthyThresholdCount": 2,
            "UnhealthyThresholdCount": 2,
            "Matcher": {"HttpCode": "200-204"},
        }
        made = self.client("elbv2").create_target_group(Name=name, **{**given, **settings})
        return str(made["TargetGroups"][0]["TargetGroupArn"])

    def health(self, group: str, address: str) -> tuple[str, str | None]:
        found = self.client("elbv2").describe_target_health(TargetGroupArn=group, Targets=[{"Id": address}])
        health = found["TargetHealthDescriptions"][0]["TargetHealth"]
        return health["State"], health.get("Reason")

    def becomes(self, group: str, address: str, state: str, reason: str | None = None, seconds: float = 30.0) -> bool:
        return eventually(lambda: self.health(group, address) == (state, reason), seconds)

    def container(self, address: str) -> Any:
        return docker.from_env().containers.get(self.targets[address])

    def tell(self, address: str, path: str) -> None:
        """Ask a target itself, past any load balancer."""
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(address, PORT, timeout=10, context=context)
        connection.request("POST", path)
        assert connection.getresponse().status == 200
        connection.close()

    def run_target(self, number: int) -> str:
        """Start a target in the VPC, one more each time; returns its address."""
        client, state = docker.from_env(), StateDir(self.directory)
        address = str(self.cidr.network_address + 200 + number)
        network = next(n["name"] for n in self.status()["networks"] if n["vpc"] == self.vpc)
        image = json.loads(local_aws(self.directory, "images"))["host"]
        container = client.containers.create(
            image,
            ["python3", "/target.py", str(PORT), "/target.pem"],
            name=f"{state.prefix}target-{number}",
            labels=state.labels,
            init=True,
            stop_signal="SIGTERM",
            network=network,
            networking_config={network: EndpointConfig(client.api.api_version, ipv4_address=address)},
        )
        pem = Authority(state.path / "target-ca.pem", state.path / "target-ca.key").issue(["somebody.else"])
        put_files(container, [File("/target.py", TARGET.read_bytes()), File("/target.pem", pem.certificate + pem.key)])
        container.start()
        self.targets[address] = str(container.name)
        return address

    def import_certificate(self, name: str) -> str:
        authority = Authority(self.directory / "ca.pem", self.directory / "ca.key")
        pem = authority.issue([name])
        made = self.client("acm").import_certificate(
            Certificate=pem.certificate, PrivateKey=pem.key, CertificateChain=authority.pem
        )
        return str(made["CertificateArn"])

    def connection(self, balancer: dict[str, Any], name: str | None = None) -> http.client.HTTPConnection:
        """A client's connection: by HTTPS with a name that the certificate must be for, by HTTP without one."""
        address = str(balancer["DNSName"])
        if name is None:
            return http.client.HTTPConnection(address, 80, timeout=20)
        context = ssl.create_default_context(cafile=self.env["LOCAL_AWS_CA_FILE"])
        made = http.client.HTTPSConnection(name, 443, timeout=20, context=context)
        made._create_connection = lambda _target, *rest: socket.create_connection((address, 443), *rest)  # type: ignore[attr-defined]
        return made


def ask(connection: http.client.HTTPConnection, path: str, method: str = "GET", **arguments: Any) -> Answer:
    connection.request(method, path, **arguments)
    response = connection.getresponse()
    return Answer(response.status, {n.lower(): v for n, v in response.getheaders()}, response.read())


def forward(group: str) -> list[dict[str, Any]]:
    return [{"Type": "forward", "TargetGroupArn": group}]


@pytest.fixture(scope="module")
def account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    directory = tmp_path_factory.mktemp("balancers") / "state"
    cidr = free_cidr(range(200, 250))
    local_aws(directory, "start", "--zone", DOMAIN)
    try:
        made = Account(directory, variables(directory), cidr)
        made.make_vpc()
        yield made
    finally:
        local_aws(directory, "stop")


@dataclass
class Site:
    """A load balancer with two healthy targets behind HTTPS, and HTTP that leads there."""

    balancer: dict[str, Any]
    group: str
    addresses: list[str]
    listener: str
    certificate: str


NAME = f"mlflow.{DOMAIN}"


@pytest.fixture(scope="module")
def site(account: Account) -> Site:
    elbv2 = account.client("elbv2")
    balancer = account.make_balancer("site")
    arn = balancer["LoadBalancerArn"]
    addresses = [account.run_target(0), account.run_target(1)]
    group = account.make_group("site")
    elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": address} for address in addresses])
    assert {account.health(group, address) for address in addresses} == {("unused", "Target.NotInUse")}
    certificate = account.import_certificate(NAME)
    listener = elbv2.create_listener(
        LoadBalancerArn=arn,
        Protocol="HTTPS",
        Port=443,
        SslPolicy="ELBSecurityPolicy-TLS13-1-2-2021-06",
        Certificates=[{"CertificateArn": certificate}],
        DefaultActions=forward(group),
    )["Listeners"][0]["ListenerArn"]
    elbv2.create_listener(
        LoadBalancerArn=arn,
        Protocol="HTTP",
        Port=80,
        DefaultActions=[
            {"Type": "redirect", "RedirectConfig": {"Protocol": "HTTPS", "Port": "443", "StatusCode": "HTTP_301"}}
        ],
    )
    for address in addresses:
        assert account.becomes(group, address, "healthy")
    return Site(balancer, group, addresses, listener, certificate)


def answering(account: Account, site: Site, requests: int = 12) -> Counter[str]:
    """Which targets answer, and how often."""
    connection = account.connection(site.balancer, NAME)
    answers = [ask(connection, "/") for _ in range(requests)]
    connection.close()
    assert {answer.status for answer in answers} == {200}
    return Counter(answer.seen["address"] for answer in answers)


def test_a_name_that_leads_nowhere_else(account: Account, site: Site) -> None:
    public = next(n["cidr"] for n in account.status()["networks"] if not n["vpc"])
    assert ipaddress.ip_address(site.balancer["DNSName"]) in ipaddress.ip_network(public)


def test_the_certificate_of_acm_is_presented_and_clients_may_speak_http2(account: Account, site: Site) -> None:
    context = ssl.create_default_context(cafile=account.env["LOCAL_AWS_CA_FILE"])
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection((site.balancer["DNSName"], 443), timeout=10)
    with context.wrap_socket(plain, server_hostname=NAME) as link:
        assert link.selected_alpn_protocol() == "h2"
        assert link.version() == "TLSv1.3"
        presented = ssl.DER_cert_to_PEM_cert(link.getpeercert(binary_form=True) or b"")
    known = account.client("acm").get_certificate(CertificateArn=site.certificate)
    assert presented.strip() == known["Certificate"].strip()


def test_requests_are_shared_out_and_reach_the_targets_as_aws_passes_them_on(account: Account, site: Site) -> None:
    shared = answering(account, site)
    assert set(shared) == set(site.addresses)
    assert max(shared.values()) - min(shared.values()) <= 2
    connection = account.connection(site.balancer, NAME)
    seen = ask(connection, "/a%20b?c=%26", headers={"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "gopher"}).seen
    client = connection.sock.getsockname()[0]
    assert seen["path"] == "/a%20b?c=%26"
    assert seen["headers"]["host"] == NAME
    assert seen["headers"]["x-forwarded-for"] == f"192.0.2.7, {client}"
    assert (seen["headers"]["x-forwarded-proto"], seen["headers"]["x-forwarded-port"]) == ("https", "443")


def test_http_leads_to_https(account: Account, site: Site) -> None:
    answer = ask(account.connection(site.balancer), "/a/b?c=d", headers={"Host": f"{NAME}:80"})
    assert (answer.status, answer.headers["location"]) == (301, f"https://{NAME}:443/a/b?c=d")


def test_rules_choose_in_the_order_of_their_priority(account: Account, site: Site) -> None:
    elbv2 = account.client("elbv2")
    first, second = site.addresses
    group = account.make_group("by-header")
    elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": second}])
    fixed = {"StatusCode": "403", "ContentType": "application/json", "MessageBody": '{"no": "100% \\"no\\""}'}
    header = {"HttpHeaderName": "X-Mlflow-Topology", "Values": ["fleet"]}
    rules = [
        (20, [{"Field": "http-header", "HttpHeaderConfig": header}], forward(group)),
        (
            10,
            [{"Field": "path-pattern", "Values": ["/secret/*"]}, {"Field": "host-header", "Values": ["mlflow.*"]}],
            [{"Type": "fixed-response", "FixedResponseConfig": fixed}],
        ),
        (5, [{"Field": "source-ip", "SourceIpConfig": {"Values": ["192.0.2.0/24"]}}], forward(group)),
    ]
    made = [
        elbv2.create_rule(ListenerArn=site.listener, Priority=priority, Conditions=conditions, Actions=actions)
        for priority, conditions, actions in rules
    ]
    try:
        assert account.becomes(group, second, "healthy")
        connection = account.connection(site.balancer, NAME)
        chosen = {"X-Mlflow-Topology": "Fleet"}
        assert eventually(lambda: ask(connection, "/secret/x", headers=chosen).status == 403)
        refused = ask(connection, "/secret/x", headers=chosen)
        assert json.loads(refused.body) == {"no": '100% "no"'}
        assert refused.headers["content-type"] == "application/json"
        assert ask(connection, "/secrets", headers=chosen).status == 200
        assert ask(connection, "/secret/x", headers={"Host": "other"}).status == 200
        assert {ask(connection, "/", headers=chosen).seen["address"] for _ in range(6)} == {second}
        assert {ask(connection, "/").seen["address"] for _ in range(6)} == {first, second}
    finally:
        for rule in made:
            elbv2.delete_rule(RuleArn=rule["Rules"][0]["RuleArn"])
        elbv2.delete_target_group(TargetGroupArn=group)


def test_weights(account: Account, site: Site) -> None:
    elbv2 = account.client("elbv2")
    groups = {address: account.make_group(f"weight-{n}") for n, address in enumerate(site.addresses)}
    for address, group in groups.items():
        elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": address}])
    weighted = [
        {"TargetGroupArn": group, "Weight": weight} for group, weight in zip(groups.values(), (9, 1), strict=True)
    ]
    elbv2.modify_listener(
        ListenerArn=site.listener, DefaultActions=[{"Type": "forward", "ForwardConfig": {"TargetGroups": weighted}}]
    )
    try:
        assert all(account.becomes(group, address, "healthy") for address, group in groups.items())
        shared = answering(account, site, 200)
        assert 1 <= shared[site.addresses[1]] <= 50  # 20 expected; outside once in many millions of runs
    finally:
        elbv2.modify_listener(ListenerArn=site.listener, DefaultActions=forward(site.group))
        for group in groups.values():
            elbv2.delete_target_group(TargetGroupArn=group)


def test_an_unhealthy_target_gets_nothing_and_all_of_them_everything(account: Account, site: Site) -> None:
    first, second = site.addresses
    try:
        account.tell(first, "/set/500")
        assert account.becomes(site.group, first, "unhealthy", "Target.ResponseCodeMismatch", 3 * INTERVAL)
        assert eventually(lambda: set(answering(account, site)) == {second}, 5)
        account.tell(second, "/set/hang")
        assert account.becomes(site.group, second, "unhealthy", "Target.Timeout", 3 * INTERVAL + 4)
        assert eventually(lambda: set(answering(account, site)) == {first, second}, 5)
    finally:
        for address in site.addresses:
            account.tell(address, "/set/204")
    for address in site.addresses:
        assert account.becomes(site.group, address, "healthy", None, 4 * INTERVAL)


def test_a_target_that_dies_is_found_out(account: Account, site: Site) -> None:
    first, second = site.addresses
    account.container(first).kill()
    try:
        reasons = ("Target.FailedHealthChecks", "Target.Timeout")  # no host, or no answer to the question where it is
        assert eventually(
            lambda: account.health(site.group, first) in [("unhealthy", reason) for reason in reasons], 3 * INTERVAL
        )
        assert eventually(lambda: set(answering(account, site)) == {second}, 5)
    finally:
        account.container(first).start()
    assert account.becomes(site.group, first, "healthy", None, 4 * INTERVAL)


def test_a_deregistered_target_ends_what_it_has_and_gets_nothing_new(account: Account, site: Site) -> None:
    elbv2 = account.client("elbv2")
    first, second = site.addresses
    elbv2.modify_target_group_attributes(
        TargetGroupArn=site.group, Attributes=[{"Key": "deregistration_delay.timeout_seconds", "Value": "6"}]
    )
    slow: dict[float, Answer | Exception] = {}

    def wait(seconds: float) -> None:
        try:
            slow[seconds] = ask(account.connection(site.balancer, NAME), f"/slow/{seconds}")
        except (OSError, http.client.HTTPException) as error:
            slow[seconds] = error

    try:
        # one that ends in time and one that does not, on each target
        threads = [threading.Thread(target=wait, args=(s,)) for s in (3, 3.1, 15, 15.1)]
        for thread in threads:
            thread.start()
            time.sleep(0.2)
        elbv2.deregister_targets(TargetGroupArn=site.group, Targets=[{"Id": first}])
        assert account.health(site.group, first) == ("draining", "Target.DeregistrationInProgress")
        assert eventually(lambda: set(answering(account, site)) == {second}, 3)
        assert account.becomes(site.group, first, "unused", "Target.NotRegistered", 8)
        for thread in threads:
            thread.join()
        ended = {s: a.seen["address"] for s, a in slow.items() if isinstance(a, Answer) and a.status == 200}
        assert {ended[3], ended[3.1]} == {first, second}
        assert [ended[s] for s in (15, 15.1) if s in ended] == [second]
    finally:
        elbv2.register_targets(TargetGroupArn=site.group, Targets=[{"Id": first}])
    assert account.becomes(site.group, first, "healthy")


def test_no_request_is_lost_while_the_configuration_changes(account: Account, site: Site) -> None:
    elbv2 = account.client("elbv2")
    first, _second = site.addresses
    ended, answered = threading.Event(), Counter[int]()
    lost: list[int | str] = []

    def ask_on(lasting: bool) -> None:
        connection = account.connection(site.balancer, NAME)
        while not ended.is_set():
            try:
                answer = ask(connection, "/", "POST", body=b"x" * 2000)
                answered[answer.status] += 1
                if answer.status != 200 or answer.seen["received"] != 2000:
                    lost.append(answer.status)
            except (OSError, http.client.HTTPException) as error:
                lost.append(repr(error))
            if not lasting:
                connection.close()
            time.sleep(0.005)

    threads = [threading.Thread(target=ask_on, args=(lasting,)) for lasting in (True, True, False)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        elbv2.deregister_targets(TargetGroupArn=site.group, Targets=[{"Id": first}])
        time.sleep(0.7)
        elbv2.register_targets(TargetGroupArn=site.group, Targets=[{"Id": first}])
        assert account.becomes(site.group, first, "healthy")
        time.sleep(0.7)
    ended.set()
    for thread in threads:
        thread.join()
    assert lost == []
    assert answered[200] > 300


def test_what_a_target_fails_is_a_502_and_what_it_does_not_answer_a_504(account: Account, site: Site) -> None:
    elbv2 = account.client("elbv2")
    connection = account.connection(site.balancer, NAME)
    assert ask(connection, "/").status == 200
    assert ask(connection, "/drop").status == 502
    idle = "idle_timeout.timeout_seconds"
    arn = site.balancer["LoadBalancerArn"]
    elbv2.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=[{"Key": idle, "Value": "2"}])
    try:
        assert eventually(lambda: ask(account.connection(site.balancer, NAME), "/slow/4").status == 504)
    finally:
        elbv2.modify_load_balancer_attributes(LoadBalancerArn=arn, Attributes=[{"Key": idle, "Value": "60"}])


def test_no_target_is_a_503_and_one_that_refuses_a_502(account: Account) -> None:
    elbv2 = account.client("elbv2")
    balancer = account.make_balancer("inside", "internal")
    assert ipaddress.ip_address(balancer["DNSName"]) in account.cidr
    group = account.make_group("refusing", Protocol="HTTP", Port=81)
    elbv2.create_listener(
        LoadBalancerArn=balancer["LoadBalancerArn"], Protocol="HTTP", Port=80, DefaultActions=forward(group)
    )

    def status() -> int:
        try:
            return ask(account.connection(balancer), "/").status
        except OSError:
            return 0

    assert eventually(lambda: status() == 503)
    elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": balancer["DNSName"]}])
    assert eventually(lambda: status() == 502)
    elbv2.delete_load_balancer(LoadBalancerArn=balancer["LoadBalancerArn"])
    elbv2.delete_target_group(TargetGroupArn=group)


def test_an_instance_that_does_not_run_is_not_used(account: Account, site: Site) -> None:
    ec2, elbv2 = account.client("ec2"), account.client("elbv2")
    image = account.client("ssm").get_parameter(
        Name="/aws/service/canonical/ubuntu/server/24.04/stable/current/amd64/hvm/ebs-gp3/ami-id"
    )["Parameter"]["Value"]
    made = ec2.run_instances(
        ImageId=image, MinCount=1, MaxCount=1, SubnetId=account.subnets[0], InstanceType="t3.small"
    )
    instance = made["Instances"][0]["InstanceId"]
    group = account.make_group("instances", TargetType="instance", Port=22, Protocol="HTTP")
    assert eventually(
        lambda: (
            ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]["State"]["Name"]
            == "running"
        )
    )
    elbv2.register_targets(TargetGroupArn=group, Targets=[{"Id": instance}])
    rule = elbv2.create_rule(
        ListenerArn=site.listener,
        Priority=1,
        Conditions=[{"Field": "path-pattern", "Values": ["/instances"]}],
        Actions=forward(group),
    )["Rules"][0]["RuleArn"]
    try:
        # an SSH server talks, but no HTTP
        assert account.becomes(group, instance, "unhealthy", "Target.FailedHealthChecks")
        ec2.stop_instances(InstanceIds=[instance])
        assert account.becomes(group, instance, "unused", "Target.InvalidState")
    finally:
        elbv2.delete_rule(RuleArn=rule)
        ec2.terminate_instances(InstanceIds=[instance])
    assert account.becomes(group, instance, "unused", "Target.NotRegistered")
    elbv2.delete_target_group(TargetGroupArn=group)


def test_a_certificate_is_issued_when_its_record_exists(account: Account, site: Site) -> None:
    acm, route53, elbv2 = account.client("acm"), account.client("route53"), account.client("elbv2")
    names = [f"new.{DOMAIN}", f"*.new.{DOMAIN}", f"other.{DOMAIN}"]
    arn = acm.request_certificate(DomainName=names[0], SubjectAlternativeNames=names, ValidationMethod="DNS")[
        "CertificateArn"
    ]
    details = acm.describe_certificate(CertificateArn=arn)["Certificate"]
    records = {o["DomainName"]: o["ResourceRecord"] for o in details["DomainValidationOptions"]}
    assert details["Status"] == "PENDING_VALIDATION"
    assert records[names[0]] == records[names[1]] != records[names[2]]
    assert error_of(acm.get_certificate, CertificateArn=arn) == "RequestInProgressException"
    listener = {"ListenerArn": site.listener, "DefaultActions": forward(site.group)}
    certificates = [{"CertificateArn": arn}]
    assert error_of(elbv2.modify_listener, **listener, Certificates=certificates) == "UnsupportedCertificate"

    zone = route53.list_hosted_zones()["HostedZones"][0]["Id"]
    for name in (names[0], names[2]):
        assert acm.describe_certificate(CertificateArn=arn)["Certificate"]["Status"] == "PENDING_VALIDATION"
        change = {
            "Name": records[name]["Name"],
            "Type": records[name]["Type"],
            "TTL": 300,
            "ResourceRecords": [{"Value": records[name]["Value"]}],
        }
        route53.change_resource_record_sets(
            HostedZoneId=zone, ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": change}]}
        )
    details = acm.describe_certificate(CertificateArn=arn)["Certificate"]
    assert details["Status"] == "ISSUED"
    assert {option["ValidationStatus"] for option in details["DomainValidationOptions"]} == {"SUCCESS"}
    issued = acm.get_certificate(CertificateArn=arn)
    authority = x509.load_pem_x509_certificate((account.directory / "ca.pem").read_bytes())
    x509.load_pem_x509_certificate(issued["Certificate"].encode()).verify_directly_issued_by(authority)
    assert x509.load_pem_x509_certificate(issued["CertificateChain"].encode()) == authority

    elbv2.modify_listener(**listener, Certificates=certificates)
    try:
        for name in (names[0], f"any.new.{DOMAIN}"):
            assert eventually(lambda name=name: served(account, site, name))  # type: ignore[misc]
    finally:
        elbv2.modify_listener(**listener, Certificates=[{"CertificateArn": site.certificate}])
    assert eventually(lambda: served(account, site, NAME))


def served(account: Account, site: Site, name: str) -> bool:
    try:
        return ask(account.connection(site.balancer, name), "/").status == 200
    except ssl.SSLCertVerificationError:
        return False


def test_a_deleted_load_balancer_leaves_nothing(account: Account, site: Site) -> None:
    elbv2, acm = account.client("elbv2"), account.client("acm")
    arn = site.balancer["LoadBalancerArn"]
    container = next(b["container"] for b in account.status()["balancers"] if b["name"] == "site")
    assert docker.from_env().containers.get(container).status == "running"
    assert error_of(acm.delete_certificate, CertificateArn=site.certificate) == "ResourceInUseException"
    assert acm.describe_certificate(CertificateArn=site.certificate)["Certificate"]["InUseBy"] == [arn]
    elbv2.delete_load_balancer(LoadBalancerArn=arn)
    with pytest.raises(docker.errors.NotFound):
        docker.from_env().containers.get(container)
    assert account.status()["balancers"] == []
    acm.delete_certificate(CertificateArn=site.certificate)
    elbv2.delete_target_group(TargetGroupArn=site.group)
    assert list((account.directory / "balancers").iterdir()) == []
