"""RDS instances: each one is a container with a PostgreSQL that speaks TLS.

Whatever version is asked for, the server is the one of the base image (15 on Debian 12, 16 on Ubuntu 24.04).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import logging
import secrets
import socket
import stringprep
import threading
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import docker.errors
import requests
from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig
from moto.ec2.models import ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPES
from moto.rds.models import DBInstance

from local_aws.engine import File, container_log, put_files, remove_container
from local_aws.networks import ContainerNetwork, Networks
from local_aws.state import INTERNAL_NAME, Settings, StateDir
from local_aws.tls import Authority

log = logging.getLogger(__name__)

LABEL = "local_aws.database"
TRANSIENT = {"creating", "stopping", "starting", "deleting", "rebooting", "modifying"}
START_SECONDS = 90.0
STOP_SECONDS = 30
# "Failover times are typically 60-120 seconds" (RDS User Guide, "Failing over a Multi-AZ DB instance")
FAILOVER_SECONDS = 60.0
SCRAM_ITERATIONS = 4096
SSL_REQUEST = bytes.fromhex("0000000804d2162f")
FORCED_SINCE = 15  # RDS forces TLS by default from this major version on


class StartError(Exception):
    """A database did not come up; the text says why."""


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """What PostgreSQL stores for a password (RFC 5803), so that the password itself reaches no container."""
    salt = salt or secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", _saslprep(password).encode(), salt, SCRAM_ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    parts = [base64.b64encode(value).decode() for value in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{parts[0]}${parts[1]}:{parts[2]}"


def _saslprep(password: str) -> str:
    """SASLprep's mapping and normalisation (RFC 4013); like PostgreSQL, what it prohibits is taken as it is."""
    mapped = "".join(
        " " if stringprep.in_table_c12(character) else character
        for character in password
        if not stringprep.in_table_b1(character)
    )
    normal = unicodedata.ucd_3_2_0.normalize("NFKC", mapped)
    prohibited = (
        stringprep.in_table_a1,
        stringprep.in_table_c12,
        stringprep.in_table_c21_c22,
        stringprep.in_table_c3,
        stringprep.in_table_c4,
        stringprep.in_table_c5,
        stringprep.in_table_c6,
        stringprep.in_table_c7,
        stringprep.in_table_c8,
        stringprep.in_table_c9,
    )
    return password if any(test(character) for test in prohibited for character in normal) else normal


def identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def setup_statements(user: str, verifier: str, database: str | None) -> str:
    """SQL for a new cluster: a master user with the rights of RDS's, which is no superuser.

    Source: https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/Appendix.PostgreSQL.CommonDBATasks.Roles.html
    """
    statements = [
        "CREATE ROLE rds_superuser NOLOGIN",
        "GRANT pg_monitor, pg_signal_backend TO rds_superuser WITH ADMIN OPTION",
        f"CREATE ROLE {identifier(user)} LOGIN CREATEDB CREATEROLE PASSWORD {literal(verifier)} IN ROLE rds_superuser",
        f"ALTER DATABASE postgres OWNER TO {identifier(user)}",
    ]
    if database and database != "postgres":
        statements.append(f"CREATE DATABASE {identifier(database)} OWNER {identifier(user)}")
    return "".join(f"{statement};\n\n" for statement in statements)


def access_rules(force_tls: bool) -> str:
    """pg_hba.conf: passwords from anywhere, over TLS only when it is forced; RDS's own superuser from inside only."""
    kind = "hostssl" if force_tls else "host"
    return f"local all all peer map=rds\nhost all rdsadmin all reject\n{kind} all all all scram-sha-256\n"


def max_connections(instance_class: str) -> int:
    """RDS's default: LEAST({DBInstanceClassMemory/9531392}, 5000), of the memory that the system leaves.

    How much that is AWS does not say; 300 MiB is taken off. Source:
    https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html#RDS_Limits.MaxConnections
    """
    known = INSTANCE_TYPES.get(instance_class.removeprefix("db."))
    memory = int(known["MemoryInfo"]["SizeInMiB"]) if known else 1024
    return min((memory - 300) * 2**20 // 9531392, 5000)


def server_settings(port: int, connections: int) -> str:
    return "\n".join(
        [
            "data_directory = '/var/lib/rds/data'",
            "hba_file = '/etc/rds/pg_hba.conf'",
            "ident_file = '/etc/rds/pg_ident.conf'",
            "listen_addresses = '*'",
            f"port = {port}",
            "unix_socket_directories = '/var/run/postgresql'",
            "password_encryption = 'scram-sha-256'",
            "ssl = on",
            "ssl_cert_file = '/etc/rds/server.crt'",
            "ssl_key_file = '/etc/rds/server.key'",
            f"max_connections = {connections}",
            "timezone = 'UTC'",
            "",
        ]
    )


def forces_tls(database: DBInstance) -> bool:
    """rds.force_ssl of the database's parameter group, or RDS's default for its version."""
    for group in database.db_parameter_groups():
        value = (group.parameters.get("rds.force_ssl") or {}).get("ParameterValue")
        if value is not None:
            return str(value) == "1"
    return int(str(database.engine_version).split(".")[0]) >= FORCED_SINCE


class Databases:
    """Starts, stops, changes and removes the containers behind moto's database instances."""

    def __init__(
        self, client: DockerClient, state: StateDir, settings: Settings, networks: Networks, authority: Authority
    ) -> None:
        self._client, self._state, self._settings, self._networks = client, state, settings, networks
        self._authority = authority
        self._locks: defaultdict[str, threading.RLock] = defaultdict(threading.RLock)
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="database")
        self._known: dict[str, DBInstance] = {}
        self._addresses: dict[str, tuple[Any, str]] = {}
        self.problems: dict[str, str] = {}

    # what the API asks for

    def network_of(self, database: DBInstance) -> ContainerNetwork:
        """The network of the VPC that a database belongs to. Raises CidrOverlapError."""
        backend = ec2_backends[database.account_id][database.region]
        vpc = backend.get_vpc(self._subnet(database).vpc_id)
        return self._networks.for_vpc(vpc.id, vpc.cidr_block)

    def create(self, database: DBInstance, password: str, network: ContainerNetwork) -> None:
        """Start a new database in the background; it is `creating` until it accepts connections over TLS."""
        self._known[database.arn] = database
        subnet = self._subnet(database)
        address = subnet.get_available_subnet_ip(database)
        self._addresses[database.arn] = (subnet, address)
        database.status = "creating"
        verifier = scram_verifier(password)
        self._submit(database, lambda: self._start_new(database, verifier, network, address))

    def change_password(self, database: DBInstance, password: str) -> None:
        verifier = literal(scram_verifier(password))
        statement = f"ALTER ROLE {identifier(str(database.master_username))} PASSWORD {verifier}"
        database.status = "modifying"
        self._submit(database, lambda: self._change(database, statement))

    def apply_parameters(self, database: DBInstance) -> None:
        """Make a running server follow its parameter group; rds.force_ssl is dynamic in RDS too."""
        self._submit(database, lambda: self._reload(database))

    def stop(self, database: DBInstance) -> None:
        database.status = "stopping"
        self._submit(database, lambda: self._stop(database))

    def start(self, database: DBInstance) -> None:
        database.status = "starting"
        self._submit(database, lambda: self._start(database))

    def reboot(self, database: DBInstance) -> None:
        database.status = "rebooting"
        self._submit(database, lambda: self._reboot(database))

    def fail_over(self, database: DBInstance) -> None:
        """Let the instance die as if its zone had gone; the standby, which has all that was committed, takes over."""
        database.status = "rebooting"
        self._submit(database, lambda: self._fail_over(database))

    def delete(self, database: DBInstance) -> None:
        """Remove the container; returns when it is gone, since moto forgets the database at once."""
        with self._locks[database.arn]:
            container = self._container(database)
            if container:
                remove_container(container)
        self._known.pop(database.arn, None)
        subnet, address = self._addresses.pop(database.arn, (None, ""))
        if subnet is not None:
            subnet.del_subnet_ip(address)

    def settle(self, seconds: float) -> None:
        """Wait until no database is in a transient state, at most so long."""
        with self._changed:
            self._changed.wait_for(
                lambda: not any(d.status in TRANSIENT for d in list(self._known.values())), timeout=seconds
            )

    def forget_all(self) -> None:
        for database in list(self._known.values()):
            self.delete(database)
        self.problems.clear()

    def known(self) -> list[DBInstance]:
        return list(self._known.values())

    def summary(self) -> list[dict[str, str]]:
        return [
            {
                "id": d.db_instance_identifier,
                "status": d.status,
                "endpoint": f"{d.address}:{d.port}",
                "private_address": self._addresses.get(d.arn, (None, ""))[1],
                "container": self._name(d),
            }
            for d in self.known()
        ]

    # the work, in background threads

    def _submit(self, database: DBInstance, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                with self._locks[database.arn]:
                    if database.arn in self._known:
                        work()
            except (StartError, docker.errors.DockerException, requests.RequestException, OSError) as error:
                log.exception("database %s failed", database.db_instance_identifier)
                self.problems[database.db_instance_identifier] = str(error)
                database.status = "failed"
            finally:
                with self._changed:
                    self._changed.notify_all()

        self._pool.submit(guarded)

    def _subnet(self, database: DBInstance) -> Any:
        group = getattr(database, "db_subnet_group", None)
        if group is not None:
            return group._subnets[0]
        backend = ec2_backends[database.account_id][database.region]
        return next(iter(backend.get_default_subnets().values()))

    def _name(self, database: DBInstance) -> str:
        return f"{self._state.prefix}db-{database.region}-{database.db_instance_identifier}"

    def _container(self, database: DBInstance) -> Container | None:
        try:
            return self._client.containers.get(self._name(database))
        except docker.errors.NotFound:
            return None

    def _start_new(self, database: DBInstance, verifier: str, network: ContainerNetwork, address: str) -> None:
        endpoint = EndpointConfig(self._client.api.api_version, ipv4_address=address, aliases=[database.address])
        container = self._client.containers.create(
            self._settings.database_image,
            name=self._name(database),
            hostname=database.db_instance_identifier[:63],
            labels={**self._state.labels, LABEL: database.db_instance_identifier},
            init=True,
            extra_hosts={INTERNAL_NAME: network.gateway},
            network=str(network.network.name),
            networking_config={str(network.network.name): endpoint},
        )
        certificate = self._authority.issue([database.address])
        settings = server_settings(int(database.port or 5432), max_connections(str(database.db_instance_class)))
        setup = setup_statements(str(database.master_username), verifier, database.db_name)
        put_files(
            container,
            [
                File("/etc/rds/postgresql.conf", settings.encode(), 0o600),
                File("/etc/rds/pg_hba.conf", access_rules(forces_tls(database)).encode(), 0o600),
                File("/etc/rds/pg_ident.conf", b"rds postgres rdsadmin\nrds root rdsadmin\n", 0o600),
                File("/etc/rds/server.crt", certificate.certificate + self._authority.pem, 0o600),
                File("/etc/rds/server.key", certificate.key, 0o600),
                File("/etc/rds/setup.sql", setup.encode(), 0o600),
            ],
        )
        container.start()
        self._await_tls(database, container)
        self._query(
            database,
            # a division by zero tells that the set-up statements did not do their work
            "SELECT 1/count(*) FROM pg_database d, pg_roles r WHERE r.rolcanlogin"
            f" AND r.rolname = {literal(str(database.master_username))}"
            f" AND d.datname = {literal(database.db_name or 'postgres')}",
        )
        database.status = "available"

    def _await_tls(self, database: DBInstance, container: Container) -> None:
        """Wait until the server offers TLS and takes logins. Raises StartError when it ends, or after START_SECONDS."""
        target = (self._addresses[database.arn][1], int(database.port or 5432))
        ready = ["/usr/local/lib/postgresql-bin/pg_isready", "-q", "-h", "/var/run/postgresql", "-p", str(target[1])]
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(target, timeout=2) as link:
                link.settimeout(5)
                link.sendall(SSL_REQUEST)
                # TLS is offered while the server still recovers; pg_isready knows when it takes logins
                if link.recv(1) == b"S" and container.exec_run(ready).exit_code == 0:
                    return
            container.reload()
            if container.status == "exited":
                raise StartError(f"its container ended: {container_log(container)}")
            time.sleep(0.1)
        raise StartError(f"it did not accept connections within {START_SECONDS:.0f} s")

    def _query(self, database: DBInstance, statement: str) -> None:
        """Run SQL as RDS's superuser. The statement goes in through a file, so that no process list shows it."""
        container = self._container(database)
        if container is None:
            raise StartError("its container is gone")
        put_files(container, [File("/etc/rds/change.sql", statement.encode() + b";\n", 0o600)])
        psql = (
            "umask 077; runuser -u postgres -- /usr/local/lib/postgresql-bin/psql -XqAt -v ON_ERROR_STOP=1 "
            f"-h /var/run/postgresql -p {int(database.port or 5432)} -U rdsadmin -d postgres "
            "</etc/rds/change.sql; code=$?; rm -f /etc/rds/change.sql; exit $code"
        )
        done = container.exec_run(["sh", "-c", psql])
        if done.exit_code != 0:
            words = done.output if isinstance(done.output, bytes) else b""
            raise StartError(f"a statement failed: {words.decode(errors='replace')[-500:]}")

    def _change(self, database: DBInstance, statement: str) -> None:
        container = self._container(database)
        if container and container.status == "running":
            self._query(database, statement)
            database.status = "available"

    def _reload(self, database: DBInstance) -> None:
        container = self._container(database)
        if container is None:
            return
        put_files(container, [File("/etc/rds/pg_hba.conf", access_rules(forces_tls(database)).encode(), 0o644)])
        if container.status == "running":
            self._query(database, "SELECT pg_reload_conf()")

    def _stop(self, database: DBInstance) -> None:
        container = self._container(database)
        if container:
            container.stop(timeout=STOP_SECONDS)
        database.status = "stopped"

    def _start(self, database: DBInstance) -> None:
        container = self._container(database)
        if container is None:
            raise StartError("its container is gone")
        container.start()
        self._await_tls(database, container)
        database.status = "available"

    def _fail_over(self, database: DBInstance) -> None:
        container = self._container(database)
        if container is None:
            raise StartError("its container is gone")
        container.kill()
        time.sleep(FAILOVER_SECONDS)
        self._start(database)

    def _reboot(self, database: DBInstance) -> None:
        container = self._container(database)
        if container is None:
            raise StartError("its container is gone")
        container.restart(timeout=STOP_SECONDS)
        self._await_tls(database, container)
        database.status = "available"
