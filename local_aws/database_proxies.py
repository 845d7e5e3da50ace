"""RDS Proxies for PostgreSQL: each one is a container with a PgBouncer that lends connections for a transaction.

One thread looks, when the API has changed something and at least every second, at what a proxy depends on: its
settings, the secret, and the database behind it, which is asked with the secret's login before it counts as available.

Not like AWS: nothing is pinned, since PgBouncer does not know what a session has set; there is one address, whatever
the number of subnets; a secret is read without asking whether the role may; idle connections to the database are
closed by their age, not by MaxIdleConnectionsPercent; security groups filter nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig
from moto.rds.models import DBInstance, DBProxy, DBProxyTarget, rds_backends
from moto.secretsmanager.exceptions import SecretsManagerClientError
from moto.secretsmanager.models import secretsmanager_backends

from local_aws import images
from local_aws.databases import StartError, max_connections
from local_aws.engine import File, container_log, put_files, remove_container
from local_aws.errors import LocalAwsError
from local_aws.networks import ContainerNetwork, Networks
from local_aws.state import Settings, StateDir
from local_aws.tls import Authority

log = logging.getLogger(__name__)

LABEL = "local_aws.database_proxy"
PORT = 5432
LOOK_SECONDS = 1.0
START_SECONDS = 60.0
REGISTERING = {"State": "REGISTERING"}
AVAILABLE = {"State": "AVAILABLE"}
OFF = {"creating", "stopped", "stopping", "starting", "deleting", "rebooting", "failed"}  # states of a database


@dataclass(frozen=True)
class Login:
    """What a secret says. Empty where it cannot be read."""

    username: str = ""
    password: str = field(default="", repr=False)


@dataclass
class _Node:
    """What runs for a proxy. applied: the files that PgBouncer has; proven: the login and database that worked."""

    proxy: DBProxy
    network: ContainerNetwork
    subnet: Any
    address: str
    container: Container | None = None
    applied: dict[str, str] = field(default_factory=dict)
    proven: tuple[str, Login] | None = None


def quoted(text: str) -> str:
    """A value of PgBouncer's userlist."""
    return '"' + text.replace('"', '""') + '"'


def connections(percent: int, instance_class: str) -> int:
    """How many connections a proxy may open to a database of this class, at least one."""
    return max(percent * max_connections(instance_class) // 100, 1)


def configuration(database: str, most: int, borrow_seconds: int, idle_seconds: int) -> str:
    """pgbouncer.ini. database: where it connects to; empty for nowhere."""
    target = f"* = {database}" if database else ""
    return "\n".join(
        [
            "[databases]",
            target,
            "[pgbouncer]",
            "listen_addr = *",
            f"listen_port = {PORT}",
            "unix_socket_dir = /tmp",
            "auth_type = scram-sha-256",
            "auth_file = /etc/proxy/userlist.txt",
            "client_tls_sslmode = require",
            "client_tls_cert_file = /etc/proxy/server.crt",
            "client_tls_key_file = /etc/proxy/server.key",
            "server_tls_sslmode = require",
            "pool_mode = transaction",
            "max_client_conn = 10000",
            # over all databases together, as RDS counts; a pool that idles gives way to one that waits
            f"default_pool_size = {most}",
            f"max_user_connections = {most}",
            "min_pool_size = 0",
            f"query_wait_timeout = {borrow_seconds}",
            f"client_idle_timeout = {idle_seconds}",
            # a database that was away is tried again soon
            "server_login_retry = 1",
            "server_connect_timeout = 5",
            "log_connections = 0",
            "log_disconnections = 0",
            "",
        ]
    )


class DatabaseProxies:
    """Starts, configures and removes the containers behind moto's RDS Proxies, and knows their targets' health."""

    def __init__(
        self,
        client: DockerClient,
        state: StateDir,
        settings: Settings,
        networks: Networks,
        authority: Authority,
    ) -> None:
        self._client, self._state, self._settings, self._networks = client, state, settings, networks
        self._authority = authority
        self._nodes: dict[str, _Node] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._stale = False
        self.problems: dict[str, str] = {}
        threading.Thread(target=self._follow, name="database-proxies", daemon=True).start()

    # what the API asks for

    def create(self, proxy: DBProxy, subnet: Any, vpc: Any) -> None:
        """Start a new proxy in the background; it is `creating` until PgBouncer listens. Raises CidrOverlapError."""
        network = self._networks.for_vpc(vpc.id, vpc.cidr_block)
        node = _Node(proxy, network, subnet, subnet.get_available_subnet_ip(proxy))
        proxy.status = "creating"
        with self._lock:
            self._nodes[proxy.arn] = node
        threading.Thread(target=self._start, args=(node,), name=f"proxy-{proxy.db_proxy_name}", daemon=True).start()

    def delete(self, proxy: DBProxy) -> None:
        """Remove the container; returns when it is gone, since moto forgets the proxy at once."""
        with self._lock:
            node = self._nodes.pop(proxy.arn, None)
            if node is None:
                return
            if node.container:
                remove_container(node.container)
            node.subnet.del_subnet_ip(node.address)
            self.problems.pop(proxy.db_proxy_name, None)
        self.refresh()

    def refresh(self) -> None:
        """Something has changed that a proxy follows."""
        with self._changed:
            self._stale = True
            self._changed.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until no proxy is being created and no target registered, at most so long."""

        def moving() -> bool:
            nodes = list(self._nodes.values())
            targets = [target for node in nodes for target in _targets(node.proxy)]
            return any(n.proxy.status == "creating" for n in nodes) or any(health(t) == REGISTERING for t in targets)

        with self._changed:
            self._changed.wait_for(lambda: not moving(), timeout=seconds)

    def forget_all(self) -> None:
        for node in list(self._nodes.values()):
            self.delete(node.proxy)
        self.problems.clear()

    def summary(self) -> list[dict[str, str]]:
        return [
            {
                "id": node.proxy.db_proxy_name,
                "status": node.proxy.status,
                "endpoint": node.proxy.endpoint,
                "private_address": node.address,
                "container": self._name(node.proxy),
            }
            for node in list(self._nodes.values())
        ]

    # following

    def _follow(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stale, timeout=LOOK_SECONDS)
                self._stale = False
            for node in list(self._nodes.values()):
                try:
                    with self._lock:
                        if node.container and node.proxy.arn in self._nodes:
                            self._look_at(node, node.container)
                except Exception as error:  # one proxy must not stop the others'
                    log.exception("proxy %s", node.proxy.db_proxy_name)
                    self.problems[node.proxy.db_proxy_name] = str(error)
            with self._changed:
                self._changed.notify_all()

    def _look_at(self, node: _Node, container: Container) -> None:
        login, database = self._login(node.proxy), self._database(node.proxy)
        files = self._files(node.proxy, login, database)
        if files != node.applied:
            put_files(container, [File(path, text.encode(), 0o644) for path, text in files.items()])
            container.kill(signal="SIGHUP")
            # what is open may be too much: it is closed as it becomes free. PgBouncer trusts the user that it is
            console = ["psql", "-h", "/tmp", "-p", str(PORT), "-U", "pgbouncer", "-c", "RECONNECT", "pgbouncer"]
            container.exec_run(console, user="postgres")
            node.applied = files
        for target in _targets(node.proxy):
            target.local_health = self._health(node, container, login, database)

    def _health(self, node: _Node, container: Container, login: Login, database: DBInstance | None) -> dict[str, str]:
        """What RDS says of the database: it is asked with the secret's login until that has worked once."""
        if not login.username:
            node.proven = None
            words = "Proxy does not have any registered credentials"
            return {"State": "UNAVAILABLE", "Reason": "AUTH_FAILURE", "Description": words}
        if database is None or database.status in OFF:
            node.proven = None
            words = "Database is not available"
            return {"State": "UNAVAILABLE", "Reason": "UNREACHABLE", "Description": words}
        if node.proven == (database.arn, login):
            return AVAILABLE
        dsn = f"host={database.address} port={database.port} dbname=postgres sslmode=require connect_timeout=5"
        environment = {"PGUSER": login.username, "PGPASSWORD": login.password}
        done = container.exec_run(["psql", "-XqAtc", "SELECT 1", dsn], environment=environment, user="postgres")
        if done.exit_code == 0:
            node.proven = (database.arn, login)
            return AVAILABLE
        said = done.output.decode(errors="replace") if isinstance(done.output, bytes) else ""
        reason = "AUTH_FAILURE" if "authentication failed" in said else "CONNECTION_FAILED"
        return {"State": "UNAVAILABLE", "Reason": reason, "Description": " ".join(said.split())[-300:]}

    @staticmethod
    def _login(proxy: DBProxy) -> Login:
        backend = secretsmanager_backends[proxy.account_id][proxy.region]
        for auth in proxy.auth:
            with contextlib.suppress(SecretsManagerClientError, ValueError, KeyError):  # none there, or of another form
                text = backend.get_secret_value(auth["SecretArn"], "", "")["SecretString"]
                secret = json.loads(text)
                return Login(str(secret["username"]), str(secret["password"]))
        return Login()

    @staticmethod
    def _database(proxy: DBProxy) -> DBInstance | None:
        databases = rds_backends[proxy.account_id][proxy.region].databases
        return next((databases.get(target.rds_resource_id) for target in _targets(proxy)), None)

    @staticmethod
    def _files(proxy: DBProxy, login: Login, database: DBInstance | None) -> dict[str, str]:
        group = proxy.proxy_target_groups["default"]
        where, most = "", 1
        if database is not None:
            where = f"host={database.address} port={database.port}"
            most = connections(int(group.max_connections), str(database.db_instance_class))
        idle = int(proxy.idle_client_timeout or 1800)
        users = f"{quoted(login.username)} {quoted(login.password)}\n" if login.username else ""
        return {
            "/etc/proxy/pgbouncer.ini": configuration(where, most, int(group.borrow_timeout), idle),
            "/etc/proxy/userlist.txt": users,
        }

    # the container

    def _name(self, proxy: DBProxy) -> str:
        return f"{self._state.prefix}proxy-{proxy.region}-{proxy.db_proxy_name}"

    def _start(self, node: _Node) -> None:
        proxy = node.proxy
        try:
            bundle = Path(self._settings.ca_bundle) if self._settings.ca_bundle else None
            image = images.ensure_derived(self._client, "pooler", self._settings.host_image, bundle, log.info)
            with self._lock:
                if proxy.arn not in self._nodes:
                    return
                container = self._create(node, image)
                container.start()
                node.container = container
            self._await_pooler(container)
            proxy.status = "available"
        except (StartError, LocalAwsError, docker.errors.DockerException, requests.RequestException, OSError) as error:
            log.exception("proxy %s failed", proxy.db_proxy_name)
            self.problems[proxy.db_proxy_name] = str(error)
            proxy.status = "insufficient-resource-limits"
        self.refresh()

    def _create(self, node: _Node, image: str) -> Container:
        proxy = node.proxy
        endpoint = EndpointConfig(
            self._client.api.api_version, ipv4_address=node.address, aliases=[str(proxy.endpoint)]
        )
        container = self._client.containers.create(
            image,
            name=self._name(proxy),
            labels={**self._state.labels, LABEL: proxy.db_proxy_name},
            init=True,
            network=str(node.network.network.name),
            networking_config={str(node.network.network.name): endpoint},
        )
        certificate = self._authority.issue([str(proxy.endpoint)])
        node.applied = self._files(proxy, self._login(proxy), self._database(proxy))
        put_files(
            container,
            [
                *(File(path, text.encode(), 0o644) for path, text in node.applied.items()),
                File("/etc/proxy/server.crt", certificate.certificate + self._authority.pem, 0o644),
                File("/etc/proxy/server.key", certificate.key, 0o644),
            ],
        )
        return container

    @staticmethod
    def _await_pooler(container: Container) -> None:
        """Wait until PgBouncer listens. Raises StartError when it ends, or after START_SECONDS."""
        ready = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(PORT)]
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if container.exec_run(ready).exit_code == 0:
                return
            container.reload()
            if container.status == "exited":
                break
            time.sleep(0.1)
        raise StartError(f"PgBouncer did not come up: {container_log(container, 10)}")


def _targets(proxy: DBProxy) -> Iterator[DBProxyTarget]:
    yield from proxy.proxy_target_groups["default"].targets


def health(target: DBProxyTarget) -> dict[str, str]:
    """DescribeDBProxyTargets' word on a target."""
    return dict(getattr(target, "local_health", REGISTERING))
