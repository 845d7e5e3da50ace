"""EC2 instances: each one is a systemd container whose life follows the API, and the API's state follows it."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig
from moto.ec2.models.instances import Instance, InstanceState, StateReason

from local_aws.engine import File, container_log, put_files, remove_container
from local_aws.networks import ContainerNetwork, Networks
from local_aws.state import INTERNAL_NAME, Settings, StateDir

log = logging.getLogger(__name__)

PENDING, RUNNING = ("pending", 0), ("running", 16)
SHUTTING_DOWN, TERMINATED = ("shutting-down", 32), ("terminated", 48)
STOPPING, STOPPED = ("stopping", 64), ("stopped", 80)
TRANSIENT = {PENDING[0], SHUTTING_DOWN[0], STOPPING[0]}

LABEL = "local_aws.instance"
LOGIN = "ubuntu"
LOGIN_ID = 1000  # of that user, in Ubuntu's images and in ours
BOOT_SECONDS = 120.0
STOP_SECONDS = 30
SYSTEMD_SHUTDOWN = "SIGRTMIN+3"
REBOOTED = 128 + 1  # exit status of a container whose init asked the kernel for a reboot (it dies of SIGHUP)


class BootError(Exception):
    """An instance did not come up; the text says why."""


def set_state(instance: Instance, state: tuple[str, int]) -> None:
    instance._state = InstanceState(*state)


def public_interface(instance: Instance) -> Any:
    """The network interface that public addresses belong to; None after termination."""
    return instance.nics.get(0)


def console_text(raw: str) -> str:
    """What a serial console shows: no terminal control sequences, one line ending."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]", "", raw)
    return text.replace("\r\n", "\n").replace("\r", "\n")


class Instances:
    """Boots, stops and removes the containers behind moto's instances."""

    def __init__(self, client: DockerClient, state: StateDir, settings: Settings, networks: Networks) -> None:
        self._client, self._state, self._settings, self._networks = client, state, settings, networks
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="instance")
        self._known: dict[str, Instance] = {}
        self._unseen: set[str] = set()
        self._expected_deaths: set[str] = set()
        self.problems: dict[str, str] = {}
        threading.Thread(target=self._watch, name="instance-events", daemon=True).start()

    # what the API asks for

    def launch(self, instance: Instance, authorized_key: str | None, network: ContainerNetwork) -> None:
        """Boot a new instance in the background; it is `pending` until its SSH server answers."""
        self._known[instance.id] = instance
        self._unseen.add(instance.id)
        set_state(instance, PENDING)
        self._submit(instance, lambda: self._boot(instance, authorized_key, network))

    def stop(self, instance: Instance) -> None:
        set_state(instance, STOPPING)
        self._submit(instance, lambda: self._halt(instance))

    def start(self, instance: Instance) -> None:
        set_state(instance, PENDING)
        self._submit(instance, lambda: self._resume(instance))

    def reboot(self, instance: Instance) -> None:
        self._submit(instance, lambda: self._restart(instance))

    def terminate(self, instance: Instance) -> None:
        set_state(instance, SHUTTING_DOWN)
        self._submit(instance, lambda: self._destroy(instance))

    def sync_public_address(self, instance: Instance) -> None:
        """Give the instance's container the public address that moto says it has, or take it away."""
        with self._locks[instance.id]:
            container = self._container(instance)
            if container is not None:
                self._attach_public(instance, container)

    def console(self, instance: Instance) -> str:
        """The last lines that the instance wrote to its console."""
        container = self._container(instance)
        return console_text(container_log(container)) if container else ""

    def seen(self, instance_ids: Iterable[str]) -> list[str]:
        """Those that were looked at before: a first look at a new instance asks whether it exists, not for more."""
        wanted = list(instance_ids)
        found = [i for i in wanted if i not in self._unseen]
        self._unseen.difference_update(wanted)
        return found

    def settle(self, instance_ids: Iterable[str], seconds: float) -> None:
        """Wait until none of the instances is in a transient state, at most so long."""
        wanted = [self._known[i] for i in instance_ids if i in self._known]
        with self._changed:
            self._changed.wait_for(lambda: not any(i.state in TRANSIENT for i in wanted), timeout=seconds)

    def settle_all(self, seconds: float) -> None:
        self.settle(list(self._known), seconds)

    def forget_all(self) -> None:
        """Terminate every instance and wait until its container is gone."""
        for instance in list(self._known.values()):
            if instance.state not in (SHUTTING_DOWN[0], TERMINATED[0]):
                self.terminate(instance)
        self.settle_all(STOP_SECONDS)
        self._known.clear()
        self._unseen.clear()
        self.problems.clear()

    def find(self, network: ContainerNetwork, address: str) -> Instance | None:
        """The living instance of a VPC network that has this private address."""
        return next(
            (
                i
                for i in list(self._known.values())
                if i.state in (PENDING[0], RUNNING[0], STOPPING[0])
                and i.private_ip == address
                and i.vpc_id == network.vpc_id
            ),
            None,
        )

    def summary(self) -> list[dict[str, str]]:
        return [
            {
                "id": i.id,
                "state": i.state,
                "private_address": i.private_ip or "",
                "public_address": i.public_ip or "",
                "container": self._name(i),
            }
            for i in list(self._known.values())
            if i.state != TERMINATED[0]
        ]

    # the work, in background threads

    def _submit(self, instance: Instance, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except (BootError, docker.errors.DockerException, requests.RequestException, OSError) as error:
                log.exception("instance %s failed", instance.id)
                self._fail(instance, str(error))
            finally:
                with self._changed:
                    self._changed.notify_all()

        self._pool.submit(guarded)

    def _fail(self, instance: Instance, reason: str) -> None:
        """What EC2 does with an instance that cannot start: it terminates it and says why."""
        self.problems[instance.id] = reason
        with self._locks[instance.id], contextlib.suppress(docker.errors.DockerException):
            self._expected_deaths.add(instance.id)
            container = self._container(instance)
            if container:
                remove_container(container)
        set_state(instance, TERMINATED)
        instance.state_reason = StateReason(f"Server.InternalError: {reason}", "Server.InternalError")

    def _name(self, instance: Instance) -> str:
        return f"{self._state.prefix}{instance.id}"

    def _container(self, instance: Instance) -> Container | None:
        try:
            return self._client.containers.get(self._name(instance))
        except docker.errors.NotFound:
            return None

    def _boot(self, instance: Instance, authorized_key: str | None, network: ContainerNetwork) -> None:
        with self._locks[instance.id]:
            if instance.state != PENDING[0]:
                return
            container = self._create(instance, network)
            put_files(container, self._files(authorized_key))
            self._attach_public(instance, container)
            container.start()
        self._await_login(instance)
        self._check_gateway(instance, network)
        self._become(instance, PENDING, RUNNING)

    def _create(self, instance: Instance, network: ContainerNetwork) -> Container:
        private_address = str(instance.private_ip)
        host_name = "ip-" + private_address.replace(".", "-")
        endpoint = EndpointConfig(
            self._client.api.api_version, ipv4_address=private_address, aliases=[host_name, instance.private_dns_name]
        )
        return self._client.containers.create(
            self._settings.host_image,
            name=self._name(instance),
            hostname=host_name,
            labels={**self._state.labels, LABEL: instance.id},
            tty=True,  # systemd then has a console, which GetConsoleOutput shows
            environment={"container": "docker"},
            stop_signal=SYSTEMD_SHUTDOWN,
            # SYS_ADMIN: systemd mounts its own cgroups; NET_ADMIN: firewall, metadata address; SYS_BOOT: reboot
            cap_add=["SYS_ADMIN", "NET_ADMIN", "SYS_BOOT"],
            security_opt=["seccomp=unconfined", "apparmor=unconfined"],
            cgroupns="private",
            tmpfs={"/run": "", "/run/lock": ""},
            extra_hosts={INTERNAL_NAME: network.gateway},
            network=str(network.network.name),
            networking_config={str(network.network.name): endpoint},
        )

    def _files(self, authorized_key: str | None) -> list[File]:
        target = f"{INTERNAL_NAME}:{self._settings.metadata_port}"
        files = [File("/etc/local-aws/metadata.env", f"METADATA={target}\n".encode())]
        if authorized_key:
            home = f"/home/{LOGIN}/.ssh"
            files += [
                File(home, b"", 0o700, LOGIN_ID, LOGIN_ID, is_directory=True),
                File(f"{home}/authorized_keys", authorized_key.strip().encode() + b"\n", 0o600, LOGIN_ID, LOGIN_ID),
            ]
        return files

    def _attach_public(self, instance: Instance, container: Container) -> None:
        public = self._networks.public
        if public is None:
            return
        container.reload()
        attached = container.attrs["NetworkSettings"]["Networks"].get(str(public.network.name))
        current = ((attached or {}).get("IPAMConfig") or {}).get("IPv4Address")
        interface = public_interface(instance)
        wanted = interface.public_ip if interface else None
        if current == wanted:
            return
        if current:
            public.network.disconnect(container, force=True)
        if wanted:
            public.network.connect(container, ipv4_address=wanted)

    def _await_login(self, instance: Instance) -> None:
        """Wait for the SSH server's greeting. Raises BootError when the container ends, or after BOOT_SECONDS."""
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            if instance.state in (SHUTTING_DOWN[0], TERMINATED[0]):
                return
            try:
                with socket.create_connection((str(instance.private_ip), 22), timeout=2) as connection:
                    connection.settimeout(5)
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                pass
            container = self._container(instance)
            if container is None or container.status in ("exited", "dead"):
                raise BootError(f"its container ended while booting: {self.console(instance)[-500:]}")
            time.sleep(0.1)
        raise BootError(f"its SSH server did not answer within {BOOT_SECONDS:.0f} s: {self.console(instance)[-500:]}")

    def _check_gateway(self, instance: Instance, network: ContainerNetwork) -> None:
        """Raises BootError when the instance cannot reach the API: only a firewall of this machine does that."""
        container = self._container(instance)
        if container is None or instance.state != PENDING[0]:
            return
        probe = f"exec 3<>/dev/tcp/{INTERNAL_NAME}/{self._settings.port}"
        code, _output = container.exec_run(["timeout", "5", "bash", "-c", probe])
        if code != 0:
            raise BootError(
                f"it cannot reach the API at {network.gateway} port {self._settings.port}: a firewall of this machine "
                f"drops what comes from containers; allow it with: iptables -I INPUT -i {network.bridge} -j ACCEPT"
            )

    def _become(self, instance: Instance, before: tuple[str, int], after: tuple[str, int]) -> None:
        with self._locks[instance.id]:
            if instance.state == before[0]:
                set_state(instance, after)

    def _halt(self, instance: Instance) -> None:
        with self._locks[instance.id]:
            if instance.state != STOPPING[0]:
                return
            container = self._container(instance)
            if container:
                self._expected_deaths.add(instance.id)
                container.stop(timeout=STOP_SECONDS)
                self._attach_public(instance, container)
            self._become(instance, STOPPING, STOPPED)

    def _resume(self, instance: Instance) -> None:
        with self._locks[instance.id]:
            container = self._container(instance)
            if container is None or instance.state != PENDING[0]:
                return
            self._attach_public(instance, container)
            self._expected_deaths.discard(instance.id)
            container.start()
        self._await_login(instance)
        self._become(instance, PENDING, RUNNING)

    def _restart(self, instance: Instance) -> None:
        with self._locks[instance.id]:
            container = self._container(instance)
            if container and instance.state == RUNNING[0]:
                self._expected_deaths.add(instance.id)
                container.restart(timeout=STOP_SECONDS)
                self._expected_deaths.discard(instance.id)

    def _destroy(self, instance: Instance) -> None:
        with self._locks[instance.id]:
            self._expected_deaths.add(instance.id)
            container = self._container(instance)
            if container:
                remove_container(container)
            set_state(instance, TERMINATED)

    # the containers' own deaths

    def _watch(self) -> None:
        """Follow the engine's events for ever; after a lost connection, look at every container once."""
        label = f"local_aws.state={self._state.path}"
        while True:
            try:
                events = self._client.api.events(filters={"type": "container", "event": "die", "label": [label, LABEL]})
                self._compare()
                for line in events:
                    attributes = json.loads(line)["Actor"]["Attributes"]
                    self._died(attributes.get(LABEL, ""), int(attributes.get("exitCode", 0)))
            except (docker.errors.DockerException, requests.RequestException, ValueError, OSError) as error:
                log.warning("the engine's events were interrupted: %s", error)
            time.sleep(1)

    def _compare(self) -> None:
        for instance in list(self._known.values()):
            container = self._container(instance)
            if instance.state == RUNNING[0] and (container is None or container.status == "exited"):
                code = container.attrs["State"]["ExitCode"] if container else 0
                self._died(instance.id, int(code))

    def _died(self, instance_id: str, exit_code: int) -> None:
        instance = self._known.get(instance_id)
        if instance is None or instance_id in self._expected_deaths or instance.state != RUNNING[0]:
            return
        if exit_code == REBOOTED:
            self._submit(instance, lambda: self._start_again(instance))
            return
        code = "Client.InstanceInitiatedShutdown"
        reason = StateReason(f"{code}: Instance initiated shutdown", code)
        if instance.instance_initiated_shutdown_behavior == "terminate":
            instance.terminate()
        else:
            for interface in instance.nics.values():
                interface.stop()
            set_state(instance, STOPPED)
        instance.state_reason = reason

    def _start_again(self, instance: Instance) -> None:
        """The second half of a reboot from inside; like EC2, the instance stays `running` meanwhile."""
        with self._locks[instance.id]:
            container = self._container(instance)
            if container and instance.state == RUNNING[0]:
                container.start()
