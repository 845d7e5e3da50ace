#!/usr/bin/python
# Copyright: (c) 2026, the mlops.mlflow_aws founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: mlflow_endpoint_validate
short_description: Prove that an MLflow tracking server works, and refuses what it must
version_added: 0.1.0
author:
  - The mlops.mlflow_aws founders (@mlops)
description:
  - Uses an MLflow tracking server the way its users do, through its public name, with TLS and login.
    Creates an experiment and a run, writes params, metrics and tags and reads them back, uploads an artifact and downloads it again,
    registers a model version, and finds the run by a search.
  - Then asks for what must be refused, namely requests without a login, with a wrong password or with a foreign C(Host) header,
    plain HTTP, and connections to ports that belong to the inside.
  - Deletes all that it has created, also when a check fails or the module is interrupted. Every pass uses names of its own,
    C(mlflow-endpoint-validate/<random>). MLflow deletes experiments and runs softly, so their rows stay in the database, marked as
    deleted, until C(mlflow gc) is run. Artifacts are deleted for good; a bucket with versioning keeps their noncurrent versions
    for as long as its lifecycle rules say.
  - Needs nothing but the Python that Ansible needs. Usually run on the control machine, with C(delegate_to=localhost).
options:
  url:
    description:
      - Address of the server as its users write it, C(https://name[:port][/prefix]).
      - With C(http://), nothing is encrypted and the checks of TLS and of O(refuse_plain_http) do not apply.
        Use it only behind a proxy or a tunnel of your own.
    type: str
    required: true
  username:
    description:
      - User to log in as.
      - The environment variable E(MLFLOW_TRACKING_USERNAME) of the host that runs the module is used if this is not set.
    type: str
  password:
    description:
      - Password of O(username).
      - The environment variable E(MLFLOW_TRACKING_PASSWORD) of the host that runs the module is used if this is not set.
    type: str
  ca_path:
    description:
      - PEM file, on the host that runs the module, with the only authorities to trust.
      - Without it, the authorities of the system are trusted.
    type: path
  validate_certs:
    description:
      - Whether to verify the server's certificate. Without this, O(password) can be read by whoever stands in between.
    type: bool
    default: true
  resolve_address:
    description:
      - Address to connect to instead of the one that the name in O(url) has, like C(curl --resolve).
      - TLS and the C(Host) header still use the name. Needed before DNS has the name.
    type: str
  headers:
    description:
      - Headers to send with every request, for example one by which a load balancer chooses among its target groups.
    type: dict
    default: {}
  timeout:
    description:
      - Seconds for each whole request, from connecting to the last byte. The transfer of an artifact gets one second more per MiB.
      - The system's resolver has time limits of its own.
    type: float
    default: 30
  connect_timeout:
    description:
      - Seconds to wait for a TCP connection; also how long silence must last to count as a refusal.
    type: float
    default: 3
  wait:
    description:
      - Seconds to keep asking for V(health) while the server starts. Only what may pass by itself is waited for, that is
        a refused or silent connection, a name that does not resolve yet, and the statuses 429, 502, 503 and 504.
    type: float
    default: 0
  delay:
    description:
      - Seconds between two such questions.
    type: float
    default: 2
  checks:
    description:
      - What to check. Whatever a chosen check builds on is checked as well.
    type: list
    elements: str
    choices: [health, version, login, experiment, run, params, metrics, tags, artifact, model_registry, search]
    default: [health, version, login, experiment, run, params, metrics, tags, artifact, model_registry, search]
  artifact_size:
    description:
      - Size of the artifact in bytes. Its content is random, and is never held in memory as a whole.
    type: int
    default: 1048576
  expected_version:
    description:
      - The version of MLflow that the server must report, such as V(3.17.2).
    type: str
  refuse_no_login:
    description:
      - Whether the API and the artifacts must be refused without a login.
    type: bool
    default: true
  refuse_wrong_login:
    description:
      - Whether a random password for O(username) must be refused.
    type: bool
    default: true
  refuse_foreign_host:
    description:
      - Whether a request with a C(Host) header that is not the server's must be refused, with a 4xx status or a closed connection,
        although it is logged in. This is what protects browsers from DNS rebinding.
    type: bool
    default: true
  refuse_plain_http:
    description:
      - Whether O(plain_http_port) must either not answer, or redirect to the C(https) address of the same name.
        Credentials are not sent there.
    type: bool
    default: true
  plain_http_port:
    description:
      - The port of plain HTTP.
    type: int
    default: 80
  refuse_ports:
    description:
      - Ports of the server's address to which a TCP connection must be refused, or stay without an answer for O(connect_timeout).
    type: list
    elements: int
    default: [5000, 5432]
  fail:
    description:
      - Whether to fail when a check fails. Otherwise RV(ok) and RV(failure) tell, which suits monitoring and C(until).
    type: bool
    default: true
attributes:
  check_mode:
    description: Can run in check_mode and return changed status prediction without modifying target.
    support: full
    details:
      - In check mode only what reads is checked, that is V(health), V(version), V(login) and the refusals. The rest is listed in RV(not_checked).
  diff_mode:
    description: Will return details on what has changed (or possibly needs changing in check_mode), when in diff mode.
    support: none
notes:
  - The module never reports a change, since nothing that it creates outlives it.
  - Redirects are not followed, and C(http_proxy), C(https_proxy) and C(.netrc) are ignored. A proxy in between would hide which ports
    the server answers on; run the module on a host with a direct route.
  - Neither O(password) nor credentials that a server quotes in an error are returned. The text of 5xx answers is not returned at all.
  - MLflow 3.17's own basic-auth decodes passwords as ASCII on its artifact routes. With another password all works but V(artifact).
seealso:
  - name: MLflow authentication
    description: How MLflow's own logins work.
    link: https://mlflow.org/docs/latest/self-hosting/security/basic-http-auth/
  - name: MLflow network protection
    description: Allowed hosts and cross-origin requests.
    link: https://mlflow.org/docs/latest/self-hosting/security/network/
"""

EXAMPLES = r"""
- name: Prove that the server works, from the control machine
  mlops.mlflow_aws.mlflow_endpoint_validate:
    url: https://mlflow.example.com
    username: admin
    password: "{{ mlflow_admin_password }}"
  delegate_to: localhost

- name: The same before DNS has the name, with a private authority
  mlops.mlflow_aws.mlflow_endpoint_validate:
    url: https://mlflow.example.com
    resolve_address: 203.0.113.10
    ca_path: "{{ inventory_dir }}/ca.pem"
    username: admin
    password: "{{ mlflow_admin_password }}"
    wait: 120

- name: Ask quickly whether the server is up and lets us in
  mlops.mlflow_aws.mlflow_endpoint_validate:
    url: https://mlflow.example.com
    checks: [health, login]
    refuse_no_login: false
    refuse_wrong_login: false
    refuse_foreign_host: false
    refuse_plain_http: false
    refuse_ports: []
    fail: false
  register: endpoint

- name: Say what is wrong
  ansible.builtin.debug:
    msg: "{{ endpoint.summary if endpoint.ok else endpoint.failure.cause ~ '. ' ~ endpoint.failure.next_step }}"
"""

RETURN = r"""
ok:
  description: Whether every check that was run succeeded, the cleaning up included.
  returned: always
  type: bool
  sample: true
checks:
  description:
    - What was checked, in this order. The refusals are called C(refuse_no_login), C(refuse_wrong_login), C(refuse_foreign_host),
      C(refuse_plain_http) and C(refuse_port_<number>), the deletion of what was created is called C(cleanup).
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the check.
      type: str
      returned: always
      sample: artifact
    ok:
      description: Whether it succeeded.
      type: bool
      returned: always
      sample: true
    detail:
      description: What was seen.
      type: str
      returned: always
      sample: 1048576 bytes, SHA-256 equal, up 0.09 s, down 0.07 s
    seconds:
      description: How long it took.
      type: float
      returned: always
      sample: 0.162
not_checked:
  description: What was asked for and not checked, and why; for example what builds on a check that failed.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Name of the check.
      type: str
      returned: always
      sample: experiment
    reason:
      description: Why it was not run.
      type: str
      returned: always
      sample: "check mode: it would write"
failure:
  description: The first check that failed; null when none did.
  returned: always
  type: dict
  contains:
    check:
      description: Name of the check.
      type: str
      returned: always
      sample: artifact
    url:
      description: What was asked.
      type: str
      returned: always
      sample: https://mlflow.example.com/api/2.0/mlflow-artifacts/artifacts/1/5f0c/artifacts/check/data.bin
    cause:
      description: What came back.
      type: str
      returned: always
      sample: the server answered 413
    next_step:
      description: What to do about it.
      type: str
      returned: always
      sample: "Raise the body limit of the proxy in front (nginx: client_max_body_size 0)."
server_version:
  description: The version that the server reports; empty when it was not asked, or did not say.
  returned: always
  type: str
  sample: 3.17.2
seconds:
  description: How long everything took.
  returned: always
  type: float
  sample: 1.532
summary:
  description: One line for people.
  returned: always
  type: str
  sample: >-
    health, version, login, experiment, run, params, metrics, tags, artifact (SHA-256 equal), model registry, search;
    refused: no login, wrong login, foreign Host, plain HTTP, 5000, 5432
"""

import math
import signal
import ssl
import typing as t
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule, env_fallback
from ansible.module_utils.urls import make_context
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._mlflow_client import Client, Endpoint
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._mlflow_validation import CHECKS, Settings, Validation

_DOING = {
    "health": "reach",
    "version": "read the version of",
    "login": "log in to",
    "cleanup": "delete what was created on",
}


def _interrupted(number: int, frame: t.Any) -> t.NoReturn:
    """End by an exception, so that what was created is deleted on the way out."""
    raise SystemExit(128 + number)


def _context(module: AnsibleModule) -> ssl.SSLContext:
    ca_path = module.params["ca_path"]
    if ca_path and not Path(ca_path).is_file():
        module.fail_json(
            msg="ca_path: there is no file '%s' on the host that runs this module. Give the PEM file of the authority that "
            "signed the server's certificate, or leave ca_path out to trust the system's authorities." % ca_path
        )
    try:
        return t.cast(ssl.SSLContext, make_context(cafile=ca_path, validate_certs=module.params["validate_certs"]))
    except (OSError, ValueError) as error:
        module.fail_json(
            msg="ca_path: '%s' cannot be used (%s). Give a readable file with certificates in PEM form."
            % (ca_path, error)
        )
        raise


def _check_numbers(module: AnsibleModule, endpoint: Endpoint) -> None:
    """Refuse what cannot be meant; the argument spec knows types, not ranges."""
    params = module.params
    for name, least in (("timeout", 0.1), ("connect_timeout", 0.1), ("wait", 0.0), ("delay", 0.1)):
        if not math.isfinite(params[name]) or params[name] < least:
            module.fail_json(msg="%s must be at least %g seconds, got %s." % (name, least, params[name]))
    if params["artifact_size"] < 1:
        module.fail_json(msg="artifact_size must be at least 1 byte, got %d." % params["artifact_size"])
    for name, ports in (("plain_http_port", [params["plain_http_port"]]), ("refuse_ports", params["refuse_ports"])):
        for port in ports:
            if not 1 <= port <= 65535:
                module.fail_json(msg="%s: a port is a number from 1 to 65535, got %d." % (name, port))
    if endpoint.port in params["refuse_ports"]:
        module.fail_json(
            msg="refuse_ports: %d is the port of url itself, which cannot be refused. Leave it out, or correct url."
            % endpoint.port
        )
    if params["refuse_plain_http"] and endpoint.tls and endpoint.port == params["plain_http_port"]:
        module.fail_json(
            msg="plain_http_port: %d is the port of url itself. Give the port of plain HTTP, or set refuse_plain_http=false."
            % endpoint.port
        )
    if ":" in (params["username"] or ""):
        module.fail_json(msg="username must not hold ':': HTTP's basic authentication cannot express it.")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "username": {"type": "str", "fallback": (env_fallback, ["MLFLOW_TRACKING_USERNAME"])},
            "password": {"type": "str", "no_log": True, "fallback": (env_fallback, ["MLFLOW_TRACKING_PASSWORD"])},
            "ca_path": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
            "resolve_address": {"type": "str"},
            "headers": {"type": "dict", "default": {}},
            "timeout": {"type": "float", "default": 30},
            "connect_timeout": {"type": "float", "default": 3},
            "wait": {"type": "float", "default": 0},
            "delay": {"type": "float", "default": 2},
            "checks": {"type": "list", "elements": "str", "choices": list(CHECKS), "default": list(CHECKS)},
            "artifact_size": {"type": "int", "default": 1048576},
            "expected_version": {"type": "str"},
            "refuse_no_login": {"type": "bool", "default": True},
            "refuse_wrong_login": {"type": "bool", "default": True},
            "refuse_foreign_host": {"type": "bool", "default": True},
            "refuse_plain_http": {"type": "bool", "default": True},
            "plain_http_port": {"type": "int", "default": 80},
            "refuse_ports": {"type": "list", "elements": "int", "default": [5000, 5432]},
            "fail": {"type": "bool", "default": True},
        },
        required_together=[("username", "password")],
        supports_check_mode=True,
    )
    params = module.params
    try:
        endpoint = Endpoint(params["url"], params["resolve_address"])
    except ValueError as error:
        module.fail_json(msg="%s." % error)
    _check_numbers(module, endpoint)
    client = Client(
        endpoint,
        _context(module) if endpoint.tls else None,
        username=params["username"] or "",
        password=params["password"] or "",
        timeout=params["timeout"],
        connect_timeout=params["connect_timeout"],
        headers={str(name): str(value) for name, value in params["headers"].items()},
    )
    settings = Settings(
        checks=params["checks"],
        refuse_no_login=params["refuse_no_login"],
        refuse_wrong_login=params["refuse_wrong_login"],
        refuse_foreign_host=params["refuse_foreign_host"],
        refuse_plain_http=params["refuse_plain_http"],
        plain_http_port=params["plain_http_port"],
        refuse_ports=params["refuse_ports"],
        artifact_size=params["artifact_size"],
        expected_version=params["expected_version"] or "",
        wait=params["wait"],
        delay=params["delay"],
        read_only=module.check_mode,
    )
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    validation = Validation(client, settings)
    validation.run()
    result = validation.result()
    failure = result["failure"]
    if failure and params["fail"]:
        doing = _DOING.get(failure["check"], "validate '%s' on" % failure["check"])
        module.fail_json(
            msg="Failed to %s %s: %s. %s" % (doing, failure["url"], failure["cause"], failure["next_step"]),
            changed=False,
            **result,
        )
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
