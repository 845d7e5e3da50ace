#!/usr/bin/python
# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_resource_info
version_added: 0.2.0
short_description: Ask what AWS says of something that an ECS service consists of
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Describes a cluster, the newest active revision of a task definition, a service, its scalable target or its image
    repository. What does not exist is an empty answer and no failure, also where the cluster does not exist.
options:
  kind:
    description:
      - What it is, as in M(mlops.mlflow_aws.ecs_resource).
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
attributes:
  check_mode:
    description: Reads only, and does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
"""

EXAMPLES = r"""
- name: See which images there are
  mlops.mlflow_aws.ecs_resource_info:
    kind: repository
    name: mlflow-demo
  register: repository
"""

RETURN = r"""
resource:
  description:
    - What AWS says of it, as its API spells it, with its tags as a dictionary. Empty when it is not there.
    - That of a repository also has C(imageTags), a sorted list, and C(lifecyclePolicy).
  returned: always
  type: dict
  sample: {"repositoryName": "mlflow-demo", "imageTags": ["3.4.0-0123456789ab"]}
"""

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._ecs_resources import IN_A_CLUSTER, KINDS, plain


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "kind": {"type": "str", "required": True, "choices": sorted(KINDS)},
            "name": {"type": "str", "required": True},
            "cluster": {"type": "str"},
        },
        required_if=[("kind", kind, ["cluster"]) for kind in IN_A_CLUSTER],
        supports_check_mode=True,
    )
    params = module.params
    resource = KINDS[params["kind"]](module.client, params["name"], params["cluster"] or "", 0)
    try:
        found = resource.read()
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"Failed to describe the {params['kind'].replace('_', ' ')} {params['name']}")
    module.exit_json(changed=False, resource=plain(found or {}))


if __name__ == "__main__":
    main()
