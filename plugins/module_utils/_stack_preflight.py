# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What AWS says of a stack's inputs: one function a question, asked concurrently."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
except ImportError:
    pass  # AnsibleAWSModule has refused to go on by then

from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _capacity

Client = Callable[[str, str], Any]
"""Builds a boto3 client from a service name and a region."""

HOME_REGIONS = {"cn-": "cn-north-1", "us-gov-": "us-gov-west-1"}
"""Region of each partition that can be asked for the list; us-east-1 for the commercial one (AWS General Reference, "Regions")."""

CREDENTIALS_HELP = (
    "No AWS credentials were found. They are looked for where every AWS tool looks: the environment (AWS_ACCESS_KEY_ID and"
    " AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), ~/.aws/credentials and ~/.aws/config (`aws configure`, `aws sso login`), and the role of the"
    " machine. Nothing was changed."
)


class PreflightError(Exception):
    """A question that could not be asked; the text says which, why and what to do next."""


@dataclass(frozen=True)
class Inputs:
    """What a user has chosen, by the names of the module's options."""

    stack: str
    topology: str
    instance_type: str
    fleet_size: int
    fargate_min_tasks: int
    fargate_max_tasks: int
    fargate_cpu: int
    database_proxy: bool
    database_identifier: str
    database_class: str
    database_engine_version: str
    database_connections: int
    domain: str
    certificate_arn: str
    certificate_name: str


def ask(client: Client, region: str, inputs: Inputs) -> dict[str, Any]:
    """Asks everything and returns the module's answer (see RETURN of stack_preflight_info).

    Raises PreflightError when the credentials are missing or refused, a permission is missing or AWS cannot be reached.
    """
    home = next((name for prefix, name in HOME_REGIONS.items() if region.startswith(prefix)), "us-east-1")
    # boto3 clients are thread-safe, their making is not: each is made here, before the threads start.
    sts, home_ec2 = client("sts", home), client("ec2", home)
    with ThreadPoolExecutor() as pool:

        def asked(what: str, permission: str, question: Callable[[], Any]) -> Future[Any]:
            return pool.submit(_guard, what, permission, question)

        caller_answer = asked(
            "ask for the identity of the credentials", "sts:GetCallerIdentity", sts.get_caller_identity
        )
        regions_answer = asked("list the regions", "ec2:DescribeRegions", lambda: _regions(home_ec2))
        caller, regions = caller_answer.result(), regions_answer.result()
        answer: dict[str, Any] = {
            "account": caller["Account"],
            "caller_arn": caller["Arn"],
            "regions": regions,
            "region_exists": region in regions,
            "vpc_cidrs": [],
            "zones": [],
            "stack_zones": [],
            "topologies": [],
            "instance_type": {},
            "database": {},
            "connections": {},
            "certificate": {},
            "hosted_zone_id": "",
        }
        if region not in regions:
            return answer
        ec2, rds, ecs, elbv2 = (client(service, region) for service in ("ec2", "rds", "ecs", "elbv2"))
        open_: dict[str, Future[Any]] = {
            "instance_type": asked(
                f"look up the instance type {inputs.instance_type}",
                "ec2:DescribeInstanceTypes and ec2:DescribeInstanceTypeOfferings",
                lambda: _instance_type(ec2, inputs.instance_type),
            ),
            "vpc_cidrs": asked("look up the stack's VPC", "ec2:DescribeVpcs", lambda: _vpc_cidrs(ec2, inputs.stack)),
            "zones": asked("list the zones", "ec2:DescribeAvailabilityZones", lambda: _zones(ec2)),
            "stack_zones": asked(
                "look up the stack's subnets", "ec2:DescribeSubnets", lambda: _stack_zones(ec2, inputs.stack)
            ),
            "database": asked(
                "look up what RDS offers",
                "rds:DescribeDBEngineVersions, rds:DescribeOrderableDBInstanceOptions, rds:DescribeDBInstances"
                " and rds:DescribeDBProxies",
                lambda: _database(rds, inputs),
            ),
        }
        built = {
            "host": asked("look up the stack's hosts", "ec2:DescribeInstances", lambda: _hosts(ec2, inputs.stack)),
            "address": asked(
                "look up the stack's addresses", "ec2:DescribeAddresses", lambda: _addresses(ec2, inputs.stack)
            ),
            "service": asked("look up the stack's containers", "ecs:DescribeClusters", lambda: _ecs(ecs, inputs.stack)),
            "targets": asked(
                "look up the stack's target groups",
                "elasticloadbalancing:DescribeTargetGroups",
                lambda: _target_groups(elbv2, inputs.stack),
            ),
        }
        if inputs.domain:
            route53 = client("route53", region)
            open_["hosted_zone_id"] = asked(
                f"look up the hosted zone {inputs.domain}",
                "route53:ListHostedZonesByName",
                lambda: _hosted_zone(route53, inputs.domain),
            )
        # ACM answers for the caller's own account only, in the region that it is asked in.
        if f":acm:{region}:{caller['Account']}:" in inputs.certificate_arn:
            acm = client("acm", region)
            open_["certificate"] = asked(
                "look up the certificate",
                "acm:DescribeCertificate",
                lambda: _certificate(acm, inputs.certificate_arn, inputs.certificate_name),
            )
        answer.update({name: question.result() for name, question in open_.items()})
        answer["topologies"] = sorted(set().union(*(question.result() for question in built.values())))
        answer["connections"] = _guard(
            "ask what the database carries",
            "ec2:DescribeInstanceTypes and rds:DescribeOrderableDBInstanceOptions",
            lambda: _connections(ec2, rds, inputs, answer["database"], answer["instance_type"].get("vcpus", 1)),
        )
        return answer


def _guard(what: str, permission: str, question: Callable[[], Any]) -> Any:
    """Runs one question and turns botocore's exceptions into a sentence that names the next step."""
    try:
        return question()
    except NoCredentialsError as error:
        raise PreflightError(CREDENTIALS_HELP) from error
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        hint = "Nothing was changed; run the playbook again when this is cured."
        if code in {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}:
            hint = f"The credentials need {permission}. Nothing was changed."
        elif code in {
            "InvalidClientTokenId",
            "InvalidAccessKeyId",
            "SignatureDoesNotMatch",
            "AuthFailure",
            "ExpiredToken",
            "ExpiredTokenException",
        }:
            hint = "The credentials are wrong or have expired: get new ones. Nothing was changed."
        raise PreflightError(f"Failed to {what}: {error}. {hint}") from error
    except BotoCoreError as error:
        raise PreflightError(
            f"Failed to {what}: {error}. Check the network, a proxy (HTTPS_PROXY) or a company CA (AWS_CA_BUNDLE). Nothing was changed."
        ) from error


def _regions(ec2: Any) -> list[str]:
    return sorted(region["RegionName"] for region in ec2.describe_regions()["Regions"])


def _vpc_cidrs(ec2: Any, stack: str) -> list[str]:
    vpcs = ec2.describe_vpcs(Filters=[{"Name": "tag:mlflow:stack", "Values": [stack]}])["Vpcs"]
    return sorted(str(vpc["CidrBlock"]) for vpc in vpcs)


def _zones(ec2: Any) -> list[str]:
    zones = ec2.describe_availability_zones(Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}])
    return sorted(zone["ZoneName"] for zone in zones["AvailabilityZones"] if zone["State"] == "available")


def _stack_zones(ec2: Any, stack: str) -> list[str]:
    """The zones that the network has subnets in, in the order in which they were given: that of their networks."""
    subnets = ec2.describe_subnets(Filters=[{"Name": "tag:mlflow:stack", "Values": [stack]}])["Subnets"]
    subnets.sort(key=lambda subnet: ip_network(subnet["CidrBlock"]))
    return list(dict.fromkeys(str(subnet["AvailabilityZone"]) for subnet in subnets))


def _hosts(ec2: Any, stack: str) -> set[str]:
    """The topologies that have a host; hosts of before there were several have no tag that says which."""
    states = ["pending", "running", "shutting-down", "stopping", "stopped"]
    filters = [
        {"Name": "tag:mlflow:stack", "Values": [stack]},
        {"Name": "instance-state-name", "Values": states},
    ]
    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
    tags = [
        {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        for page in pages
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
    ]
    return {tag.get("mlflow:topology", "host") for tag in tags}


def _addresses(ec2: Any, stack: str) -> set[str]:
    """Only the topology host has an Elastic IP: one that is left says that its retirement was interrupted."""
    addresses = ec2.describe_addresses(Filters=[{"Name": "tag:mlflow:stack", "Values": [stack]}])["Addresses"]
    return {"host"} if addresses else set()


def _ecs(ecs: Any, stack: str) -> set[str]:
    clusters = ecs.describe_clusters(clusters=[f"mlflow-{stack}"])["clusters"]
    return {"fargate"} if any(cluster["status"] != "INACTIVE" for cluster in clusters) else set()


def _target_groups(elbv2: Any, stack: str) -> set[str]:
    found = set()
    for topology, suffix in (("fleet", "ec2"), ("fargate", "ecs")):
        try:
            elbv2.describe_target_groups(Names=[f"mlflow-{stack}-{suffix}"])
            found.add(topology)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != "TargetGroupNotFound":
                raise
    return found


def _instance_type(ec2: Any, name: str) -> dict[str, Any]:
    try:
        types = ec2.describe_instance_types(InstanceTypes=[name])["InstanceTypes"]
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "InvalidInstanceType":
            return {}
        raise
    if not types:
        return {}
    offerings = ec2.describe_instance_type_offerings(
        LocationType="availability-zone", Filters=[{"Name": "instance-type", "Values": [name]}]
    )
    architectures = types[0]["ProcessorInfo"]["SupportedArchitectures"]
    return {
        # Some old types also list i386; a 64-bit system is what the images are for.
        "architecture": "arm64" if "arm64" in architectures else "x86_64",
        "memory_mib": types[0]["MemoryInfo"]["SizeInMiB"],
        "vcpus": types[0]["VCpuInfo"]["DefaultVCpus"],
        "zones": sorted(offering["Location"] for offering in offerings["InstanceTypeOfferings"]),
    }


def _database(rds: Any, inputs: Inputs) -> dict[str, Any]:
    pages = rds.get_paginator("describe_db_engine_versions").paginate(Engine="postgres")
    offered = [version["EngineVersion"] for page in pages for version in page["DBEngineVersions"]]
    running = _running(rds, inputs.database_identifier)
    running_version = running.get("EngineVersion")
    version = choose_version(inputs.database_engine_version, offered, running_version)
    class_offered = False
    if version:
        options = rds.describe_orderable_db_instance_options(
            Engine="postgres", EngineVersion=version, DBInstanceClass=inputs.database_class
        )
        class_offered = bool(options["OrderableDBInstanceOptions"])
    return {
        "exists": bool(running),
        "running_version": running_version or "",
        "running_class": running.get("DBInstanceClass", ""),
        "engine_version": version,
        "offered_majors": sorted({_numbers(name)[0] for name in offered}, key=int),
        "class_offered": class_offered,
        "proxy_exists": _proxy_exists(rds, inputs.database_identifier),
    }


def _proxy_exists(rds: Any, name: str) -> bool:
    try:
        return bool(rds.describe_db_proxies(DBProxyName=name)["DBProxies"])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "DBProxyNotFoundFault":
            return False
        raise


def _running(rds: Any, identifier: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = rds.describe_db_instances(DBInstanceIdentifier=identifier)["DBInstances"][0]
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"DBInstanceNotFound", "DBInstanceNotFoundFault"}:
            return {}
        raise
    return found


def _memories(ec2: Any, classes: Iterable[str]) -> dict[str, int]:
    """MiB of each RDS class that EC2 has a type of the same name for; RDS itself tells no API the memory of a class."""
    # EC2 takes 200 values in a filter; a name that it does not know is left out.
    types = [name.removeprefix("db.") for name in sorted(set(classes))][:200]
    pages = ec2.get_paginator("describe_instance_types").paginate(Filters=[{"Name": "instance-type", "Values": types}])
    return {
        f"db.{found['InstanceType']}": found["MemoryInfo"]["SizeInMiB"]
        for page in pages
        for found in page["InstanceTypes"]
    }


def _connections(ec2: Any, rds: Any, inputs: Inputs, database: dict[str, Any], vcpus: int) -> dict[str, Any]:
    """What the servers may hold, by the smaller one of the class that is asked for and the one that runs."""
    wanted, running = inputs.database_class, database["running_class"]
    memories = _memories(ec2, [name for name in (wanted, running) if name])
    counts = min((name for name in (wanted, running) if name), key=lambda name: memories.get(name, 0))
    memory, given = memories.get(counts, 0), inputs.database_connections
    size = {"host": 1, "fleet": inputs.fleet_size, "fargate": inputs.fargate_max_tasks}[inputs.topology]
    servers = _capacity.servers_at_once(inputs.topology, size, inputs.fargate_min_tasks)
    found = _capacity.capacity(inputs.topology, servers, memory, given)
    # Where nobody can tell the memory of the class, what the user says is believed.
    fits = found.fits or (memory == 0 and found.needed <= given)
    share, per_server = found.share, found.per_server
    if inputs.database_proxy:
        # What the servers hold is the proxy's; it lends no more than it may open, however many they are.
        share, fits = _capacity.proxied(memory, given), True
        on_fargate = inputs.topology == "fargate"
        per_server = _capacity.pooled_per_server(inputs.topology, inputs.fargate_cpu // 1024 if on_fargate else vcpus)
    alone, beside = _capacity.proxy_percents(memory, given)
    return {
        "database_class": counts,
        "memory_mib": memory,
        "max_connections": found.maximum,
        "usable": found.usable,
        "share": share,
        "servers": servers,
        "per_server": per_server,
        "proxy_percent": alone,
        "proxy_percent_beside": beside,
        "needed_per_server": _capacity.NEEDED[inputs.topology],
        "needed": found.needed,
        "largest_size": _capacity.largest_size(
            inputs.topology, min(found.share, found.usable), inputs.fargate_min_tasks
        ),
        "fits": fits,
        "fitting_class": "" if fits else _fitting_class(ec2, rds, inputs, database["engine_version"], servers),
    }


def _fitting_class(ec2: Any, rds: Any, inputs: Inputs, version: str, servers: int) -> str:
    if not version:
        return ""
    family = inputs.database_class.rpartition(".")[0] + "."
    pages = rds.get_paginator("describe_orderable_db_instance_options").paginate(
        Engine="postgres", EngineVersion=version
    )
    classes = {
        str(option["DBInstanceClass"])
        for page in pages
        for option in page["OrderableDBInstanceOptions"]
        if option["DBInstanceClass"].startswith(family)
    }
    return _capacity.smallest_that_fits(inputs.topology, servers, _memories(ec2, classes)) if classes else ""


def choose_version(wanted: str, offered: list[str], running: str | None) -> str:
    """The version to ask RDS for, or an empty string where there is none that fits.

    A major version means: what runs, where it runs that major already (minor upgrades are AWS's business), else the newest minor offered.
    """
    if "." in wanted:
        return wanted if wanted in offered or wanted == running else ""
    if running and _numbers(running)[0] == wanted:
        return running
    fitting = [version for version in offered if _numbers(version)[0] == wanted]
    return max(fitting, key=lambda version: [int(number) for number in _numbers(version)], default="")


def _numbers(version: str) -> list[str]:
    """The numeric parts of a version; RDS also names releases like 11.22-rds.20240418."""
    return [number for number in version.split("-")[0].split(".") if number.isdigit()]


def _certificate(acm: Any, arn: str, name: str) -> dict[str, Any]:
    try:
        found = acm.describe_certificate(CertificateArn=arn)["Certificate"]
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "ResourceNotFoundException":
            return {}
        raise
    names = [str(entry) for entry in found.get("SubjectAlternativeNames") or [found["DomainName"]]]
    return {"status": found["Status"], "names": names, "covers": covers(names, name)}


def covers(names: Iterable[str], name: str) -> bool:
    """Whether a certificate for @names is one for @name; a wildcard stands for one label (RFC 6125, 6.4.3)."""
    wanted = {name.lower(), "*." + name.lower().partition(".")[2]}
    return any(entry.lower() in wanted for entry in names)


def _hosted_zone(route53: Any, domain: str) -> str:
    name = domain.rstrip(".") + "."
    zones = route53.list_hosted_zones_by_name(DNSName=name, MaxItems="10")["HostedZones"]
    public = [zone for zone in zones if zone["Name"] == name and not zone.get("Config", {}).get("PrivateZone")]
    return str(public[0]["Id"]).rsplit("/", 1)[-1] if public else ""
