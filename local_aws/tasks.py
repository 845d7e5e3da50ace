"""ECS tasks on Fargate: each one is a set of containers that share a network interface in the VPC, and one thread here.

As on Fargate a first container holds the network; a rule in it leads 169.254.170.2 to the local AWS, so that an image
needs nothing to get its role's credentials. What a task says of itself follows
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-lifecycle-explanation.html
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import resource
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig, Healthcheck, Mount, Ulimit
from moto.core.exceptions import ServiceException
from moto.core.utils import utcnow
from moto.ec2.models import ec2_backends
from moto.ecr.models import ecr_backends
from moto.ecs.models import Container as TaskContainer
from moto.ecs.models import Task, TaskDefinition
from moto.elbv2.models import elbv2_backends
from moto.logs.exceptions import ResourceAlreadyExistsException
from moto.logs.models import logs_backends
from moto.secretsmanager.models import secretsmanager_backends
from moto.ssm.models import ssm_backends

from local_aws.engine import container_log, remember_pulled, remove_container
from local_aws.networks import CidrOverlapError, ContainerNetwork, Networks
from local_aws.permissions import allowed
from local_aws.registry import USER, Registry, RegistryError, find_image
from local_aws.state import ACCOUNT_ID, INTERNAL_NAME, Settings, StateDir

log = logging.getLogger(__name__)

LABEL = "local_aws.task"
CREDENTIALS_ADDRESS = "169.254.170.2"
CREDENTIALS_PATH = "/v2/credentials/"
STOP_SECONDS = 30  # ECS's default stopTimeout
POLL_SECONDS = 0.3
SECOND = 10**9  # Docker's unit of time is the nanosecond
MIB = 1 << 20
STOPPED = "STOPPED"
SETTLED = {"RUNNING", STOPPED}
PULL_FAILED = "CannotPullContainerError: pull image manifest has been retried 1 time(s): failed to resolve ref"

NETWORK_RULES = """set -eu
gateway=$(getent ahostsv4 {name} | awk 'NR == 1 {{print $1}}')
iptables -t nat -A OUTPUT -d {address}/32 -p tcp --dport 80 -j DNAT --to-destination "$gateway:{metadata_port}"
# the default route may be another network's; a task is known by its address in this one
iptables -t nat -A POSTROUTING -d "$gateway/32" -p tcp --dport {metadata_port} -j MASQUERADE
timeout 5 bash -c 'exec 3<>/dev/tcp/{name}/{port}'
"""


class TaskError(Exception):
    """A task did not start; the text is its stoppedReason."""


@dataclass(frozen=True)
class Target:
    """A place in a target group that a task takes while it runs."""

    group: str
    container: str
    port: int


@dataclass
class Run:
    """One task, from its launch to its end."""

    task: Task
    definition: TaskDefinition
    targets: list[Target]
    grace_seconds: float = 0.0
    service: str = ""
    credentials_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    address: str = ""
    subnet: Any = None
    interface: Any = None
    network: ContainerNetwork | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    running_since: float | None = None
    was_healthy: bool = False
    failed: bool = False  # its service stopped it because its checks failed
    counted: bool = False  # its service knows that it ended
    volumes: dict[str, str] = field(default_factory=dict)
    containers: dict[str, Container] = field(default_factory=dict)
    followers: list[threading.Thread] = field(default_factory=list)
    images: set[str] = field(default_factory=set)

    @property
    def alive(self) -> bool:
        return not self.stopping.is_set()

    def overrides(self, name: str) -> dict[str, Any]:
        found = (self.task.overrides or {}).get("containerOverrides") or []
        return next((dict(override) for override in found if override.get("name") == name), {})

    def role_arn(self) -> str:
        return str(
            (self.task.overrides or {}).get("taskRoleArn") or getattr(self.definition, "task_role_arn", "") or ""
        )

    def execution_role_arn(self) -> str:
        given = (self.task.overrides or {}).get("executionRoleArn")
        return str(given or getattr(self.definition, "execution_role_arn", "") or "")


def container_options(
    definition: dict[str, Any], override: dict[str, Any], task_cpu: int, task_memory: int, cpus: int
) -> dict[str, Any]:
    """What a container definition means to Docker.

    task_cpu, task_memory: the task's limits in CPU units (1024 a vCPU) and MiB; no container may take more.
    cpus: of this machine; Docker refuses to promise more.
    """
    linux = definition.get("linuxParameters") or {}
    check = definition.get("healthCheck")
    memory = int(override.get("memory") or definition.get("memory") or task_memory) * MIB
    options: dict[str, Any] = {
        "command": override.get("command") or definition.get("command"),
        "entrypoint": definition.get("entryPoint"),
        "working_dir": definition.get("workingDirectory"),
        "user": definition.get("user"),
        "read_only": bool(definition.get("readonlyRootFilesystem")),
        "init": bool(linux.get("initProcessEnabled")),
        "tty": bool(definition.get("pseudoTerminal")),
        "stdin_open": bool(definition.get("interactive")),
        "mem_limit": memory,
        "memswap_limit": memory,  # Fargate has no swap
        "nano_cpus": min(task_cpu * SECOND // 1024, cpus * SECOND),
        "cpu_shares": max(2, int(override.get("cpu") or definition.get("cpu") or 0)),
        "ulimits": [granted(limit) for limit in definition.get("ulimits") or []],
        "sysctls": {s["namespace"]: s["value"] for s in definition.get("systemControls") or []},
        "cap_add": (linux.get("capabilities") or {}).get("add"),
        "cap_drop": (linux.get("capabilities") or {}).get("drop"),
        "tmpfs": {
            mount["containerPath"]: ",".join([f"size={mount['size']}m", *mount.get("mountOptions", [])])
            for mount in linux.get("tmpfs") or []
        },
        # ECS does not look at the check of the image
        "healthcheck": Healthcheck(test=["NONE"]),
    }
    if definition.get("memoryReservation"):
        options["mem_reservation"] = int(definition["memoryReservation"]) * MIB
    if check:
        options["healthcheck"] = Healthcheck(
            test=list(check["command"]),
            interval=int(check.get("interval") or 30) * SECOND,
            timeout=int(check.get("timeout") or 5) * SECOND,
            retries=int(check.get("retries") or 3),
            start_period=int(check.get("startPeriod") or 0) * SECOND,
        )
    return {key: value for key, value in options.items() if value not in (None, [], {})}


def granted(limit: dict[str, Any]) -> Ulimit:
    """A limit of a task as far as this machine allows it: an engine without CAP_SYS_RESOURCE cannot raise its own."""
    own = resource.getrlimit(getattr(resource, f"RLIMIT_{limit['name'].upper()}"))[1]
    most = own if own != resource.RLIM_INFINITY else max(limit["softLimit"], limit["hardLimit"])
    return Ulimit(name=limit["name"], soft=min(limit["softLimit"], most), hard=min(limit["hardLimit"], most))


def secret_source(reference: str) -> tuple[str, str, str, str]:
    """A secret's reference as (ARN, JSON key, version stage, version id); what is not named is empty.

    Source: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/secrets-envvar-secrets-manager.html
    """
    parts = reference.split(":")
    key, stage, version = [*parts[7:10], "", "", ""][:3]
    return ":".join(parts[:7]), key, stage, version


def log_lines(pieces: Iterator[bytes]) -> Iterator[tuple[int, str]]:
    """Docker's stream of timestamped lines as (milliseconds, text)."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from map(_log_line, lines)
    if rest:
        yield _log_line(rest)


def _log_line(line: bytes) -> tuple[int, str]:
    stamp, _, text = line.decode(errors="replace").partition(" ")
    moment = datetime.datetime.fromisoformat(stamp[:26].rstrip("Z") + "+00:00")
    return int(moment.timestamp() * 1000), text.rstrip("\r")


class Tasks:
    """Starts, watches and stops the containers behind moto's tasks."""

    def __init__(
        self, client: DockerClient, state: StateDir, settings: Settings, networks: Networks, registry: Registry
    ) -> None:
        self._client, self._state, self._settings, self._networks = client, state, settings, networks
        self._registry = registry
        self._changed = threading.Condition()
        self._runs: dict[str, Run] = {}
        self._cpus = int(client.info()["NCPU"])
        self._pulling = threading.Lock()
        self.on_change: Callable[[], None] = lambda: None

    # what the API asks for

    def launch(
        self,
        task: Task,
        definition: TaskDefinition,
        targets: list[Target] | None = None,
        grace_seconds: float = 0.0,
        service: str = "",
    ) -> Run:
        """Give a new task its interface and start its containers in the background."""
        run = Run(task, definition, targets or [], grace_seconds, service)
        self._describe(run)
        self._attach(run)
        self._runs[task.task_arn] = run
        threading.Thread(target=self._live, args=(run,), name=f"task-{task.id[:8]}", daemon=True).start()
        return run

    def stop(self, run: Run, code: str, reason: str) -> None:
        """Ask a task to end; the first one to ask is who is told to have done it."""
        with self._changed:
            if run.stopping.is_set():
                return
            task = run.task
            task.desired_status = STOPPED
            task.stop_code, task.stopped_reason, task.stopping_at = code, reason, utcnow()
            run.stopping.set()
        self._tell()

    def find(self, task_arn: str) -> Run | None:
        return self._runs.get(task_arn)

    def of_service(self, service: str) -> list[Run]:
        """Every task of a service that has not ended."""
        return [run for run in list(self._runs.values()) if run.service == service and not run.ended.is_set()]

    def at(self, network: ContainerNetwork, address: str) -> Run | None:
        """The living task of a VPC network that has this private address."""
        return next(
            (
                run
                for run in list(self._runs.values())
                if run.address == address and run.network is network and not run.ended.is_set()
            ),
            None,
        )

    def settle(self, task_ids: list[str], seconds: float) -> None:
        """Wait until none of the tasks is on its way to running or stopped, at most so long."""
        wanted = [run for arn, run in list(self._runs.items()) if arn.rpartition("/")[2] in task_ids]
        with self._changed:
            self._changed.wait_for(
                lambda: all(run.task.last_status in SETTLED and (run.alive or run.ended.is_set()) for run in wanted),
                timeout=seconds,
            )

    def forget_all(self) -> None:
        """End every task at once and wait until its containers are gone."""
        runs = [run for run in list(self._runs.values()) if not run.ended.is_set()]
        for run in runs:
            self.stop(run, "UserInitiated", "The account was emptied")
            for container in list(run.containers.values()):
                with contextlib.suppress(docker.errors.DockerException):
                    container.kill()
        for run in runs:
            run.ended.wait(STOP_SECONDS)
        self._runs.clear()

    def summary(self) -> list[dict[str, str]]:
        return [
            {
                "id": run.task.id,
                "family": f"{run.definition.family}:{run.definition.revision}",
                "service": run.service,
                "status": run.task.last_status,
                "private_address": run.address,
                "containers": " ".join(self._container_name(run, name) for name in run.containers),
            }
            for run in list(self._runs.values())
            if not run.ended.is_set()
        ]

    def healthy(self, run: Run) -> bool:
        """Whether a task runs, and its container checks and target groups agree."""
        if run.task.last_status != "RUNNING" or not run.alive:
            return False
        states = [self.target_state(run, target)[0] for target in run.targets]
        return self.refresh_health(run) in ("HEALTHY", "UNKNOWN") and all(
            state in ("healthy", "unavailable") for state in states
        )

    def refresh_health(self, run: Run) -> str:
        """The task's health: that of its essential containers with a check. UNKNOWN when there is none."""
        verdicts = []
        for definition, described in zip(run.definition.container_definitions, run.task.containers, strict=True):
            if not definition.get("healthCheck"):
                continue
            container = run.containers.get(definition["name"])
            if container is not None:
                with contextlib.suppress(docker.errors.DockerException):
                    container.reload()
            found = ((container.attrs.get("State") or {}).get("Health") or {}).get("Status") if container else ""
            described.health_status = {"healthy": "HEALTHY", "unhealthy": "UNHEALTHY"}.get(str(found), "UNKNOWN")
            if definition.get("essential", True):
                verdicts.append(described.health_status)
        checked = any(definition.get("healthCheck") for definition in run.definition.container_definitions)
        order = ("UNHEALTHY", "UNKNOWN", "HEALTHY")
        run.task.health_status = min(verdicts, key=order.index) if verdicts else "UNKNOWN"
        if checked and run.task.health_status == "UNKNOWN":
            return "STARTING"
        return str(run.task.health_status)

    def target_state(self, run: Run, target: Target) -> tuple[str, str]:
        """What a target group says of a task: a state and why."""
        backend = elbv2_backends[run.task._account_id][run.task.region_name]
        try:
            described = backend.describe_target_health(target.group, [{"Id": run.address, "Port": target.port}])
        except ServiceException:
            return "unavailable", "The target group does not exist"
        if not described:
            return "unavailable", "There is no information on its health"
        return str(described[0].status), str(described[0].description or "")

    # the life of a task, in its own thread

    def _live(self, run: Run) -> None:
        try:
            self._start(run)
        except TaskError as error:
            self.stop(run, "TaskFailedToStart", str(error))
        except Exception as error:  # a task must never stay where it is
            log.exception("task %s failed", run.task.id)
            self.stop(run, "TaskFailedToStart", f"CannotStartContainerError: {error}")
        run.stopping.wait()
        try:
            self._end(run)
        except Exception:  # nor one that was stopped
            log.exception("task %s was not removed", run.task.id)
        run.task.stopped_at = utcnow()
        for described in run.task.containers:
            described.last_status = STOPPED
        self._become(run, STOPPED)
        run.ended.set()
        self._tell()

    def _start(self, run: Run) -> None:
        holder = self._hold_network(run)
        if not run.alive:
            return
        self._become(run, "PENDING")
        secrets = {d["name"]: self._secrets(run, d) for d in run.definition.container_definitions}
        run.task.pull_started_at = utcnow()
        pulled = {d["name"]: self._pull(run, d["image"]) for d in run.definition.container_definitions}
        run.task.pull_stopped_at = utcnow()
        for definition, described in zip(run.definition.container_definitions, run.task.containers, strict=True):
            if not run.alive:
                return
            name = definition["name"]
            described.image_digest = pulled[name][1]
            container = self._create(run, definition, holder, pulled[name][0], secrets[name])
            self._open_log(run, definition)
            try:
                container.start()
            except docker.errors.APIError as error:
                described.reason = f"CannotStartContainerError: {error.explanation}"
                raise TaskError(described.reason) from error
            run.containers[name] = container
            described.runtime_id, described.last_status = container.id, "RUNNING"
            follower = threading.Thread(
                target=self._follow, args=(run, definition, described, container), name="task-log", daemon=True
            )
            run.followers.append(follower)
            follower.start()
        if run.targets:
            self._become(run, "ACTIVATING")
            for target in run.targets:
                self._elb(run).register_targets(target.group, [{"Id": run.address, "Port": target.port}])
        if run.alive:
            run.task.started_at, run.running_since = utcnow(), time.monotonic()
            self._become(run, "RUNNING")

    def _end(self, run: Run) -> None:
        if run.targets and run.task.last_status in ("ACTIVATING", "RUNNING"):
            self._become(run, "DEACTIVATING")
            self._drain(run)
        self._become(run, "STOPPING")
        for definition in reversed(run.definition.container_definitions):
            container = run.containers.get(definition["name"])
            if container is not None:
                with contextlib.suppress(docker.errors.NotFound):
                    container.stop(timeout=int(definition.get("stopTimeout") or STOP_SECONDS))
        for follower in run.followers:
            follower.join(10)
        run.task.execution_stopped_at = utcnow()
        self._become(run, "DEPROVISIONING")
        self._remove(run)

    def _drain(self, run: Run) -> None:
        """Take the task out of its target groups and wait until these have drained it."""
        for target in run.targets:
            place = {"Id": run.address, "Port": target.port}
            try:
                group = self._elb(run).target_groups[target.group]
                self._elb(run).deregister_targets(target.group, [place])
            except (KeyError, ServiceException):
                continue  # the group or the target is gone already
            deadline = time.monotonic() + float(group.attributes["deregistration_delay.timeout_seconds"])
            while time.monotonic() < deadline and self.target_state(run, target)[0] == "draining":
                if not any(self._is_running(container) for container in run.containers.values()):
                    break
                time.sleep(POLL_SECONDS)

    @staticmethod
    def _is_running(container: Container) -> bool:
        try:
            container.reload()
        except docker.errors.NotFound:
            return False
        return bool(container.status == "running")

    def _remove(self, run: Run) -> None:
        filters: dict[str, Any] = {
            "label": [*(f"{k}={v}" for k, v in self._state.labels.items()), f"{LABEL}={run.task.id}"]
        }
        for container in self._client.containers.list(all=True, filters=filters, ignore_removed=True):
            remove_container(container)
        for volume in self._client.volumes.list(filters=filters):
            with contextlib.suppress(docker.errors.APIError):
                volume.remove(force=True)
        for attachment in run.task.attachments:
            attachment["status"] = "DELETED"
        if run.interface is not None:
            run.interface.stop()
            ec2_backends[run.task._account_id][run.task.region_name].enis.pop(run.interface.id, None)
        if run.subnet is not None:
            run.subnet.del_subnet_ip(run.address)

    def _become(self, run: Run, status: str) -> None:
        run.task.last_status = status
        run.task.version += 1
        self._tell()

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()
        self.on_change()

    @staticmethod
    def _elb(run: Run) -> Any:
        return elbv2_backends[run.task._account_id][run.task.region_name]

    # how a task looks to the API

    def _describe(self, run: Run) -> None:
        task, definition = run.task, run.definition
        task.last_status, task.version = "PROVISIONING", 1
        task.created_at, task.connectivity, task.connectivity_at = utcnow(), "CONNECTED", utcnow()
        task.cpu, task.memory = definition.cpu, definition.memory
        task.platform_family, task.health_status = "Linux", "UNKNOWN"
        task.ephemeral_storage = {"sizeInGiB": (definition.ephemeral_storage or {}).get("sizeInGiB", 20)}
        task.stopped_reason = None
        task.containers = []
        for wanted in definition.container_definitions:
            described = TaskContainer(definition)
            described.container_arn = f"{task.task_arn.replace(':task/', ':container/', 1)}/{uuid.uuid4()}"
            described.task_arn = task.task_arn
            described.name, described.image = wanted["name"], wanted["image"]
            described.cpu, described.memory = str(wanted.get("cpu", 0)), wanted.get("memory")
            described.last_status, described.health_status = "PENDING", "UNKNOWN"
            del described.exitCode
            task.containers.append(described)

    def _attach(self, run: Run) -> None:
        """Give the task's interface an address of its subnet. moto makes one up."""
        task = run.task
        details = {detail["name"]: detail for detail in task.attachments[0]["details"]}
        backend = ec2_backends[task._account_id][task.region_name]
        run.interface = backend.enis[details["networkInterfaceId"]["value"]]
        run.subnet = run.interface.subnet
        vpc = backend.get_vpc(run.subnet.vpc_id)
        try:
            run.network = self._networks.for_vpc(vpc.id, vpc.cidr_block)
        except CidrOverlapError:
            backend.enis.pop(run.interface.id)
            raise
        run.address = run.subnet.get_available_subnet_ip(task)
        run.interface.private_ip_address = run.address
        run.interface.private_ip_addresses = [{"Primary": True, "PrivateIpAddress": run.address}]
        details["privateIPv4Address"]["value"] = run.address
        details["privateDnsName"]["value"] = f"ip-{run.address.replace('.', '-')}.{task.region_name}.compute.internal"
        run.interface.description = task.attachments[0]["id"]
        awsvpc = task.network_configuration["awsvpcConfiguration"]
        if awsvpc.get("assignPublicIp") == "ENABLED":
            run.interface.public_ip_auto_assign = True
            run.interface.check_auto_public_ip()
        task.availability_zone = run.subnet.availability_zone
        for described in task.containers:
            described.network_interfaces = [
                {"attachmentId": task.attachments[0]["id"], "privateIpv4Address": run.address}
            ]

    # its containers

    def _container_name(self, run: Run, name: str) -> str:
        return f"{self._state.prefix}task-{run.task.id[:8]}-{name}"

    def _labels(self, run: Run) -> dict[str, str]:
        return {**self._state.labels, LABEL: run.task.id}

    def _hold_network(self, run: Run) -> Container:
        """The container whose network the others use, with the way to the role's credentials in it."""
        network = run.network
        if network is None:
            raise TaskError("ResourceInitializationError: the task has no network")
        host_name = "ip-" + run.address.replace(".", "-")
        endpoint = EndpointConfig(self._client.api.api_version, ipv4_address=run.address)
        holder = self._client.containers.create(
            self._settings.host_image,
            command=["sleep", "infinity"],
            name=self._container_name(run, "~internal~").replace("~", ""),
            hostname=host_name,
            labels=self._labels(run),
            init=True,
            cap_add=["NET_ADMIN"],
            extra_hosts={INTERNAL_NAME: network.gateway},
            network=str(network.network.name),
            networking_config={str(network.network.name): endpoint},
        )
        public = self._networks.public
        if public is not None and run.interface.public_ip:
            public.network.connect(holder, ipv4_address=run.interface.public_ip)
        holder.start()
        rules = NETWORK_RULES.format(
            name=INTERNAL_NAME,
            address=CREDENTIALS_ADDRESS,
            metadata_port=self._settings.metadata_port,
            port=self._settings.port,
        )
        done = holder.exec_run(["sh", "-c", rules])
        if done.exit_code != 0:
            words = done.output if isinstance(done.output, bytes) else b""
            raise TaskError(
                f"ResourceInitializationError: the task cannot reach the API at {network.gateway} port "
                f"{self._settings.port}: {words.decode(errors='replace')[-300:]}"
            )
        return holder

    def _create(
        self, run: Run, definition: dict[str, Any], holder: Container, image: str, secrets: dict[str, str]
    ) -> Container:
        override = run.overrides(definition["name"])
        options = container_options(
            definition,
            override,
            int((run.task.overrides or {}).get("cpu") or run.definition.cpu or 256),
            int((run.task.overrides or {}).get("memory") or run.definition.memory or 512),
            self._cpus,
        )
        return self._client.containers.create(
            image,
            name=self._container_name(run, definition["name"]),
            labels=self._labels(run),
            network_mode=f"container:{holder.id}",
            environment={**self._environment(run), **_pairs(definition), **_pairs(override), **secrets},
            mounts=self._mounts(run, definition, image),
            **options,
        )

    def _environment(self, run: Run) -> dict[str, str]:
        """Source: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html"""
        region = run.task.region_name
        own = {"AWS_REGION": region, "AWS_DEFAULT_REGION": region, "AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}
        if run.role_arn():
            own["AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"] = CREDENTIALS_PATH + run.credentials_id
        return own

    def _mounts(self, run: Run, definition: dict[str, Any], image: str) -> list[Mount]:
        """Volumes of the task. Only a directory that the image declares as VOLUME lends its owner and mode to one.

        Source: https://docs.aws.amazon.com/AmazonECS/latest/developerguide/bind-mounts.html
        """
        declared = (self._client.images.get(image).attrs["Config"].get("Volumes") or {}).keys()
        mounts = []
        for point in definition.get("mountPoints") or []:
            name = f"{self._state.prefix}task-{run.task.id[:8]}-volume-{point['sourceVolume']}"
            if name not in run.volumes.values():
                self._client.volumes.create(name, labels=self._labels(run))
                run.volumes[point["sourceVolume"]] = name
            path = str(point["containerPath"])
            mounts.append(
                Mount(path, name, type="volume", read_only=bool(point.get("readOnly")), no_copy=path not in declared)
            )
        return mounts

    def _pull(self, run: Run, reference: str) -> tuple[str, str | None]:
        """An image's id and its digest. Raises TaskError."""
        host, _, path = reference.partition("/")
        if host != self._registry.host:
            return self._public_image(reference)
        name, _, tag = path.rpartition("@" if "@" in path else ":")
        name, tag = (name, tag) if name else (tag, "latest")
        repository = ecr_backends[ACCOUNT_ID][self._settings.region].repositories.get(name)
        arn = f"arn:aws:ecr:{self._settings.region}:{ACCOUNT_ID}:repository/{name}"
        for action in ("ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"):
            self._permit(run, action, "*" if action.endswith("Token") else arn, f"pull image {reference}")
        failed = f"{PULL_FAILED} {reference}"
        if repository is None or find_image(repository, tag) is None:
            raise TaskError(f"{failed}: {reference}: not found")
        digest = str(getattr(find_image(repository, tag), "image_digest", ""))
        try:
            with self._pulling:
                before = self._has(f"{host}/{name}@{digest}")
                image = self._client.images.pull(
                    f"{host}/{name}", tag=digest, auth_config={"username": USER, "password": self._registry.password}
                )
                if not before:
                    remember_pulled(self._state, f"{host}/{name}@{digest}")
        except (docker.errors.APIError, RegistryError) as error:
            raise TaskError(f"{failed}: {getattr(error, 'explanation', None) or error}") from error
        return str(image.id), digest

    def _has(self, reference: str) -> bool:
        try:
            self._client.images.get(reference)
        except docker.errors.ImageNotFound:
            return False
        return True

    def _public_image(self, reference: str) -> tuple[str, str | None]:
        try:
            if not self._has(reference):
                repository, _, tag = reference.rpartition(":")
                self._client.images.pull(repository or reference, tag=tag if repository else "latest")
            return str(self._client.images.get(reference).id), None
        except docker.errors.APIError as error:
            raise TaskError(f"{PULL_FAILED} {reference}: {error.explanation}") from error

    # what a task needs of other services, in the name of its execution role

    def _permit(self, run: Run, action: str, arn: str, purpose: str) -> None:
        role = run.execution_role_arn()
        if not role or allowed(run.task._account_id, run.task.region_name, role, action, arn):
            return
        raise TaskError(
            f"ResourceInitializationError: unable to {purpose}: execution resource retrieval failed: "
            f"AccessDeniedException: {role} is not authorized to perform: {action} on resource: {arn}"
        )

    def _secrets(self, run: Run, definition: dict[str, Any]) -> dict[str, str]:
        return {s["name"]: self._secret(run, str(s["valueFrom"])) for s in definition.get("secrets") or []}

    def _secret(self, run: Run, reference: str) -> str:
        account, region = run.task._account_id, run.task.region_name
        failed = (
            "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed"
        )
        if ":secretsmanager:" in reference:
            arn, key, stage, version = secret_source(reference)
            region = arn.split(":")[3]
            self._permit(run, "secretsmanager:GetSecretValue", arn, "pull secrets or registry auth")
            try:
                found = secretsmanager_backends[account][region].get_secret_value(arn, version, stage)
            except ServiceException as error:
                raise TaskError(f"{failed}: unable to retrieve secret from asm: {arn}: {error.message}") from error
            text = str(found.get("SecretString", ""))
            if not key:
                return text
            try:
                value = json.loads(text)[key]
            except (ValueError, KeyError, TypeError) as error:
                raise TaskError(
                    f"{failed}: unable to retrieve secret from asm: retrieved secret from Secrets Manager did not "
                    f"contain json key {key}"
                ) from error
            return value if isinstance(value, str) else json.dumps(value)
        name = reference.partition(":parameter")[2] or reference
        arn = f"arn:aws:ssm:{region}:{account}:parameter/{name.lstrip('/')}"
        self._permit(run, "ssm:GetParameters", arn, "pull secrets or registry auth")
        parameter = ssm_backends[account][region].get_parameter(name)
        if parameter is None:
            raise TaskError(f"{failed}: unable to retrieve secrets from ssm: invalid parameters: {name}")
        return str(parameter.response_object(True, region)["Value"])

    def _log_stream(self, run: Run, definition: dict[str, Any]) -> tuple[Any, str, str] | None:
        """Backend, group and stream that a container logs to; None when it logs nowhere."""
        configuration = definition.get("logConfiguration") or {}
        if configuration.get("logDriver") != "awslogs":
            return None
        options = configuration.get("options") or {}
        backend = logs_backends[run.task._account_id][options.get("awslogs-region") or run.task.region_name]
        prefix = options.get("awslogs-stream-prefix", "ecs")
        return backend, str(options.get("awslogs-group")), f"{prefix}/{definition['name']}/{run.task.id}"

    def _open_log(self, run: Run, definition: dict[str, Any]) -> None:
        found = self._log_stream(run, definition)
        if found is None:
            return
        backend, group, stream = found
        arn = f"arn:aws:logs:{backend.region_name}:{backend.account_id}:log-group:{group}"
        options = definition["logConfiguration"]["options"]
        if group not in backend.groups:
            if str(options.get("awslogs-create-group")).lower() != "true":
                raise TaskError(
                    "ResourceInitializationError: failed to validate logger args: create stream has been retried 1 "
                    "times: failed to create Cloudwatch log stream: ResourceNotFoundException: The specified log group "
                    "does not exist."
                )
            self._permit(run, "logs:CreateLogGroup", arn, "create a log group")
            backend.create_log_group(group, {})
        for action in ("logs:CreateLogStream", "logs:PutLogEvents"):
            self._permit(run, action, f"{arn}:log-stream:{stream}", "validate logger args")
        with contextlib.suppress(ResourceAlreadyExistsException):
            backend.create_log_stream(group, stream)

    def _follow(self, run: Run, definition: dict[str, Any], described: TaskContainer, container: Container) -> None:
        """Carry a container's output to CloudWatch until it ends; then say so."""
        found = self._log_stream(run, definition)
        try:
            if found is not None:
                backend, group, stream = found
                for stamp, text in log_lines(container.logs(stream=True, follow=True, timestamps=True)):
                    with contextlib.suppress(ServiceException):  # the group may be deleted while the task runs
                        backend.put_log_events(group, stream, [{"timestamp": stamp, "message": text}])
            code = int(container.wait(timeout=None)["StatusCode"])
            container.reload()
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            log.warning("container %s is no longer watched: %s", container.name, error)
            code = 137
        described.exitCode, described.last_status = code, STOPPED
        if ((container.attrs or {}).get("State") or {}).get("OOMKilled"):
            described.reason = "OutOfMemoryError: Container killed due to memory usage"
        log.info("container %s ended with %d: %s", container.name, code, _last_words(container))
        if definition.get("essential", True):
            self.stop(run, "EssentialContainerExited", "Essential container in task exited")


def _last_words(container: Container) -> str:
    try:
        return container_log(container, 1).strip()[-200:]
    except docker.errors.DockerException:
        return ""


def _pairs(definition: dict[str, Any]) -> dict[str, str]:
    return {pair["name"]: pair["value"] for pair in definition.get("environment") or []}
