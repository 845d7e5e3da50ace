"""Become MLflow's job runner, as `mlflow server` would start it; what it needs to know of the server comes in the environment."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from huey import SqliteHuey

SUFFIX = ".mlflow-huey-store"


def main() -> None:
    # The database knows every job that is not done, and the runner puts each into its queue again: in a queue that is kept, it would run twice.
    # A lock of a job that was cut off would be held for ever. Emptied in place, because the server's workers hold the files open.
    for store in Path(os.environ["_MLFLOW_HUEY_STORAGE_PATH"]).glob(f"*{SUFFIX}"):
        SqliteHuey(store.name.removesuffix(SUFFIX), filename=str(store)).flush()
    # After that, so that no job falls between: what was made before is put into its queue again.
    os.environ["_MLFLOW_SERVER_UP_TIME"] = str(int(time.time() * 1000))
    # The runner ends with the process of this number: itself, so that it outlives restarts of the server, whose process systemd looks after.
    os.environ["MLFLOW_SERVER_PID"] = str(os.getpid())
    os.execv(sys.executable, [sys.executable, "-m", "mlflow.server.jobs._job_runner"])


if __name__ == "__main__":
    main()
