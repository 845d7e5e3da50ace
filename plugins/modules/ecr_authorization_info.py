#!/usr/bin/python
# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
module: ecr_authorization_info
short_description: Asks ECR for a login to the account's registry
version_added: 0.1.0
description:
  - Returns the address of the registry of the account and region, and a login with which Docker can pull and push there for twelve hours.
  - What the login may do is what the caller's own permissions for ECR are.
  - Needs C(ecr:GetAuthorizationToken).
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
notes:
  - Set C(no_log) on the task; the password is returned.
author:
  - The mlops.mlflow_aws founders (@mlops)
"""

EXAMPLES = r"""
- name: Ask for a login
  mlops.mlflow_aws.ecr_authorization_info:
    region: eu-central-1
  register: ecr
  no_log: true

- name: Log in
  community.docker.docker_login:
    registry_url: "{{ ecr.registry }}"
    username: "{{ ecr.username }}"
    password: "{{ ecr.password }}"
"""

RETURN = r"""
registry:
  description: Address of the registry, as it stands before the name of an image.
  returned: success
  type: str
  sample: 123456789012.dkr.ecr.eu-central-1.amazonaws.com
username:
  description: User to log in as.
  returned: success
  type: str
  sample: AWS
password:
  description: The token to log in with.
  returned: success
  type: str
expires_at:
  description: When the token ends, in ISO 8601.
  returned: success
  type: str
  sample: "2026-11-22T07:31:00+00:00"
"""

import base64

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule


def main() -> None:
    module = AnsibleAWSModule(argument_spec={}, supports_check_mode=True)
    try:
        (found,) = module.client("ecr").get_authorization_token()["authorizationData"]
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg="Failed to ask ECR for a login (it needs ecr:GetAuthorizationToken)")
    username, _separator, password = base64.b64decode(found["authorizationToken"]).decode().partition(":")
    module.exit_json(
        changed=False,
        registry=found["proxyEndpoint"].partition("://")[2],
        username=username,
        password=password,
        expires_at=found["expiresAt"].isoformat(),
    )


if __name__ == "__main__":
    main()
