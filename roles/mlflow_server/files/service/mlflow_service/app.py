"""The ASGI application: MLflow's own, with some of its parts exchanged. gunicorn imports it before it forks.

MLflow answers most calls by Flask, behind FastAPI and five middlewares of which Flask has its own copies. Calls that
only Flask can answer go to Flask at once here, and a2wsgi hands bodies on as they come where MLflow collects them.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from a2wsgi import WSGIMiddleware
from mlflow.server import app as flask_app
from mlflow.server import fastapi_app as native
from mlflow.server.handlers import _get_model_registry_store, _get_tracking_store
from mlflow.store.jobs.sqlalchemy_store import SqlAlchemyJobStore
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as RegistryStore
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from starlette.routing import Match, Mount

from mlflow_service import downloads, edge, faults, health, logins, metrics, outages, uploads

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp, Receive, Scope, Send

# As many requests at once as the event loop's own threads carry (anyio's default, which MLflow uses).
THREADS = 40


def unguarded(path: str, method: str) -> None:
    """Stand in for MLflow's search of whoever guards a path, where there is no login."""


def authenticated() -> bool:
    """Tell whether MLflow's basic-auth is on; the role writes its settings only then."""
    return "MLFLOW_AUTH_CONFIG_PATH" in os.environ


class Application:
    """Sends each request to Flask or to FastAPI."""

    def __init__(self, fastapi: FastAPI, flask: ASGIApp, paths: frozenset[str]) -> None:
        self.fastapi = fastapi
        self.flask = flask
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        straight = scope["type"] == "http" and scope["path"] in self.paths
        await (self.flask if straight else self.fastapi)(scope, receive, send)


def flask_only(fastapi: FastAPI) -> Iterator[str]:
    """Yield the paths without parameters that Flask answers, and that no route or login of FastAPI's is there for."""
    find: Callable[[str, str], Any] = unguarded
    if authenticated():
        from mlflow.server import auth

        find = auth._find_fastapi_validator
    routes = [route for route in fastapi.router.routes if not isinstance(route, Mount)]
    for rule in flask_app.url_map.iter_rules():
        if rule.arguments:
            continue
        methods = rule.methods or set()
        scopes = [{"type": "http", "path": rule.rule, "method": method} for method in methods]
        natively = any(route.matches(scope)[0] is not Match.NONE for route in routes for scope in scopes)
        if not natively and not any(find(rule.rule, method) for method in methods):
            yield rule.rule


def share_the_pool() -> None:
    """Let runs, registered models and jobs, which lie in one database, take their connections from one pool.

    MLflow keeps one for each of its classes; most of them idle, while the one for runs has too few.
    """
    engines = SqlAlchemyStore._engine_map
    RegistryStore._engine_map = SqlAlchemyJobStore._engine_map = engines


def build() -> Application:
    """Return the application, with the databases asked once, so that each worker starts warm.

    Raises: MlflowException when a database does not answer.
    """
    if authenticated():
        from mlflow.server.auth import create_app

        fastapi = create_app(flask_app)
        faults.tell_a_dead_database_from_a_wrong_password()
    else:
        fastapi = native.app
    faults.install(fastapi, flask_app)
    downloads.install(fastapi)
    uploads.install()
    share_the_pool()
    flask = WSGIMiddleware(flask_app, workers=THREADS)
    # The catch-all, which MLflow mounts last.
    mount = fastapi.router.routes[-1]
    assert isinstance(mount, Mount) and mount.path == ""
    mount.app = flask
    _get_tracking_store()
    _get_model_registry_store()
    return Application(fastapi, flask, frozenset(flask_only(fastapi)))


def engines() -> Iterator[Any]:
    """Yield the connection pools of this process."""
    stores = [_get_tracking_store(), _get_model_registry_store()]
    if authenticated():
        from mlflow.server.auth import store

        stores.append(store)
    for store in stores:
        yield from filter(None, {getattr(store, "engine", None), getattr(store, "read_engine", None)})


def loaded() -> None:
    """Before the first fork: close what no worker may share, and freeze what all of them do."""
    for engine in engines():
        engine.dispose()
    gc.collect()
    gc.freeze()


def forked() -> None:
    """In a new worker: forget the connections of the process that it came from, without closing them there."""
    for engine in engines():
        engine.dispose(close=False)


databases = health.databases()
outage = outages.install(databases)
application = build()
waiting = outages.Waiting(logins.limited(application), outage)
# What is refused, and what waits, is counted as well; what the balancer asks is neither.
service = edge.fronted(health.Ready(metrics.measured(waiting, application.fastapi, flask_app), databases))
