"""What Prometheus may know: how many requests there were, how long they took, and how many are being answered.

The workers count in files that they share (prometheus_client's multiprocess mode), so that any one of them can answer
for all. nginx decides who may read /metrics; no login is asked for, because a scraper has none.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import struct
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastapi import FastAPI
    from flask import Flask
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# systemd makes the directory and empties it; prometheus_client looks here for it when it is imported.
SETTING = "PROMETHEUS_MULTIPROC_DIR"
PATH = "/metrics"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Seconds; from a look-up to the upload of a large model.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
# Seconds between the tries to read what the workers have counted.
PAUSES = (0.01, 0.05, 0.25)
# A thread of its own: the event loop's may all wait for a database.
READER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="metrics")
PARAMETER = re.compile(r"<(?:(?P<flask>\w+)(?:\([^)]*\))?:)?\w+>|\{\w+(?::(?P<fastapi>\w+))?\}")


class Routes:
    """The server's own paths. Labels are these and nothing else, so that no client can make more of them."""

    def __init__(self, templates: Iterable[str]) -> None:
        """Take paths with Flask's or FastAPI's parameters, as in /a/<path:b> and /a/{b:path}."""
        self.exact: set[str] = set()
        patterns: list[tuple[re.Pattern[str], str]] = []
        for template in dict.fromkeys(templates):
            if PARAMETER.search(template):
                patterns.append((self.pattern(template), PARAMETER.sub("*", template)))
            else:
                self.exact.add(template)
        # What says most about a path comes first.
        self.patterns = sorted(patterns, key=lambda entry: -len(entry[1].replace("*", "")))
        self.name = functools.lru_cache(maxsize=4096)(self.find)

    @staticmethod
    def pattern(template: str) -> re.Pattern[str]:
        """Return the expression that matches a template's paths."""
        expression, end = "", 0
        for found in PARAMETER.finditer(template):
            expression += re.escape(template[end : found.start()])
            expression += ".+" if "path" in (found["flask"], found["fastapi"]) else "[^/]+"
            end = found.end()
        return re.compile(expression + re.escape(template[end:]))

    def find(self, path: str) -> str:
        """Return the label of a path."""
        if path in self.exact:
            return path
        return next((label for pattern, label in self.patterns if pattern.fullmatch(path)), "other")


def paths(fastapi: FastAPI, flask: Flask) -> Iterator[str]:
    """Yield the templates of all routes of the server."""
    for route in fastapi.router.routes:
        if path := getattr(route, "path", ""):
            yield path
    for rule in flask.url_map.iter_rules():
        yield rule.rule


class Metrics:
    """An ASGI application whose requests are counted."""

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        # Here, because it reads its setting when it is imported.
        from prometheus_client import Counter, Gauge, Histogram

        self.app = app
        self.routes = routes
        labels = ["method", "route"]
        self.requests = Counter("mlflow_http_requests", "Requests answered.", [*labels, "status"], registry=None)
        self.duration = Histogram(
            "mlflow_http_request_duration_seconds",
            "Time until an answer's last byte.",
            labels,
            registry=None,
            buckets=BUCKETS,
        )
        self.running = Gauge(
            "mlflow_http_requests_in_progress", "Requests being answered.", registry=None, multiprocess_mode="livesum"
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif scope["path"] == PATH:
            await tell(send)
        else:
            await self.count(scope, receive, send)

    async def count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and say afterwards which one it was and how it went."""
        # An application that fails before it answers is 500 to the client.
        status = 500
        start = time.perf_counter()

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self.running.inc()
        try:
            await self.app(scope, receive, watch)
        finally:
            self.running.dec()
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = self.routes.name(scope["path"])
            self.requests.labels(method, route, str(status)).inc()
            self.duration.labels(method, route).observe(time.perf_counter() - start)


def collected() -> tuple[bytes, str]:
    """Return what all workers have counted, and its type.

    The files are read without a lock: one that another worker is just making is whole a moment later.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    for pause in PAUSES:
        try:
            return generate_latest(registry), CONTENT_TYPE_LATEST
        except (struct.error, ValueError, RuntimeError):
            time.sleep(pause)
    return generate_latest(registry), CONTENT_TYPE_LATEST


async def tell(send: Send) -> None:
    """Answer with it."""
    body, kind = await asyncio.get_running_loop().run_in_executor(READER, collected)
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def measured(app: ASGIApp, fastapi: FastAPI, flask: Flask) -> ASGIApp:
    """Return the application with its requests counted, if the environment says where."""
    return Metrics(app, Routes(paths(fastapi, flask))) if os.environ.get(SETTING) else app


def forget(pid: int) -> None:
    """Take a dead worker's requests out of those being answered; what it counted stays."""
    if os.environ.get(SETTING):
        from prometheus_client.multiprocess import mark_process_dead

        mark_process_dead(pid)
