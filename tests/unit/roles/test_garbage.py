"""The program that deletes for good what users have deleted: by a real MLflow's own store, against an S3 API.

No moment is waited for: what is old was made old in the database.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "plugins/mlflow_endpoint_validate"))

from mlflow_servers import ROOT, mlflow_program

PROGRAM = ROOT / "roles/mlflow_server/files/garbage.py"
DAY = 86400
# By the store that the server uses; prints the identifiers by their names here.
SEED = """
import json, os
from mlflow.entities import LoggedModelStatus
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as Registry
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

url = os.environ["_MLFLOW_SERVER_FILE_STORE"]
store, registry = SqlAlchemyStore(url, "mlflow-artifacts:/"), Registry(url)
ids, uris = {}, {}

def run(name, experiment, deleted=True):
    made = store.create_run(experiment, "u", 1, [], name)
    ids[name], uris[name] = made.info.run_id, made.info.artifact_uri
    if deleted:
        store.delete_run(made.info.run_id)

def model(name, experiment, deleted=True):
    made = store.create_logged_model(experiment, name)
    store.finalize_logged_model(made.model_id, LoggedModelStatus.READY)
    ids[name], uris[name] = made.model_id, made.artifact_location
    if deleted:
        store.delete_logged_model(made.model_id)

for name in ("live", "dead", "dead-with-live-run", "dead-with-used-model", "dead-young"):
    ids[name] = store.create_experiment(name)
    uris[name] = store.get_experiment(ids[name]).artifact_location
for name in ("old-run", "young-run", "used-run", "once-used-run", "stuck-run", "stray-run"):
    run(name, ids["live"])
run("live-run", ids["live"], deleted=False)
model("old-model", ids["live"])
model("used-model", ids["live"], deleted=False)
model("live-model", ids["live"], deleted=False)
run("run-of-dead", ids["dead"], deleted=False)
model("model-of-dead", ids["dead"], deleted=False)
run("restored-run", ids["dead-with-live-run"], deleted=False)
model("used-model-of-dead", ids["dead-with-used-model"], deleted=False)
for name in ("dead", "dead-with-live-run", "dead-with-used-model", "dead-young"):
    store.delete_experiment(ids[name])
store.restore_run(ids["restored-run"])
registry.create_registered_model("registered")
registry.create_model_version("registered", uris["used-run"] + "/model", ids["used-run"])
registry.create_model_version("registered", "models:/" + ids["used-model"], None, model_id=ids["used-model"])
registry.create_model_version("registered", uris["used-model-of-dead"], None)
registry.create_model_version("registered", uris["once-used-run"] + "/model", ids["once-used-run"])
registry.delete_model_version("registered", 4)
store.delete_logged_model(ids["used-model"])
print(json.dumps([ids, uris]))
"""


@dataclass
class World:
    """A database and a bucket, of which some is garbage."""

    database: Path
    env: dict[str, str]
    s3: Any
    bucket: str
    ids: dict[str, str]
    uris: dict[str, str]

    def gc(self, *arguments: str, age: str = "30d", code: int = 0) -> str:
        """Run the program; return what it says, on both channels."""
        command = [str(python()), str(PROGRAM), "--older-than", age, *arguments]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def keys(self) -> set[str]:
        return {item["Key"] for item in self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])}

    def put(self, name: str, path: str = "a/file") -> str:
        """Give a run, a model or an experiment a file; return its key."""
        key = f"artifacts/{self.uris[name].removeprefix('mlflow-artifacts:/')}/{path}"
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=b"x")
        return key

    def rows(self) -> set[str]:
        """Return the names of all things that have a row."""
        found = {str(row[0]) for row in self.sql("SELECT run_uuid FROM runs UNION SELECT model_id FROM logged_models")}
        found |= {str(row[0]) for row in self.sql("SELECT experiment_id FROM experiments")}
        return {name for name, identifier in self.ids.items() if identifier in found}


def python() -> Path:
    return mlflow_program().with_name("python")


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://127.0.0.1:{1}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """A database, made once, and the names of what is in it."""
    database = tmp_path_factory.mktemp("seed") / "mlflow.db"
    url = f"sqlite:///{database}"
    env = {"_MLFLOW_SERVER_FILE_STORE": url, "MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true"}
    env = {**os.environ, **env}
    done = subprocess.run([python(), "-c", SEED], env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return database, json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def world(tmp_path: Path, store: str, seed: tuple[Path, list[dict[str, str]]]) -> World:
    """Everything deleted is 40 days old but for what has "young" in its name; everything has a file."""
    database = tmp_path / "mlflow.db"
    shutil.copy(seed[0], database)
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "eu-central-1"}
    s3 = boto3.client("s3", endpoint_url=store, **keys)  # type: ignore[call-overload]
    bucket = f"b-{time.monotonic_ns()}"
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    env = {
        **os.environ,
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": f"s3://{bucket}/artifacts",
        "MLFLOW_S3_ENDPOINT_URL": store,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    world = World(database, env, s3, bucket, *seed[1])
    old, young = (int(time.time() - days * DAY) * 1000 for days in (40, 20))
    world.sql("UPDATE runs SET deleted_time = ? WHERE lifecycle_stage = 'deleted'", old)
    world.sql("UPDATE logged_models SET last_updated_timestamp_ms = ?", old)
    world.sql("UPDATE experiments SET last_update_time = ?", old)
    world.sql("UPDATE runs SET deleted_time = ? WHERE run_uuid = ?", young, world.ids["young-run"])
    world.sql("UPDATE experiments SET last_update_time = ? WHERE experiment_id = ?", young, world.ids["dead-young"])
    for name in world.uris:
        world.put(name)
    # Directories of others, whose names only begin like those of a run and an experiment that go.
    for key in (
        f"artifacts/{world.ids['dead']}0/a",
        f"artifacts/{world.ids['live']}/{world.ids['old-run']}x/a",
        "other/a",
    ):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    return world


GOING = {"old-run", "once-used-run", "stuck-run", "stray-run", "old-model", "dead", "run-of-dead", "model-of-dead"}


def test_a_dry_run_tells_and_deletes_nothing(world: World) -> None:
    keys, rows = world.keys(), world.rows()
    said = world.gc("--dry-run")
    assert (world.keys(), world.rows()) == (keys, rows)
    assert {name for name in world.ids if f"would delete run {world.ids[name]}," in said} == {
        name for name in GOING if "run" in name
    }
    assert f"would delete experiment {world.ids['dead']}, deleted on 20" in said
    assert f"kept run {world.ids['used-run']}, deleted on 20" in said
    assert "Would delete 5 runs, 2 logged models, 1 experiment; kept 4. Nothing was changed." in said


def test_what_is_old_goes_with_its_files_and_nothing_else(world: World) -> None:
    traces = world.put("dead", "traces/tr-1/artifacts/traces.json")
    keys, rows = world.keys(), world.rows()
    said = world.gc()
    assert "Deleted 5 runs, 2 logged models, 1 experiment; kept 4; failed 0." in said
    assert rows - world.rows() == GOING
    gone = {key for name in GOING for key in keys if key.startswith(f"artifacts/{world.uris[name][18:]}/")}
    assert traces in gone
    assert keys - world.keys() == gone
    assert "Deleted 0 runs, 0 logged models, 0 experiments; kept 4; failed 0." in world.gc()


def test_the_age_decides(world: World) -> None:
    assert "Would delete 0 runs, 0 logged models, 0 experiments; kept 0." in world.gc("--dry-run", age="41d")
    assert f"run {world.ids['young-run']}" in world.gc("--dry-run", age="19d23h59m1.5s")
    assert "is no age" in world.gc("--dry-run", age="30", code=2)
    assert "is no age" in world.gc("--dry-run", age="", code=2)


def test_what_cannot_be_deleted_is_told_and_stays_and_holds_nothing_up(world: World) -> None:
    broken = {
        "stuck-run": "nosuch://x/y",
        "stray-run": "mlflow-artifacts://elsewhere/1/2",
        "run-of-dead": "mlflow-artifacts:/../x",
    }
    for name, uri in broken.items():
        world.sql("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", uri, world.ids[name])
    said = world.gc(code=1)
    for name in broken:
        assert f"Failed to delete run {world.ids[name]}," in said
    assert "belongs to another server" in said
    assert "is no directory below the artifacts' root" in said
    # The experiment waits for its run.
    assert {*broken, "dead"} <= world.rows()
    assert "Deleted 2 runs, 2 logged models, 0 experiments; kept 4; failed 3." in said


def test_a_store_that_refuses_keeps_the_rows(world: World) -> None:
    rows = world.rows()
    world.env["MLFLOW_S3_ENDPOINT_URL"] = "http://127.0.0.1:9"
    world.env["AWS_MAX_ATTEMPTS"] = "1"
    assert "failed" in world.gc(code=1)
    assert world.rows() == rows


def test_files_that_a_store_keeps_are_noticed(world: World, tmp_path: Path) -> None:
    # S3 answers a refused deletion with status 200 and a list of errors, which MLflow does not read.
    deaf = "import botocore.client as c; real = c.BaseClient._make_api_call; "
    deaf += "c.BaseClient._make_api_call = lambda s, n, k: {} if n == 'DeleteObjects' else real(s, n, k)"
    (tmp_path / "sitecustomize.py").write_text(deaf)
    world.env["PYTHONPATH"] = str(tmp_path)
    keys, rows = world.keys(), world.rows()
    assert "the store has kept 1 entries of" in world.gc(code=1)
    assert (world.keys(), world.rows()) == (keys, rows)


def test_an_experiment_in_a_directory_of_somebody_else_leaves_it(world: World) -> None:
    world.sql(
        "UPDATE experiments SET artifact_location = 'mlflow-artifacts:/shared' WHERE experiment_id = ?",
        world.ids["dead"],
    )
    world.s3.put_object(Bucket=world.bucket, Key="artifacts/shared/a", Body=b"x")
    world.gc()
    assert "dead" not in world.rows()
    assert {"artifacts/shared/a"} <= world.keys()
