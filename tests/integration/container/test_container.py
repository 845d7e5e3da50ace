"""The image of roles/mlflow_image: built, pushed, and run as Fargate runs it, with a real PostgreSQL and S3 API."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import datetime
import functools
import gzip
import hashlib
import http.client
import io
import ipaddress
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import boto3
import docker
import pytest
from botocore.config import Config
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from docker.errors import ImageNotFound
from docker.models.containers import Container
from docker.types import Mount

from tools.console import ROOT, exclusive, state_dir

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
# What `python -m local_aws images` leaves, the smallest first.
BASES = ("local-aws-base:debian-trixie", "local-aws-base:debian-bookworm", "ubuntu:24.04")
REPOSITORY = "mlflow-container-test"
LOGIN = ("pusher", "p@ss/w:rd#100%&x")
# Every character that a careless quoting or URL breaks on.
SECRETS = {
    "database.master_password": "m@ster/w:rd#100%&x",
    "server.database_password": "d@ta/w:rd#100%&x'\"$",
    "server.admin_password": "adm1n/w:rd#100%&x",
    "server.secret_key": "k3y-0123456789abcdef-!$%",
}
BUCKET = "artifacts"
PATIENCE = 300.0
DOWNGRADE = """
import os
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
command.downgrade(_get_alembic_config(os.environ["_MLFLOW_SERVER_FILE_STORE"]), "-1")
"""
CONFINED: dict[str, Any] = {"read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"]}

Answer = tuple[int, dict[str, str], bytes]


def eventually(what: str, check: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < end, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.1)


def free_port(address: str) -> int:
    with socket.create_server((address, 0)) as probe:
        return int(probe.getsockname()[1])


# -- what is around the container --------------------------------------------------------------------------------------


class Authority:
    """Certifies the database and the store. It is kept, because it is part of the image and so of its tag."""

    def __init__(self, folder: Path) -> None:
        self.path, key = folder / "ca.pem", folder / "ca.key"
        if not self.path.exists():
            made = ec.generate_private_key(ec.SECP256R1())
            key.write_bytes(self.pem(made))
            self.path.write_bytes(self.sign("Container test CA", made, made, authority=True))
        loaded = serialization.load_pem_private_key(key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        self.key = loaded

    @staticmethod
    def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
        form = serialization.PrivateFormat.PKCS8
        return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())

    @staticmethod
    def sign(
        name: str,
        key: ec.EllipticCurvePrivateKey,
        signer: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName] | None = None,
        authority: bool = False,
    ) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Container test CA")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def certify(self, names: list[x509.GeneralName]) -> tuple[bytes, bytes]:
        """Return a certificate and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self.sign("server", key, self.key, names), self.pem(key)


class Registry(BaseHTTPRequestHandler):
    """As much of a registry as a push needs; it keeps digests and the manifest, and asks for the login."""

    protocol_version = "HTTP/1.1"
    blobs: set[str]
    manifests: dict[str, tuple[str, bytes]]
    received: int

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def answer(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-length": "0", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def admitted(self) -> bool:
        wanted = "Basic " + base64.b64encode(":".join(LOGIN).encode()).decode()
        if self.headers.get("authorization") == wanted:
            return True
        self.close_connection = True
        self.answer(401, www_authenticate='Basic realm="test"')
        return False

    def body(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("content-length", 0))
            while left and (block := self.rfile.read(min(left, 1 << 20))):
                left -= len(block)
                yield block

    def do_GET(self) -> None:
        if self.admitted():
            self.answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        if self.admitted():
            digest = self.path.rpartition("/")[2]
            self.answer(200 if digest in self.blobs else 404)

    def do_POST(self) -> None:
        if self.admitted():
            self.answer(202, location=f"/v2/{REPOSITORY}/blobs/uploads/{uuid.uuid4()}", range="0-0")

    def do_PATCH(self) -> None:
        if self.admitted():
            size = sum(map(len, self.body()))
            type(self).received += size
            self.answer(202, location=self.path, range=f"0-{size - 1}")

    def do_PUT(self) -> None:
        if not self.admitted():
            return
        content = b"".join(self.body())
        if "/manifests/" in self.path:
            digest = "sha256:" + hashlib.sha256(content).hexdigest()
            self.manifests[self.path.rpartition("/")[2]] = digest, content
            self.answer(201, docker_content_digest=digest)
        else:
            self.blobs.add(self.path.rpartition("digest=")[2].replace("%3A", ":"))
            self.answer(201)


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    """Run a registry on the loopback, which every engine takes without TLS; return its address."""
    kept = state_dir() / "tests/container"
    kept.mkdir(parents=True, exist_ok=True)
    Registry.blobs, Registry.manifests, Registry.received = set(), {}, 0
    # The engine remembers what it has pushed under an address, so that the next run sends no layer again.
    known = kept / "registry.json"
    port = free_port("127.0.0.1")
    if known.exists():
        state = json.loads(known.read_text())
        Registry.blobs, port = set(state["blobs"]), state["port"]
    with ThreadingHTTPServer(("127.0.0.1", port), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{port}"
        server.shutdown()
    known.write_text(json.dumps({"port": port, "blobs": sorted(Registry.blobs)}))


@dataclass
class Laboratory:
    """A network with a PostgreSQL and an S3 API, and the containers of the server in it."""

    engine: docker.DockerClient
    network: str
    gateway: str
    authority: Authority
    database: str
    store: str
    folder: Path
    s3: Any
    containers: list[Container] = field(default_factory=list)

    def own(self, container: Container) -> Container:
        self.containers.append(container)
        return container


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    engine = docker.from_env()
    folder = tmp_path_factory.mktemp("container")
    kept = state_dir() / "tests/container"
    kept.mkdir(parents=True, exist_ok=True)
    authority = Authority(kept)
    command = [sys.executable, "-m", "local_aws", "images"]
    images = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
    name = f"mlflow-container-test-{uuid.uuid4().hex[:8]}"
    network = engine.networks.create(name)
    network.reload()
    gateway = network.attrs["IPAM"]["Config"][0]["Gateway"]
    with contextlib.ExitStack() as stack:
        stack.callback(network.remove)
        database = f"{name}-database"
        start_database(engine, images["database"], name, database, authority, stack)
        store, s3 = start_store(gateway, authority, folder, stack)
        laboratory = Laboratory(engine, name, gateway, authority, database, store, folder, s3)
        yield laboratory
        for container in laboratory.containers:
            container.remove(force=True, v=True)


def start_database(
    engine: docker.DockerClient, image: str, network: str, name: str, authority: Authority, stack: contextlib.ExitStack
) -> None:
    """Run PostgreSQL like a managed service: TLS only, and a master user that is no superuser."""
    certificate, key = authority.certify([x509.DNSName(name)])
    password = SECRETS["database.master_password"].replace("'", "''")
    files = {
        "postgresql.conf": b"data_directory = '/var/lib/rds/data'\nhba_file = '/etc/rds/pg_hba.conf'\n"
        b"ident_file = '/etc/rds/pg_ident.conf'\nlisten_addresses = '*'\nssl = on\n"
        b"ssl_cert_file = '/etc/rds/server.crt'\nssl_key_file = '/etc/rds/server.key'\n",
        "pg_hba.conf": b"local all all peer map=rds\nhost all rdsadmin all reject\nhostssl all all all scram-sha-256\n",
        "pg_ident.conf": b"rds postgres rdsadmin\nrds root rdsadmin\n",
        "server.crt": certificate,
        "server.key": key,
        "setup.sql": f"CREATE ROLE postgres LOGIN CREATEDB CREATEROLE PASSWORD '{password}';\n\n".encode(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    container = engine.containers.create(image, name=name, network=network, init=True)
    stack.callback(lambda: container.remove(force=True, v=True))
    container.put_archive("/etc/rds", packed.getvalue())
    container.start()
    container.reload()
    address = container.attrs["NetworkSettings"]["Networks"][network]["IPAddress"]
    eventually("PostgreSQL", lambda: listens(address, 5432))


def start_store(gateway: str, authority: Authority, folder: Path, stack: contextlib.ExitStack) -> tuple[str, Any]:
    """Run an S3 API with TLS and a bucket; return its address and a client."""
    certificate, key = authority.certify([x509.IPAddress(ipaddress.ip_address(gateway))])
    (folder / "store.pem").write_bytes(certificate)
    (folder / "store.key").write_bytes(key)
    port = free_port(gateway)
    command = [str(BIN / "moto_server"), f"--host={gateway}", f"--port={port}"]
    tls = [f"--ssl-cert={folder / 'store.pem'}", f"--ssl-key={folder / 'store.key'}"]
    with (folder / "store.log").open("wb") as log:
        process = subprocess.Popen([*command, *tls], stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.kill)
    eventually("the S3 API", lambda: listens(gateway, port))
    url = f"https://{gateway}:{port}"
    s3 = boto3.client(
        "s3",
        endpoint_url=url,
        verify=str(authority.path),
        aws_access_key_id="a",
        aws_secret_access_key="b",
        region_name="us-east-1",
        config=Config(proxies={}),
    )
    s3.create_bucket(Bucket=BUCKET)
    return url, s3


def listens(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=5):
        return True
    return False


# -- the image ---------------------------------------------------------------------------------------------------------


def play(name: str, variables: Mapping[str, Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a playbook of this directory."""
    given = {"ansible_python_interpreter": sys.executable, **variables}
    return subprocess.run(
        [str(BIN / "ansible-playbook"), "-i", "localhost,", str(HERE / name), "-e", json.dumps(given)],
        cwd=ROOT,
        env={**os.environ, "ANSIBLE_NOCOLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def base(engine: docker.DockerClient) -> str:
    for name in BASES:
        with contextlib.suppress(ImageNotFound):
            engine.images.get(name)
            return name
    pytest.fail(f"None of {', '.join(BASES)} is there; python -m local_aws images makes one.")


@dataclass
class Image:
    """What the roles say of the image and of a container of it."""

    variables: dict[str, Any]
    play: subprocess.CompletedProcess[str]
    reference: str
    tag: str
    digest: str
    container: dict[str, Any]
    size: int


@pytest.fixture(scope="module")
def image(laboratory: Laboratory, registry: str) -> Image:
    """Have the roles build it, which takes two minutes where the engine has none of its layers."""
    results = laboratory.folder / "image.json"
    variables = {
        "results": str(results),
        "mlflow_server_public_name": "mlflow.test",
        "mlflow_server_database_host": laboratory.database,
        "mlflow_server_database_ca_file": str(laboratory.authority.path),
        "mlflow_server_database_connections": 20,
        "mlflow_server_s3_endpoint_url": laboratory.store,
        "mlflow_server_s3_ca_file": str(laboratory.authority.path),
        "mlflow_server_artifacts_destination": f"s3://{BUCKET}/artifacts",
        "mlflow_server_presigned_transfers": False,
        # So few that a busy machine, which checks slowly, runs into the limit too.
        "mlflow_server_login_failures_per_minute": 2,
        "mlflow_server_container_cpu": 2048,
        "mlflow_server_container_memory": 2048,
        "mlflow_server_metrics": True,
        "mlflow_server_metrics_cidrs": ["198.51.100.0/24"],
        "mlflow_image_repository": f"{registry}/{REPOSITORY}",
        "mlflow_image_registry_username": LOGIN[0],
        "mlflow_image_registry_password": LOGIN[1],
        "mlflow_image_base": base(laboratory.engine),
        "mlflow_image_database_ca_file": str(laboratory.authority.path),
        "mlflow_image_s3_ca_file": str(laboratory.authority.path),
        "mlflow_image_ca_bundle_file": os.environ.get("SSL_CERT_FILE", ""),
    }
    with exclusive("test-container"):
        played = play("image.yml", variables)
    assert played.returncode == 0, played.stdout[-4000:]
    said = json.loads(results.read_text())
    reference = said["image"]["reference"]
    size = laboratory.engine.images.get(reference).attrs["Size"]
    # Those of former programs, here or in a registry that has ended; what they share with this one stays.
    for former in laboratory.engine.images.list(filters={"reference": f"127.0.0.1:*/{REPOSITORY}"}):
        for tag in former.tags:
            place = tag.partition("/")[0]
            if tag != reference and (place == registry or not listens("127.0.0.1", int(place.partition(":")[2]))):
                laboratory.engine.images.remove(tag)
    return Image(variables, played, reference, said["image"]["tag"], said["image"]["digest"], said["container"], size)


@dataclass
class Server:
    """A container that serves."""

    container: Container
    address: str
    tls: ssl.SSLContext

    def connect(self) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(self.address, 8443, timeout=PATIENCE, context=self.tls)

    def ask(
        self,
        path: str,
        method: str = "GET",
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        password: str = SECRETS["server.admin_password"],
        connection: http.client.HTTPSConnection | None = None,
    ) -> Answer:
        login = base64.b64encode(f"admin:{password}".encode()).decode()
        sent = {"Host": "mlflow.test", "Authorization": f"Basic {login}", **(headers or {})}
        with contextlib.closing(connection or self.connect()) as asking:
            asking.request(method, path, body, sent)
            answer = asking.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def environment(image: Image, setup: bool = False) -> dict[str, str]:
    """Return what ECS hands to the container."""
    needs = [image.container, *([image.container["setup"]] if setup else [])]
    variables: dict[str, str] = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    for need in needs:
        variables |= need["environment"]
        variables |= {name: SECRETS[secret] for name, secret in need["secrets"].items()}
    return variables


def start(laboratory: Laboratory, image: Image, command: str, **changes: str) -> Container:
    """Run a command of the image as Fargate does: a volume at /tmp is all that it may write to."""
    variables = {**environment(image, setup=command == "setup"), **changes}
    mounts = [Mount("/tmp", None, type="volume")]
    return laboratory.own(
        laboratory.engine.containers.run(
            image.reference,
            [command],
            detach=True,
            network=laboratory.network,
            environment=variables,
            mounts=mounts,
            **CONFINED,
        )
    )


def run_script(laboratory: Laboratory, image: Image, script: str, variables: dict[str, str], **more: Any) -> Container:
    """Run a script with the image's Python, as unconfined as an image is by default."""
    return laboratory.own(
        laboratory.engine.containers.run(
            image.reference,
            ["-c", script],
            detach=True,
            entrypoint=["/opt/mlflow/bin/python"],
            network=laboratory.network,
            environment=variables,
            **more,
        )
    )


def output(container: Container) -> tuple[int, str, str]:
    """Return a container's exit status and what it has printed."""
    status = container.wait(timeout=PATIENCE)["StatusCode"]
    return status, container.logs(stderr=False).decode(), container.logs(stdout=False).decode()


def query(laboratory: Laboratory, statement: str, database: str = "postgres") -> str:
    """Ask PostgreSQL as its superuser."""
    container = laboratory.engine.containers.get(laboratory.database)
    command = ["psql", "-U", "rdsadmin", "-d", database, "-At", "-c", statement]
    return cast(bytes, container.exec_run(command).output).decode().strip()


@pytest.fixture(scope="module")
def prepared(laboratory: Laboratory, image: Image) -> list[dict[str, Any]]:
    """Have two containers prepare the databases at once, and then a third one."""
    before = start(laboratory, image, "serve")
    status, _, words = output(before)
    assert status == 1 and "mlflow" in words and "password" not in words.lower().replace("password authentication", "")
    said = []
    both = [start(laboratory, image, "setup") for _ in range(2)]
    for container in [*both, None]:
        status, printed, words = output(container or start(laboratory, image, "setup"))
        assert status == 0, words
        assert not any(secret in printed + words for secret in SECRETS.values())
        said.append(json.loads(printed))
    return said


def serve(laboratory: Laboratory, image: Image, **changes: str) -> Server:
    """Return a server that answers."""
    container = start(laboratory, image, "serve", **changes)
    container.reload()
    address = container.attrs["NetworkSettings"]["Networks"][laboratory.network]["IPAddress"]
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    server = Server(container, address, tls)

    def answers() -> bool:
        container.reload()
        assert container.status == "running", container.logs().decode()
        with contextlib.suppress(OSError, http.client.HTTPException):
            return server.ask("/api/2.0/mlflow/experiments/get?experiment_id=0")[0] == 200
        return False

    eventually("the server", answers)
    return server


@pytest.fixture(scope="module")
def server(laboratory: Laboratory, image: Image, prepared: object) -> Server:
    return serve(laboratory, image)


# -- the tests ---------------------------------------------------------------------------------------------------------


def test_the_registry_has_the_image_under_its_tag(image: Image) -> None:
    assert re.fullmatch(r"3\.17\.2-[0-9a-f]{12}", image.tag)
    assert image.reference.endswith(f"/{REPOSITORY}:{image.tag}")
    assert Registry.manifests[image.tag][0] == image.digest


def test_what_the_repository_has_is_not_built_again(image: Image) -> None:
    again = play(
        "image.yml", image.variables | {"mlflow_image_existing_tags": [image.tag]}, DOCKER_HOST="unix:///nowhere"
    )
    assert again.returncode == 0, again.stdout[-2000:]
    assert "changed=0" in again.stdout


@pytest.mark.parametrize(
    ("changes", "host", "words"),
    [
        ({}, "unix:///nowhere", "whose Docker engine does not answer"),
        ({"mlflow_image_base": "127.0.0.1:1/no-such-base:1"}, "", "has no image '127.0.0.1:1/no-such-base:1'"),
        ({"mlflow_image_registry_password": "wrong"}, "", "refuses the login as 'pusher'"),
        ({"mlflow_image_version": "1.2.3"}, "", "There is no lock of packages"),
    ],
    ids=["no engine", "no base", "no login", "no lock"],
)
def test_what_is_missing_is_said(image: Image, changes: dict[str, str], host: str, words: str) -> None:
    played = play("image.yml", image.variables | changes, **({"DOCKER_HOST": host} if host else {}))
    assert played.returncode == 2
    assert words in " ".join(played.stdout.split())
    assert LOGIN[1] not in played.stdout


def test_another_authority_and_only_what_is_in_the_image_changes_the_tag(image: Image, tmp_path: Path) -> None:
    def tag(**changes: str) -> str:
        results = tmp_path / "results.json"
        # It fails where there is no engine, with the tag known by then.
        given = {**image.variables, "mlflow_image_existing_tags": [image.tag], "results": str(results), **changes}
        play("image.yml", given, DOCKER_HOST="unix:///nowhere")
        return str(json.loads(results.read_text())["image"]["tag"])

    other = tmp_path / "other.pem"
    other.write_text("another one")
    assert tag(mlflow_image_database_ca_file=str(other)) != image.tag
    assert tag(mlflow_image_revision="2026-12-01") != image.tag
    assert tag(mlflow_image_package_index_url="https://user:secret@pypi.example.com/simple") == image.tag


def test_nothing_of_the_build_stays_in_the_image(laboratory: Laboratory, image: Image) -> None:
    history = json.dumps(laboratory.engine.images.get(image.reference).history())
    found = laboratory.engine.containers.run(
        image.reference,
        entrypoint=[
            "sh",
            "-c",
            "ls -d /etc/mlflow-installer /tmp/uv /tmp/requirements /usr/bin/gcc 2>/dev/null; id -u",
        ],
        remove=True,
    )
    assert found.decode().split() == ["10001"]
    assert "index" not in history.lower() and "proxy" not in history.lower()
    assert image.size < 1_300_000_000


def test_setup_prepares_an_empty_server_once(prepared: list[dict[str, Any]]) -> None:
    first = next(one for one in prepared if one["owner"] == "created")
    assert first["databases"] == {"mlflow": "created", "mlflow_auth": "created"}
    assert all(one["after"] == {"tracking": "current", "auth": "current", "admin": "current"} for one in prepared)
    current = {"mlflow": "current", "mlflow_auth": "current"}
    assert prepared[2] == {
        "changed": False,
        "owner": "current",
        "databases": current,
        "before": prepared[2]["after"],
        "after": prepared[2]["after"],
    }


def test_setup_closes_the_databases_and_uses_no_weak_password(laboratory: Laboratory, prepared: object) -> None:
    ask = functools.partial(query, laboratory)
    assert ask("SELECT rolcanlogin, rolcreatedb, rolcreaterole, rolsuper FROM pg_roles WHERE rolname='mlflow'") == (
        "t|f|f|f"
    )
    assert ask("SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'mlflow'") == "t"
    assert ask("SELECT has_database_privilege('public', 'mlflow', 'CONNECT')") == "f"
    assert ask("SELECT has_database_privilege('public', 'mlflow_auth', 'CONNECT')") == "f"


def test_setup_sets_a_password_that_has_changed(laboratory: Laboratory, image: Image, prepared: object) -> None:
    for admin, owner in (("another-p@ssword", "an'other"), (None, None)):
        changes = {"MLFLOW_AUTH_ADMIN_PASSWORD": admin, "PGPASSWORD": owner} if admin and owner else {}
        status, printed, words = output(start(laboratory, image, "setup", **changes))
        assert status == 0, words
        assert json.loads(printed)["owner"] == "changed"
        assert json.loads(printed)["before"]["admin"] == "outdated"
    assert output(start(laboratory, image, "check"))[0] == 0


def test_setup_says_why_it_fails(laboratory: Laboratory, image: Image, prepared: object) -> None:
    status, printed, words = output(start(laboratory, image, "setup", MLFLOW_SETUP_LOGIN_PASSWORD="wrong-one"))
    assert (status, printed) == (1, "")
    assert f"Failed to prepare PostgreSQL at {laboratory.database} as postgres" in words
    assert "wrong-one" not in words and "Traceback" not in words


def test_users_can_use_it(laboratory: Laboratory, server: Server, tmp_path: Path) -> None:
    """Login, run, artifact, registered model, and all that must be refused, with the server's own certificate."""
    certificate = tmp_path / "tls.pem"
    certificate.write_text(ssl.get_server_certificate((server.address, 8443)))
    variables = {
        "url": "https://localhost:8443",
        "address": server.address,
        "password": SECRETS["server.admin_password"],
        "ca": str(certificate),
    }
    played = play("validate.yml", variables)
    assert played.returncode == 0, played.stdout[-3000:]


def test_the_stock_client_logs_a_run(laboratory: Laboratory, image: Image, server: Server) -> None:
    script = (
        "import mlflow, pathlib\n"
        "with mlflow.start_run() as run:\n"
        "    mlflow.log_metric('m', 1.5)\n"
        "    pathlib.Path('/tmp/a.txt').write_text('x' * 100_000)\n"
        "    mlflow.log_artifact('/tmp/a.txt')\n"
        "path = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path='a.txt', dst_path='/tmp/b')\n"
        "assert pathlib.Path(path).read_text() == 'x' * 100_000\n"
        "print(run.info.run_id)\n"
    )
    client = {
        "MLFLOW_TRACKING_URI": "https://mlflow.test:8443",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": SECRETS["server.admin_password"],
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
    }
    container = run_script(laboratory, image, script, client, extra_hosts={"mlflow.test": server.address})
    status, printed, words = output(container)
    assert status == 0, words
    run = printed.split()[-1]
    objects = laboratory.s3.list_objects_v2(Bucket=BUCKET, Prefix="artifacts/")["Contents"]
    assert any(entry["Key"].endswith(f"/{run}/artifacts/a.txt") for entry in objects)


def test_it_writes_nowhere_but_to_its_volume(server: Server) -> None:
    host = server.container.attrs["HostConfig"]
    assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"]
    status = cast(bytes, server.container.exec_run(["cat", "/proc/1/status"]).output).decode()
    assert re.search(r"^Uid:\t10001\t10001\t10001", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE) and re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)


def test_no_secret_is_where_others_can_read_it(server: Server) -> None:
    commands = server.container.exec_run(["sh", "-c", "cat /proc/[0-9]*/cmdline; cat /tmp/mlflow/basic_auth.ini"])
    logs = server.container.logs().decode()
    for secret in SECRETS.values():
        assert secret not in cast(bytes, commands.output).decode() and secret not in logs


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_the_balancer_may_ask_by_address(server: Server, path: str) -> None:
    status = server.ask(path, headers={"Host": f"{server.address}:8443", "Authorization": ""})[0]
    if path == "/ready" and status == 404:
        pytest.skip("the server has no /ready yet")
    assert status == 200


@pytest.mark.parametrize("path", ["/", "/static-files/index.html", "/api/2.0/mlflow/experiments/search", "/metrics"])
def test_a_foreign_name_is_refused(server: Server, path: str) -> None:
    assert server.ask(path, headers={"Host": "evil.example.com"})[0] == 421


def test_every_answer_has_each_header_once(server: Server) -> None:
    for path in ("/", "/health", "/static-files/index.html", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/no"):
        with contextlib.closing(server.connect()) as connection:
            login = base64.b64encode(f"admin:{SECRETS['server.admin_password']}".encode()).decode()
            connection.request("GET", path, headers={"Host": "mlflow.test", "Authorization": f"Basic {login}"})
            answer = connection.getresponse()
            answer.read()
            names = [name.lower() for name, _ in answer.getheaders()]
        for name in ("x-content-type-options", "x-frame-options", "referrer-policy", "strict-transport-security"):
            assert names.count(name) == 1, (path, name, names)
        assert "server" not in names


def test_files_come_compressed_and_are_kept(server: Server) -> None:
    page = server.ask("/static-files/index.html")
    assert page[0] == 200 and page[1]["cache-control"] == "no-cache"
    script = re.search(rb"static-files/(static/js/main\.[0-9a-f]+\.js)", page[2])
    assert script
    path = "/static-files/" + script[1].decode()
    status, headers, plain = server.ask(path, headers={"Authorization": ""})
    assert status == 200 and "content-encoding" not in headers
    assert headers["cache-control"] == "public, max-age=31536000, immutable"
    assert headers["content-type"].startswith("text/javascript")
    status, headers, packed = server.ask(path, headers={"Accept-Encoding": "gzip, br"})
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(packed) == plain and len(packed) < len(plain) / 2
    again = server.ask(path, headers={"Accept-Encoding": "gzip", "If-None-Match": headers["etag"]})
    assert (again[0], again[2]) == (304, b"")
    assert server.ask(path, "HEAD")[1]["content-length"] == str(len(plain))
    assert server.ask("/static-files/no-such-file.js")[0] == 404
    assert server.ask("/static-files/../service/mlflow_service/app.py")[0] in (400, 404)
    assert server.ask("/static-files/%2e%2e/%2e%2e/schema.json")[0] in (400, 404)


def test_answers_are_compressed_for_whom_takes_it(server: Server) -> None:
    body = json.dumps({"max_results": 1000}).encode()
    for number in range(12):
        name = json.dumps({"name": f"compression-{number}-{uuid.uuid4()}"}).encode()
        sent = server.ask("/api/2.0/mlflow/experiments/create", "POST", name, {"Content-Type": "application/json"})
        assert sent[0] == 200
    search = ("/api/2.0/mlflow/experiments/search", "POST", body)
    plain = server.ask(*search, headers={"Content-Type": "application/json"})
    packed = server.ask(*search, headers={"Content-Type": "application/json", "Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain[1] and packed[1]["content-encoding"] == "gzip"
    assert json.loads(gzip.decompress(packed[2])) == json.loads(plain[2])


def test_artifacts_pass_as_they_are(server: Server) -> None:
    content = os.urandom(3 << 20)
    path = "/api/2.0/mlflow-artifacts/artifacts/edge/data.bin"
    assert server.ask(path, "PUT", content)[0] == 200
    status, headers, received = server.ask(path, headers={"Accept-Encoding": "gzip"})
    assert status == 200 and "content-encoding" not in headers and received == content
    part = server.ask(path, headers={"Accept-Encoding": "gzip", "Range": "bytes=5-9"})
    assert (part[0], part[2]) == (206, content[5:10])


def test_clients_are_told_to_keep_to_the_server(server: Server) -> None:
    for prefix in ("", "ajax-"):
        status, headers, body = server.ask(f"/{prefix}api/3.0/mlflow/server-info")
        assert status == 200 and headers["content-length"] == str(len(body))
        text = json.dumps(json.loads(body))
        assert '"multipart_downloads_enabled": false' in text and "true" not in re.findall(
            r"multipart_\w+.: (\w+)", text
        )


def test_wrong_logins_are_charged_to_whom_the_balancer_names(server: Server) -> None:
    def wrong(claimed: str, named: str) -> int:
        headers = {"X-Forwarded-For": f"{claimed}, {named}", "X-Real-IP": claimed, "X_Real_IP": claimed}
        path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
        return server.ask(path, headers=headers, password=uuid.uuid4().hex)[0]

    # Each of the two workers counts for itself.
    statuses = [wrong(f"203.0.113.{number}", "192.0.2.1") for number in range(20)]
    assert set(statuses) == {401, 429}
    assert statuses[-5:].count(429) >= 4
    assert wrong("192.0.2.1", "192.0.2.2") == 401


def test_metrics_are_for_their_networks_alone(server: Server) -> None:
    assert server.ask("/metrics", headers={"X-Forwarded-For": "198.51.100.7, 192.0.2.9"})[0] == 403
    assert server.ask("/metrics")[0] == 403
    status, _, body = server.ask("/metrics", headers={"X-Forwarded-For": "192.0.2.9, 198.51.100.7"})
    assert status == 200 and b"mlflow_http_requests_total" in body


def test_an_idle_connection_outlasts_the_balancers(image: Image) -> None:
    assert int(image.container["environment"]["MLFLOW_SERVICE_KEEPALIVE"]) > 3600


def test_it_is_small_and_starts_soon(laboratory: Laboratory, image: Image, prepared: object) -> None:
    begun = time.monotonic()
    server = serve(laboratory, image)
    took = time.monotonic() - begun
    used: Any = cast(Any, server.container.stats(stream=False))["memory_stats"]
    resident = used["usage"] - used["stats"].get("inactive_file", used["stats"].get("total_inactive_file", 0))
    print(f"start {took:.1f} s, {resident >> 20} MiB with {image.container['workers']} workers, {image.size >> 20} MiB")
    server.container.remove(force=True, v=True)
    laboratory.containers.remove(server.container)
    # Alone on two cores it starts in 5 s.
    assert took < 60
    assert resident < 700 << 20


def test_a_stopping_server_loses_nothing(laboratory: Laboratory, image: Image, prepared: object) -> None:
    """The balancer goes on for a while after the signal, as it does when a Spot task ends, and then lets it drain."""
    server = serve(laboratory, image, MLFLOW_SERVICE_LINGER="4")
    routed = threading.Event()
    routed.set()
    failures: list[str] = []
    answered: list[float] = []

    def keep_asking() -> None:
        connection = server.connect()
        while routed.is_set():
            try:
                login = base64.b64encode(f"admin:{SECRETS['server.admin_password']}".encode()).decode()
                headers = {"Host": "mlflow.test", "Authorization": f"Basic {login}"}
                connection.request("GET", "/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    failures.append(str(answer.status))
                answered.append(time.monotonic())
                if answer.getheader("connection") == "close":
                    connection = server.connect()
            except (OSError, http.client.HTTPException) as error:
                failures.append(repr(error))
                connection = server.connect()
        connection.close()

    def upload_slowly() -> int:
        def blocks() -> Iterator[bytes]:
            for _ in range(40):
                time.sleep(0.25)
                yield b"x" * 65536

        headers = {"Content-Length": str(40 * 65536)}
        return server.ask("/api/2.0/mlflow-artifacts/artifacts/drain/slow.bin", "PUT", blocks(), headers)[0]

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking) for _ in range(6)]
        upload = pool.submit(upload_slowly)
        time.sleep(1.5)
        signalled = time.monotonic()
        server.container.kill("SIGTERM")
        time.sleep(3)
        routed.clear()
        for one in asking:
            one.result()
        assert upload.result() == 200
    assert failures == []
    assert sum(then > signalled + 1 for then in answered) > 20
    status = server.container.wait(timeout=PATIENCE)["StatusCode"]
    assert status == 0, server.container.logs().decode()[-2000:]
    size = laboratory.s3.head_object(Bucket=BUCKET, Key="artifacts/drain/slow.bin")["ContentLength"]
    assert size == 40 * 65536


def create_run(
    server: Server, name: str, connection: http.client.HTTPSConnection | None = None
) -> tuple[float, float, int]:
    """Ask for a run; return when, how long the answer took, and its status."""
    begun = time.monotonic()
    body = json.dumps({"experiment_id": "0", "run_name": name}).encode()
    headers = {"Content-Type": "application/json"}
    status = server.ask("/api/2.0/mlflow/runs/create", "POST", body, headers, connection=connection)[0]
    return begun, time.monotonic() - begun, status


@contextlib.contextmanager
def no_database(laboratory: Laboratory) -> Iterator[float]:
    """Take the database's power away for as long; yields the moment from which it was dead."""
    database = laboratory.engine.containers.get(laboratory.database)
    database.kill()
    try:
        yield time.monotonic()
    finally:
        database.start()


def test_requests_wait_for_a_database_that_fails_over(laboratory: Laboratory, server: Server) -> None:
    """Only what it was doing when it died may fail, be there more clients than connections."""
    clients = 30
    going = threading.Event()
    going.set()

    def keep_asking() -> list[tuple[float, float, int]]:
        seen = []
        while going.is_set():
            seen.append(create_run(server, "failover"))
        return seen

    with concurrent.futures.ThreadPoolExecutor() as pool:
        asking = [pool.submit(keep_asking) for _ in range(clients)]
        time.sleep(2)
        with no_database(laboratory) as died:
            time.sleep(1)
            hasty = http.client.HTTPSConnection(server.address, 8443, timeout=2, context=server.tls)
            with pytest.raises(TimeoutError):
                create_run(server, "left", hasty)
            time.sleep(5)
        time.sleep(5)
        going.clear()
        seen = [one for thread in asking for one in thread.result()]
    failed = [(begun - died, lasted, status) for begun, lasted, status in seen if status != 200]
    assert all((begun < 0, status) == (True, 503) for begun, _, status in failed), failed
    assert len(failed) <= clients
    assert max(lasted for _, lasted, _ in seen) > 5
    created = sum(status == 200 for _, _, status in seen)
    runs = int(query(laboratory, "SELECT count(*) FROM runs WHERE name = 'failover'", "mlflow"))
    # What failed may have come through, and only that.
    assert created <= runs <= created + len(failed)
    assert query(laboratory, "SELECT count(*) FROM runs WHERE name = 'left'", "mlflow") == "0"


def test_patience_for_a_database_ends(laboratory: Laboratory, image: Image, prepared: object) -> None:
    server = serve(laboratory, image, MLFLOW_SERVICE_DATABASE_PATIENCE="10", MLFLOW_SERVICE_LINGER="0")
    with concurrent.futures.ThreadPoolExecutor() as pool, no_database(laboratory):
        _, lasted, status = create_run(server, "none")
        # A question more, of three seconds at the most, and its pause.
        assert (status, 10 <= lasted < 18) == (503, True), lasted
        asking = pool.submit(create_run, server, "none")
        time.sleep(1)
        server.container.kill("SIGTERM")
        signalled = time.monotonic()
        begun, lasted, status = asking.result()
        # A server that stops lets them go before their time.
        assert (status, begun + lasted - signalled < 5) == (503, True), lasted
        assert server.container.wait(timeout=PATIENCE)["StatusCode"] == 0
    eventually("PostgreSQL", lambda: query(laboratory, "SELECT 1") == "1")


def test_an_older_schema_is_migrated_when_no_server_uses_it(
    laboratory: Laboratory, image: Image, server: Server
) -> None:
    """The last test of this file, because it ends the server."""
    # A server is noticed by its connections, and those of before have died with the database.
    assert create_run(server, "kept")[2] == 200
    revision = "SELECT version_num FROM alembic_version"
    newest = query(laboratory, revision, "mlflow")
    status, _, words = output(run_script(laboratory, image, DOWNGRADE, environment(image)))
    assert status == 0, words
    outdated = query(laboratory, revision, "mlflow")
    assert outdated != newest

    status, printed, words = output(start(laboratory, image, "setup"))
    assert (status, printed) == (75, "")
    assert "The databases hold the schema of an older release" in words
    status, printed, words = output(start(laboratory, image, "migrate"))
    assert (status, printed) == (1, "")
    assert f"A server still uses the tracking database, from {server.address};" in words
    assert query(laboratory, revision, "mlflow") == outdated
    assert server.ask("/ready")[0] == 200

    server.container.stop()
    script = "import json; print(json.load(open('/opt/mlflow/schema.json'))['auth']['known'][-1])"
    _, first, _ = output(run_script(laboratory, image, script, {}))
    users = "SELECT version_num FROM alembic_version_auth"
    newest_users = query(laboratory, users, "mlflow_auth")
    # Its tables are there already, so that its migration fails, when that of the other database is through.
    query(laboratory, f"UPDATE alembic_version_auth SET version_num = '{first.strip()}'", "mlflow_auth")
    status, printed, words = output(start(laboratory, image, "migrate"))
    assert (status, printed) == (65, "")
    assert "They are not what they were before." in words
    assert query(laboratory, revision, "mlflow") == newest
    query(laboratory, f"UPDATE alembic_version SET version_num = '{outdated}'", "mlflow")
    status, _, words = output(start(laboratory, image, "migrate"))
    assert status == 1 and "They are what they were before." in words, words

    query(laboratory, f"UPDATE alembic_version SET version_num = '{newest}'", "mlflow")
    query(laboratory, f"UPDATE alembic_version_auth SET version_num = '{newest_users}'", "mlflow_auth")
    status, _, words = output(run_script(laboratory, image, DOWNGRADE, environment(image)))
    assert status == 0, words
    status, printed, words = output(start(laboratory, image, "migrate"))
    assert status == 0, words
    assert json.loads(printed)["before"]["tracking"] == "outdated"
    assert json.loads(printed)["after"]["tracking"] == "current"
    assert query(laboratory, revision, "mlflow") == newest
