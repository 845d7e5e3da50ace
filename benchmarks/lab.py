"""The machines of the benchmark: a systemd host, a PostgreSQL that speaks TLS, an S3 API; all on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from docker import DockerClient
from docker.models.containers import Container
from docker.types import EndpointConfig, IPAMConfig, IPAMPool

from local_aws.databases import access_rules, scram_verifier, server_settings, setup_statements
from local_aws.engine import File, connect, put_files, remove_container
from local_aws.tls import Authority
from tools.console import ROOT, ProblemError, say

NETWORK = "mlflow-bench"
CLONE = "mlflow-bench-clone"
SUBNET = "10.89.0.0/24"
GATEWAY = "10.89.0.1"
HOST_ADDRESS = "10.89.0.10"
DATABASE_ADDRESS = "10.89.0.20"
TUTORIAL_ADDRESS = "10.89.0.30"
DATABASE_NAME = "db.bench.test"
STORE_PORT = 5989
BUCKET = "mlflow-bench"
ACCESS_KEY = "bench"
BIN = Path(sys.executable).parent
LIMIT = 300


def run(container: Container, command: Sequence[str], what: str, text: str | None = None) -> str:
    """Run a command in a container and return what it printed.

    Raises: ProblemError with the end of its errors.
    """
    program = ["docker", "exec", "--interactive", str(container.name), "timeout", str(LIMIT), *command]
    done = subprocess.run(program, input=text or "", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ProblemError(f"Failed to {what} (exit status {done.returncode}): {done.stderr.strip()[-1500:]}")
    return done.stdout


@dataclass
class Lab:
    """The running machines and what opens them."""

    directory: Path
    client: DockerClient
    images: dict[str, str]
    authority: Authority
    host: Container
    database: Container
    passwords: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> str:
        """Return the address of the S3 API."""
        return f"https://{GATEWAY}:{STORE_PORT}"


def start_host(client: DockerClient, image: str, name: str, address: str) -> Container:
    """Boot a host with systemd, which an image of the local AWS has.

    Raises: ProblemError when it does not boot.
    """
    container = client.containers.run(
        image,
        name=name,
        hostname=name,
        detach=True,
        # The host shows the SSH keys on its console that it makes, and makes none without one.
        tty=True,
        # systemd mounts its own cgroups and the services' namespaces; the firewall needs the network.
        cap_add=["SYS_ADMIN", "NET_ADMIN"],
        security_opt=["seccomp=unconfined", "apparmor=unconfined"],
        cgroupns="private",
        tmpfs={"/run": "", "/run/lock": ""},
        network=NETWORK,
        networking_config={NETWORK: EndpointConfig(client.api.api_version, ipv4_address=address)},
    )
    # A clone starts its server as well.
    for _ in range(240):
        _, output = container.exec_run(["systemctl", "is-system-running"])
        state = output.decode().strip() if isinstance(output, bytes) else ""
        if state in ("running", "degraded"):
            return container
        time.sleep(0.5)
    raise ProblemError(f"{name} did not boot: systemd says {state!r}.")


def start_database(client: DockerClient, image: str, authority: Authority, password: str) -> Container:
    """Start the database's machine."""
    pem = authority.issue([DATABASE_NAME])
    statements = setup_statements("bench_master", scram_verifier(password), None)
    files = {
        # Four servers with a pool in each worker share it: more connections than any of them would have to itself.
        "postgresql.conf": server_settings(5432, connections=400).encode(),
        "pg_hba.conf": access_rules(True).encode(),
        "pg_ident.conf": b"rds postgres rdsadmin\nrds root rdsadmin\n",
        "server.crt": pem.certificate,
        "server.key": pem.key,
        "setup.sql": statements.encode(),
    }
    endpoint = EndpointConfig(client.api.api_version, ipv4_address=DATABASE_ADDRESS, aliases=[DATABASE_NAME])
    container = client.containers.create(
        image,
        name=f"{NETWORK}-database",
        init=True,
        network=NETWORK,
        networking_config={NETWORK: endpoint},
    )
    put_files(container, [File(f"/etc/rds/{name}", content, 0o600) for name, content in files.items()])
    container.start()
    return container


def await_port(address: str, port: int) -> None:
    """Wait for a service.

    Raises: ProblemError when nothing listens after half a minute.
    """
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        time.sleep(0.1)
    raise ProblemError(f"Nothing listens on {address}:{port}.")


def remove_clones(client: DockerClient) -> None:
    """Remove the clones of the host and their image."""
    for container in client.containers.list(all=True, filters={"name": f"^{CLONE}-"}):
        remove_container(container)
    if client.images.list(name=CLONE):
        client.images.remove(CLONE)


def remove(client: DockerClient) -> None:
    """Remove the machines of this and of an interrupted run."""
    remove_clones(client)
    for container in client.containers.list(all=True, filters={"name": f"^{NETWORK}-"}):
        remove_container(container)
    for network in client.networks.list(names=[f"^{NETWORK}$"]):
        network.remove()


@contextlib.contextmanager
def running(directory: Path) -> Iterator[Lab]:
    """Give the machines, which end with the block."""
    directory.mkdir(mode=0o700, exist_ok=True)
    build = [sys.executable, "-m", "local_aws", "images"]
    images = json.loads(subprocess.run(build, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    client = connect()
    remove(client)
    authority = Authority(directory / "ca.pem", directory / "ca.key")
    passwords = {name: secrets.token_urlsafe(18) for name in ("master", "owner", "admin", "key", "store")}
    pool = IPAMPool(subnet=SUBNET, gateway=GATEWAY)
    store: subprocess.Popen[bytes] | None = None
    try:
        client.networks.create(NETWORK, ipam=IPAMConfig(pool_configs=[pool]))
        database = start_database(client, images["database"], authority, passwords["master"])
        pem = authority.issue([GATEWAY])
        (directory / "store.pem").write_bytes(pem.certificate)
        key = directory / "store.key"
        key.touch(mode=0o600)
        key.write_bytes(pem.key)
        with (directory / "store.log").open("wb") as log:
            listen = [f"--host={GATEWAY}", f"--port={STORE_PORT}"]
            tls = [f"--ssl-cert={directory / 'store.pem'}", f"--ssl-key={key}"]
            store = subprocess.Popen([str(BIN / "moto_server"), *listen, *tls], stdout=log, stderr=log)
        host = start_host(client, images["host"], f"{NETWORK}-host", HOST_ADDRESS)
        await_port(DATABASE_ADDRESS, 5432)
        await_port(GATEWAY, STORE_PORT)
        lab = Lab(directory, client, images, authority, host, database, passwords)
        make_bucket(lab)
        let_in(lab)
        yield lab
    finally:
        remove(client)
        if store:
            store.terminate()
            store.wait(10)


def make_bucket(lab: Lab) -> None:
    """Create the bucket."""
    import boto3

    store = boto3.client(
        "s3",
        endpoint_url=lab.store,
        verify=str(lab.directory / "ca.pem"),
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=lab.passwords["store"],
        region_name="eu-central-1",
    )
    store.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})


def let_in(lab: Lab) -> None:
    """Let this machine log in to the host by SSH, as Ansible does on users' hosts."""
    key = lab.directory / "ssh"
    for path in (key, key.with_suffix(".pub"), lab.directory / "known_hosts"):
        path.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    keys = File("/root/.ssh/authorized_keys", key.with_suffix(".pub").read_bytes(), 0o600)
    put_files(lab.host, [File("/root/.ssh", b"", 0o700, is_directory=True), keys])
    await_port(HOST_ADDRESS, 22)


def inputs(lab: Lab) -> dict[str, Any]:
    """Return the roles' inputs: the required ones, and what only this laboratory needs."""
    ca = str(lab.directory / "ca.pem")
    return {
        "mlflow_database_login_host": DATABASE_NAME,
        "mlflow_database_login_user": "bench_master",
        "mlflow_database_login_password": lab.passwords["master"],
        "mlflow_database_owner_password": lab.passwords["owner"],
        "mlflow_database_ca_file": ca,
        "mlflow_server_public_name": HOST_ADDRESS,
        "mlflow_server_database_host": DATABASE_NAME,
        "mlflow_server_database_password": lab.passwords["owner"],
        "mlflow_server_database_ca_file": ca,
        "mlflow_server_artifacts_destination": f"s3://{BUCKET}/artifacts",
        "mlflow_server_admin_password": lab.passwords["admin"],
        "mlflow_server_secret_key": lab.passwords["key"],
        "mlflow_server_client_cidrs": [SUBNET],
        "mlflow_server_admin_cidrs": [f"{GATEWAY}/32"],
        "mlflow_server_s3_endpoint_url": lab.store,
        "mlflow_server_s3_ca_file": ca,
        "mlflow_server_aws_region": "eu-central-1",
        "mlflow_server_ca_bundle_file": os.environ.get("SSL_CERT_FILE", ""),
        "mlflow_server_extra_environment": {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": lab.passwords["store"],
        },
    }


def converge(lab: Lab, *roles: str) -> float:
    """Run roles on the host and return how many seconds that took.

    Raises: ProblemError with the end of Ansible's output.
    """
    variables = lab.directory / "inputs.json"
    variables.touch(mode=0o600)
    variables.write_text(json.dumps(inputs(lab)))
    inventory = lab.directory / "inventory.json"
    connection = {
        "ansible_host": HOST_ADDRESS,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(lab.directory / "ssh"),
        "ansible_ssh_common_args": "-o StrictHostKeyChecking=accept-new "
        f"-o UserKnownHostsFile={lab.directory}/known_hosts",
        "ansible_python_interpreter": "/usr/bin/python3",
    }
    inventory.write_text(json.dumps({"all": {"children": {"bench": {"hosts": {"server": connection}}}}}))
    playbooks = [ROOT / f"benchmarks/{role}.yml" for role in roles]
    start = time.monotonic()
    done = subprocess.run(
        [BIN / "ansible-playbook", "-i", inventory, "-e", f"@{variables}", *playbooks],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise ProblemError(f"The roles failed: {done.stdout[-3000:]}{done.stderr[-1000:]}")
    seconds = time.monotonic() - start
    say(f"    {' and '.join(roles)} took {seconds:.1f} s: {done.stdout.strip().splitlines()[-1]}")
    return seconds


TUTORIAL = """
set -e
apt-get -q update
apt-get -q install -y --no-install-recommends python3-venv
python3 -m venv /opt/tutorial
/opt/tutorial/bin/pip install -q mlflow=={version} boto3 psycopg2-binary
cd /opt/tutorial
systemd-run -q --unit=tutorial --working-directory=/opt/tutorial /opt/tutorial/bin/mlflow server -h 127.0.0.1
for _ in $(seq 600); do
  python3 -c 'import urllib.request; urllib.request.urlopen("http://localhost:5000/health")' 2>/dev/null && exit
  sleep 0.1
done
exit 1
"""


def tutorial_seconds(lab: Lab, version: str) -> float:
    """Return how long apt, pip and the start of the tutorial's server take on a fresh host."""
    container = start_host(lab.client, lab.images["host"], f"{NETWORK}-tutorial", TUTORIAL_ADDRESS)
    try:
        bundle = os.environ.get("SSL_CERT_FILE", "")
        script = TUTORIAL.format(version=version)
        if bundle:
            put_files(container, [File("/etc/bench-bundle.pem", Path(bundle).read_bytes())])
            line = 'Acquire::https::CaInfo "/etc/bench-bundle.pem";\n'
            put_files(container, [File("/etc/apt/apt.conf.d/99bench", line.encode())])
            script = "export PIP_CERT=/etc/bench-bundle.pem\n" + script
        start = time.monotonic()
        run(container, ["sh", "-s"], "set up the tutorial's server", script)
        return time.monotonic() - start
    finally:
        remove_container(container)
