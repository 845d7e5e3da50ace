"""What a team keeps in its server, by the client of the old release: written once, and read back after each change.

data.py write|read URL; the administrator's password comes in on standard input. Prints what it reads as JSON.
"""

import hashlib
import json
import os
import sys
import tempfile
from typing import Any

COMMAND, URL = sys.argv[1:]
os.environ.update(
    MLFLOW_TRACKING_USERNAME="admin",
    MLFLOW_TRACKING_PASSWORD=sys.stdin.read(),
    MLFLOW_TRACKING_SERVER_CERT_PATH="/etc/mlflow/tls/ca.pem",
    MLFLOW_HTTP_REQUEST_MAX_RETRIES="2",
)
if not URL.startswith("https:"):
    del os.environ["MLFLOW_TRACKING_SERVER_CERT_PATH"]

import mlflow  # noqa: E402
from mlflow.server import get_app_client  # noqa: E402

USER, PASSWORD = "alice", "a-long-password-1"
mlflow.set_tracking_uri(URL)
client = mlflow.MlflowClient()


def write() -> None:
    os.chdir(tempfile.mkdtemp())
    experiment = mlflow.set_experiment("before the upgrade")
    for number in range(5):
        with mlflow.start_run() as run:
            mlflow.log_param("number", number)
            mlflow.set_tag("team", "a")
            for step in range(20):
                mlflow.log_metrics({"loss": 1 / (step + 1), "accuracy": step / 20}, step=step)
            mlflow.log_text(f"artifact {number} " * 10000, "a.txt")
    client.create_registered_model("model")
    version = client.create_model_version("model", run.info.artifact_uri, run.info.run_id)
    client.set_registered_model_alias("model", "champion", version.version)
    users = get_app_client("basic-auth", URL)
    users.create_user(USER, PASSWORD)
    users.create_experiment_permission(experiment.experiment_id, USER, "MANAGE")


def read() -> dict[str, Any]:
    experiment = client.get_experiment_by_name("before the upgrade")
    found: dict[str, Any] = {}
    for run in client.search_runs([experiment.experiment_id]):
        content = mlflow.artifacts.load_text(f"{run.info.artifact_uri}/a.txt")
        # The old release gives them in no order.
        losses = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss"))
        found[run.info.run_id] = [
            run.data.params,
            run.data.metrics,
            run.data.tags["team"],
            losses,
            hashlib.sha256(content.encode()).hexdigest(),
        ]
    assert len(found) == 5, found
    version = client.get_model_version_by_alias("model", "champion")
    # The user's own login, and a right that it has by its own permission alone.
    os.environ.update(MLFLOW_TRACKING_USERNAME=USER, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    client.set_experiment_tag(experiment.experiment_id, "read by", USER)
    return {"runs": found, "model": [version.name, version.version, version.run_id, version.source]}


if COMMAND == "write":
    write()
print(json.dumps(read(), sort_keys=True))
