"""gunicorn's settings for the MLflow tracking server; https://docs.gunicorn.org/en/stable/settings.html explains each.

The unit hands over the number of workers and the time that a stopping server has.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter
    from gunicorn.workers.base import Worker

_FOLDER = str(Path(__file__).resolve().parent)
# Only the packages of the release and this folder: the unit's working directory is where the server may write.
sys.path.insert(0, _FOLDER)
chdir = _FOLDER

# Only a worker that accepts connections may say that the service is ready; gunicorn itself would say so too early.
if "NOTIFY_SOCKET" in os.environ:
    os.environ["MLFLOW_SERVICE_NOTIFY_SOCKET"] = os.environ.pop("NOTIFY_SOCKET")

wsgi_app = "mlflow_service.app:service"
worker_class = "mlflow_service.worker.Worker"
# Loaded once and forked: the workers share what they do not change, and a new one is there within a tenth of a second.
preload_app = True
# A worker whose event loop gives no sign of life for so many seconds is replaced.
timeout = 120
# Longer than nginx keeps an idle connection, so that only nginx ends one.
keepalive = 75
# Only nginx can reach the socket, and it sets these headers itself; in a container mlflow_service.edge does.
forwarded_allow_ips = "*"
# In memory: a heartbeat must not wait for a disk. A container may have none, and its TMPDIR then.
worker_tmp_dir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
control_socket_disable = True


def when_ready(server: Arbiter) -> None:
    """Keep what is loaded out of the collector's sight, whose marks would make each worker copy it."""
    from mlflow_service.app import loaded

    loaded()


def post_fork(server: Arbiter, worker: Worker) -> None:
    """Give the worker connections of its own."""
    from mlflow_service.app import forked

    forked()


def child_exit(server: Arbiter, worker: Worker) -> None:
    """Tell the metrics that what the worker was answering is over."""
    from mlflow_service.metrics import forget

    forget(worker.pid)
