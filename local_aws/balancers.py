"""Application Load Balancers: each one is a container with HAProxy that follows what moto knows of it.

One thread looks at everything a load balancer depends on, when the API has changed something or a target's health is
another one, and at least every second: an instance also stops on its own. Health is checked from this machine's
address in the VPC, not by HAProxy, so that it outlives a change of the configuration.

Not like AWS: there is one node, whatever the number of subnets; security groups filter nothing; sessions do not stick,
and targets do not start slowly.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig, LogConfig
from moto.acm.models import acm_backends
from moto.ec2.models import ec2_backends
from moto.elbv2.models import FakeHealthStatus, FakeLoadBalancer, FakeTargetGroup, elbv2_backends
from moto.elbv2.ssl_policies import SSL_POLICIES

from local_aws import images
from local_aws.corrections.elbv2_attributes import LOAD_BALANCER
from local_aws.engine import container_log, remove_container
from local_aws.errors import LocalAwsError
from local_aws.health import HEALTHY, Check, Watch
from local_aws.networks import ContainerNetwork, Networks
from local_aws.proxy import (
    CONFIGURATION,
    DIRECTORY,
    MASTER_SOCKET,
    Control,
    Listener,
    Pool,
    ProxyError,
    Rule,
    Server,
    Tls,
    forwards,
    pool_name,
    render,
)
from local_aws.state import Settings, StateDir

log = logging.getLogger(__name__)

LABEL = "local_aws.balancer"
PROVISIONING, ACTIVE, FAILED = "provisioning", "active", "failed"
LOOK_SECONDS = 1.0
START_SECONDS = 30.0
RELOAD_SECONDS = 15.0
LOG_OPTIONS = {"max-size": "10m", "max-file": "2"}


@dataclass
class _Node:
    """What runs for a load balancer. applied: the configuration that HAProxy has; None before it does."""

    balancer: FakeLoadBalancer
    account: str
    region: str
    network: ContainerNetwork
    subnet: Any
    address: str
    public_address: str | None
    directory: Path
    applied: str | None = None

    @property
    def control(self) -> Control:
        return Control(self.directory)


@dataclass
class _Draining:
    """A deregistered target that may still end its requests."""

    target: dict[str, Any]
    server: str
    until: float


@dataclass
class _Group:
    """What is known of a target group's targets beyond moto, by target id."""

    watches: dict[str, Watch] = field(default_factory=dict)
    draining: dict[str, _Draining] = field(default_factory=dict)


def server_name(address: str, port: int) -> str:
    return f"target-{address.replace('.', '-')}-{port}"


class Balancers:
    """Starts, configures and removes the containers behind moto's load balancers, and knows their targets' health."""

    def __init__(self, client: DockerClient, state: StateDir, settings: Settings, networks: Networks) -> None:
        self._client, self._state, self._settings, self._networks = client, state, settings, networks
        self._nodes: dict[str, _Node] = {}
        self._groups: dict[str, _Group] = {}
        self.lock = threading.RLock()  # held while targets are looked at, so that moto's and ours change as one
        self._changed = threading.Condition()
        self._stale = False
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="balancer")
        self._directory = state.path / "balancers"
        shutil.rmtree(self._directory, ignore_errors=True)  # of a daemon that has ended
        self.problems: dict[str, str] = {}
        threading.Thread(target=self._follow, name="balancers", daemon=True).start()

    # what the API asks for

    def prepare(self) -> None:
        """A load balancer is to be expected: have the image ready. Most accounts never need it."""
        self._pool.submit(self._image)

    def create(self, balancer: FakeLoadBalancer, account: str, region: str, network: ContainerNetwork) -> None:
        """Start a new load balancer in the background; it is `provisioning` until HAProxy answers.

        Raises LookupError when there is no address for it.
        """
        subnet = balancer.subnets[0]
        public = self._networks.addresses.allocate() if balancer.scheme == "internet-facing" else None
        address = subnet.get_available_subnet_ip(balancer)
        directory = self._directory / balancer.arn.rsplit("/", 1)[-1]
        node = _Node(balancer, account, region, network, subnet, address, public, directory)
        # no resolver knows another name, and one under amazonaws.com would lead out of this machine
        balancer.dns_name = public or address
        balancer.state = PROVISIONING
        with self.lock:
            self._nodes[balancer.arn] = node
        self._pool.submit(self._start, node)

    def delete(self, arn: str) -> None:
        """Remove a load balancer's container; returns when it is gone. One that is not known is fine."""
        with self.lock:
            node = self._nodes.pop(arn, None)
            if node is None:
                return
            if container := self._container(node):
                remove_container(container)
            node.subnet.del_subnet_ip(node.address)
            if node.public_address:
                self._networks.addresses.release(node.public_address)
            shutil.rmtree(node.directory, ignore_errors=True)
            self.problems.pop(node.balancer.name, None)
        self.refresh()

    def refresh(self) -> None:
        """Something has changed that a load balancer follows."""
        with self._changed:
            self._stale = True
            self._changed.notify_all()

    def deregister(self, group: FakeTargetGroup, targets: Iterable[dict[str, Any]]) -> None:
        """Targets that moto has just taken out of a group: no new requests; those in flight have the group's delay."""
        delay = float(group.attributes["deregistration_delay.timeout_seconds"])
        with self.lock:
            known = self._group(group)
            for target in targets:
                watch = known.watches.pop(target["Id"], None)
                if watch is None:
                    continue  # was not in use: nothing to wait for
                watch.end()
                server = server_name(watch.address, watch.port)
                known.draining[target["Id"]] = _Draining(target, server, time.monotonic() + delay)
        self.refresh()

    def registered(self, group: FakeTargetGroup, targets: Iterable[dict[str, Any]]) -> None:
        """Targets that moto has just put into a group; one that was draining is not any more."""
        with self.lock:
            for target in targets:
                self._group(group).draining.pop(target["Id"], None)
        self.refresh()

    def health(self, group: FakeTargetGroup, asked: Sequence[dict[str, Any]]) -> list[FakeHealthStatus]:
        """DescribeTargetHealth: of the targets that are asked for, or of all, with those that are draining."""
        with self.lock:
            known = self._group(group)
            targets = list(asked) or [*group.targets.values(), *(d.target for d in known.draining.values())]
            return [self._health_of(group, known, target) for target in targets]

    def settle(self, seconds: float) -> None:
        """Wait until no load balancer is being provisioned, at most so long."""

        def provisioning() -> bool:
            return any(node.balancer.state == PROVISIONING for node in list(self._nodes.values()))

        with self._changed:
            self._changed.wait_for(lambda: not provisioning(), timeout=seconds)

    def forget_all(self) -> None:
        for arn in list(self._nodes):
            self.delete(arn)
        with self.lock:
            for arn in list(self._groups):
                self._forget(arn)
            self.problems.clear()

    def summary(self) -> list[dict[str, str]]:
        return [
            {
                "name": node.balancer.name,
                "state": node.balancer.state,
                "private_address": node.address,
                "public_address": node.public_address or "",
                "container": self._name(node),
            }
            for node in list(self._nodes.values())
        ]

    # health

    def _group(self, group: FakeTargetGroup) -> _Group:
        return self._groups.setdefault(group.arn, _Group())

    def _health_of(self, group: FakeTargetGroup, known: _Group, target: dict[str, Any]) -> FakeHealthStatus:
        registered = group.targets.get(target["Id"])
        port = int((registered or target).get("Port") or group.port)
        check_port = str(self._check(group, port).port)
        if registered is None:
            if target["Id"] in known.draining:
                words = ("draining", "Target.DeregistrationInProgress", "Target deregistration is in progress")
            else:
                words = ("unused", "Target.NotRegistered", "Target is not registered to the target group")
        elif not group.load_balancer_arns:
            text = "Target group is not configured to receive traffic from the load balancer"
            words = ("unused", "Target.NotInUse", text)
        elif self._address(group, target["Id"]) is None:
            words = ("unused", "Target.InvalidState", "Target is in the stopped state")
        elif watch := known.watches.get(target["Id"]):
            finding = watch.health.finding
            words = (watch.health.state, finding.reason, finding.description)
        else:
            words = ("initial", "Elb.RegistrationInProgress", "Target registration is in progress")
        return FakeHealthStatus(target["Id"], str(port), check_port, words[0], words[1] or None, words[2] or None)

    @staticmethod
    def _check(group: FakeTargetGroup, port: int) -> Check:
        wanted = str(group.health_check_port)
        return Check(
            tls=group.health_check_protocol == "HTTPS",
            port=int(wanted) if wanted.isdigit() else port,
            path=group.health_check_path or "/",
            codes=str(group.matcher["HttpCode"]),
            interval=float(group.health_check_interval_seconds),
            timeout=float(group.health_check_timeout_seconds),
            healthy_threshold=int(group.healthy_threshold_count),
            unhealthy_threshold=int(group.unhealthy_threshold_count),
        )

    @staticmethod
    def _address(group: FakeTargetGroup, target_id: str) -> str | None:
        """Where a target is; None for an instance that does not run."""
        if group.target_type == "ip":
            return target_id
        instance = ec2_backends[group.account_id][group.region_name].get_instance_by_id(target_id)
        return str(instance.private_ip) if instance and instance.state == "running" else None

    def _look_at(self, group: FakeTargetGroup) -> None:
        """Check the targets that can be reached, and no others."""
        known = self._group(group)
        in_use = bool(group.load_balancer_arns)
        for target_id, watch in list(known.watches.items()):
            address = self._address(group, target_id) if in_use and target_id in group.targets else None
            if (address, int(group.targets[target_id]["Port"]) if address else 0) != (watch.address, watch.port):
                known.watches.pop(target_id).end()
        for target_id, target in list(group.targets.items()):
            address = self._address(group, target_id)
            if in_use and address and target_id not in known.watches:
                port = int(target["Port"])
                settings = functools.partial(self._check, group, port)
                known.watches[target_id] = Watch(address, port, settings, self.refresh)
        for target_id, draining in list(known.draining.items()):
            if draining.until <= time.monotonic():
                del known.draining[target_id]
                self._cut_off(pool_name(group.arn), draining.server)

    def _cut_off(self, pool: str, server: str) -> None:
        """End what is left of a target's requests when its delay is over."""
        for node in self._nodes.values():
            try:
                node.control.cut_off(pool, server)
            except OSError:
                log.info("load balancer %s does not answer", node.balancer.name)

    # following

    def _follow(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stale, timeout=LOOK_SECONDS)
                self._stale = False
            try:
                self._look()
            except Exception:
                log.exception("looking at the load balancers failed")

    def _look(self) -> None:
        with self.lock:
            nodes = list(self._nodes.values())
            # also where the last load balancer has just gone: its targets are not checked any more
            places = {(node.account, node.region) for node in nodes}
            places |= {(arn.split(":")[4], arn.split(":")[3]) for arn in self._groups}
            gone = set(self._groups)
            for account, region in places:
                for group in list(elbv2_backends[account][region].target_groups.values()):
                    gone.discard(group.arn)
                    if group.protocol in ("HTTP", "HTTPS"):
                        self._look_at(group)
            for arn in gone:
                self._forget(arn)
        for node in nodes:
            if node.balancer.state == ACTIVE:
                self._apply(node)

    def _forget(self, group_arn: str) -> None:
        for watch in self._groups.pop(group_arn).watches.values():
            watch.end()

    def _apply(self, node: _Node) -> None:
        with self.lock:
            if node.balancer.arn not in self._nodes:
                return
            try:
                wanted = self._configuration(node)
                if wanted == node.applied:
                    return
                node.applied = wanted  # also what HAProxy refuses: it would refuse it again
                self._write(node, wanted)
                self._reload(node)
            except (ProxyError, OSError) as error:
                log.warning("load balancer %s: %s", node.balancer.name, error)
                self.problems[node.balancer.name] = str(error)
                return
            self.problems.pop(node.balancer.name, None)

    def _reload(self, node: _Node) -> None:
        """Have a new worker take over. Raises ProxyError when none does, OSError when nobody listens."""
        before, _old = node.control.workers()
        node.control.ask("reload")
        deadline = time.monotonic() + RELOAD_SECONDS
        while time.monotonic() < deadline:
            try:
                current, _old = node.control.workers()
            except OSError:
                current = None  # the master starts itself anew
            if current not in (None, before):
                return
            time.sleep(0.02)
        container = self._container(node)
        raise ProxyError(f"HAProxy did not take its configuration: {container_log(container, 10) if container else ''}")

    @staticmethod
    def _write(node: _Node, text: str) -> None:
        temporary = node.directory / f".{CONFIGURATION}"
        temporary.write_text(text)
        temporary.replace(node.directory / CONFIGURATION)

    # the configuration

    def _configuration(self, node: _Node) -> str:
        backend = elbv2_backends[node.account][node.region]
        listeners, used = [], {}
        for listener in sorted(node.balancer.listeners.values(), key=lambda each: int(each.port)):
            rules = sorted((r for r in listener.rules.values() if not r.is_default), key=lambda r: int(r.priority))
            rules += [r for r in listener.rules.values() if r.is_default]
            tls = self._tls(node, listener) if listener.protocol == "HTTPS" else None
            plain = [Rule(rule.conditions, [action.data for action in rule.actions]) for rule in rules]
            listeners.append(Listener(int(listener.port), tls, plain))
            arns = [arn for rule in plain for action in rule.actions for arn, _weight in forwards(action)]
            used.update({arn: backend.target_groups[arn] for arn in arns})
        pools, enabled = [], set()
        for group in used.values():
            pool, chosen = self._pool_of(group)
            pools.append(pool)
            enabled |= {f"{pool.name}/{name}" for name in chosen}
        return render(listeners, pools, {**LOAD_BALANCER, **node.balancer.attrs}, frozenset(enabled))

    def _pool_of(self, group: FakeTargetGroup) -> tuple[Pool, set[str]]:
        """A target group and the names of its targets that get requests: the healthy ones, or all if none is."""
        watches = self._group(group).watches.values()
        servers = {
            server_name(w.address, w.port): Server(server_name(w.address, w.port), w.address, w.port) for w in watches
        }
        healthy = {server_name(w.address, w.port) for w in watches if w.health.state == HEALTHY}
        least = group.attributes["load_balancing.algorithm.type"] == "least_outstanding_requests"
        ordered = tuple(servers[name] for name in sorted(servers))
        return Pool(pool_name(group.arn), group.protocol == "HTTPS", least, ordered), healthy or set(servers)

    def _tls(self, node: _Node, listener: Any) -> Tls:
        policy = SSL_POLICIES.get(listener.ssl_policy)
        if policy is None:
            raise ProxyError(f"the security policy {listener.ssl_policy} is not known here")
        files = tuple(self._certificate(node, arn) for arn in listener.certificates)
        protocols = tuple({"TLSv1": "TLSv1.0"}.get(name, name) for name in policy["ssl_protocols"])
        return Tls(files, protocols, tuple(policy["ciphers"]))

    @staticmethod
    def _certificate(node: _Node, arn: str) -> str:
        """The file with a certificate, its chain and its key; another certificate is another file."""
        if ":acm:" not in arn:
            raise ProxyError(f"{arn} is not a certificate of ACM: no other is presented here")
        bundle = acm_backends[node.account][node.region].get_certificate(arn)
        chain = b"" if bundle.chain.strip() == bundle.cert.strip() else bundle.chain
        content = b"\n".join((bundle.cert.strip(), chain.strip(), bundle.key.strip(), b""))
        name = f"{hashlib.sha256(content).hexdigest()[:16]}.pem"
        path = node.directory / name
        if not path.exists():
            path.touch(0o600)
            path.write_bytes(content)
        return name

    # the container

    def _name(self, node: _Node) -> str:
        return f"{self._state.prefix}lb-{node.region}-{node.balancer.name}"

    def _container(self, node: _Node) -> Container | None:
        try:
            return self._client.containers.get(self._name(node))
        except docker.errors.NotFound:
            return None

    def _start(self, node: _Node) -> None:
        try:
            image = self._image()
            with self.lock:
                if node.balancer.arn not in self._nodes:
                    return
                node.directory.mkdir(parents=True, exist_ok=True)
                node.applied = self._configuration(node)
                self._write(node, node.applied)
                container = self._create(node, image)
                container.start()
            self._await_master(node, container)
            node.balancer.state = ACTIVE
        except (ProxyError, LocalAwsError, docker.errors.DockerException, requests.RequestException, OSError) as error:
            log.exception("load balancer %s failed", node.balancer.name)
            self.problems[node.balancer.name] = str(error)
            node.balancer.state = FAILED
        self.refresh()

    def _image(self) -> str:
        """The image's tag; it is built when it is missing. Raises LocalAwsError."""
        bundle = Path(self._settings.ca_bundle) if self._settings.ca_bundle else None
        return images.ensure_derived(self._client, "balancer", self._settings.host_image, bundle, log.info)

    def _create(self, node: _Node, image: str) -> Container:
        endpoint = EndpointConfig(self._client.api.api_version, ipv4_address=node.address)
        # the socket belongs to whom the local AWS runs as, who need not be root
        master = f"{DIRECTORY}/{MASTER_SOCKET},mode,600,uid,{os.getuid()}"
        container = self._client.containers.create(
            image,
            ["haproxy", "-W", "-db", "-S", master, "-f", f"{DIRECTORY}/{CONFIGURATION}"],
            name=self._name(node),
            labels={**self._state.labels, LABEL: node.balancer.name},
            volumes={str(node.directory): {"bind": DIRECTORY, "mode": "rw"}},
            log_config=LogConfig(type=LogConfig.types.JSON, config=LOG_OPTIONS),
            network=str(node.network.network.name),
            networking_config={str(node.network.network.name): endpoint},
        )
        if node.public_address and self._networks.public:
            self._networks.public.network.connect(container, ipv4_address=node.public_address)
        return container

    def _await_master(self, node: _Node, container: Container) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                if node.control.workers()[0]:
                    return
            except OSError:
                container.reload()
                if container.status == "exited":
                    raise ProxyError(f"its container ended: {container_log(container, 10)}") from None
            time.sleep(0.05)
        raise ProxyError(f"HAProxy did not answer within {START_SECONDS:.0f} s: {container_log(container, 10)}")
