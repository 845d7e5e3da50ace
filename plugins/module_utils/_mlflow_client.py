# Copyright: (c) 2026, the mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A small, suspicious HTTP client for one MLflow endpoint.

Why not C(open_url): it cannot connect to one address while TLS and C(Host) name another, it limits the silence between two
bytes but not the whole request, it reads netrc files, and it follows redirects. Here every request has one deadline, every body a
limit, no redirect is followed, and no other origin ever sees the credentials.
"""

from __future__ import annotations

import base64
import html
import http.client
import io
import json
import re
import socket
import ssl
import time
import typing as t
from urllib.parse import quote, quote_plus, unquote, urlsplit

USER_AGENT = "ansible-mlops.mlflow_aws.mlflow_endpoint_validate"
JSON_LIMIT = 1024 * 1024
CHUNK = 64 * 1024
HIDDEN = "********"

# Where OpenSSL's verification codes come from: openssl/x509_vfy.h.
_CERT_HINTS = {
    9: ("is not valid yet", "Check the clocks of the server and of the host that runs this module."),
    10: ("has expired", "Renew the certificate of the server, or of the authority in ca_path."),
    18: ("is signed by itself and not trusted here", "Give the certificate's PEM file in ca_path."),
    19: ("ends in an authority that is not trusted here", "Give the PEM file of the private authority in ca_path."),
    20: ("comes from an authority that is not trusted here", "Give the PEM file of the private authority in ca_path."),
    62: ("is for another name", "Use a name that the certificate holds in url, or issue the certificate for this one."),
    64: ("does not hold this IP address", "Use a name that the certificate holds in url, or issue it for the address."),
}


class RequestFailed(Exception):
    """A request that did not end in a usable answer.

    O(kind) is one of C(resolve), C(refused), C(timeout), C(tls), C(closed), C(protocol), C(too_large), C(status), C(content).
    O(transient) says whether the same request may succeed a moment later.
    """

    def __init__(
        self, url: str, cause: str, next_step: str, kind: str, transient: bool = False, status: int = 0, code: str = ""
    ) -> None:
        super().__init__(cause)
        self.url = url
        self.cause = cause
        self.next_step = next_step
        self.kind = kind
        self.transient = transient
        self.status = status
        self.code = code


class DeadlineExceeded(OSError):
    """The time for a whole request is over."""


class Redactor:
    """Removes secrets, in every spelling a server may echo them in, from text."""

    # A database's address with its password is what a failing MLflow likes to quote.
    _URI_LOGIN = re.compile(r"(?<=://)([^\s/:@'\"]*):([^\s@'\"]+)@")
    _ASSIGNED = re.compile(r"(?i)\b(password|passwd|pwd|secret|token)(\"?'?\s*[=:]\s*\"?'?)([^\s,;&\"']+)")
    _BASIC = re.compile(r"(?i)\b(basic|bearer)\s+[A-Za-z0-9+/=._~-]{6,}")

    def __init__(self, username: str = "", password: str = "") -> None:
        spellings = set()
        if password:
            token = base64.b64encode(("%s:%s" % (username, password)).encode("utf-8")).decode("ascii")
            spellings = {
                password,
                token,
                base64.b64encode(password.encode("utf-8")).decode("ascii"),
                quote(password, safe=""),
                quote(password),
                quote_plus(password),
                html.escape(password),
                json.dumps(password)[1:-1],
                repr(password)[1:-1],
            }
        # The longest first: a short spelling inside a long one must not leave the rest of it behind.
        self._spellings = sorted(spellings, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for spelling in self._spellings:
            text = text.replace(spelling, HIDDEN)
        text = self._URI_LOGIN.sub(HIDDEN + ":" + HIDDEN + "@", text)
        text = self._ASSIGNED.sub(lambda m: m.group(1) + m.group(2) + HIDDEN, text)
        return self._BASIC.sub(lambda m: m.group(1) + " " + HIDDEN, text)


class Endpoint:
    """Where a server is: C(scheme://host[:port][/prefix]), and the address to connect to if that is not the host.

    Raises ValueError, with a sentence for the user, when C(url) cannot be used.
    """

    def __init__(self, url: str, resolve_address: str | None = None) -> None:
        parts = urlsplit(url.strip())
        if parts.scheme not in ("https", "http"):
            raise ValueError("url must start with https:// (or http://), got '%s'" % url)
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not hold credentials: give them in username and password")
        if parts.query or parts.fragment:
            raise ValueError("url must end with the path, without '?' or '#', got '%s'" % url)
        try:
            port = parts.port
            host = (
                (parts.hostname or "").encode("idna").decode("ascii")
                if ":" not in (parts.hostname or "")
                else parts.hostname
            )
        except (ValueError, UnicodeError) as error:
            raise ValueError("url holds no usable host and port, got '%s': %s" % (url, error)) from error
        if not host:
            raise ValueError("url holds no host, got '%s'" % url)
        self.tls = parts.scheme == "https"
        self.host = host
        self.port = port or (443 if self.tls else 80)
        self.prefix = quote(unquote(parts.path.rstrip("/")))
        self.address = resolve_address or host

    @property
    def authority(self) -> str:
        """The value of the C(Host) header."""
        return self.authority_for(self.port, self.tls)

    def authority_for(self, port: int, tls: bool) -> str:
        """The C(Host) header for another port of the same host; the scheme's own port is left out, as browsers do."""
        host = "[%s]" % self.host if ":" in self.host else self.host
        return host if port == (443 if tls else 80) else "%s:%d" % (host, port)

    @property
    def base(self) -> str:
        """The endpoint as a URL without a trailing slash."""
        return "%s://%s%s" % ("https" if self.tls else "http", self.authority, self.prefix)


class Answer:
    """What a server answered: status, headers, the bounded body, and how many bytes the body had in all."""

    def __init__(self, url: str, status: int, headers: http.client.HTTPMessage, body: bytes, size: int) -> None:
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body
        self.size = size

    @property
    def text(self) -> str:
        """The body as text; what is not UTF-8 is replaced."""
        return self.body.decode("utf-8", "replace").strip()

    @property
    def is_html(self) -> bool:
        """Whether a page for people came instead of an answer for programs."""
        return self.looks_like_html or "text/html" in (self.headers.get("Content-Type") or "")

    @property
    def looks_like_html(self) -> bool:
        """Whether the body is a page; MLflow calls its one-line refusals text/html, too."""
        return self.text[:15].lower().startswith(("<!doctype html", "<html"))


class _Reader(io.RawIOBase):
    """The reading half of a socket under one deadline, however slowly the bytes drip."""

    def __init__(self, owner: _DeadlineSocket) -> None:
        super().__init__()
        self._owner = owner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        return self._owner.recv_into(buffer)


class _DeadlineSocket:
    """As much of a socket as C(http.client) uses, under a deadline for all its calls together."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.deadline = 0.0

    def _arm(self) -> None:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded("deadline")
        self._sock.settimeout(left)

    def recv_into(self, buffer: t.Any) -> int:
        self._arm()
        try:
            return self._sock.recv_into(buffer)
        except socket.timeout as error:
            raise DeadlineExceeded("deadline") from error

    def sendall(self, data: t.Any) -> None:
        view = memoryview(data).cast("B")
        while len(view):
            self._arm()
            try:
                sent = self._sock.send(view[:CHUNK])
            except socket.timeout as error:
                raise DeadlineExceeded("deadline") from error
            view = view[sent:]

    def makefile(self, mode: str = "rb", buffering: int | None = None) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self), CHUNK)

    def close(self) -> None:
        """Do nothing: http.client closes its socket when the headers announce the last answer, with the body still to come."""

    def release(self) -> None:
        """Close the connection."""
        self._sock.close()


class _Connection(t.NamedTuple):
    """A connection of http.client and the socket under it."""

    http: http.client.HTTPConnection
    sock: _DeadlineSocket


class Client:
    """Requests to one endpoint.

    C(timeout) limits each whole request, C(connect_timeout) the TCP connection alone; both in seconds.
    C(context) verifies the server and is needed for https. C(headers) go with every request.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        context: ssl.SSLContext | None = None,
        username: str = "",
        password: str = "",
        timeout: float = 30,
        connect_timeout: float = 5,
        headers: t.Mapping[str, str] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.headers = dict(headers or {})
        self.username = username
        self.password = password
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.redact = Redactor(username, password)
        self._context = context
        self._kept: _Connection | None = None

    def close(self) -> None:
        """Close the connection that is kept between requests."""
        if self._kept is not None:
            self._kept.sock.release()
            self._kept = None

    def url(self, path: str) -> str:
        """The full address of a path below the endpoint."""
        return self.endpoint.base + path

    def login_header(self, username: str | None = None, password: str | None = None) -> dict[str, str]:
        """The header that logs in; empty when no user name is known."""
        user = self.username if username is None else username
        secret = self.password if password is None else password
        if not user:
            return {}
        token = base64.b64encode(("%s:%s" % (user, secret)).encode("utf-8")).decode("ascii")
        return {"Authorization": "Basic " + token}

    def request(
        self,
        method: str,
        path: str,
        body: bytes | t.Iterable[bytes] | None = None,
        length: int | None = None,
        headers: t.Mapping[str, str] | None = None,
        login: bool = True,
        host: str | None = None,
        plain_port: int | None = None,
        timeout: float | None = None,
        limit: int = JSON_LIMIT,
        sink: t.Callable[[bytes], t.Any] | None = None,
    ) -> Answer:
        """Send one request and read the whole answer.

        C(path) is below the endpoint's prefix and already quoted. C(length) goes with an iterable C(body).
        C(host) replaces the C(Host) header; C(plain_port) asks that port of the same host without TLS: both on a connection of
        their own. C(sink) receives the body piece by piece instead of keeping it. Raises RequestFailed.
        """
        plain = plain_port is not None
        if plain:
            authority = self.endpoint.authority_for(t.cast(int, plain_port), False)
            url = "http://%s%s%s" % (authority, self.endpoint.prefix, path)
        else:
            authority = self.endpoint.authority
            url = self.url(path)
        sent_headers = {"Host": host or authority, "User-Agent": USER_AGENT, "Accept": "*/*", **self.headers}
        # Credentials go over the verified connection only, never to the plain port of an https endpoint.
        if login and not plain:
            sent_headers.update(self.login_header())
        sent_headers.update(headers or {})
        if length is not None:
            sent_headers["Content-Length"] = str(length)
        alone = host is not None or plain or not login
        seconds = self.timeout if timeout is None else timeout
        deadline = time.monotonic() + seconds
        # What can be read or taken in only once cannot be tried again when the server has closed an idle connection.
        replayable = (body is None or isinstance(body, bytes)) and sink is None
        if not alone and not replayable:
            self.close()
        kept = None if alone else self._kept
        if not alone:
            self._kept = None
        if kept is not None:
            try:
                return self._exchange(
                    kept, url, method, path, body, sent_headers, deadline, seconds, limit, sink, alone
                )
            except RequestFailed as error:
                # A server may close an idle connection at any time; it may still have done the work, which makes the second
                # try of a POST fail or repeat it, and the cleaning up finds both.
                if error.kind != "closed":
                    raise
        connection = self._connect(url, deadline, plain_port)
        return self._exchange(connection, url, method, path, body, sent_headers, deadline, seconds, limit, sink, alone)

    def _connect(self, url: str, deadline: float, plain_port: int | None) -> _Connection:
        endpoint = self.endpoint
        port = plain_port if plain_port is not None else endpoint.port
        limit = min(self.connect_timeout, max(0.01, deadline - time.monotonic()))
        where = "%s port %d" % (endpoint.address, port)
        try:
            sock = socket.create_connection((endpoint.address, port), timeout=limit)
        except socket.gaierror as error:
            raise RequestFailed(
                url,
                "the name %s does not resolve (%s)" % (endpoint.address, error.strerror),
                "Check the name in url and its DNS record; before DNS has it, give the server's address in resolve_address.",
                "resolve",
                transient=True,
            ) from error
        except socket.timeout as error:
            raise RequestFailed(
                url,
                "no connection to %s within %g s" % (where, limit),
                "Check that the security group and the firewall let this host in, and that the server runs.",
                "timeout",
                transient=True,
            ) from error
        except OSError as error:
            raise RequestFailed(
                url,
                "no connection to %s (%s)" % (where, error.strerror or error),
                "Check that the server and the proxy in front of it run and listen on that port.",
                "refused",
                transient=True,
            ) from error
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if endpoint.tls and plain_port is None:
                sock = self._encrypt(sock, url, deadline)
        except BaseException:
            sock.close()
            raise
        connection = http.client.HTTPConnection(endpoint.host, port)
        guarded = _DeadlineSocket(sock)
        connection.sock = guarded
        return _Connection(connection, guarded)

    def _encrypt(self, sock: socket.socket, url: str, deadline: float) -> ssl.SSLSocket:
        endpoint = self.endpoint
        if self._context is None:
            raise ValueError("an https endpoint needs an SSL context")
        sock.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            return self._context.wrap_socket(sock, server_hostname=endpoint.host)
        except ssl.SSLCertVerificationError as error:
            what, next_step = _CERT_HINTS.get(
                error.verify_code, ("cannot be verified", "Check the certificate chain that the server sends.")
            )
            raise RequestFailed(
                url, "the server's certificate %s (%s)" % (what, error.verify_message), next_step, "tls"
            ) from error
        except socket.timeout as error:
            raise RequestFailed(
                url,
                "the TLS handshake did not end in time",
                "Check what listens on port %d: it accepts connections and says nothing." % endpoint.port,
                "timeout",
                transient=True,
            ) from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise RequestFailed(
                url,
                "no TLS on port %d (%s)" % (endpoint.port, reason),
                "Check that this port speaks TLS and that url starts with the right scheme.",
                "tls",
                transient=isinstance(error, ConnectionError),
            ) from error

    def _exchange(
        self,
        connection: _Connection,
        url: str,
        method: str,
        path: str,
        body: bytes | t.Iterable[bytes] | None,
        headers: t.Mapping[str, str],
        deadline: float,
        seconds: float,
        limit: int,
        sink: t.Callable[[bytes], t.Any] | None,
        alone: bool,
    ) -> Answer:
        connection.sock.deadline = deadline
        keep = False
        received = 0
        try:
            try:
                connection.http.request(method, self.endpoint.prefix + path, body=body, headers=dict(headers))
            except (BrokenPipeError, ConnectionResetError):
                # A server that refuses a large body answers before it has read all of it: that answer is the news.
                pass
            response = connection.http.getresponse()
            pieces = []
            while True:
                piece = response.read(CHUNK)
                if not piece:
                    break
                received += len(piece)
                if received > limit:
                    raise RequestFailed(
                        url,
                        "the answer is larger than the %d bytes that are expected at most" % limit,
                        "Check what is in front of the server: this is not an answer of MLflow.",
                        "too_large",
                    )
                if sink is None or response.status >= 300:
                    pieces.append(piece)
                else:
                    sink(piece)
            announced = response.headers.get("Content-Length")
            if announced and announced.isdigit() and response.status not in (204, 304) and received != int(announced):
                raise RequestFailed(
                    url,
                    "the answer ended after %d of %s bytes" % (received, announced),
                    "Look for the broken connection in the logs of the server and of the proxy in front of it.",
                    "protocol",
                    transient=True,
                )
            keep = not alone and not response.will_close
            return Answer(url, response.status, response.headers, b"".join(pieces), received)
        except DeadlineExceeded as error:
            raise RequestFailed(
                url,
                "no complete answer within %g s (%d bytes of it came)" % (seconds, received),
                "Look at the load and the log of the server; raise timeout if it is only slow.",
                "timeout",
                transient=True,
            ) from error
        except http.client.IncompleteRead as error:
            raise RequestFailed(
                url,
                "the answer broke off within a chunk",
                "Look for the broken connection in the logs of the server and of the proxy in front of it.",
                "protocol",
                transient=True,
            ) from error
        except (http.client.RemoteDisconnected, ConnectionError) as error:
            raise RequestFailed(
                url,
                "the connection was closed without an answer",
                "Look at the logs of the server and of the proxy in front of it.",
                "closed",
                transient=True,
            ) from error
        except http.client.HTTPException as error:
            raise RequestFailed(
                url,
                "the answer is not HTTP (%s)" % type(error).__name__,
                "Check what listens on port %d." % self.endpoint.port,
                "protocol",
            ) from error
        except ssl.SSLError as error:
            raise RequestFailed(
                url,
                "the encrypted connection broke (%s)" % (error.reason or "TLS error"),
                "Look at the logs of the server and of the proxy in front of it.",
                "closed",
                transient=True,
            ) from error
        except OSError as error:
            raise RequestFailed(
                url,
                "the connection broke (%s)" % (error.strerror or error),
                "Look at the network between this host and the server.",
                "closed",
                transient=True,
            ) from error
        finally:
            if keep:
                self._kept = connection
            else:
                connection.sock.release()

    def api(
        self,
        method: str,
        path: str,
        payload: t.Mapping[str, t.Any] | None = None,
        timeout: float | None = None,
        login: bool = True,
    ) -> dict[str, t.Any]:
        """Call a JSON route and return its object. Raises RequestFailed, also for every status but 200."""
        headers = {"Accept": "application/json"}
        body = None
        if payload is not None:
            headers["Content-Type"] = "application/json; charset=utf-8"
            body = json.dumps(payload).encode("utf-8")
        answer = self.request(method, path, body=body, headers=headers, timeout=timeout, login=login)
        self.expect_success(answer)
        if answer.is_html:
            raise RequestFailed(
                answer.url,
                "the server answered HTML where JSON was expected: another service or a login page is in front",
                "Check the name, the port and the path in url, and what answers there.",
                "content",
            )
        try:
            value = json.loads(answer.text)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise RequestFailed(
                answer.url,
                "the server answered %d bytes that are not a JSON object" % answer.size,
                "Check the name, the port and the path in url, and what answers there.",
                "content",
            )
        return value

    def expect_success(self, answer: Answer) -> None:
        """Raise RequestFailed unless the status is 200; say what each usual status means in front of MLflow."""
        if answer.status == 200:
            return
        code = ""
        quoted = ""
        # A 5xx quotes addresses and users of the database behind; a refusal says only what the caller did.
        try:
            value = json.loads(answer.text)
            code = str(value.get("error_code", "")) if isinstance(value, dict) else ""
            quoted = str(value.get("message", "")) if isinstance(value, dict) else ""
        except ValueError:
            quoted = "" if answer.looks_like_html else answer.text
        if answer.status >= 500:
            quoted = ""
        cause = "the server answered %d%s" % (answer.status, " " + code if re.match(r"^[A-Z_]{1,60}$", code) else "")
        # Redacted before it is cut: half a password would no longer be found.
        quoted = " ".join(self.redact(quoted).split())
        if quoted:
            cause += " (%s)" % (quoted if len(quoted) <= 200 else quoted[:199] + "…")
        elif answer.looks_like_html:
            cause += " with an HTML page"
        transient = answer.status in (429, 502, 503, 504)
        next_step = "Look at the log of the MLflow server for this request."
        if 300 <= answer.status < 400:
            target = urlsplit(answer.headers.get("Location") or "")
            cause += ", a redirect to %s, which is not followed" % self.redact(
                "%s://%s%s" % (target.scheme, target.hostname, target.path[:80])
                if target.hostname
                else target.path[:80]
            )
            next_step = "Give the final address of the server in url; credentials are never sent to another one."
        elif answer.status == 401:
            cause += ": the login was refused" if self.username else ": a login is needed, and no username was given"
            next_step = "Check username and password (or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD)."
            if not self.password.isascii():
                next_step += " MLflow's own basic-auth reads only ASCII on its artifact routes: use an ASCII password."
        elif answer.status == 403 and "host header" in quoted.lower():
            next_step = "List '%s' in the server's --allowed-hosts." % self.endpoint.authority
        elif answer.status == 403:
            next_step = "Check what the user may do, and what the proxy in front lets through."
        elif answer.status == 404:
            next_step = "Check the path in url and that an MLflow server of a known version answers there."
        elif answer.status == 413:
            next_step = "Raise the body limit of the proxy in front (nginx: client_max_body_size 0)."
        elif answer.status in (502, 504):
            next_step = "The proxy in front does not reach MLflow: check that its service runs."
        elif answer.status == 503:
            next_step = "The server is starting, or does not reach its database: look at its log."
        raise RequestFailed(answer.url, cause, next_step, "status", transient, answer.status, code)
