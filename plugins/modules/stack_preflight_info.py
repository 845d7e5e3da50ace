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
    whether the hosted zone exists.
  - An input that AWS does not know is data (an empty answer), not a failure. The module fails only where it could not ask.
  - The questions are asked concurrently; together they take about as long as the slowest.
  - Needs C(sts:GetCallerIdentity) (always allowed), C(ec2:DescribeRegions), C(ec2:DescribeVpcs),
    C(ec2:DescribeInstanceTypes), C(ec2:DescribeInstanceTypeOfferings), C(rds:DescribeDBEngineVersions),
    C(rds:DescribeOrderableDBInstanceOptions), C(rds:DescribeDBInstances) and C(route53:ListHostedZonesByName).
options:
  stack:
    description: Name of the stack, as in C(mlflow_stack).
    type: str
    required: true
  instance_type:
    description: EC2 instance type to ask for.
    type: str
    required: true
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
instance_type:
  description: The instance type, or an empty dictionary where AWS does not offer it in the region.
  returned: always
  type: dict
  sample: {"architecture": "x86_64", "memory_mib": 2048, "vcpus": 2, "zones": ["eu-central-1a", "eu-central-1b"]}
database:
  description: What RDS says of the database.
  returned: always
  type: dict
  sample: {"class_offered": true, "engine_version": "17.6", "exists": false, "offered_majors": ["14", "15", "16", "17"]}
hosted_zone_id:
  description: Identifier of the public hosted zone, empty where there is none or none was asked for.
  returned: always
  type: str
  sample: Z0123456789ABCDEFGHIJ
"""

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._stack_preflight import PreflightError, ask


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "stack": {"type": "str", "required": True},
            "instance_type": {"type": "str", "required": True},
            "database_identifier": {"type": "str", "required": True},
            "database_class": {"type": "str", "required": True},
            "database_engine_version": {"type": "str", "required": True},
            "domain": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        answer = ask(
            client=lambda service, region: module.client(service, region=region),
            region=module.region or "",
            stack=module.params["stack"],
            instance_type=module.params["instance_type"],
            database_identifier=module.params["database_identifier"],
            database_class=module.params["database_class"],
            database_engine_version=module.params["database_engine_version"],
            domain=module.params["domain"],
        )
    except PreflightError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
