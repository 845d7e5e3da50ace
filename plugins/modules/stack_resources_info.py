#!/usr/bin/python
# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: stack_resources_info
version_added: 0.1.0
short_description: Ask AWS what exists that belongs to an MLflow stack
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Lists everything in an AWS account and region that belongs to one stack of this collection. There is no state file
    to consult. Each service is asked what it holds, and the Resource Groups Tagging API is asked as a second witness.
  - The tag C(mlflow:stack) settles to which stack a resource belongs, whatever its name.
  - A resource without that tag belongs to the stack C(demo) if it is called C(mlflow-demo), if words which the roles of
    this collection append follow (C(mlflow-demo-server)), or an account ID, a region or a time. Names with slashes are
    judged segment by segment (C(mlflow-demo/database), C(/aws/rds/instance/mlflow-demo/postgresql)); the log group
    C(/mlflow/demo) is the stack's too.
  - C(mlflow-demo-2) is no name of the stack C(demo), as there may be a stack C(demo-2). What begins like one of the
    stack's names without being one, and has no tag, is returned apart in RV(ambiguous), unless the tags of another
    stack in the same account explain it.
  - What lies in the stack's VPC, or hangs on one of its instances or volumes, belongs to it unless it has the tag of
    another stack. A VPC's own default security group and main route table come and go with it, and are not listed.
  - DNS records have no tags. They belong to the stack that the TXT record C(_mlflow-stack.<name>) beside them says, which
    the role C(aws_dns) writes. Every hosted zone of the account is looked through.
  - What AWS still shows although it is gone (a terminated instance, a deleted NAT gateway, an inactive task definition,
    which stays for ever) is not listed. Where the
    tagging API names something that its own service does not know any more, the service is believed.
options:
  stack:
    description:
      - Name of the stack, as in C(mlflow_stack).
    type: str
    required: true
  names:
    description:
      - Further exact names that belong to the stack, such as a bucket with a name of its own.
    type: list
    elements: str
    default: []
  record_names:
    description:
      - Public DNS names that the stack means to use. Their records are returned in RV(ambiguous) if no TXT record says
        whose they are. Those of the stack itself are found without this option.
    type: list
    elements: str
    default: []
  keep:
    description:
      - Types of resources that are meant to stay, as RV(resources[].type) gives them. They are returned in RV(kept)
        instead of RV(remaining).
    type: list
    elements: str
    default: []
  services:
    description:
      - Services to ask, by the names that boto3 gives them. The default is all of them.
      - A service that is not asked has not been proven empty. Leave one out only if the stack never used it.
      - The tagging API is C(resourcegroupstaggingapi).
    type: list
    elements: str
    choices:
      - ec2
      - s3
      - iam
      - rds
      - secretsmanager
      - ssm
      - route53
      - logs
      - elbv2
      - ecs
      - application-autoscaling
      - ecr
      - acm
      - resourcegroupstaggingapi
  fail_on_unchecked:
    description:
      - Whether to fail when a service could not be asked, for lack of a permission or for any other reason. A sweep that
        could not look has proven nothing.
    type: bool
    default: true
attributes:
  check_mode:
    description: Reads only, and does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
notes:
  - Needs these permissions on all resources
    (C(ec2:DescribeAddresses), C(ec2:DescribeInstances), C(ec2:DescribeInternetGateways), C(ec2:DescribeKeyPairs),
    C(ec2:DescribeLaunchTemplates), C(ec2:DescribeNatGateways), C(ec2:DescribeNetworkInterfaces),
    C(ec2:DescribeRouteTables), C(ec2:DescribeSecurityGroups), C(ec2:DescribeSnapshots), C(ec2:DescribeSubnets),
    C(ec2:DescribeVolumes), C(ec2:DescribeVpcEndpoints), C(ec2:DescribeVpcs),
    C(s3:GetBucketTagging), C(s3:ListAllMyBuckets),
    C(iam:GetInstanceProfile), C(iam:ListInstanceProfiles), C(iam:ListPolicies), C(iam:ListPolicyTags),
    C(iam:ListRoleTags), C(iam:ListRoles),
    C(rds:DescribeDBInstanceAutomatedBackups), C(rds:DescribeDBInstances), C(rds:DescribeDBParameterGroups),
    C(rds:DescribeDBProxies), C(rds:DescribeDBSnapshots), C(rds:DescribeDBSubnetGroups), C(rds:ListTagsForResource),
    C(secretsmanager:ListSecrets),
    C(ssm:DescribeParameters), C(ssm:ListTagsForResource),
    C(route53:ListHostedZones), C(route53:ListResourceRecordSets), C(route53:ListTagsForResources),
    C(logs:DescribeLogGroups), C(logs:ListTagsForResource),
    C(elasticloadbalancing:DescribeLoadBalancers), C(elasticloadbalancing:DescribeTags),
    C(elasticloadbalancing:DescribeTargetGroups),
    C(ecs:DescribeClusters), C(ecs:DescribeServices), C(ecs:ListClusters), C(ecs:ListServices),
    C(ecs:ListTagsForResource), C(ecs:ListTaskDefinitions),
    C(application-autoscaling:DescribeScalableTargets),
    C(ecr:DescribeRepositories), C(ecr:ListTagsForResource),
    C(acm:ListCertificates), C(acm:ListTagsForCertificate),
    C(tag:GetResources)). C(sts:GetCallerIdentity) is called too, and needs none.
  - Reads the names and tags of what it lists, and never the value of a secret or a parameter.
seealso:
  - name: Resource Groups Tagging API
    description: Which resources the second witness knows.
    link: https://docs.aws.amazon.com/resourcegroupstagging/latest/APIReference/supported-services.html
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
"""

EXAMPLES = r"""
- name: See what a stack consists of
  mlops.mlflow_aws.stack_resources_info:
    stack: demo
  register: consists_of

- name: Make sure that nothing is left but the bucket and the database's last snapshot
  mlops.mlflow_aws.stack_resources_info:
    stack: demo
    keep:
      - bucket
      - db_snapshot
  register: left
  until: left.remaining | default([true]) | length == 0
  retries: 10
  delay: 15
"""

RETURN = r"""
resources:
  description: Everything that belongs to the stack, sorted by service, type and ID.
  returned: always
  type: list
  elements: dict
  contains:
    service:
      description: The service, by the name that boto3 gives it.
      type: str
      returned: always
      sample: ec2
    type:
      description: The type of the resource.
      type: str
      returned: always
      sample: elastic_ip
    id:
      description: What the service's own calls take to name it.
      type: str
      returned: always
      sample: eipalloc-0123456789abcdef0
    name:
      description: Its name, or an empty string.
      type: str
      returned: always
      sample: mlflow-demo
    arn:
      description: Its ARN. Empty for a DNS record, which has none.
      type: str
      returned: always
      sample: arn:aws:ec2:eu-central-1:123456789012:elastic-ip/eipalloc-0123456789abcdef0
    stack:
      description: The stack that it belongs to.
      type: str
      returned: always
      sample: demo
    matched_by:
      description:
        - How it was recognised. V(tag) is its own tag, V(name) its name, V(attachment) what it lies in or hangs on.
        - V(index) means that only the tagging API knows it, as this module does not ask its service, or could not. The
          tagging API can show a thing for some time after its deletion.
      type: str
      returned: always
      sample: tag
    state:
      description: Its state.
      type: str
      returned: when the service gives one
      sample: available
    kept_by:
      description: Why it is meant to stay, such as V(keep), or a recovery window of Secrets Manager.
      type: str
      returned: for what is in RV(kept)
      sample: keep
count:
  description: How many RV(resources) there are.
  returned: always
  type: int
  sample: 23
remaining:
  description: Those of RV(resources) that are not meant to stay. Empty after a complete teardown.
  returned: always
  type: list
  elements: dict
kept:
  description:
    - Those of RV(resources) that are meant to stay, because O(keep) names their type, or because AWS keeps them for a
      time after their deletion (a secret in its recovery window).
  returned: always
  type: list
  elements: dict
ambiguous:
  description:
    - What begins like one of the stack's names, has no tag and may belong to another stack, and records at
      O(record_names) that nobody claims. A person must judge.
  returned: always
  type: list
  elements: dict
services_checked:
  description: The services that answered every question.
  returned: always
  type: list
  elements: str
  sample: [acm, ec2, ecr, ecs, elbv2, iam, logs, rds, resourcegroupstaggingapi, route53, s3, secretsmanager]
not_checked:
  description: What could not be asked.
  returned: always
  type: list
  elements: dict
  contains:
    service:
      description: The service, by the name that boto3 gives it.
      type: str
      returned: always
      sample: iam
    type:
      description: The type of resource.
      type: str
      returned: always
      sample: role
    cause:
      description: What AWS answered.
      type: str
      returned: always
      sample: "An error occurred (AccessDenied) when calling the ListRoles operation: ..."
    actions:
      description: The IAM actions that looking takes.
      type: list
      elements: str
      returned: always
      sample: ["iam:ListRoles", "iam:ListRoleTags"]
account_id:
  description: The account that was asked.
  returned: always
  type: str
  sample: "123456789012"
region:
  description: The region that was asked. IAM, Route 53 and S3 answer for all regions.
  returned: always
  type: str
  sample: eu-central-1
"""

from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._connections import WORKERS, Connections
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._stack_resources import (
    KINDS,
    SERVICES,
    STACK_NAME,
    Candidate,
    Stack,
    Sweep,
    sweep,
)


def describe(candidate: Candidate, stack: str) -> dict[str, Any]:
    entry = {
        "service": candidate.service,
        "type": candidate.type,
        "id": candidate.id,
        "name": candidate.name,
        "arn": candidate.arn,
        "stack": stack,
    }
    if candidate.state:
        entry["state"] = candidate.state
    return entry


def _order(entry: dict[str, Any]) -> tuple[str, str, str]:
    return entry["service"], entry["type"], entry["id"]


def results(found: Sweep, stack: str, keep: list[str]) -> dict[str, Any]:
    """The sweep as plain data; what @keep or AWS itself retains is kept, the rest remains."""
    resources = []
    for owned in found.owned:
        entry = {**describe(owned.candidate, stack), "matched_by": owned.by}
        kept_by = "keep" if owned.candidate.type in keep else owned.candidate.kept_by
        resources.append({**entry, "kept_by": kept_by} if kept_by else entry)
    resources.sort(key=_order)
    return {
        "resources": resources,
        "count": len(resources),
        "remaining": [entry for entry in resources if "kept_by" not in entry],
        "kept": [entry for entry in resources if "kept_by" in entry],
        "ambiguous": sorted((describe(candidate, stack) for candidate in found.ambiguous), key=_order),
        "services_checked": found.checked,
        "not_checked": [
            {"service": item.service, "type": item.type, "cause": item.cause, "actions": list(item.actions)}
            for item in found.unchecked
        ],
    }


def blind_message(found: Sweep, stack: str, region: str, caller: str) -> str:
    """Says what could not be looked at, why, and what to do; each cause once."""
    causes: dict[str, list[str]] = {}
    for item in found.unchecked:
        causes.setdefault(item.cause, []).append(f"{item.service} {item.type}")
    actions = sorted({action for item in found.unchecked for action in item.actions})
    details = "; ".join(f"{', '.join(kinds)} ({cause})" for cause, kinds in causes.items())
    return (
        f"Failed to look at everything that the stack {stack} can consist of in {region}: {details}. "
        f"What was not looked at is not proven empty. Allow {caller} these actions, if that is the cause: "
        f"{', '.join(actions)}. Or leave out services that the stack never used with the option services."
    )


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "stack": {"type": "str", "required": True},
            "names": {"type": "list", "elements": "str", "default": []},
            "record_names": {"type": "list", "elements": "str", "default": []},
            "keep": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "list", "elements": "str", "choices": list(SERVICES)},
            "fail_on_unchecked": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    name, keep = module.params["stack"], module.params["keep"]
    if not STACK_NAME.fullmatch(name):
        module.fail_json(
            msg=f"Failed to sweep the stack '{name}': a stack's name has small letters, digits and inner dashes only."
        )
    unknown = sorted(set(keep) - {kind.type for kind in KINDS})
    if unknown:
        module.fail_json(
            msg=f"Failed to sweep the stack {name}: keep names {', '.join(unknown)}, which is no type of resource. "
            f"The types are {', '.join(sorted(kind.type for kind in KINDS))}."
        )
    stack = Stack(
        name,
        also=frozenset(entry for entry in module.params["names"] if entry),
        records=frozenset(entry.rstrip(".").lower() for entry in module.params["record_names"] if entry),
    )
    if not module.region:
        module.fail_json(
            msg=f"Failed to sweep the stack {name}: no region is given. "
            "Set the option region, the variable AWS_REGION or a region in the profile."
        )
    try:
        connect = Connections(module)
        caller = connect("sts").get_caller_identity()
        partition = caller["Arn"].split(":")[1]
        services = module.params["services"] or list(SERVICES)
        found = sweep(stack, connect, partition, module.region, caller["Account"], services, WORKERS)
    except (BotoCoreError, ClientError, ValueError) as error:
        module.fail_json_aws(error, msg=f"Failed to ask AWS in {module.region} about the stack {name}")
    answer = {"account_id": caller["Account"], "region": module.region, **results(found, name, keep)}
    if found.unchecked and module.params["fail_on_unchecked"]:
        module.fail_json(msg=blind_message(found, name, module.region, caller["Arn"]), **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
