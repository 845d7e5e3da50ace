"""A target of a load balancer, for tests: HTTPS on a port, and whatever a path asks for.

Runs in a container, with nothing but Python's own library: target.py PORT CERTIFICATE.
"""

from __future__ import annotations

import http.server
import json
import socket
import ssl
import sys
import time


class Target(http.server.BaseHTTPRequestHandler):
    """Tells what it was asked; /slow/SECONDS waits first, /drop ends the connection, /set/READY decides on /ready."""

    protocol_version = "HTTP/1.1"
    ready = "200"

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        word, _, argument = self.path.strip("/").partition("/")
        status = 200
        if word == "set":
            Target.ready = argument
        elif word == "ready":
            if Target.ready == "hang":
                time.sleep(30)
            status = int(Target.ready)
        elif word == "slow":
            time.sleep(float(argument))
        elif word == "drop":
            self.close_connection = True
            return
        told = {
            "address": self.connection.getsockname()[0],
            "headers": {name.lower(): value for name, value in self.headers.items()},
            "path": self.path,
            "received": length,
        }
        body = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Does the TLS handshake in the request's own thread."""

    context: ssl.SSLContext

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        with self.context.wrap_socket(request, server_side=True) as wrapped:
            super().finish_request(wrapped, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        pass


if __name__ == "__main__":
    server = Server(("", int(sys.argv[1])), Target)
    server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.context.load_cert_chain(sys.argv[2])
    server.serve_forever()
