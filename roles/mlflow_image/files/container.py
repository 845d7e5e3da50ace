"""The program of the MLflow container: it serves, or prepares the databases that it will serve from.

Commands:

  serve   write what MLflow wants as files, refuse a schema of another release, and become the server, on port 8443
  setup   create the role, the databases and their grants with the master login, if it is given; then the tables of
          empty ones, and the administrator with the password given; print what was done as JSON. Exit 75, and change
          no table, where they hold the schema of an older release: then run `migrate`
  migrate the same, and bring an older schema to this release's; refuses while a server uses the databases. Exit 65
          where it failed, and they are not what they were any more
  check   exit 1 with a sentence on stderr unless both schemas are current

All is read from the environment: what schema.py and mlflow_service read, and

  MLFLOW_SERVICE_BASIC_AUTH      the text of MLflow's basic_auth.ini, which MLFLOW_AUTH_CONFIG_PATH names; no secret
  MLFLOW_SERVICE_WORKERS         worker processes
  MLFLOW_SERVICE_STOP_TIMEOUT    seconds from SIGTERM until what is not answered by then is cut off
  MLFLOW_SERVICE_KEEPALIVE       seconds that an idle connection is kept: more than the balancer keeps one
  MLFLOW_SERVICE_METRICS         true: count requests for Prometheus
  MLFLOW_SETUP_LOGIN_USER        a role that may create roles and databases; unset: they are there already
  MLFLOW_SETUP_LOGIN_PASSWORD
  MLFLOW_SETUP_LOGIN_DATABASE    the database to connect to first
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import ipaddress
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import backup
import psycopg2
import schema
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg2 import sql
from psycopg2.extensions import encrypt_password, parse_dsn

PORT = 8443
ROOT = Path(sys.prefix)
# The one place where a running server may write.
FOLDER = Path(os.environ.get("TMPDIR", "/tmp")) / "mlflow"
# Any number will do, as long as all tasks of one server take the same; schema.py has another.
SETUP_LOCK = 0x6D6C666C6F78
# Seconds.
POOLER_PATIENCE = 180


def write_files() -> None:
    """Write what MLflow reads as a file."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    if text := os.environ.pop("MLFLOW_SERVICE_BASIC_AUTH", ""):
        path = FOLDER / "basic_auth.ini"
        path.write_text(text, encoding="utf-8")
        os.environ["MLFLOW_AUTH_CONFIG_PATH"] = str(path)


def write_certificate() -> tuple[Path, Path]:
    """Make a key pair for the way from the balancer, which verifies none, and return the files' paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mlflow")])
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 (Python 3.10 has no UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        # A task lives shorter than that.
        .not_valid_after(now + datetime.timedelta(days=3650))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = FOLDER / "tls.pem", FOLDER / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].touch(mode=0o600)
    paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return paths


def serve() -> None:
    """Become the server: gunicorn is the container's first process then, and gets its signals."""
    schema.check()
    certificate, key = write_certificate()
    if os.environ.get("MLFLOW_SERVICE_METRICS") == "true":
        counts = FOLDER / "metrics"
        counts.mkdir(exist_ok=True)
        # Of a process before a restart of the container.
        for path in counts.iterdir():
            path.unlink()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
    os.environ["MLFLOW_SERVICE_EDGE"] = "true"
    gunicorn = [
        str(ROOT / "bin/gunicorn"),
        f"--config={ROOT / 'service/gunicorn.conf.py'}",
        f"--bind=0.0.0.0:{PORT}",
        f"--certfile={certificate}",
        f"--keyfile={key}",
        f"--workers={os.environ.get('MLFLOW_SERVICE_WORKERS', '1')}",
        f"--graceful-timeout={os.environ.get('MLFLOW_SERVICE_STOP_TIMEOUT', '30')}",
        f"--keep-alive={os.environ.get('MLFLOW_SERVICE_KEEPALIVE', '75')}",
        # The edge reads what a balancer forwards, and not as uvicorn does, which would take the client's own word.
        "--forwarded-allow-ips=127.0.0.1",
    ]
    os.execv(gunicorn[0], gunicorn)


class OutdatedError(schema.SchemaError):
    """An older release's schema, which `setup` leaves alone."""


class ChangedError(schema.SchemaError):
    """A migration that failed, and left the databases changed."""


EXIT_CODES = {OutdatedError: os.EX_TEMPFAIL, ChangedError: os.EX_DATAERR}


class Database:
    """The server's login, and another one at the same PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Take the SQLAlchemy URL of one of the server's databases."""
        self.dsn = url.replace("postgresql+psycopg2://", "postgresql://", 1)
        self.owner = parse_dsn(self.dsn)["user"]

    @contextlib.contextmanager
    def connected(self, **login: str) -> Iterator[Any]:
        """Yield a connection in autocommit mode, as the owner unless a login says otherwise."""
        options: dict[str, Any] = {"connect_timeout": 10, **login}
        connection = psycopg2.connect(self.dsn, **options)
        try:
            connection.autocommit = True
            yield connection
        finally:
            connection.close()


def ask(connection: Any, statement: Any, *values: Any) -> Any:
    """Run a statement, and return the first column of its first row if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


def create_owner(connection: Any, database: Database, password: str) -> str:
    """Create the owner, or set its password unless it can log in; return what was done."""
    # A managed service hides pg_authid, so whether the password is right is asked by logging in with it.
    try:
        with database.connected(password=password):
            return "current"
    except psycopg2.OperationalError:
        pass
    there = ask(connection, "SELECT true FROM pg_roles WHERE rolname = %s", database.owner)
    # Only its digest is sent, and never MD5, whatever an old server's default is.
    digest = encrypt_password(password, database.owner, connection, "scram-sha-256")
    statement = "{} ROLE {} LOGIN NOCREATEDB NOCREATEROLE PASSWORD {}"
    verb = sql.SQL("ALTER" if there else "CREATE")
    ask(connection, sql.SQL(statement).format(verb, sql.Identifier(database.owner), sql.Literal(digest)))
    return "changed" if there else "created"


def act_as(connection: Any, owner: str) -> None:
    """Let the login user act as the owner, who cannot create databases."""
    # From 16 on, membership alone does not allow SET ROLE; before, there is no such privilege to ask for.
    privilege = "SET" if connection.server_version >= 160000 else "MEMBER"
    if not ask(connection, "SELECT pg_has_role(current_user, %s, %s)", owner, privilege):
        ask(connection, sql.SQL("GRANT {} TO CURRENT_USER").format(sql.Identifier(owner)))


def create_database(connection: Any, name: str, owner: str) -> str:
    """Create a database that only its owner may connect to; return what was done."""
    done = "current"
    names = {"name": sql.Identifier(name), "owner": sql.Identifier(owner)}
    found = ask(connection, "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s", name)
    if found is None:
        ask(connection, sql.SQL("CREATE DATABASE {name} OWNER {owner} ENCODING 'UTF8'").format(**names))
        done = "created"
    elif found != owner:
        ask(connection, sql.SQL("ALTER DATABASE {name} OWNER TO {owner}").format(**names))
        done = "changed"
    open_to_all = (
        "SELECT count(*) > 0 FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) AS entry"
        " WHERE datname = %s AND entry.grantee = 0"
    )
    if ask(connection, open_to_all, name):
        ask(connection, sql.SQL("SET ROLE {owner}").format(**names))
        ask(connection, sql.SQL("REVOKE ALL ON DATABASE {name} FROM PUBLIC").format(**names))
        ask(connection, "RESET ROLE")
        done = "changed" if done == "current" else done
    return done


def create_databases(urls: dict[str, str]) -> dict[str, Any]:
    """Do with the master login what the mlflow_database role does from a host; return what was done.

    Raises: SchemaError when the login does not work, or may not do it.
    """
    first = Database(urls["tracking"])
    login = {
        "user": os.environ["MLFLOW_SETUP_LOGIN_USER"],
        "password": os.environ["MLFLOW_SETUP_LOGIN_PASSWORD"],
        "dbname": os.environ.get("MLFLOW_SETUP_LOGIN_DATABASE", "postgres"),
    }
    if login["user"] == first.owner:
        raise schema.SchemaError(f"The login user and the owner are both '{first.owner}'; the server must not be both.")
    try:
        with first.connected(**login) as connection:
            # Tasks of two runs must not create the same thing; closing the connection gives the lock back.
            ask(connection, "SELECT pg_advisory_lock(%s)", SETUP_LOCK)
            owner = create_owner(connection, first, os.environ["PGPASSWORD"])
            act_as(connection, first.owner)
            names = dict.fromkeys(parse_dsn(Database(url).dsn)["dbname"] for url in urls.values())
            return {
                "owner": owner,
                "databases": {name: create_database(connection, name, first.owner) for name in names},
            }
    except psycopg2.Error as error:
        where = parse_dsn(first.dsn)["host"]
        raise schema.SchemaError(
            f"Failed to prepare PostgreSQL at {where} as {login['user']}: {error}".strip()
        ) from error


def await_pooler() -> None:
    """Wait until the server's own way to its databases works: a proxy learns a while later that there is a login.

    Raises: SchemaError when it does not come to that.
    """
    urls, deadline = schema.service_urls(), time.monotonic() + POOLER_PATIENCE
    while True:
        try:
            schema.status(urls)
            return
        except schema.SchemaError:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def still(before: dict[str, str]) -> bool:
    """Tell whether the databases are certainly what they were."""
    try:
        return schema.status() == before
    except schema.SchemaError:
        return False


def bring_to_this_release(urls: dict[str, str], before: dict[str, str]) -> None:
    """Change the schema while no server uses the databases: no two releases share one, and there is no way down.

    Raises: ChangedError when that failed, and the databases are or may be changed; SchemaError when they are not.
    """
    backup.alone(urls)
    try:
        schema.upgrade()
        await_pooler()
    except Exception as error:
        why = f"Failed to bring the databases to the schema of this release: {error}".strip()
        if still(before):
            raise schema.SchemaError(f"{why}. They are what they were before.") from error
        raise ChangedError(f"{why}. They are not what they were before.") from error


def setup(*, migrate: bool = False) -> dict[str, Any]:
    """Prepare the databases; return what was done.

    Raises: OutdatedError when they hold an older schema, which is changed with `migrate` alone.
    """
    os.environ["PGAPPNAME"] = backup.SESSION_NAME
    urls = schema.store_urls()
    done: dict[str, Any] = {"owner": "current", "databases": {}}
    if os.environ.get("MLFLOW_SETUP_LOGIN_PASSWORD"):
        done = create_databases(urls)
    before = schema.status()
    # What MLflow says of it is no result.
    with contextlib.redirect_stdout(sys.stderr):
        if "outdated" in [state for store, state in before.items() if store != "admin"]:
            if not migrate:
                raise OutdatedError(f"The databases hold the schema of an older release: {json.dumps(before)}.")
            bring_to_this_release(urls, before)
        elif set(before.values()) != {"current"}:
            schema.upgrade()
    await_pooler()
    after = schema.status()
    changed = before != after or {done["owner"], *done["databases"].values()} != {"current"}
    return {"changed": changed, **done, "before": before, "after": after}


def main() -> int:
    """Run the command named on the command line; return the exit code."""
    commands: dict[str, Any] = {
        "serve": serve,
        "setup": setup,
        "migrate": functools.partial(setup, migrate=True),
        "check": schema.check,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(f"usage: {Path(sys.argv[0]).name} {{{','.join(commands)}}}", file=sys.stderr)
        return 2
    os.umask(0o077)
    write_files()
    try:
        result = commands[sys.argv[1]]()
    except schema.SchemaError as error:
        print(error, file=sys.stderr)
        return EXIT_CODES.get(type(error), 1)
    if result is not None:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
