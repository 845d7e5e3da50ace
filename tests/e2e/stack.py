"""A control machine's working directory: an inventory of its own, one AWS account, and ansible-playbook run in it."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
RECAP = re.compile(
    r"^(?P<host>\S+)\s+: ok=(?P<ok>\d+)\s+changed=(?P<changed>\d+)\s+unreachable=\d+\s+failed=(?P<failed>\d+)", re.M
)


@dataclass(frozen=True)
class Run:
    """What one ansible-playbook run came to."""

    status: int
    output: str
    seconds: float

    @property
    def changed(self) -> dict[str, int]:
        """Changed tasks per host, from the last recap."""
        return {
            match["host"]: int(match["changed"]) for match in RECAP.finditer(self.output.rpartition("PLAY RECAP")[2])
        }

    @property
    def text(self) -> str:
        """The output with its white space folded: Ansible wraps long messages."""
        return " ".join(self.output.split())

    def succeeded(self) -> Run:
        """Return this run; an AssertionError shows the end of its output otherwise."""
        assert self.status == 0, self.output[-6000:]
        return self

    def refused(self) -> Run:
        """Return this run; an AssertionError shows the end of its output if it did not fail."""
        assert self.status != 0, self.output[-3000:]
        return self


def free_cidr(taken: set[str], block: range = range(100, 250)) -> str:
    """Return a /16 that no network of this machine overlaps, and that no other stack of this session has taken.

    block: second numbers to choose from; sessions that run at the same time have blocks of their own.
    """
    engine = docker.from_env()
    configs = [config for network in engine.networks.list() for config in network.attrs["IPAM"]["Config"] or []]
    used = [ipaddress.ip_network(config["Subnet"]) for config in configs if "Subnet" in config]
    routes = subprocess.run(["ip", "-4", "-o", "route"], capture_output=True, text=True, check=True).stdout.split()
    used += [ipaddress.ip_network(word) for word in routes if re.fullmatch(r"[0-9.]+/[0-9]+", word)]
    candidates = (f"10.{number}.0.0/16" for number in block)
    found = next(
        cidr
        for cidr in candidates
        if cidr not in taken and not any(ipaddress.ip_network(cidr).overlaps(net) for net in used if net.version == 4)
    )
    taken.add(found)
    return found


class Account:
    """The AWS account that a test session uses: a local one, in a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {}
        self.networks: set[str] = set()

    def command(self, *words: str) -> str:
        """Run one command of the local AWS and return its standard output."""
        command = [sys.executable, "-m", "local_aws", "--state-dir", str(self.directory), *words]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=600)
        return done.stdout

    def start(self, zone: str) -> None:
        """Start the account, with one public hosted zone; what a killed session left is ended first."""
        self.command("stop")
        self.command("start", "--zone", zone)
        lines = [
            line.removeprefix("export ") for line in self.command("env").splitlines() if line.startswith("export ")
        ]
        self.environment = {name: value.strip("'") for name, value in (line.split("=", 1) for line in lines)}

    def stop(self) -> None:
        """End the account and everything in it."""
        self.command("stop")

    def client(self, service: str) -> Any:
        """Build a boto3 client for the account's administrator."""
        import boto3

        env = self.environment
        return boto3.client(  # type: ignore[call-overload]
            service,
            endpoint_url=env["AWS_ENDPOINT_URL"],
            verify=env["AWS_CA_BUNDLE"],
            region_name=env["AWS_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        )


class Control:
    """A control machine: a working directory with an inventory, from which playbooks of the checkout are run."""

    def __init__(self, directory: Path, account: Account, **inputs: Any) -> None:
        self.directory = directory
        self.account = account
        shutil.copytree(ROOT / "inventories/local", directory / "inventories/local")
        self.stack_file = directory / "inventories/local/group_vars/all.yml"
        self.inputs: dict[str, Any] = {**yaml.safe_load(self.stack_file.read_text()), **inputs}
        self.inputs["mlflow_vpc_cidr"] = inputs.get("mlflow_vpc_cidr") or free_cidr(account.networks)
        self.write()

    @property
    def stack(self) -> str:
        """Name of the stack."""
        return str(self.inputs["mlflow_stack"])

    @property
    def files(self) -> Path:
        """The stack's files on this control machine."""
        return self.directory / ".mlflow_aws" / self.stack

    def write(self, **inputs: Any) -> None:
        """Change inputs in the stack file."""
        self.inputs.update(inputs)
        self.stack_file.write_text(yaml.safe_dump(self.inputs))

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a run: nothing of another AWS account, nothing of another tracking server."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "ANSIBLE_"))
        }
        return {
            **kept,
            "PATH": f"{BIN}:{kept['PATH']}",
            "PWD": str(self.directory),
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **self.account.environment,
            **more,
        }

    def playbook(
        self, name: str, *arguments: str, environment: Mapping[str, str] | None = None, timeout: float = 900
    ) -> Run:
        """Run a playbook: a file of the checkout (site.yml) or one of the collection (mlops.mlflow_aws.site)."""
        playbook = str(ROOT / name) if name.endswith(".yml") else name
        command = [str(BIN / "ansible-playbook"), playbook, "-i", "inventories/local", *arguments]
        return self._run(command, dict(environment or self.environment()), timeout)

    def on_host(self, module: str, arguments: str, *more: str) -> str:
        """Run one module as root on the stack's host and return its output."""
        command = [
            str(BIN / "ansible"),
            "mlflow_servers",
            "-i",
            "inventories/local",
            "--become",
            "-m",
            module,
            "-a",
            arguments,
            *more,
        ]
        return self._run(command, self.environment(), 120).succeeded().output

    def _run(self, command: list[str], environment: dict[str, str], timeout: float) -> Run:
        start = time.monotonic()
        done = subprocess.run(
            command,
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        return Run(done.returncode, done.stdout, time.monotonic() - start)

    def secrets(self) -> dict[str, dict[str, str]]:
        """The values of the stack's secrets, as Secrets Manager has them."""
        manager = self.account.client("secretsmanager")
        return {
            name: json.loads(manager.get_secret_value(SecretId=f"mlflow-{self.stack}/{name}")["SecretString"])
            for name in ("database", "server")
        }

    def client_environment(self) -> dict[str, str]:
        """What client.env says, over an environment without any other MLflow setting."""
        lines = (self.files / "client.env").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_"))},
            **values,
        }
