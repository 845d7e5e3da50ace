#!/usr/bin/python
# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_resource
version_added: 0.2.0
short_description: Keep what an ECS service consists of as it is defined
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Makes, changes and removes a cluster, a task definition, a service, its scalable target or its image repository.
  - The definition is what the API's own create call takes. Every value in it is compared with what AWS describes, so that
    a changed environment variable, processor or circuit breaker is seen, and a second run changes nothing. What the
    definition does not mention is left alone.
  - The modules of C(community.aws) that are there for this compare only some values (C(ecs_taskdefinition)
    overlooks a changed variable and the size of a task, C(ecs_service) the network and the deployment), set back what
    autoscaling has decided, and neither tag clusters and repositories nor remove task definitions and scalable targets.
    C(application_autoscaling_policy) acts in check mode too.
options:
  kind:
    description:
      - What it is.
      - V(task_definition) is a family. What differs is registered as a new revision; absent, all revisions are
        deregistered and deleted.
      - V(scalable_target) is what Application Auto Scaling knows of a service. Its policies are removed with it.
      - V(repository) is one of ECR. Absent, its images are removed with it.
    type: str
    choices: [cluster, repository, scalable_target, service, task_definition]
    required: true
  name:
    description:
      - Its name; of a scalable target, the service's.
    type: str
    required: true
  cluster:
    description:
      - The cluster that it is in. Required for a service and a scalable target.
    type: str
  definition:
    description:
      - What the create call of the API takes beside the name and the tags, in the API's own spelling.
      - What it leaves out stays as it is; give an empty value for what has to go.
      - That of a repository may also have C(lifecyclePolicy), as a dictionary; that of a scalable target C(policies), a
        dictionary that says how each policy, by its name, tracks a target.
    type: dict
    default: {}
  initial:
    description:
      - Further arguments of the create call, which are not looked at any more when it exists, such as C(desiredCount).
    type: dict
    default: {}
  tags:
    description:
      - Tags that it has to have. Others stay. Those of a scalable target are set when it is made, and not compared.
    type: dict
    default: {}
  wait_timeout:
    description:
      - Seconds that a service may take to drain, and a cluster to lose its last task.
    type: int
    default: 600
  state:
    description:
      - Whether it is there.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode:
    description: Says what would change, and changes nothing.
    support: full
  diff_mode:
    description: Shows the values that differ.
    support: full
notes:
  - Removing something that does not exist changes nothing.
  - Needs the permissions of the calls that it makes, which are named in the README of the role C(aws_service).
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
"""

EXAMPLES = r"""
- name: Have a cluster with both kinds of Fargate
  mlops.mlflow_aws.ecs_resource:
    kind: cluster
    name: mlflow-demo
    definition:
      capacityProviders: [FARGATE, FARGATE_SPOT]
      settings: [{name: containerInsights, value: enabled}]
    tags:
      mlflow:stack: demo

- name: Have two tasks at first, and as many as autoscaling wants later
  mlops.mlflow_aws.ecs_resource:
    kind: service
    name: mlflow-demo
    cluster: mlflow-demo
    definition:
      taskDefinition: "{{ registered.resource.taskDefinitionArn }}"
      deploymentConfiguration: {deploymentCircuitBreaker: {enable: true, rollback: true}}
    initial:
      desiredCount: 2
"""

RETURN = r"""
resource:
  description: What AWS says of it, as its API spells it, with its tags as a dictionary. Empty when it is not there.
  returned: always
  type: dict
  sample: {"clusterName": "mlflow-demo", "status": "ACTIVE", "tags": {"mlflow:stack": "demo"}}
differences:
  description: The keys of O(definition) that differed, and V(tags) if a tag did.
  returned: when it exists and O(state=present)
  type: list
  elements: str
  sample: [settings]
"""

from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._ecs_resources import (
    IN_A_CLUSTER,
    KINDS,
    EcsResourceError,
    Resource,
    differing,
    plain,
)


def present(resource: Resource, params: dict[str, Any], check: bool) -> dict[str, Any]:
    definition, tags = params["definition"], params["tags"]
    actual = resource.read()
    if actual is None:
        if not check:
            resource.create({**definition, **params["initial"]}, tags)
        after = {**definition, **params["initial"], "tags": tags}
        return {"changed": True, "resource": resource.read() or {}, "diff": {"before": {}, "after": after}}

    keys = differing(definition, actual)
    # Where AWS tells no tags they were set at creation.
    missing = {key: tags[key] for key in tags if actual.get("tags", tags).get(key) != tags[key]}
    if not check:
        if keys:
            resource.update(definition, keys)
        # What was updated may be another thing now, as a new revision is.
        actual = resource.read() if keys else actual
        if missing:
            resource.tag(actual or {}, missing)
    before, after = {key: (actual or {}).get(key) for key in keys}, {key: definition[key] for key in keys}
    return {
        "changed": bool(keys or missing),
        "resource": (resource.read() or {}) if missing and not check else actual or {},
        "differences": keys + (["tags"] if missing else []),
        "diff": {"before": before, "after": {**after, **({"tags": missing} if missing else {})}},
    }


def absent(resource: Resource, check: bool) -> dict[str, Any]:
    if not resource.remains():
        return {"changed": False, "resource": {}}
    if not check:
        resource.delete()
    return {"changed": True, "resource": {}, "diff": {"before": {"name": resource.name}, "after": {}}}


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "kind": {"type": "str", "required": True, "choices": sorted(KINDS)},
            "name": {"type": "str", "required": True},
            "cluster": {"type": "str"},
            "definition": {"type": "dict", "default": {}},
            "initial": {"type": "dict", "default": {}},
            "tags": {"type": "dict", "default": {}},
            "wait_timeout": {"type": "int", "default": 600},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("kind", kind, ["cluster"]) for kind in IN_A_CLUSTER],
        supports_check_mode=True,
    )
    params = module.params
    what = f"{params['kind'].replace('_', ' ')} {params['name']}"
    resource = KINDS[params["kind"]](module.client, params["name"], params["cluster"] or "", params["wait_timeout"])
    try:
        if params["state"] == "present":
            result = present(resource, params, module.check_mode)
        else:
            result = absent(resource, module.check_mode)
    except EcsResourceError as error:
        module.fail_json(msg=f"Failed to bring the {what} to the state {params['state']}: {error}")
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"Failed to bring the {what} to the state {params['state']}")
    module.exit_json(**plain(result))


if __name__ == "__main__":
    main()
