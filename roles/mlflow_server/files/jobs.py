"""Become MLflow's job runner, as `mlflow server` would start it; the unit's environment tells where the server is."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from huey import SqliteHuey

SUFFIX = ".mlflow-huey-store"


def main() -> None:
    # The runner puts every job that the database has as not done into its queue again: in one that is kept, it would
    # run twice. A lock of a job that was cut off would be held for ever. In place: the server's workers hold the files.
    for store in Path(os.environ["_MLFLOW_HUEY_STORAGE_PATH"]).glob(f"*{SUFFIX}"):
        SqliteHuey(store.name.removesuffix(SUFFIX), filename=str(store)).flush()
    # After that, so that no job falls between: what was made before is put into its queue again.
    os.environ["_MLFLOW_SERVER_UP_TIME"] = str(int(time.time() * 1000))
    # The runner ends with the process of this number: itself, so that it outlives a restart of the server.
    os.environ["MLFLOW_SERVER_PID"] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, "-m", "mlflow.server.jobs._job_runner"])


if __name__ == "__main__":
    main()
