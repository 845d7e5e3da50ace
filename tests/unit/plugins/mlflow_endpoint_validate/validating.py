"""Run the validator against a server of a test: in this process, or as the module that Ansible starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from ansible.module_utils.urls import make_context
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._mlflow_client import Client, Endpoint
from ansible_collections.mlops.mlflow_aws.plugins.module_utils._mlflow_validation import CHECKS, Settings, Validation
from mlflow_servers import PASSWORD, ROOT, USERNAME, FaultyServer, RealServer

COLLECTIONS = ROOT / ".ansible" / "collections"
MODULE = ROOT / "plugins" / "modules" / "mlflow_endpoint_validate.py"


def validate(
    server: FaultyServer | RealServer,
    ca: Path | None,
    *,
    url: str = "",
    username: str = USERNAME,
    password: str = PASSWORD,
    timeout: float = 20,
    **settings: Any,
) -> dict[str, Any]:
    """Run the checks; what goes to other ports is off unless it is asked for. Returns the module's result."""
    base = url or (server.url if isinstance(server, FaultyServer) else f"https://mlflow.test:{server.port}")
    endpoint = Endpoint(base, "127.0.0.1")
    context = make_context(cafile=str(ca)) if endpoint.tls else None
    client = Client(endpoint, context, username, password, timeout=timeout, connect_timeout=0.5)
    settings = {"refuse_plain_http": False, "refuse_ports": (), "artifact_size": 200_000, **settings}
    validation = Validation(client, Settings(**settings))
    validation.run()
    return validation.result()


def only(*checks: str, **settings: Any) -> dict[str, Any]:
    """Settings with these checks and no refusal but those asked for."""
    off = {"refuse_no_login": False, "refuse_wrong_login": False, "refuse_foreign_host": False}
    return {"checks": checks, **off, **settings}


def outcome(result: dict[str, Any]) -> dict[str, bool]:
    """Return which check went how."""
    return {check["name"]: check["ok"] for check in result["checks"]}


def module_command() -> list[str]:
    """The command that runs the module as Ansible would on a host."""
    return [sys.executable, str(MODULE)]


def module_environment(**more: str) -> dict[str, str]:
    """The environment of that command."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**env, "PYTHONPATH": str(COLLECTIONS), **more}


def run_module(arguments: dict[str, Any], *, check: bool = False, **env: str) -> dict[str, Any]:
    """Run the module as a program of its own, with its arguments on standard input; return what it returned."""
    given = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check}}
    done = subprocess.run(
        module_command(),
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=module_environment(**env),
        timeout=120,
        check=False,
    )
    assert done.stdout.strip(), done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if result.get("failed") else 0), done.stderr
    return result


ALL = set(CHECKS)
