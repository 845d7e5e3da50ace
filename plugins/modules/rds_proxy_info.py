#!/usr/bin/python
# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rds_proxy_info
version_added: 0.2.0
short_description: Ask RDS what a proxy of it is like
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Describes an RDS Proxy, its connection pool and the database behind it. One that does not exist is an empty answer and
    no failure.
  - Needs C(rds:DescribeDBProxies), C(rds:DescribeDBProxyTargetGroups), C(rds:DescribeDBProxyTargets) and
    C(rds:ListTagsForResource).
options:
  name:
    description:
      - Its name.
    type: str
    required: true
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
seealso:
  - module: mlops.mlflow_aws.rds_proxy
"""

EXAMPLES = r"""
- name: See whether there is a proxy
  mlops.mlflow_aws.rds_proxy_info:
    name: mlflow-demo
  register: found
"""

RETURN = r"""
proxy:
  description:
    - As M(mlops.mlflow_aws.rds_proxy) returns it. Empty when it is not there.
  returned: always
  type: dict
  sample: {"name": "mlflow-demo", "status": "available", "target": "mlflow-demo", "target_state": "AVAILABLE"}
"""

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.amazon.aws.plugins.module_utils.retries import AWSRetry
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._rds_proxies import describe


def main() -> None:
    module = AnsibleAWSModule(argument_spec={"name": {"type": "str", "required": True}}, supports_check_mode=True)
    client = module.client("rds", retry_decorator=AWSRetry.jittered_backoff(retries=10))
    name = module.params["name"]
    try:
        proxy = describe(client, name)
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"Failed to describe the RDS Proxy {name}")
    module.exit_json(changed=False, proxy=proxy)


if __name__ == "__main__":
    main()
