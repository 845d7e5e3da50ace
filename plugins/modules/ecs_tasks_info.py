#!/usr/bin/python
# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: ecs_tasks_info
version_added: 0.2.0
short_description: Ask how tasks of ECS are doing, why they stopped, and what they said last
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Describes tasks, given by their ARNs, as those of a family that run, or as those of a service that have stopped.
  - For each that has stopped, the last lines are read that its containers wrote to CloudWatch Logs by the log driver
    C(awslogs).
options:
  cluster:
    description:
      - The cluster that they run in.
    type: str
    required: true
  tasks:
    description:
      - ARNs of the tasks.
    type: list
    elements: str
  family:
    description:
      - Family of a task definition. Its tasks are described that run or are about to.
    type: str
  service:
    description:
      - A service. Its stopped tasks are described, which ECS knows for an hour.
    type: str
  log_lines:
    description:
      - How many of the last lines to read, for each container; 0 reads none.
    type: int
    default: 20
attributes:
  check_mode:
    description: Reads only, and does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing, so there is no difference to show.
    support: none
notes:
  - Needs C(ecs:DescribeTasks), C(ecs:DescribeTaskDefinition), C(logs:GetLogEvents), and with O(family) and
    O(service) C(ecs:ListTasks).
extends_documentation_fragment:
  - amazon.aws.common.modules
  - amazon.aws.region.modules
  - amazon.aws.boto3
"""

EXAMPLES = r"""
- name: See why tasks stopped
  mlops.mlflow_aws.ecs_tasks_info:
    cluster: mlflow-demo
    service: mlflow-demo
    log_lines: 5
  register: stopped
"""

RETURN = r"""
tasks:
  description: The tasks that ECS still knows, the one that stopped last first.
  returned: always
  type: list
  elements: dict
  contains:
    arn:
      description: Its ARN.
      type: str
      returned: always
      sample: arn:aws:ecs:eu-central-1:123456789012:task/mlflow-demo/0123456789abcdef0123456789abcdef
    task_definition:
      description: ARN of the revision that it runs.
      type: str
      returned: always
      sample: arn:aws:ecs:eu-central-1:123456789012:task-definition/mlflow-demo:1
    status:
      description: Its last status.
      type: str
      returned: always
      sample: STOPPED
    reason:
      description: Why ECS stopped it, and what it says of its containers. Empty while it runs.
      type: str
      returned: always
      sample: Essential container in task exited
    exit_code:
      description: That of the container that failed, else 0. None while it runs, or where no container came to start.
      type: int
      returned: always
      sample: 0
    log:
      description: The last lines of its containers.
      type: list
      elements: str
      returned: always
      sample: ["listening on 8443"]
"""

from typing import Any

try:
    from botocore.exceptions import BotoCoreError, ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

from ansible_collections.amazon.aws.plugins.module_utils.modules import AnsibleAWSModule

DESCRIBED_AT_ONCE = 100


def exit_code(task: dict[str, Any]) -> int | None:
    codes = [container["exitCode"] for container in task["containers"] if container.get("exitCode") is not None]
    if task["lastStatus"] != "STOPPED" or not codes:
        return None
    return int(next((code for code in codes if code), 0))


def reason(task: dict[str, Any]) -> str:
    containers = [container.get("reason") for container in task["containers"]]
    return "; ".join(dict.fromkeys(text for text in [task.get("stoppedReason"), *containers] if text))


class Logs:
    """Reads what tasks wrote; each revision is described once."""

    def __init__(self, ecs: Any, logs: Any, lines: int) -> None:
        self._ecs, self._logs, self._lines = ecs, logs, lines
        self._streams: dict[str, list[tuple[str, str]]] = {}

    def _of(self, definition: str) -> list[tuple[str, str]]:
        """Log groups and beginnings of streams."""
        if definition not in self._streams:
            found = self._ecs.describe_task_definition(taskDefinition=definition)["taskDefinition"]
            self._streams[definition] = [
                (options["awslogs-group"], f"{options['awslogs-stream-prefix']}/{container['name']}")
                for container in found["containerDefinitions"]
                for options in [container.get("logConfiguration", {}).get("options", {})]
                if "awslogs-stream-prefix" in options
            ]
        return self._streams[definition]

    def last_lines(self, task: dict[str, Any]) -> list[str]:
        if not self._lines or "STOPPED" not in (task["lastStatus"], task.get("desiredStatus")):
            return []
        lines = []
        for group, prefix in self._of(task["taskDefinitionArn"]):
            stream = f"{prefix}/{task['taskArn'].rsplit('/', 1)[1]}"
            try:
                answer = self._logs.get_log_events(
                    logGroupName=group, logStreamName=stream, limit=self._lines, startFromHead=False
                )
            except ClientError as error:
                # A container that never started has written nothing.
                if error.response["Error"]["Code"] != "ResourceNotFoundException":
                    raise
            else:
                lines += [event["message"].rstrip("\n") for event in answer["events"]]
        return lines


def listed(ecs: Any, **wanted: str) -> list[str]:
    pages = ecs.get_paginator("list_tasks").paginate(**wanted)
    return [arn for page in pages for arn in page["taskArns"]]


def describe(ecs: Any, logs: Any, cluster: str, arns: list[str], lines: int) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = []
    for start in range(0, len(arns), DESCRIBED_AT_ONCE):
        chunk = arns[start : start + DESCRIBED_AT_ONCE]
        tasks += ecs.describe_tasks(cluster=cluster, tasks=chunk)["tasks"]
    tasks.sort(key=lambda task: str(task.get("stoppedAt", "")), reverse=True)
    reader = Logs(ecs, logs, lines)
    return [
        {
            "arn": task["taskArn"],
            "task_definition": task["taskDefinitionArn"],
            "status": task["lastStatus"],
            "reason": reason(task),
            "exit_code": exit_code(task),
            "log": reader.last_lines(task),
        }
        for task in tasks
    ]


def main() -> None:
    module = AnsibleAWSModule(
        argument_spec={
            "cluster": {"type": "str", "required": True},
            "tasks": {"type": "list", "elements": "str"},
            "family": {"type": "str"},
            "service": {"type": "str"},
            "log_lines": {"type": "int", "default": 20},
        },
        mutually_exclusive=[("tasks", "family", "service")],
        required_one_of=[("tasks", "family", "service")],
        supports_check_mode=True,
    )
    params = module.params
    cluster = params["cluster"]
    ecs, logs = module.client("ecs"), module.client("logs")
    try:
        if params["family"]:
            arns = listed(ecs, cluster=cluster, family=params["family"], desiredStatus="RUNNING")
        elif params["service"]:
            arns = listed(ecs, cluster=cluster, serviceName=params["service"], desiredStatus="STOPPED")
        else:
            arns = params["tasks"]
        tasks = describe(ecs, logs, cluster, arns, params["log_lines"])
    except (BotoCoreError, ClientError) as error:
        module.fail_json_aws(error, msg=f"Failed to describe tasks of the cluster {cluster}")
    module.exit_json(changed=False, tasks=tasks)


if __name__ == "__main__":
    main()
