"""The schema of MLflow's two databases: what a release brings, what is there, and the one step that changes it.

Run with the Python of a release. It reads only the environment that systemd hands over (/etc/mlflow/mlflow.env):

  _MLFLOW_SERVER_FILE_STORE     URL of the tracking database, without a password
  MLFLOW_AUTH_CONFIG_PATH       MLflow's basic_auth.ini, which names the database of users; unset: no authentication
  MLFLOW_DIRECT_TRACKING_URI    the same two databases past a pooler of transactions; unset: there is none
  MLFLOW_DIRECT_AUTH_URI
  PGPASSWORD                    the password of both, for libpq
  MLFLOW_AUTH_ADMIN_USERNAME    the administrator; unset: leave the users alone
  MLFLOW_AUTH_ADMIN_PASSWORD

Commands:

  record   write <release>/schema.json: each store's newest revision and all that the release knows
  probe    the same as `status`, of databases that are not configured yet; as JSON on standard input:
           {"urls": {"tracking": URL, "auth": URL}, "password": PASSWORD, "ca": the text of a PEM file, or "",
           "admin": {"username": NAME, "password": PASSWORD} or null}
  status   print {"tracking": STATE, "auth": STATE, "admin": STATE} as JSON; STATE is one of
           empty, outdated, current, newer; of the administrator: absent, outdated, current
  check    exit 1 with a sentence on stderr unless both schemas are current
  upgrade  bring both to the newest revision, create the administrator or set its password; never touches a newer one

MLflow takes seconds to import, and the service runs `check` at each start: only `upgrade` imports it.
"""

from __future__ import annotations

import configparser
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

RECORD = Path(sys.prefix) / "schema.json"
VERSION_TABLES = {"tracking": "alembic_version", "auth": "alembic_version_auth"}
# Any number will do, as long as all hosts of one server take the same.
UPGRADE_LOCK = 0x6D6C666C6F77


class SchemaError(Exception):
    """A sentence for the operator: what is wrong and what to do."""


def module(name: str) -> ModuleType:
    """Import a package of the release. Nothing here can be imported, or type-checked, outside of one."""
    return importlib.import_module(name)


def service_urls() -> dict[str, str]:
    """Return the SQLAlchemy URL by which the server reaches each store in use, by the store's name."""
    urls = {"tracking": os.environ["_MLFLOW_SERVER_FILE_STORE"]}
    if path := os.environ.get("MLFLOW_AUTH_CONFIG_PATH"):
        settings = configparser.ConfigParser()
        with Path(path).open(encoding="utf-8") as stream:
            settings.read_file(stream)
        urls["auth"] = settings["mlflow"]["database_uri"]
    return urls


def store_urls() -> dict[str, str]:
    """Return the URL of each store in use past a pooler, which would give a session's lock to somebody else."""
    return {store: os.environ.get(f"MLFLOW_DIRECT_{store.upper()}_URI", url) for store, url in service_urls().items()}


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """Yield a psycopg2 connection to a SQLAlchemy URL, in autocommit mode.

    Raises SchemaError when the database does not answer.
    """
    psycopg2 = module("psycopg2")
    try:
        connection = psycopg2.connect(url.replace("postgresql+psycopg2://", "postgresql://", 1), connect_timeout=10)
    except psycopg2.OperationalError as error:
        raise SchemaError(f"Failed to connect to {url.partition('@')[2].partition('?')[0]}: {error}".strip()) from error
    try:
        connection.autocommit = True
        yield connection
    finally:
        connection.close()


def rows(connection: Any, table: str, columns: str, condition: str = "TRUE", *values: str) -> list[tuple[Any, ...]]:
    """Return the rows of a table of ours; none when it does not exist. All but `values` is written in this file."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s) IS NOT NULL", (table,))
        if not cursor.fetchone()[0]:
            return []
        cursor.execute(f"SELECT {columns} FROM {table} WHERE {condition}", values)
        return list(cursor.fetchall())


def schema_state(connection: Any, store: str) -> str:
    """Return empty, outdated, current or newer, by the record of this release."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))[store]
    found = rows(connection, VERSION_TABLES[store], "version_num")
    if not found:
        # Before 3.6 the users' database kept no version.
        return "outdated" if store == "auth" and rows(connection, "users", "1") else "empty"
    revision = found[0][0]
    if revision == record["head"]:
        return "current"
    return "outdated" if revision in record["known"] else "newer"


def admin_state(connection: Any) -> str | None:
    """Return absent, outdated or current for the administrator; None when its login is not ours to know."""
    username, password = (os.environ.get(f"MLFLOW_AUTH_ADMIN_{name}") for name in ("USERNAME", "PASSWORD"))
    if not username or not password:
        return None
    found = rows(connection, "users", "password_hash, is_admin", "username = %s", username)
    if not found:
        return "absent"
    digest, is_admin = found[0]
    return "current" if is_admin and module("werkzeug.security").check_password_hash(digest, password) else "outdated"


def status(urls: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the state of each schema in use and, where its login is known, of the administrator."""
    states: dict[str, str] = {}
    for store, url in (urls or store_urls()).items():
        with connected(url) as connection:
            states[store] = schema_state(connection, store)
            if store == "auth" and (admin := admin_state(connection)):
                states["admin"] = admin
    return states


def probe() -> dict[str, str]:
    """Return the state of each schema that standard input names."""
    given = json.load(sys.stdin)
    os.environ["PGPASSWORD"] = given["password"]
    for name, value in (given["admin"] or {}).items():
        os.environ[f"MLFLOW_AUTH_ADMIN_{name.upper()}"] = value
    with tempfile.NamedTemporaryFile("w", encoding="utf-8") as authority:
        authority.write(given["ca"])
        authority.flush()
        # Of two values in one URL libpq takes the last.
        root = f"&sslrootcert={authority.name}" if given["ca"] else ""
        return status({store: url + root for store, url in given["urls"].items()})


def check() -> None:
    """Raise SchemaError unless each schema is exactly the one that this release brings."""
    # As the server will ask, of which there may be many: no connections of their own.
    wrong = {store: state for store, state in status(service_urls()).items() if state != "current"}
    if wrong:
        raise SchemaError(
            f"The database schema does not belong to this release: {json.dumps(wrong)}. "
            "Run the mlflow_server role, which upgrades an older one; for a newer one install the newer MLflow."
        )


def record() -> None:
    """Write what this release brings, at the end of its build; the file also marks the build as complete."""
    # Found, not imported: that takes seconds.
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        raise SchemaError(f"There is no MLflow in {sys.prefix}; its environment is not complete.")
    root = Path(spec.origin).parent
    directory = module("alembic.script").ScriptDirectory
    record = {}
    for store, path in (("tracking", "store/db_migrations"), ("auth", "server/auth/db/migrations")):
        scripts = directory(str(root / path))
        known = [script.revision for script in scripts.walk_revisions()]
        record[store] = {"head": scripts.get_current_head(), "known": known}
    partial = RECORD.with_suffix(".partial")
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.rename(RECORD)


def upgrade() -> None:
    """Bring each schema to this release's, once, whichever host of a server comes first.

    Raises SchemaError when one is newer than this release.
    """
    urls = store_urls()
    with connected(urls["tracking"]) as lock:
        with lock.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (UPGRADE_LOCK,))
        states = status()
        if newer := [store for store, state in states.items() if state == "newer"]:
            raise SchemaError(f"The schema is newer than this release: {', '.join(newer)}. Install the newer MLflow.")
        if states["tracking"] != "current":
            upgrade_tracking(urls["tracking"])
        if "auth" in urls and (states["auth"] != "current" or states.get("admin", "current") != "current"):
            upgrade_auth(urls["auth"], states.get("admin"))


def upgrade_tracking(url: str) -> None:
    """Create or upgrade the tracking tables as `mlflow db upgrade` does, then make the default experiment."""
    utils = module("mlflow.store.db.utils")
    engine = utils.create_sqlalchemy_engine_with_retry(url)
    utils._safe_initialize_tables(engine)
    utils._upgrade_db(engine)
    engine.dispose()
    module("mlflow.server.handlers").initialize_backend_stores(url, url, os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"])


def upgrade_auth(url: str, admin: str | None) -> None:
    """Create or upgrade the users' tables, and create the administrator or set its password."""
    store = module("mlflow.server.auth.sqlalchemy_store").SqlAlchemyStore()
    store.init_db(url)
    if admin is None:
        return
    username, password = os.environ["MLFLOW_AUTH_ADMIN_USERNAME"], os.environ["MLFLOW_AUTH_ADMIN_PASSWORD"]
    if store.has_user(username):
        store.update_user(username, password=password, is_admin=True)
    else:
        store.create_user(username, password, is_admin=True)


def main() -> int:
    """Run the command named on the command line; return the exit code."""
    commands: dict[str, Any] = {
        "record": record,
        "probe": probe,
        "status": status,
        "check": check,
        "upgrade": upgrade,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        print(f"usage: {Path(sys.argv[0]).name} {{{','.join(commands)}}}", file=sys.stderr)
        return 2
    try:
        result = commands[sys.argv[1]]()
    except SchemaError as error:
        print(error, file=sys.stderr)
        return 1
    if result is not None:
        print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
