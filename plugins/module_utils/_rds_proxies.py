# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Private to mlops.mlflow_aws: what an RDS Proxy is, and how it is asked for."""

from __future__ import annotations

from typing import Any

try:
    from botocore.exceptions import ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.tagging import boto3_tag_list_to_ansible_dict

TARGET_GROUP = "default"  # the only one that a proxy has
POOL = {
    "max_connections_percent": "MaxConnectionsPercent",
    "max_idle_connections_percent": "MaxIdleConnectionsPercent",
    "connection_borrow_timeout": "ConnectionBorrowTimeout",
}


def find(client: Any, name: str) -> dict[str, Any]:
    """Return what RDS says of a proxy, or nothing where there is none."""
    try:
        return dict(client.describe_db_proxies(DBProxyName=name, aws_retry=True)["DBProxies"][0])
    except ClientError as error:
        if error.response.get("Error", {}).get("Code") == "DBProxyNotFoundFault":
            return {}
        raise


def target(client: Any, name: str) -> dict[str, Any]:
    """Return the database behind a proxy, or nothing while none is registered."""
    targets = client.describe_db_proxy_targets(DBProxyName=name, aws_retry=True)["Targets"]
    return dict(targets[0]) if targets else {}


def pool(client: Any, name: str) -> dict[str, int]:
    """Return the settings of a proxy's connections to its database, as the module's options spell them."""
    groups = client.describe_db_proxy_target_groups(DBProxyName=name, aws_retry=True)["TargetGroups"]
    settings = groups[0]["ConnectionPoolConfig"]
    return {option: int(settings[key]) for option, key in POOL.items()}


def secrets(proxy: dict[str, Any]) -> list[str]:
    """Return the secrets that a proxy takes its logins from."""
    return [str(login["SecretArn"]) for login in proxy["Auth"]]


def describe(client: Any, name: str) -> dict[str, Any]:
    """Return what the modules publish of a proxy; nothing where there is none."""
    proxy = find(client, name)
    if not proxy:
        return {}
    behind = target(client, name)
    health = behind.get("TargetHealth", {})
    tags = client.list_tags_for_resource(ResourceName=proxy["DBProxyArn"], aws_retry=True)["TagList"]
    return {
        "arn": proxy["DBProxyArn"],
        "name": proxy["DBProxyName"],
        "status": proxy["Status"],
        "endpoint": proxy.get("Endpoint", ""),
        "role_arn": proxy["RoleArn"],
        "secret_arn": next(iter(secrets(proxy)), ""),
        "security_group_ids": sorted(proxy["VpcSecurityGroupIds"]),
        "subnet_ids": sorted(proxy["VpcSubnetIds"]),
        "idle_client_timeout": int(proxy["IdleClientTimeout"]),
        "pool": pool(client, name),
        "target": behind.get("RdsResourceId", ""),
        "target_state": health.get("State", ""),
        "target_reason": " ".join(str(health[key]) for key in ("Reason", "Description") if health.get(key)),
        "tags": boto3_tag_list_to_ansible_dict(tags),
    }
