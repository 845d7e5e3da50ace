"""A steady load by the stock MLflow client until standard input ends; prints what failed and the longest wait, as JSON.

Usage: load.py once|stock

once: nothing is tried again, so each request is counted that a user's client would hide by its retries.
stock: MLflow's own retries, so only what a user would see fails.

Times are those of the machine's monotonic clock, which its tests share.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

# MLflow prints two lines for each run that ends, and nobody reads standard output before the load has ended.
os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
if sys.argv[1] == "once":
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"

import mlflow
from mlflow.tracking import MlflowClient

CLIENTS = 4
PAUSE = 0.05
SLOW = 10.0


class Load:
    """What the clients did."""

    def __init__(self) -> None:
        self.client = MlflowClient()
        self.experiment = mlflow.set_experiment("load").experiment_id
        self.ended = threading.Event()
        self.lock = threading.Lock()
        self.requests = 0
        self.longest = 0.0
        self.failures: list[dict[str, Any]] = []
        self.slow: list[dict[str, Any]] = []

    def call(self, name: str, *words: Any, **more: Any) -> Any:
        """Make one call of the client, and note how it went."""
        start = time.monotonic()
        try:
            answer, error = getattr(self.client, name)(*words, **more), None
        except Exception as failure:
            answer, error = None, str(failure)[:300]
        lasted = time.monotonic() - start
        with self.lock:
            self.requests += 1
            self.longest = max(self.longest, lasted)
            if error is not None:
                self.failures.append({"call": name, "at": start, "lasted": lasted, "error": error})
            elif lasted > SLOW:
                self.slow.append({"call": name, "at": start, "lasted": lasted})
        return answer

    def work(self) -> None:
        """Write a run and read it back, over and over."""
        while not self.ended.is_set():
            run = self.call("create_run", self.experiment)
            if run is None:
                time.sleep(PAUSE)
                continue
            for step in range(10):
                self.call("log_metric", run.info.run_id, "loss", 1 / (step + 1), step=step)
                self.call("get_run", run.info.run_id)
                if self.ended.wait(PAUSE):
                    break
            self.call("set_terminated", run.info.run_id)


def main() -> None:
    """Say `LOADING` when the first run is there, and the result when standard input ends."""
    load = Load()
    threads = [threading.Thread(target=load.work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    print("LOADING", flush=True)
    sys.stdin.read()
    load.ended.set()
    for thread in threads:
        thread.join()
    print(
        "RESULT",
        json.dumps({"requests": load.requests, "longest": load.longest, "failures": load.failures, "slow": load.slow}),
    )


if __name__ == "__main__":
    main()
