# -*- coding: utf-8 -*-
# Copyright: The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

DOCUMENTATION = r"""
name: fargate_memory
short_description: The sizes of memory that Fargate offers with a number of CPU units
version_added: 0.2.0
description:
  - Returns AWS's table of task sizes for Linux, as no API tells it.
options:
  _input:
    description: CPU units, 1024 to a vCPU.
    type: int
    required: true
seealso:
  - name: Task CPU and memory
    description: The table.
    link: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-cpu-memory-error.html
author:
  - The mlops.mlflow_aws founders (@mlops)
"""

EXAMPLES = r"""
- name: Say [512, 1024, 2048]
  ansible.builtin.debug:
    msg: "{{ 256 | mlops.mlflow_aws.fargate_memory }}"
"""

RETURN = r"""
_value:
  description: Sizes in MiB, from the smallest up; empty for a number of CPU units that Fargate does not offer.
  type: list
  elements: int
"""

from collections.abc import Callable


def fargate_memory(cpu: object) -> list[int]:
    """The table of the ECS Developer Guide, "Task CPU and memory"; a number given as text is taken for one."""
    return {
        "256": [512, 1024, 2048],
        "512": list(range(1024, 4096 + 1, 1024)),
        "1024": list(range(2048, 8192 + 1, 1024)),
        "2048": list(range(4096, 16384 + 1, 1024)),
        "4096": list(range(8192, 30720 + 1, 1024)),
        "8192": list(range(16384, 61440 + 1, 4096)),
        "16384": list(range(32768, 122880 + 1, 8192)),
    }.get(str(cpu), [])


class FilterModule:
    """The filters of this file, as Ansible finds them."""

    def filters(self) -> dict[str, Callable[..., list[int]]]:
        """Return each filter by its name."""
        return {"fargate_memory": fargate_memory}
