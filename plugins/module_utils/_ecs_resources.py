# Copyright: (c) 2026, The mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What an ECS service consists of, each kind read, compared, made, changed and removed by the calls of its own API.

A definition is what the API's create call takes, in the API's own spelling. It is compared with what AWS describes:
what it says must be so, and what it leaves out is left alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

try:
    from botocore.exceptions import ClientError
except ImportError:
    pass  # AnsibleAWSModule says so

Data = dict[str, Any]
Connect = Callable[[str], Any]

ORDERED = frozenset({"command", "entryPoint"})
"""Lists whose order means something; AWS returns any other as it likes."""
POLL_SECONDS = 5


class EcsResourceError(Exception):
    """What cannot be done, and why."""


def same(wanted: Any, actual: Any, *, ordered: bool = False) -> bool:
    """Whether @actual has all that @wanted says. AWS drops what is empty, and adds defaults of its own to dicts."""
    if isinstance(wanted, dict):
        held = actual if isinstance(actual, dict) else {}
        return all(same(value, held.get(key), ordered=key in ORDERED) for key, value in wanted.items())
    if isinstance(wanted, list):
        rest = list(actual or [])
        if len(rest) != len(wanted):
            return False
        if ordered:
            return all(same(one, other) for one, other in zip(wanted, rest, strict=True))
        for one in wanted:
            found = next((index for index, other in enumerate(rest) if same(one, other)), None)
            if found is None:
                return False
            del rest[found]
        return True
    if wanted in (None, "", False):
        return not actual
    return bool(wanted == actual)


def differing(definition: Data, actual: Data) -> list[str]:
    """The keys of @definition that AWS holds otherwise, or not at all."""
    return [key for key, value in definition.items() if not same({key: value}, actual)]


def plain(value: Any) -> Any:
    """What boto3 returned, as Ansible can return it: without datetimes."""
    return json.loads(json.dumps(value, default=str))


def _pairs(tags: dict[str, str], key: str, value: str) -> list[dict[str, str]]:
    return [{key: name, value: text} for name, text in tags.items()]


def _tags(pairs: list[dict[str, str]], key: str = "key", value: str = "value") -> dict[str, str]:
    return {pair[key]: pair[value] for pair in pairs}


def _code(error: ClientError) -> str:
    return str(error.response["Error"]["Code"])


def _paged(client: Any, operation: str, key: str, **arguments: Any) -> list[Any]:
    pages = client.get_paginator(operation).paginate(**arguments)
    return [item for page in pages for item in page[key]]


class Resource:
    """One thing in AWS, which may not exist."""

    service = "ecs"

    def __init__(self, connect: Connect, name: str, cluster: str, timeout: int) -> None:
        self.name = name
        self.cluster = cluster
        self.deadline = time.monotonic() + timeout
        self.client = connect(self.service)

    def read(self) -> Data | None:
        """What AWS says of it, with its tags as a dict; None where there is none, or none that is not on its way out."""
        raise NotImplementedError

    def create(self, definition: Data, tags: dict[str, str]) -> None:
        raise NotImplementedError

    def update(self, definition: Data, keys: list[str]) -> None:
        """Bring @keys, which differ, to what @definition says."""
        raise NotImplementedError

    def tag(self, actual: Data, tags: dict[str, str]) -> None:
        raise NotImplementedError

    def remains(self) -> bool:
        """Whether there is something for delete() to do or to wait for."""
        return self.read() is not None

    def delete(self) -> None:
        raise NotImplementedError

    def _pause(self, what: str) -> None:
        if time.monotonic() + POLL_SECONDS > self.deadline:
            raise EcsResourceError(f"{what} when the time for it was over. Give wait_timeout more, or run it again.")
        time.sleep(POLL_SECONDS)

    def _tag_ecs(self, arn: str, tags: dict[str, str]) -> None:
        self.client.tag_resource(resourceArn=arn, tags=_pairs(tags, "key", "value"))


class Cluster(Resource):
    PROVIDERS = ("capacityProviders", "defaultCapacityProviderStrategy")

    def read(self) -> Data | None:
        found = self.client.describe_clusters(clusters=[self.name], include=["SETTINGS", "TAGS"])["clusters"]
        # What was deleted is described as INACTIVE for a while.
        alive = [cluster for cluster in found if cluster["status"] != "INACTIVE"]
        return {**alive[0], "tags": _tags(alive[0].get("tags", []))} if alive else None

    def create(self, definition: Data, tags: dict[str, str]) -> None:
        self.client.create_cluster(clusterName=self.name, tags=_pairs(tags, "key", "value"), **definition)

    def update(self, definition: Data, keys: list[str]) -> None:
        if "settings" in keys:
            self.client.update_cluster(cluster=self.name, settings=definition["settings"])
        if set(keys) & set(self.PROVIDERS):
            self.client.put_cluster_capacity_providers(
                cluster=self.name, **{key: definition.get(key, []) for key in self.PROVIDERS}
            )

    def tag(self, actual: Data, tags: dict[str, str]) -> None:
        self._tag_ecs(actual["clusterArn"], tags)

    def delete(self) -> None:
        while True:
            try:
                self.client.delete_cluster(cluster=self.name)
            except ClientError as error:
                # Tasks of a service that is gone, and the one-off ones, stop in their own time.
                if _code(error) not in ("ClusterContainsTasksException", "UpdateInProgressException"):
                    raise
                self._pause(f"The cluster {self.name} still had tasks")
            else:
                return


class TaskDefinition(Resource):
    """The newest active revision of a family. A revision never changes: what differs becomes a new one."""

    def _revisions(self, status: str) -> list[str]:
        """ARNs, oldest first."""
        arns = _paged(self.client, "list_task_definitions", "taskDefinitionArns", familyPrefix=self.name, status=status)
        return sorted(arns, key=lambda arn: int(arn.rsplit(":", 1)[1]))

    def read(self) -> Data | None:
        active = self._revisions("ACTIVE")
        if not active:
            return None
        found = self.client.describe_task_definition(taskDefinition=active[-1], include=["TAGS"])
        return {**found["taskDefinition"], "tags": _tags(found.get("tags", []))}

    def create(self, definition: Data, tags: dict[str, str]) -> None:
        self.client.register_task_definition(family=self.name, tags=_pairs(tags, "key", "value"), **definition)

    def update(self, definition: Data, keys: list[str]) -> None:
        actual = self.read() or {}
        self.create(definition, actual.get("tags", {}))

    def tag(self, actual: Data, tags: dict[str, str]) -> None:
        self._tag_ecs(actual["taskDefinitionArn"], tags)

    def remains(self) -> bool:
        return bool(self._revisions("ACTIVE") or self._revisions("INACTIVE"))

    def delete(self) -> None:
        for arn in self._revisions("ACTIVE"):
            self.client.deregister_task_definition(taskDefinition=arn)
        inactive = self._revisions("INACTIVE")
        for start in range(0, len(inactive), 10):  # as many as one call takes
            answer = self.client.delete_task_definitions(taskDefinitions=inactive[start : start + 10])
            if answer["failures"]:
                reasons = "; ".join(f"{item['arn']}: {item['reason']}" for item in answer["failures"])
                raise EcsResourceError(f"ECS did not delete {reasons}")


class Service(Resource):
    def _described(self) -> Data | None:
        try:
            answer = self.client.describe_services(cluster=self.cluster, services=[self.name], include=["TAGS"])
        except ClientError as error:
            if _code(error) == "ClusterNotFoundException":
                return None
            raise
        alive = [service for service in answer["services"] if service["status"] != "INACTIVE"]
        return {**alive[0], "tags": _tags(alive[0].get("tags", []))} if alive else None

    def read(self) -> Data | None:
        found = self._described()
        return found if found and found["status"] == "ACTIVE" else None

    def create(self, definition: Data, tags: dict[str, str]) -> None:
        self._wait_until_gone()  # one of the same name that is still draining
        self.client.create_service(
            cluster=self.cluster, serviceName=self.name, tags=_pairs(tags, "key", "value"), **definition
        )

    def update(self, definition: Data, keys: list[str]) -> None:
        updatable = self.client.meta.service_model.operation_model("UpdateService").input_shape.members
        fixed = sorted(set(keys) - set(updatable))
        if fixed:
            raise EcsResourceError(f"ECS cannot change {', '.join(fixed)} of a service. Remove it and run this again.")
        # Only what differs is sent: the number of tasks belongs to the autoscaling.
        changes = {key: definition[key] for key in keys}
        if "capacityProviderStrategy" in changes:
            changes["forceNewDeployment"] = True  # ECS refuses the change without it
        self.client.update_service(cluster=self.cluster, service=self.name, **changes)

    def tag(self, actual: Data, tags: dict[str, str]) -> None:
        self._tag_ecs(actual["serviceArn"], tags)

    def remains(self) -> bool:
        return self._described() is not None

    def delete(self) -> None:
        if self.read():
            self.client.delete_service(cluster=self.cluster, service=self.name, force=True)
        self._wait_until_gone()

    def _wait_until_gone(self) -> None:
        while self._described():
            self._pause(f"The service {self.name} was still draining")


class ScalableTarget(Resource):
    """What Application Auto Scaling knows of the service; its policies and their alarms go with it.

    Its definition may hold policies: how each, by its name, tracks a target.
    """

    service = "application-autoscaling"
    DIMENSION = "ecs:service:DesiredCount"

    def _where(self) -> Data:
        return {
            "ServiceNamespace": "ecs",
            "ResourceId": f"service/{self.cluster}/{self.name}",
            "ScalableDimension": self.DIMENSION,
        }

    def read(self) -> Data | None:
        where = self._where()
        where["ResourceIds"] = [where.pop("ResourceId")]
        found: list[Data] = self.client.describe_scalable_targets(**where)["ScalableTargets"]
        if not found:
            return None
        policies = _paged(self.client, "describe_scaling_policies", "ScalingPolicies", **self._where())
        tracked = {one["PolicyName"]: one.get("TargetTrackingScalingPolicyConfiguration", {}) for one in policies}
        return {**found[0], "policies": tracked}

    def create(self, definition: Data, tags: dict[str, str]) -> None:
        self._register(definition, Tags=tags)
        self.update(definition, [key for key in definition if key == "policies"])

    def update(self, definition: Data, keys: list[str]) -> None:
        if set(keys) - {"policies"}:
            self._register(definition)
        for name, tracking in definition["policies"].items() if "policies" in keys else ():
            self.client.put_scaling_policy(
                **self._where(),
                PolicyName=name,
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration=tracking,
            )

    def _register(self, definition: Data, **more: Any) -> None:
        limits = {key: value for key, value in definition.items() if key != "policies"}
        self.client.register_scalable_target(**self._where(), **limits, **more)

    def delete(self) -> None:
        self.client.deregister_scalable_target(**self._where())


class Repository(Resource):
    """A repository of ECR. Its definition may hold a lifecyclePolicy beside what the create call takes."""

    service = "ecr"

    def read(self) -> Data | None:
        try:
            (found,) = self.client.describe_repositories(repositoryNames=[self.name])["repositories"]
        except ClientError as error:
            if _code(error) == "RepositoryNotFoundException":
                return None
            raise
        tags = self.client.list_tags_for_resource(resourceArn=found["repositoryArn"])["tags"]
        return {
            **found,
            "tags": _tags(tags, "Key", "Value"),
            "lifecyclePolicy": self._lifecycle_policy(),
            "imageTags": sorted(self._image_tags()),
        }

    def _lifecycle_policy(self) -> Data:
        try:
            policy: Data = json.loads(self.client.get_lifecycle_policy(repositoryName=self.name)["lifecyclePolicyText"])
        except ClientError as error:
            if _code(error) == "LifecyclePolicyNotFoundException":
                return {}
            raise
        return policy

    def _image_tags(self) -> Iterator[str]:
        images = _paged(
            self.client, "list_images", "imageIds", repositoryName=self.name, filter={"tagStatus": "TAGGED"}
        )
        return (image["imageTag"] for image in images)

    def create(self, definition: Data, tags: dict[str, str]) -> None:
        made = {key: value for key, value in definition.items() if key != "lifecyclePolicy"}
        self.client.create_repository(repositoryName=self.name, tags=_pairs(tags, "Key", "Value"), **made)
        self.update(definition, [key for key in definition if key == "lifecyclePolicy"])

    def update(self, definition: Data, keys: list[str]) -> None:
        name = self.name
        change: dict[str, Callable[[Any], Any]] = {
            "imageTagMutability": lambda value: self.client.put_image_tag_mutability(
                repositoryName=name, imageTagMutability=value
            ),
            "imageScanningConfiguration": lambda value: self.client.put_image_scanning_configuration(
                repositoryName=name, imageScanningConfiguration=value
            ),
            "lifecyclePolicy": lambda value: self.client.put_lifecycle_policy(
                repositoryName=name, lifecyclePolicyText=json.dumps(value)
            ),
        }
        fixed = sorted(set(keys) - set(change))
        if fixed:
            raise EcsResourceError(
                f"ECR cannot change {', '.join(fixed)} of a repository. Remove it and run this again."
            )
        for key in keys:
            change[key](definition[key])

    def tag(self, actual: Data, tags: dict[str, str]) -> None:
        self.client.tag_resource(resourceArn=actual["repositoryArn"], tags=_pairs(tags, "Key", "Value"))

    def delete(self) -> None:
        self.client.delete_repository(repositoryName=self.name, force=True)


KINDS: dict[str, type[Resource]] = {
    "cluster": Cluster,
    "repository": Repository,
    "scalable_target": ScalableTarget,
    "service": Service,
    "task_definition": TaskDefinition,
}
IN_A_CLUSTER = ("scalable_target", "service")
