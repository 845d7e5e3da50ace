"""Makes one resource of each kind that the sweep knows, in moto's account."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest
from moto import mock_aws

REGION = "eu-central-1"
Tags = dict[str, str]
Make = Callable[[str, Tags], str]
"""Makes a resource with a name and tags, and returns the id by which the sweep reports it."""

_numbers = itertools.count(1)


@contextmanager
def empty_account() -> Iterator[str]:
    """An empty account, whatever credentials, profile and endpoint the developer's shell has. Yields its region."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_URL", "AWS_CA_BUNDLE", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_REGION", REGION)
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with mock_aws():
            yield REGION


def client(service: str) -> Any:
    make: Any = boto3.client  # boto3's stubs know the clients of installed stubs only
    return make(service, region_name=REGION)


def _tags(tags: Tags, key: str = "Key", value: str = "Value") -> list[dict[str, str]]:
    return [{key: k, value: v} for k, v in tags.items()]


def _specification(type_: str, name: str, tags: Tags) -> list[dict[str, Any]]:
    return [{"ResourceType": type_, "Tags": _tags({"Name": name, **tags})}]


def _spec(type_: str, name: str, tags: Tags) -> list[dict[str, Any]]:
    """As _specification, for what has a name of its own; EC2 refuses an empty list of tags."""
    return [{"ResourceType": type_, "Tags": _tags(tags)}] if tags else []


def default_vpc() -> str:
    return str(client("ec2").describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"])


def default_subnets() -> list[str]:
    return sorted(subnet["SubnetId"] for subnet in client("ec2").describe_subnets()["Subnets"])


def instance(name: str, tags: Tags, subnet: str = "") -> str:
    ec2 = client("ec2")
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    answer = ec2.run_instances(
        ImageId=image,
        MinCount=1,
        MaxCount=1,
        SubnetId=subnet or default_subnets()[0],
        TagSpecifications=_specification("instance", name, tags),
    )
    return str(answer["Instances"][0]["InstanceId"])


def vpc(name: str, tags: Tags) -> str:
    answer = client("ec2").create_vpc(
        CidrBlock=f"10.{next(_numbers) % 256}.0.0/16", TagSpecifications=_specification("vpc", name, tags)
    )
    return str(answer["Vpc"]["VpcId"])


def subnet(name: str, tags: Tags, vpc_id: str = "") -> str:
    vpc_id = vpc_id or default_vpc()
    network = client("ec2").describe_vpcs(VpcIds=[vpc_id])["Vpcs"][0]["CidrBlock"].rsplit(".", 2)[0]
    used = len(client("ec2").describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc_id]}])["Subnets"])
    answer = client("ec2").create_subnet(
        VpcId=vpc_id,
        CidrBlock=f"{network}.{200 + used}.0/24",
        TagSpecifications=_specification("subnet", name, tags),
    )
    return str(answer["Subnet"]["SubnetId"])


def route_table(name: str, tags: Tags) -> str:
    answer = client("ec2").create_route_table(
        VpcId=default_vpc(), TagSpecifications=_specification("route-table", name, tags)
    )
    return str(answer["RouteTable"]["RouteTableId"])


def internet_gateway(name: str, tags: Tags) -> str:
    answer = client("ec2").create_internet_gateway(TagSpecifications=_specification("internet-gateway", name, tags))
    return str(answer["InternetGateway"]["InternetGatewayId"])


def nat_gateway(name: str, tags: Tags) -> str:
    answer = client("ec2").create_nat_gateway(
        SubnetId=default_subnets()[0],
        ConnectivityType="private",
        TagSpecifications=_specification("natgateway", name, tags),
    )
    return str(answer["NatGateway"]["NatGatewayId"])


def vpc_endpoint(name: str, tags: Tags) -> str:
    answer = client("ec2").create_vpc_endpoint(
        VpcId=default_vpc(),
        ServiceName=f"com.amazonaws.{REGION}.s3",
        TagSpecifications=_specification("vpc-endpoint", name, tags),
    )
    return str(answer["VpcEndpoint"]["VpcEndpointId"])


def security_group(name: str, tags: Tags, vpc_id: str = "") -> str:
    answer = client("ec2").create_security_group(
        GroupName=name,
        Description="-",
        VpcId=vpc_id or default_vpc(),
        TagSpecifications=_spec("security-group", name, tags),
    )
    return str(answer["GroupId"])


def network_interface(name: str, tags: Tags, subnet_id: str = "") -> str:
    answer = client("ec2").create_network_interface(
        SubnetId=subnet_id or default_subnets()[0], TagSpecifications=_specification("network-interface", name, tags)
    )
    return str(answer["NetworkInterface"]["NetworkInterfaceId"])


def elastic_ip(name: str, tags: Tags) -> str:
    answer = client("ec2").allocate_address(Domain="vpc", TagSpecifications=_specification("elastic-ip", name, tags))
    return str(answer["AllocationId"])


def key_pair(name: str, tags: Tags) -> str:
    answer = client("ec2").create_key_pair(KeyName=name, TagSpecifications=_spec("key-pair", name, tags))
    return str(answer["KeyPairId"])


def volume(name: str, tags: Tags) -> str:
    answer = client("ec2").create_volume(
        AvailabilityZone=f"{REGION}a", Size=1, TagSpecifications=_specification("volume", name, tags)
    )
    return str(answer["VolumeId"])


def snapshot(name: str, tags: Tags, volume_id: str = "") -> str:
    answer = client("ec2").create_snapshot(
        VolumeId=volume_id or volume("of-somebody", {}), TagSpecifications=_specification("snapshot", name, tags)
    )
    return str(answer["SnapshotId"])


def launch_template(name: str, tags: Tags) -> str:
    answer = client("ec2").create_launch_template(
        LaunchTemplateName=name,
        LaunchTemplateData={"InstanceType": "t3.small"},
        TagSpecifications=_spec("launch-template", name, tags),
    )
    return str(answer["LaunchTemplate"]["LaunchTemplateId"])


def bucket(name: str, tags: Tags) -> str:
    s3 = client("s3")
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": REGION})
    if tags:
        s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": _tags(tags)})
    return name


def role(name: str, tags: Tags) -> str:
    client("iam").create_role(RoleName=name, AssumeRolePolicyDocument="{}", Tags=_tags(tags))
    return name


def instance_profile(name: str, tags: Tags) -> str:
    client("iam").create_instance_profile(InstanceProfileName=name, Tags=_tags(tags))
    return name


def policy(name: str, tags: Tags) -> str:
    document = (
        '{"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "s3:DeleteBucket", "Resource": "*"}]}'
    )
    client("iam").create_policy(PolicyName=name, PolicyDocument=document, Tags=_tags(tags))
    return name


def db_instance(name: str, tags: Tags, **more: Any) -> str:
    client("rds").create_db_instance(
        DBInstanceIdentifier=name,
        DBInstanceClass="db.t4g.micro",
        Engine="postgres",
        AllocatedStorage=20,
        MasterUsername="postgres",
        MasterUserPassword="not-a-secret",
        Tags=_tags(tags),
        **more,
    )
    return name


def db_subnet_group(name: str, tags: Tags, subnets: list[str] | None = None) -> str:
    client("rds").create_db_subnet_group(
        DBSubnetGroupName=name,
        DBSubnetGroupDescription="-",
        SubnetIds=subnets or default_subnets()[:2],
        Tags=_tags(tags),
    )
    return name


def db_parameter_group(name: str, tags: Tags) -> str:
    client("rds").create_db_parameter_group(
        DBParameterGroupName=name, DBParameterGroupFamily="postgres17", Description="-", Tags=_tags(tags)
    )
    return name


def db_proxy(name: str, tags: Tags) -> str:
    client("rds").create_db_proxy(
        DBProxyName=name,
        EngineFamily="POSTGRESQL",
        Auth=[
            {"AuthScheme": "SECRETS", "SecretArn": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:of-a-proxy"}
        ],
        RoleArn="arn:aws:iam::123456789012:role/of-a-proxy",
        VpcSubnetIds=default_subnets()[:2],
        Tags=_tags(tags),
    )
    return name


def db_snapshot(name: str, tags: Tags, source: str = "") -> str:
    source = source or db_instance(f"source-{next(_numbers)}", {})
    client("rds").create_db_snapshot(DBSnapshotIdentifier=name, DBInstanceIdentifier=source, Tags=_tags(tags))
    return name


def db_automated_backup(name: str, tags: Tags) -> str:
    rds, name = client("rds"), f"{name}-db"  # not the database that db_instance makes
    db_instance(name, tags, BackupRetentionPeriod=7)
    rds.delete_db_instance(DBInstanceIdentifier=name, SkipFinalSnapshot=True, DeleteAutomatedBackups=False)
    (backup,) = (
        backup
        for backup in rds.describe_db_instance_automated_backups()["DBInstanceAutomatedBackups"]
        if backup["DBInstanceIdentifier"] == name
    )
    return str(backup.get("DbiResourceId") or name)


def secret(name: str, tags: Tags) -> str:
    client("secretsmanager").create_secret(Name=name, SecretString="not-a-secret", Tags=_tags(tags))
    return name


def parameter(name: str, tags: Tags) -> str:
    client("ssm").put_parameter(Name=name, Value="-", Type="String", Tags=_tags(tags))
    return name


def hosted_zone(name: str, tags: Tags) -> str:
    route53 = client("route53")
    id_ = route53.create_hosted_zone(Name=name, CallerReference=f"{name}-{next(_numbers)}")["HostedZone"]["Id"]
    id_ = id_.rsplit("/", 1)[-1]
    if tags:
        route53.change_tags_for_resource(ResourceType="hostedzone", ResourceId=id_, AddTags=_tags(tags))
    return str(id_)


def record(zone: str, name: str, type_: str = "A", value: str = "192.0.2.1") -> str:
    change = {
        "Action": "CREATE",
        "ResourceRecordSet": {"Name": name, "Type": type_, "TTL": 60, "ResourceRecords": [{"Value": value}]},
    }
    client("route53").change_resource_record_sets(HostedZoneId=zone, ChangeBatch={"Changes": [change]})
    return f"{zone}/{name}/{type_}"


def log_group(name: str, tags: Tags) -> str:
    client("logs").create_log_group(logGroupName=name, tags=tags)
    return name


def load_balancer(name: str, tags: Tags) -> str:
    more = {"Tags": _tags(tags)} if tags else {}
    answer = client("elbv2").create_load_balancer(Name=name, Subnets=default_subnets()[:2], **more)
    return str(answer["LoadBalancers"][0]["LoadBalancerArn"])


def target_group(name: str, tags: Tags) -> str:
    more = {"Tags": _tags(tags)} if tags else {}
    answer = client("elbv2").create_target_group(Name=name, Protocol="HTTP", Port=80, VpcId=default_vpc(), **more)
    return str(answer["TargetGroups"][0]["TargetGroupArn"])


def ecs_cluster(name: str, tags: Tags) -> str:
    answer = client("ecs").create_cluster(clusterName=name, tags=_tags(tags, "key", "value"))
    return str(answer["cluster"]["clusterArn"])


def ecs_service(name: str, tags: Tags) -> str:
    ecs = client("ecs")
    cluster = ecs.create_cluster(clusterName=f"of-somebody-{next(_numbers)}")["cluster"]["clusterArn"]
    task = ecs.register_task_definition(
        family=f"of-somebody-{next(_numbers)}", containerDefinitions=[{"name": "x", "image": "x", "memory": 64}]
    )["taskDefinition"]["taskDefinitionArn"]
    answer = ecs.create_service(
        cluster=cluster,
        serviceName=name,
        taskDefinition=task,
        desiredCount=1,
        launchType="EC2",
        tags=_tags(tags, "key", "value"),
    )
    return str(answer["service"]["serviceArn"])


def task_definition(name: str, tags: Tags) -> str:
    more = {"tags": _tags(tags, "key", "value")} if tags else {}
    containers = [{"name": "x", "image": "x", "memory": 64}]
    answer = client("ecs").register_task_definition(family=name, containerDefinitions=containers, **more)
    return str(answer["taskDefinition"]["taskDefinitionArn"])


def scalable_target(name: str, tags: Tags) -> str:
    id_ = ecs_service(name, tags).rpartition(":")[2]
    client("application-autoscaling").register_scalable_target(
        ServiceNamespace="ecs",
        ResourceId=id_,
        ScalableDimension="ecs:service:DesiredCount",
        MinCapacity=1,
        MaxCapacity=2,
    )
    return id_


def repository(name: str, tags: Tags) -> str:
    client("ecr").create_repository(repositoryName=name, tags=_tags(tags))
    return name


def certificate(name: str, tags: Tags) -> str:
    more = {"Tags": _tags(tags)} if tags else {}
    return str(client("acm").request_certificate(DomainName=f"{name}.example.com", **more)["CertificateArn"])


MAKERS: dict[str, Make] = {
    make.__name__: make
    for make in (
        instance,
        vpc,
        subnet,
        route_table,
        internet_gateway,
        nat_gateway,
        vpc_endpoint,
        security_group,
        network_interface,
        elastic_ip,
        key_pair,
        volume,
        snapshot,
        launch_template,
        bucket,
        role,
        instance_profile,
        policy,
        db_instance,
        db_subnet_group,
        db_parameter_group,
        db_proxy,
        db_snapshot,
        db_automated_backup,
        secret,
        parameter,
        hosted_zone,
        log_group,
        load_balancer,
        target_group,
        ecs_cluster,
        ecs_service,
        task_definition,
        scalable_target,
        repository,
        certificate,
    )
}
