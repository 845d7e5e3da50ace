# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What AWS says of a stack's inputs: one function a question, asked concurrently."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
except ImportError:
    pass  # AnsibleAWSModule has refused to go on by then

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


def ask(
    client: Client,
    region: str,
    stack: str,
    instance_type: str,
    database_identifier: str,
    database_class: str,
    database_engine_version: str,
    domain: str,
) -> dict[str, Any]:
    """Asks everything and returns the module's answer (see RETURN of stack_preflight_info).

    Raises PreflightError when the credentials are missing or refused, a permission is missing or AWS cannot be reached.
    """
    home = next((name for prefix, name in HOME_REGIONS.items() if region.startswith(prefix)), "us-east-1")
    # boto3 clients are thread-safe, their making is not: each is made here, before the threads start.
    sts, home_ec2 = client("sts", home), client("ec2", home)
    with ThreadPoolExecutor() as pool:
        caller_answer = pool.submit(
            _guard, "ask for the identity of the credentials", "sts:GetCallerIdentity", sts.get_caller_identity
        )
        regions_answer = pool.submit(_guard, "list the regions", "ec2:DescribeRegions", lambda: _regions(home_ec2))
        caller, regions = caller_answer.result(), regions_answer.result()
        answer: dict[str, Any] = {
            "account": caller["Account"],
            "caller_arn": caller["Arn"],
            "regions": regions,
            "region_exists": region in regions,
            "vpc_cidrs": [],
            "instance_type": {},
            "database": {},
            "hosted_zone_id": "",
        }
        if region not in regions:
            return answer
        ec2, rds = client("ec2", region), client("rds", region)
        route53 = client("route53", region) if domain else None
        instance_answer = pool.submit(
            _guard,
            f"look up the instance type {instance_type}",
            "ec2:DescribeInstanceTypes and ec2:DescribeInstanceTypeOfferings",
            lambda: _instance_type(ec2, instance_type),
        )
        vpc_answer = pool.submit(_guard, "look up the stack's VPC", "ec2:DescribeVpcs", lambda: _vpc_cidrs(ec2, stack))
        database_answer = pool.submit(
            _guard,
            "look up what RDS offers",
            "rds:DescribeDBEngineVersions, rds:DescribeOrderableDBInstanceOptions and rds:DescribeDBInstances",
            lambda: _database(rds, database_identifier, database_class, database_engine_version),
        )
        if route53 is not None:
            zone_answer = pool.submit(
                _guard,
                f"look up the hosted zone {domain}",
                "route53:ListHostedZonesByName",
                lambda: _hosted_zone(route53, domain),
            )
            answer["hosted_zone_id"] = zone_answer.result()
        answer["vpc_cidrs"] = vpc_answer.result()
        answer["instance_type"] = instance_answer.result()
        answer["database"] = database_answer.result()
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


def _database(rds: Any, identifier: str, instance_class: str, wanted: str) -> dict[str, Any]:
    pages = rds.get_paginator("describe_db_engine_versions").paginate(Engine="postgres")
    offered = [version["EngineVersion"] for page in pages for version in page["DBEngineVersions"]]
    running = _running_version(rds, identifier)
    version = choose_version(wanted, offered, running)
    class_offered = False
    if version:
        options = rds.describe_orderable_db_instance_options(
            Engine="postgres", EngineVersion=version, DBInstanceClass=instance_class
        )
        class_offered = bool(options["OrderableDBInstanceOptions"])
    return {
        "exists": running is not None,
        "running_version": running or "",
        "engine_version": version,
        "offered_majors": sorted({_numbers(name)[0] for name in offered}, key=int),
        "class_offered": class_offered,
    }


def _running_version(rds: Any, identifier: str) -> str | None:
    try:
        return str(rds.describe_db_instances(DBInstanceIdentifier=identifier)["DBInstances"][0]["EngineVersion"])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") in {"DBInstanceNotFound", "DBInstanceNotFoundFault"}:
            return None
        raise


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


def _hosted_zone(route53: Any, domain: str) -> str:
    name = domain.rstrip(".") + "."
    zones = route53.list_hosted_zones_by_name(DNSName=name, MaxItems="10")["HostedZones"]
    public = [zone for zone in zones if zone["Name"] == name and not zone.get("Config", {}).get("PrivateZone")]
    return str(public[0]["Id"]).rsplit("/", 1)[-1] if public else ""
