"""What all tests of a running local AWS do: command it, ask it as a client, find it a free network, and wait."""

from __future__ import annotations

import ipaddress
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import botocore.config
import docker

from local_aws.networks import overlap, used_ranges

ROOT = Path(__file__).parents[3]
Found = TypeVar("Found")


def said(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one command of the local AWS that keeps its state in a directory."""
    command = [sys.executable, "-m", "local_aws", "--state-dir", str(directory), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)


def local_aws(directory: Path, *arguments: str) -> str:
    """Return what such a command prints."""
    return said(directory, *arguments).stdout


def variables(directory: Path) -> dict[str, str]:
    """What `env` exports."""
    words = shlex.split(local_aws(directory, "env"))
    return dict(word.split("=", 1) for word in words if "=" in word)


def eventually(condition: Callable[[], Found], seconds: float = 30.0) -> Found:
    """Return what the condition says once it is true, or at last."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    return condition()


def free_cidr(block: range) -> ipaddress.IPv4Network:
    """Return a /16 that nothing on this machine uses; block: second numbers, of the tests' files each its own."""
    used = used_ranges(docker.from_env())
    candidates = (ipaddress.IPv4Network(f"10.{number}.0.0/16") for number in block)
    return next(candidate for candidate in candidates if overlap(candidate, used) is None)


@dataclass
class RunningAccount:
    """A running account, asked without retries."""

    directory: Path
    env: dict[str, str]

    def client(self, service: str, **arguments: Any) -> Any:
        return boto3.client(
            service,  # type: ignore[call-overload]
            region_name=self.env["AWS_REGION"],
            endpoint_url=arguments.pop("endpoint_url", self.env["AWS_ENDPOINT_URL"]),
            verify=self.env["AWS_CA_BUNDLE"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
            config=botocore.config.Config(proxies={}, retries={"max_attempts": 1}),
            **arguments,
        )
