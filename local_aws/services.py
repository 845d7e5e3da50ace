"""The scheduler of ECS services: keeps the desired count, rolls deployments, and gives up on those that cannot work.

Sources: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/deployment-type-ecs.html
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/deployment-circuit-breaker.html
"""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from moto.core.exceptions import ServiceException
from moto.core.utils import utcnow
from moto.ecs.models import Service

from local_aws.networks import CidrOverlapError
from local_aws.tasks import Run, Target, Tasks

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # before a task is tried again after one that failed
EVENTS_KEPT = 100
PROVEN_SECONDS = 3.0  # what ends sooner was never healthy, whatever its checks said
FEWEST_FAILURES, MOST_FAILURES = 3, 200
IN_PROGRESS, COMPLETED, FAILED = "IN_PROGRESS", "COMPLETED", "FAILED"


def failures_allowed(desired: int) -> int:
    """How many failed tasks make a deployment a failed one.

    Source: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/deployment-circuit-breaker.html
    """
    return min(MOST_FAILURES, max(FEWEST_FAILURES, math.ceil(desired / 2)))


def limits(desired: int, configuration: dict[str, Any]) -> tuple[int, int]:
    """How many tasks must stay healthy and how many may live while a deployment rolls.

    Source: https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_DeploymentConfiguration.html
    """
    least = math.ceil(desired * int(configuration["minimumHealthyPercent"]) / 100)
    most = math.floor(desired * int(configuration["maximumPercent"]) / 100)
    return least, most


def next_provider(strategy: list[dict[str, Any]], placed: list[str]) -> str:
    """The capacity provider that a strategy gives the next task to, after those placed already."""
    for item in strategy:
        if placed.count(item["capacityProvider"]) < int(item.get("base") or 0):
            return str(item["capacityProvider"])
    weighted = [item for item in strategy if int(item.get("weight") or 0) > 0] or strategy
    return str(
        min(
            weighted,
            key=lambda item: (
                (placed.count(item["capacityProvider"]) - int(item.get("base") or 0) + 1) / int(item.get("weight") or 1)
            ),
        )["capacityProvider"]
    )


@dataclass(eq=False)
class Deployment:
    """One deployment of a service, with the names that the API gives to its parts."""

    task_definition: str
    network_configuration: dict[str, Any]
    launch_type: str | None
    capacity_provider_strategy: list[dict[str, Any]]
    platform_version: str
    load_balancers: list[dict[str, Any]]
    desired_count: int
    id: str = field(default_factory=lambda: f"ecs-svc/{secrets.randbelow(10**19):019d}")
    status: str = "PRIMARY"
    rollout_state: str = IN_PROGRESS
    rollout_state_reason: str = ""
    pending_count: int = 0
    running_count: int = 0
    failed_tasks: int = 0
    platform_family: str = "Linux"
    created_at: datetime = field(default_factory=utcnow)
    updated_at: datetime = field(default_factory=utcnow)
    runs: list[Run] = field(default_factory=list)
    failures: int = 0  # in a row, for the circuit breaker
    not_before: float = 0.0

    def __post_init__(self) -> None:
        self.rollout_state_reason = f"ECS deployment {self.id} in progress."

    def become(self, state: str, reason: str) -> None:
        self.rollout_state, self.rollout_state_reason, self.updated_at = state, reason, utcnow()

    def living(self) -> list[Run]:
        return [run for run in self.runs if run.alive]


StartTask = Callable[[Service, Deployment, str, str | None, list[Target]], Run]


class Services:
    """One thread that looks at every service whenever something happened, and once a second.

    start_task: makes moto's task for (service, deployment, subnet, capacity provider) and launches it.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._services: dict[str, Service] = {}
        self._lock = threading.RLock()
        self._wake = threading.Event()
        self._changed = threading.Condition()
        self.start_task: StartTask | None = None
        self.problems: dict[str, str] = {}
        tasks.on_change = self._wake.set
        threading.Thread(target=self._work, name="services", daemon=True).start()

    # what the API asks for

    def create(self, service: Service) -> None:
        with self._lock:
            self._services[service.arn] = service
            service.deployments, service.told_steady = [], False
            self._deploy(service)
        self._wake.set()

    def deploy(self, service: Service) -> None:
        """Begin a new deployment of a service as it is described now."""
        with self._lock:
            self._deploy(service)
        self._wake.set()

    def scale(self, service: Service, desired: int) -> None:
        with self._lock:
            service.desired_count = desired
            for deployment in service.deployments:
                if deployment.status == "PRIMARY":
                    deployment.desired_count, deployment.updated_at = desired, utcnow()
        self._wake.set()

    def delete(self, service: Service) -> None:
        """Stop every task of a service; it is DRAINING until the last one has ended."""
        with self._lock:
            service.status, service.desired_count = "DRAINING", 0
            for deployment in service.deployments:
                deployment.desired_count = 0
        self._wake.set()

    def known(self, service: Service) -> bool:
        return service.arn in self._services

    def settle(self, services: list[Service], seconds: float) -> None:
        """Wait until no deployment of the services is under way, at most so long."""
        with self._lock:
            for service in services:
                self._count(service)  # what has just ended is seen before the scheduler looks
        with self._changed:
            self._changed.wait_for(lambda: all(self._steady(service) for service in services), timeout=seconds)

    def forget_all(self) -> None:
        with self._lock:
            self._services.clear()
            self.problems.clear()

    def summary(self) -> list[dict[str, Any]]:
        with self._lock:
            return [
                {
                    "name": service.name,
                    "status": service.status,
                    "desired": service.desired_count,
                    "running": service.running_count,
                    "rollout": next((d.rollout_state for d in service.deployments if d.status == "PRIMARY"), ""),
                }
                for service in self._services.values()
                if service.status != "INACTIVE"
            ]

    # the scheduler's own thread

    def _work(self) -> None:
        while True:
            self._wake.wait(TICK_SECONDS)
            self._wake.clear()
            with self._lock:
                for service in list(self._services.values()):
                    try:
                        self._look_at(service)
                    except Exception as error:  # one service must not stop the others'
                        log.exception("service %s", service.name)
                        self.problems[service.name] = str(error)
            with self._changed:
                self._changed.notify_all()

    @staticmethod
    def _steady(service: Service) -> bool:
        if service.status != "ACTIVE":
            return bool(service.status == "INACTIVE")
        primary = next((d for d in service.deployments if d.status == "PRIMARY"), None)
        if primary is not None and primary.rollout_state != COMPLETED:
            return bool(primary.rollout_state == FAILED)
        return len(service.deployments) == 1 and service.running_count == service.desired_count

    def _deploy(self, service: Service) -> Deployment:
        for deployment in service.deployments:
            deployment.status = "ACTIVE"
        made = Deployment(
            task_definition=service.task_definition,
            network_configuration=service.network_configuration,
            launch_type=service.launch_type,
            capacity_provider_strategy=list(service.capacity_provider_strategy or []),
            platform_version=service.platform_version,
            load_balancers=list(service.load_balancers),
            desired_count=service.desired_count,
        )
        service.deployments.insert(0, made)
        return made

    def _look_at(self, service: Service) -> None:
        for deployment in list(service.deployments):
            self._reap(service, deployment)
            self._judge(service, deployment)
        primary: Deployment = service.deployments[0] if service.deployments else self._deploy(service)
        if service.status == "ACTIVE":
            self._break_circuit(service, primary)
            primary = service.deployments[0]
            self._start_missing(service, primary)
        self._stop_surplus(service, primary)
        self._count(service)
        if service.status == "DRAINING":
            if not self._tasks.of_service(service.arn):
                service.status = "INACTIVE"
                service.deployments = []
            return
        self._finish(service, primary)

    def _reap(self, service: Service, deployment: Deployment) -> None:
        """Take out what ended, and count what ended without being asked."""
        for run in [run for run in deployment.runs if not run.alive and not run.counted]:
            run.counted = True
            if run.task.stop_code in ("ServiceSchedulerInitiated", "UserInitiated") and not run.failed:
                continue
            deployment.failures += 1
            if deployment.rollout_state == IN_PROGRESS:
                deployment.failed_tasks += 1
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** max(0, deployment.failures - 1))
            deployment.not_before = time.monotonic() + pause
            if run.task.stop_code == "TaskFailedToStart":
                self._tell(service, f"was unable to place a task. Reason: {run.task.stopped_reason}.")
        deployment.runs = [run for run in deployment.runs if not run.ended.is_set()]

    def _judge(self, service: Service, deployment: Deployment) -> None:
        """Stop tasks whose checks failed, once their grace is over."""
        for run in deployment.living():
            if run.task.last_status != "RUNNING":
                continue
            if self._healthy(run):
                if not run.was_healthy and run.targets:
                    for target in run.targets:
                        self._tell(service, f"registered 1 targets in (target-group {target.group})")
                run.was_healthy = True
                deployment.failures = 0  # resetOnHealthyTask, which is the default
                continue
            if run.running_since is None or time.monotonic() - run.running_since < run.grace_seconds:
                continue
            if self._tasks.refresh_health(run) == "UNHEALTHY":
                self._fail(service, run, "Task failed container health checks")
                continue
            for target in run.targets:
                state, reason = self._tasks.target_state(run, target)
                if state == "unhealthy":
                    self._tell(
                        service,
                        f"(port {target.port}) is unhealthy in (target-group {target.group}) due to (reason {reason})",
                    )
                    self._fail(service, run, f"Task failed ELB health checks in (target-group {target.group})")
                    break

    def _healthy(self, run: Run) -> bool:
        proven = run.running_since is not None and time.monotonic() - run.running_since >= PROVEN_SECONDS
        return proven and self._tasks.healthy(run)

    def _fail(self, service: Service, run: Run, reason: str) -> None:
        run.failed = True
        self._tasks.stop(run, "ServiceSchedulerInitiated", reason)
        self._tell(service, f"has stopped 1 running tasks: (task {run.task.id}).")

    def _break_circuit(self, service: Service, primary: Deployment) -> None:
        breaker = service.deployment_configuration.get("deploymentCircuitBreaker") or {}
        if not breaker.get("enable") or primary.rollout_state != IN_PROGRESS:
            return
        if primary.failures < failures_allowed(service.desired_count):
            return
        self._tell(service, f"(deployment {primary.id}) deployment failed: tasks failed to start.")
        primary.become(FAILED, "ECS deployment circuit breaker: tasks failed to start.")
        earlier = next((d for d in service.deployments[1:] if d.rollout_state == COMPLETED), None)
        if not breaker.get("rollback") or earlier is None:
            return
        primary.become(FAILED, f"ECS deployment circuit breaker: rolling back to deploymentId {earlier.id}.")
        self._tell(service, f"rolling back to deployment {earlier.id}.")
        primary.status, primary.desired_count = "ACTIVE", 0
        earlier.status, earlier.desired_count = "PRIMARY", service.desired_count
        earlier.failures = 0
        earlier.become(IN_PROGRESS, f"ECS deployment circuit breaker: rolling back to deploymentId {earlier.id}.")
        service.task_definition = earlier.task_definition
        service.network_configuration = earlier.network_configuration
        service.deployments.remove(earlier)
        service.deployments.insert(0, earlier)

    def _start_missing(self, service: Service, primary: Deployment) -> None:
        if primary.rollout_state == FAILED or time.monotonic() < primary.not_before or self.start_task is None:
            return
        living = [run for deployment in service.deployments for run in deployment.living()]
        most = limits(service.desired_count, service.deployment_configuration)[1]
        wanted = min(service.desired_count - len(primary.living()), max(most, service.desired_count) - len(living))
        started = []
        for _ in range(wanted):
            subnets = primary.network_configuration["awsvpcConfiguration"]["subnets"]
            in_use = [run.subnet.id for d in service.deployments for run in d.living()]
            own = [run.subnet.id for run in primary.living()]
            subnet = min(subnets, key=lambda name: (own.count(name), in_use.count(name)))
            provider = None
            if primary.capacity_provider_strategy:
                placed = [str(run.task.capacity_provider_name) for run in primary.living()]
                provider = next_provider(primary.capacity_provider_strategy, placed)
            targets = [
                Target(b["targetGroupArn"], b["containerName"], int(b["containerPort"])) for b in primary.load_balancers
            ]
            try:
                run = self.start_task(service, primary, subnet, provider, targets)
            except (ServiceException, CidrOverlapError) as error:
                primary.failures += 1
                primary.failed_tasks += 1
                primary.not_before = time.monotonic() + LONGEST_PAUSE
                self._tell(service, f"was unable to place a task. Reason: {error}.")
                break
            primary.runs.append(run)
            started.append(run)
        if started:
            names = " ".join(f"(task {run.task.id})" for run in started)
            self._tell(service, f"has started {len(started)} tasks: {names}.")

    def _stop_surplus(self, service: Service, primary: Deployment) -> None:
        least = limits(service.desired_count, service.deployment_configuration)[0]
        old = [run for d in service.deployments if d is not primary for run in d.living()]
        own = primary.living()
        healthy = {id(run): self._healthy(run) for run in [*old, *own]}
        spare = sum(healthy.values()) - least
        doomed: list[Run] = own[service.desired_count :] if primary.rollout_state != FAILED else []
        if service.status == "DRAINING":
            doomed = [*own, *old]
        else:
            for run in sorted(old, key=lambda run: healthy[id(run)]):  # what is not healthy serves nobody
                if healthy[id(run)]:
                    if spare <= 0:
                        break
                    spare -= 1
                doomed.append(run)
        if not doomed:
            return
        if any(run.targets for run in doomed):
            self._tell(service, f"has begun draining connections on {len(doomed)} tasks.")
            for group in sorted({target.group for run in doomed for target in run.targets}):
                self._tell(service, f"deregistered {len(doomed)} targets in (target-group {group})")
        for run in doomed:
            run.failed = False
            self._tasks.stop(run, "ServiceSchedulerInitiated", self._why(service, primary, run))
        names = " ".join(f"(task {run.task.id})" for run in doomed)
        self._tell(service, f"has stopped {len(doomed)} running tasks: {names}.")

    @staticmethod
    def _why(service: Service, primary: Deployment, run: Run) -> str:
        deployment = next((d for d in service.deployments if run in d.runs), primary)
        return f"Scaling activity initiated by (deployment {deployment.id})"

    def _count(self, service: Service) -> None:
        for deployment in service.deployments:
            living = deployment.living()
            deployment.running_count = sum(run.task.last_status == "RUNNING" for run in living)
            deployment.pending_count = len(living) - deployment.running_count
        service.running_count = sum(d.running_count for d in service.deployments)
        service.pending_count = sum(d.pending_count for d in service.deployments)
        service.deployments = [d for d in service.deployments if d.status == "PRIMARY" or d.runs]

    def _finish(self, service: Service, primary: Deployment) -> None:
        ready = [run for run in primary.living() if self._healthy(run)]
        if len(ready) != service.desired_count or len(primary.living()) != service.desired_count:
            service.told_steady = False
            return
        if len(service.deployments) > 1:
            return
        if primary.rollout_state == IN_PROGRESS:
            self._tell(service, f"(deployment {primary.id}) deployment completed.")
            primary.become(COMPLETED, f"ECS deployment {primary.id} completed.")
            service.told_steady = False
        if not service.told_steady:
            service.told_steady = True
            self._tell(service, "has reached a steady state.")

    def _tell(self, service: Service, text: str) -> None:
        message = f"(service {service.name}) {text}"
        service.events.insert(0, {"id": str(uuid.uuid4()), "createdAt": utcnow(), "message": message})
        del service.events[EVENTS_KEPT:]
