"""Fargate takes certain pairs of CPU and memory, one network mode and an execution role; moto takes anything.

And RunTask of a task whose memory is set at the task level, as Fargate's is, fails in moto.

Sources: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/fargate-tasks-services.html
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_execution_IAM_role.html
"""

from __future__ import annotations

import re
from typing import Any

from moto.ecs.exceptions import EcsClientException
from moto.ecs.models import EC2ContainerServiceBackend, TaskDefinition

from local_aws.patching import Patcher

GIB = 1024
SIZES = {
    256: (512, 1 * GIB, 2 * GIB),
    512: tuple(range(1 * GIB, 4 * GIB + 1, GIB)),
    1024: tuple(range(2 * GIB, 8 * GIB + 1, GIB)),
    2048: tuple(range(4 * GIB, 16 * GIB + 1, GIB)),
    4096: tuple(range(8 * GIB, 30 * GIB + 1, GIB)),
    8192: tuple(range(16 * GIB, 60 * GIB + 1, 4 * GIB)),
    16384: tuple(range(32 * GIB, 120 * GIB + 1, 8 * GIB)),
}
"""MiB of memory that go with CPU units."""
# ECR's own host names, and the one on loopback that stands for them here
ECR = re.compile(r"(\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com|127\.0\.0\.1:\d+)/")


def units(value: str, unit: str) -> int:
    """CPU units or MiB of what a task definition says: 1024, "1 vCPU", "2GB"."""
    found = re.fullmatch(rf"\s*([\d.]+)\s*({unit})?\s*", value, re.IGNORECASE)
    if found is None:
        raise EcsClientException(f"Invalid value: {value}")
    return int(float(found[1]) * (1024 if found[2] else 1))


def problem_of(definition: dict[str, Any]) -> str | None:
    """Why Fargate refuses a task definition, in ECS's words; None when it does not."""
    cpu, memory = definition.get("cpu"), definition.get("memory")
    if definition.get("network_mode") != "awsvpc":
        return "Fargate only supports network mode 'awsvpc'."
    for name, value in (("cpu", cpu), ("memory", memory)):
        if not value:
            return f"Fargate requires that '{name}' be defined at the task level."
    size = units(str(cpu), "vcpu"), units(str(memory), "gb")
    if size[1] not in SIZES.get(size[0], ()):
        return (
            f"No Fargate configuration exists for given values: {size[0]} CPU, {size[1]} memory. "
            "See the Amazon ECS documentation for the valid values."
        )
    if definition.get("execution_role_arn"):
        return None
    for container in definition["container_definitions"]:
        if container.get("secrets"):
            return "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'."
        if ECR.match(str(container.get("image"))):
            return "Fargate requires task definition to have execution role ARN to support ECR images."
        if (container.get("logConfiguration") or {}).get("logDriver") == "awslogs":
            return "Fargate requires task definition to have execution role ARN to support log driver awslogs."
    return None


def apply(patch: Patcher) -> None:
    register = EC2ContainerServiceBackend.register_task_definition
    requirements = EC2ContainerServiceBackend._calculate_task_resource_requirements

    def register_task_definition(
        self: Any, family: str, container_definitions: list[dict[str, Any]], **kwargs: Any
    ) -> TaskDefinition:
        if "FARGATE" in (kwargs.get("requires_compatibilities") or []):
            problem = problem_of({"container_definitions": container_definitions, **kwargs})
            if problem:
                raise EcsClientException(problem)
            kwargs["cpu"] = str(units(str(kwargs["cpu"]), "vcpu"))
            kwargs["memory"] = str(units(str(kwargs["memory"]), "gb"))
        return register(self, family, container_definitions, **kwargs)

    def calculate(task_definition: TaskDefinition) -> dict[str, Any]:
        if "FARGATE" in task_definition.compatibilities:
            return {
                "CPU": 0,
                "MEMORY": 0,
                "PORTS": [],
                "PORTS_UDP": [],
            }  # of a container instance, which there is none of
        found: dict[str, Any] = requirements(task_definition)
        return found

    patch.setattr(EC2ContainerServiceBackend, "register_task_definition", register_task_definition)
    patch.setattr(EC2ContainerServiceBackend, "_calculate_task_resource_requirements", staticmethod(calculate))
