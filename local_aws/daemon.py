"""The daemon: one process that serves the API and owns the containers of one state directory."""

from __future__ import annotations

import hmac
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from local_aws.engine import connect, remove_abandoned, remove_leftovers
from local_aws.errors import LocalAwsError
from local_aws.server import LOCAL_ADDRESS, LOOPBACK, Listeners, listen_plain
from local_aws.state import Settings, StateDir
from local_aws.tls import Authority

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

CONTROL = "/_local_aws/"  # no bucket's name can start so
TASK_CREDENTIALS = "/v2/credentials/"  # no instance metadata begins so
TOKEN_HEADER = "HTTP_X_LOCAL_AWS_TOKEN"

MOTO_ENVIRONMENT = {
    "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
    "MOTO_ENABLE_AMI_VALIDATION": "true",
    "MOTO_EC2_ENABLE_INSTANCE_TYPE_VALIDATION": "true",
    # aws.internal is a name of the endpoint, not of a bucket called "aws"
    "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true",
}


def serve(state: StateDir, settings: Settings) -> int:
    """Run until SIGTERM. Returns the exit status; what went wrong is in `failed`, in the state directory."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(threadName)s %(name)s: %(message)s")
    with state.daemon_lock() as lock:
        if lock is None:
            return 0
        try:
            _Daemon(state, settings).run()
        except LocalAwsError as error:
            state.write("failed", str(error))
            return 1
        except Exception:
            log.exception("the daemon ended")
            state.write("failed", f"The daemon ended unexpectedly; the reason is at the end of {state.log}.")
            return 1
    return 0


class _Daemon:
    def __init__(self, state: StateDir, settings: Settings) -> None:
        os.environ.update(MOTO_ENVIRONMENT)
        self._state, self._settings = state, settings
        self._token = state.secret("control_token")
        self._ended = threading.Event()

    def run(self) -> None:
        # moto reads its settings from the environment while it is imported
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app

        from local_aws import account, certificates, corrections, wiring, wiring_balancers, wiring_database_proxies
        from local_aws.balancers import Balancers
        from local_aws.containers import Containers
        from local_aws.database_proxies import DatabaseProxies
        from local_aws.databases import Databases
        from local_aws.instances import Instances
        from local_aws.metadata import Metadata
        from local_aws.networks import Networks
        from local_aws.patching import Permanent

        signal.signal(signal.SIGTERM, lambda *_: self._ended.set())
        signal.signal(signal.SIGINT, lambda *_: self._ended.set())
        state, settings = self._state, self._settings
        client = connect()
        removed = remove_leftovers(client, state) + remove_abandoned(client, state)
        if removed:
            log.info("removed %d containers and networks of an earlier run", removed)

        authority = Authority(state.ca_file, state.path / "ca.key")
        self._metadata = Metadata(self._instance_at)
        self._listeners = Listeners(
            authority,
            state.path,
            self._control(DomainDispatcherApplication(create_backend_app)),
            self._inside,
            (settings.port, settings.http_port, settings.metadata_port),
            MotoRequestHandler,
        )
        self._networks = Networks(client, state, self._listeners.open, self._listeners.close)
        self._instances = Instances(client, state, settings, self._networks)
        self._databases = Databases(client, state, settings, self._networks, authority)
        self._proxies = DatabaseProxies(client, state, settings, self._networks, authority)
        self._balancers = Balancers(client, state, settings, self._networks)
        self._containers = Containers.make(client, state, settings, self._networks)
        patch = Permanent()
        account.furnish(patch)
        corrections.apply_all(patch)
        wiring.connect(wiring.Cloud(self._networks, self._instances, self._databases), patch)
        wiring_database_proxies.connect(self._proxies, patch)
        certificates.connect(authority, patch)
        wiring_balancers.connect(self._balancers, self._networks, patch)
        self._containers.connect(settings, patch)
        self._account = account
        try:
            self._open_account()
            self._listeners.open(LOOPBACK)
            self._networks.open_public()
            listen_plain(LOOPBACK, settings.registry_port, self._containers.registry)
            state.write("daemon.json", json.dumps({"pid": os.getpid(), **json.loads(settings.to_json())}))
            self._ended.wait()
        finally:
            (state.path / "daemon.json").unlink(missing_ok=True)
            remove_leftovers(client, state)

    def _open_account(self) -> None:
        self._account.open_account(*self._state.admin_keys(), self._settings.region, self._settings.zones)

    def _instance_at(self, gateway: str, address: str) -> Any:
        network = self._networks.find(gateway)
        return self._instances.find(network, address) if network else None

    def _inside(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """What instances and tasks ask of addresses that only they reach."""
        if str(environ.get("PATH_INFO", "")).startswith(TASK_CREDENTIALS):
            return self._containers.credentials(environ, start_response)
        return self._metadata(environ, start_response)

    # what the command line asks of the daemon

    def _control(self, api: WSGIApplication) -> WSGIApplication:
        """The API, plus the commands of this package for those who can read the state directory."""

        def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            path = str(environ.get("PATH_INFO", ""))
            # moto's own back door would empty the account behind the containers' backs
            if path.startswith("/moto-api"):
                return _reply(start_response, "404 Not Found", {})
            if not path.startswith(CONTROL):
                return api(environ, start_response)
            token = str(environ.get(TOKEN_HEADER, ""))
            if environ[LOCAL_ADDRESS] != LOOPBACK or not hmac.compare_digest(token.encode(), self._token.encode()):
                return _reply(start_response, "403 Forbidden", {})
            size = int(environ.get("CONTENT_LENGTH") or 0)
            argument = environ["wsgi.input"].read(size).decode()
            command = self._commands().get(path.removeprefix(CONTROL))
            if command is None:
                return _reply(start_response, "404 Not Found", {})
            return _reply(start_response, "200 OK", command(argument))

        return application

    def _commands(self) -> dict[str, Callable[[str], dict[str, Any]]]:
        return {"status": self._status, "reset": self._reset, "enforce": self._enforce, "zone": self._zone}

    def _status(self, _argument: str) -> dict[str, Any]:
        return {
            "instances": self._instances.summary(),
            "databases": self._databases.summary(),
            "database_proxies": self._proxies.summary(),
            "balancers": self._balancers.summary(),
            **self._containers.summary(),
            "networks": self._networks.names(),
            "problems": {
                **self._instances.problems,
                **self._databases.problems,
                **self._proxies.problems,
                **self._balancers.problems,
                **self._containers.problems(),
            },
        }

    def _reset(self, _argument: str) -> dict[str, Any]:
        from moto.moto_api._internal.models import moto_api_backend

        self._containers.forget_all()
        self._instances.forget_all()
        self._proxies.forget_all()
        self._databases.forget_all()
        self._balancers.forget_all()
        self._networks.drop_vpcs()
        moto_api_backend.reset()
        self._metadata.reset()
        self._networks.addresses.release_all()
        self._open_account()
        return {}

    def _enforce(self, argument: str) -> dict[str, Any]:
        from moto import settings
        from moto.core.authorization import ActionAuthenticatorMixin

        settings.INITIAL_NO_AUTH_ACTION_COUNT = 0 if argument == "on" else float("inf")
        ActionAuthenticatorMixin.request_count = 0
        return {"enforce": argument}

    def _zone(self, argument: str) -> dict[str, Any]:
        return {"zone": argument, "id": self._account.create_zone(argument)}


def _reply(start_response: StartResponse, status: str, data: dict[str, Any]) -> Iterable[bytes]:
    body = json.dumps(data).encode()
    start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def main(state: StateDir, settings_json: str) -> None:
    """Entry point of the detached process."""
    sys.exit(serve(state, Settings.from_json(settings_json)))
