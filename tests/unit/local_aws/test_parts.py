"""The parts that need neither Docker nor a running daemon."""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import json
import socket
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import docker.errors
import pytest
from cryptography import x509
from werkzeug import Request, Response
from werkzeug.serving import WSGIRequestHandler

from local_aws import cli, databases, images, networks
from local_aws.errors import LocalAwsError
from local_aws.instances import Instances, console_text
from local_aws.server import LOOPBACK, Listeners, secure_transport
from local_aws.state import Settings, StateDir
from local_aws.tls import Authority


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    made = StateDir(tmp_path / "state")
    made.create()
    return made


# the state directory


def test_two_state_directories_share_no_name(tmp_path: Path) -> None:
    first, second = StateDir(tmp_path / "a"), StateDir(tmp_path / "b")
    assert first.prefix != second.prefix
    assert first.labels != second.labels


def test_a_killed_holder_of_the_lock_leaves_no_daemon_behind(state: StateDir) -> None:
    program = (
        "import sys, pathlib; from local_aws.state import StateDir\n"
        f"with StateDir(pathlib.Path({str(state.path)!r})).daemon_lock():\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        state.write("daemon.json", json.dumps({"pid": holder.pid}))
        assert state.daemon()["pid"] == holder.pid
        holder.kill()
    assert state.daemon() == {}  # the pid file is still there; nobody holds the lock


def test_a_damaged_file_counts_as_missing(state: StateDir) -> None:
    state.write("daemon.json", '{"pid": 1')
    assert state.read_json("daemon.json") == {}


def test_files_with_secrets_are_the_owners_alone(state: StateDir) -> None:
    state.secret("control_token")
    state.admin_keys()
    assert {path.name: path.stat().st_mode & 0o077 for path in state.path.iterdir()} == {
        "control_token": 0,
        "admin.json": 0,
    }


def test_the_administrators_keys_outlive_a_restart(state: StateDir) -> None:
    assert StateDir(state.path).admin_keys() == state.admin_keys()


def test_settings_survive_the_way_to_the_daemon() -> None:
    settings = Settings(1, 2, 3, "eu-west-1", "host", "database", "base", ["a.example"])
    assert Settings.from_json(settings.to_json()) == settings


# the command line


def test_ports_stay_the_same_while_they_are_free(state: StateDir) -> None:
    first = cli.choose_ports(state, 0)
    assert len(set(first)) == 4
    state.write("ports.json", json.dumps({"ports": first}))
    assert cli.choose_ports(state, 0) == first
    with socket.socket() as taken:
        taken.bind((LOOPBACK, first[1]))
        taken.listen()
        assert first[1] not in cli.choose_ports(state, 0)
        with pytest.raises(LocalAwsError, match=f"Port {first[1]} is taken"):
            cli.choose_ports(state, first[1])


def test_without_a_daemon_everything_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(tmp_path / "none")
    assert cli.main(["--state-dir", directory, "status"]) == 0
    assert json.loads(capsys.readouterr().out)["running"] is False
    for command in (["env"], ["reset"], ["enforce", "on"], ["zone", "a.example"]):
        assert cli.main([*command, "--state-dir", directory]) == 1
        assert "does not run" in capsys.readouterr().err
    assert not Path(directory).exists()


def test_a_missing_engine_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    assert cli.main(["start", "--state-dir", str(tmp_path / "state")]) == 1
    assert capsys.readouterr().err.startswith("No container engine answers")


# certificates and listeners


def test_the_authority_is_kept_and_replaced_when_damaged(tmp_path: Path) -> None:
    files = tmp_path / "ca.pem", tmp_path / "ca.key"
    first = Authority(*files)
    assert Authority(*files).pem == first.pem
    assert files[1].stat().st_mode & 0o077 == 0
    files[1].write_text("garbage")
    assert Authority(*files).pem != first.pem


def test_a_certificate_carries_names_and_addresses(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    certificate = x509.load_pem_x509_certificate(authority.issue(["a" * 60 + ".example", "10.1.2.3"]).certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["a" * 60 + ".example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.1.2.3"]
    certificate.verify_directly_issued_by(authority.certificate)


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[tuple[list[int], ssl.SSLContext]]:
    """Ports of a pair of listeners whose application tells the transport, and a context that trusts them."""

    def application(environ: Any, start_response: Any) -> Any:
        assert Request(environ).path == "/"
        return Response(str(secure_transport.get()))(environ, start_response)

    state = StateDir(tmp_path)
    ports = cli.choose_ports(state, 0)
    authority = Authority(tmp_path / "ca.pem", tmp_path / "ca.key")
    made = Listeners(authority, tmp_path, application, application, (ports[0], ports[1], ports[2]), WSGIRequestHandler)
    made.open(LOOPBACK)
    yield ports, ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    made.close_all()


def get(url: str, context: ssl.SSLContext | None = None) -> str:
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    with urllib.request.build_opener(*handlers).open(url, timeout=10) as response:
        return str(response.read().decode())


def test_the_transport_is_what_the_request_came_over(listeners: tuple[list[int], ssl.SSLContext]) -> None:
    ports, context = listeners
    assert get(f"https://{LOOPBACK}:{ports[0]}/", context) == "True"
    assert get(f"http://{LOOPBACK}:{ports[1]}/") == "False"


def test_metadata_is_not_served_on_loopback(listeners: tuple[list[int], ssl.SSLContext]) -> None:
    with pytest.raises(urllib.error.URLError):
        get(f"http://{LOOPBACK}:{listeners[0][2]}/")


def test_a_client_that_says_nothing_stops_nobody(listeners: tuple[list[int], ssl.SSLContext]) -> None:
    ports, context = listeners
    with socket.create_connection((LOOPBACK, ports[0])):
        assert get(f"https://{LOOPBACK}:{ports[0]}/", context) == "True"


# networks


def test_an_overlap_names_the_other_side() -> None:
    used = [(ipaddress.IPv4Network("10.42.0.0/16"), "the Docker network x")]
    assert networks.overlap(ipaddress.IPv4Network("10.42.7.0/24"), used) == "10.42.0.0/16 (the Docker network x)"
    assert networks.overlap(ipaddress.IPv4Network("10.43.0.0/16"), used) is None


def test_used_ranges_are_dockers_and_the_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    routes = tmp_path / "route"
    routes.write_text(
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 00000000 010200C0 0003 0 0 0 00000000 0 0 0\n"
        "eth0 000200C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\n"
    )
    monkeypatch.setattr(networks, "ROUTES", routes)
    docker_network = SimpleNamespace(
        name="n", attrs={"IPAM": {"Config": [{"Subnet": "10.9.0.0/16"}, {"Subnet": "fd00::/64"}]}}
    )
    client: Any = SimpleNamespace(networks=SimpleNamespace(list=lambda: [docker_network]))
    assert networks.used_ranges(client) == [
        (ipaddress.IPv4Network("10.9.0.0/16"), "the Docker network n"),
        (ipaddress.IPv4Network("192.0.2.0/24"), "a route through eth0"),
    ]


def test_an_address_is_given_out_once_until_it_is_released() -> None:
    pool = networks.AddressPool(ipaddress.IPv4Network("192.0.2.0/29"), {"192.0.2.1"})
    given = [pool.allocate() for _ in range(5)]
    assert given == [f"192.0.2.{n}" for n in range(2, 7)]
    with pytest.raises(LookupError):
        pool.allocate()
    pool.release("192.0.2.4")
    pool.release("192.0.2.4")
    pool.release("203.0.113.1")  # not of this pool
    assert pool.allocate() == "192.0.2.4"
    with pytest.raises(LookupError):
        pool.allocate()


# databases


def test_the_verifier_is_what_rfc_7677_computes() -> None:
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
    message = f"n=user,r=rOprNGfwEbeRWgbNEkqO,r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r={nonce}"
    _, _, keys = databases.scram_verifier("pencil", salt).split("$")
    stored, server = (base64.b64decode(key) for key in keys.split(":"))
    signature = hmac.digest(server, message.encode(), "sha256")
    assert base64.b64encode(signature).decode() == "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="
    proof = base64.b64decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
    client_signature = hmac.digest(stored, message.encode(), "sha256")
    client_key = bytes(a ^ b for a, b in zip(proof, client_signature, strict=True))
    assert hashlib.sha256(client_key).digest() == stored


def test_no_statement_holds_the_password() -> None:
    password = "p@ss/w:rd#100%&x"
    assert password not in databases.setup_statements("master", databases.scram_verifier(password), "mlflow")


def test_names_are_quoted() -> None:
    statements = databases.setup_statements('a"b', databases.scram_verifier("x"), "my-db")
    assert 'CREATE ROLE "a""b"' in statements
    assert 'CREATE DATABASE "my-db" OWNER "a""b"' in statements


@pytest.mark.parametrize(
    ("value", "version", "forced"),
    [("1", "14.12", True), ("0", "17.1", False), (None, "14.12", False), (None, "15.7", True)],
)
def test_tls_is_forced_by_the_group_or_by_the_versions_default(value: str | None, version: str, forced: bool) -> None:
    parameters = {} if value is None else {"rds.force_ssl": {"ParameterValue": value}}
    database: Any = SimpleNamespace(
        engine_version=version, db_parameter_groups=lambda: [SimpleNamespace(parameters=parameters)]
    )
    assert databases.forces_tls(database) is forced
    assert ("\nhostssl all" in databases.access_rules(forced)) is forced


# images and instances


def test_a_changed_recipe_or_base_is_another_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host").mkdir()
    recipe = tmp_path / "host" / "Dockerfile"
    recipe.write_text("FROM a")
    monkeypatch.setattr(images, "RECIPES", tmp_path)
    first = images.recipe_hash("host", "base")
    assert images.recipe_hash("host", "base") == first
    assert images.recipe_hash("host", "other") != first
    recipe.write_text("FROM b")
    assert images.recipe_hash("host", "base") != first


def test_a_suite_without_a_base_is_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Nothing:
        images = api = SimpleNamespace(get=lambda tag: unavailable(tag), pull=lambda *_, **__: unavailable("pull"))

    def unavailable(what: str) -> None:
        raise docker.errors.ImageNotFound(f"no {what}", explanation=f"no {what}")

    monkeypatch.setattr("local_aws.engine.connect", Nothing)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert cli.main(["images", "--suite", "noble"]) == cli.NO_BASE
    assert "cannot pull ubuntu:24.04" in capsys.readouterr().err
    assert cli.main(["images", "--suite", "trixie"]) == cli.NO_BASE
    assert "cannot debootstrap trixie because it is not installed" in capsys.readouterr().err


def test_a_first_look_at_a_new_instance_waits_for_nothing(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    for background in ("_watch", "_submit"):
        monkeypatch.setattr(Instances, background, lambda *_: None)
    nothing: Any = None
    instances, instance = Instances(nothing, state, nothing, nothing), SimpleNamespace(id="i-new")
    instances.launch(instance, None, nothing)
    assert instances.seen(["i-new", "i-old"]) == ["i-old"]
    assert instances.seen(["i-new", "i-old"]) == ["i-new", "i-old"]


def test_a_console_is_plain_text() -> None:
    assert console_text("\x1b[0;32mok\x1b[0m\r\nnext\r\n") == "ok\nnext\n"
