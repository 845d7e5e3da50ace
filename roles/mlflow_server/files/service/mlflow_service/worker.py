"""gunicorn's worker: uvicorn on uvloop and httptools, which ends without cutting off a request."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from typing import Any

import httptools
import uvloop
from gunicorn import systemd
from gunicorn.arbiter import Arbiter
from uvicorn.server import Server
from uvicorn_worker import UvicornWorker

# Named here, so that gunicorn does not even start without them: each request would stall for 40 ms.
FAST = (httptools, uvloop)
# Seconds; longer than nginx keeps an idle connection to this server (keepalive_timeout of the upstream, 2 s).
IDLE = 2.5
# Seconds for which a stopping server goes on as before: a balancer hears of it later than the server itself does.
LINGER = float(os.environ.get("MLFLOW_SERVICE_LINGER", "0"))


class DrainingServer(Server):
    """Ends when the last connection is gone, and lets the other side be the one that closes an idle one.

    A server that closes a kept connection may cross a request on it: nginx then answers 502, because it must not send
    a POST twice. So nothing is accepted any more, each answer says `Connection: close`, and the idle go by themselves.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell systemd when connections are accepted."""
        await super().startup(sockets)
        if address := os.environ.get("MLFLOW_SERVICE_NOTIFY_SOCKET"):
            os.environ["NOTIFY_SOCKET"] = address
            systemd.sd_notify("READY=1", None, unset_environment=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Drain, then shut down."""
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(LINGER)
        # Loaded before the fork, and not before this module.
        from mlflow_service.app import outage

        outage.end()
        for server in self.servers:
            server.close()
        deadline = asyncio.get_running_loop().time() + IDLE
        while self.server_state.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)


class Worker(UvicornWorker):
    """Named in gunicorn.conf.py."""

    CONFIG_KWARGS = {  # noqa: RUF012 (its type is the parent's)
        "loop": "uvloop",
        "http": "httptools",
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "date_header": False,
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.config.timeout_graceful_shutdown = self.cfg.graceful_timeout

    async def _serve(self) -> None:
        self.config.app = self.wsgi
        server = DrainingServer(self.config)
        self._install_sigquit_handler()
        await server.serve(sockets=self.sockets)
        if not server.started:
            sys.exit(Arbiter.WORKER_BOOT_ERROR)
