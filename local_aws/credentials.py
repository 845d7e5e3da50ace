"""The credentials of ECS tasks: temporary keys of the task's role, for the task alone.

A task is known by the address that it asks from, and by an id that only its own environment names. Source:
https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-iam-roles.html
"""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from moto.sts.models import AssumedRole, sts_backends
from moto.utilities.utils import get_partition
from werkzeug import Request, Response

from local_aws.metadata import RENEW_SECONDS, SESSION_SECONDS
from local_aws.server import LOCAL_ADDRESS
from local_aws.tasks import CREDENTIALS_PATH, Run

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class TaskCredentials:
    """WSGI application.

    find: the task behind (gateway address that was asked, address that asks), or None.
    """

    def __init__(self, find: Callable[[str, str], Run | None]) -> None:
        self._find = find
        self._sessions: dict[str, AssumedRole] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        run = self._find(str(environ[LOCAL_ADDRESS]), request.remote_addr or "")
        if run is None or request.path != CREDENTIALS_PATH + run.credentials_id or not run.role_arn():
            return Response("", 404)(environ, start_response)
        return Response(self._keys(run), content_type="application/json")(environ, start_response)

    def reset(self) -> None:
        with self._lock:
            self._sessions.clear()

    def _keys(self, run: Run) -> str:
        """The same keys until a quarter of an hour before they expire."""
        now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)  # moto's times are naive UTC
        renew = now + datetime.timedelta(seconds=RENEW_SECONDS)
        with self._lock:
            session = self._sessions.get(run.task.id)
            if session is None or session.expiration.replace(tzinfo=None) < renew:
                session = sts_backends[run.task._account_id][get_partition(run.task.region_name)].assume_role(
                    region_name=run.task.region_name,
                    role_session_name=run.task.id,
                    role_arn=run.role_arn(),
                    policy="",
                    duration=SESSION_SECONDS,
                    external_id="",
                )
                self._sessions[run.task.id] = session
        return json.dumps(
            {
                "RoleArn": run.role_arn(),
                "AccessKeyId": session.access_key_id,
                "SecretAccessKey": session.secret_access_key,
                "Token": session.session_token,
                "Expiration": session.expiration.strftime("%Y-%m-%dT%H:%M:%SZ"),
            }
        )
