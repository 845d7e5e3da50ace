"""Delete for good what users have deleted: rows in the database, and the files in the artifact store.

Run with the Python of a release, as mlflow-gc does. It reads only the environment that systemd hands over
(/etc/mlflow/mlflow.env):

  _MLFLOW_SERVER_FILE_STORE             URL of the tracking database, without a password
  _MLFLOW_SERVER_ARTIFACT_ROOT          what the server proposes as the root of all artifacts: mlflow-artifacts:/
  _MLFLOW_SERVER_ARTIFACT_DESTINATION   where those lie, as in s3://bucket/prefix

Credentials for the store come from its library's default chain.

`mlflow gc` deletes proxied artifacts through the server, and so needs an administrator's login on the host. It also
drops what a registered model still uses, leaves the files of an experiment's traces behind, takes a refused deletion
for a done one, stops at the first failure, and cannot say beforehand what it will do. The rules here:

- a run and a logged model go when they were deleted long enough ago, and no version of a registered model uses them;
- an experiment goes when it was deleted long enough ago and nothing in it stays; its logged models and traces go along;
- files go first, and a row only when no file is left: what was cut off is done the next time, on whichever host.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from urllib.parse import unquote, urlsplit

AGE = re.compile(r"(?=.)" + "".join(rf"(?:(\d+(?:\.\d+)?){unit})?" for unit in "dhms"))
SECONDS = (86400, 3600, 60, 1)
# Beside schema.py's and backup.py's: two hosts that delete the same would take each other's work for failures.
LOCK = 0x6D6C666C6F77 + 2
# With so many failures the store is out of order, and each further one costs all retries again.
MOST_FAILURES = 20


class GarbageError(Exception):
    """A sentence for the operator: what is wrong."""


@dataclass(frozen=True)
class Item:
    """One thing to delete: its files, then its row."""

    kind: str
    id: str
    experiment_id: str
    uri: str
    deleted_ms: int

    def __str__(self) -> str:
        day = time.strftime("%Y-%m-%d", time.gmtime(self.deleted_ms / 1000))
        return f"{self.kind} {self.id}, deleted on {day}, {self.uri or 'without a directory of its own'}"


@dataclass
class Garbage:
    """What goes, in this order, and what is old enough but stays, with the reason."""

    items: list[Item] = field(default_factory=list)
    kept: list[tuple[Item, str]] = field(default_factory=list)


def module(name: str) -> ModuleType:
    """Import a package of the release. Nothing here can be imported, or type-checked, outside of one."""
    return importlib.import_module(name)


def milliseconds(age: str) -> int:
    """Return an age like 30d or 1d12h, as MLflow writes it, in milliseconds."""
    match = AGE.fullmatch(age)
    if not match:
        raise argparse.ArgumentTypeError(f"'{age}' is no age; give days, hours, minutes, seconds, as in 1d12h")
    parts = zip(match.groups(), SECONDS, strict=True)
    return int(sum(float(number or 0) * seconds for number, seconds in parts) * 1000)


def location(uri: str) -> str:
    """Return where the files of an artifact URI lie; a proxied one lies below the server's destination."""
    parts = urlsplit(uri)
    if parts.scheme != "mlflow-artifacts":
        return uri
    path = unquote(parts.path).strip("/")
    if parts.netloc:
        raise GarbageError(f"{uri} belongs to another server")
    if not path or ".." in path.split("/"):
        raise GarbageError(f"{uri} is no directory below the artifacts' root")
    joined: str = module("mlflow.utils.uri").append_to_uri_path(os.environ["_MLFLOW_SERVER_ARTIFACT_DESTINATION"], path)
    return joined


def erase(uri: str) -> None:
    """Delete the files of an artifact URI. Raises GarbageError when some are left, which MLflow does not look at."""
    registry = module("mlflow.store.artifact.artifact_repository_registry")
    repository = registry.get_artifact_repository(location(uri))
    repository.delete_artifacts()
    if left := repository.list_artifacts():
        raise GarbageError(f"the store has kept {len(left)} entries of {uri}; may this host delete there?")


class Store:
    """MLflow's tracking store, as far as it is needed here."""

    def __init__(self) -> None:
        # The server's own class: it refuses a schema of another release, and workspaces that it would mix up.
        stores = module("mlflow.store.tracking.sqlalchemy_store")
        # Past a pooler, which would give the lock of a session to somebody else.
        url = os.environ.get("MLFLOW_DIRECT_TRACKING_URI", os.environ["_MLFLOW_SERVER_FILE_STORE"])
        self._store = stores.SqlAlchemyStore(url, os.environ["_MLFLOW_SERVER_ARTIFACT_ROOT"])
        models = module("mlflow.store.tracking.dbmodels.models")
        run, model, experiment = models.SqlRun, models.SqlLoggedModel, models.SqlExperiment
        self._version = module("mlflow.store.model_registry.dbmodels.models").SqlModelVersion
        self._columns = {
            "run": (run.run_uuid, run.experiment_id, run.artifact_uri, run.deleted_time, run.lifecycle_stage),
            "logged model": (
                model.model_id,
                model.experiment_id,
                model.artifact_location,
                model.last_updated_timestamp_ms,
                model.lifecycle_stage,
            ),
            "experiment": (
                experiment.experiment_id,
                experiment.experiment_id,
                experiment.artifact_location,
                experiment.last_update_time,
                experiment.lifecycle_stage,
            ),
        }

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Tell whether no other host deletes, and let none begin meanwhile; the lock ends with the process."""
        engine = self._store.engine
        # SQLite is a file on one host, and has no such lock.
        if engine.dialect.name != "postgresql":
            yield True
            return
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            lock = module("sqlalchemy").text("SELECT pg_try_advisory_lock(:lock)")
            yield bool(connection.execute(lock, {"lock": LOCK}).scalar())

    def items(self, kind: str, before_ms: int | None = None, experiment_id: str | None = None) -> list[Item]:
        """Return the things of a kind: those deleted up to a time, or all those of an experiment, deleted or not."""
        columns = self._columns[kind]
        experiment, deleted, stage = columns[1], columns[3], columns[4]
        with self._store.ManagedSessionMaker() as session:
            query = session.query(*columns[:4])
            if before_ms is not None:
                query = query.filter(stage == "deleted", deleted <= before_ms)
            if experiment_id is not None:
                query = query.filter(experiment == int(experiment_id))
            return [Item(kind, str(row[0]), str(row[1]), row[2] or "", row[3] or 0) for row in query]

    def is_deleted(self, item: Item) -> bool:
        """Tell whether it still is: somebody may have restored it a moment ago, or another host has dealt with it."""
        columns = self._columns[item.kind]
        identifier, stage = columns[0], columns[4]
        value = int(item.id) if item.kind == "experiment" else item.id
        with self._store.ManagedSessionMaker() as session:
            return bool(session.query(identifier).filter(identifier == value, stage == "deleted").count())

    def used(self) -> tuple[set[str], list[str]]:
        """Return the identifiers, among other words, and the URIs that versions of registered models refer to."""
        version = self._version
        with self._store.ManagedSessionMaker() as session:
            # A deleted version keeps its row.
            query = session.query(version.run_id, version.source, version.storage_location)
            rows = query.filter(version.current_stage.is_distinct_from("Deleted_Internal")).all()
        uris = [uri for row in rows for uri in row[1:] if uri]
        return {row[0] for row in rows if row[0]} | {word for uri in uris for word in re.split("[/:]+", uri)}, uris

    def drop(self, item: Item) -> None:
        """Delete the row, with all rows that depend on it."""
        name = f"_hard_delete_{item.kind.replace(' ', '_')}"
        getattr(self._store, name)(item.id)


def collect(store: Store, before_ms: int) -> Garbage:
    """Decide what goes; the same for a dry run and for a real one."""
    garbage = Garbage()
    words, uris = store.used()
    going: dict[str, Item] = {}
    for kind in ("run", "logged model"):
        for item in store.items(kind, before_ms):
            if item.id in words:
                garbage.kept.append((item, "a registered model uses it"))
            else:
                going[item.id] = item
    experiments = []
    for item in store.items("experiment", before_ms):
        models = store.items("logged model", experiment_id=item.id)
        stays = [run.id for run in store.items("run", experiment_id=item.id) if run.id not in going]
        stays += [model.id for model in models if model.id in words]
        # Only the directory that the server itself has made for it is surely nobody else's.
        own = item.uri == f"{os.environ['_MLFLOW_SERVER_ARTIFACT_ROOT'].rstrip('/')}/{item.id}"
        stays += [uri for uri in uris if own and uri.startswith(f"{item.uri}/")]
        if stays:
            garbage.kept.append((item, f"{stays[0]} in it stays"))
            continue
        experiments.append(Item(item.kind, item.id, item.id, item.uri if own else "", item.deleted_ms))
        going.update({model.id: Item(model.kind, model.id, item.id, model.uri, item.deleted_ms) for model in models})
    garbage.items = [*going.values(), *experiments]
    return garbage


def delete(store: Store, garbage: Garbage) -> Iterator[tuple[Item, str]]:
    """Delete it all; yield each thing that was dealt with and why it could not be deleted, or nothing when it was."""
    doomed = {item.id for item in garbage.items if item.kind == "experiment"}
    # An experiment takes the rows of all that is in it along, so it has to wait for whatever is still there.
    waiting: set[str] = set()
    for item in garbage.items:
        whole = Item("experiment", item.experiment_id, item.experiment_id, "", 0)
        # A logged model of a deleted experiment need not be deleted itself.
        witness = whole if item.kind == "logged model" and item.experiment_id in doomed else item
        try:
            if not store.is_deleted(witness) or (item.kind == "experiment" and item.id in waiting):
                waiting.add(item.experiment_id)
                continue
            if item.uri:
                erase(item.uri)
            store.drop(item)
        # Whatever a store raises, the other things do not depend on it.
        except Exception as error:
            waiting.add(item.experiment_id)
            yield item, " ".join(str(error).split()) or type(error).__name__
        else:
            yield item, ""


def counted(items: list[Item]) -> str:
    """Return how many of each kind, as in 2 runs, 1 logged model, 0 experiments."""
    numbers = {kind: sum(item.kind == kind for item in items) for kind in ("run", "logged model", "experiment")}
    return ", ".join(f"{number} {kind}{'' if number == 1 else 's'}" for kind, number in numbers.items())


def run(store: Store, older_than_ms: int, dry: bool) -> int:
    """Delete, or only say what would go, and tell of it; return the exit code."""
    garbage = collect(store, int(time.time() * 1000) - older_than_ms)
    for item, reason in garbage.kept:
        print(f"kept {item}: {reason}")
    if dry:
        for item in garbage.items:
            print(f"would delete {item}")
        print(f"Would delete {counted(garbage.items)}; kept {len(garbage.kept)}. Nothing was changed.")
        return 0
    deleted: list[Item] = []
    failures = 0
    for item, failure in delete(store, garbage):
        if not failure:
            deleted.append(item)
            print(f"deleted {item}", flush=True)
            continue
        failures += 1
        print(f"Failed to delete {item}: {failure}", file=sys.stderr, flush=True)
        if failures == MOST_FAILURES:
            print(f"Gave up after {failures} failures; the next run goes on.", file=sys.stderr)
            break
    print(f"Deleted {counted(deleted)}; kept {len(garbage.kept)}; failed {failures}.")
    return 1 if failures else 0


def main() -> int:
    """Do what the command line says; return the exit code."""
    parser = argparse.ArgumentParser(prog="mlflow-gc", description="Delete for good what MLflow's users have deleted.")
    parser.add_argument("--older-than", type=milliseconds, required=True, metavar="AGE", help="30d, 1d12h and the like")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    store = Store()
    with store.alone() as alone:
        if not alone:
            print("Another host of this server is deleting right now. Nothing was done here.")
            return 0
        return run(store, arguments.older_than, arguments.dry_run)


if __name__ == "__main__":
    sys.exit(main())
