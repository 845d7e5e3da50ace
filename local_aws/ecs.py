"""Ties moto's ECS to the tasks and services that really run."""

from __future__ import annotations

import functools
from typing import Any

from moto.core.responses import ActionResult
from moto.core.utils import utcnow
from moto.ec2.models.elastic_network_interfaces import NetworkInterface
from moto.ecs.exceptions import ClusterNotFoundException, EcsClientException, ECSException, InvalidParameterException
from moto.ecs.models import Cluster, Service, Task
from moto.ecs.models import EC2ContainerServiceBackend as Backend
from moto.ecs.responses import EC2ContainerServiceResponse as Responses
from moto.elbv2.models import elbv2_backends

from local_aws.networks import CidrOverlapError
from local_aws.patching import Patcher
from local_aws.services import Deployment, Services
from local_aws.tasks import Run, Target, Tasks

SETTLE_SECONDS = 8.0  # a description waits so long for what is under way: waiters then poll once, not every 6 or 15 s
PLATFORM_VERSION = "1.4.0"  # what LATEST means on Fargate
DEFAULT_DEPLOYMENT = {
    "deploymentCircuitBreaker": {"enable": False, "rollback": False},
    "maximumPercent": 200,
    "minimumHealthyPercent": 100,
}
# what UpdateService answers with a new deployment. Source: its API reference, each parameter's description
DEPLOYED = (
    "task_definition",
    "network_configuration",
    "capacity_provider_strategy",
    "platform_version",
    "load_balancers",
)


def connect(tasks: Tasks, services: Services, patch: Patcher) -> None:
    """Install all hooks of ECS."""
    _tasks(tasks, patch)
    _services(tasks, services, patch)
    _clusters(services, patch)


def _active_cluster(backend: Backend, name: str) -> Cluster:
    cluster = backend._get_cluster(name)
    if cluster.status != "ACTIVE":
        raise ClusterNotFoundException
    return cluster


def _network(configuration: dict[str, Any] | None, subnet: str | None = None) -> dict[str, Any]:
    """A task's network configuration, with every key that moto reads; in one subnet when one is given."""
    if not configuration:
        raise InvalidParameterException(
            "Network Configuration must be provided when networkMode 'awsvpc' is specified."
        )
    given = configuration["awsvpcConfiguration"]
    return {
        "awsvpcConfiguration": {
            "subnets": [subnet] if subnet else list(given["subnets"]),
            "securityGroups": list(given.get("securityGroups") or []),
            "assignPublicIp": given.get("assignPublicIp") or "DISABLED",
        }
    }


def _tasks(tasks: Tasks, patch: Patcher) -> None:
    run, describe, stop, respond = Backend.run_task, Backend.describe_tasks, Backend.stop_task, Responses.run_task
    respond_describe = Responses.describe_tasks

    @functools.wraps(run)
    def run_task(
        self: Backend,
        cluster_str: str,
        task_definition_str: str,
        count: int,
        overrides: dict[str, Any] | None,
        started_by: str,
        tags: list[dict[str, str]] | None,
        launch_type: str | None,
        networking_configuration: dict[str, Any] | None = None,
        group: str | None = None,
        platform_version: str | None = None,
        capacity_provider_strategy: list[dict[str, Any]] | None = None,
    ) -> list[Task]:
        cluster = _active_cluster(self, cluster_str)
        definition = self.describe_task_definition(task_definition_str)
        if definition.status != "ACTIVE":
            raise EcsClientException("TaskDefinition is inactive")
        strategy = capacity_provider_strategy or (None if launch_type else cluster.default_capacity_provider_strategy)
        if "FARGATE" not in definition.compatibilities or not (launch_type == "FARGATE" or strategy):
            raise InvalidParameterException("Task definition does not support launch_type FARGATE.")
        network = _network(networking_configuration)
        subnets = network["awsvpcConfiguration"]["subnets"]
        started = []
        for number in range(count):
            made = run(
                self,
                cluster_str,
                definition.arn,
                1,
                overrides,
                started_by,
                list(tags or []),
                launch_type,
                _network(networking_configuration, subnets[number % len(subnets)]),
                group,
                PLATFORM_VERSION,
                capacity_provider_strategy,
            )[0]
            made.launch_type = "FARGATE"
            started.append(made)
            if not str(group).startswith("service:"):  # those of a service are launched with its targets
                _launch(tasks, self, made)
        return started

    def describe_tasks(self: Backend, cluster_str: str, wanted: list[str]) -> list[Task]:
        tasks.settle([name.rpartition("/")[2] for name in wanted], SETTLE_SECONDS)
        found: list[Task] = describe(self, cluster_str, wanted)
        for task in found:
            launched = tasks.find(task.task_arn)
            if launched is not None and launched.alive:
                tasks.refresh_health(launched)
        return found

    def describe_tasks_response(self: Responses) -> ActionResult:
        """moto never tells which tasks it does not know."""
        answer: Any = respond_describe(self).result
        known = {task.id for task in answer["tasks"]}
        missing = [name for name in self._get_param("tasks", []) if name.rpartition("/")[2] not in known]
        return ActionResult({**answer, "failures": [{"arn": name, "reason": "MISSING"} for name in missing]})

    def run_task_response(self: Responses) -> ActionResult:
        answer: Any = respond(self).result
        if self._get_param("propagateTags") == "TASK_DEFINITION":
            for task in answer["tasks"]:
                inherited = self.ecs_backend.describe_task_definition(task.task_definition_arn).tags
                own = {tag["key"] for tag in task.tags}
                task.tags = [*task.tags, *(tag for tag in inherited if tag["key"] not in own)]
        return ActionResult(answer)

    def stop_task(self: Backend, cluster_str: str, task_str: str, reason: str) -> Task:
        cluster = self._get_cluster(cluster_str)
        name = task_str.rpartition("/")[2]
        task = next((t for t in self.tasks.get(cluster.name, {}).values() if t.id == name), None)
        if task is None:
            raise InvalidParameterException("The referenced task was not found.")
        launched = tasks.find(task.task_arn)
        if launched is None:
            return stop(self, cluster_str, task_str, reason)
        tasks.stop(launched, "UserInitiated", reason or "Task stopped by user")
        return task

    def list_tasks(
        self: Backend,
        cluster_str: str | None = None,
        container_instance: str | None = None,
        family: str | None = None,
        started_by: str | None = None,
        service_name: str | None = None,
        desiredStatus: str | None = None,  # noqa: N803 - moto's own spelling
    ) -> list[Task]:
        """moto finds tasks of clusters with a similar name, and takes no notice of a service's."""
        cluster = self._get_cluster(cluster_str) if cluster_str else None
        wanted = {
            "cluster_name": cluster.name if cluster else None,
            "container_instance_arn": container_instance,
            "started_by": started_by,
            "group": f"service:{service_name.rpartition('/')[2]}" if service_name else None,
            "desired_status": desiredStatus or ("RUNNING" if cluster else None),
        }
        return [
            task
            for known in self.tasks.values()
            for task in known.values()
            if all(value is None or getattr(task, name) == value for name, value in wanted.items())
            and (family is None or task.task_definition_arn.rpartition("/")[2].partition(":")[0] == family)
        ]

    patch.setattr(Backend, "run_task", run_task)
    patch.setattr(Backend, "describe_tasks", describe_tasks)
    patch.setattr(Backend, "stop_task", stop_task)
    patch.setattr(Backend, "list_tasks", list_tasks)
    patch.setattr(Responses, "run_task", run_task_response)
    patch.setattr(Responses, "describe_tasks", describe_tasks_response)
    # which an interface lacks in a VPC without DNS host names, and moto's Task reads
    patch.setattr(NetworkInterface, "private_dns_name", "", raising=False)
    # a task's status is what its containers do, not what moto makes of the number of questions
    patch.setattr(Task, "status", None)
    patch.setattr(Task, "last_status", "PROVISIONING")
    patch.setattr(Task, "advance", lambda self: None)


def _launch(
    tasks: Tasks,
    backend: Backend,
    task: Task,
    targets: list[Target] | None = None,
    grace_seconds: float = 0.0,
    service: str = "",
) -> Run:
    try:
        return tasks.launch(
            task, backend.describe_task_definition(task.task_definition_arn), targets, grace_seconds, service
        )
    except CidrOverlapError as error:
        backend.tasks[task.cluster_name].pop(task.task_arn, None)
        raise InvalidParameterException(str(error)) from error


def _services(tasks: Tasks, services: Services, patch: Patcher) -> None:
    describe, list_all = Backend.describe_services, Backend.list_services
    respond, validate = Responses.create_service, Service._validate_network

    def start_task(
        service: Service, deployment: Deployment, subnet: str, provider: str | None, targets: list[Target]
    ) -> Run:
        backend = service._backend
        propagated = {
            "SERVICE": service.tags,
            "TASK_DEFINITION": backend.describe_task_definition(deployment.task_definition).tags,
        }.get(service.propagate_tags, [])
        task = backend.run_task(
            service.cluster_name,
            deployment.task_definition,
            1,
            None,
            deployment.id,
            propagated,
            None if provider else "FARGATE",
            _network(deployment.network_configuration, subnet),
            f"service:{service.name}",
            deployment.platform_version,
            [{"capacityProvider": provider, "weight": 1}] if provider else None,
        )[0]
        grace = float(service.health_check_grace_period_seconds or 0)
        return _launch(tasks, backend, task, targets, grace, service.arn)

    def create_service_response(self: Responses) -> ActionResult:
        backend, name = self.ecs_backend, self._get_param("serviceName")
        cluster = _active_cluster(backend, self._get_param("cluster", "default"))
        existing = backend.services.get(f"{cluster.name}:{name}")
        if existing is not None and existing.status == "DRAINING":
            raise InvalidParameterException("Unable to Start a service that is still Draining.")
        if existing is not None and existing.status == "ACTIVE":
            raise InvalidParameterException("Creation of service was not idempotent.")
        definition = backend.describe_task_definition(self._get_param("taskDefinition"))
        if definition.status != "ACTIVE":
            raise EcsClientException("TaskDefinition is inactive")
        launch_type = self._get_param("launchType")
        strategy = self._get_param("capacityProviderStrategy") or (
            None if launch_type else cluster.default_capacity_provider_strategy
        )
        _check_strategy(cluster, launch_type, self._get_param("capacityProviderStrategy"))
        if launch_type != "FARGATE" and not strategy:
            raise InvalidParameterException("No Container Instances were found in your cluster.")
        balancers = self._get_param("loadBalancers") or []
        _check_balancers(backend, definition.container_definitions, balancers)
        _network(self._get_param("networkConfiguration"))
        service: Any = respond(self).result["service"]
        service.launch_type = None if strategy else launch_type
        service.capacity_provider_strategy = strategy
        service.platform_version = self._get_param("platformVersion") or "LATEST"
        service.platform_family, service.created_at = "Linux", utcnow()
        service.deployment_configuration = {**DEFAULT_DEPLOYMENT, **(self._get_param("deploymentConfiguration") or {})}
        service.health_check_grace_period_seconds = (
            (self._get_int_param("healthCheckGracePeriodSeconds") or 0) if balancers else None
        )
        service.enable_execute_command = bool(self._get_param("enableExecuteCommand"))
        service.enable_ecs_managed_tags = bool(self._get_param("enableECSManagedTags"))
        service.availability_zone_rebalancing = self._get_param("availabilityZoneRebalancing") or "ENABLED"
        service.role_arn = (
            f"arn:aws:iam::{backend.account_id}:role/aws-service-role/ecs.amazonaws.com/AWSServiceRoleForECS"
        )
        service.running_count = service.pending_count = 0
        services.create(service)
        return ActionResult({"service": service})

    def update_service(self: Backend, service_properties: dict[str, Any]) -> Service:
        given = dict(service_properties)
        service = self._get_service(given.pop("cluster", "default"), given.pop("service").rpartition("/")[2])
        if service.status != "ACTIVE":
            raise ECSException("ServiceNotActiveException", "Service was not ACTIVE.")
        before = {name: getattr(service, name) for name in DEPLOYED}
        forced = bool(given.pop("force_new_deployment", False))
        if given.get("task_definition"):
            definition = self.describe_task_definition(given.pop("task_definition"))
            if definition.status != "ACTIVE":
                raise EcsClientException("TaskDefinition is inactive")
            service.task_definition = definition.arn
        if given.get("load_balancers") is not None:
            containers = self.describe_task_definition(service.task_definition).container_definitions
            _check_balancers(self, containers, given["load_balancers"])
        if given.get("capacity_provider_strategy"):
            _check_strategy(self._get_cluster(service.cluster_name), None, given["capacity_provider_strategy"])
        if given.get("network_configuration"):
            given["network_configuration"] = _network(given["network_configuration"])
        configuration = given.pop("deployment_configuration", None) or {}
        service.deployment_configuration = {**service.deployment_configuration, **configuration}
        desired = given.pop("desired_count", None)
        for name, value in given.items():
            if value is not None and hasattr(service, name):
                setattr(service, name, value)
        if desired is not None:
            services.scale(service, int(desired))
        if forced or before != {name: getattr(service, name) for name in DEPLOYED}:
            services.deploy(service)
        return service

    def delete_service(self: Backend, cluster_name: str, service_name: str, force: bool) -> Service:
        service = self._get_service(cluster_name, service_name.rpartition("/")[2])
        if service.status == "ACTIVE":
            if service.desired_count > 0 and not force:
                raise InvalidParameterException("The service cannot be stopped while it is scaled above 0.")
            services.delete(service)
        return service

    def describe_services(self: Backend, cluster_str: str, names: list[str]) -> tuple[list[Service], Any]:
        found, failures = describe(self, cluster_str, names)
        services.settle([service for service in found if services.known(service)], SETTLE_SECONDS)
        return found, failures

    def list_services(self: Backend, cluster_str: str, *args: Any, **kwargs: Any) -> list[str]:
        gone = {service.arn for service in self.services.values() if service.status == "INACTIVE"}
        return [arn for arn in list_all(self, cluster_str, *args, **kwargs) if arn not in gone]

    services.start_task = start_task
    # security groups may be left out
    patch.setattr(Service, "_validate_network", lambda self, given: validate(self, _network(given)))
    patch.setattr(Responses, "create_service", create_service_response)
    patch.setattr(Backend, "update_service", update_service)
    patch.setattr(Backend, "delete_service", delete_service)
    patch.setattr(Backend, "describe_services", describe_services)
    patch.setattr(Backend, "list_services", list_services)


def _check_strategy(cluster: Cluster, launch_type: str | None, strategy: list[dict[str, Any]] | None) -> None:
    if launch_type and strategy:
        raise InvalidParameterException(
            "Specifying both a launch type and capacity provider strategy is not supported."
        )
    for item in strategy or []:
        if item["capacityProvider"] not in (cluster.capacity_providers or []):
            raise InvalidParameterException(
                "The specified capacity provider strategy cannot contain a capacity provider that is not associated "
                "with the cluster. Associate the capacity provider with the cluster and try again."
            )


def _check_balancers(backend: Backend, containers: list[dict[str, Any]], balancers: list[dict[str, Any]]) -> None:
    elb = elbv2_backends[backend.account_id][backend.region_name]
    for balancer in balancers:
        group = elb.target_groups.get(balancer["targetGroupArn"])
        if group is None:
            raise InvalidParameterException(f"The target group {balancer['targetGroupArn']} does not exist.")
        if group.target_type != "ip":
            raise InvalidParameterException(
                f"The provided target group {group.arn} has target type {group.target_type}, which is incompatible "
                "with the awsvpc network mode specified in the task definition."
            )
        listeners = [listener for known in elb.load_balancers.values() for listener in known.listeners.values()]
        actions = [a for li in listeners for a in li.default_actions]
        actions += [a for li in listeners for rule in li.rules.values() for a in rule.actions]
        if not any(group.arn in str(getattr(action, "data", action)) for action in actions):
            raise InvalidParameterException(
                f"The target group with targetGroupArn {group.arn} does not have an associated load balancer."
            )
        container = next((c for c in containers if c["name"] == balancer["containerName"]), None)
        ports = [int(mapping["containerPort"]) for mapping in (container or {}).get("portMappings") or []]
        if container is None or int(balancer["containerPort"]) not in ports:
            raise InvalidParameterException(
                f"The container {balancer['containerName']} did not have a container port "
                f"{balancer['containerPort']} defined."
            )


def _clusters(services: Services, patch: Patcher) -> None:
    describe, delete, tagged = Backend.describe_clusters, Backend.delete_cluster, Backend.iter_tagged_resources

    def active(backend: Backend, cluster: Cluster) -> list[Service]:
        return [
            s
            for s in backend.services.values()
            if s.cluster_name == cluster.name and s.status in ("ACTIVE", "DRAINING")
        ]

    def describe_clusters(self: Backend, cluster_names: list[str]) -> tuple[list[Cluster], Any]:
        found, failures = describe(self, cluster_names)
        for cluster in found:
            statuses = [task.last_status for task in self.tasks.get(cluster.name, {}).values()]
            cluster.running_tasks_count = statuses.count("RUNNING")
            cluster.pending_tasks_count = statuses.count("PENDING") + statuses.count("PROVISIONING")
            cluster.active_services_count = len(active(self, cluster))
        return found, failures

    def delete_cluster(self: Backend, cluster_str: str) -> Cluster:
        cluster = self._get_cluster(cluster_str)
        if active(self, cluster):
            services.settle(active(self, cluster), SETTLE_SECONDS)
        if active(self, cluster):
            raise ECSException(
                "ClusterContainsServicesException", "The Cluster cannot be deleted while Services are active."
            )
        if any(task.last_status != "STOPPED" for task in self.tasks.get(cluster.name, {}).values()):
            raise ECSException("ClusterContainsTasksException", "The Cluster cannot be deleted while Tasks are active.")
        return delete(self, cluster_str)

    def iter_tagged_resources(self: Backend) -> Any:
        """What was deleted is no longer found by its tags; moto keeps it for ever."""
        gone = {c.arn for c in self.clusters.values() if c.status == "INACTIVE"}
        gone |= {s.physical_resource_id for s in self.services.values() if s.status == "INACTIVE"}
        gone |= {t.task_arn for known in self.tasks.values() for t in known.values() if t.last_status == "STOPPED"}
        return (resource for resource in tagged(self) if resource.arn not in gone)

    patch.setattr(Backend, "describe_clusters", describe_clusters)
    patch.setattr(Backend, "delete_cluster", delete_cluster)
    patch.setattr(Backend, "iter_tagged_resources", iter_tagged_resources)
