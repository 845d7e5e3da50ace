"""Judge a trace by a job, as the interface would have it done: jobs.py submit URL CA, jobs.py wait URL CA JOB RUN.

The administrator's password comes in on standard input; nothing there means that the server asks for none.
No model is asked: the judge is a pattern.
"""

import json
import os
import sys
import time
from typing import Any

COMMAND, URL, CA, *NUMBERS = sys.argv[1:]
os.environ.update(MLFLOW_TRACKING_URI=URL, MLFLOW_TRACKING_SERVER_CERT_PATH=CA, MLFLOW_HTTP_REQUEST_MAX_RETRIES="2")
if password := sys.stdin.read():
    os.environ.update(MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=password)

import mlflow  # noqa: E402
from mlflow.genai.scorers import RegexMatch  # noqa: E402
from mlflow.utils.rest_utils import (  # noqa: E402
    MlflowHostCreds,
    http_request,
    verify_rest_response,
)

SERVER = MlflowHostCreds(URL, username="admin" if password else None, password=password or None, server_cert_path=CA)
DONE = {"SUCCEEDED", "FAILED", "CANCELED", "TIMEOUT"}


def ask(method: str, path: str, **arguments: Any) -> Any:
    return verify_rest_response(http_request(SERVER, path, method, **arguments), path).json()


def submit() -> dict[str, str]:
    experiment = mlflow.set_experiment("jobs").experiment_id
    with mlflow.start_span("answer") as span:
        span.set_outputs("Answer: 42")
    mlflow.flush_trace_async_logging()
    scorer = json.dumps(RegexMatch(pattern="^Answer:").model_dump())
    body = {"experiment_id": experiment, "trace_ids": [span.trace_id], "serialized_scorers": [scorer]}
    answer: dict[str, str] = ask("POST", "/ajax-api/3.0/mlflow/genai/evaluate/invoke", json=body)
    return answer


def wait(job: str, run: str) -> dict[str, Any]:
    end = time.monotonic() + 240
    while (found := ask("GET", f"/ajax-api/3.0/jobs/{job}"))["status"] not in DONE and time.monotonic() < end:
        time.sleep(1)
    return {"status": found["status"], "error": found["error_message"], "metrics": mlflow.get_run(run).data.metrics}


print(json.dumps(submit() if COMMAND == "submit" else wait(*NUMBERS)))
