#!/usr/bin/python
# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: rds_proxy
version_added: 0.2.0
short_description: Keep an RDS Proxy in front of a PostgreSQL database
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Creates, changes and removes an RDS Proxy for PostgreSQL, that takes its one login from a secret and speaks TLS only;
    the settings of its connection pool, and the DB instance behind it. Neither C(amazon.aws) nor C(community.aws) has a module for it.
  - An option that is not given leaves alone what is there.
  - Needs C(rds:CreateDBProxy), C(rds:ModifyDBProxy), C(rds:DeleteDBProxy), C(rds:RegisterDBProxyTargets),
    C(rds:DeregisterDBProxyTargets), C(rds:ModifyDBProxyTargetGroup), C(rds:AddTagsToResource), C(iam:PassRole) for the
    role, and what M(mlops.mlflow_aws.rds_proxy_info) needs.
options:
  name:
    description:
      - Its name.
    type: str
    required: true
  state:
    description:
      - Whether it is there.
    type: str
    choices: [present, absent]
    default: present
  role_arn:
    description:
      - The role as which it reads the secret. Required where there is no proxy yet.
    type: str
  secret_arn:
    description:
      - A secret with the fields C(username) and C(password). Required where there is no proxy yet.
    type: str
  subnet_ids:
    description:
      - Where its addresses are. Required where there is no proxy yet, which cannot change them afterwards.
    type: list
    elements: str
  security_group_ids:
    description:
      - Its security groups. Required where there is no proxy yet.
    type: list
    elements: str
  idle_client_timeout:
    description:
      - Seconds after which it closes a connection of a client that asks nothing.
    type: int
  target:
    description:
      - Identifier of the DB instance behind it, which must be available. Another one that is there is replaced.
    type: str
  pool:
    description:
      - Its connections to the database.
    type: dict
    suboptions:
      max_connections_percent:
        description: How many there may be, in percent of the C(max_connections) of the database.
        type: int
      max_idle_connections_percent:
        description: How many it may keep that nobody uses, likewise.
        type: int
      connection_borrow_timeout:
        description: Seconds that a client waits for one of them at the longest.
        type: int
  tags:
    description:
      - Tags that it must have. Others stay.
    type: dict
  wait:
    description:
      - Wait until it is available, with O(target) until that can be reached through it, or until it is gone.
    type: bool
    default: true
  wait_timeout:
    description:
      - Seconds to wait for that.
    type: int
    default: 1800
attributes:
  check_mode:
    description: Can run in check mode, and says what it would change.
    support: full
  diff_mode:
    description: Shows the options that differ.
    support: full
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
seealso:
  - module: mlops.mlflow_aws.rds_proxy_info
"""

EXAMPLES = r"""
- name: Ask for a proxy, without waiting for it
  mlops.mlflow_aws.rds_proxy:
    name: mlflow-demo
    role_arn: arn:aws:iam::123456789012:role/mlflow-demo-proxy
    secret_arn: arn:aws:secretsmanager:eu-central-1:123456789012:secret:mlflow-demo/proxy-a1b2c3
    subnet_ids: [subnet-01234567, subnet-89abcdef]
    security_group_ids: [sg-01234567]
    wait: false

- name: Put it in front of the database
  mlops.mlflow_aws.rds_proxy:
    name: mlflow-demo
    target: mlflow-demo
    pool:
      max_connections_percent: 80

- name: Remove it
  mlops.mlflow_aws.rds_proxy:
    name: mlflow-demo
    state: absent
"""

RETURN = r"""
proxy:
  description: What RDS says of it; empty when it is not there, and in check mode where it would be created.
  returned: always
  type: dict
  contains:
    arn:
      description: Its ARN.
      type: str
    name:
      description: Its name.
      type: str
    status:
      description: As RDS calls it, like V(available).
      type: str
    endpoint:
      description: The name by which clients connect.
      type: str
    role_arn:
      description: The role as which it reads the secret.
      type: str
    secret_arn:
      description: The secret.
      type: str
    security_group_ids:
      description: Its security groups.
      type: list
      elements: str
    subnet_ids:
      description: Where its addresses are.
      type: list
      elements: str
    idle_client_timeout:
      description: Seconds after which it closes a connection of a client that asks nothing.
      type: int
    pool:
      description: As the option O(pool).
      type: dict
    target:
      description: The DB instance behind it, empty while there is none.
      type: str
    target_state:
      description: V(REGISTERING), V(AVAILABLE) or V(UNAVAILABLE); empty while there is no target.
      type: str
    target_reason:
      description: RDS's word for why it is not available.
      type: str
    tags:
      description: Its tags.
      type: dict
"""

import time
from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule
from ansible_collections.amazon.aws.plugins.module_utils.retries import AWSRetry
from ansible_collections.amazon.aws.plugins.module_utils.tagging import ansible_dict_to_boto3_tag_list
from ansible_collections.mlops.mlflow_aws.plugins.module_utils import _rds_proxies as proxies

PAUSE = 5
NEEDED = ("role_arn", "secret_arn", "subnet_ids", "security_group_ids")
# What no wait ends well from.
BROKEN = {"incompatible-network", "insufficient-resource-limits", "suspended"}


def auth(secret_arn: str) -> list[dict[str, str]]:
    return [{"AuthScheme": "SECRETS", "SecretArn": secret_arn, "IAMAuth": "DISABLED"}]


def wanted(params: dict[str, Any]) -> dict[str, Any]:
    """Return the options that were given, as RDS's answer spells them."""
    given = {
        name: params[name] for name in (*NEEDED, "idle_client_timeout", "target", "tags") if params[name] is not None
    }
    for name in ("subnet_ids", "security_group_ids"):
        if name in given:
            given[name] = sorted(given[name])
    if params["pool"]:
        given["pool"] = {name: value for name, value in params["pool"].items() if value is not None}
    if "tags" in given:
        given["tags"] = {str(key): str(value) for key, value in given["tags"].items()}
    return given


def differences(found: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that @found does not have; of tags and the pool, those of their entries."""
    different = {}
    for name, value in options.items():
        there = found.get(name)
        if isinstance(value, dict):
            value = {key: entry for key, entry in value.items() if (there or {}).get(key) != entry}
            if value:
                different[name] = value
        elif value != there:
            different[name] = value
    return different


def create(client: Any, name: str, options: dict[str, Any]) -> None:
    more = {"IdleClientTimeout": options["idle_client_timeout"]} if "idle_client_timeout" in options else {}
    client.create_db_proxy(
        DBProxyName=name,
        EngineFamily="POSTGRESQL",
        Auth=auth(options["secret_arn"]),
        RoleArn=options["role_arn"],
        VpcSubnetIds=options["subnet_ids"],
        VpcSecurityGroupIds=options["security_group_ids"],
        RequireTLS=True,
        Tags=ansible_dict_to_boto3_tag_list(options.get("tags", {})),
        aws_retry=True,
        **more,
    )


def change(client: Any, name: str, found: dict[str, Any], different: dict[str, Any]) -> None:
    """Bring a proxy that is there to the options that differ."""
    settings: dict[str, Any] = {}
    if "role_arn" in different:
        settings["RoleArn"] = different["role_arn"]
    if "secret_arn" in different:
        settings["Auth"] = auth(different["secret_arn"])
    if "security_group_ids" in different:
        settings["SecurityGroups"] = different["security_group_ids"]
    if "idle_client_timeout" in different:
        settings["IdleClientTimeout"] = different["idle_client_timeout"]
    if settings:
        client.modify_db_proxy(DBProxyName=name, aws_retry=True, **settings)
    if "tags" in different:
        tags = ansible_dict_to_boto3_tag_list(different["tags"])
        client.add_tags_to_resource(ResourceName=found["arn"], Tags=tags, aws_retry=True)
    if "pool" in different:
        # Whole, as RDS sets to its default what is missing.
        config = {key: (found["pool"] | different["pool"])[option] for option, key in proxies.POOL.items()}
        client.modify_db_proxy_target_group(
            DBProxyName=name, TargetGroupName=proxies.TARGET_GROUP, ConnectionPoolConfig=config, aws_retry=True
        )
    if "target" in different:
        if found["target"]:
            client.deregister_db_proxy_targets(
                DBProxyName=name, DBInstanceIdentifiers=[found["target"]], aws_retry=True
            )
        client.register_db_proxy_targets(DBProxyName=name, DBInstanceIdentifiers=[different["target"]], aws_retry=True)


def settled(proxy: dict[str, Any], gone: bool, target: bool) -> bool:
    if gone or not proxy:
        return not proxy
    return proxy["status"] == "available" and (not target or proxy["target_state"] == "AVAILABLE")


def wait(module: AnsibleAWSModule, client: Any, gone: bool = False, target: bool = False) -> dict[str, Any]:
    """Return the proxy when it is available, can reach its target, or is gone. Ends the module when it does not come to that."""
    name, deadline = module.params["name"], time.monotonic() + module.params["wait_timeout"]
    while not settled(proxy := proxies.describe(client, name), gone, target):
        state = f"it is {proxy['status']}"
        if target and proxy["target_state"]:
            state += f", and its target {proxy['target']} is {proxy['target_state']} {proxy['target_reason']}".rstrip()
        if proxy["status"] in BROKEN:
            module.fail_json(msg=f"Failed to put the RDS Proxy {name} to work: {state}.", proxy=proxy)
        if time.monotonic() > deadline:
            waited = module.params["wait_timeout"]
            module.fail_json(msg=f"Failed to wait for the RDS Proxy {name}: after {waited} s {state}.", proxy=proxy)
        time.sleep(PAUSE)
    return proxy


def remove(module: AnsibleAWSModule, client: Any) -> bool:
    found = proxies.find(client, module.params["name"])
    changed = bool(found) and found["Status"] != "deleting"
    if changed and not module.check_mode:
        client.delete_db_proxy(DBProxyName=module.params["name"], aws_retry=True)
    if found and module.params["wait"] and not module.check_mode:
        wait(module, client, gone=True)
    return changed


def keep(module: AnsibleAWSModule, client: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return what was there, what of it differed, and what is there now."""
    name, options = module.params["name"], wanted(module.params)
    before = found = proxies.describe(client, name)
    if found.get("status") == "deleting" and not module.check_mode:
        before = found = wait(module, client, gone=True)
    if not found:
        missing = [option for option in NEEDED if not options.get(option)]
        if missing:
            module.fail_json(msg=f"There is no RDS Proxy {name} yet, and to create one needs {', '.join(missing)}.")
        if not module.check_mode:
            create(client, name, options)
            found = proxies.describe(client, name)
    different = differences(before, options)
    if before and "subnet_ids" in different:
        module.fail_json(
            msg=f"The RDS Proxy {name} is in the subnets {', '.join(before['subnet_ids'])}, and RDS cannot move one. "
            "Remove it first.",
            proxy=before,
        )
    if module.check_mode:
        return before, different, before
    rest = differences(found, options)
    if rest:
        if found["status"] != "available":
            found = wait(module, client)
        change(client, name, found, rest)
    if module.params["wait"]:
        return before, different, wait(module, client, target="target" in options)
    return before, different, proxies.describe(client, name) if rest else found


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "role_arn": {"type": "str"},
            "secret_arn": {"type": "str", "no_log": False},
            "subnet_ids": {"type": "list", "elements": "str"},
            "security_group_ids": {"type": "list", "elements": "str"},
            "idle_client_timeout": {"type": "int"},
            "target": {"type": "str"},
            "pool": {
                "type": "dict",
                "options": {
                    "max_connections_percent": {"type": "int"},
                    "max_idle_connections_percent": {"type": "int"},
                    "connection_borrow_timeout": {"type": "int"},
                },
            },
            "tags": {"type": "dict"},
            "wait": {"type": "bool", "default": True},
            "wait_timeout": {"type": "int", "default": 1800},
        },
        supports_check_mode=True,
    )
    # A database that is being changed accepts connections, but no proxy for a moment.
    retry = AWSRetry.jittered_backoff(retries=10, catch_extra_error_codes=["InvalidDBInstanceState"])
    client = module.client("rds", retry_decorator=retry)
    name = module.params["name"]
    try:
        if module.params["state"] == "absent":
            module.exit_json(changed=remove(module, client), proxy={})
        before, different, proxy = keep(module, client)
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"Failed to bring the RDS Proxy {name} to the state {module.params['state']}")
    diff = {"before": {option: before.get(option) for option in different}, "after": different}
    module.exit_json(changed=bool(different) or not before, proxy=proxy, diff=diff)


if __name__ == "__main__":
    main()
