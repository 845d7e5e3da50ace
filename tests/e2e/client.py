"""What a data scientist does, with the stock MLflow client; prints what the tests look for elsewhere, as JSON."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow.tracking import MlflowClient


class Doubler(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A model whose answer can be checked."""

    def predict(self, context: Any, model_input: list[float], params: Any = None) -> list[float]:
        return [2 * value for value in model_input]


def log() -> dict[str, str]:
    """Log a run with an artifact and a registered model."""
    content = os.urandom(3 * 1024 * 1024)
    mlflow.set_experiment("e2e")
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as directory:
        mlflow.log_params({"alpha": 0.5, "l1_ratio": 0.1})
        for step in range(3):
            mlflow.log_metric("rmse", 1.0 - step / 10, step=step)
        path = Path(directory) / "weights.bin"
        path.write_bytes(content)
        mlflow.log_artifact(str(path), "weights")
        mlflow.pyfunc.log_model(
            name="model", python_model=Doubler(), registered_model_name="E2eDoubler", pip_requirements=["mlflow"]
        )
    return {"run_id": run.info.run_id, "sha256": hashlib.sha256(content).hexdigest()}


def read(run_id: str, sha256: str) -> dict[str, object]:
    """Read everything back and compare."""
    client = MlflowClient()
    run = client.get_run(run_id)
    assert run.data.params == {"alpha": "0.5", "l1_ratio": "0.1"}, run.data.params
    assert [metric.value for metric in client.get_metric_history(run_id, "rmse")] == [1.0, 0.9, 0.8]
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="weights/weights.bin")
    assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == sha256
    versions = client.search_model_versions("name = 'E2eDoubler'")
    model = mlflow.pyfunc.load_model(f"models:/E2eDoubler/{versions[0].version}")
    assert model.predict([1.0, 2.5]) == [2.0, 5.0]
    assert [found.info.run_id for found in client.search_runs([run.info.experiment_id], "params.alpha = '0.5'")] == [
        run_id
    ]
    return {"artifact_uri": run.info.artifact_uri, "experiment_id": run.info.experiment_id, "versions": len(versions)}


if __name__ == "__main__":
    print("RESULT", json.dumps(log() if sys.argv[1] == "log" else read(*sys.argv[2:])))
