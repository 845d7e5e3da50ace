#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: stack_preflight_info
short_description: Asks AWS what it says of a stack's inputs, before anything is created
version_added: 0.1.0
description:
  - Answers in one call what V(site.yml) must know before its first change - whose credentials these are, whether the
    region exists for them, what the instance type runs and where it is offered, which PostgreSQL versions RDS offers,
    how many connections the database carries, whether the hosted zone and the certificate exist, and which topologies
    the stack has something of already.
  - An input that AWS does not know is data (an empty answer), not a failure. The module fails only where it could not ask.
  - The questions are asked concurrently; together they take about as long as the slowest.
  - RDS tells nobody the memory of an instance class, on which the number of connections depends. It is taken from the
    EC2 instance type of the same name (C(t4g.micro) for C(db.t4g.micro)).
  - Needs C(sts:GetCallerIdentity) (always allowed), C(ec2:DescribeAddresses), C(ec2:DescribeAvailabilityZones),
    C(ec2:DescribeInstances), C(ec2:DescribeInstanceTypeOfferings), C(ec2:DescribeInstanceTypes),
    C(ec2:DescribeRegions), C(ec2:DescribeSubnets), C(ec2:DescribeVpcs), C(ecs:DescribeClusters),
    C(elasticloadbalancing:DescribeTargetGroups), C(rds:DescribeDBEngineVersions), C(rds:DescribeDBInstances), C(rds:DescribeDBProxies),
    C(rds:DescribeOrderableDBInstanceOptions), C(route53:ListHostedZonesByName) and C(acm:DescribeCertificate).
options:
  stack:
    description: Name of the stack, as in C(mlflow_stack).
    type: str
    required: true
  topology:
    description: What the stack is meant to be built of.
    type: str
    choices: [host, fleet, fargate]
    default: host
  instance_type:
    description: EC2 instance type to ask for.
    type: str
    required: true
  fleet_size:
    description: How many hosts the topology V(fleet) has.
    type: int
    default: 2
  fargate_min_tasks:
    description: How many tasks the topology V(fargate) has at the least.
    type: int
    default: 2
  fargate_max_tasks:
    description: How many tasks the topology V(fargate) has at the most, but for deployments.
    type: int
    default: 3
  database_identifier:
    description: Identifier of the stack's own DB instance, which may not exist yet.
    type: str
    required: true
  database_class:
    description: RDS instance class to ask for.
    type: str
    required: true
  database_engine_version:
    description:
      - PostgreSQL version to ask for, as a major version (V(17)) or a full one (V(17.6)).
      - A major version stands for the newest minor version that RDS offers, or for the one that the existing DB
        instance runs.
    type: str
    required: true
  fargate_cpu:
    description: CPU units of a task.
    type: int
    default: 1024
  database_proxy:
    description: Whether the servers work through a proxy that pools their connections.
    type: bool
    default: false
  database_connections:
    description: How many connections all servers may hold together; V(0) means half of what the database carries.
    type: int
    default: 0
  certificate_arn:
    description: ARN of an ACM certificate to ask for; not asked when empty, or of another account or region.
    type: str
    default: ""
  certificate_name:
    description: DNS name that the certificate must be for.
    type: str
    default: ""
  domain:
    description: Name of a public hosted zone to ask for; not asked when empty.
    type: str
    default: ""
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
attributes:
  check_mode:
    description: Can run in check mode and returns the same.
    support: full
  diff_mode:
    description: Changes nothing, so there is nothing to show.
    support: none
author:
  - The mlops.mlflow_aws founders (@mlops)
"""

EXAMPLES = r"""
- name: Ask AWS about the inputs
  mlops.mlflow_aws.stack_preflight_info:
    region: eu-central-1
    stack: demo
    instance_type: t3.small
    database_identifier: mlflow-demo
    database_class: db.t4g.micro
    database_engine_version: "17"
    domain: example.com
  register: preflight
"""

RETURN = r"""
account:
  description: Number of the account that the credentials belong to.
  returned: always
  type: str
  sample: "123456789012"
caller_arn:
  description: Who the credentials are.
  returned: always
  type: str
  sample: arn:aws:iam::123456789012:user/ada
regions:
  description: Regions that are enabled for the account, sorted.
  returned: always
  type: list
  elements: str
  sample: [eu-central-1, us-east-1]
region_exists:
  description: Whether the region that was asked for is one of them. Where it is not, nothing further was asked.
  returned: always
  type: bool
  sample: true
vpc_cidrs:
  description: Networks of the VPCs that the stack already has.
  returned: always
  type: list
  elements: str
  sample: [10.42.0.0/16]
zones:
  description: Availability zones of the region.
  returned: always
  type: list
  elements: str
  sample: [eu-central-1a, eu-central-1b, eu-central-1c]
stack_zones:
  description: Availability zones that the stack has subnets in already, in the order of their networks.
  returned: always
  type: list
  elements: str
  sample: [eu-central-1a, eu-central-1b]
topologies:
  description: The topologies that the stack has something of, from whole ones to remains of an interrupted run.
  returned: always
  type: list
  elements: str
  sample: [fleet]
instance_type:
  description: The instance type, or an empty dictionary where AWS does not offer it in the region.
  returned: always
  type: dict
  sample: {"architecture": "x86_64", "memory_mib": 2048, "vcpus": 2, "zones": ["eu-central-1a", "eu-central-1b"]}
database:
  description: What RDS says of the database.
  returned: always
  type: dict
  sample: {"class_offered": true, "engine_version": "17.6", "exists": false, "offered_majors": ["16", "17"], "proxy_exists": false}
connections:
  description:
    - How many connections the database carries (C(max_connections), of which the servers use C(usable) at the most), how
      many all servers of one topology may hold together (C(share)) and each of them (C(per_server)), for the number of
      C(servers) that can run at once, and whether that suffices (C(fits)).
    - With a proxy C(share) is what the proxy may open, and C(per_server) what each server may hold towards it.
      C(proxy_percent) is that share in percent, and C(proxy_percent_beside) what it may be while servers connect directly.
    - C(database_class) is the class that counts, the smaller one where the database is of another class than was asked
      for; its C(memory_mib) is 0 where EC2 has no type of that name. C(fitting_class) is the smallest class of
      the same family that carries the servers, where this one does not and there is one.
  returned: always
  type: dict
  sample: {"database_class": "db.t4g.small", "fits": true, "max_connections": 192, "per_server": 44, "servers": 2, "share": 88, "usable": 177}
certificate:
  description: The certificate, or an empty dictionary where there is none or none was asked for.
  returned: always
  type: dict
  sample: {"covers": true, "names": ["mlflow.example.com"], "status": "ISSUED"}
hosted_zone_id:
  description: Identifier of the public hosted zone, empty where there is none or none was asked for.
  returned: always
  type: str
  sample: Z0123456789ABCDEFGHIJ
"""

from dataclasses import fields

try:
    from botocore.exceptions import BotoCoreError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._connections import Connections
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._stack_preflight import Inputs, PreflightError, ask


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "stack": {"type": "str", "required": True},
            "topology": {"type": "str", "choices": ["host", "fleet", "fargate"], "default": "host"},
            "instance_type": {"type": "str", "required": True},
            "fleet_size": {"type": "int", "default": 2},
            "fargate_min_tasks": {"type": "int", "default": 2},
            "fargate_max_tasks": {"type": "int", "default": 3},
            "fargate_cpu": {"type": "int", "default": 1024},
            "database_proxy": {"type": "bool", "default": False},
            "database_identifier": {"type": "str", "required": True},
            "database_class": {"type": "str", "required": True},
            "database_engine_version": {"type": "str", "required": True},
            "database_connections": {"type": "int", "default": 0},
            "domain": {"type": "str", "default": ""},
            "certificate_arn": {"type": "str", "default": ""},
            "certificate_name": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        answer = ask(
            client=Connections(module),
            region=module.region or "",
            inputs=Inputs(**{field.name: module.params[field.name] for field in fields(Inputs)}),
        )
    except PreflightError as error:
        module.fail_json(msg=str(error))
    except (BotoCoreError, ValueError) as error:  # a profile or a configuration that no client can be made of
        module.fail_json_aws(error, msg="Failed to read the configuration of the AWS client. Nothing was changed")
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
