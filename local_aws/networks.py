"""Docker networks: one per VPC with the VPC's own CIDR, and one that supplies public addresses."""

from __future__ import annotations

import hashlib
import ipaddress
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker.errors
from docker import DockerClient
from docker.models.networks import Network
from docker.types import IPAMConfig, IPAMPool

from local_aws.errors import LocalAwsError
from local_aws.state import StateDir

PUBLIC_CANDIDATES = ("10.254.0.0/16", "172.29.0.0/16", "192.168.192.0/18")
PUBLIC_PREFIX = 24
ROUTES = Path("/proc/net/route")
BRIDGE_PREFIX = "laws-"  # every bridge of ours; what a firewall rule can name


class CidrOverlapError(Exception):
    """A VPC's CIDR is in use on this machine; the text names both sides."""


@dataclass(frozen=True)
class ContainerNetwork:
    """A Docker network of ours.

    vpc_id: the VPC that it carries, or None for the network of public addresses.
    gateway: this machine's address in it, on which the API listens.
    """

    network: Network
    cidr: ipaddress.IPv4Network
    gateway: str
    bridge: str
    vpc_id: str | None


def used_ranges(client: DockerClient) -> list[tuple[ipaddress.IPv4Network, str]]:
    """Address ranges in use on this machine, each with words that say by what: Docker's networks, then routes."""
    found: list[tuple[ipaddress.IPv4Network, str]] = []
    for network in client.networks.list():
        attributes = network.attrs or {}
        for pool in (attributes.get("IPAM") or {}).get("Config") or []:
            subnet = pool.get("Subnet", "")
            if "." in subnet:
                found.append((ipaddress.IPv4Network(subnet, strict=False), f"the Docker network {network.name}"))
    try:
        lines = ROUTES.read_text().splitlines()[1:]
    except OSError:
        lines = []
    for line in lines:
        interface, destination, _gateway, _flags, _ref, _use, _metric, mask = line.split()[:8]
        if mask == "00000000":
            continue
        address, netmask = (socket.inet_ntoa(struct.pack("<L", int(value, 16))) for value in (destination, mask))
        found.append((ipaddress.IPv4Network(f"{address}/{netmask}"), f"a route through {interface}"))
    return found


def overlap(cidr: ipaddress.IPv4Network, used: list[tuple[ipaddress.IPv4Network, str]]) -> str | None:
    """Words for the first range that a CIDR overlaps with, or None."""
    return next((f"{other} ({owner})" for other, owner in used if cidr.overlaps(other)), None)


class AddressPool:
    """Hands out the addresses of a network, each one at most once at a time, oldest released last."""

    def __init__(self, cidr: ipaddress.IPv4Network, reserved: set[str]) -> None:
        self._lock = threading.Lock()
        self._free = [str(host) for host in cidr.hosts() if str(host) not in reserved]
        self._all = tuple(self._free)

    def allocate(self) -> str:
        """The next free address. Raises LookupError when there is none."""
        with self._lock:
            if not self._free:
                raise LookupError("no public address is left")
            return self._free.pop(0)

    def release(self, address: str) -> None:
        with self._lock:
            if address in self._all and address not in self._free:
                self._free.append(address)

    def release_all(self) -> None:
        with self._lock:
            self._free = list(self._all)

    def __contains__(self, address: object) -> bool:
        return address in self._all


class Networks:
    """All Docker networks of one account.

    on_open, on_close: called with a network's gateway address after it came into being and before it goes.
    """

    def __init__(
        self,
        client: DockerClient,
        state: StateDir,
        on_open: Callable[[str], None],
        on_close: Callable[[str], None],
    ) -> None:
        self._client, self._state = client, state
        self._on_open, self._on_close = on_open, on_close
        self._lock = threading.Lock()
        self._vpcs: dict[str, ContainerNetwork] = {}
        self.public: ContainerNetwork | None = None
        self.addresses = AddressPool(ipaddress.IPv4Network("127.0.0.0/31"), {"127.0.0.0", "127.0.0.1"})

    def open_public(self) -> ContainerNetwork:
        """Create the network of public addresses in the first free range. Raises LocalAwsError when none is."""
        used = used_ranges(self._client)
        for candidate in self._candidates():
            if overlap(candidate, used):
                continue
            try:
                self.public = self._create("public", candidate, None)
            except docker.errors.APIError as error:
                if "overlap" in str(error).lower():  # another program was faster
                    continue
                raise LocalAwsError(f"Docker cannot create a network: {error.explanation}") from error
            self.addresses = AddressPool(candidate, {self.public.gateway})
            return self.public
        raise LocalAwsError(
            f"No free address range for public addresses in {', '.join(PUBLIC_CANDIDATES)}: "
            "remove unused networks (docker network prune)."
        )

    @staticmethod
    def _candidates() -> Iterator[ipaddress.IPv4Network]:
        for block in PUBLIC_CANDIDATES:
            yield from ipaddress.IPv4Network(block).subnets(new_prefix=PUBLIC_PREFIX)

    def for_vpc(self, vpc_id: str, cidr: str) -> ContainerNetwork:
        """The network that carries a VPC, created at first use. Raises CidrOverlapError."""
        with self._lock:
            if vpc_id in self._vpcs:
                return self._vpcs[vpc_id]
            block = ipaddress.IPv4Network(cidr)
            clash = overlap(block, used_ranges(self._client))
            if clash:
                raise CidrOverlapError(
                    f"The CIDR {cidr} of {vpc_id} overlaps with {clash} on this machine: "
                    "choose another CIDR for the VPC, or remove what uses it."
                )
            try:
                made = self._create(vpc_id, block, vpc_id)
            except docker.errors.APIError as error:
                if "overlap" in str(error).lower():
                    raise CidrOverlapError(
                        f"The CIDR {cidr} of {vpc_id} overlaps with a range in use on this machine "
                        f"({error.explanation}): choose another CIDR for the VPC."
                    ) from error
                raise
            self._vpcs[vpc_id] = made
            return made

    def find(self, gateway: str) -> ContainerNetwork | None:
        """The VPC network whose gateway has this address."""
        return next((network for network in self._vpcs.values() if network.gateway == gateway), None)

    def drop_vpc(self, vpc_id: str) -> None:
        """Remove a VPC's network; one that never came into being is fine."""
        with self._lock:
            network = self._vpcs.pop(vpc_id, None)
            if network:
                self._remove(network)

    def drop_vpcs(self) -> None:
        for vpc_id in list(self._vpcs):
            self.drop_vpc(vpc_id)

    def names(self) -> list[dict[str, str]]:
        """Every network, for `status`."""
        networks = ([self.public] if self.public else []) + list(self._vpcs.values())
        return [
            {"name": str(n.network.name), "cidr": str(n.cidr), "gateway": n.gateway, "vpc": n.vpc_id or ""}
            for n in networks
        ]

    def _create(self, name: str, cidr: ipaddress.IPv4Network, vpc_id: str | None) -> ContainerNetwork:
        # AWS keeps a VPC's base address plus one for its router, so moto never gives it to an instance
        gateway = str(cidr.network_address + 1)
        bridge = BRIDGE_PREFIX + hashlib.sha256(f"{self._state.path}{name}".encode()).hexdigest()[:8]
        network = self._client.networks.create(
            self._state.prefix + name,
            driver="bridge",
            ipam=IPAMConfig(pool_configs=[IPAMPool(subnet=str(cidr), gateway=gateway)]),
            options={"com.docker.network.bridge.name": bridge},
            labels=self._state.labels,
        )
        made = ContainerNetwork(network, cidr, gateway, bridge, vpc_id)
        try:
            self._on_open(gateway)
        except OSError as error:
            network.remove()
            raise LocalAwsError(
                f"The address {gateway} of a Docker network cannot be listened on ({error}): the local AWS needs a "
                "Docker engine that runs on this machine itself, not in a virtual machine and not rootless."
            ) from error
        return made

    def _remove(self, network: ContainerNetwork) -> None:
        self._on_close(network.gateway)
        try:
            network.network.remove()
        except docker.errors.NotFound:
            return
