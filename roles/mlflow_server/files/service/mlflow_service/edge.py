"""What nginx does in front of the server on a host, where a balancer is in front of it: in a container.

The balancer ends the client's TLS and says who the client is; everything else of nginx.conf.j2 is here: names that are
not ours, headers of every answer, the interface's files, compression, /metrics, and what clients are told of presigned
transfers.
"""

from __future__ import annotations

import ipaddress
import json
import mimetypes
import os
import re
import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware, GZipResponder
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTING = "MLFLOW_SERVICE_EDGE"
WEB = Path(sys.prefix) / "web/static-files"
STATIC = "/static-files"
# The balancer asks for these by the address of the container.
HEALTH = frozenset({"/health", "/ready"})
METRICS = "/metrics"
SERVER_INFO = re.compile(r"/(ajax-)?api/3\.0/mlflow/server-info")
# Notebooks show this page of MLflow's in a frame, from wherever they are served.
FRAMED = "/static-files/lib/notebook-trace-renderer/"
COMPRESSED = frozenset(
    {
        "text/plain",
        "text/html",
        "text/css",
        "text/javascript",
        "application/javascript",
        "application/json",
        "image/svg+xml",
    }
)
SMALLEST = 1024
# Modules in a worker run only as scripts, and not every system knows these endings.
KINDS = {
    ".cjs": "text/javascript",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
}
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(forwarded: Iterable[str], peer: str) -> str:
    """Return who asks: the last of the addresses, which the balancer has added; whoever connects, where it added none.

    All before it is what the client claims.
    """
    last = ",".join(forwarded).rpartition(",")[2].strip()
    # With a port, where the balancer is set to say it.
    bare = re.sub(r"^\[(.+)\](:\d+)?$|^([0-9.]+):\d+$", r"\1\3", last)
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return peer


class Compressed(GZipResponder):
    """Compresses answers of the types that gain by it, and only whole ones."""

    async def send_with_compression(self, message: Message) -> None:
        """Send a part of an answer."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message.setdefault("headers", []))
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            small = int(headers.get("content-length", SMALLEST)) < SMALLEST
            plain = kind not in COMPRESSED or small or message["status"] not in (200, 403, 404)
            self.exclude_content_types = (kind,) if plain else ()
            if not plain and "content-encoding" not in headers:
                # A range of it would be one of other bytes.
                del headers["accept-ranges"]
        await super().send_with_compression(message)


class Compression(GZipMiddleware):
    """Compresses answers for whom takes that."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        # Without a body there is nothing to compress, and its length stays the one that it would have.
        if scope["method"] != "HEAD" and "gzip" in Headers(scope=scope).get("accept-encoding", ""):
            await Compressed(self.app, SMALLEST, compresslevel=5)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Files(StaticFiles):
    """The interface's files, and their compressed siblings for whom takes these."""

    def file_response(
        self, full_path: os.PathLike[str] | str, stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        """Return a file, or that it has not changed."""
        asked = Headers(scope=scope)
        path = Path(full_path)
        kind = KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        headers = {}
        sibling = path.with_name(path.name + ".gz")
        if sibling.is_file():
            headers["Vary"] = "Accept-Encoding"
            if "gzip" in asked.get("accept-encoding", ""):
                headers["Content-Encoding"] = "gzip"
                path, stat_result = sibling, sibling.stat()
        response = FileResponse(path, status_code, headers, kind, stat_result=stat_result)
        return NotModifiedResponse(response.headers) if self.is_not_modified(response.headers, asked) else response


class Edge:
    """The application behind what its network needs."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        web: Path,
        names: Iterable[str],
        hsts: int,
        presigned: bool,
        metrics: Iterable[Network],
    ) -> None:
        """Take the interface's files, the names to answer to, and the networks that may read the metrics."""
        self.app = app
        self.compressed = Compression(app)
        self.files = Files(directory=web)
        self.names = [name.lower() for name in names]
        self.headers = dict(HEADERS)
        if hsts:
            self.headers["Strict-Transport-Security"] = f"max-age={hsts}"
        self.presigned = presigned
        self.metrics = list(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]
        asked = Headers(scope=scope)
        address = client_address(asked.getlist("x-forwarded-for"), scope["client"][0])
        headers = [
            # With an underscore, a WSGI application would take it for the one with a dash.
            (name, value)
            for name, value in scope["headers"]
            if b"_" not in name and name not in (b"x-real-ip", b"x-forwarded-for", b"x-forwarded-proto")
        ]
        who = address.encode()
        headers += [(b"x-real-ip", who), (b"x-forwarded-for", who), (b"x-forwarded-proto", b"https")]
        inner: Scope = {**scope, "headers": headers, "client": (address, 0), "scheme": "https"}

        async def dress(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = list(message.get("headers", []))
                self.dress(path, message["status"], MutableHeaders(raw=message["headers"]))
            await send(message)

        if refusal := self.refusal(path, asked.get("host", ""), address):
            await refusal(inner, receive, dress)
        elif path.startswith(f"{STATIC}/") and scope["method"] in ("GET", "HEAD"):
            await self.static(inner, receive, dress)
        elif not self.presigned and SERVER_INFO.fullmatch(path):
            await self.server_info(inner, receive, dress)
        else:
            await self.compressed(inner, receive, dress)

    def refusal(self, path: str, host: str, address: str) -> Response | None:
        """Return why a request is not for MLflow, if it is not."""
        if path not in HEALTH and not any(fnmatch(host.lower(), name) for name in self.names):
            return PlainTextResponse("", HTTPStatus.MISDIRECTED_REQUEST)
        if path == METRICS:
            if not self.metrics:
                return PlainTextResponse("", HTTPStatus.NOT_FOUND)
            asking = ipaddress.ip_address(address)
            if not any(asking in network for network in self.metrics):
                return PlainTextResponse("", HTTPStatus.FORBIDDEN)
        return None

    def dress(self, path: str, status: int, headers: MutableHeaders) -> None:
        """Give an answer the headers that every answer has, once."""
        for name, value in self.headers.items():
            headers[name] = value
        del headers["X-Frame-Options"]
        if not path.startswith(FRAMED):
            headers["X-Frame-Options"] = "SAMEORIGIN"
        if path.startswith(f"{STATIC}/") and status in (200, 206, 304):
            # Only the names below static/ hold a digest of the file.
            lasting = path.startswith(f"{STATIC}/static/")
            headers["Cache-Control"] = "public, max-age=31536000, immutable" if lasting else "no-cache"

    async def static(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send one of the interface's files, or let MLflow say that it has none either."""
        try:
            response = await self.files.get_response(scope["path"].removeprefix(f"{STATIC}/"), scope)
        except HTTPException:
            await self.compressed(scope, receive, send)
        else:
            await response(scope, receive, send)

    async def server_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer what a client may do: MLflow has no setting for presigned transfers."""
        started: Message = {}
        body = b""

        async def change(message: Message) -> None:
            nonlocal body
            if message["type"] == "http.response.start":
                started.update(message)
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(raw=started["headers"])
            if headers.get("content-type", "").startswith("application/json"):
                body = json.dumps(without_presigned(json.loads(body))).encode()
                headers["Content-Length"] = str(len(body))
            await send(started)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, change)


def without_presigned(answer: Mapping[str, object]) -> dict[str, object]:
    """Return the server's answer with clients kept from the store."""
    off = {"multipart_downloads_enabled", "multipart_uploads_enabled"}
    return {
        name: without_presigned(value) if isinstance(value, dict) else False if name in off else value
        for name, value in answer.items()
    }


def fronted(app: ASGIApp) -> ASGIApp:
    """Return the application behind it, if the environment says that no nginx is there."""
    if os.environ.get(SETTING) != "true":
        return app
    counted = os.environ.get("MLFLOW_SERVICE_METRICS") == "true"
    cidrs = os.environ.get("MLFLOW_SERVICE_METRICS_CIDRS", "").split(",") if counted else []
    return Edge(
        app,
        web=WEB,
        names=os.environ["MLFLOW_SERVER_ALLOWED_HOSTS"].split(","),
        hsts=int(os.environ.get("MLFLOW_SERVICE_HSTS_MAX_AGE", "0")),
        presigned=os.environ.get("MLFLOW_SERVICE_PRESIGNED_TRANSFERS", "true") == "true",
        metrics=[ipaddress.ip_network(cidr, strict=False) for cidr in cidrs if cidr],
    )
