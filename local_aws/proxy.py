"""HAProxy as an Application Load Balancer: its configuration, and talking to it while it runs.

Actions and conditions come in the shape of the Elastic Load Balancing API. What HAProxy does otherwise by itself is
turned into what AWS documents:

- A request is sent to one target, once: a target that refuses the connection is a 502, one that does not take it within
  10 s or not answer within the idle timeout a 504; 503 means that there was no target to choose.
- X-Forwarded-For grows by the client's address, X-Forwarded-Proto and X-Forwarded-Port are set, Host stays as it came.

Sources: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/load-balancer-troubleshooting.html
https://docs.aws.amazon.com/elasticloadbalancing/latest/application/x-forwarded-headers.html
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DIRECTORY = "/run/balancer"  # in the container; a directory of the state directory, mounted
CONFIGURATION = "haproxy.cfg"
MASTER_SOCKET = "master.sock"
CONNECT_SECONDS = 10  # how long a load balancer waits for a target to take a connection
OLD_WORKER_SECONDS = 3600  # a worker of a former configuration may finish its requests for so long
SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:=,;^*+?|()[]{}@&!<>~-%")
COMMAND_SECONDS = 5.0
PAGE = "<html><body><h1>The load balancer could not get an answer from a target</h1></body></html>\n"


@dataclass(frozen=True)
class Server:
    """A target: its name in HAProxy, and where it listens."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Pool:
    """A target group: its name in HAProxy, what its targets speak, and how one is chosen."""

    name: str
    tls: bool
    least_outstanding: bool
    servers: tuple[Server, ...]


@dataclass(frozen=True)
class Tls:
    """What a listener presents and accepts. certificates: files in the directory, the default one first."""

    certificates: tuple[str, ...]
    protocols: tuple[str, ...]
    ciphers: tuple[str, ...]


@dataclass(frozen=True)
class Rule:
    """Conditions, all of which must hold, and the actions then; as the API has them."""

    conditions: Sequence[Mapping[str, Any]]
    actions: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Listener:
    """A port. rules: in order of priority; the last one is the default rule, without conditions."""

    port: int
    tls: Tls | None
    rules: Sequence[Rule]


def word(text: str) -> str:
    """One word of HAProxy's configuration, whatever the text holds."""
    return "".join(chr(b) if b in SAFE else f"\\x{b:02x}" for b in text.encode())


def literal(text: str) -> str:
    """Text for a word that is a log format, in which a percent sign begins a variable."""
    return text.replace("%", "%%")


def pattern(text: str) -> str:
    """A regular expression for a pattern of the API: * is any number of characters, ? exactly one."""
    return "^" + "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in text) + "$"


def pool_name(target_group_arn: str) -> str:
    """A target group's name in HAProxy: its own, and the digits that tell it from a later one of that name."""
    return "-".join(target_group_arn.split("/")[-2:])


def render(
    listeners: Iterable[Listener], pools: Iterable[Pool], attributes: Mapping[str, Any], enabled: frozenset[str]
) -> str:
    """The whole configuration.

    attributes: those of the load balancer. enabled: `pool/server` of the targets that get requests from the start.
    """
    idle = int(attributes["idle_timeout.timeout_seconds"])
    lines = [
        "global",
        "    log stdout format raw local0",
        "    user haproxy",
        "    group haproxy",
        f"    hard-stop-after {OLD_WORKER_SECONDS}s",
        # AWS takes requests of up to 64 KB of headers; HAProxy keeps a part of a buffer to itself
        "    tune.bufsize 81920",
        "    tune.http.maxhdr 1000",
        "    tune.ssl.default-dh-param 2048",
        "defaults",
        "    mode http",
        "    log global",
        # a worker that is being replaced closes a connection with its next response, not under a request on its way
        "    option idle-close-on-response",
        "    retries 0",
        # a connection to a target is kept for the idle timeout, and used by whoever comes; a target that closes it
        # under a request on its way is the 502 that AWS warns of
        "    http-reuse always",
        f"    default-server pool-purge-delay {idle}s",
        # the text stands under a 502 and a 504, too
        f"    http-error status 503 content-type text/html string {word(PAGE)}",
        f"    timeout connect {CONNECT_SECONDS}s",
        *(f"    timeout {name} {idle}s" for name in ("client", "server", "http-request", "http-keep-alive", "tunnel")),
    ]
    for listener in listeners:
        lines += _frontend(listener, attributes)
    for pool in pools:
        lines += _backend(pool, enabled)
    return "\n".join(lines) + "\n"


def _true(attributes: Mapping[str, Any], name: str) -> bool:
    return str(attributes[name]).lower() == "true"


def _frontend(listener: Listener, attributes: Mapping[str, Any]) -> list[str]:
    """The sections of a listener: one keeps the clients' connections, the other one sees a connection per request.

    HAProxy closes a client's connection without a word when a target fails the second request on it; only the first
    request gets a 502. Two halves also let a new configuration hold for clients that are connected to an old worker.
    """
    port, socket_path = listener.port, f"/run/requests-{listener.port}.sock"
    rules = []
    if _true(attributes, "routing.http.drop_invalid_header_fields.enabled"):
        rules.append(f"http-request del-header {word('[^-A-Za-z0-9]')} -m reg")
    for number, rule in enumerate(listener.rules):
        conditions = "".join(f" {{ {test(condition)} }}" for condition in rule.conditions)
        rules.append(f"http-request set-var(txn.rule) int({number}) if !{{ var(txn.rule) -m found }}{conditions}")
    rules += _forwarded(listener, attributes)
    for number, rule in enumerate(listener.rules):
        for action in rule.actions:
            rules += _action(action, f"{{ var(txn.rule) -m int {number} }}", listener)
    rules.sort(key=lambda rule: rule.startswith("use_backend"))  # the order in which HAProxy looks at them anyway
    return [
        f"frontend clients-{port}",
        f"    bind :{port}{_tls(listener.tls, attributes)}",
        "    no log",
        f"    default_backend requests-{port}",
        f"backend requests-{port}",
        "    option http-server-close",
        "    http-reuse never",
        f"    server rules unix@{socket_path} send-proxy-v2",
        f"frontend rules-{port}",
        f"    bind unix@{socket_path} user haproxy mode 600 accept-proxy",
        "    option httplog",
        *(f"    {rule}" for rule in rules),
    ]


def _tls(tls: Tls | None, attributes: Mapping[str, Any]) -> str:
    if tls is None:
        return ""
    http2 = "h2," if _true(attributes, "routing.http2.enabled") else ""
    certificates = "".join(f" crt {DIRECTORY}/{name}" for name in tls.certificates)
    suites = ":".join(c for c in tls.ciphers if c.startswith("TLS_"))
    ciphers = ":".join(c for c in tls.ciphers if not c.startswith("TLS_"))
    return (
        f" ssl{certificates} alpn {http2}http/1.1 ssl-min-ver {min(tls.protocols)} ssl-max-ver {max(tls.protocols)}"
        + (f" ciphers {ciphers}" if ciphers else "")
        + (f" ciphersuites {suites}" if suites else "")
    )


def _forwarded(listener: Listener, attributes: Mapping[str, Any]) -> list[str]:
    mode = attributes["routing.http.xff_header_processing.mode"]
    client = "%[src]:%[src_port]" if _true(attributes, "routing.http.xff_client_port.enabled") else "%[src]"
    header = "http-request set-header X-Forwarded-"
    lines = [f"{header}Proto {'https' if listener.tls else 'http'}", f"{header}Port {listener.port}"]
    if mode == "remove":
        lines.append("http-request del-header X-Forwarded-For")
    elif mode == "append":
        lines += [
            f'{header}For "%[req.fhdr(X-Forwarded-For)], {client}" if {{ req.fhdr(X-Forwarded-For) -m found }}',
            f"{header}For {client} if !{{ req.fhdr(X-Forwarded-For) -m found }}",
        ]
    return lines


def test(condition: Mapping[str, Any]) -> str:
    """A condition as a test of HAProxy's: true when any of its values fits.

    Source: https://docs.aws.amazon.com/elasticloadbalancing/latest/application/rule-condition-types.html
    """
    field = condition["Field"]
    if field == "query-string":
        return _query_test(condition["QueryStringConfig"]["Values"])
    config = {
        "host-header": "HostHeaderConfig",
        "path-pattern": "PathPatternConfig",
        "http-header": "HttpHeaderConfig",
        "http-request-method": "HttpRequestMethodConfig",
        "source-ip": "SourceIpConfig",
    }[field]
    settings = condition.get(config) or condition
    values = settings["Values"]
    patterns = " ".join(word(pattern(value)) for value in values)
    if field == "host-header":
        return f"req.hdr(host),field(1,:) -m reg -i {patterns}"
    if field == "path-pattern":
        return f"path -m reg {patterns}"
    if field == "http-header":
        return f"req.fhdr({word(settings['HttpHeaderName'])}) -m reg -i {patterns}"
    return f"{'method' if field == 'http-request-method' else 'src'} {' '.join(word(value) for value in values)}"


def _query_test(pairs: Sequence[Mapping[str, str]]) -> str:
    """One regular expression over the whole query: a key may be a pattern too."""
    inner = {"*": "[^&]*", "?": "[^&]"}
    texts = []
    for pair in pairs:
        key, value = ("".join(inner.get(c, re.escape(c)) for c in pair.get(name, "*")) for name in ("Key", "Value"))
        texts.append(word(f"(^|&){key}={value}(&|$)"))
    return f"query -m reg -i {' '.join(texts)}"


def forwards(action: Mapping[str, Any]) -> list[tuple[str, int]]:
    """The target groups that an action forwards to, each with its weight."""
    if action["Type"] != "forward":
        return []
    groups = (action.get("ForwardConfig") or {}).get("TargetGroups")
    if groups:
        return [(group["TargetGroupArn"], int(group.get("Weight", 1))) for group in groups]
    return [(action["TargetGroupArn"], 1)]


def _action(action: Mapping[str, Any], chosen: str, listener: Listener) -> list[str]:
    if action["Type"] == "redirect":
        return _redirect(action["RedirectConfig"], chosen, listener)
    if action["Type"] == "fixed-response":
        config = action["FixedResponseConfig"]
        body = config.get("MessageBody") or ""
        kind = f" content-type {config.get('ContentType') or 'text/plain'} string {word(body)}" if body else ""
        return [f"http-request return status {config['StatusCode']}{kind} if {chosen}"]
    groups = [(arn, weight) for arn, weight in forwards(action) if weight]
    if len(groups) == 1:
        return [f"use_backend {pool_name(groups[0][0])} if {chosen}"]
    lines, passed = [f"http-request set-var(txn.dice) rand({sum(w for _, w in groups)}) if {chosen}"], 0
    for arn, weight in groups:
        passed += weight
        lines.append(f"use_backend {pool_name(arn)} if {chosen} {{ var(txn.dice) -m int lt {passed} }}")
    return lines if groups else []


def _redirect(config: Mapping[str, str], chosen: str, listener: Listener) -> list[str]:
    """A redirect. Source: https://docs.aws.amazon.com/elasticloadbalancing/latest/APIReference/API_RedirectActionConfig.html"""
    variables = {
        "#{protocol}": "https" if listener.tls else "http",
        "#{host}": "%[req.hdr(host),field(1,:)]",
        "#{port}": str(listener.port),
        "#{path}": "%[path,regsub(^/,)]",
        "#{query}": "%[query]",
    }

    def filled(name: str) -> str:
        text = literal(config.get(name, f"#{{{name.lower()}}}"))
        for variable, value in variables.items():
            text = text.replace(variable, value)
        return text

    path = filled("Path") if "Path" in config else "/" + variables["#{path}"]
    target = f"{filled('Protocol').lower()}://{filled('Host')}:{filled('Port')}{path}"
    code = config["StatusCode"].removeprefix("HTTP_")
    query = filled("Query")
    lines = []
    if query:
        asked = " { query -m len gt 0 }" if query == variables["#{query}"] else ""
        lines.append(f"http-request redirect code {code} location {word(f'{target}?{query}')} if {chosen}{asked}")
    return [*lines, f"http-request redirect code {code} location {word(target)} if {chosen}"]


def _backend(pool: Pool, enabled: frozenset[str]) -> list[str]:
    # there was a target, but no connection to it; nbsrv would not tell, since it is 0 in a worker that ends
    failed = "{ status 503 } { srv_id -m found } !{ var(txn.answered) -m bool }"
    late = f"{{ date(0,ms),sub(txn.sent) -m int ge {CONNECT_SECONDS * 1000} }}"
    lines = [
        f"backend {pool.name}",
        f"    balance {'leastconn' if pool.least_outstanding else 'roundrobin'}",
        "    http-request set-var(txn.sent) date(0,ms)",
        "    http-response set-var(txn.answered) bool(true)",
        f"    http-after-response set-status 504 if {failed} {late}",
        f"    http-after-response set-status 502 if {failed}",
    ]
    for server in pool.servers:
        # AWS does not validate the certificate of a target
        tls = " ssl verify none alpn http/1.1" if pool.tls else ""
        state = "" if f"{pool.name}/{server.name}" in enabled else " disabled"
        lines.append(f"    server {server.name} {server.address}:{server.port}{tls}{state}")
    return lines


class ProxyError(Exception):
    """HAProxy did not do what it was asked for; the text says what it answered."""


class Control:
    """The socket of HAProxy's master process, in a directory of this machine."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def ask(self, command: str) -> str:
        """Send one command and return the answer. Raises OSError when nobody listens."""
        # a socket's path may have 108 characters at most; a state directory's has often more
        directory = os.open(self._directory, os.O_PATH | os.O_DIRECTORY)
        try:
            with socket.socket(socket.AF_UNIX) as link:
                link.settimeout(COMMAND_SECONDS)
                link.connect(f"/proc/self/fd/{directory}/{MASTER_SOCKET}")
                link.sendall(command.encode() + b"\n")
                link.shutdown(socket.SHUT_WR)
                parts = []
                while part := link.recv(65536):
                    parts.append(part)
        finally:
            os.close(directory)
        return b"".join(parts).decode(errors="replace")

    def workers(self) -> tuple[int | None, list[int]]:
        """Process ids: of the worker that takes connections, and of those that end their last requests."""
        current, old, section = None, [], ""
        for line in self.ask("show proc").splitlines():
            if line.startswith("#"):
                section = line.strip("# ")
            elif (fields := line.split()) and fields[0].isdigit() and fields[1] == "worker":
                if section == "old workers":
                    old.append(int(fields[0]))
                else:
                    current = int(fields[0])
        return current, old

    def cut_off(self, pool: str, server: str) -> None:
        """End the requests that any worker has at a server, also one that only ends what it has.

        Such a worker refuses `shutdown sessions server`: it takes the server's backend for disabled.
        """
        current, old = self.workers()
        for worker in [*old, *([current] if current else [])]:
            for line in self.ask(f"@!{worker} show sess").splitlines():
                session, _, words = line.partition(": ")
                if {f"be={pool}", f"srv={server}"} <= set(words.split()):
                    self.ask(f"@!{worker} shutdown session {session}")
