"""A change of the databases' schema with a way back: dump both, migrate, and restore them when that was no good.

Run as schema.py is, with the same environment, and while this host's server is stopped. MLflow itself has no way down.

Commands, all with the directory that holds the backups:

  ready    exit 1 with a sentence on stderr unless a backup can be made now
  upgrade  dump every database that holds data, run `schema.py upgrade`, and restore what it changed if it fails
  restore  put back what `pending` in that directory names, unless a server has written since
  rollback put back the newest backup that this release knows, and give up all that was written since

`pending` is a link to the backup of an upgrade that nobody has found good yet. Whoever finds it good removes the link.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import schema
from schema import SchemaError

CLIENTS = Path("/usr/lib/postgresql")
# Not schema.py's lock, which `schema.py upgrade` takes inside of this one.
BACKUP_LOCK = schema.UPGRADE_LOCK + 1
# By its own name this program knows the sessions of its like, on this host and on others, from those of a server.
SESSION_NAME = "mlflow-backup"
PATIENCE = 30
# A pooler keeps its connections when the servers have gone, so of those only the ones count that are used: a server
# behind a balancer answers /ready through one every ten seconds. By then PostgreSQL has counted all that was written.
IN_USE = (
    "state <> 'idle' OR state_change > now() - interval '15 s'"
    if "MLFLOW_DIRECT_TRACKING_URI" in os.environ
    else "TRUE"
)
# What a role may own in a schema, and how each is dropped. What an extension brought belongs to somebody else.
EMPTY_SCHEMA = """
SET client_min_messages = warning;
DO $$
DECLARE
  command text;
BEGIN
  FOR command IN
    SELECT format('DROP %s IF EXISTS %s CASCADE', kind, name) FROM (
      SELECT CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
        ELSE 'TABLE' END, oid::regclass::text, relnamespace, relowner
        FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'S')
      UNION ALL SELECT 'ROUTINE', oid::regprocedure::text, pronamespace, proowner FROM pg_proc
      UNION ALL SELECT 'TYPE', oid::regtype::text, typnamespace, typowner FROM pg_type WHERE typtype IN ('e', 'd')
    ) AS objects (kind, name, namespace, owner)
    WHERE namespace = (SELECT oid FROM pg_namespace WHERE nspname = current_schema())
      AND owner = (SELECT oid FROM pg_roles WHERE rolname = current_user)
    -- A column's own sequence goes with its table, and in no other way.
    ORDER BY kind <> 'TABLE'
  LOOP
    EXECUTE command;
  END LOOP;
END
$$;
"""


def databases() -> dict[str, str]:
    """Return the URL of each database by the store's name, and one that holds both stores only once."""
    urls = schema.store_urls()
    return {store: url for store, url in urls.items() if store == "tracking" or url != urls["tracking"]}


def value(connection: Any, query: str) -> Any:
    """Return the one value that a query of this file selects."""
    with connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


def revision(store: str, url: str) -> str | None:
    """Return the revision that a store's tables are at; None where they keep none."""
    with schema.connected(url) as connection:
        found = schema.rows(connection, schema.VERSION_TABLES[store], "version_num")
    return str(found[0][0]) if found else None


def alone(urls: dict[str, str]) -> None:
    """Wait until no server uses the databases: what it wrote after the dump would be lost in a restore.

    Raises SchemaError when one keeps doing so.
    """
    deadline = time.monotonic() + PATIENCE
    for store, url in urls.items():
        with schema.connected(url) as connection:
            query = f"""
                SELECT string_agg(DISTINCT coalesce(host(client_addr), 'the database host'), ', ')
                FROM pg_stat_activity
                WHERE datname = current_database() AND usename = current_user AND application_name <> '{SESSION_NAME}'
                AND ({IN_USE})
            """
            while users := value(connection, query):
                if time.monotonic() > deadline:
                    raise SchemaError(
                        f"A server still uses the {store} database, from {users}; what it writes now could be lost. "
                        "Stop every server of these databases but this role's own, and run the role again."
                    )
                time.sleep(1)


def writes(url: str) -> int:
    """Return how many rows have ever been written in a database: exact once its sessions have ended."""
    query = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables"
    with schema.connected(url) as connection:
        return int(value(connection, query))


def client(server_major: int) -> Path:
    """Return the directory of the PostgreSQL client for a server: its own version's, or else the newest.

    Raises SchemaError when that is older than the server, whose databases it could not dump.
    """
    found = {int(path.parents[1].name): path.parent for path in CLIENTS.glob("[0-9]*/bin/pg_dump")}
    if server_major in found:
        return found[server_major]
    newest = max(found, default=0)
    if newest < server_major:
        raise SchemaError(
            f"The database runs PostgreSQL {server_major}, too new for the newest client here ({newest or 'none'}). "
            f"Install postgresql-client-{server_major} (the PostgreSQL project's own repository has it), "
            "or take a snapshot of the database and set mlflow_server_upgrade_backup to false."
        )
    return found[newest]


def programs(store: str) -> Path:
    """Return the directory of the client for a store's database."""
    with schema.connected(databases()[store]) as connection:
        return client(connection.server_version // 10000)


def ready(directory: Path) -> None:
    """Raise SchemaError when there is no client, or no room for the dumps: what the databases take, which is plenty."""
    needed = 0
    for store, url in databases().items():
        programs(store)
        with schema.connected(url) as connection:
            needed += value(connection, "SELECT pg_database_size(current_database())")
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise SchemaError(
            f"A backup of the databases may need {needed / 2**30:.2f} GiB in {directory}, where {free / 2**30:.2f} are "
            "free. Make room there, or take a snapshot of the database and set mlflow_server_upgrade_backup to false."
        )


def cause(stderr: str) -> str:
    """Return the line of a program's last words that says why it failed."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(error|exception|fatal)\S*: ", line, re.IGNORECASE)]
    return (errors or lines or ["it was killed"])[-1].strip()


def run(command: list[str], what: str, **environment: str) -> None:
    """Run a command and pass on what it says. Raises SchemaError with the cause when it fails."""
    done = subprocess.run(
        command, env=os.environ | environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise SchemaError(f"Failed to {what}: {cause(done.stderr)}")


def libpq(url: str) -> str:
    """Return a SQLAlchemy URL as libpq's programs take it. There is no password in it."""
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)


def dump(directory: Path) -> Path:
    """Dump the databases and return the directory of the new backup, which is complete or not there at all."""
    ready(directory)
    release = Path(sys.prefix).name
    target = directory / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-before-{release}"
    partial = directory / "partial"
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(mode=0o700)
    for store, url in databases().items():
        file = str(partial / f"{store}.dump")
        pg_dump, pg_restore = (str(programs(store) / name) for name in ("pg_dump", "pg_restore"))
        run([pg_dump, "--format=custom", f"--file={file}", libpq(url)], f"dump the {store} database")
        run([pg_restore, "--list", file], f"read back the dump of the {store} database")
    write_manifest(partial, {"revisions": {store: revision(store, url) for store, url in schema.store_urls().items()}})
    partial.rename(target)
    return target


def write_manifest(backup: Path, manifest: dict[str, Any]) -> None:
    """Write what is known of a backup, all of it or nothing."""
    partial = backup / "manifest.partial"
    partial.write_text(json.dumps(manifest), encoding="utf-8")
    partial.rename(backup / "manifest.json")


def read_manifest(backup: Path) -> dict[str, Any]:
    """Return what write_manifest wrote. Raises SchemaError when there is no such backup."""
    try:
        return dict(json.loads((backup / "manifest.json").read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise SchemaError(f"There is no backup at {backup}.") from error


def put_back(store: str, url: str, backup: Path) -> None:
    """Replace all that the owner has in a database by what is in its dump, in one transaction.

    Not by `pg_restore --clean`, which knows nothing of what the newer schema added, and fails on what hangs on it.
    """
    with schema.connected(url) as connection:
        name = value(connection, "SELECT current_schema()")
    folder, file = programs(store), backup / f"{store}.dump"
    pg_restore = [str(folder / "pg_restore"), "--no-owner", f"--schema={name}", "--file=-", str(file)]
    psql = [str(folder / "psql"), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", libpq(url)]
    with (
        subprocess.Popen(pg_restore, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reading,
        subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as writing,
    ):
        assert reading.stdout and reading.stderr and writing.stdin and writing.stderr
        try:
            writing.stdin.write(b"BEGIN;\n" + EMPTY_SCHEMA.encode())
            for line in reading.stdout:
                # A client from 17 on sets what an older server does not know.
                if line != b"SET transaction_timeout = 0;\n":
                    writing.stdin.write(line)
                if line.startswith(b"-- Name: "):
                    break
            shutil.copyfileobj(reading.stdout, writing.stdin)
            # Without this word psql ends without a commit.
            if reading.wait() == 0:
                writing.stdin.write(b"COMMIT;\nANALYZE;\n")
            writing.stdin.close()
        except BrokenPipeError:
            reading.kill()
            # What it still holds cannot be written either.
            with suppress(BrokenPipeError):
                writing.stdin.close()
        stderr = (reading.stderr.read() + writing.stderr.read()).decode(errors="replace")
    if reading.returncode or writing.returncode:
        raise SchemaError(
            f"Failed to restore the {store} database from {backup}, and left it as it was: {cause(stderr)}"
        )


@contextmanager
def locked() -> Iterator[None]:
    """Hold the lock of backups and restores, among all hosts of one server."""
    with schema.connected(databases()["tracking"]) as connection:
        value(connection, f"SELECT pg_advisory_lock({BACKUP_LOCK})")
        yield


def migrate() -> None:
    """Run `schema.py upgrade` in a process of its own, so that all its sessions end, and their writes are counted."""
    command = [sys.executable, str(schema.__file__), "upgrade"]
    run(command, "bring the databases to the schema of this release", PGAPPNAME="mlflow-schema")


def upgrade(directory: Path, keep: int) -> dict[str, str]:
    """Dump the databases, migrate them, and restore what a failing migration changed. Return the path of the backup."""
    with locked():
        states = schema.status()
        if "outdated" not in (states[store] for store in schema.store_urls()):
            migrate()
            return {}
        urls = databases()
        alone(urls)
        before = {store: writes(url) for store, url in urls.items()}
        backup = dump(directory)
        alone(urls)
        if before != {store: writes(url) for store, url in urls.items()}:
            raise SchemaError(
                "A server wrote to the databases while they were dumped. Stop it, and run the role again."
            )
        pending = directory / "pending"
        pending.unlink(missing_ok=True)
        pending.symlink_to(backup.name)
        try:
            migrate()
        except SchemaError as error:
            note_writes(backup)
            revisions = read_manifest(backup)["revisions"]
            changed = {store for store, url in schema.store_urls().items() if revision(store, url) != revisions[store]}
            for store in {store if store in urls else "tracking" for store in changed}:
                put_back(store, urls[store], backup)
            pending.unlink()
            raise SchemaError(
                f"{error}. The databases are as they were before; their backup stays in {backup}."
            ) from error
        note_writes(backup)
        for old in backups(directory)[:-keep]:
            shutil.rmtree(old)
        return {"backup": str(backup)}


def note_writes(backup: Path) -> None:
    """Keep how much had been written when an upgrade ended, so that a restore knows whether a server has written since.

    At once, because without a count nothing is ever restored unasked, and again when all sessions have ended: a count
    that came too early is too low, and a restore then refuses.
    """
    urls = databases()
    for settle in (dict, lambda: alone(urls)):
        settle()
        counts = {store: writes(url) for store, url in urls.items()}
        write_manifest(backup, read_manifest(backup) | {"writes": counts})


def backups(directory: Path) -> list[Path]:
    """Return the complete backups, the oldest first."""
    return sorted(path for path in directory.glob("*-before-*") if path.is_dir())


def restore(directory: Path) -> dict[str, str]:
    """Put the databases back to what they were before the pending upgrade. Return the path of the backup.

    Raises SchemaError, and changes nothing, when a server may have written since.
    """
    backup = (directory / "pending").resolve()
    with locked():
        alone(databases())
        manifest = read_manifest(backup)
        counts = manifest.get("writes", {})
        # A restore that was cut off between the two databases goes on with the second.
        left = {store: url for store, url in databases().items() if store not in manifest.get("restored", [])}
        if any(writes(url) != counts.get(store) for store, url in left.items()):
            raise SchemaError(f"A server may have written since, and restoring {backup} would lose that.")
        for store, url in left.items():
            put_back(store, url, backup)
            manifest["restored"] = [*manifest.get("restored", []), store]
            write_manifest(backup, manifest)
        (directory / "pending").unlink()
    return {"restored": str(backup)}


def rollback(directory: Path) -> dict[str, str]:
    """Dump the databases, and put them back to the newest backup that this release knows: what came since is given up.

    Does nothing when the databases are not newer than this release. Return the paths of both backups.
    """
    with locked():
        if "newer" not in schema.status().values():
            return {}
        alone(databases())
        known = json.loads(schema.RECORD.read_text(encoding="utf-8"))
        for backup in reversed(backups(directory)):
            revisions = read_manifest(backup)["revisions"]
            if all(found is None or found in known[store]["known"] for store, found in revisions.items()):
                break
        else:
            raise SchemaError(f"No backup in {directory} has a schema that this release knows.")
        given_up = dump(directory)
        for store, url in databases().items():
            put_back(store, url, backup)
        (directory / "pending").unlink(missing_ok=True)
    return {"restored": str(backup), "given_up": str(given_up)}


def main() -> int:
    """Run the command named on the command line; return the exit code."""
    commands: dict[str, Any] = {"ready": ready, "restore": restore, "rollback": rollback}
    parser = argparse.ArgumentParser(description="Back up, upgrade and restore MLflow's databases.")
    parser.add_argument("command", choices=[*commands, "upgrade"])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--keep", type=int, default=1, help="backups that an upgrade leaves")
    given = parser.parse_args()
    os.environ["PGAPPNAME"] = SESSION_NAME
    try:
        if given.command == "upgrade":
            result = upgrade(given.directory, given.keep)
        else:
            result = commands[given.command](given.directory)
    except SchemaError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(result or {}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
