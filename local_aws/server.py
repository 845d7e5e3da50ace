"""The API's listeners: HTTPS and plain HTTP on each address, never on all of them."""

from __future__ import annotations

import contextvars
import ssl
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.serving import BaseWSGIServer, ThreadedWSGIServer, WSGIRequestHandler

from local_aws.state import INTERNAL_NAME
from local_aws.tls import Authority

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

HANDSHAKE_SECONDS = 30.0
LOOPBACK = "127.0.0.1"
LOCAL_ADDRESS = "local_aws.address"  # in a request's environ: the address that it came in on

secure_transport: contextvars.ContextVar[bool] = contextvars.ContextVar("secure_transport", default=True)
"""Whether the request that is being served came over TLS (aws:SecureTransport)."""


class _Server(ThreadedWSGIServer):
    """A threaded WSGI server that does the TLS handshake in the request's own thread.

    werkzeug does it while accepting: one client that connects and says nothing would stop all others.
    """

    def __init__(
        self, host: str, port: int, app: WSGIApplication, handler: type[WSGIRequestHandler], tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, port, app, handler=handler)
        self.ssl_context = tls

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.ssl_context is None:
            super().finish_request(request, client_address)
            return
        request.settimeout(HANDSHAKE_SECONDS)
        try:
            wrapped = self.ssl_context.wrap_socket(request, server_side=True)
        except (ssl.SSLError, OSError):
            return  # a port scan, or a client that does not trust the authority: its own error says so
        wrapped.settimeout(None)
        try:
            super().finish_request(wrapped, client_address)
        finally:
            self.shutdown_request(wrapped)


def listen_plain(address: str, port: int, app: WSGIApplication) -> None:
    """Serve one more application over plain HTTP, for the life of the process. Raises OSError."""
    try:
        server = _Server(address, port, app, WSGIRequestHandler, None)
    except SystemExit as error:  # werkzeug leaves the process when a port is taken
        raise OSError(f"cannot bind {address} with port {port}") from error
    threading.Thread(target=server.serve_forever, name=f"listen-{port}", daemon=True).start()


def _on_address(app: WSGIApplication, address: str) -> WSGIApplication:
    """Tell the application on which address a request came in, and over which transport."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        environ[LOCAL_ADDRESS] = address
        secure_transport.set(environ["wsgi.url_scheme"] == "https")
        return app(environ, start_response)

    return application


class Listeners:
    """Serves the API and the instance metadata on loopback and on gateway addresses that come and go."""

    def __init__(
        self,
        authority: Authority,
        directory: Path,
        api: WSGIApplication,
        metadata: WSGIApplication,
        ports: tuple[int, int, int],
        handler: type[WSGIRequestHandler],
    ) -> None:
        """ports: of HTTPS, HTTP and instance metadata. directory: holds the server certificate."""
        self._authority, self._directory = authority, directory
        self._api, self._metadata, self._ports, self._handler = api, metadata, ports, handler
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._servers: dict[str, list[BaseWSGIServer]] = {}
        self._lock = threading.Lock()

    def open(self, address: str) -> None:
        """Listen on one more address. Raises OSError when it cannot be bound."""
        https_port, http_port, metadata_port = self._ports
        api = _on_address(self._api, address)
        with self._lock:
            self._certify([*self._servers, address])
            servers: list[BaseWSGIServer] = []
            try:
                servers.append(_Server(address, https_port, api, self._handler, self._context))
                servers.append(_Server(address, http_port, api, self._handler, None))
                if address != LOOPBACK:  # metadata is for instances only
                    metadata = _on_address(self._metadata, address)
                    servers.append(_Server(address, metadata_port, metadata, WSGIRequestHandler, None))
            except (OSError, SystemExit) as error:  # werkzeug leaves the process when a port is taken
                for server in servers:
                    server.server_close()
                raise OSError(f"cannot bind {address} with ports {self._ports}") from error
            for server in servers:
                threading.Thread(target=server.serve_forever, name=f"listen-{address}", daemon=True).start()
            self._servers[address] = servers

    def close(self, address: str) -> None:
        with self._lock:
            for server in self._servers.pop(address, []):
                server.shutdown()
                server.server_close()

    def close_all(self) -> None:
        for address in list(self._servers):
            self.close(address)

    def _certify(self, addresses: list[str]) -> None:
        """Present a certificate for all addresses; connections made from now on see it."""
        pem = self._authority.issue(["localhost", INTERNAL_NAME, *addresses])
        chain = self._directory / "server.pem"
        chain.touch(mode=0o600)
        chain.write_bytes(pem.certificate + pem.key)
        self._context.load_cert_chain(chain)
